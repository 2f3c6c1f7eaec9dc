"""The only file that signals. By pidfd alone, on an identity that was checked, and never by pid.

A wrong kill is the worst failure, so every rule of `refusal` is asked for every process and every
signal, and what is not provably the job's is left alone.
"""

import contextlib
import os
import re
import signal
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bursar.watchdog import cgroups
from bursar.watchdog.processes import (
    Held,
    ancestors,
    command_of,
    in_host_pid_namespace,
    read_stat,
    uid_of,
)

__all__ = ["PROTECTED", "Rules", "kill_group", "own_family", "send"]

PROTECTED: Final = (
    r"Xorg|Xwayland|gnome-shell|kwin_\w+|sddm|gdm\w*",
    r"nvidia-persistenced|nvidia-cuda-mps-(control|server)|nv-hostengine|dcgm-exporter",
    r"nvidia-device-plugin|containerd(-shim.*)?|conmon|dockerd|crio|kubelet|runc",
    r"sshd|systemd.*|init|dbus-daemon|agetty|login",
)
"""Programs that are never signalled, by the name of their file, where that file is root's.

Anybody can name a program of theirs as they like; who is root can end the sidecar as well.
"""

_KERNEL_PIDS_MAX: Final = 2
_KTHREADD: Final = 2


@dataclass(frozen=True, slots=True)
class Rules:
    """Who is never signalled.

    Attributes:
        protect: Patterns for the name of a program's file, beyond `PROTECTED`; whose it is does not
            matter.
        other_users: Whether a process may run as another user than its job was registered with.
    """

    protect: tuple[str, ...] = ()
    other_users: bool = False

    def refusal(self, held: Held, *, uid: int | None, family: Container[int]) -> str:
        """Why a process may not be signalled; empty: it may.

        Args:
            held: The process; its pidfd is what a signal would go to.
            uid: Who its job was registered as; None: the kernel keeps the job together, whoever
                its processes run as.
            family: What `own_family` said for this look.
        """
        return next(self._reasons(held, uid, family), "")

    def _reasons(self, held: Held, uid: int | None, family: Container[int]) -> Iterator[str]:
        pid = held.pid
        if pid <= _KERNEL_PIDS_MAX:
            yield f"pid {pid} is the system's"
        if pid in family:
            yield f"pid {pid} is the sidecar or an ancestor of it"
        stat = read_stat(pid)
        if stat is None or stat.start_ticks != held.start_ticks:
            yield f"pid {pid} is another process than the one that was attributed"
            return
        if stat.ppid == _KTHREADD and in_host_pid_namespace():  # elsewhere, 2 is anybody
            yield f"pid {pid} is a kernel thread"
        if stat.ppid == os.getpid():
            yield f"pid {pid} is a part of the sidecar"
        program = _program(pid)
        patterns = (*PROTECTED, *self.protect) if _is_of_root(pid) else self.protect
        if any(re.fullmatch(pattern, program) for pattern in patterns):
            yield f"{program} (pid {pid}) is protected"
        if uid is None:
            return
        owner = uid_of(pid)
        if not self.other_users and owner not in {None, uid}:
            yield f"pid {pid} runs as user {owner}, its job as user {uid}"
        if not _may_signal(held):
            yield f"the kernel does not let the sidecar signal pid {pid}, which is user {owner}'s"


def _may_signal(held: Held) -> bool:
    try:
        signal.pidfd_send_signal(held.pidfd, 0)  # asks, and sends nothing
    except PermissionError:
        return False
    except ProcessLookupError:
        pass
    return True


def _is_of_root(pid: int) -> bool:
    """Whether the file of a program is root's; one that cannot be looked at counts as such."""
    try:
        return Path(f"/proc/{pid}/exe").stat().st_uid == 0
    except OSError:
        return True


def own_family() -> frozenset[int]:
    """The sidecar and its ancestors, which are never signalled; asked for once for each look."""
    return frozenset((os.getpid(), *ancestors(os.getpid())))


def _program(pid: int) -> str:
    try:
        name = Path(f"/proc/{pid}/exe").readlink().name.removesuffix(" (deleted)")
        return os.fsencode(name).decode("utf-8", "replace")  # it ends up in what people read
    except OSError:
        return Path(command_of(pid).split(" ", 1)[0]).name


def send(held: Held, number: signal.Signals) -> None:
    """Signals one process, unless it has ended, or the kernel does not let us."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        signal.pidfd_send_signal(held.pidfd, number)
        if number is signal.SIGTERM:  # a stopped process handles nothing until it goes on
            signal.pidfd_send_signal(held.pidfd, signal.SIGCONT)


def kill_group(path: str, inode: int) -> None:
    """Kills a job's cgroup at once, so that nobody can fork out of it, if the kernel lets us.

    Args:
        path: The group, below the root of the hierarchy.
        inode: Its folder's at registration: one of the same name is another group.
    """
    if cgroups.inode(path) == inode:
        with contextlib.suppress(OSError):
            cgroups.kill(path)
