"""What a lease does for one process: counts, top-ups, advice, ends, threads, forks, asyncio."""

import asyncio
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.daemon import Daemon, balance

import bursar
from bursar import Verdict
from bursar.lease import SharedLease

RATES = {
    "models": [
        {
            "name": "tiny",
            "input_nanos_per_million": 1_000_001,
            "output_nanos_per_million": 2_000_003,
        }
    ]
}


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    with Daemon(rates=RATES) as daemon:
        yield daemon


@pytest.fixture
def client(daemon: Daemon) -> Iterator[bursar.Client]:
    with daemon.client() as client:
        client.set_budget("acme", unit="tokens", limit=1_000)
        yield client


def eventually(check: "object", expected: object, timeout_s: float = 2) -> None:
    deadline = time.monotonic() + timeout_s
    while (seen := check()) != expected:  # type: ignore[operator]
        assert time.monotonic() < deadline, f"{seen} is not {expected}"
        time.sleep(0.002)


def test_a_lease_is_on_shared_memory_and_stops_at_the_exact_token(client: bursar.Client) -> None:
    with client.reserve("acme/a", tokens=10) as reservation:
        lease = reservation.lease(top_up=False)
        assert isinstance(lease, SharedLease)
        assert [lease.debit() for _ in range(10)] == [Verdict.OK] * 10
        assert lease.debit() is Verdict.STOP
        assert (lease.used, lease.granted) == (10, 10)
        eventually(lambda: balance(client, "acme"), (0, 10, 990))
        assert reservation.commit().spent == {"tokens": 10}
        assert lease.ended
        assert lease.debit() is Verdict.STOP
    assert balance(client, "acme") == (0, 10, 990)


def test_open_reservations_are_listed_with_leases_first(client: bursar.Client) -> None:
    with client.reserve("acme/a", tokens=10) as leased, client.reserve("acme/b", tokens=10) as held:
        leased.lease(top_up=False).debit(3)

        def listed() -> list[tuple[str, bursar.Debiting, int]]:
            every = [(one.reservation, one.debiting) for one in client.list_reservations("acme")]
            return [(one.id, by, one.used.get("tokens", 0)) for one, by in every]

        calls, lease = bursar.Debiting.CALLS, bursar.Debiting.LEASE
        eventually(listed, [(leased.id, lease, 3), (held.id, calls, 0)])


def test_a_lease_tops_itself_up_and_stops_when_the_budget_is_gone(client: bursar.Client) -> None:
    with client.reserve("acme/a", tokens=1) as reservation, reservation.lease() as lease:
        debited = 0
        while lease.debit() is Verdict.OK:
            debited += 1
        assert debited == 1_000
        assert isinstance(lease.refused, bursar.BudgetExceeded)
        assert lease.refused.account == "acme"
        assert reservation.commit().spent == {"tokens": 1_000}
    assert balance(client, "acme") == (0, 1_000, 0)


def test_a_large_step_debits_what_there_is_and_stops(client: bursar.Client) -> None:
    with client.reserve("acme/a", tokens=1) as reservation, reservation.lease() as lease:
        assert lease.debit(700) is Verdict.OK
        assert lease.debit(700) is Verdict.STOP
        assert lease.used == 1_000


def test_at_most_bounds_what_top_ups_reach(client: bursar.Client) -> None:
    with client.reserve("acme/a", tokens=1) as one, one.lease(at_most=30) as lease:
        assert [lease.debit() for _ in range(30)] == [Verdict.OK] * 30
        assert lease.debit() is Verdict.STOP
    assert balance(client, "acme") == (0, 30, 970)


def test_output_tokens_are_priced_by_the_cumulative_count(client: bursar.Client) -> None:
    estimate = bursar.UsageEstimate(model="tiny", input_tokens=7, max_output_tokens=100)
    with client.reserve("acme/a", usage=estimate) as reservation:
        with reservation.lease() as lease:
            for _ in range(100):
                assert lease.debit() is Verdict.OK
            assert lease.debit() is Verdict.STOP
        used = client.get_reservation(reservation.id).used
        millionths = 7 * 1_000_001 + 100 * 2_000_003
        cost = -(-millionths // 10**6)
        assert used == {"tokens": 107, "usd_nanos": cost, "calls": 1}
        assert reservation.commit(output_tokens=100).spent == used


def test_a_usage_that_was_granted_in_part_is_topped_up_to_what_was_asked(
    client: bursar.Client,
) -> None:
    with client.reserve("acme/b", tokens=900) as other:
        estimate = bursar.UsageEstimate(
            model="tiny", input_tokens=10, max_output_tokens=200, min_output_tokens=10
        )
        reservation = client.reserve("acme/a", usage=estimate)
        assert reservation.max_output_tokens == 90
        other.release()
        lease = reservation.lease()
        debited = 0
        while lease.debit() is Verdict.OK:
            debited += 1
        assert debited == 200
        assert reservation.commit(output_tokens=200).spent["tokens"] == 210


def test_a_freeze_stops_the_next_step_and_an_unfreeze_lets_it_go_on(client: bursar.Client) -> None:
    with client.reserve("acme/a", tokens=100) as reservation, reservation.lease() as lease:
        assert lease.debit() is Verdict.OK
        client.freeze("acme", reason="test")
        eventually(lambda: lease.verdict, Verdict.STOP, timeout_s=0.5)
        assert lease.debit() is Verdict.STOP
        client.unfreeze("acme")
        eventually(lease.debit, Verdict.OK)


def test_thresholds_reach_the_page_with_their_advice_and_are_reported_once(
    client: bursar.Client,
) -> None:
    advice = bursar.Advice(
        max_new_tokens=16, temperature=0.25, repetition_penalty=1.5, fallback_model="tiny"
    )
    client.set_budget(
        "acme",
        unit="tokens",
        limit=100,
        thresholds=[
            bursar.Threshold(500, Verdict.WARN),
            bursar.Threshold(900, Verdict.DEGRADE, advice),
        ],
    )
    with client.reserve("acme/a", tokens=100) as reservation, reservation.lease() as lease:
        assert lease.advice is None
        lease.debit(50)
        eventually(lambda: lease.verdict, Verdict.WARN)
        lease.debit(40)
        eventually(lambda: lease.verdict, Verdict.DEGRADE)
        assert lease.advice == advice
        assert lease.debit() is Verdict.DEGRADE
    crossings = [e.amount for e in client.list_entries("acme", kinds=["crossing"])]
    assert crossings == [500, 900]


def test_calls_do_not_debit_what_is_leased_and_do_so_again_afterwards(
    client: bursar.Client,
) -> None:
    with client.reserve("acme/a", tokens=10) as reservation:
        with reservation.lease() as lease:
            lease.debit(3)
            with pytest.raises(bursar.ReservationLeased):
                reservation.debit(tokens=4)
            with pytest.raises(bursar.ReservationLeased):
                reservation.lease()
        assert reservation.debit(tokens=5).remaining == {"tokens": 5}
        with reservation.lease() as lease:
            assert lease.used == 5


def test_unused_top_ups_go_to_who_would_be_refused(client: bursar.Client) -> None:
    with client.reserve("acme/a", tokens=1) as greedy, greedy.lease(ahead=900) as lease:
        lease.debit(200)
        eventually(lambda: lease.granted >= 900, expected=True)
        assert client.reserve("acme/b", tokens=700).granted == {"tokens": 700}
        assert lease.granted < 400
        debited = 200
        while lease.debit() is Verdict.OK:
            debited += 1
        assert debited == 300


def test_threads_of_one_lease_add_up(client: bursar.Client) -> None:
    with client.reserve("acme/a", tokens=1) as reservation, reservation.lease() as lease:
        counts = [0] * 8

        def run(number: int) -> None:
            while lease.debit() is Verdict.OK:
                counts[number] += 1

        threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(counts) == lease.used == 1_000


def test_a_lease_that_is_used_outlives_its_time_to_live(client: bursar.Client) -> None:
    with client.reserve("acme/a", tokens=500, ttl_s=0.4) as reservation:
        lease = reservation.lease(top_up=False)
        for _ in range(20):
            assert lease.debit() is Verdict.OK
            time.sleep(0.05)
        eventually(lambda: lease.ended, expected=True)
        assert lease.debit() is Verdict.STOP
        info = client.get_reservation(reservation.id)
        assert (info.state, info.spent) == (bursar.ReservationState.EXPIRED, {"tokens": 20})
        assert reservation.commit(tokens=21).spent == {"tokens": 21}


def test_a_forked_child_does_not_spend_its_parents_lease(client: bursar.Client) -> None:
    with client.reserve("acme/a", tokens=10) as reservation, reservation.lease() as lease:
        lease.debit(2)
        pid = os.fork()
        if pid == 0:
            try:
                lease.debit()
            except bursar.ReservationLeased:
                lease.detach()  # the parent's lease goes on
                os._exit(7)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
        assert lease.debit(3) is Verdict.OK
        assert lease.used == 5
    assert balance(client, "acme") == (0, 5, 995)


def test_a_lease_works_in_asyncio_and_top_ups_do_not_block_the_loop(
    daemon: Daemon, client: bursar.Client
) -> None:
    async def spend(account: str) -> int:
        async with (
            bursar.connect_async(daemon.target) as aio,
            await aio.reserve(account, tokens=1) as reservation,
            await reservation.lease(ahead=8) as lease,
        ):
            count = 0
            while await lease.debit() is Verdict.OK:
                count += 1
                await asyncio.sleep(0)
            return count

    async def run() -> int:
        return sum(await asyncio.gather(*(spend(f"acme/{number}") for number in range(5))))

    assert asyncio.run(run()) == 1_000
    assert balance(client, "acme") == (0, 1_000, 0)


def test_nested_reservations_carve_from_what_a_lease_has_left(client: bursar.Client) -> None:
    with client.reserve("acme/a", tokens=10) as parent:
        lease = parent.lease(top_up=False)
        lease.debit(4)
        with pytest.raises(bursar.BudgetExceeded):
            client.reserve("acme/a", tokens=7, parent=parent.id)
        with client.reserve("acme/a", tokens=5, parent=parent.id) as child:
            assert lease.granted == 5
            assert lease.debit() is Verdict.OK
            assert lease.debit() is Verdict.STOP
            child.commit(tokens=2)
        eventually(lambda: lease.granted, 8)
        assert lease.debit(3) is Verdict.OK
        assert parent.commit().spent == {"tokens": 8}
    assert balance(client, "acme") == (0, 10, 990)


def test_bad_terms_are_explained(client: bursar.Client) -> None:
    with client.reserve("acme/a", amounts={"tokens": 5, "calls": 1}) as reservation:
        with pytest.raises(bursar.InvalidRequest, match="name the unit"):
            reservation.lease()
        with pytest.raises(bursar.InvalidRequest, match="vram_bytes"):
            reservation.lease(unit="vram_bytes")
        with pytest.raises(bursar.InvalidRequest, match="ahead=0"):
            reservation.lease(unit="tokens", ahead=0)
        with pytest.raises(bursar.InvalidRequest, match="at_most=-1"):
            reservation.lease(unit="tokens", at_most=-1)
        with reservation.lease(unit="calls", top_up=False) as lease:
            assert lease.debit() is Verdict.OK
            assert lease.debit() is Verdict.STOP
            with pytest.raises(OverflowError):
                lease.debit(-1)


def test_a_daemon_without_a_place_for_leases_refuses_by_name() -> None:
    with Daemon(limits={"max_leases": 2}) as daemon, daemon.client() as client:
        held = [client.reserve("acme", tokens=1) for _ in range(3)]
        leases = [one.lease() for one in held[:2]]
        with pytest.raises(bursar.LimitReached, match="maximum of 2 leases"):
            held[2].lease()
        leases[0].detach()
        held[2].lease().detach()


@pytest.mark.timeout(600)
def test_no_descriptor_page_or_thread_is_left_behind(client: bursar.Client, daemon: Daemon) -> None:
    def left(pid: int) -> tuple[int, int, int]:
        process = Path(f"/proc/{pid}")
        maps = (process / "maps").read_text(encoding="utf-8").count("bursar-lease")
        names = [str(fd.readlink()) for fd in (process / "fd").iterdir() if fd.is_symlink()]
        ours = [one for one in names if one.startswith(("socket:", "/memfd:", "anon_inode:[pidfd"))]
        names = [one.read_text(encoding="utf-8") for one in process.glob("task/*/comm")]
        # Those of a pool come and go with what runs aside.
        return len(ours), maps, len([one for one in names if one != "tokio-rt-worker\n"])

    def now_left(before: "tuple[tuple[int, int, int], tuple[int, int, int]]") -> list[int]:
        now = left(os.getpid()), left(daemon.pid)
        return [max(0, *map(int.__sub__, *pair)) for pair in zip(now, before, strict=True)]

    rounds = 100_000 if os.environ.get("BURSAR_LONG") == "1" else 1_000
    with client.reserve("acme/a", tokens=10) as reservation:
        reservation.lease().detach()
        eventually(lambda: left(daemon.pid)[1], 0)
        before = left(os.getpid()), left(daemon.pid)
        for _ in range(rounds):
            reservation.lease().detach()
        # What earlier tests have left to end by itself may end meanwhile, and what waits for work.
        eventually(lambda: max(now_left(before)), 0, timeout_s=20)
