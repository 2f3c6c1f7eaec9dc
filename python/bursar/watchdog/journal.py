"""What the watchdog has to remember over a crash: jobs, incidents, and its own holds in the ledger.

One SQLite file beside the ledger's. A row is written before what it announces is done: an intent
before its signal. It holds no amounts: those are the ledger's. Used from one thread.
"""

import dataclasses
import json
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from google.protobuf.message import DecodeError

from bursar.v1 import process_pb2 as pb
from bursar.watchdog.escalation import Phase, Standing
from bursar.watchdog.jobs import Kept

__all__ = ["Case", "Hold", "Journal"]

INCIDENTS_MAX: Final = 100_000
"""The most incidents that are remembered; the oldest that are over go first."""

_UNREADABLE: Final = (DecodeError, ValueError, KeyError, TypeError, AttributeError)
_VERSION: Final = 1
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
        victims: The processes that were to be stopped, by pid and start time.
        killed: Those that SIGKILL was sent to.
        bytes_by_device: Device uuid → pid → bytes, when the intent was recorded.
        froze: Whether the account is frozen for it, unless somebody else has frozen it.
        forbidden: Why nobody is signalled for it, as was found when it was opened.
    """

    incident: pb.Incident
    standing: Standing
    boot: str
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
        try:
            self._db = sqlite3.connect(path or ":memory:", isolation_level=None)
            if path is not None:
                Path(path).chmod(0o600)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            if version > _VERSION:
                raise OSError(f"{path} was written by a newer Bursar: version {version}")
            self._db.executescript(_SCHEMA)
            self._db.execute(f"PRAGMA user_version = {_VERSION}")
        except sqlite3.Error as error:
            raise OSError(f"{path} cannot be used: {error}") from None

    def close(self) -> None:
        """Closes the file."""
        self._db.close()

    def save_job(self, kept: Kept) -> None:
        """Writes a job."""
        extra = {
            "start_ticks": kept.start_ticks,
            "cgroup_inode": kept.cgroup_inode,
            "own_account": kept.own_account,
            "reservation": kept.reservation,
            "start_boot_ms": kept.start_boot_ms,
            "boot": kept.boot,
        }
        row = (kept.job.id, kept.job.SerializeToString(), json.dumps(extra))
        self._db.execute("INSERT OR REPLACE INTO jobs VALUES (?, ?, ?)", row)

    def delete_job(self, job_id: str) -> None:
        """Forgets a job."""
        self._db.execute("DELETE FROM jobs WHERE id = ?", (job_id,))

    def jobs(self) -> Iterator[Kept]:
        """Yields the jobs that had not ended; a row that cannot be read is told of and left."""
        for row_id, body, text in self._db.execute("SELECT id, body, extra FROM jobs").fetchall():
            try:
                yield Kept(job=pb.Job.FromString(body), **json.loads(text))
            except _UNREADABLE as error:
                self.unreadable.append(f"job {row_id}: {error!r}")

    def save_case(self, case: Case) -> None:
        """Writes an incident; a new one gets its number and its id."""
        standing = dataclasses.asdict(case.standing) | {"phase": case.standing.phase.value}
        extra = {
            "standing": standing,
            "boot": case.boot,
            "victims": sorted(case.victims),
            "killed": sorted(case.killed),
            "bytes_by_device": case.bytes_by_device,
            "froze": case.froze,
            "forbidden": case.forbidden,
        }
        incident = case.incident
        if not case.number:
            cursor = self._db.execute(
                "INSERT INTO incidents (account, job, final, body, extra) VALUES (?, ?, 0, ?, ?)",
                (incident.account, incident.job, b"", "{}"),
            )
            case.number = cursor.lastrowid or 0
            incident.id = f"i{case.number}"
            self._prune(case.number)
        final = case.standing.phase.is_final
        row = (final, incident.SerializeToString(), json.dumps(extra), case.number)
        self._db.execute(
            "UPDATE incidents SET final = ?, body = ?, extra = ? WHERE number = ?", row
        )

    def _prune(self, number: int) -> None:
        self._db.execute(
            "DELETE FROM incidents WHERE number <= ? AND final = 1", (number - INCIDENTS_MAX,)
        )

    def open_cases(self) -> Iterator[Case]:
        """Yields the incidents that may still change; what cannot be read is told of and left."""
        rows = self._db.execute("SELECT number, body, extra FROM incidents WHERE final = 0")
        for number, body, text in rows.fetchall():
            if not body:  # cut off before the intent was whole: nothing was signalled
                self._db.execute("DELETE FROM incidents WHERE number = ?", (number,))
                continue
            try:
                yield _case(number, body, text)
            except _UNREADABLE as error:
                self.unreadable.append(f"incident i{number}: {error!r}")

    def incidents(
        self, account: str, job: str, before: int | None, count: int
    ) -> list[tuple[int, pb.Incident]]:
        """Reads incidents, the latest first, with their numbers.

        Args:
            account: Only this account and those below it; empty: all.
            job: Only this job; empty: all.
            before: Only those with a smaller number.
            count: At most so many.
        """
        rows = self._db.execute(
            "SELECT number, body FROM incidents WHERE number < ? AND body <> x''"
            " AND (? = '' OR account = ? OR (account > ? || '/' AND account < ? || '0'))"
            " AND (? = '' OR job = ?) ORDER BY number DESC LIMIT ?",
            (before or 2**62, account, account, account, account, job, job, count),
        )
        return [(number, pb.Incident.FromString(body)) for number, body in rows]

    def add_hold(self, hold: Hold) -> None:
        """Remembers a reservation."""
        row = (hold.reservation, hold.account, hold.unit)
        self._db.execute("INSERT OR REPLACE INTO holds VALUES (?, ?, ?)", row)

    def drop_hold(self, reservation: str) -> None:
        """Forgets a reservation that has ended."""
        self._db.execute("DELETE FROM holds WHERE reservation = ?", (reservation,))

    def holds(self) -> list[Hold]:
        """The reservations that may be pending."""
        rows = self._db.execute("SELECT reservation, account, unit FROM holds").fetchall()
        return [Hold(*row) for row in rows]


def _case(number: int, body: bytes, text: str) -> Case:
    extra = json.loads(text)
    standing = extra["standing"]
    return Case(
        number=number,
        incident=pb.Incident.FromString(body),
        standing=Standing(Phase(standing["phase"]), standing["since_ms"], standing["detail"]),
        boot=extra["boot"],
        victims={(pid, start) for pid, start in extra["victims"]},
        killed={(pid, start) for pid, start in extra["killed"]},
        bytes_by_device={
            uuid: {int(pid): size for pid, size in sizes.items()}
            for uuid, sizes in extra["bytes_by_device"].items()
        },
        froze=extra["froze"],
        forbidden=extra["forbidden"],
    )
