"""R2, R3, R5 through leases: many processes and threads spend one budget to the last token."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack

import pytest
from support.daemon import LONG, Daemon, balance

import bursar
from bursar import Verdict

PROCESSES, THREADS = (8, 4) if LONG else (4, 3)
ROUNDS = 20 if LONG else 3
LIMIT = 30_011
LEASES = 1_000 if LONG else 200
ROOM = 10**9

SPENDER = """
import sys, threading, bursar
target, account, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
client = bursar.connect(target, timeout_s=60)
counts = []
def spend(number):
    try:
        reservation = client.reserve(f"{account}/{number}", tokens=1, ttl_s=600)
    except bursar.BudgetExceeded:  # the others were quicker
        return counts.append(0)
    lease = reservation.lease(ahead=64)
    count = 0
    while lease.debit() is not bursar.Verdict.STOP:
        count += 1
    assert lease.used == count, (lease.used, count)
    assert reservation.commit().spent["tokens"] == count
    counts.append(count)
workers = [threading.Thread(target=spend, args=(n,)) for n in range(threads)]
[one.start() for one in workers]
[one.join() for one in workers]
print(len(counts), sum(counts))
"""


@pytest.mark.timeout(60 + ROUNDS * 30)
def test_processes_and_threads_spend_a_departments_budget_to_the_last_token() -> None:
    """Goal: never a token over, and none left while somebody was refused for lack of it. Method:
    every thread of every process debits a lease of its own until STOP; since nobody stops before
    the budget is gone, it has to be gone, to the token."""
    for _ in range(ROUNDS):
        with Daemon() as daemon, daemon.client() as client, ExitStack() as stack:
            client.set_budget("acme", unit="tokens", limit=LIMIT)
            spenders = [
                stack.enter_context(
                    subprocess.Popen(
                        [
                            sys.executable,
                            "-c",
                            SPENDER,
                            daemon.target,
                            f"acme/{number}",
                            str(THREADS),
                        ],
                        stdout=subprocess.PIPE,
                        text=True,
                    )
                )
                for number in range(PROCESSES)
            ]
            said = [spender.communicate(timeout=50)[0].split() for spender in spenders]
            assert [int(threads) for threads, _ in said] == [THREADS] * PROCESSES
            assert sum(int(count) for _, count in said) == LIMIT
            assert balance(client, "acme") == (0, LIMIT, 0)


CHANGES: dict[str, tuple[Callable[[bursar.Client], object], Verdict]] = {
    "freeze": (lambda client: client.freeze("acme", reason="test"), Verdict.STOP),
    "limit": (lambda client: client.set_budget("acme", unit="tokens", limit=1), Verdict.STOP),
    "threshold": (lambda client: client.record("acme/other", tokens=ROOM // 2), Verdict.WARN),
}
"""What somebody else does, and what every lease hears of it."""


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_reaches_every_lease_at_its_next_debit(change: str) -> None:
    act, heard = CHANGES[change]
    with Daemon() as daemon, daemon.client() as client:
        half = bursar.Threshold(500, Verdict.WARN)
        client.set_budget("acme", unit="tokens", limit=ROOM, thresholds=[half])
        leases = [
            client.reserve(f"acme/{number % 50}", tokens=10_000).lease(top_up=False)
            for number in range(LEASES)
        ]
        assert {lease.debit() for lease in leases} == {Verdict.OK}
        act(client)
        begun = time.monotonic()
        late = leases
        while late:
            late = [lease for lease in late if lease.debit() is not heard]
            assert time.monotonic() - begun < 1, f"{len(late)} leases go on"
        took = time.monotonic() - begun
        print(f"{LEASES} leases heard of a {change} {took * 1e3:.1f} ms after it was answered")
        for lease in leases:
            lease.detach()


def test_reserves_and_leases_together_never_pass_the_limit() -> None:
    with Daemon() as daemon, daemon.client() as client:
        client.set_budget("acme", unit="tokens", limit=10_000)
        stop = threading.Event()
        refused = 0
        with client.reserve("acme/lease", tokens=1) as reservation:
            lease = reservation.lease(ahead=512)

            def reserve() -> None:
                nonlocal refused
                while not stop.is_set():
                    try:
                        with client.reserve("acme/calls", tokens=500) as hold:
                            hold.commit(tokens=3)
                    except bursar.BudgetExceeded:
                        refused += 1

            thread = threading.Thread(target=reserve)
            thread.start()
            while lease.debit() is not bursar.Verdict.STOP:
                held, spent, remaining = balance(client, "acme")
                assert remaining >= 0
                assert held + spent <= 10_000
            stop.set()
            thread.join()
        assert balance(client, "acme")[1] <= 10_000
