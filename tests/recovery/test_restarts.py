"""What a reservation is after many restarts: the same as without them."""

import time
from collections.abc import Iterator

import pytest
from support.daemon import Daemon

import bursar


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    with Daemon() as running:
        yield running


def test_top_ups_of_one_period_share_a_slice_over_restarts(daemon: Daemon) -> None:
    """A reservation has 8 slices at most, one for each period; a restart begins no period."""
    with daemon.client() as client:
        client.set_budget("acme", unit="tokens", limit=1_000)
        held = client.reserve("acme/a", tokens=1, ttl_s=600)
        for total in range(2, 12):
            daemon.restart()
            client.extend(held.id, tokens=total)
        assert held.commit(tokens=11).spent == {"tokens": 11}


@pytest.mark.parametrize("spent", [0, 2, 3, 45])
def test_an_ended_reservation_tells_the_same_grant_after_a_restart(
    daemon: Daemon, spent: int
) -> None:
    """R6: the first answer again, whether the log or SQLite remembers it."""
    with daemon.client() as client:
        client.set_budget("acme", unit="tokens", limit=1_000)
        held = client.reserve("acme/a", tokens=3, idempotency_key="k")
        held.commit(tokens=spent)
        for crash in (daemon.kill9, daemon.terminate, daemon.terminate):
            assert client.reserve("acme/a", tokens=3, idempotency_key="k").granted == {"tokens": 3}
            crash()
            daemon.start()
            assert client.get_reservation(held.id).granted == {"tokens": 3}


def test_a_repeat_is_answered_first_thing_after_a_restart_that_had_nothing_to_write() -> None:
    """R6, R13: with durability "power" an answer waits for the disk, where it has been for long."""
    with Daemon(store={"durability": "power"}) as daemon:
        with daemon.client() as client:
            first = client.reserve("acme/a", tokens=3, idempotency_key="k").id
        daemon.kill9()
        daemon.start()
        with daemon.client(timeout_s=5) as client:
            assert client.reserve("acme/a", tokens=3, idempotency_key="k").id == first


@pytest.mark.parametrize("spent", [1, 4, 6, 45])
def test_a_corrected_reservation_tells_the_same_grant_from_memory_and_from_sqlite(
    spent: int,
) -> None:
    """A late Commit of less or more than was debited; then its key is forgotten, too."""
    times = {"key_retention": "300ms"}
    with Daemon(reservations=times) as daemon, daemon.client() as client:
        client.set_budget("acme", unit="tokens", limit=1_000)
        held = client.reserve("acme/a", tokens=10)
        held.debit(tokens=4)
        held.release()
        for _ in range(2):
            assert client.commit(held.id, tokens=spent).spent == {"tokens": spent}
            assert client.get_reservation(held.id).granted == {"tokens": 10}
            time.sleep(0.6)
            assert client.get_reservation(held.id).granted == {"tokens": 10}
            daemon.restart()
            assert client.get_reservation(held.id).granted == {"tokens": 10}


def test_a_late_commit_counts_after_a_restart_and_after_the_key_is_forgotten() -> None:
    """R7: the reservation has left the memory; SQLite still finds it."""

    times = {"default_ttl": "200ms", "key_retention": "300ms"}
    with Daemon(reservations=times) as daemon, daemon.client() as client:
        client.set_budget("acme", unit="tokens", limit=1_000)
        held = client.reserve("acme/a", tokens=10)
        held.debit(tokens=4)
        deadline = time.monotonic() + 20
        while client.get_account("acme").balances[0].held:
            assert time.monotonic() < deadline, "it does not expire"
            time.sleep(0.05)
        assert client.get_account("acme").balances[0].spent == 4
        time.sleep(0.6)
        daemon.restart()
        assert client.commit(held.id, tokens=6).spent == {"tokens": 6}
        assert client.commit(held.id, tokens=6).spent == {"tokens": 6}
        assert client.get_account("acme").balances[0].spent == 6
        with pytest.raises(bursar.IdempotencyMismatch):
            client.commit(held.id, tokens=7)


def test_a_retired_account_comes_back_without_its_budget_and_freeze(daemon: Daemon) -> None:
    """What it ended is remembered; so its name is there again, as if it were used anew."""
    with daemon.client() as client:
        client.set_budget("acme", unit="tokens", limit=100)
        client.set_budget("acme/job", unit="tokens", limit=10)
        held = client.reserve("acme/job", tokens=5, idempotency_key="k")
        held.commit(tokens=4)
        client.freeze("acme/job")
        client.retire_account("acme/job")
        for crash in (daemon.kill9, daemon.terminate, daemon.terminate):
            crash()
            daemon.start()
            job = client.get_account("acme/job")
            assert (job.balances, job.frozen) == ((), False)
            assert client.reserve("acme/job", tokens=5, idempotency_key="k").id == held.id
            assert client.get_account("acme").balances[0].spent == 4
        client.retire_account("acme/job")
        assert [one.path for one in client.list_accounts()] == ["acme"]
