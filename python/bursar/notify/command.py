"""A receiver on this host: a program that is started for each event. Never by a shell.

It gets the event as JSON on its standard input, a few variables, and nothing else of this process:
no environment, no descriptors, no capabilities. Exit code 0 takes the event. At its end, and at the
timeout, its process group is killed: what it leaves in there does not outlive it.
"""

import contextlib
import ctypes
import hashlib
import os
import select
import signal
import subprocess
import threading
import time
from dataclasses import dataclass
from typing import IO, Final

from bursar.notify.events import Selection, Waiting
from bursar.notify.outcomes import Answer, Outcome

__all__ = ["Command"]

_LOOK_S: Final = 0.1  # how late it is noticed that the sidecar drains
_SHOWN_BYTES: Final = 400
_PR_CAP_AMBIENT: Final = 47
_PR_CAP_AMBIENT_CLEAR_ALL: Final = 4
_ENVIRONMENT: Final = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"}


@dataclass(frozen=True, slots=True)
class Command:
    """A receiver on this host.

    Attributes:
        name: What messages call it.
        run: The program's path and its arguments.
        selection: What it wants.
        timeout_s: How long it may take.
    """

    name: str
    run: tuple[str, ...]
    selection: Selection
    timeout_s: float

    kind = "command"

    @property
    def address(self) -> str:
        """A hash of the command."""
        return hashlib.sha256("\0".join(self.run).encode()).hexdigest()

    def wants(self, name: str, account: str) -> bool:
        """Whether it is told of an event."""
        return self.selection.wants(name, account)

    def deliver(self, waiting: Waiting, stop: threading.Event) -> Outcome:
        """Runs it once and says what came of it; `stop` ends it, and it is run again later."""
        # This thread's, and so what it starts has none: the right to signal others is not its.
        ctypes.CDLL(None).prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
        variables = {
            **_ENVIRONMENT,
            "BURSAR_EVENT_ID": waiting.id,
            "BURSAR_EVENT": waiting.name,
            "BURSAR_ACCOUNT": waiting.account,
        }
        with os.fdopen(os.memfd_create("event", os.MFD_CLOEXEC), "w+b") as given:
            given.write(waiting.body)
            given.seek(0)
            try:
                process = subprocess.Popen(  # noqa: S603 -- what the operator configured
                    self.run,
                    stdin=given,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    cwd="/",
                    env=variables,
                    start_new_session=True,
                )
            except OSError as error:
                return Outcome(Answer.AWAY, f"it cannot be started: {error.strerror}")
        return self._watch(process, stop)

    def _watch(self, process: "subprocess.Popen[bytes]", stop: threading.Event) -> Outcome:
        """Waits for its end, and sees to it."""
        end_s = time.monotonic() + self.timeout_s
        assert process.stderr is not None  # noqa: S101 -- a pipe, as asked for
        said, pidfd, ended = _Said(process.stderr), -1, False
        try:
            pidfd = os.pidfd_open(process.pid)
            while not (ended or stop.is_set()) and (left_s := end_s - time.monotonic()) > 0:
                ended = said.listen(pidfd, min(left_s, _LOOK_S))
        finally:
            # It is not waited for before: until then its pid, and so its group, is nobody else's.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            code = process.wait()
            said.close()
            if pidfd >= 0:
                os.close(pidfd)
        if not ended:
            if stop.is_set():
                return Outcome(Answer.AWAY, "its process group was killed: the sidecar drains")
            why = f"it took longer than {self.timeout_s:g} s"
            return Outcome(Answer.REFUSED, f"its process group was killed: {why}")
        if code == 0:
            return Outcome(Answer.TAKEN, "ended with 0")
        end = f"ended with {code}" if code > 0 else f"was ended by {_signal_name(-code)}"
        return Outcome(Answer.REFUSED, end + (f": {said.text}" if said.text else ""))


def _signal_name(number: int) -> str:
    names = {one.value: one.name for one in signal.Signals}
    return names.get(number, f"signal {number}")


class _Said:
    """The beginning of what a program writes to its standard error; the rest is thrown away."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self._pipe = pipe
        self._kept = b""
        self._poll = select.poll()  # descriptors of a busy sidecar may be too high for select()
        self._poll.register(pipe, select.POLLIN)
        os.set_blocking(pipe.fileno(), False)

    @property
    def text(self) -> str:
        return self._kept.decode("utf-8", "replace").strip()

    def listen(self, pidfd: int, for_s: float) -> bool:
        """Reads while there is something, for so long at most; whether the process has ended."""
        self._poll.register(pidfd, select.POLLIN)
        ready = {descriptor for descriptor, _ in self._poll.poll(for_s * 1000)}
        if self._pipe.fileno() in ready and not self._read():
            self._poll.unregister(self._pipe)
        return pidfd in ready

    def _read(self) -> bool:
        """Reads what is there; False at the end."""
        try:
            read = os.read(self._pipe.fileno(), 65_536)
        except BlockingIOError:
            return True
        self._kept += read[: _SHOWN_BYTES - len(self._kept)]
        return bool(read)

    def close(self) -> None:
        self._read()
        self._pipe.close()
