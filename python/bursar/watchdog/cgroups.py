"""Cgroups v2 that hold one job each: made by `bursar run`, asked and killed by the daemon.

Paths are those below the root of the hierarchy, as /proc/<pid>/cgroup tells them: ``/a/bursar-b``.
Only groups whose own name begins with "bursar-" are ever written to; what others made is only read.
No controllers are switched on: the groups are there to know who belongs together, and to end them.
"""

import functools
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Final

__all__ = [
    "add",
    "check_job_group",
    "inode",
    "is_empty",
    "is_inside",
    "kill",
    "make",
    "members",
    "mount_point",
    "path_of",
    "path_seen",
    "remove",
]

PREFIX: Final = "bursar-"
GROUPS_MAX: Final = 1024
"""How many groups below a job's own are looked into. `kill` reaches all, however many."""

_ESCAPED: Final = re.compile(r"\\([0-7]{3})")  # mountinfo writes blanks in paths in octal


@functools.cache
def mount_point() -> Path | None:
    """Where the whole cgroup v2 hierarchy is mounted; None: nowhere."""
    return _find_mount(_read(Path("/proc/self/mountinfo")))


def _read(path: Path) -> str:
    """The text of a file that holds paths: anybody may have made them of bytes that are no text."""
    return path.read_text(encoding="utf-8", errors="surrogateescape")


def _find_mount(mountinfo: str) -> Path | None:
    for line in mountinfo.splitlines():
        mount, _, kind = line.partition(" - ")
        root, point = [*mount.split(" "), *[""] * 5][3:5]
        # With another root, the paths that /proc tells do not lie below the mount point.
        if kind.startswith("cgroup2 ") and root == "/":
            return Path(_ESCAPED.sub(lambda one: chr(int(one[1], 8)), point))
    return None


def path_of(pid: int) -> str | None:
    """The group of a process; None: it has ended, or its group cannot be named from here."""
    path = _path(pid)
    # From within a cgroup namespace, whatever is outside of it is a path that climbs.
    return None if path.startswith("/..") else path or None


def path_seen(pid: int) -> str | None:
    """What can be seen of the path of a process's group; None: nothing, or it has ended.

    In a container that is what is not above both its own group and that one: enough to know other
    containers by, and not to reach a group by.
    """
    return re.sub(r"^(?:/\.\.(?=/|\Z))+", "", _path(pid)) or None


def _path(pid: int) -> str:
    try:
        text = _read(Path(f"/proc/{pid}/cgroup"))
    except OSError:
        return ""
    return parse_group(text)


def parse_group(text: str) -> str:
    """Reads what /proc/PID/cgroup says; empty where it names no group."""
    path = next((one[3:] for one in text.splitlines() if one.startswith("0::")), "")
    return path if path.startswith("/") and not path.endswith(" (deleted)") else ""


def make(name: str) -> str:
    """Makes a group for a job below the caller's own.

    Args:
        name: What people call the job: letters, digits and ``._-``.

    Raises:
        OSError: It cannot be made; says why.
    """
    own = path_of(os.getpid())
    if mount_point() is None:
        raise OSError("no cgroup v2 hierarchy is mounted")
    if own is None:
        raise OSError("the cgroup of this process cannot be named from here")
    path = f"{own.rstrip('/')}/{PREFIX}{name}-{secrets.token_hex(4)}"
    folder = _own_folder(path)
    folder.mkdir()
    if not (folder / "cgroup.kill").exists():
        folder.rmdir()
        raise OSError("this kernel has no cgroup.kill")
    return path


def add(path: str, pid: int) -> None:
    """Moves a process into a job's group; raises OSError where the kernel refuses."""
    (_own_folder(path) / "cgroup.procs").write_text(str(pid), encoding="ascii")


def members(path: str) -> list[int]:
    """The processes in a group and in those below it; none if it is gone."""
    return [pid for folder in _tree(_folder(path)) for pid in _processes(folder) if pid > 0]


def inode(path: str) -> int:
    """What tells a group from a later one of the same name; 0 if it is gone."""
    try:
        return _folder(path).stat().st_ino
    except (OSError, ValueError):
        return 0


def is_inside(path: str, pid: int) -> bool:
    """Whether a process is in a group or below it."""
    return f"{path_of(pid)}/".startswith(f"{path}/")


def is_empty(path: str) -> bool:
    """Whether no process is left in a group or below it; also true once it is gone."""
    try:
        text = (_folder(path) / "cgroup.events").read_text(encoding="ascii")
    except OSError:
        return True
    return "populated 0" in text.splitlines()


def kill(path: str) -> None:
    """Sends SIGKILL to everything in a job's group and below it, at once; nothing if it is gone.

    Raises:
        ValueError: It is not the group of a job.
        OSError: The kernel refuses.
    """
    # Not opened to create: in a group that is gone there is no such file, and none can be made.
    try:
        descriptor = os.open(_own_folder(path) / "cgroup.kill", os.O_WRONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        os.write(descriptor, b"1")
    except OSError:
        if not is_empty(path):
            raise
    finally:
        os.close(descriptor)


def remove(path: str) -> bool:
    """Removes a job's group and those below it, if they are empty; whether it is gone.

    Raises:
        ValueError: It is not the group of a job.
    """
    for folder in reversed(list(_tree(_own_folder(path)))):
        try:
            folder.rmdir()
        except FileNotFoundError:
            continue
        except OSError:
            return False
    return True


def check_job_group(path: str, pid: int) -> None:
    """Checks that a path that a client gave is a group that was made for one job.

    Args:
        path: The path, below the root of the hierarchy.
        pid: The process that is being registered.

    Raises:
        ValueError: It is not: to kill it would end others too. Says what is wrong.
    """
    folder = _own_folder(path)
    own = path_of(os.getpid())
    if own is None:
        raise ValueError("the sidecar cannot name its own cgroup, so it takes none from a client")
    if f"{own}/".startswith(f"{path}/"):
        raise ValueError(f"{path} holds the sidecar itself; give the job a group of its own")
    if not folder.is_dir():
        raise ValueError(f"there is no cgroup {path}, as the sidecar sees the hierarchy")
    if path_of(pid) != path:
        raise ValueError(f"process {pid} is not in the cgroup {path}; move it there first")
    found = {one for group in _tree(folder) for one in _processes(group)}
    if found != {pid}:
        others = ", ".join(str(one) for one in sorted(found - {pid})[:5])
        raise ValueError(f"{path} must hold process {pid} and nothing else, and holds {others}")


def _folder(path: str) -> Path:
    """Where a group is; refuses what is not the plain path of one below the root."""
    parts = path.split("/")
    if parts[0] or len(parts) < 2 or any(one in {"", ".", ".."} for one in parts[1:]):  # noqa: PLR2004 -- "" and one name
        raise ValueError(f"{path!r} is no cgroup below the root; write a path such as /a/bursar-b")
    mounted = mount_point()
    if mounted is None:
        raise ValueError("no cgroup v2 hierarchy is mounted here")
    return mounted.joinpath(*parts[1:])


def _own_folder(path: str) -> Path:
    if not path.rpartition("/")[2].startswith(PREFIX):
        raise ValueError(f"{path!r} is not the group of a job: its name begins with {PREFIX!r}")
    return _folder(path)


def _tree(folder: Path) -> Iterator[Path]:
    """The folder and those below it, each before what is below it; at most GROUPS_MAX."""
    found = [folder]
    for group in found:
        yield group
        try:
            with os.scandir(group) as entries:
                below = [Path(one.path) for one in entries if one.is_dir(follow_symlinks=False)]
        except OSError:
            continue
        found += below[: GROUPS_MAX - len(found)]


def _processes(folder: Path) -> list[int]:
    """What is in one group alone; 0 stands for a process outside of our pid namespace."""
    try:
        return [int(one) for one in (folder / "cgroup.procs").read_text(encoding="ascii").split()]
    except OSError:  # it is gone, or threaded: then the group above lists its processes
        return []
