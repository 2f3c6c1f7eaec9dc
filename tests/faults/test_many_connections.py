"""Connections without end, and those that say nothing: memory is bounded, others are served."""

import resource
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
from support import wire
from support.bare import Bare
from support.daemon import Daemon

import bursar

MANY = 10_000
OWN = 500  # descriptors that the test needs itself
BYTES_EACH = 40_000


@contextmanager
def descriptors() -> Iterator[int]:
    """Takes as many as the system gives; how many connections they are good for."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    _, most = before
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    try:
        # The daemon keeps half of its own for what is no connection.
        yield min(MANY, most // 2 - OWN)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def dial(daemon: Daemon, *, tcp: bool) -> socket.socket:
    if not tcp:
        one = socket.socket(socket.AF_UNIX)
        one.connect(str(daemon.socket_path))  # waits for its place among those not yet accepted
        one.settimeout(10)
        return one
    address = daemon.log.split("127.0.0.1:")[1].split()[0]
    return socket.create_connection(("127.0.0.1", int(address)), timeout=10)


def open_files(daemon: Daemon) -> int:
    return len(list(Path(f"/proc/{daemon.pid}/fd").iterdir()))


@pytest.mark.timeout(180)
@pytest.mark.parametrize("tcp", [False, True], ids=["unix", "tcp"])
def test_ten_thousand_connections_take_little_memory_and_others_are_served(
    tcp: bool,  # noqa: FBT001 -- from parametrize
) -> None:
    with descriptors() as count, ExitStack() as stack:
        daemon = stack.enter_context(Daemon(server={"tcp": "127.0.0.1:0"}))
        client = stack.enter_context(daemon.client(timeout_s=20))
        client.set_budget("acme", unit="tokens", limit=1_000_000)
        lease = stack.enter_context(client.reserve("acme", tokens=1_000).lease(top_up=False))
        before = daemon.rss_bytes()
        for _ in range(count):
            stack.enter_context(dial(daemon, tcp=tcp)).sendall(wire.start())
        deadline = time.monotonic() + 60
        while open_files(daemon) < count:
            assert time.monotonic() < deadline, f"only {open_files(daemon)} were taken"
            time.sleep(0.05)
        with client.reserve("acme", tokens=5) as held:
            held.commit(tokens=5)
        with daemon.client(timeout_s=20) as newcomer:
            newcomer.record("acme", tokens=1)
        assert lease.debit(10) is bursar.Verdict.OK
        each = (daemon.rss_bytes() - before) // count
        print(f"{count} connections take {each} bytes each")
        assert each < BYTES_EACH
        if count < MANY:
            pytest.skip(f"held with {count}: the system gives no more descriptors")


def test_who_says_nothing_is_let_go_and_who_speaks_is_not() -> None:
    """Without that, a process could take every place there is and keep it for ever."""
    with Daemon(server={"max_connections": 8}) as daemon, Bare(daemon.target) as bare:
        bare("AccountService/ListAccounts", b"")
        silent = [dial(daemon, tcp=False) for _ in range(7)]
        for one, words in zip(silent, (b"", wire.PREFACE[:9], wire.PREFACE), strict=False):
            one.sendall(words)
        silent[-1].sendall(wire.start())
        begun = time.monotonic()
        for one in silent[:-1]:
            one.settimeout(20)
            while one.recv(65_536):
                pass
        assert 8 < time.monotonic() - begun < 20
        with suppress(BlockingIOError):
            silent[-1].setblocking(False)
            while True:
                assert silent[-1].recv(65_536), "who has spoken is hung up on"
        bare("AccountService/ListAccounts", b"")
        with daemon.client() as newcomer:
            newcomer.set_budget("acme", unit="tokens", limit=1)
        for one in silent:
            one.close()


class Poor(Daemon):
    """A daemon that the system gives few descriptors."""

    def command(self) -> list[str]:
        return ["prlimit", "--nofile=400:400", *super().command()]


def test_where_descriptors_run_out_calls_and_leases_go_on_and_the_operator_is_told() -> None:
    with Poor() as daemon, daemon.client(timeout_s=20) as client, ExitStack() as stack:
        client.set_budget("acme", unit="tokens", limit=1_000)
        lease = stack.enter_context(client.reserve("acme", tokens=100).lease(top_up=False))
        for _ in range(400):
            one = stack.enter_context(dial(daemon, tcp=False))
            with suppress(ConnectionError):  # it may be closed by now
                one.sendall(wire.start())
        with client.reserve("acme", tokens=10) as held:
            with held.lease(top_up=False) as second:
                assert second.debit(7) is bursar.Verdict.OK
            assert held.commit().spent == {"tokens": 7}
        assert lease.debit(5) is bursar.Verdict.OK
        assert sum(1 for _ in client.list_entries("acme")) > 0
        deadline = time.monotonic() + 10
        while "connections were closed at once" not in daemon.log:
            assert time.monotonic() < deadline, daemon.log
            time.sleep(0.05)
        assert open_files(daemon) < 400
