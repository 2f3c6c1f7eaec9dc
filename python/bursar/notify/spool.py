"""What waits to be told, and to whom: one SQLite file beside the ledger's, synced with each change.

Events and the places that they were read up to are written in one transaction. Each receiver has a
bounded backlog: at the bound the oldest event goes, and is counted until the receiver was told of
it. Safe to share between threads.

Where the file cannot be written, as on a full disk, everything goes on in memory, for that is when
an operator has to hear of it; it is written again as soon as that can be. What was told meanwhile,
a crash makes forget: then it is told again.
"""

import contextlib
import json
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bursar._log import Say
from bursar.notify.events import Event, Waiting
from bursar.notify.outcomes import Receiver

__all__ = ["Spool", "Standing", "standings"]

VERSION: Final = 1
"""Of the file, which is the first; a later one is refused."""

_RETRY_S: Final = 5.0
_BUSY_S: Final = 0.25
_FAILURE_CHARACTERS_MAX: Final = 500
_SCHEMA: Final = """
CREATE TABLE about (
  one INTEGER PRIMARY KEY CHECK (one = 1),
  id  TEXT NOT NULL        -- begins every event's id: another spool has others
) STRICT;
CREATE TABLE places (
  source TEXT PRIMARY KEY,
  place  TEXT NOT NULL     -- JSON, of the source's own
) STRICT;
CREATE TABLE events (
  number  INTEGER PRIMARY KEY AUTOINCREMENT,
  key     TEXT NOT NULL UNIQUE,
  name    TEXT NOT NULL,
  account TEXT NOT NULL,
  body    BLOB NOT NULL    -- the CloudEvent, as it is signed
) STRICT;
CREATE TABLE receivers (
  name       TEXT PRIMARY KEY,
  address    TEXT NOT NULL,          -- a hash: another one has not failed yet
  is_gone    INTEGER NOT NULL DEFAULT 0,
  told       INTEGER NOT NULL DEFAULT 0,
  lost       INTEGER NOT NULL DEFAULT 0,
  lost_told  INTEGER NOT NULL DEFAULT 0,
  failures   INTEGER NOT NULL DEFAULT 0,  -- in a row
  success_ms INTEGER,
  failure_ms INTEGER,
  failure    TEXT NOT NULL DEFAULT ''
) STRICT;
CREATE TABLE due (
  receiver TEXT NOT NULL,
  event    INTEGER NOT NULL,
  PRIMARY KEY (receiver, event)
) STRICT, WITHOUT ROWID;
CREATE INDEX due_event ON due (event);
"""
_DUE: Final = "SELECT count(*) FROM due WHERE receiver = ?"
_NOBODYS: Final = "DELETE FROM events WHERE number NOT IN (SELECT event FROM due)"


@dataclass(frozen=True, slots=True)
class Standing:
    """How it stands with a receiver.

    Attributes:
        name: What it is called.
        is_gone: Whether it has said that it wants nothing any more.
        waiting: How many events it is still to be told.
        told: How many it was told.
        lost: How many were let go before it was told; only ever more, as counters are.
        lost_told: How many of those it knows of: that they are lost, or the event all the same.
        failures: How many attempts have failed in a row.
        success_ms: When it was told something last; None: never.
        failure_ms: When an attempt failed last; None: never.
        failure: What that came to.
    """

    name: str
    is_gone: bool
    waiting: int
    told: int
    lost: int
    lost_told: int
    failures: int
    success_ms: int | None
    failure_ms: int | None
    failure: str


class Spool:
    """Keeps; raises OSError where the file cannot be used.

    Args:
        path: The file.
        source: What events say that they come from.
        most: How many events may wait for one receiver.
        say: Takes each line for the daemon's log.
    """

    def __init__(self, path: Path, *, source: str, most: int, say: Say) -> None:
        self._path, self._source, self._most, self._say = path, source, most, say
        self._lock = threading.Lock()
        self._retry_s = 0.0
        self._receivers: tuple[Receiver, ...] = ()
        try:
            self._file = _opened(path, say)
            self.id: str = self._file.execute("SELECT id FROM about").fetchone()[0]
        except sqlite3.Error as error:
            raise OSError(f"{path} cannot be used: {error}") from None
        self._db = self._file

    def close(self) -> None:
        """Closes the file."""
        with self._lock:
            if self._db is not self._file:
                self._return()
            self._db.close()
            self._file.close()

    def known(self) -> frozenset[str]:
        """The names of the receivers that are remembered."""
        with self._lock:
            return frozenset(row[0] for row in self._db.execute("SELECT name FROM receivers"))

    def receive(self, receivers: Iterable[Receiver]) -> None:
        """Says who the receivers are: others are forgotten, new ones are told what comes now."""
        self._receivers = tuple(receivers)
        names = json.dumps([one.name for one in self._receivers])
        others = "NOT IN (SELECT value FROM json_each(?))"

        def change(db: sqlite3.Connection) -> None:
            db.execute(f"DELETE FROM due WHERE receiver {others}", (names,))  # noqa: S608 -- a constant
            db.execute(f"DELETE FROM receivers WHERE name {others}", (names,))  # noqa: S608 -- as above
            db.execute(_NOBODYS)
            for one in self._receivers:
                db.execute(
                    "INSERT INTO receivers (name, address) VALUES (?1, ?2) ON CONFLICT (name)"
                    " DO UPDATE SET address = ?2, is_gone = 0, failures = 0, failure_ms = NULL,"
                    " failure = '' WHERE address != ?2",
                    (one.name, one.address),
                )

        self._change(change)

    def places(self) -> dict[str, Any]:
        """Source → the place that it was read up to."""
        with self._lock:
            self._try_to_return()
            rows = self._db.execute("SELECT source, place FROM places").fetchall()
        return {source: json.loads(place) for source, place in rows}

    def add(self, events: Iterable[Event], places: Mapping[str, Any]) -> None:
        """Keeps events for those who want them, and the places that they were read up to."""
        given = list(events)
        begun: list[str] = []

        def change(db: sqlite3.Connection) -> None:
            gone = {name for (name,) in db.execute("SELECT name FROM receivers WHERE is_gone")}
            for event in given:
                wanted = [
                    one.name
                    for one in self._receivers
                    if one.name not in gone and one.wants(event.name, event.account)
                ]
                if wanted:
                    self._insert(db, event, wanted)
            rows = [(source, json.dumps(place)) for source, place in places.items()]
            db.executemany("INSERT OR REPLACE INTO places VALUES (?, ?)", rows)
            begun[:] = self._trim(db) if given else ()

        self._change(change)
        for name in begun:
            text = (
                f"{name} has {self._most} events waiting, the most: from now on the oldest are lost"
            )
            self._say(text, level="error", event="notify", receiver=name)

    def _insert(self, db: sqlite3.Connection, event: Event, wanted: Iterable[str]) -> None:
        body = event.body(self._id_of(event.key), self._source)
        added = db.execute(
            "INSERT OR IGNORE INTO events (key, name, account, body) VALUES (?, ?, ?, ?)"
            " RETURNING number",
            (event.key, event.name, event.account, body),
        ).fetchall()
        rows = [(name, number) for (number,) in added for name in wanted]
        db.executemany("INSERT INTO due VALUES (?, ?)", rows)

    def _trim(self, db: sqlite3.Connection) -> list[str]:
        """Lets go of the oldest events of those who have too many.

        Returns for whom that is the first loss, or the first since they were told of one.
        """
        begun = []
        for one in self._receivers:
            over = db.execute(_DUE, (one.name,)).fetchone()[0] - self._most
            if over > 0:
                db.execute(
                    "DELETE FROM due WHERE receiver = ?1 AND event IN"
                    " (SELECT event FROM due WHERE receiver = ?1 ORDER BY event LIMIT ?2)",
                    (one.name, over),
                )
                statement = (
                    "UPDATE receivers SET lost = lost + ? WHERE name = ? RETURNING lost - lost_told"
                )
                untold = db.execute(statement, (over, one.name)).fetchone()[0]
                begun += [one.name] if untold == over else []
        db.execute(_NOBODYS)
        return begun

    def waiting(self, event: Event) -> Waiting:
        """An event that is told at once and not kept."""
        event_id = self._id_of(event.key)
        return Waiting(0, event_id, event.name, event.account, event.body(event_id, self._source))

    def _id_of(self, key: str) -> str:
        return f"{self.id}-{key}"

    def next(self, receiver: str) -> Waiting | None:
        """The oldest event that a receiver has not been told."""
        query = (
            "SELECT number, key, name, account, body FROM due JOIN events"
            " ON number = event WHERE receiver = ? ORDER BY event LIMIT 1"
        )
        with self._lock:
            row = self._db.execute(query, (receiver,)).fetchone()
        return row and Waiting(row[0], self._id_of(row[1]), *row[2:])

    def told(self, receiver: str, number: int) -> None:
        """Notes that a receiver was told of an event."""

        def change(db: sqlite3.Connection) -> None:
            count = "told = told + 1, failures = 0, success_ms = ?"
            if number and not self._drop(db, receiver, number):
                count += ", lost_told = min(lost_told + 1, lost)"  # let go while it was told
            db.execute(f"UPDATE receivers SET {count} WHERE name = ?", (_now_ms(), receiver))  # noqa: S608 -- constants

        self._change(change)

    def knows_of_lost(self, receiver: str, count: int) -> None:
        """Notes of how many lost events a receiver knows."""
        statement = "UPDATE receivers SET lost_told = ? WHERE name = ?"
        self._change(lambda db: db.execute(statement, (count, receiver)))

    def failed(self, receiver: str, why: str, *, lose: int = 0) -> None:
        """Notes that an attempt has failed; `lose` names an event that is not tried again."""

        def change(db: sqlite3.Connection) -> None:
            if lose and self._drop(db, receiver, lose):
                db.execute("UPDATE receivers SET lost = lost + 1 WHERE name = ?", (receiver,))
            db.execute(
                "UPDATE receivers SET failures = failures + 1, failure_ms = ?, failure = ?"
                " WHERE name = ?",
                (_now_ms(), why[:_FAILURE_CHARACTERS_MAX], receiver),
            )

        self._change(change)

    def end(self, receiver: str) -> int:
        """Notes that a receiver wants nothing any more; how many events waited, and are lost."""
        count = 0

        def change(db: sqlite3.Connection) -> None:
            nonlocal count
            count = db.execute("DELETE FROM due WHERE receiver = ?", (receiver,)).rowcount
            statement = "UPDATE receivers SET is_gone = 1, lost = lost + ?, lost_told = lost + ?"
            db.execute(f"{statement} WHERE name = ?", (count, count, receiver))
            db.execute(_NOBODYS)

        self._change(change)
        return count

    def _drop(self, db: sqlite3.Connection, receiver: str, number: int) -> bool:
        """Takes an event out of a backlog; whether it was there."""
        mine = "DELETE FROM due WHERE receiver = ? AND event = ?"
        dropped = db.execute(mine, (receiver, number)).rowcount
        nobodys = "number = ?1 AND NOT EXISTS (SELECT 1 FROM due WHERE event = ?1)"
        db.execute(f"DELETE FROM events WHERE {nobodys}", (number,))  # noqa: S608 -- a constant
        return bool(dropped)

    def standing(self, receiver: str) -> Standing | None:
        """How it stands with a receiver; None: it is not received yet."""
        with self._lock:
            return next((one for one in _standings(self._db) if one.name == receiver), None)

    def standings(self) -> list[Standing]:
        """How it stands with all receivers."""
        with self._lock:
            return _standings(self._db)

    def _change(self, change: Callable[[sqlite3.Connection], object]) -> None:
        """Makes a change in one transaction, in the file if it can be, else in memory."""
        with self._lock:
            self._try_to_return()
            try:
                _transact(self._db, change)
            except sqlite3.OperationalError as error:
                if self._db is not self._file:
                    raise
                self._leave(error)
                _transact(self._db, change)

    def _leave(self, error: sqlite3.Error) -> None:
        """Goes on in memory."""
        memory = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        self._file.backup(memory)
        self._db, self._retry_s = memory, time.monotonic() + _RETRY_S
        text = f"{self._path} cannot be written, notifications go on in memory: {error}"
        self._say(text, level="error", event="notify")

    def _try_to_return(self) -> None:
        """Every now and then sees whether the file can be written again."""
        if self._db is not self._file and time.monotonic() >= self._retry_s:
            self._return()

    def _return(self) -> None:
        """Writes what is in memory into the file, if that works again."""
        try:
            self._db.backup(self._file)
        except sqlite3.Error:
            self._retry_s = time.monotonic() + _RETRY_S
            return
        self._db.close()
        self._db = self._file
        self._say(f"{self._path} is written again", event="notify")


def standings(path: Path) -> list[Standing]:
    """How it stands with all receivers, read beside a running sidecar. Raises OSError."""
    read_only = f"{path.absolute().as_uri()}?mode=ro"
    try:
        with contextlib.closing(sqlite3.connect(read_only, uri=True, timeout=_BUSY_S)) as db:
            _check_version(db, path)
            return _standings(db)
    except sqlite3.Error as error:
        raise OSError(f"{path} cannot be read: {error}") from None


def _standings(db: sqlite3.Connection) -> list[Standing]:
    rows = db.execute(
        "SELECT name, is_gone, (SELECT count(*) FROM due WHERE receiver = name), told, lost,"
        " lost_told, failures, success_ms, failure_ms, failure FROM receivers ORDER BY name"
    )
    return [Standing(row[0], bool(row[1]), *row[2:]) for row in rows]


def _opened(path: Path, say: Say) -> sqlite3.Connection:
    """Opens the file; one that is damaged is put aside, for budgets are held without it."""
    try:
        return _connected(path)
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError):  # it is not the file's content
            raise
        aside = path.with_name(f"{path.name}.damaged-{_now_ms()}")
        path.rename(aside)
        for suffix in ("-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        text = f"{path} is damaged ({error}), and now {aside}: what waited in it is not told"
        say(text, level="error", event="notify")
        return _connected(path)


def _connected(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None, timeout=_BUSY_S, check_same_thread=False)
    try:
        version = _check_version(db, path)
        path.chmod(0o600)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        if version < VERSION:
            db.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {VERSION}; COMMIT")
        if (found := db.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
            raise sqlite3.DatabaseError(found)  # noqa: TRY301 -- as SQLite's own
        db.execute("INSERT OR IGNORE INTO about VALUES (1, ?)", (secrets.token_hex(4),))
    except BaseException:
        db.close()
        raise
    return db


def _check_version(db: sqlite3.Connection, path: Path) -> int:
    version: int = db.execute("PRAGMA user_version").fetchone()[0]
    if version > VERSION:
        raise OSError(f"{path} has version {version}: use the release that wrote it")
    return version


def _transact(db: sqlite3.Connection, change: Callable[[sqlite3.Connection], object]) -> None:
    db.execute("BEGIN IMMEDIATE")
    try:
        change(db)
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
