"""S12 through the real socket: runaways are stopped by name, told to watchers, and kept."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.daemon import LONG, Daemon

import bursar
from bursar import Advice, EntryKind, Verdict
from bursar.daemon.config import Config
from bursar.exceptions import AccountFrozen, BudgetExceeded, RunawayStopped

DEPTH = 12 if LONG else 5
REPEATS = 200 if LONG else 20
NOTICE = "Das Budget ist aufgebraucht."
PROMPT = "prompt_fingerprint"


def account(path: str, action: str, **bounds: Any) -> dict[str, Any]:
    runaway = {"action": action, "depth": DEPTH, "repeats": REPEATS, **bounds}
    return {"path": f"{path}/**", "runaway": runaway}


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    accounts = [
        account("stop", "stop"),
        account("freeze", "freeze"),
        account("degrade", "degrade", advice={"max_new_tokens": 7, "notice": NOTICE}),
        {"path": "**"},
    ]
    with Daemon(accounts=accounts, runaway={"repeats": 30}) as running:
        yield running


@pytest.fixture
def client(daemon: Daemon) -> Iterator[bursar.Client]:
    with daemon.client(timeout_s=30) as one:
        yield one


def recurse(client: bursar.Client, path: str, *, parent: str = "", depth: int = 1) -> int:
    """An agent that calls itself until it is refused; how deep it came."""
    try:
        with client.reserve(path, tokens=10_000 // depth, parent=parent or None) as reservation:
            return recurse(client, path, parent=reservation.id, depth=depth + 1)
    except RunawayStopped as stopped:
        assert stopped.rule == "depth"
        return depth - 1


def loop(client: bursar.Client, path: str, most: int, *, until: bool = True) -> int:
    """An agent that asks for the same thing again and again; how often it got it."""
    for count in range(most):
        try:
            with client.reserve(path, tokens=5, labels={PROMPT: "again"}) as reservation:
                reservation.commit(tokens=1)
        except RunawayStopped as stopped:
            assert stopped.rule == "repeats"
            assert (stopped.reset_time is not None) == until
            return count
    return most


def runaways(client: bursar.Client, path: str) -> list[bursar.Entry]:
    return list(client.list_entries(path, kinds=[EntryKind.RUNAWAY]))


def test_an_agent_that_calls_itself_is_stopped_by_name_at_its_bound(
    client: bursar.Client,
) -> None:
    assert recurse(client, "stop/recursive") == DEPTH
    [entry] = runaways(client, "stop/recursive")
    assert (entry.account, entry.amount) == ("stop/recursive", DEPTH + 1)
    figures = f"{DEPTH + 1} reservations nested in each other, {DEPTH} allowed"
    assert entry.detail == f"stop: depth: {figures}"
    # What it held is back, and a call that is not nested goes on.
    assert client.get_account("stop/recursive").open_reservation_count == 0
    client.reserve("stop/recursive", tokens=1).release()


def test_an_agent_in_a_loop_is_stopped_by_name_at_its_bound(client: bursar.Client) -> None:
    assert loop(client, "stop/looping", 10 * REPEATS) == REPEATS
    with pytest.raises(RunawayStopped, match=r"^stop/looping is stopped as a runaway; until 20"):
        client.reserve("stop/looping", tokens=1, labels={PROMPT: "again"})
    assert [entry.amount for entry in runaways(client, "stop/looping")] == [REPEATS + 1]
    client.reserve("stop/looping", tokens=1, labels={PROMPT: "else"}).release()


def test_many_agents_in_a_loop_on_one_account_pass_the_bound_together(
    daemon: Daemon,
) -> None:
    def run() -> None:
        with daemon.client(timeout_s=30) as own:
            counts.append(loop(own, "stop/crowd", REPEATS))

    counts: list[int] = []
    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(counts) == REPEATS


def test_by_default_a_loop_is_told_and_goes_on(client: bursar.Client) -> None:
    assert loop(client, "plain/looping", 40) == 40
    [entry] = runaways(client, "plain/looping")
    assert entry.detail == "warn: repeats: 31 times the same prompt within an interval, 30 allowed"


def test_a_degraded_loop_gets_the_advice_of_its_policy(client: bursar.Client) -> None:
    labels = {PROMPT: "again"}
    for _ in range(REPEATS):
        client.reserve("degrade/a", tokens=1, labels=labels).release()
    with client.reserve("degrade/a", tokens=1, labels=labels) as degraded:
        assert degraded.verdict is Verdict.DEGRADE
        assert degraded.advice == Advice(max_new_tokens=7, notice=NOTICE)


def test_a_frozen_runaway_says_why_until_an_operator_lets_it_go_on(
    client: bursar.Client,
) -> None:
    assert loop(client, "freeze/a", 10 * REPEATS, until=False) == REPEATS
    found = client.get_account("freeze/a")
    assert found.frozen
    assert found.freeze_reason.startswith(f"runaway: repeats: {REPEATS + 1} times the same prompt")
    with pytest.raises(AccountFrozen):
        client.reserve("freeze/a", tokens=1)
    client.unfreeze("freeze/a")
    client.reserve("freeze/a", tokens=1, labels={PROMPT: "again"}).release()


def test_watchers_are_told_of_findings_below_what_they_watch(
    daemon: Daemon, client: bursar.Client
) -> None:
    with daemon.client(timeout_s=30) as watcher:
        changes = watcher.watch_accounts("stop/watched", min_interval_s=0.05)
        assert next(changes).findings == ()
        loop(client, "stop/watched/a", 10 * REPEATS)
        loop(client, "stop/else", 10 * REPEATS)
        recurse(client, "stop/watched/b")
        found: list[bursar.Finding] = []
        while len(found) < 2:
            found += next(changes).findings
    told = [(one.account, one.rule, one.figure, one.allowed, one.action) for one in found]
    assert told == [
        ("stop/watched/a", "repeats", REPEATS + 1, REPEATS, "stop"),
        ("stop/watched/b", "depth", DEPTH + 1, DEPTH, "stop"),
    ]


def test_a_watch_in_this_process_is_told_of_findings_as_well(tmp_path: Path) -> None:
    accounts = [account("stop", "stop"), {"path": "**"}]
    config = Config.from_dict({"accounts": accounts})
    with bursar.open(tmp_path / "ledger.db", config=config) as client:
        loop(client, "stop/watched/early", 10 * REPEATS)
        changes = client.watch_accounts("stop/watched", min_interval_s=0.05)
        assert next(changes).findings == ()
        loop(client, "stop/watched/a", 10 * REPEATS)
        loop(client, "stop/else", 10 * REPEATS)
        recurse(client, "stop/watched/b")
        found: list[bursar.Finding] = []
        while len(found) < 2:
            found += next(changes).findings
        with pytest.raises(bursar.InvalidRequest):
            next(client.watch_accounts("stop//watched"))
    told = [(one.account, one.rule, one.figure, one.allowed, one.action) for one in found]
    assert told == [
        ("stop/watched/a", "repeats", REPEATS + 1, REPEATS, "stop"),
        ("stop/watched/b", "depth", DEPTH + 1, DEPTH, "stop"),
    ]


def test_findings_and_freezes_outlive_a_kill() -> None:
    with Daemon(accounts=[account("freeze", "freeze")]) as daemon:
        with daemon.client(timeout_s=30) as client:
            assert loop(client, "freeze/a", 10 * REPEATS, until=False) == REPEATS
        daemon.kill9()
        daemon.restart()
        with daemon.client(timeout_s=30) as client:
            assert client.get_account("freeze/a").frozen
            assert len(runaways(client, "freeze/a")) == 1


def test_the_notice_of_a_threshold_reaches_reserve_debit_and_lease() -> None:
    threshold = {"percent": 50, "verdict": "warn", "advice": {"notice": NOTICE}}
    budget = {"unit": "tokens", "limit": 100, "thresholds": [threshold]}
    with (
        Daemon(accounts=[{"path": "a", "budgets": [budget]}]) as daemon,
        daemon.client(timeout_s=30) as client,
    ):
        with client.reserve("a", tokens=60) as reservation:
            told = reservation.debit(tokens=60)
            assert (told.verdict, told.advice) == (Verdict.WARN, Advice(notice=NOTICE))
        reservation = client.reserve("a", tokens=10)
        assert reservation.advice == Advice(notice=NOTICE)
        with reservation.lease(unit="tokens") as lease:
            lease.debit(1)
            assert lease.advice == Advice(notice=NOTICE)
        reservation.release()
        with pytest.raises(BudgetExceeded):
            client.reserve("a", tokens=50)
