"""R15: the daemon's memory is flat over any number of operations, and so is its time."""

import time
from collections.abc import Iterator

import pytest
from support.bare import amounts
from support.daemon import LONG, Daemon, balance
from support.wire import Call, Wire, call

from bursar.v1 import ledger_pb2 as lg

OPERATIONS = 10_000_000 if LONG else 400_000
WARM_UP = OPERATIONS // 2
WARM_UP_S = 5.0  # and so long at least: longer than keys are kept and the store is behind
GROWTH_BYTES_MAX = 24 * 2**20  # allocators keep some slack; a leak of 200 bytes a call passes this
LIMIT = 10**15


def reservations(count: int) -> Iterator[Call]:
    wish = amounts(tokens=10)
    for number in range(count):
        request = lg.ReserveRequest(
            account=f"acme/team{number % 7}/agent{number % 100}",
            amounts=wish,
            idempotency_key=f"{number:x}-{time.monotonic_ns():x}",
        )
        yield call("LedgerService/Reserve", request)


def lives(method: str, _: bytes, answer: bytes | None) -> Iterator[Call]:
    """What follows on a reservation: two debits, and a commit; each after the one before."""
    assert answer is not None, f"{method} failed"
    if method == "LedgerService/Reserve":
        held = lg.ReserveResponse.FromString(answer).reservation.id
        assert held
        debit = lg.DebitRequest(reservation=held, used=amounts(tokens=5))
        commit = lg.CommitRequest(reservation=held, actual=amounts(tokens=7))
        yield call("LedgerService/Debit", debit)
        yield call("LedgerService/Commit", commit)


@pytest.mark.timeout(7_200 if LONG else 300)
@pytest.mark.parametrize("where", ["stored", "in-memory"])
def test_memory_is_flat_over_many_operations(where: str) -> None:
    """Goal: nothing is kept per operation once it has ended and its key is forgotten. Method:
    reservations with a debit and a commit each, 256 calls under way; the resident memory when
    it is warm is compared with that at the end. Keys are kept for one second."""
    settings = {"key_retention": "1s"}
    with (
        Daemon(in_memory=where == "in-memory", reservations=settings) as daemon,
        daemon.client() as client,
    ):
        client.set_budget("acme", unit="tokens", limit=LIMIT)
        with Wire(daemon.socket_path, connections=8) as wire:
            made, begun = 0, time.monotonic()
            while made < WARM_UP - 3 or time.monotonic() - begun < WARM_UP_S:
                made += wire.keep_busy(lives, reservations(WARM_UP // 3 // 4), in_flight=256)
            warmed = made
            warm, begun, cpu = daemon.rss_bytes(), time.monotonic(), daemon.cpu_s()
            samples = []
            for _ in range(8):
                part = (OPERATIONS - WARM_UP) // 8 // 3
                made += wire.keep_busy(lives, reservations(part), in_flight=256)
                samples.append(daemon.rss_bytes())
        took = time.monotonic() - begun
        after = made - warmed
        print(
            f"{made} operations, {after / took:.0f} a second "
            f"({(daemon.cpu_s() - cpu) / after * 1e6:.1f} us of the daemon each); "
            f"resident: {warm / 2**20:.1f} MiB when warm, then "
            + ", ".join(f"{one / 2**20:.1f}" for one in samples)
        )
        assert max(samples[-4:]) - warm < GROWTH_BYTES_MAX
        assert balance(client, "acme")[:2] == (0, made // 3 * 7)
