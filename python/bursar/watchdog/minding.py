"""Stays with a command as a shell would: passes signals on, stops along with it, reaps what ends.

Called by `launch` alone, in a process whose children are all of one job. All signals that matter
are blocked and taken one by one, so nothing happens between two lines of this file.
"""

import ctypes
import os
import signal
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

__all__ = [
    "asked_to_end",
    "become_subreaper",
    "exit_status",
    "mind",
    "reset_signals",
    "signals_taken",
]

PASSED_ON: Final = frozenset(
    {
        signal.SIGINT,
        signal.SIGTERM,
        signal.SIGHUP,
        signal.SIGQUIT,
        signal.SIGUSR1,
        signal.SIGUSR2,
        signal.SIGWINCH,
        signal.SIGTSTP,
        signal.SIGCONT,
    }
)
_TAKEN: Final = PASSED_ON | {signal.SIGCHLD}
_ENDING: Final = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT})
_BY_TERMINAL: Final = frozenset({signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU})
_SI_KERNEL: Final = 0x80  # the signal comes from a key or the end of a terminal, not from a process
_PR_SET_CHILD_SUBREAPER: Final = 36
_SIGNALLED: Final = 128  # what shells add to the number of the signal that ended a command
LEFTOVER_PATIENCE_S: Final = 0.5
"""How long what a command left may take to end by itself before a person is told of it."""


@contextmanager
def signals_taken() -> Iterator[set[int]]:
    """Blocks the signals that `mind` takes; yields the mask that was there before.

    Threads and children that are made within inherit the mask.
    """
    if signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN:
        # Whoever started us may ignore it; then the kernel would not keep how a child ended.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _TAKEN)
    try:
        yield {int(one) for one in before}
    finally:
        # What comes after the command has ended would only hide how it ended.
        while signal.sigtimedwait(_TAKEN, 0) is not None:
            pass
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def asked_to_end() -> int:
    """The signal that asks us to end and that nobody has taken yet; 0: none."""
    return next((int(one) for one in signal.sigpending() if one in _ENDING), 0)


def reset_signals(mask: set[int]) -> None:
    """Gives a child, before exec, what a command expects: default dispositions and that mask.

    What is ignored stays ignored, as under nohup; except what Python itself ignores.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def become_subreaper() -> None:
    """From now on, descendants that lose their parent become children of this process."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "this process cannot become a subreaper")


def exit_status(code: int) -> int:
    """What a shell makes of an exit code that is negative when a signal ended the command."""
    return _SIGNALLED - code if code < 0 else code


def mind(
    command: int,
    *,
    everybody: bool,
    only_from_parent: bool = False,
    leaves: Callable[[], None] = lambda: None,
) -> int:
    """Waits for a command; signals must be blocked by `signals_taken` since before its fork.

    Args:
        command: The process id of a child.
        everybody: Also wait for all other children, those that `become_subreaper` brings included.
        only_from_parent: Pass on only what the parent or a terminal sent. The watchdog signals each
            process of a job itself, and a second SIGTERM makes many programs skip their clean-up.
        leaves: Called once, when the command has ended and others go on.

    Returns:
        The command's exit code; negative: the signal that ended it.
    """
    code: int | None = None
    told = False
    while True:
        if code is None or told:
            info = signal.sigwaitinfo(_TAKEN)
        elif (timed := signal.sigtimedwait(_TAKEN, LEFTOVER_PATIENCE_S)) is not None:
            info = timed
        else:
            told = True
            leaves()
            continue
        if info.si_signo != signal.SIGCHLD:
            if not only_from_parent or info.si_code == _SI_KERNEL or info.si_pid == os.getppid():
                _pass_on(info, [command] if code is None else _children())
            continue
        changed, left = _reap()
        status = changed.get(command)
        if status is not None and os.WIFSTOPPED(status):
            _stop_along(os.WSTOPSIG(status))
        elif status is not None:
            code = os.waitstatus_to_exitcode(status)
        if code is not None and not (everybody and left):
            return code


def _reap() -> tuple[dict[int, int], bool]:
    """The latest status of each child that changed, and whether there are children left."""
    changed: dict[int, int] = {}
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED)
        except ChildProcessError:
            return changed, False
        if pid == 0:
            return changed, True
        changed[pid] = status


def _pass_on(info: signal.struct_siginfo, children: Collection[int]) -> None:
    for pid in children:
        # The terminal signals the whole foreground group: who is in ours has it already. A child
        # that was not waited for keeps its id, so this cannot meet a stranger.
        try:
            if info.si_code != _SI_KERNEL or os.getpgid(pid) != os.getpgrp():
                os.kill(pid, info.si_signo)
        except (ProcessLookupError, PermissionError):
            continue


def _children() -> list[int]:
    found: list[int] = []
    for task in Path("/proc/self/task").iterdir():
        try:
            found += [int(one) for one in (task / "children").read_text(encoding="ascii").split()]
        except OSError:  # the thread has ended, or the kernel does not tell
            continue
    return found


def _stop_along(number: int) -> None:
    """Stops as the command was stopped, so that the shell which started us takes over."""
    if number not in _BY_TERMINAL:
        return
    os.kill(os.getpid(), number)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})  # stops here, until a SIGCONT
    signal.pthread_sigmask(signal.SIG_BLOCK, {number} & _TAKEN)
