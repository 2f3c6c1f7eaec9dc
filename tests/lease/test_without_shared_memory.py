"""Leases over TCP, where no memory is shared, and on a ledger in this process: the same, slower."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.daemon import Daemon, balance

import bursar
from bursar import Verdict
from bursar._metered import EmbeddedLease, MeteredLease

RATES = """
accounts = [{ path = "**" }]
[rates]
models = [
    { name = "tiny", input_nanos_per_million = 1_000_001, output_nanos_per_million = 2_000_003 },
]
"""


def eventually(check: Callable[[], object], expected: object, timeout_s: float = 5) -> None:
    deadline = time.monotonic() + timeout_s
    while (seen := check()) != expected:
        assert time.monotonic() < deadline, f"{seen} is not {expected}"
        time.sleep(0.002)


def free_port() -> int:
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.fixture(params=["embedded", "tcp"])
def client(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[bursar.Client]:
    config = tmp_path / "bursar.toml"
    config.write_text(RATES, encoding="utf-8")
    if request.param == "embedded":
        with bursar.open(tmp_path / "ledger", config=config) as client:
            client.set_budget("acme", unit="tokens", limit=1_000)
            yield client
        return
    address = f"127.0.0.1:{free_port()}"
    models = [
        {
            "name": "tiny",
            "input_nanos_per_million": 1_000_001,
            "output_nanos_per_million": 2_000_003,
        }
    ]
    with (
        Daemon(server={"tcp": address}, rates={"models": models}),
        bursar.connect(address) as client,
    ):
        client.set_budget("acme", unit="tokens", limit=1_000)
        yield client


def test_a_lease_stops_when_the_budget_is_gone(client: bursar.Client) -> None:
    with client.reserve("acme/a", tokens=1) as reservation:
        with reservation.lease(ahead=16) as lease:
            assert isinstance(lease, MeteredLease | EmbeddedLease)
            debited = 0
            while lease.debit() is Verdict.OK:
                debited += 1
            assert debited == lease.used == 1_000
            assert lease.refused is not None
        assert lease.debit() is Verdict.STOP
        assert client.get_reservation(reservation.id).used == {"tokens": 1_000}
        assert reservation.commit().spent == {"tokens": 1_000}
    assert balance(client, "acme") == (0, 1_000, 0)


def test_without_top_ups_it_stops_at_what_was_reserved(client: bursar.Client) -> None:
    with client.reserve("acme/a", tokens=10) as one, one.lease(top_up=False) as lease:
        assert [lease.debit() for _ in range(10)] == [Verdict.OK] * 10
        assert lease.debit() is Verdict.STOP
    assert balance(client, "acme") == (0, 10, 990)


def test_verdicts_come_unasked(client: bursar.Client) -> None:
    client.set_budget(
        "acme",
        unit="tokens",
        limit=100,
        thresholds=[bursar.Threshold(500, Verdict.WARN, bursar.Advice(max_new_tokens=7))],
    )
    with client.reserve("acme/a", tokens=90) as one, one.lease(top_up=False) as lease:
        lease.debit(50)
        eventually(lambda: lease.verdict, Verdict.WARN)
        assert lease.advice == bursar.Advice(max_new_tokens=7)
        client.freeze("acme", reason="test")
        eventually(lease.debit, Verdict.STOP)
        client.unfreeze("acme")
        eventually(lease.debit, Verdict.WARN)


def test_output_tokens_are_priced_by_the_cumulative_count(client: bursar.Client) -> None:
    estimate = bursar.UsageEstimate(
        model="tiny", input_tokens=7, max_output_tokens=100, min_output_tokens=1
    )
    with client.reserve("acme/b", tokens=943) as other:
        reservation = client.reserve("acme/a", usage=estimate)
        assert reservation.max_output_tokens == 50
        other.release()
        with reservation.lease() as lease:
            assert [lease.debit() for _ in range(100)] == [Verdict.OK] * 100
            assert lease.debit() is Verdict.STOP
        cost = -(-(7 * 1_000_001 + 100 * 2_000_003) // 10**6)
        used = client.get_reservation(reservation.id).used
        assert used == {"tokens": 107, "usd_nanos": cost, "calls": 1}


def test_threads_add_up_and_a_commit_ends_the_lease(client: bursar.Client) -> None:
    reservation = client.reserve("acme/a", tokens=1)
    lease = reservation.lease(ahead=8)
    counts = [0] * 4

    def run(number: int) -> None:
        while lease.debit() is Verdict.OK:
            counts[number] += 1

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(counts) == 1_000
    assert reservation.commit(tokens=lease.used).spent == {"tokens": 1_000}
    eventually(lease.debit, Verdict.STOP)
    lease.detach()


def test_it_goes_on_within_its_grant_while_the_daemon_is_away() -> None:
    address = f"127.0.0.1:{free_port()}"
    with (
        Daemon(server={"tcp": address}, reservations={"default_ttl": "10m"}) as daemon,
        bursar.connect(address, timeout_s=20, attempts=100) as client,
    ):
        client.set_budget("acme", unit="tokens", limit=1_000)
        with client.reserve("acme/a", tokens=500) as reservation:
            with reservation.lease(top_up=False) as lease:
                lease.debit(10)
                eventually(lambda: balance(client, "acme"), (490, 10, 500))
                daemon.kill9()
                assert [lease.debit() for _ in range(90)] == [Verdict.OK] * 90
                daemon.start()
                eventually(lambda: balance(client, "acme"), (400, 100, 500), timeout_s=15)
                lease.debit(5)
            assert reservation.commit().spent == {"tokens": 105}


def test_asyncio_meters_as_well() -> None:
    async def spend(aio: bursar.AsyncClient, account: str) -> int:
        async with await aio.reserve(account, tokens=1) as reservation:
            async with await reservation.lease(ahead=16) as lease:
                count = 0
                while await lease.debit() is Verdict.OK:
                    count += 1
            await reservation.commit(tokens=lease.used)
            return count

    async def run(address: str) -> list[int]:
        async with bursar.connect_async(address) as aio:
            return await asyncio.gather(*(spend(aio, f"acme/{number}") for number in range(4)))

    address = f"127.0.0.1:{free_port()}"
    with Daemon(server={"tcp": address}) as daemon, daemon.client() as client:
        client.set_budget("acme", unit="tokens", limit=1_000)
        counts = asyncio.run(run(address))
        # What one had granted and did not use went back when it committed.
        assert sum(counts) <= 1_000
        assert balance(client, "acme") == (0, sum(counts), 1_000 - sum(counts))
        assert sum(counts) > 500
