"""What tests of the GPUs ask a watched daemon: what it sees, what it says, and its sampler."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread

from bursar.exceptions import BursarError
from bursar.processes import Process, ProcessEvent, WatchdogState
from support.daemon import Daemon
from support.watched import Watched


def eventually(met: Callable[[], bool], *, seconds: float = 15) -> None:
    """Waits until something is so."""
    deadline = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < deadline, "it did not come to that in time"
        time.sleep(0.02)


def state(watched: Watched) -> WatchdogState:
    """Whether the GPUs are seen."""
    return watched.client.list_processes().watchdog.state


def shown(watched: Watched) -> dict[int, Process]:
    """The rows that have a device, by pid."""
    return {one.pid: one for one in watched.client.list_processes().processes if one.device}


def spent(watched: Watched, account: str, unit: str) -> int:
    """How much of a unit an account has used up."""
    balances = watched.client.get_account(account).balances
    return next(one.spent for one in balances if one.unit == unit)


def sampler(daemon: Daemon) -> int:
    """The pid of the daemon's sampler; 0: there is none."""
    children = Path(f"/proc/{daemon.pid}/task").glob("*/children")
    for one in " ".join(path.read_text(encoding="ascii") for path in children).split():
        with suppress(OSError):
            if b"bursar.watchdog.sampler" in Path(f"/proc/{one}/cmdline").read_bytes():
                return int(one)
    return 0


@contextmanager
def listening(watched: Watched) -> Iterator[list[ProcessEvent]]:
    """Collects what is told."""
    heard: list[ProcessEvent] = []

    def listen() -> None:
        with watched.daemon.client() as client, suppress(BursarError):
            for event in client.watch_processes():
                heard.append(event)  # noqa: PERF402 -- as they come

    Thread(target=listen, daemon=True).start()
    time.sleep(0.3)  # until the stream is open
    yield heard
