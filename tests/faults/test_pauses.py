"""Processes that are stopped and go on: deadlines and times to live are those of the clock."""

import os
import signal
import time
from pathlib import Path

import pytest
from support.bare import Bare, amounts
from support.daemon import Daemon, balance
from support.lessee import Lessee

import bursar
from bursar import ReservationState, Verdict
from bursar.v1 import ledger_pb2 as lg

LIMIT = 2**40
TTL_S = 3
PAUSE_S = TTL_S + 0.5


def test_a_stopped_daemon_is_noticed_by_deadline_and_nothing_counts_twice() -> None:
    """What was sent while it was stopped, it meets when it goes on, together with the repeats."""
    with Daemon() as daemon, daemon.client(timeout_s=0.5) as hasty, daemon.client() as client:
        client.set_budget("acme", unit="tokens", limit=LIMIT)
        asked = [
            lg.RecordRequest(account="acme", idempotency_key=str(n), amounts=amounts(tokens=n))
            for n in range(1, 9)
        ]
        with Bare(daemon.target) as bare, Bare(daemon.target, timeout_s=0.1) as impatient:
            impatient("AccountService/ListAccounts", b"")  # so that it is connected
            with daemon.stopped():
                begun = time.monotonic()
                with pytest.raises(bursar.SidecarError):
                    hasty.record("acme/late", tokens=1)
                assert time.monotonic() - begun < 3
                codes = {impatient.fails("LedgerService/Record", one).code for one in asked}
                assert codes == {"DEADLINE_EXCEEDED"}
            for request in (*asked, *asked):
                bare("LedgerService/Record", request)
        # The hasty one may have been heard; it was told that it does not know.
        assert balance(client, "acme")[1] in (36, 37)


def test_leases_go_on_within_their_grants_while_the_daemon_is_stopped() -> None:
    with Daemon() as daemon, daemon.client(timeout_s=20) as client:
        client.set_budget("acme", unit="tokens", limit=1_000)
        held = client.reserve("acme/a", tokens=500, ttl_s=600)
        lease = held.lease(top_up=False)
        with daemon.stopped():
            assert [lease.debit() for _ in range(400)] == [Verdict.OK] * 400
        assert lease.debit(100) is Verdict.OK
        assert lease.debit() is Verdict.STOP
        assert held.commit().spent == {"tokens": 500}
        assert balance(client, "acme") == (0, 500, 500)


def test_a_time_to_live_runs_while_the_daemon_is_stopped() -> None:
    with Daemon() as daemon, daemon.client(timeout_s=20) as client:
        client.set_budget("acme", unit="tokens", limit=1_000)
        brief = client.reserve("acme/a", tokens=100, ttl_s=TTL_S)
        brief.debit(tokens=30)
        long = client.reserve("acme/a", tokens=100, ttl_s=600)
        with daemon.stopped():
            time.sleep(PAUSE_S)
        deadline = time.monotonic() + 10
        while client.get_reservation(brief.id).state is not ReservationState.EXPIRED:
            assert time.monotonic() < deadline, "it has not expired"
        assert client.get_reservation(long.id).state is ReservationState.PENDING
        assert balance(client, "acme") == (100, 30, 870)
        # It was late, not wrong: what it says that it has spent counts.
        assert client.commit(brief.id, tokens=50).spent == {"tokens": 50}
        assert balance(client, "acme") == (100, 50, 850)


def test_a_stopped_client_holds_no_longer_than_its_time_to_live(tmp_path: Path) -> None:
    """Its hold ends at the exact count, others go on, and when it goes on it is told to stop."""
    with Daemon() as daemon, daemon.client() as client:
        client.set_budget("acme", unit="tokens", limit=10**9)
        with Lessee(
            daemon.target, "acme/slow", tmp_path / "journal", reserve=10**8, ttl_s=1
        ) as agent:
            agent.wait_for(1_000)
            os.kill(agent.process.pid, signal.SIGSTOP)
            done, about = agent.debited()
            with client.reserve("acme/other", tokens=10**8) as other:
                assert other.commit(tokens=10**8).spent == {"tokens": 10**8}
            deadline = time.monotonic() + 10
            while client.get_reservation(agent.reservation).state is ReservationState.PENDING:
                assert time.monotonic() < deadline, "it holds for ever"
                time.sleep(0.05)
            spent = client.get_reservation(agent.reservation).spent["tokens"]
            assert done <= spent <= about
            assert balance(client, "acme") == (0, 10**8 + spent, 10**9 - 10**8 - spent)
            os.kill(agent.process.pid, signal.SIGCONT)
            assert agent.result() in (done, about), "it went on after its end"
