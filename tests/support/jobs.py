"""`bursar run` on a real socket, with and without a cgroup; everything bounded."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import pytest

from bursar.v1 import process_pb2 as pr
from bursar.watchdog import cgroups
from support.processes import JOB, FakeWatchdog

PATIENCE_S: Final = 20.0
MODES: Final = ("cgroup", "descent")


def eventually(is_so: Callable[[], object], what: str) -> None:
    """Waits until something is so; fails after a while."""
    deadline = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < deadline, f"not within {PATIENCE_S:g} s: {what}"
        time.sleep(0.01)


def alive(pid: int) -> bool:
    """Whether a process is there and not a zombie."""
    return state(pid) not in {"", "Z"}


def state(pid: int) -> str:
    """The state of a process, such as "S" or "Z"; empty: it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def parent(pid: int) -> int:
    """The parent of a process."""
    return int(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1])


def arguments(pid: int) -> list[str]:
    """What a process was executed with."""
    return Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8").split("\0")[:-1]


def need_cgroups() -> None:
    """Skips the test where this process cannot make a cgroup v2."""
    try:
        path = cgroups.make("probe")
    except OSError as error:
        pytest.skip(f"no cgroup v2 can be made here: {error}")
    cgroups.remove(path)


class Watched(FakeWatchdog):
    """Registers whatever is asked for; looks at the process at that moment."""

    def __init__(self) -> None:
        super().__init__()
        self.answers = {
            "RegisterProcess": [pr.RegisterProcessResponse(verdict="VERDICT_OK", job=JOB)],
            "ListIncidents": [pr.ListIncidentsResponse()],
        }
        self.meanwhile: Callable[[pr.RegisterProcessRequest], None] = lambda _: None

    def RegisterProcess(self, request: Any, context: Any) -> Any:  # noqa: N802 -- as the proto
        """Answers after `meanwhile`."""
        self.meanwhile(request)
        return super().RegisterProcess(request, context)

    @property
    def registered(self) -> pr.RegisterProcessRequest:
        """The only request so far to register a process."""
        [one] = [one for one in self.requests if isinstance(one, pr.RegisterProcessRequest)]
        return one


class Runner:
    """Starts `bursar run` for a mode and a sidecar, and leaves nothing behind."""

    def __init__(self, mode: str, target: str) -> None:
        self.mode = mode
        self.target = target
        self._started: list[subprocess.Popen[str]] = []

    def line(self, command: Sequence[str], options: Sequence[str] = ()) -> list[str]:
        """The whole command line."""
        start = [sys.executable, "-m", "bursar", "run", "--account", "acme/x"]
        start += ["--target", self.target, *options]
        return [*start, *(["--no-cgroup"] if self.mode == "descent" else []), "--", *command]

    def start(
        self, *command: str, options: Sequence[str] = (), **how: Any
    ) -> "subprocess.Popen[str]":
        """Starts it; its outputs are pipes unless said otherwise."""
        how = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, **how}
        process = subprocess.Popen(
            self.line(command, options), text=True, **{"stderr": subprocess.PIPE, **how}
        )
        self._started.append(process)
        return process

    def run(
        self, *command: str, options: Sequence[str] = (), **how: Any
    ) -> "subprocess.CompletedProcess[str]":
        """Runs it to its end."""
        process = self.start(*command, options=options, **how)
        output, errors = process.communicate(timeout=PATIENCE_S)
        return subprocess.CompletedProcess(process.args, process.returncode, output, errors)

    def clean_up(self) -> None:
        """Ends whatever a failed test left."""
        for process in self._started:
            if process.poll() is None:
                process.kill()
            process.wait(PATIENCE_S)
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    stream.close()


def end(pid: int) -> None:
    """Kills a process that a test left on purpose."""
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not alive(pid), f"the end of process {pid}")
