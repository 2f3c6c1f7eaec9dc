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
"""Programs that are never signalled, by the name of their file."""

_KERNEL_PIDS_MAX: Final = 2
_KTHREADD: Final = 2


@dataclass(frozen=True, slots=True)
class Rules:
    """Who is never signalled.

    Attributes:
        protect: Patterns for the name of a program's file, beyond `PROTECTED`.
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
        if any(re.fullmatch(pattern, program) for pattern in (*PROTECTED, *self.protect)):
            yield f"{program} (pid {pid}) is protected"
        owner = uid_of(pid)
        if uid is not None and not self.other_users and owner not in {None, uid}:
            yield f"pid {pid} runs as user {owner}, its job as user {uid}"


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
    """Signals one process, unless it has ended, or is another user's and we may not."""
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
