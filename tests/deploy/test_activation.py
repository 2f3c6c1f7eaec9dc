"""Under a service manager: sockets that are handed over, what it is told, and what probes hear."""

import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.manager import PATIENCE_S, Manager

import bursar


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose path is short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="bursar-") as made:
        yield Path(made)


@pytest.fixture
def manage(folder: Path) -> Iterator[Callable[[], Manager]]:
    made: list[Manager] = []

    def make() -> Manager:
        made.append(Manager(folder))
        return made[-1]

    yield make
    for one in made:
        one.close()


def health(target: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "bursar", "health", "--target", f"unix:{target}"]
    return subprocess.run(
        [*command, "--timeout", "20"], capture_output=True, text=True, check=False
    )


def test_sockets_that_are_handed_over_are_served_and_stay(manage: Callable[[], Manager]) -> None:
    manager = manage().listen_for_both()
    inodes = [one.stat().st_ino for one in (manager.socket_path, manager.lease_path)]
    with manager.started() as daemon, manager.client() as client:
        manager.hear("READY=1")
        client.set_budget("a", unit="tokens", limit=100)
        with client.reserve("a", tokens=50) as hold, hold.lease() as lease:
            assert lease.debit(7) is bursar.Verdict.OK
            # Who has a lease is connected to the lease socket.
            unix = Path("/proc/net/unix").read_text(encoding="utf-8")
            ends = [line for line in unix.splitlines() if line.endswith(str(manager.lease_path))]
            assert len(ends) > 1
        daemon.send_signal(signal.SIGTERM)
        manager.hear("STOPPING=1")
        assert daemon.wait(PATIENCE_S) == 0
    assert [one.stat().st_ino for one in (manager.socket_path, manager.lease_path)] == inodes


def test_who_calls_while_no_daemon_runs_waits_and_is_answered(
    manage: Callable[[], Manager],
) -> None:
    """What an upgrade is: the daemon ends, calls come, another one starts."""
    manager = manage().listen_for_both()
    with manager.started() as daemon, manager.client() as client:
        manager.hear("READY=1")
        client.set_budget("a", unit="tokens", limit=100)
        client.record("a", amounts={"tokens": 40})
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(PATIENCE_S) == 0
    answers: list[int] = []

    def call() -> None:
        with manager.client() as client:
            answers.append(client.get_account("a").balances[0].remaining)

    callers = [threading.Thread(target=call) for _ in range(4)]
    for one in callers:
        one.start()
    time.sleep(0.3)
    assert answers == []
    with manager.started():
        for one in callers:
            one.join(PATIENCE_S)
    assert answers == [60] * 4


def test_a_socket_that_the_configuration_does_not_name_is_refused(
    manage: Callable[[], Manager],
) -> None:
    manager = manage().listen_for_both()
    manager.listen(manager.folder / "other.sock", socket.SOCK_STREAM)
    with manager.started() as daemon:
        _, said = daemon.communicate(timeout=PATIENCE_S)
    assert daemon.returncode == 2
    assert f"listens on {manager.folder}/other.sock (a stream), which the configuration" in said


def test_a_lease_socket_that_is_a_stream_is_refused(manage: Callable[[], Manager]) -> None:
    manager = manage()
    manager.listen(manager.socket_path, socket.SOCK_STREAM)
    manager.listen(manager.lease_path, socket.SOCK_STREAM)
    with manager.started() as daemon:
        _, said = daemon.communicate(timeout=PATIENCE_S)
    assert daemon.returncode == 2
    assert f"{manager.lease_path} (a stream), not {manager.lease_path} (sequential" in said


def test_a_socket_that_does_not_listen_is_refused(manage: Callable[[], Manager]) -> None:
    manager = manage()
    manager.listening += socket.socketpair()
    with manager.started() as daemon:
        _, said = daemon.communicate(timeout=PATIENCE_S)
    assert daemon.returncode == 1
    assert "it does not listen" in said


def test_what_was_handed_to_another_process_is_left_alone(manage: Callable[[], Manager]) -> None:
    """As a program that the daemon's parent was handed sockets for: variables are inherited."""
    manager = manage()
    with manager.started(LISTEN_FDS="5") as daemon:
        _, said = daemon.communicate(timeout=PATIENCE_S)
    assert daemon.returncode == 1
    assert "Bad file descriptor" in said
    inherited = os.environ | {"LISTEN_PID": "1", "LISTEN_FDS": "5"}
    with subprocess.Popen(manager.serve, env=inherited, stderr=subprocess.PIPE) as other:
        while health(manager.socket_path).returncode != 0:
            assert other.poll() is None
        other.send_signal(signal.SIGTERM)
        assert other.wait(PATIENCE_S) == 0
    assert not manager.socket_path.exists()


@pytest.mark.skipif(
    shutil.which("systemd-socket-activate") is None, reason="there is no systemd-socket-activate"
)
def test_systemds_own_launcher_starts_it_with_the_first_call(
    manage: Callable[[], Manager],
) -> None:
    manager = manage()
    listen = f"--listen={manager.socket_path}"
    kept = [f"--setenv={name}" for name in ("PYTHONPATH",) if name in os.environ]
    command = ["systemd-socket-activate", listen, *kept, *manager.serve]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as daemon:
        try:
            while not manager.socket_path.exists():
                time.sleep(0.01)
            with manager.client() as client:
                client.set_budget("a", unit="tokens", limit=1)
                assert client.reserve("a", tokens=1).id
            daemon.send_signal(signal.SIGTERM)
            assert daemon.wait(PATIENCE_S) == 0
        finally:
            daemon.kill()
    assert manager.socket_path.exists()


def test_health_tells_three_states_apart_and_signs_of_life_end_with_the_store(
    manage: Callable[[], Manager],
) -> None:
    """A full disk, as in tests/recovery: the manager is to restart what cannot grant any more."""
    manager = manage().listen_for_both()
    with manager.started(WATCHDOG_USEC="30000000") as daemon, manager.client() as client:
        manager.hear("READY=1")
        manager.hear("WATCHDOG=1")
        assert (health(manager.socket_path).returncode, daemon.poll()) == (0, None)
        client.set_budget("a", unit="tokens", limit=10**9)
        resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE, (100_000, 100_000))
        with pytest.raises(bursar.StoreUnavailable):  # noqa: PT012 -- at one of them
            for _ in range(100_000):
                client.reserve("a", tokens=1, labels={"action": "x" * 250})
        while (sick := health(manager.socket_path)).returncode == 0:
            time.sleep(0.1)
        assert sick.returncode == 1
        assert "store has failed" in sick.stderr
        told = manager.hears_within(3.0)
        assert any(one.startswith("STATUS=the store failed") for one in told)
        assert told[-1] != "WATCHDOG=1"
        daemon.kill()
    for one in manager.listening:
        one.close()
    gone = health(manager.socket_path)
    assert gone.returncode == 4
    assert "no sidecar answers" in gone.stderr
