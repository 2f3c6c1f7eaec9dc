"""Calls that no sidecar has answered yet: in memory and, given a folder, in a file as well.

Each client that keeps something has a file of its own in the folder, locked while the client lives.
A file whose owner is gone is taken over by the next client of the same target. A line is written
before its call is sent, so `kill -9` at any instant loses none; a line that was not written whole
was not sent. Nothing here sends anything: `_courier` does.
"""

import base64
import fcntl
import json
import logging
import os
import stat
import threading
import uuid
import zlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bursar._convert import invalid
from bursar.exceptions import LimitReached

BYTES_MAX: Final = 16 * 2**20
"""How much may wait to be answered; some 60,000 commits."""

_SUFFIX: Final = ".journal"
_DRAFT: Final = ".draft"  # what takes a journal's place once it is whole
_SLACK_BYTES: Final = 64 * 2**10  # what a file holds of answered calls before it is written anew
_LOG: Final = logging.getLogger("bursar.journal")


@dataclass(frozen=True, slots=True)
class Kept:
    """A call: its method, and its request as it goes over the wire."""

    method: str
    request: bytes


def _line(content: dict[str, Any]) -> bytes:
    text = json.dumps(content, separators=(",", ":")).encode()
    return b"%08x %b\n" % (zlib.crc32(text), text)


def _kept_line(number: int, kept: Kept) -> bytes:
    request = base64.b64encode(kept.request).decode()
    return _line({"keep": number, "method": kept.method, "request": request})


def _content(line: bytes) -> dict[str, Any] | None:
    """What a line says; None: it is damaged."""
    checksum, _, text = line.partition(b" ")
    with suppress(ValueError):
        if int(checksum, 16) == zlib.crc32(text):
            content: dict[str, Any] = json.loads(text)
            return content
    return None


def read(data: bytes) -> tuple[str | None, dict[int, Kept], int]:
    """Reads a file: the target, what waits, and how many lines are damaged.

    What follows the last line end was being written when its owner died, and was not sent.
    """
    target: str | None = None
    waiting: dict[int, Kept] = {}
    damaged = 0
    for line in data.split(b"\n")[:-1]:
        content = _content(line)
        if content is None:
            damaged += 1
        elif "keep" in content:
            request = base64.b64decode(content["request"])
            waiting[content["keep"]] = Kept(content["method"], request)
        elif "done" in content:
            waiting.pop(content["done"], None)
        else:
            target = content["target"]
    return target, waiting, damaged


class Journal:
    """What waits for an answer, oldest first. Safe to share between threads.

    Args:
        folder: Where the file goes; None: memory only.
        target: The sidecar that the calls are for.
    """

    def __init__(self, folder: Path | None, target: str) -> None:
        self._folder, self._target = folder, target
        self._lock = threading.Lock()
        self._forget()
        self.damaged = 0
        if folder is not None:
            try:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                orphans = sorted(folder.glob(f"*{_SUFFIX}"))
                drafts = list(folder.glob(f"*{_DRAFT}"))
            except OSError as error:
                raise invalid(f"the journal's folder {folder}: {error}", field="journal") from None
            for path in orphans:
                self._adopt(path)
            for path in drafts:
                _discard(path)

    def _forget(self) -> None:
        self._pid = os.getpid()
        self._waiting: dict[int, Kept] = {}
        self._ready: set[int] = set()
        self._last = self._bytes = self._file_bytes = 0
        self._file = -1
        self._path: Path | None = None

    @property
    def durable(self) -> bool:
        """Whether what is kept outlives the process."""
        return self._folder is not None

    @property
    def full(self) -> bool:
        """Whether no more may be kept."""
        return self._bytes >= BYTES_MAX

    def __len__(self) -> int:
        return len(self._waiting)

    def keep(
        self, kept: Kept, *, number: int | None = None, ready: bool = True, bounded: bool = True
    ) -> int:
        """Keeps a call.

        Args:
            kept: The call.
            number: Of a call that was kept and is replaced by this one.
            ready: Whether it is to be sent; else `send` says so, or a crash.
            bounded: Whether it is refused when the journal is full or cannot be written; else it
                is kept in memory at least.

        Returns:
            The number by which it is known from now on.

        Raises:
            LimitReached: The journal is full, or its file cannot be written; nothing is kept.
        """
        with self._lock:
            if self._pid != os.getpid():
                if self._path is not None:
                    os.close(self._file)  # else the parent's lock would outlive it
                self._forget()  # what was kept before the fork is the parent's to tell
            if bounded and self.full:
                raise LimitReached(
                    f"{len(self)} calls wait for an answer of the sidecar, {BYTES_MAX} bytes of "
                    "them, the most that a journal holds: see why no sidecar answers",
                    reason="JOURNAL_FULL",
                )
            if number is None:
                number = self._last + 1
            try:
                self._write(_kept_line(number, kept))
            except LimitReached as error:
                if bounded:
                    raise
                _LOG.error("kept in memory only: %s", error)
            self._last = max(self._last, number)
            self._replace(number, kept)
            if ready:
                self._ready.add(number)
            return number

    def send(self, number: int) -> None:
        """Says that a call is to be sent again."""
        with self._lock:
            if number in self._waiting:
                self._ready.add(number)

    def send_all(self) -> None:
        """Says so of all that are kept."""
        with self._lock:
            self._ready.update(self._waiting)

    def done(self, number: int) -> None:
        """Forgets a call that was answered; a repeat does nothing."""
        with self._lock:
            if number not in self._waiting or self._pid != os.getpid():
                return
            self._replace(number, None)
            self._ready.discard(number)
            with suppress(LimitReached):  # at worst it is sent once more, which changes nothing
                self._write(_line({"done": number}))

    def ready(self) -> list[tuple[int, Kept]]:
        """What is to be sent, oldest first."""
        with self._lock:
            return [(one, self._waiting[one]) for one in sorted(self._ready)]

    def close(self) -> None:
        """Gives the file up: to the next client if something waits in it, else to nobody."""
        with self._lock:
            if self._path is not None and self._pid == os.getpid():
                if not self._waiting:
                    self._path.unlink(missing_ok=True)
                os.close(self._file)
            self._folder = self._path = None  # what is answered from now on is told again later

    def _replace(self, number: int, kept: Kept | None) -> None:
        before = self._waiting.pop(number, None)
        self._bytes -= 0 if before is None else len(_kept_line(number, before))
        if kept is not None:
            self._waiting[number] = kept
            self._bytes += len(_kept_line(number, kept))

    def _write(self, line: bytes) -> None:
        """Appends a line to the file, whole or not at all."""
        if self._folder is None:
            return
        try:
            if self._path is None or self._file_bytes > 2 * self._bytes + _SLACK_BYTES:
                self._write_anew(self._folder)
            written = os.write(self._file, line)
            if written < len(line):
                os.ftruncate(self._file, self._file_bytes)
                raise OSError(f"{written} of {len(line)} bytes were written")  # noqa: TRY301 -- as the system's own
        except OSError as error:
            raise LimitReached(
                f"the journal in {self._folder} cannot be written: {error}", reason="JOURNAL_FULL"
            ) from None
        self._file_bytes += len(line)

    def _write_anew(self, folder: Path) -> None:
        """Puts a file with only what waits in the place of the one that there is, if any."""
        path = self._path or folder / f"{os.getpid()}-{uuid.uuid4().hex[:12]}{_SUFFIX}"
        draft = path.with_suffix(_DRAFT)
        file = _locked(draft)
        try:
            data = _line({"journal": 1, "target": self._target})
            data += b"".join(_kept_line(*one) for one in sorted(self._waiting.items()))
            if os.write(file, data) < len(data):
                raise OSError("the disk is full")  # noqa: TRY301 -- as the system's own
            draft.rename(path)
        except BaseException:
            draft.unlink(missing_ok=True)
            os.close(file)
            raise
        if self._path is not None:
            os.close(self._file)
        self._file, self._path, self._file_bytes = file, path, len(data)

    def _adopt(self, path: Path) -> None:
        """Takes over what a client that is gone has left, if it was for this sidecar."""
        file = _abandoned(path)
        if file is None:
            return
        try:
            with os.fdopen(os.dup(file), "rb") as data:
                target, waiting, damaged = read(data.read())
            if damaged:
                self.damaged += damaged
                _LOG.error("%s: %d damaged lines; what they kept is lost", path, damaged)
            if target == self._target:
                for kept in waiting.values():
                    self.keep(kept)
                path.unlink()
            elif waiting:
                told = (path, target, len(waiting), self._target)
                _LOG.warning("%s is for %s: its calls (%d) are not sent to %s", *told)
        except (OSError, LimitReached, KeyError, TypeError, ValueError) as error:
            _LOG.error("%s is left as it is: %s", path, error)
        finally:
            os.close(file)


def _locked(draft: Path) -> int:
    """A new file that is locked, and was not taken for left behind before it was."""
    flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_APPEND | os.O_CLOEXEC
    while True:
        file = os.open(draft, flags, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except BaseException:
            draft.unlink(missing_ok=True)
            os.close(file)
            raise
        if os.fstat(file).st_nlink:
            return file
        os.close(file)


def _abandoned(path: Path) -> int | None:
    """The file of a client that is gone, locked; None: there is none, or it is not ours to take."""
    try:
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None  # taken by another client just now, or not ours to read
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        found = os.fstat(file)
        is_ours = stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid()
        if not is_ours:
            _LOG.error("%s is left as it is: it is not ours", path)
        elif path.exists() and os.path.samestat(found, path.stat()):
            return file
    except BlockingIOError:
        pass  # its owner lives
    except OSError as error:
        _LOG.error("%s is left as it is: %s", path, error)
    os.close(file)
    return None


def _discard(draft: Path) -> None:
    """Removes what a client has not finished: what it was to replace has all that was kept."""
    file = _abandoned(draft)
    if file is not None:
        try:
            draft.unlink(missing_ok=True)
        except OSError as error:
            _LOG.error("%s is left as it is: %s", draft, error)
        os.close(file)
