"""What the watchdog has to remember over a crash: jobs, incidents, and its own holds in the ledger.

One SQLite file beside the ledger's. A row is written before what it announces is done: an intent
before its signal. It holds no amounts: those are the ledger's. Used from one thread.

A write that fails, as on a full disk, ends nothing: `failure` says why, and that row and those that
come after it are kept here until `retry` can write them. What to do meanwhile is for those to
decide whose rows they are: `has` says whether an intent is in the file.
"""

import contextlib
import dataclasses
import heapq
import json
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any, Final

from google.protobuf.message import DecodeError

from bursar.v1 import process_pb2 as pb
from bursar.watchdog.escalation import Phase, Standing
from bursar.watchdog.jobs import Kept

__all__ = ["Case", "Hold", "Journal"]

INCIDENTS_MAX: Final = 100_000
"""The most incidents that are remembered; the oldest that are over go first."""
OWED_MAX: Final = 4096
"""The most rows that wait to be written; the oldest go first, and a restart does without them."""
PAGE_BYTES_MAX: Final = 2 << 20
"""The most that incidents read at once may come to: gRPC's clients take 4 MiB."""

VERSION: Final = 1
"""Of the file, which is the first; a later one is refused."""

_RECENT_MAX: Final = 10_000
_BUSY_S: Final = 0.25  # who has locked the file is not waited for longer: the row is kept

_UNREADABLE: Final = (DecodeError, ValueError, KeyError, TypeError, AttributeError, RecursionError)
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS jobs (
  id    TEXT PRIMARY KEY,
  body  BLOB NOT NULL,       -- bursar.v1.Job
  extra TEXT NOT NULL        -- what identifies its process, as JSON
) STRICT;
CREATE TABLE IF NOT EXISTS incidents (
  number  INTEGER PRIMARY KEY AUTOINCREMENT,
  account TEXT NOT NULL,
  job     TEXT NOT NULL,
  final   INTEGER NOT NULL,  -- 1: it never changes again
  body    BLOB NOT NULL,     -- bursar.v1.Incident
  extra   TEXT NOT NULL      -- where the escalation stands, as JSON
) STRICT;
CREATE INDEX IF NOT EXISTS incidents_open ON incidents (number) WHERE final = 0;
CREATE INDEX IF NOT EXISTS incidents_account ON incidents (account, number);
CREATE TABLE IF NOT EXISTS holds (
  reservation TEXT PRIMARY KEY,
  account     TEXT NOT NULL,
  unit        TEXT NOT NULL  -- vram_bytes, or empty: what is metered
) STRICT;
"""


@dataclass(slots=True)
class Case:
    """An incident and what is needed to go on with it.

    Attributes:
        number: Its number in the journal; 0: not written yet.
        incident: As callers see it.
        standing: Where the escalation stands.
        boot: The boot that its processes belong to.
        opened_ms: When it was opened, by CLOCK_BOOTTIME.
        victims: The processes that were to be stopped, by pid and start time.
        killed: Those that SIGKILL was sent to.
        bytes_by_device: Device uuid → pid → bytes, when the intent was recorded.
        froze: Whether the account is frozen for it, unless somebody else has frozen it.
        forbidden: Why nobody is signalled for it, as was found when it was opened.
    """

    incident: pb.Incident
    standing: Standing
    boot: str
    opened_ms: int = 0
    number: int = 0
    victims: set[tuple[int, int]] = field(default_factory=set)
    killed: set[tuple[int, int]] = field(default_factory=set)
    bytes_by_device: dict[str, dict[int, int]] = field(default_factory=dict)
    froze: bool = False
    forbidden: str = ""


@dataclass(frozen=True, slots=True)
class Hold:
    """A reservation of the watchdog's own: of memory, or of what is metered (unit empty)."""

    reservation: str
    account: str
    unit: str


class Journal:
    """Remembers; raises OSError where it cannot be opened.

    Args:
        path: The file; None: nothing outlives this process.
    """

    def __init__(self, path: str | Path | None) -> None:
        self.unreadable: list[str] = []
        """The rows that could not be read, and why."""
        self.failure = ""
        """Why the latest write failed; empty: everything is in the file."""
        self._owed: dict[tuple[str, str | int], tuple[str, tuple[Any, ...]]] = {}
        try:
            version = 0 if path is None else written_by(Path(path))
            if version > VERSION:
                raise OSError(f"{path} has version {version}: use the release that wrote it")
            self._db = sqlite3.connect(path or ":memory:", isolation_level=None, timeout=_BUSY_S)
            # What is damaged is a row that cannot be read, and not the end of all reading.
            self._db.text_factory = lambda raw: raw.decode("utf-8", "replace")
            if path is not None:
                Path(path).chmod(0o600)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")
            if version < VERSION:
                self._db.executescript(_SCHEMA)
                self._db.execute(f"PRAGMA user_version = {VERSION}")
            last = self._db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'incidents'")
            self._last_number: int = (last.fetchone() or [0])[0]
        except sqlite3.Error as error:
            raise OSError(f"{path} cannot be used: {error}") from None

    def close(self) -> None:
        """Closes the file."""
        self._db.close()

    def retry(self) -> None:
        """Writes what could not be written before, as far as it can be now."""
        try:
            for key, (statement, row) in list(self._owed.items()):
                self._db.execute(statement, row)
                del self._owed[key]
        except sqlite3.Error as error:
            self.failure = str(error)
        else:
            self.failure = ""

    def _write(self, table: str, key: str | int, statement: str, row: tuple[Any, ...]) -> None:
        """Writes a row, or keeps it: of each, only the latest."""
        self._owed.pop((table, key), None)
        self._owed[table, key] = statement, row
        if not self.failure:
            self.retry()
        while len(self._owed) > OWED_MAX:
            del self._owed[next(iter(self._owed))]

    def save_job(self, kept: Kept) -> None:
        """Writes a job."""
        extra = {
            "start_ticks": kept.start_ticks,
            "cgroup_inode": kept.cgroup_inode,
            "own_account": kept.own_account,
            "reservation": kept.reservation,
            "start_boot_ms": kept.start_boot_ms,
            "boot": kept.boot,
            "found": sorted(kept.found),
        }
        row = (kept.job.id, kept.job.SerializeToString(), json.dumps(extra))
        self._write("jobs", kept.job.id, "INSERT OR REPLACE INTO jobs VALUES (?, ?, ?)", row)

    def delete_job(self, job_id: str) -> None:
        """Forgets a job."""
        self._write("jobs", job_id, "DELETE FROM jobs WHERE id = ?", (job_id,))

    def jobs(self) -> Iterator[Kept]:
        """Yields the jobs that had not ended; a row that cannot be read is told of and left."""
        for row_id, body, text in self._db.execute("SELECT id, body, extra FROM jobs").fetchall():
            try:
                extra = json.loads(text)
                extra["found"] = {(pid, start) for pid, start in extra.get("found", ())}
                yield Kept(job=pb.Job.FromString(body), **extra)
            except _UNREADABLE as error:
                self.unreadable.append(f"job {row_id}: {error!r}")

    def save_case(self, case: Case) -> None:
        """Writes an incident; a new one gets its number and its id."""
        if not case.number:
            self._last_number += 1
            case.number = self._last_number
            case.incident.id = f"i{case.number}"
            statement = "DELETE FROM incidents WHERE number <= ? AND final = 1"
            self._write("incidents", "oldest", statement, (case.number - INCIDENTS_MAX,))
        standing = dataclasses.asdict(case.standing) | {"phase": case.standing.phase.value}
        extra = {
            "standing": standing,
            "boot": case.boot,
            "opened_ms": case.opened_ms,
            "victims": sorted(case.victims),
            "killed": sorted(case.killed),
            "bytes_by_device": case.bytes_by_device,
            "froze": case.froze,
            "forbidden": case.forbidden,
        }
        row = (
            case.number,
            case.incident.account,
            case.incident.job,
            case.standing.phase.is_final,
            case.incident.SerializeToString(),
            json.dumps(extra),
        )
        statement = "INSERT OR REPLACE INTO incidents VALUES (?, ?, ?, ?, ?, ?)"
        self._write("incidents", case.number, statement, row)

    def has(self, case: Case) -> bool:
        """Whether an incident is in the file, so that a restart goes on with it."""
        try:
            found = self._db.execute("SELECT 1 FROM incidents WHERE number = ?", (case.number,))
            return found.fetchone() is not None
        except sqlite3.Error:
            return False

    def open_cases(self) -> Iterator[Case]:
        """Yields the incidents that may still change; what cannot be read is told of and left."""
        rows = self._db.execute("SELECT number, body, extra FROM incidents WHERE final = 0")
        for number, body, text in rows.fetchall():
            try:
                yield _case(number, body, text)
            except _UNREADABLE as error:
                self.unreadable.append(f"incident i{number}: {error!r}")

    def recent(self, boot: str, since_ms: int) -> Iterator[Case]:
        """Yields the incidents that were opened in this boot since then, the latest first."""
        rows = self._db.execute(
            "SELECT number, body, extra FROM incidents ORDER BY number DESC LIMIT ?",
            (_RECENT_MAX,),
        )
        for row in rows:
            try:
                case = _case(*row)
            except _UNREADABLE:  # `open_cases` tells of it, if it matters
                continue
            if case.boot != boot or case.opened_ms <= since_ms:
                return
            yield case

    def incidents(
        self, account: str, job: str, before: int | None, count: int
    ) -> tuple[list[pb.Incident], int]:
        """Reads incidents, the latest first; also those that could not be written yet.

        Args:
            account: Only this account and those below it; empty: all.
            job: Only this job; empty: all.
            before: Only those with a smaller number.
            count: At most so many; fewer where they come to more than `PAGE_BYTES_MAX`.

        Returns:
            The incidents, and the number of the last where there are more; else 0.
        """
        owed = {
            row[0]: row
            for (table, _), (_, row) in self._owed.items()
            if table == "incidents" and len(row) > 1
        }
        waiting = (
            (number, row[4])
            for number, row in sorted(owed.items(), reverse=True)
            if number < (before or 2**62)
            and f"{row[1]}/".startswith(f"{account}/" if account else "")
            and job in {"", row[2]}
        )
        page: list[pb.Incident] = []
        last = size = 0
        with contextlib.closing(self._select(account, job, before or 2**62)) as cursor:
            written = (row for row in cursor if row[0] not in owed)
            for number, body in heapq.merge(written, waiting, key=itemgetter(0), reverse=True):
                size += len(body)
                if len(page) == count or (page and size > PAGE_BYTES_MAX):
                    return page, last
                with contextlib.suppress(DecodeError):  # `open_cases` tells of it, if it matters
                    page.append(pb.Incident.FromString(body))
                last = number
        return page, 0

    def _select(self, account: str, job: str, before: int) -> sqlite3.Cursor:
        return self._db.execute(
            "SELECT number, body FROM incidents WHERE number < ?"
            " AND (? = '' OR account = ? OR (account > ? || '/' AND account < ? || '0'))"
            " AND (? = '' OR job = ?) ORDER BY number DESC",
            (before, account, account, account, account, job, job),
        )

    def add_hold(self, hold: Hold) -> None:
        """Remembers a reservation."""
        row = (hold.reservation, hold.account, hold.unit)
        statement = "INSERT OR REPLACE INTO holds VALUES (?, ?, ?)"
        self._write("holds", hold.reservation, statement, row)

    def drop_hold(self, reservation: str) -> None:
        """Forgets a reservation that has ended."""
        statement = "DELETE FROM holds WHERE reservation = ?"
        self._write("holds", reservation, statement, (reservation,))

    def holds(self) -> list[Hold]:
        """The reservations that may be pending."""
        rows = self._db.execute("SELECT reservation, account, unit FROM holds").fetchall()
        return [Hold(*row) for row in rows]


def written_by(path: Path) -> int:
    """The version of a journal; 0: there is none yet. Changes nothing."""
    if not path.exists() or not path.stat().st_size:
        return 0
    read_only = f"{path.absolute().as_uri()}?mode=ro"
    with contextlib.closing(sqlite3.connect(read_only, uri=True, timeout=_BUSY_S)) as db:
        version: int = db.execute("PRAGMA user_version").fetchone()[0]
    return version


def _case(number: int, body: bytes, text: str) -> Case:
    extra = json.loads(text)
    standing = extra["standing"]
    return Case(
        number=number,
        incident=pb.Incident.FromString(body),
        standing=Standing(Phase(standing["phase"]), standing["since_ms"], standing["detail"]),
        boot=extra["boot"],
        opened_ms=extra.get("opened_ms", 0),
        victims={(pid, start) for pid, start in extra["victims"]},
        killed={(pid, start) for pid, start in extra["killed"]},
        bytes_by_device={
            uuid: {int(pid): size for pid, size in sizes.items()}
            for uuid, sizes in extra["bytes_by_device"].items()
        },
        froze=extra["froze"],
        forbidden=extra["forbidden"],
    )
