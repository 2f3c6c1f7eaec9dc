"""No step is free: what a lease has counted reaches the daemon, or the lease ends and says why."""

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.daemon import Daemon, balance

import bursar
from bursar import Verdict
from bursar._metered import MeteredLease
from bursar.lease import SharedLease

PATIENT: Any = {"reservations": {"default_ttl": "10m"}}


def eventually(check: "object", expected: object, timeout_s: float = 5) -> None:
    deadline = time.monotonic() + timeout_s
    while (seen := check()) != expected:  # type: ignore[operator]
        assert time.monotonic() < deadline, f"{seen} is not {expected}"
        time.sleep(0.002)


def free_address() -> str:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{one.getsockname()[1]}"


@pytest.fixture
def address() -> str:
    return free_address()


@pytest.fixture
def daemon(address: str) -> Iterator[Daemon]:
    with Daemon(server={"tcp": address}, **PATIENT) as daemon, daemon.client() as client:
        client.set_budget("acme", unit="tokens", limit=1_000)
        yield daemon


@pytest.fixture(params=["embedded", "tcp"])
def counting(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[bursar.Client]:
    """A client whose leases are counted in this process."""
    with contextlib.ExitStack() as stack:
        if request.param == "embedded":
            client = stack.enter_context(bursar.open(tmp_path / "ledger"))
        else:
            address = free_address()
            stack.enter_context(Daemon(server={"tcp": address}))
            client = stack.enter_context(bursar.connect(address))
        client.set_budget("acme", unit="tokens", limit=1_000)
        yield client


def steps(lease: bursar.Lease, most: int = 1_000) -> int:
    return sum(lease.debit() is not Verdict.STOP for _ in range(most))


def test_a_reservation_has_one_lease_at_a_time(counting: bursar.Client) -> None:
    with counting.reserve("acme", tokens=400) as reservation:
        first = reservation.lease(top_up=False)
        with pytest.raises(bursar.ReservationLeased) as raised:
            reservation.lease(top_up=False)
        assert raised.value.reason == "RESERVATION_LEASED"
        assert raised.value.reservation == reservation.id
        assert steps(first, 300) == 300
        first.detach()
        second = reservation.lease(top_up=False)
        assert second.used == 300
        assert steps(second) == 100
        assert reservation.commit().spent == {"tokens": 400}


def test_a_lease_goes_on_from_what_was_debited_by_calls(counting: bursar.Client) -> None:
    with counting.reserve("acme", tokens=400) as reservation:
        reservation.debit(tokens=250)
        with reservation.lease(top_up=False) as lease:
            assert steps(lease) == 150
        assert reservation.commit().spent == {"tokens": 400}


@contextlib.contextmanager
def two_handles(address: str) -> Iterator[tuple[bursar.Reservation, bursar.Reservation]]:
    """One reservation, as two clients see it that know nothing of each other."""
    with bursar.connect(address) as one, bursar.connect(address) as two:
        yield (
            one.reserve("acme", tokens=400, idempotency_key="same"),
            two.reserve("acme", tokens=400, idempotency_key="same"),
        )


def test_a_count_that_was_refused_is_told_again(address: str, daemon: Daemon) -> None:
    with daemon.client() as client, two_handles(address) as (one, two):
        first = one.lease(top_up=False)
        first.debit(5)
        eventually(lambda: balance(client, "acme"), (395, 5, 600))
        second = two.lease(top_up=False)
        second.debit(10)
        time.sleep(0.3)
        assert not second.heard
        first.detach()
        eventually(lambda: balance(client, "acme"), (385, 15, 600))
        eventually(lambda: second.heard, True)
        assert second.debit() is Verdict.OK
        assert second.refused is None
        assert two.commit().spent == {"tokens": 16}


def test_a_lease_whose_counts_are_refused_ends_and_says_why(address: str, daemon: Daemon) -> None:
    with daemon.client() as client, two_handles(address) as (one, two):
        one.lease(top_up=False).debit(5)
        eventually(lambda: balance(client, "acme"), (395, 5, 600))
        second = two.lease(top_up=False)
        begun = time.monotonic()
        while second.debit() is not Verdict.STOP:
            time.sleep(0.01)
        assert time.monotonic() - begun < 3
        assert isinstance(second.refused, bursar.ReservationLeased)
        assert second.refused.reason == "RESERVATION_LEASED"
        assert two.commit().spent == {"tokens": second.used}


def test_a_lease_whose_reports_fail_ends_and_says_why(
    address: str, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(requests: object) -> Iterator[object]:
        raise bursar.StoreUnavailable("no space left", reason="STORE_UNAVAILABLE")
        yield

    with bursar.connect(address) as client:
        reservation = client.reserve("acme", tokens=400)
        with monkeypatch.context() as patched:
            patched.setattr(client._transport, "meter", fail)
            lease = reservation.lease(top_up=False)
            lease.debit(7)
            eventually(lambda: lease.ended, True)
        assert lease.debit() is Verdict.STOP
        assert isinstance(lease.refused, bursar.StoreUnavailable)
        assert reservation.commit().spent == {"tokens": 7}


@pytest.mark.parametrize("answer", ["none", "without pages"])
def test_no_other_lease_stands_in_for_one_that_may_have_been_granted(
    daemon: Daemon, answer: str
) -> None:
    """A desk in the daemon's place takes the request and hangs up, or forgets the pages."""
    path = str(daemon.socket_path) + ".lease"
    with daemon.client() as client, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as desk:
        reservation = client.reserve("acme", tokens=400)
        Path(path).unlink()
        desk.bind(path)
        desk.listen()

        def serve() -> None:
            connection, _ = desk.accept()
            with connection:
                magic, version, _, tag = struct.unpack_from("<IHHQ", connection.recv(4096))
                if answer != "none":
                    frame = struct.pack("<IHHQQQQ", magic, version, 0, tag, 0, 400, 7)
                    connection.sendmsg([frame.ljust(256, b"\0")], [], 0)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(bursar.SidecarUnavailable, match="may have granted"):
            reservation.lease(top_up=False)
        thread.join()


def test_without_a_lease_socket_a_lease_is_metered(daemon: Daemon) -> None:
    Path(str(daemon.socket_path) + ".lease").unlink()
    with daemon.client() as client, client.reserve("acme", tokens=4) as reservation:
        with reservation.lease(top_up=False) as lease:
            assert isinstance(lease, MeteredLease)
            assert steps(lease) == 4
        assert reservation.commit().spent == {"tokens": 4}


@pytest.fixture(params=["shared", "tcp"])
def far(request: pytest.FixtureRequest, address: str, daemon: Daemon) -> Iterator[bursar.Client]:
    target = daemon.target if request.param == "shared" else address
    with bursar.connect(target, timeout_s=20, attempts=100) as client:
        yield client


@pytest.mark.parametrize("end", ["commit", "release"])
def test_what_was_counted_while_the_daemon_was_away_is_spent(
    daemon: Daemon, far: bursar.Client, end: str
) -> None:
    reservation = far.reserve("acme", amounts={"tokens": 500, "gpu_ms": 10})
    reservation.debit(used={"gpu_ms": 3})
    with reservation.lease(unit="tokens", top_up=False) as lease:
        lease.debit(100)
        eventually(lambda: balance(far, "acme"), (400, 100, 500))
        time.sleep(0.3)  # until the call's debit is in the log
        daemon.kill9()
        assert steps(lease, 300) == 300
    assert not lease.heard
    daemon.start()
    ended = reservation.commit() if end == "commit" else reservation.release()
    assert ended.spent == {"tokens": 400, "gpu_ms": 3}


def test_an_expired_reservation_is_committed_at_the_count(
    daemon: Daemon, far: bursar.Client
) -> None:
    reservation = far.reserve("acme", tokens=500, ttl_s=1)
    with reservation.lease(top_up=False) as lease:
        lease.debit(100)
        eventually(lambda: balance(far, "acme"), (400, 100, 500))
        daemon.kill9()
        lease.debit(300)
    daemon.start()
    eventually(lambda: far.get_reservation(reservation.id).state, bursar.ReservationState.EXPIRED)
    first = reservation.commit()
    assert first.spent == {"tokens": 400}
    assert reservation.commit() == first


def test_output_tokens_that_were_counted_while_it_was_away_are_priced(
    address: str,
) -> None:
    tiny = {
        "name": "tiny",
        "input_nanos_per_million": 1_000_000,
        "output_nanos_per_million": 2_000_000,
    }
    sections: Any = {"server": {"tcp": address}, "rates": {"models": [tiny]}, **PATIENT}
    with (
        Daemon(**sections) as daemon,
        bursar.connect(daemon.target, timeout_s=20, attempts=100) as client,
    ):
        estimate = bursar.UsageEstimate(model="tiny", input_tokens=7, max_output_tokens=100)
        reservation = client.reserve("acme", usage=estimate)
        with reservation.lease() as lease:
            assert isinstance(lease, SharedLease)
            lease.debit(10)
            time.sleep(0.3)
            daemon.kill9()
            lease.debit(50)
        daemon.start()
        spent = reservation.commit().spent
        assert spent == {"tokens": 67, "usd_nanos": 7 + 2 * 60, "calls": 1}


def test_detach_rests_while_the_daemon_is_away(address: str, daemon: Daemon) -> None:
    with bursar.connect(address, timeout_s=20, attempts=100) as client:
        reservation = client.reserve("acme", tokens=500)
        lease = reservation.lease(top_up=False)
        lease.debit()
        with daemon.client() as near:
            eventually(lambda: balance(near, "acme"), (499, 1, 500))
        daemon.kill9()
        lease.debit(5)
        begun, worked = time.monotonic(), time.process_time()
        assert lease.detach() == 6
        assert time.monotonic() - begun < 7
        assert time.process_time() - worked < 1
        assert isinstance(lease.refused, bursar.SidecarUnavailable)
        daemon.start()
        assert reservation.commit().spent == {"tokens": 6}


def test_a_lease_that_is_over_says_so(daemon: Daemon, far: bursar.Client) -> None:
    reservation = far.reserve("acme", tokens=500)
    lease = reservation.lease(top_up=False)
    lease.debit()
    far.commit(reservation.id)
    eventually(lease.debit, Verdict.STOP)
    eventually(lambda: lease.ended, True)
    assert lease.debit() is Verdict.STOP
    assert isinstance(lease.refused, bursar.ReservationEnded)


def test_a_refusal_is_forgotten_once_more_is_granted(daemon: Daemon, far: bursar.Client) -> None:
    with far.reserve("acme", tokens=1) as reservation, reservation.lease(ahead=1) as lease:
        assert lease.debit(2_000) is Verdict.STOP
        assert isinstance(lease.refused, bursar.BudgetExceeded)
        far.set_budget("acme", unit="tokens", limit=5_000)
        assert lease.debit(2_000) is Verdict.OK
        assert lease.refused is None
