"""`bursar run`: starts a command as a job of an account, and stays until it has ended.

The order is what makes it safe. The child is forked first and waits; it is put into a cgroup of its
own, then registered; only then it becomes the command. So nothing of the command runs that is not
under its budgets already, and where the sidecar refuses or does not answer, nothing runs at all:
the child ends when its pipe closes, also if this process is killed meanwhile.

Where no cgroup can be made, the registered process does not become the command but keeps it: as a
subreaper it stays the ancestor of everything that the command starts, daemons included, and it ends
when the last of them has. The watchdog finds them by their descent from it.

If this process is killed later, the job goes on, under enforcement. Never called from a program
that has threads.
"""

import errno
import json
import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, NoReturn, Self

from bursar.exceptions import BursarError
from bursar.watchdog import cgroups, minding

if TYPE_CHECKING:
    from bursar.processes import Incident, Job

__all__ = ["EXIT_NOT_EXECUTABLE", "EXIT_NOT_FOUND", "Order", "run"]

EXIT_NOT_EXECUTABLE: Final = 126
EXIT_NOT_FOUND: Final = 127
ATTEMPTS: Final = 2  # a person waits; nothing runs meanwhile
INCIDENT_PATIENCE_S: Final = 5.0
"""How long the end of an incident is waited for, to tell what came back."""
_POLL_S: Final = 0.05
_CREDENTIALS: Final = ("BURSAR_TOKEN", "BURSAR_TLS_CERTIFICATE", "BURSAR_TLS_KEY")
"""What a job is known by to the sidecar; it gets an agent's only, whoever starts it."""
_MESSAGE_BYTES_MAX: Final = 4096  # a write of so many to a pipe is never taken apart

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Order:
    """What to run, and for whom.

    Attributes:
        command: The command and its arguments.
        account: The account that pays.
        name: What people call the job: letters, digits and ``._-``.
        limits: Limits of the job alone, in the base of each unit.
        wall_limit_s: How long it may run; None: as long as it wants.
        term_grace_s: From SIGTERM to SIGKILL; None: as the sidecar is configured.
        enforce: Whether it is stopped at a hard limit also where the sidecar only observes.
        use_cgroup: Whether a cgroup is made for it, where that is possible.
    """

    command: tuple[str, ...]
    account: str
    name: str
    limits: Mapping[str, int] = field(default_factory=dict)
    wall_limit_s: float | None = None
    term_grace_s: float | None = None
    enforce: bool = True
    use_cgroup: bool = True


def run(order: Order, *, target: str, say: Say, in_words: "Callable[[Incident], str]") -> int:
    """Runs a command under enforcement.

    Args:
        order: What to run.
        target: The sidecar, as gRPC takes it.
        say: Tells a person what happens, a line at a time.
        in_words: How an incident is told.

    Returns:
        The command's exit code, 128+n where signal n ended it, 127 or 126 where it could not start.

    Raises:
        BursarError: The sidecar refused or does not answer; nothing has run.
    """
    group, why_none = _make_group(order)
    try:
        with minding.signals_taken() as mask, _Child(order, mask, say) as child:
            if group is not None:
                group, why_none = _move(group, child.pid)
            if group is None:
                say(f"no cgroup could be made ({why_none}): {_WITHOUT}")
                minding.become_subreaper()
            job, withheld = _register(order, child.pid, target=target, group=group, say=say)
            if number := minding.asked_to_end():
                say(f"{signal.Signals(number).name} came before the command was started")
                return minding.exit_status(-number)
            failed = child.start(job, withheld, target=target, keep=group is None)
            code = minding.mind(child.pid, everybody=group is None)
            child.ended = True
            if failed:
                say(f"cannot run {order.command[0]}: {os.strerror(failed)}")
                return EXIT_NOT_FOUND if failed == errno.ENOENT else EXIT_NOT_EXECUTABLE
            try:
                incident = _latest_incident(job, target)
            except BursarError as error:
                say(f"whether it was stopped cannot be told: {error}")
            else:
                if incident is not None:
                    say(in_words(incident))
            return minding.exit_status(code)
    finally:
        if group is not None:
            _leave(group, say)


_WITHOUT: Final = "children that leave are found by their descent only"


def _make_group(order: Order) -> tuple[str | None, str]:
    if not order.use_cgroup:
        return None, "as asked for"
    try:
        return cgroups.make(order.name), ""
    except OSError as error:
        return None, _reason(error)


def _move(group: str, pid: int) -> tuple[str | None, str]:
    try:
        cgroups.add(group, pid)
    except OSError as error:
        cgroups.remove(group)
        return None, _reason(error)
    return group, ""


def _reason(error: OSError) -> str:
    return f"{error.strerror}: {error.filename}" if error.filename else str(error)


def _register(
    order: Order, pid: int, *, target: str, group: str | None, say: Say
) -> "tuple[Job, list[str]]":
    """Registers the job; returns it, and the variables that are withheld from it."""
    import bursar

    # Closed again before the command starts: a job may run for weeks, and needs no connection.
    with bursar.connect(target, attempts=ATTEMPTS) as client:
        withheld = [name for name in _CREDENTIALS if os.environ.get(name)]
        if withheld and (who := client.who_am_i()).role is not bursar.Role.AGENT:
            say(
                f"{' and '.join(withheld)} would make the job {who.role.value}: withheld from it; "
                "an agent's is handed on"
            )
        else:
            withheld = []
        job = client.register_process(
            order.account,
            pid=pid,
            name=order.name,
            limits=order.limits,
            wall_limit_s=order.wall_limit_s,
            cgroup=group or "",
            enforce=order.enforce,
            term_grace_s=order.term_grace_s,
        )
        return job, withheld


class _Child:
    """The process that becomes the command, or keeps it, once it is told to; else it ends."""

    def __init__(self, order: Order, mask: set[int], say: Say) -> None:
        self.ended = False
        told, self._tell = os.pipe()
        self._failed, failed = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._tell)
            os.close(self._failed)
            _become(order, mask, told, failed, say)
        os.close(told)
        os.close(failed)

    def start(self, job: "Job", withheld: list[str], *, target: str, keep: bool) -> int:
        """Tells it to start; returns 0, or the error number that exec ended with."""
        message = {"account": job.account, "job": job.id, "target": target, "keep": keep}
        text = json.dumps({**message, "withheld": withheld}).encode()
        if len(text) > _MESSAGE_BYTES_MAX:
            raise BursarError(f"the sidecar's answer is too long: {len(text)} bytes of names")
        try:
            os.write(self._tell, text)
        except BrokenPipeError:
            return 0  # somebody has killed it; how it ended will tell
        self._hang_up()
        with os.fdopen(os.dup(self._failed), "rb") as failed:
            return int(failed.read() or b"0")

    def _hang_up(self) -> None:
        if self._tell >= 0:
            os.close(self._tell)
            self._tell = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._hang_up()
        os.close(self._failed)
        if not self.ended:
            os.waitpid(self.pid, 0)


def _become(order: Order, mask: set[int], told: int, failed: int, say: Say) -> NoReturn:
    """The child's life; never returns into what the parent was doing."""
    code = EXIT_NOT_EXECUTABLE
    try:
        message = os.read(told, _MESSAGE_BYTES_MAX)
        if message:
            start = json.loads(message)
            if start["keep"]:
                code = _keep(order, mask, start, failed, say)
            else:
                _exec(order, mask, start, failed)
    except OSError as error:
        _tell_failure(failed, error)
    finally:
        os._exit(code)


def _keep(order: Order, mask: set[int], start: Mapping[str, Any], failed: int, say: Say) -> int:
    """Starts the command in a child, and stays until nothing of the job is left."""
    minding.become_subreaper()
    command = os.fork()
    if command == 0:
        _exec(order, mask, start, failed)
    os.close(failed)  # else nobody would see that the command has its own copy closed

    def tell() -> None:
        say("the command has ended; processes that it left go on, and are waited for")

    code = minding.mind(command, everybody=True, only_from_parent=True, leaves=tell)
    return minding.exit_status(code)


def _exec(order: Order, mask: set[int], start: Mapping[str, Any], failed: int) -> NoReturn:
    try:
        handed_on = {name: one for name, one in os.environ.items() if name not in start["withheld"]}
        environment = {
            **handed_on,
            "BURSAR_ACCOUNT": start["account"],
            "BURSAR_JOB": start["job"],
            "BURSAR_TARGET": start["target"],
        }
        minding.reset_signals(mask)
        os.execvpe(order.command[0], order.command, environment)  # noqa: S606 -- what was asked for
    except OSError as error:
        _tell_failure(failed, error)
    finally:
        os._exit(EXIT_NOT_EXECUTABLE)


def _tell_failure(failed: int, error: OSError) -> None:
    # Where a part of the path is no folder, there is no such command either.
    number = errno.ENOENT if error.errno == errno.ENOTDIR else error.errno or errno.EIO
    os.write(failed, str(number).encode())


def _leave(group: str, say: Say) -> None:
    """Removes the group; where processes go on in it, tells so, unless they are about to end."""
    deadline = time.monotonic() + minding.LEFTOVER_PATIENCE_S
    while not cgroups.remove(group):
        if time.monotonic() > deadline:
            count = len(cgroups.members(group))
            go = "process of the job goes" if count == 1 else "processes of the job go"
            say(f"{count} {go} on, under its limits")
            return
        time.sleep(_POLL_S)


def _latest_incident(job: "Job", target: str) -> "Incident | None":
    """The job's incident, if there is one; waits a while for it to end."""
    import bursar

    deadline = time.monotonic() + INCIDENT_PATIENCE_S
    with bursar.connect(target, attempts=ATTEMPTS) as client:
        while True:
            incident = next(iter(client.list_incidents(job=job.id)), None)
            if incident is None or incident.ended or time.monotonic() > deadline:
                return incident
            time.sleep(_POLL_S)
