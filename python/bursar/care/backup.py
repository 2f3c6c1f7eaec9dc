"""A backup is a folder: the database, closed; the tokens; the watchdog's journal; a manifest.

It is made beside a running sidecar and takes nothing from it: the core copies the database and
adds what only the log has (`rust/store/src/copy.rs`), so all that was answered before is in it. The
folder gets its name last, when all of it is on the disk and was read back. A restore copies it to
where there is no store yet, and passes over the ids that were given out since.
"""

import contextlib
import hashlib
import json
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from bursar import __version__
from bursar._errors import from_core
from bursar.exceptions import BursarError

__all__ = ["BackupError", "Manifest", "make", "restore", "verify"]

MANIFEST: Final = "manifest.json"
VERSION: Final = 1
"""Of the manifest."""

DATABASE: Final = "ledger.db"
BESIDE: Final = (".tokens", ".watchdog")
"""What lies beside a store and belongs to it, by the end of its name."""
_OTHERS: Final = ("-log", "-wal", "-shm")


class BackupError(BursarError):
    """A backup cannot be made, is damaged, or cannot be put where it was to go."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a backup says of itself.

    Attributes:
        version: Of this form.
        made: When, in UTC.
        bursar: The release that made it.
        store_id: Names the store for good.
        schema_version: Of the store's tables.
        sequence: The last record that is in it.
        last_time_ms: The latest time that the store had recorded, in Unix milliseconds.
        sha256: Of each file, by its name.
    """

    version: int
    made: str
    bursar: str
    store_id: int
    schema_version: int
    sequence: int
    last_time_ms: int
    sha256: dict[str, str]


def make(store: Path, backup: Path) -> Manifest:
    """Copies a store, in use or not, to the new folder `backup`.

    Raises:
        BackupError: There is no store, `backup` is there already, or it cannot be written.
        StoreUnavailable: The store is damaged.
    """
    if not store.is_file():
        raise BackupError(f"{store} is no store; name the file that [store] path names")
    if os.path.lexists(backup):
        raise BackupError(f"{backup} is there already; name one that is not")
    with _told(backup), _new_folder(backup) as folder:
        with _core_told() as core:
            copied = json.loads(core.copy_store(store, folder / DATABASE))
        for end in BESIDE:
            source = store.with_name(store.name + end)
            if source.exists():
                _copy_beside(source, folder / f"{DATABASE}{end}")
        sums = {path.name: _sha256(path) for path in sorted(folder.iterdir())}
        made = datetime.now(UTC).isoformat(timespec="seconds")
        manifest = Manifest(VERSION, made, __version__, sha256=sums, **copied)
        _write(folder / MANIFEST, json.dumps(asdict(manifest), indent=2).encode())
        verify(folder)
    return manifest


def verify(backup: Path) -> Manifest:
    """Reads all of a backup; raises BackupError where it is not as it was made."""
    manifest = _read_manifest(backup)
    for name, expected in manifest.sha256.items():
        with _told(backup / name):
            found = _sha256(backup / name)
        if found != expected:
            raise BackupError(f"{backup / name} has changed since it was made; use another backup")
    with _core_told() as core:
        report = json.loads(core.check_store(str(backup / DATABASE)))
    if not report["ok"]:
        why = report["refusal"] or "it does not agree with itself; see `bursar doctor`"
        raise BackupError(f"{backup / DATABASE} is damaged: {why}")
    return manifest


def restore(backup: Path, store: Path) -> Manifest:
    """Puts a backup where no store is.

    Raises:
        BackupError: The backup is damaged, or something is there already.
    """
    manifest = verify(backup)
    for end in ("", *_OTHERS, *BESIDE):
        there = store.with_name(store.name + end)
        if os.path.lexists(there):
            raise BackupError(f"{there} is there already; stop the sidecar and move it away first")
    with _told(store):
        store.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{store.name}-", dir=store.parent) as scratch:
            for name in manifest.sha256:
                shutil.copyfile(backup / name, Path(scratch) / name)
                (Path(scratch) / name).chmod(0o600)
                _sync(Path(scratch) / name)
            with _core_told() as core:
                core.adopt_copy(Path(scratch) / DATABASE)
            # The database comes last: until it is there, there is no store.
            for name in sorted(manifest.sha256, reverse=True):
                target = store.with_name(store.name + name.removeprefix(DATABASE))
                os.link(Path(scratch) / name, target)
                _sync(store.parent)
    return manifest


def _read_manifest(backup: Path) -> Manifest:
    try:
        read: dict[str, Any] = json.loads((backup / MANIFEST).read_text(encoding="utf-8"))
        if read["version"] > VERSION:
            raise BackupError(
                f"{backup} has version {read['version']}: use the release that made it"
            )
        manifest = Manifest(**read)
        names = {DATABASE, *(f"{DATABASE}{end}" for end in BESIDE)}
        if not {DATABASE} <= set(manifest.sha256) <= names:
            raise BackupError(f"{backup / MANIFEST} names other files than a backup has")
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise BackupError(f"{backup} is no backup: {MANIFEST} cannot be read: {error}") from None
    return manifest


@contextmanager
def _new_folder(name: Path) -> Iterator[Path]:
    """Yields a folder that has that name once everything in it is on the disk, or is gone."""
    folder = Path(tempfile.mkdtemp(prefix=f".{name.name}-", dir=name.parent))
    try:
        yield folder
        for path in folder.iterdir():
            _sync(path)
        _sync(folder)
        folder.rename(name)  # where there is something by now, it fails
        _sync(name.parent)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _copy_beside(source: Path, target: Path) -> None:
    """Copies the tokens, which are replaced as a whole, or the journal, which is SQLite's."""
    if source.suffix == ".tokens":
        _write(target, source.read_bytes())
        return
    _write(target, b"")
    with (
        contextlib.closing(sqlite3.connect(source, timeout=10)) as journal,
        contextlib.closing(sqlite3.connect(target)) as copy,
    ):
        journal.backup(copy)
        copy.execute("PRAGMA journal_mode = DELETE")
        [damage] = copy.execute("PRAGMA integrity_check(1)").fetchone()
    if damage != "ok":
        raise BackupError(f"{source} is damaged: {damage}; the watchdog does without a new one")


def _write(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Turns what the system says into what Bursar says."""
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        raise BackupError(f"{path}: {getattr(error, 'strerror', None) or error}") from None


@contextmanager
def _core_told() -> Iterator[Any]:
    """Yields the core; turns what it raises into what Bursar raises."""
    from bursar import _core

    try:
        yield _core
    except _core.CoreError as raised:
        raise from_core(raised) from None
