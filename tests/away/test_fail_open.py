"""Going on without a sidecar: within a local grant, exactly, and told of afterwards."""

import asyncio
import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support.away import told, wait_for, wait_until_told
from support.daemon import Daemon, balance

import bursar
from bursar import FailOpen, Usage, UsageEstimate, Verdict, _calls, _journal
from bursar.exceptions import NotAllowed, StoreUnavailable

SPAWN = multiprocessing.get_context("spawn")
RATES = {
    "models": [
        {
            "name": "tiny",
            "input_nanos_per_million": 1_000_000,
            "output_nanos_per_million": 2_000_000,
        }
    ]
}
LIMIT = 100_000


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    with Daemon(rates=RATES) as one:
        with one.client() as client:
            client.set_budget("acme", unit="tokens", limit=LIMIT)
        yield one


def connect(daemon: Daemon, grant: dict[str, int | str], **more: Any) -> bursar.Client:
    return bursar.connect(daemon.target, timeout_s=2, attempts=2, when_away=FailOpen(grant), **more)


def back(daemon: Daemon, client: bursar.Client) -> tuple[int, int, int]:
    """Starts the daemon, and says what it knows once everything is told."""
    daemon.start()
    wait_for(lambda: told(client))
    return balance(client, "acme")


def test_threads_share_a_grant_to_the_exact_token(
    daemon: Daemon, caplog: pytest.LogCaptureFixture
) -> None:
    with connect(daemon, {"tokens": 100}) as client:
        client.reserve("acme/first", tokens=1).commit(tokens=1)
        daemon.kill9()

        def spend(number: int) -> int:
            try:
                with client.reserve(f"acme/{number % 7}", tokens=3) as hold:
                    assert hold.local
                    assert hold.account == f"acme/{number % 7}"
                    used = number % 4  # some are released with less than they hold
                    hold.debit(tokens=used)
                    if number % 2:
                        hold.commit(tokens=used)
                    return used
            except bursar.BudgetExceeded as error:
                assert error.reason == "AWAY_GRANT_EXHAUSTED"
                assert isinstance(error.limit, int)
                return 0

        with ThreadPoolExecutor(16) as threads:
            spent = sum(threads.map(spend, range(400)))
        assert 50 < spent <= 100  # some were refused while others held more than they spent
        for _ in range(100 - spent):
            client.reserve("acme", tokens=1).commit(tokens=1)
        with pytest.raises(bursar.BudgetExceeded, match="the sidecar is away, and what may be"):
            client.reserve("acme", tokens=1)
        assert client.away.granted_count >= 33
        assert back(daemon, client) == (0, 101, LIMIT - 101)
    assert "spends without the sidecar, by the decision fail_open" in caplog.text


def test_tasks_share_a_grant_to_the_exact_token(daemon: Daemon) -> None:
    async def spend(client: bursar.AsyncClient, number: int) -> int:
        try:
            async with await client.reserve("acme", tokens=2) as hold:
                async with await hold.lease(ahead=1) as lease:
                    for _ in range(5 + number):
                        await lease.debit()
                        await asyncio.sleep(0)
                return (await hold.commit()).spent.get("tokens", 0)
        except bursar.BudgetExceeded:
            return 0

    async def run() -> int:
        grant = FailOpen({"tokens": 100})
        async with bursar.connect_async(
            daemon.target, timeout_s=2, attempts=2, when_away=grant
        ) as client:
            daemon.kill9()
            spent = sum(await asyncio.gather(*(spend(client, number) for number in range(40))))
            await asyncio.to_thread(daemon.start)
            await wait_until_told(client)
            # By another: this one may still wait before it tries to connect again.
            with daemon.client() as other:
                [window] = other.get_account("acme").balances
            assert (window.held, window.spent) == (0, spent)
            return spent

    assert asyncio.run(run()) == 100


def test_a_local_reservation_is_one_like_any_other(daemon: Daemon) -> None:
    with connect(daemon, {"tokens": 100}) as client:
        daemon.kill9()
        with client.reserve("acme/a", tokens=80) as hold:
            assert (hold.local, dict(hold.granted)) == (True, {"tokens": 80})
            assert client.get_reservation(hold.id).account == "acme/a"
            nested = client.reserve("acme/a", tokens=20, parent=hold.id)
            ended = nested.commit(tokens=5)
            assert (ended.spent, ended.answered) == ({"tokens": 5}, False)
            assert hold.extend(tokens=85).reservation.id == hold.id
            assert hold.debit(tokens=60).remaining == {"tokens": 25}
            stopped = hold.debit(tokens=86)
            assert (stopped.verdict, stopped.remaining) == (Verdict.STOP, {"tokens": 0})
            with pytest.raises(bursar.InvalidRequest):
                hold.debit(tokens=-1)
        assert hold.ended
        with pytest.raises(bursar.IdempotencyMismatch):
            hold.commit(tokens=3)
        partial = client.reserve("acme/a", tokens=90, min_acceptable={"tokens": 1})
        with partial, partial.lease() as lease:
            while lease.debit(1) is not Verdict.STOP:
                pass
            assert isinstance(lease.refused, bursar.BudgetExceeded)
            assert (lease.used, lease.refused.reason) == (10, "AWAY_GRANT_EXHAUSTED")
        assert partial.ended
        assert back(daemon, client) == (0, 100, LIMIT - 100)


def test_once_it_is_told_the_grant_is_there_anew_and_a_hold_goes_on_to_its_end(
    daemon: Daemon,
) -> None:
    with connect(daemon, {"tokens": 10}) as client:
        for spent in (10, 20, 30):
            daemon.kill9()
            hold = client.reserve("acme", tokens=10)
            with pytest.raises(bursar.BudgetExceeded):
                client.reserve("acme", tokens=1)
            daemon.start()
            wait_for(lambda: client.away.since is None)
            assert not client.reserve("acme", tokens=1).local
            hold.debit(tokens=10)
            with pytest.raises(bursar.BudgetExceeded):
                hold.extend(tokens=11)
            hold.commit()
            wait_for(lambda: told(client))
            [window] = client.get_account("acme").balances
            assert window.spent == spent


def test_a_sidecar_that_answers_is_obeyed_whatever_it_says(daemon: Daemon) -> None:
    with connect(daemon, {"tokens": 100}) as client:
        with pytest.raises(bursar.BudgetExceeded) as refused:
            client.reserve("acme", tokens=LIMIT + 1)
        assert refused.value.reason == "BUDGET_EXHAUSTED"
        client.freeze("acme")
        with pytest.raises(bursar.AccountFrozen):
            client.reserve("acme", tokens=1)
        assert client._patience is not None
        wanted = {"amounts": None, "usage": None, "min_acceptable": None, "ttl_s": None}
        for answer in (
            StoreUnavailable("read-only", reason="STORE_UNAVAILABLE"),
            NotAllowed("no", reason="NOT_ALLOWED"),
        ):
            call = _calls.reserve(
                "acme", tokens=1, parent=None, labels=None, idempotency_key=None, **wanted
            )
            course = client._patience.course(call)
            course.failed(answer)
            with pytest.raises(type(answer)) as caught:
                course.result()
            assert caught.value is answer
        assert client.away == bursar.Away(None, 0, 0, 0, 0)


def test_after_its_time_it_fails_closed(daemon: Daemon) -> None:
    grant = FailOpen({"tokens": 100}, for_s=1.5)
    with bursar.connect(daemon.target, timeout_s=1, attempts=1, when_away=grant) as client:
        daemon.kill9()
        hold = client.reserve("acme", tokens=10)
        time.sleep(1.6)
        with pytest.raises(bursar.SidecarUnavailable, match=r"grants for 1\.5 s") as caught:
            client.reserve("acme", tokens=10)
        assert caught.value.decision == "fail_closed"
        with pytest.raises(bursar.SidecarUnavailable, match="reserve anew"):
            hold.extend(tokens=20)
        hold.commit(tokens=7)
        assert back(daemon, client) == (0, 7, LIMIT - 7)


def test_what_was_reserved_at_the_sidecar_goes_on_within_its_hold(daemon: Daemon) -> None:
    with connect(daemon, {"tokens": 1_000}) as client:
        by_calls = client.reserve("acme", tokens=50)
        by_lease = client.reserve("acme", tokens=20)
        lease = by_lease.lease(ahead=1)
        daemon.kill9()
        assert by_calls.debit(tokens=20).verdict is Verdict.WARN
        assert by_calls.debit(tokens=51).verdict is Verdict.STOP
        assert by_calls.debit(tokens=30).remaining == {"tokens": 20}
        while lease.debit(1) is not Verdict.STOP:
            pass
        assert isinstance(lease.refused, bursar.SidecarUnavailable)
        assert lease.refused.decision == "fail_open"
        granted = lease.used
        assert granted >= 20
        assert not by_lease.commit().answered
        assert not by_calls.commit().answered
        assert back(daemon, client) == (0, 30 + granted, LIMIT - 30 - granted)


def test_money_is_granted_at_the_prices_that_are_named(daemon: Daemon, tmp_path: Path) -> None:
    rates = tmp_path / "rates.toml"
    rates.write_text(
        '[[models]]\nname = "tiny"\n'
        "input_nanos_per_million = 1_000_000\noutput_nanos_per_million = 2_000_000\n",
        encoding="utf-8",
    )
    estimate = UsageEstimate("tiny", input_tokens=10, max_output_tokens=20, min_output_tokens=1)
    with daemon.client() as client:
        client.set_budget("acme", unit="usd_nanos", limit=1_000)
    daemon.kill9()
    blind = FailOpen({"usd_nanos": "0.00001 USD"})
    with (
        bursar.connect(daemon.target, timeout_s=1, attempts=1, when_away=blind) as client,
        pytest.raises(bursar.UnpricedModel),
    ):
        client.reserve("acme", usage=estimate)
    priced = FailOpen({"usd_nanos": 30}, rates=rates)
    with bursar.connect(daemon.target, timeout_s=1, attempts=1, when_away=priced) as client:
        hold = client.reserve("acme", usage=estimate)
        assert hold.max_output_tokens == 10
        assert hold.debit(output_tokens=4).verdict is not Verdict.STOP
        hold.commit(usage=Usage(input_tokens=10, output_tokens=6))
        with client.reserve("acme", usage=UsageEstimate("tiny", max_output_tokens=4)) as hold:
            hold.debit(output_tokens=3)
        daemon.start()
        wait_for(lambda: told(client))
        tokens, money = client.get_account("acme").balances
        assert (tokens.unit, tokens.spent, tokens.held) == ("tokens", 19, 0)
        assert (money.unit, money.spent, money.held) == ("usd_nanos", 10 + 12 + 6, 0)


def test_units_that_the_grant_does_not_name_are_refused(daemon: Daemon) -> None:
    with connect(daemon, {"tokens": 100}) as client:
        daemon.kill9()
        for wish, unit in (
            ({"amounts": {"tokens": 1, "gpu_ms": 7}}, "gpu_ms"),
            ({"usage": UsageEstimate("tiny", max_output_tokens=5, gpu_ms=7)}, "gpu_ms"),
        ):
            with pytest.raises(bursar.BudgetExceeded) as caught:
                client.reserve("acme", **wish)
            assert (caught.value.unit, caught.value.shortfall) == (unit, 7)
            assert caught.value.reason == "AWAY_GRANT_EXHAUSTED"
        client.reserve("acme", usage=UsageEstimate("tiny", max_output_tokens=5)).release()


@pytest.mark.parametrize(
    ("grant", "for_s", "complaint"),
    [
        ({}, 1.0, "name units that are spent"),
        ({"tokens": -1}, 1.0, "is not from 0 to"),
        ({"tokens": 1.5}, 1.0, "write an integer"),
        ({"apples": 1}, 1.0, "no such unit: apples"),
        ({"vram_bytes": 1}, 1.0, "name units that are spent"),
        ({"tokens": 1}, 0.0, "for_s is 0"),
        ({"tokens": 1}, float("nan"), "for_s is nan"),
    ],
)
def test_a_policy_that_is_wrong_is_told_at_once(
    grant: dict[str, Any], for_s: float, complaint: str
) -> None:
    with pytest.raises(bursar.InvalidRequest, match=complaint):
        FailOpen(grant, for_s=for_s)


def _spend_for_ever(pipe: Any, target: str, folder: Path) -> None:
    grant = FailOpen({"tokens": 200_000})
    with bursar.connect(target, timeout_s=1, attempts=1, when_away=grant, journal=folder) as client:
        client.reserve("acme", tokens=10).commit(tokens=9)
        hold = client.reserve("acme", tokens=100_000)
        for used in range(1, 100_000):
            pipe.send(used)
            hold.debit(tokens=used)


def test_kill_9_of_a_client_that_spends_locally_loses_nothing_that_it_debited(
    daemon: Daemon, tmp_path: Path
) -> None:
    daemon.kill9()
    ours, theirs = SPAWN.Pipe()
    process = SPAWN.Process(target=_spend_for_ever, args=(theirs, daemon.target, tmp_path))
    process.start()
    theirs.close()
    while ours.recv() < 300:
        pass
    process.kill()
    process.join()
    last = 300
    while ours.poll():
        try:
            last = ours.recv()
        except EOFError:
            break
    daemon.start()
    for _ in range(2):  # the second finds nothing any more
        with bursar.connect(daemon.target, journal=tmp_path) as client:
            wait_for(lambda: told(client))
            assert balance(client, "acme")[1] in {9 + last - 1, 9 + last}
    assert list(tmp_path.iterdir()) == []


def test_threads_that_debit_one_local_hold_are_told_of_as_one(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_journal, "_kept_line", slowly(_journal._kept_line))
    with connect(daemon, {"tokens": 500}) as client:
        daemon.kill9()
        holds = [client.reserve("acme", tokens=10) for _ in range(20)]
        with ThreadPoolExecutor(4) as threads:
            for hold in holds:
                list(threads.map(lambda used: hold.debit(tokens=used), (3, 10, 7, 5)))  # noqa: B023 -- called at once
        assert client.away.waiting_count == len(holds)
        daemon.start()
        wait_for(lambda: client.away.since is None)
        client.close()  # none was ended: what they debited is told all the same
    with daemon.client() as client:
        assert balance(client, "acme") == (0, 200, LIMIT - 200)


def slowly(function: Callable[..., bytes]) -> Callable[..., bytes]:
    """The same, but that others get their turn meanwhile."""

    def run(*args: Any) -> bytes:
        time.sleep(0.001)
        return function(*args)

    return run
