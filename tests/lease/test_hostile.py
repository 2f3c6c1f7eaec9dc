"""Clients that lie on their pages, grab at others', and flood the lease socket harm nobody else."""

import contextlib
import mmap
import os
import random
import resource
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Final

import pytest
from support.daemon import LONG, Daemon, balance
from support.desk import LEASE_LIMIT_REACHED, MAGIC, REQUEST, Answer, Desk

import bursar

WORD: Final = 64
FROZEN_WITHIN_S: Final = 0.02


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    with Daemon(limits={"max_leases": 500}) as daemon:
        yield daemon


@pytest.fixture
def client(daemon: Daemon) -> Iterator[bursar.Client]:
    with daemon.client() as client:
        client.set_budget("acme", unit="tokens", limit=1_000)
        client.set_budget("other", unit="tokens", limit=1_000)
        yield client


@contextlib.contextmanager
def usage_page(answer: Answer) -> Iterator[mmap.mmap]:
    usage, control = answer.fds
    with mmap.mmap(usage, 4096) as page:
        yield page
    os.close(usage)
    os.close(control)


def test_a_client_that_writes_anything_anywhere_moves_its_own_account_only(
    daemon: Daemon, client: bursar.Client
) -> None:
    seed = random.randrange(2**31)
    print(f"seed {seed}")
    dice = random.Random(seed)
    mine, theirs = client.reserve("acme", tokens=100), client.reserve("other", tokens=100)
    lease = theirs.lease(top_up=False)
    with Desk(daemon) as desk, usage_page(desk.attach(mine.id)) as page:
        floor = 0
        for _ in range(200):
            page[0:4096] = dice.randbytes(4096)
            if dice.random() < 0.3:
                page[WORD : WORD + 8] = struct.pack(
                    "<Q", dice.choice([0, 2**63, 2**64 - 1, 2**48 - 1])
                )
            time.sleep(0.002)
            _, spent, _ = balance(client, "acme")
            assert floor <= spent <= 100, "neither rewound nor beyond the grant"
            floor = spent
    assert lease.debit(40) is bursar.Verdict.OK
    assert theirs.commit().spent == {"tokens": 40}
    assert balance(client, "other") == (0, 40, 960)
    assert 0 <= mine.release().spent.get("tokens", 0) <= 100


def test_pages_can_neither_be_resized_nor_the_control_page_written(
    daemon: Daemon, client: bursar.Client
) -> None:
    desk = Desk(daemon)
    usage, control = desk.attach(client.reserve("acme", tokens=5).id).fds
    for fd in (usage, control):
        for length in (0, 1, 8192):
            with pytest.raises(OSError):  # noqa: PT011 -- EPERM or EINVAL, as the kernel likes
                os.ftruncate(fd, length)
    with pytest.raises(PermissionError):
        mmap.mmap(control, 4096)
    with pytest.raises(OSError):  # noqa: PT011
        os.pwrite(control, b"\xff", WORD)
    with mmap.mmap(control, 4096, prot=mmap.PROT_READ) as page:
        assert struct.unpack_from("<Q", page, WORD)[0] == 5
    os.close(usage)
    os.close(control)
    assert balance(client, "acme") == (5, 0, 995)
    desk.socket.close()


def test_somebody_elses_reservation_cannot_be_leased(daemon: Daemon, client: bursar.Client) -> None:
    reservation = client.reserve("acme", tokens=5)
    thief = """
import bursar, sys
from bursar.lease import LeaseTerms, SharedStep
try:
    SharedStep(sys.argv[1], LeaseTerms(sys.argv[2], "tokens", None, 0, None))
except bursar.NotTheOwner as refused:
    print(refused.reason)
"""
    command = [sys.executable, "-c", thief, f"{daemon.socket_path}.lease", reservation.id]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "NOT_THE_OWNER"
    assert reservation.lease().debit() is bursar.Verdict.OK


def test_leases_are_refused_at_their_bound_and_the_daemon_lives(
    daemon: Daemon, client: bursar.Client
) -> None:
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    rounds = 100_000 if LONG else 2_000
    desk = Desk(daemon)
    opened, refused = 0, 0
    held = client.reserve("acme", tokens=1)
    for _ in range(rounds):
        answer = desk.attach(held.id)
        for fd in answer.fds:
            os.close(fd)
        if answer.status == 0:
            opened += 1
            held = client.reserve("acme", tokens=0 if opened > 900 else 1)
        else:
            assert answer.status == LEASE_LIMIT_REACHED, answer.message
            assert "maximum of 500 leases" in answer.message
            refused += 1
    assert (opened, refused) == (500, rounds - 500)
    assert limit > 0
    desk.socket.close()
    deadline = time.monotonic() + 5
    while True:  # the places of a connection that is closed are free again
        with Desk(daemon) as desk:
            answer = desk.attach(held.id)
        if answer.status == 0:
            list(map(os.close, answer.fds))
            break
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("seed", range(5))
def test_frames_that_are_none_end_their_connection_and_nothing_else(
    daemon: Daemon, client: bursar.Client, seed: int
) -> None:
    dice = random.Random(seed)
    reservation = client.reserve("acme", tokens=5)
    lease = reservation.lease(top_up=False)
    name = reservation.id.encode()
    good = REQUEST.pack(MAGIC, 1, 1, 7, 0, 0, 0, 0, 0, 0, 0, 0, len(name), name)
    for _ in range(100):
        frame = bytearray(good if dice.random() < 0.5 else dice.randbytes(dice.randrange(1, 300)))
        for _ in range(dice.randrange(3)):
            frame[dice.randrange(len(frame))] = dice.randrange(256)
        desk = Desk(daemon)
        desk.socket.send(frame)
        desk.socket.settimeout(5)
        with contextlib.suppress(ConnectionError):
            desk.socket.recv(4096)
        desk.socket.close()
    assert lease.debit(5) is bursar.Verdict.OK
    assert reservation.commit().spent == {"tokens": 5}


def test_unknown_ended_and_odd_requests_are_named(daemon: Daemon, client: bursar.Client) -> None:
    with Desk(daemon) as desk:
        reservation = client.reserve("acme", tokens=5)
        assert "no reservation" in desk.attach("nonsense").message
        assert "not the index" in desk.attach(reservation.id, unit=3).message
        assert "not the index" in desk.attach(reservation.id, unit=99).message
        assert "usage was reserved" in desk.attach(reservation.id, unit=255).message
        reservation.release()
        assert "has ended" in desk.attach(reservation.id).message
        nobody = REQUEST.pack(MAGIC, 1, 2, 7, 2**64 - 1, 0, 0, 0, 0, 0, 0, 0, 0, b"")
        assert desk.ask(nobody).status == 0


def test_a_client_that_hangs_up_keeps_its_reservation_until_its_time_to_live(
    daemon: Daemon, client: bursar.Client
) -> None:
    reservation = client.reserve("acme", tokens=10)
    desk = Desk(daemon)
    with usage_page(desk.attach(reservation.id)) as page:
        page[WORD : WORD + 8] = struct.pack("<Q", struct.unpack_from("<Q", page, WORD)[0] + 3)
        desk.socket.close()
        deadline = time.monotonic() + 2
        while balance(client, "acme") != (7, 3, 990):
            assert time.monotonic() < deadline
            time.sleep(0.002)
    assert reservation.debit(tokens=5).remaining == {"tokens": 5}


class Poor(Daemon):
    """A daemon that the system gives few descriptors."""

    def command(self) -> list[str]:
        return ["prlimit", "--nofile=1024:1024", *super().command()]


def test_connections_without_end_leave_the_store_its_descriptors() -> None:
    with Poor() as daemon, daemon.client() as client:
        client.set_budget("acme", unit="tokens", limit=1_000)
        address = str(daemon.socket_path)
        many = []
        for path, kind in (
            (f"{address}.lease", socket.SOCK_SEQPACKET),
            (address, socket.SOCK_STREAM),
        ):
            for _ in range(600):
                one = socket.socket(socket.AF_UNIX, kind)
                one.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    one.connect(path)
                many.append(one)
            time.sleep(0.5)
        for one in many:
            one.close()
        time.sleep(0.5)
        with client.reserve("acme", tokens=10) as held:
            assert held.commit(tokens=10).spent == {"tokens": 10}


def test_a_flood_of_connections_does_not_delay_a_freeze(daemon: Daemon) -> None:
    """L5 beside somebody who connects and attaches what is not his, again and again."""
    flood = """
import socket, sys
while True:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as one:
        one.connect(sys.argv[1])
        for _ in range(20):
            one.send(bytes.fromhex(sys.argv[2]))
"""
    name = b"0" * 40
    frame = REQUEST.pack(MAGIC, 1, 1, 7, 0, 0, 0, 0, 0, 0, 0, 0, len(name), name).hex()
    command = [sys.executable, "-c", flood, f"{daemon.socket_path}.lease", frame]
    with daemon.client() as client, contextlib.ExitStack() as stack:
        client.set_budget("acme", unit="tokens", limit=2**40)
        lease = stack.enter_context(client.reserve("acme", tokens=2**30).lease(top_up=False))
        for _ in range(3):
            process = stack.enter_context(subprocess.Popen(command))
            stack.callback(process.kill)
        time.sleep(0.5)
        waits = []
        for _ in range(9):
            client.freeze("acme")
            begun = time.monotonic()
            while lease.debit(1) is not bursar.Verdict.STOP:
                assert time.monotonic() - begun < 5, "it is never stopped"
            waits.append(time.monotonic() - begun)
            client.unfreeze("acme")
            while lease.verdict is bursar.Verdict.STOP:
                time.sleep(0.001)
        # A busy host takes breaks of its own; a flood that is served first delays all of them.
        waits.sort()
        print([f"{wait * 1e3:.1f} ms" for wait in waits])
        assert waits[0] < FROZEN_WITHIN_S
        assert waits[4] < 10 * FROZEN_WITHIN_S
