"""What the kernel says of processes: identity, descent, owner, and their end.

A pid alone names nobody, since pids are reused; a process is known here by pid and start time, and
held by a pidfd: while that is open and not readable, the pid still means the same process. Nothing
in here signals.
"""

import contextlib
import itertools
import os
import select
import time
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = [
    "Children",
    "Held",
    "ProcessTable",
    "Stat",
    "all_children",
    "boot_id",
    "command_of",
    "descendants",
    "in_host_pid_namespace",
    "nvidia_holders",
    "read_stat",
    "uid_of",
]

HELD_MAX: Final = 16_384
"""The most processes that are held; each costs a descriptor."""

_PID_MAX: Final = 1 << 22
"""The most that the kernel ever makes pid_max: PID_MAX_LIMIT of include/linux/threads.h."""

_HOST_PID_NAMESPACE: Final = 0xEFFFFFFC
"""The inode of the initial pid namespace: PROC_PID_INIT_INO of include/linux/proc_ns.h."""

_COMMAND_BYTES: Final = 4096
_STATUS_BYTES: Final = 1024
"""What is read of /proc/PID/status: the users are among its first lines."""

_COMMAND_CHARACTERS: Final = 120
_ANCESTORS_MAX: Final = 64
_HOLDERS_MAX: Final = 8
_HOLDERS_S: Final = 0.25
_DESCRIPTORS_MAX: Final = 4096
_NVIDIA: Final = "/dev/nvidia"


@dataclass(frozen=True, slots=True)
class Stat:
    """The part of /proc/PID/stat (proc(5)) that matters here.

    Attributes:
        pid: The process id.
        state: One letter; "Z" says that the main thread has ended, not that the process has.
        ppid: The parent's process id.
        start_ticks: When it started, in clock ticks since boot.
    """

    pid: int
    state: str
    ppid: int
    start_ticks: int


Children = Mapping[int, Sequence[Stat]]
"""Processes by the pid of their parent."""


def read_stat(pid: int) -> Stat | None:
    """Reads a process's stat; None when there is no such process, or it may not be seen."""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:  # noqa: PTH123 -- half the time of Path.read_bytes, for each of thousands
            text = file.read(1024)
    except OSError:
        return None
    return parse_stat(pid, text)


def parse_stat(pid: int, text: bytes) -> Stat | None:
    """Reads what /proc/PID/stat says; None where that is no stat."""
    # The second field is the name in brackets, which may itself hold brackets and blanks.
    fields = text[text.rfind(b")") + 2 :].split(b" ", 20)
    if len(fields) < 20:  # noqa: PLR2004 -- the start time is field 22 of stat
        return None
    try:
        return Stat(pid, fields[0].decode("ascii"), int(fields[1]), int(fields[19]))
    except ValueError:
        return None


def boot_id() -> str:
    """What tells this boot from others."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def in_host_pid_namespace() -> bool:
    """Whether this process sees the pids that NVML reports."""
    try:
        return Path("/proc/self/ns/pid").stat().st_ino == _HOST_PID_NAMESPACE
    except OSError:
        return False


def command_of(pid: int) -> str:
    """The first words of a process's command; its name where those cannot be read."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb", buffering=0) as file:  # noqa: PTH123 -- as in read_stat
            words = file.read(_COMMAND_BYTES)
        if not words:
            words = Path(f"/proc/{pid}/comm").read_bytes()
    except OSError:
        return ""
    text = words.rstrip(b"\0\n").replace(b"\0", b" ").decode("utf-8", "replace")
    return text if len(text) <= _COMMAND_CHARACTERS else text[: _COMMAND_CHARACTERS - 1] + "…"


def uid_of(pid: int) -> int | None:
    """Who a process runs as: its effective user.

    Who owns its folder in /proc is no answer: that is root where a process may not be dumped, which
    any may ask for, and which is so after each change of user.
    """
    try:
        with open(f"/proc/{pid}/status", "rb", buffering=0) as file:  # noqa: PTH123 -- as in read_stat
            text = file.read(_STATUS_BYTES)
    except OSError:
        return None
    return parse_uid(text)


def parse_uid(text: bytes) -> int | None:
    """Reads the effective user out of /proc/PID/status; None where it names none."""
    users = text.partition(b"\nUid:\t")[2].split(b"\t", 2)
    return int(users[1]) if len(users) > 1 and users[1].isdigit() else None


def ancestors(pid: int) -> Iterator[int]:
    """Yields the parents of a process, the nearest first, up to pid 1."""
    for _ in range(_ANCESTORS_MAX):
        stat = read_stat(pid)
        if stat is None or stat.ppid < 1:
            return
        pid = stat.ppid
        yield pid


def nvidia_holders(*, but: Container[int]) -> list[str]:
    """Names processes that have a GPU's device file open, as far as that may be seen.

    This goes through the descriptors of all processes, so it is bounded in time and in number.

    Args:
        but: Processes that are known to use GPUs anyway.
    """
    found: list[str] = []
    deadline_s = time.monotonic() + _HOLDERS_S
    for name in os.listdir("/proc"):  # noqa: PTH208 -- as below
        if time.monotonic() > deadline_s or len(found) == _HOLDERS_MAX:
            break
        pid = int(name) if name.isdigit() else 0
        if not pid or pid in but:
            continue
        targets = itertools.islice(_open_files(pid), _DESCRIPTORS_MAX)
        if any(one.startswith(_NVIDIA) for one in targets):
            stat = read_stat(pid)
            if stat is not None and stat.ppid != os.getpid():  # who reads NVML for us has it open
                found.append(f"{command_of(pid)} (pid {pid})".lstrip())
    return found


def _open_files(pid: int) -> Iterator[str]:
    try:
        with os.scandir(f"/proc/{pid}/fd") as entries:
            for entry in entries:
                with contextlib.suppress(OSError):  # it is closed by now
                    yield os.readlink(entry.path)  # noqa: PTH115 -- as in read_stat
    except OSError:
        return


def all_stats() -> Iterator[Stat]:
    """Yields every process that can be seen."""
    for name in os.listdir("/proc"):  # noqa: PTH208 -- names, of which most become no path
        if name.isdigit() and (stat := read_stat(int(name))) is not None:
            yield stat


def all_children() -> Children:
    """The children of every process, by one look at all of them."""
    children: dict[int, list[Stat]] = {}
    for stat in all_stats():
        children.setdefault(stat.ppid, []).append(stat)
    return children


def descendants(roots: Iterable[int], children: Children) -> set[tuple[int, int]]:
    """The processes that descend from any of these, which lived when `children` was looked at.

    Returns:
        Pids with start times: by the time that they are used, a pid may be another process's.
    """
    found: set[tuple[int, int]] = set()
    waiting = list(roots)
    while waiting:
        for child in children.get(waiting.pop(), ()):
            if (child.pid, child.start_ticks) not in found:
                found.add((child.pid, child.start_ticks))
                waiting.append(child.pid)
    return found


@dataclass(frozen=True, slots=True)
class Held:
    """A process that is held: its pid means this process until the pidfd is closed.

    Attributes:
        pid: The process id.
        start_ticks: When it started, in clock ticks since boot.
        pidfd: Readable once its last thread has ended; owned by the table.
    """

    pid: int
    start_ticks: int
    pidfd: int

    @property
    def identity(self) -> tuple[int, int]:
        """What names the process for good, within one boot."""
        return self.pid, self.start_ticks

    @property
    def has_ended(self) -> bool:
        """Whether its last thread has ended; a zombie whose threads live on has not."""
        return _is_readable(self.pidfd)


class ProcessTable:
    """Holds processes by pidfd and tells which have ended. Not safe to share between threads."""

    def __init__(self) -> None:
        self._held: dict[int, Held] = {}
        self._by_pidfd: dict[int, Held] = {}
        self._epoll = select.epoll()

    def __len__(self) -> int:
        return len(self._held)

    def close(self) -> None:
        """Lets everything go."""
        for held in self._held.values():
            os.close(held.pidfd)
        self._held.clear()
        self._by_pidfd.clear()
        self._epoll.close()

    def hold(self, pid: int, start_ticks: int | None = None) -> Held | None:
        """Holds a process.

        Args:
            pid: The process id.
            start_ticks: Only if it started then; None: whichever has the pid now.

        Returns:
            None when it has ended, is another one, may not be seen, or too many are held.
        """
        held = self._held.get(pid)
        if held is None:
            held = self._open(pid)
        if held is None or start_ticks not in (None, held.start_ticks):
            return None
        return held

    def _open(self, pid: int) -> Held | None:
        if not 0 < pid <= _PID_MAX or len(self._held) >= HELD_MAX:
            return None
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            return None
        # Read after the pidfd is open: while it is not readable, this is the process that it means.
        stat = read_stat(pid)
        if stat is None or _is_readable(pidfd):
            os.close(pidfd)
            return None
        held = Held(pid, stat.start_ticks, pidfd)
        self._held[pid] = self._by_pidfd[pidfd] = held
        self._epoll.register(pidfd, select.EPOLLIN)
        return held

    def ended(self) -> list[Held]:
        """Lets go of those that have ended since the last call, and says which."""
        gone = []
        while events := self._epoll.poll(0, 256):
            for pidfd, _ in events:
                gone.append(self.let_go(self._by_pidfd[pidfd]))
        return gone

    def let_go(self, held: Held) -> Held:
        """Stops holding a process."""
        if self._held.get(held.pid) is held:
            self._epoll.unregister(held.pidfd)
            os.close(held.pidfd)
            del self._held[held.pid], self._by_pidfd[held.pidfd]
        return held

    def alive(self, identities: Iterable[tuple[int, int]]) -> list[Held]:
        """Those of these processes that still run, held."""
        found = [self.hold(*one) for one in identities if self.is_alive(*one)]
        return [one for one in found if one is not None]

    def is_alive(self, pid: int, start_ticks: int) -> bool:
        """Whether that process still runs."""
        held = self.hold(pid, start_ticks)
        if held is not None:
            return not held.has_ended
        stat = read_stat(pid)  # where no more can be held, it may live all the same
        return stat is not None and stat.start_ticks == start_ticks and stat.state != "Z"


def _is_readable(pidfd: int) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))
