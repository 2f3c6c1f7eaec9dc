"""A small real process that holds GPU memory in the NVML stand-in, and ends as it is told to.

`python -S -m support.gpu_worker ORDERS` with the orders as JSON. It waits for signals without
using any CPU, and ends by itself after `life_s` or when the process that started it dies.
"""

import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final, Literal, Self

from support.gpu_claims import Claim, claim, start_time

_TESTS: Final = Path(__file__).resolve().parent.parent
_PATIENCE_S: Final = 20
_PR_SET_PDEATHSIG: Final = 1
_RESPAWNS_MAX: Final = 200
_RESPAWN_PAUSE_S: Final = 0.02
_GROWTH_S: Final = 0.05


@dataclass(frozen=True)
class Orders:
    """What a worker does; all may be combined.

    Attributes:
        on_term: What SIGTERM does: "exit", "ignore", or "linger" for `linger_s` and then exit.
        linger_s: How long it takes to end after SIGTERM.
        children: So many orphans in sessions of their own hold the same each; the worker too.
        respawns: Whether a child holds the memory instead, and is started again when it dies.
        stops: Whether it stops itself by SIGSTOP.
        leaderless: Whether its main thread ends, and another one lives on: it looks like a zombie.
        step_ms: Counts a step so often, in the worker itself; 0: never.
        grow_bytes_per_s: How fast what it holds grows.
        grow_bytes_max: What it grows to.
        uid: The user that it becomes.
        life_s: When it ends by itself.
    """

    on_term: Literal["exit", "ignore", "linger"] = "exit"
    linger_s: float = 1.0
    children: int = 0
    respawns: bool = False
    stops: bool = False
    leaderless: bool = False
    step_ms: int = 0
    grow_bytes_per_s: int = 0
    grow_bytes_max: int = 2**62
    uid: int | None = None
    life_s: float = 60.0


class _Process:
    """The worker's side: this process, or one of those that it started."""

    def __init__(self, folder: Path, members: Path, claimed: Claim, orders: Orders) -> None:
        self._folder = folder
        self._members = members
        self._claimed = claimed
        self._orders = orders
        self._end = time.monotonic() + orders.life_s
        self._test = os.pidfd_open(os.getppid())
        self._steps = os.open(steps_file(members), os.O_WRONLY | os.O_CREAT, 0o644)

    def run(self) -> None:
        orders = self._orders
        self._join()
        for _ in range(orders.children):
            self._orphan()
        if not orders.respawns:
            self._hold()
        if orders.uid is not None:
            os.setuid(orders.uid)
        if orders.stops or orders.leaderless:  # they cannot look after themselves
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        child = self._spawn() if orders.respawns else None
        self._ready()
        if child is not None:
            self._respawn(child)
        elif orders.leaderless:
            threading.Thread(target=self._live).start()
            ctypes.CDLL(None).pthread_exit(None)
        else:
            self._live()

    def _ready(self) -> None:
        sys.stdout.write("ready\n")
        sys.stdout.flush()

    def _join(self) -> None:
        """Signs the list of members; a line of this length is written whole."""
        with self._members.open("a", encoding="utf-8") as file:
            file.write(f"{os.getpid()} {start_time(os.getpid())}\n")

    def _hold(self) -> None:
        ignores = self._orders.on_term == "ignore"
        signal.signal(signal.SIGTERM, signal.SIG_IGN if ignores else self._leave)
        claim(self._folder, os.getpid(), self._claimed)

    def _leave(self, *_: object) -> None:
        if self._orders.on_term == "linger":
            time.sleep(self._orders.linger_s)
        os._exit(0)

    def _live(self) -> None:
        if self._orders.stops:
            os.kill(os.getpid(), signal.SIGSTOP)
        steps = 0
        tick_s = self._orders.step_ms / 1000 or _GROWTH_S
        beats = bool(self._orders.step_ms or self._orders.grow_bytes_per_s)
        began = time.monotonic()
        while not self._wait(tick_s if beats else self._orders.life_s):
            steps += 1
            if self._orders.step_ms:
                os.pwrite(self._steps, steps.to_bytes(8, "little"), 0)
            if self._orders.grow_bytes_per_s:
                self._grow(time.monotonic() - began)
        os._exit(0)

    def _grow(self, passed_s: float) -> None:
        more = int(passed_s * self._orders.grow_bytes_per_s)
        bytes_now = min(self._claimed.vram_bytes + more, self._orders.grow_bytes_max)
        claim(self._folder, os.getpid(), replace(self._claimed, vram_bytes=bytes_now))

    def _wait(self, seconds: float, *pidfds: int) -> bool:
        """Whether it is time to end; returns early when a process that is named has died."""
        left = self._end - time.monotonic()
        poll = select.poll()
        for one in (self._test, *pidfds):
            poll.register(one, select.POLLIN)
        dead = [one for one, _ in poll.poll(max(0.0, min(seconds, left)) * 1000)]
        return self._test in dead or time.monotonic() >= self._end

    def _orphan(self) -> None:
        """Forks twice, so that neither parent nor session leads to it; returns when it holds."""
        reader, writer = os.pipe()
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                self._become(writer)
            os._exit(0)
        os.close(writer)
        os.wait()
        os.read(reader, 1)
        os.close(reader)

    def _spawn(self) -> int:
        """A child that holds the memory; returns its pid when it does."""
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            self._become(writer)
        os.close(writer)
        os.read(reader, 1)
        os.close(reader)
        return child

    def _become(self, ready: int) -> None:
        """The life of a process that was forked."""
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the test reads the worker's, to its end
            self._orders = replace(self._orders, step_ms=0)
            self._join()
            self._hold()
            os.write(ready, b"1")
            self._live()
        os._exit(1)

    def _respawn(self, child: int) -> None:
        for _ in range(_RESPAWNS_MAX):
            pidfd = os.pidfd_open(child)
            if self._wait(self._orders.life_s, pidfd):
                break
            os.waitpid(child, 0)
            os.close(pidfd)
            if self._wait(_RESPAWN_PAUSE_S):
                return
            child = self._spawn()
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)


def steps_file(members: Path) -> Path:
    """Where a worker counts its steps."""
    return members.with_suffix(".steps")


class Worker:
    """A worker, started: it holds its memory already. As a context manager all of it ends.

    With a launcher, a command that runs the command that follows it, `pid` is the launcher's.
    """

    def __init__(
        self, folder: Path, claimed: Claim, orders: Orders, launcher: Sequence[str] = ()
    ) -> None:
        number = sum(1 for _ in (folder / "members").glob("*.txt"))
        self._members = folder / "members" / f"{number}.txt"
        self._members.touch()
        given = {"claim": asdict(claimed), "orders": asdict(orders)}
        arguments = [str(folder), str(self._members), json.dumps(given)]
        self.process = subprocess.Popen(
            [*launcher, sys.executable, "-S", "-m", "support.gpu_worker", *arguments],
            stdout=subprocess.PIPE,
            cwd=_TESTS,
        )
        self.pid = self.process.pid
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"ready\n", "the worker did not start"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def members(self) -> list[int]:
        """The pids of it and of all processes that it ever started, in that order."""
        return [pid for pid, _ in self._signed()]

    def _signed(self) -> list[tuple[int, int]]:
        lines = self._members.read_text(encoding="utf-8").splitlines()
        return [(int(pid), int(start)) for pid, start in (line.split() for line in lines)]

    def steps(self) -> int:
        """How many steps it has counted."""
        return int.from_bytes(steps_file(self._members).read_bytes(), "little")

    def end(self) -> None:
        """Kills all that live and waits for their deaths; the worker first, which starts others."""
        self.process.kill()
        self.process.wait(_PATIENCE_S)
        for pid, start in self._signed():
            _kill(pid, start)
        assert self.process.stdout is not None
        self.process.stdout.close()


def _kill(pid: int, start: int) -> None:
    with suppress(ProcessLookupError, FileNotFoundError):
        pidfd = os.pidfd_open(pid)
        try:
            if start_time(pid) == start:
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                assert select.select([pidfd], [], [], _PATIENCE_S)[0], f"{pid} does not die"
        finally:
            os.close(pidfd)


def main(folder: str, members: str, given: str) -> None:
    """Lives as ordered."""
    told = json.loads(given)
    orders = Orders(**told["orders"])
    _Process(Path(folder), Path(members), Claim(**told["claim"]), orders).run()


if __name__ == "__main__":
    main(*sys.argv[1:])
