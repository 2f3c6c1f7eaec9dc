"""The doctor's look at files: who may read and change them, where they are, whether they fit."""

import os
import pwd
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from bursar.care.findings import AS_ITS_USER, Finding, Outcome, Subject

__all__ = ["config_files", "file_system", "permissions", "room"]

FULL_BYTES: Final = 1 << 20
"""With less, a log or a journal soon cannot be written."""
LOW_BYTES: Final = 1 << 30
_BESIDE: Final = ("", "-wal", "-shm", "-log", ".tokens", ".watchdog", ".notify")
_OTHERS_WRITE: Final = stat.S_IWOTH
_GROUP_WRITES: Final = stat.S_IWGRP
_NOT_OWNER: Final = 0o077
_VOLATILE: Final = frozenset({"tmpfs", "ramfs"})
_SHARED: Final = frozenset({"nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "glusterfs", "fuse.sshfs"})
_LAYERED: Final = frozenset({"overlay", "aufs"})


def permissions(subject: Subject) -> Iterator[Finding]:
    """Who else may read, change or replace the store."""
    if subject.store is None or not subject.store.parent.is_dir():
        return
    yield _folder("store folder", subject.store.parent)
    paths = [path for end in _BESIDE if (path := subject.beside(end)).exists()]
    odd = [(path, path.stat()) for path in paths]
    wide = [f"{path} ({_mode(one)})" for path, one in odd if one.st_mode & _NOT_OWNER]
    if wide:
        advice = f"chmod go= {' '.join(str(path) for path, one in odd if one.st_mode & _NOT_OWNER)}"
        writable = any(one.st_mode & (_OTHERS_WRITE | _GROUP_WRITES) for _, one in odd)
        outcome = Outcome.BROKEN if writable else Outcome.WARN
        yield Finding("store files", outcome, f"open to others: {', '.join(wide)}", advice)
    elif paths:
        yield Finding("store files", Outcome.OK, "their owner's only")
    owners = {one.st_uid for _, one in odd}
    if len(owners) > 1:
        told = ", ".join(f"{path.name} is {_user(one.st_uid)}'s" for path, one in odd)
        advice = "give all of them to the sidecar's user: chown"
        yield Finding("owner", Outcome.BROKEN, told, advice)
    elif owners - {0, os.geteuid()} and os.geteuid():
        detail = f"they are {_user(owners.pop())}'s, and this runs as {_user(os.geteuid())}"
        yield Finding("owner", Outcome.WARN, detail, AS_ITS_USER)


def config_files(subject: Subject) -> Iterator[Finding]:
    """Who else may change limits, or read keys and secrets."""
    if subject.config is None or subject.config_path is None:
        return
    mode = subject.config_path.stat().st_mode
    if mode & _OTHERS_WRITE:
        detail = f"anybody may change {subject.config_path}, and with it every limit"
        yield Finding("configuration", Outcome.BROKEN, detail, f"chmod o-w {subject.config_path}")
    else:
        yield Finding("configuration", Outcome.OK, f"{subject.config_path} is valid")
    secrets = [one.key_file for one in subject.config.proxy.upstreams]
    secrets += [one.secret_file for one in subject.config.notify.webhooks]
    secrets += [subject.config.server.tls.key] if subject.config.server.tls else []
    for path in (Path(one) for one in secrets if one is not None):
        try:
            mode = path.stat().st_mode
        except OSError as error:
            detail = f"{path} cannot be read: {error.strerror}"
            yield Finding("key file", Outcome.BROKEN, detail, "the sidecar does not start without")
            continue
        if mode & _NOT_OWNER:
            detail = f"{path} is open to others ({mode & 0o777:04o})"
            yield Finding("key file", Outcome.BROKEN, detail, f"chmod go= {path}")
        else:
            yield Finding("key file", Outcome.OK, f"{path} is its owner's only")


def room(subject: Subject) -> Iterator[Finding]:
    """Whether there is room to write."""
    if subject.store is None or not subject.store.parent.is_dir():
        return
    reason = unwritable(subject.store.parent)
    if reason:
        detail = f"{reason}: nothing is granted, and the watchdog cannot write down whom it stops"
        yield Finding("disk", Outcome.BROKEN, detail, "make room, or mount it to be written")
        return
    system = os.statvfs(subject.store.parent)
    free_bytes = system.f_bavail * system.f_frsize
    if not system.f_blocks:
        yield Finding("disk", Outcome.OK, "the file system does not say how much is left")
    elif free_bytes < LOW_BYTES:
        advice = "make room, or keep less history: entry_retention"
        detail = f"{free_bytes:,} bytes are left"
        yield Finding("disk", Outcome.WARN, detail, advice)
    else:
        yield Finding("disk", Outcome.OK, f"{free_bytes >> 30:,} GiB are left")


def unwritable(folder: Path) -> str:
    """What keeps everybody from writing in a folder, as far as can be seen without trying."""
    system = os.statvfs(folder)
    if system.f_flag & os.ST_RDONLY:
        return "the file system is read-only"
    free_bytes = system.f_bavail * system.f_frsize
    if system.f_blocks and free_bytes < FULL_BYTES:  # some name no size: ramfs, a tmpfs of any size
        return f"the file system is full: {free_bytes:,} bytes are left"
    return "the file system has no inodes left" if system.f_files and not system.f_favail else ""


def file_system(subject: Subject) -> Iterator[Finding]:
    """Whether what the file system keeps is what the durability promises."""
    if subject.store is None or not subject.store.parent.is_dir():
        return
    kind = _kind_of(subject.store.parent)
    durability = subject.config.store.durability if subject.config is not None else "process"
    if kind in _VOLATILE and durability != "memory":
        detail = f"{kind}: a reboot loses the store, whatever durability = {durability!r} promises"
        outcome = Outcome.BROKEN if durability == "power" else Outcome.WARN
        advice = "put it on a disk, or say durability = 'memory'"
        yield Finding("file system", outcome, detail, advice)
    elif kind in _SHARED:
        detail = f"{kind}: locks and syncs over a network are not what they say"
        yield Finding("file system", Outcome.WARN, detail, "put the store on a disk of this host")
    elif kind in _LAYERED:
        detail = f"{kind}: the store goes with the container"
        yield Finding("file system", Outcome.WARN, detail, "mount a volume for it")
    else:
        yield Finding("file system", Outcome.OK, f"{kind}, durability {durability}")


def folder_of_socket(path: Path) -> Finding:
    """Who may put another socket in the place of the sidecar's."""
    return _folder("socket folder", path.parent)


def _folder(what: str, folder: Path) -> Finding:
    mode = folder.stat().st_mode
    if mode & _OTHERS_WRITE and not mode & stat.S_ISVTX:
        detail = f"anybody may replace what is in {folder} ({_mode(folder.stat())})"
        return Finding(what, Outcome.BROKEN, detail, f"chmod o-w {folder}")
    if mode & _OTHERS_WRITE:
        detail = f"anybody may create files in {folder} ({_mode(folder.stat())})"
        return Finding(what, Outcome.WARN, detail, "use a folder of the sidecar's own")
    if mode & _GROUP_WRITES:
        detail = f"the group may replace what is in {folder} ({_mode(folder.stat())})"
        return Finding(what, Outcome.WARN, detail, f"chmod g-w {folder}")
    return Finding(what, Outcome.OK, f"{folder} ({_mode(folder.stat())})")


def _kind_of(folder: Path) -> str:
    """The type of the file system, by a mount that has the folder's device."""
    device = folder.stat().st_dev
    name = f"{os.major(device)}:{os.minor(device)}".encode()
    kind = "unknown"
    # As bytes: anybody may have mounted something at a name that is no text.
    for line in Path("/proc/self/mountinfo").read_bytes().split(b"\n"):
        before, _, after = line.partition(b" - ")
        if before.split()[2:3] == [name]:
            kind = after.split()[0].decode("utf-8", "replace")
    return kind


def _mode(found: os.stat_result) -> str:
    return f"{stat.S_IMODE(found.st_mode):04o}"


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"
