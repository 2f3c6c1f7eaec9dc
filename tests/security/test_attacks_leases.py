"""Grabs at the leases of others: by id, by replay, by descriptors that nobody asked for.

What a client may write on its pages, and who may attach at all, is in `tests/lease/test_hostile.py`
and `test_access.py`.
"""

import array
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from support.daemon import Daemon, balance
from support.desk import DETACH, MAGIC, NOT_THE_OWNER, REQUEST, Desk

import bursar


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    with Daemon() as daemon:
        yield daemon


@pytest.fixture
def client(daemon: Daemon) -> Iterator[bursar.Client]:
    with daemon.client() as client:
        client.set_budget("acme", unit="tokens", limit=1_000)
        yield client


def open_files(daemon: Daemon) -> int:
    return len(list(Path(f"/proc/{daemon.pid}/fd").iterdir()))


def closed(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


def test_an_id_that_was_used_up_opens_nothing(client: bursar.Client, daemon: Daemon) -> None:
    """After the end, and where the place is another's by now: ids name one reservation for good."""
    first = client.reserve("acme", tokens=5)
    first.release()
    with Desk(daemon) as desk:
        assert "has ended" in desk.attach(first.id).message
        others = [client.reserve("acme", tokens=5) for _ in range(20)]
        store, sequence, slot = first.id.split("-")
        for other in others:
            _, theirs, place = other.id.split("-")
            for mixed in (f"{store}-{sequence}-{place}", f"{store}-{theirs}-{slot}"):
                if mixed != other.id:
                    answer = desk.attach(mixed)
                    assert answer.status != 0, mixed
                    assert answer.fds == []
    assert balance(client, "acme") == (100, 0, 900)


def test_a_lease_is_not_detached_by_another_connection(
    client: bursar.Client, daemon: Daemon
) -> None:
    held = client.reserve("acme", tokens=50)
    lease = held.lease(top_up=False)
    lease.debit(1)
    with Desk(daemon) as thief:
        for number in range(200):
            frame = REQUEST.pack(MAGIC, 1, DETACH, 7, number, 0, 0, 0, 0, 0, 0, 0, 0, b"")
            thief.ask(frame)
    assert lease.debit(49) is bursar.Verdict.OK
    assert held.commit().spent == {"tokens": 50}


def test_another_process_cannot_take_a_lease_over_by_claiming_what_was_used(
    client: bursar.Client, daemon: Daemon
) -> None:
    held = client.reserve("acme", tokens=50)
    thief = """
import sys
sys.path.insert(0, sys.argv[3])
from pathlib import Path
from support.desk import Desk
class At:
    socket_path = Path(sys.argv[1])
with Desk(At) as desk:
    for claim in (0, 49, 2**40):
        for ahead in (0, 10**6):
            answer = desk.attach(sys.argv[2], claim=claim, ahead=ahead)
            print(answer.status, len(answer.fds))
"""
    tests = str(Path(__file__).resolve().parent.parent)
    command = [sys.executable, "-c", thief, str(daemon.socket_path), held.id, tests]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    assert set(ran.stdout.splitlines()) == {f"{NOT_THE_OWNER} 0"}
    assert held.lease().debit(50) is bursar.Verdict.OK


def test_descriptors_that_nobody_asked_for_are_closed(
    client: bursar.Client, daemon: Daemon
) -> None:
    """Sixteen with each frame, good and bad, also of the daemon's own store: none stays open."""
    held = client.reserve("acme", tokens=50)
    name = held.id.encode()
    good = REQUEST.pack(MAGIC, 1, 1, 7, 0, 0, 0, 0, 0, 0, 0, 0, len(name), name)
    before = open_files(daemon)
    given = [os.open(os.devnull, os.O_RDONLY) for _ in range(15)]
    given.append(os.open(daemon.store_path, os.O_RDWR))
    beside = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", given))]
    for number in range(60):
        with Desk(daemon) as desk, suppress(ConnectionError):
            frame = good if number % 2 else b"no frame"
            desk.socket.sendmsg([frame], beside)
            data, answered, _, _ = desk.socket.recvmsg(512, socket.CMSG_SPACE(8))
            for _, _, content in answered:
                fds = array.array("i")
                fds.frombytes(content)
                closed(list(fds))
            assert not data or number % 2
    closed(given)
    deadline = time.monotonic() + 10
    while open_files(daemon) > before + 3:
        assert time.monotonic() < deadline, f"{open_files(daemon)} are open, {before} were"
        time.sleep(0.05)
    assert held.lease().debit(1) is bursar.Verdict.OK


def test_descriptors_in_flight_do_not_fill_the_daemon(
    client: bursar.Client, daemon: Daemon
) -> None:
    """Frames with descriptors, many on one connection, faster than they are read."""
    lease = client.reserve("acme", tokens=50).lease(top_up=False)
    given = [os.open(os.devnull, os.O_RDONLY) for _ in range(16)]
    beside = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", given))]
    name = b"0" * 40
    frame = REQUEST.pack(MAGIC, 1, 1, 7, 0, 0, 0, 0, 0, 0, 0, 0, len(name), name)
    before = open_files(daemon)
    with Desk(daemon) as desk:
        desk.socket.setblocking(False)
        for _ in range(5_000):
            with suppress(BlockingIOError, ConnectionError, OSError):
                desk.socket.sendmsg([frame], beside)
        assert open_files(daemon) < before + 50
        assert lease.debit(5) is bursar.Verdict.OK
    closed(given)


def test_a_page_of_another_is_not_reached_by_descriptors_that_were_kept(
    client: bursar.Client, daemon: Daemon
) -> None:
    """Who keeps the page of a lease that has ended writes where nobody looks any more."""
    held = client.reserve("acme", tokens=50)
    with Desk(daemon) as desk:
        usage, control = desk.attach(held.id).fds
        client.release(held.id)
        next_one = client.reserve("acme", tokens=50)
        lease = next_one.lease(top_up=False)
        os.pwrite(usage, struct.pack("<Q", 40), 64)
        time.sleep(0.1)
        assert lease.debit(50) is bursar.Verdict.OK
        assert next_one.commit().spent == {"tokens": 50}
        assert balance(client, "acme") == (0, 50, 950)
        closed([usage, control])
