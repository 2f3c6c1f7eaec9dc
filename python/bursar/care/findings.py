"""What the doctor found: one thing, how it stands, and what to do."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from bursar.daemon.config import Config

__all__ = ["AS_ITS_USER", "Finding", "Outcome", "Subject"]

AS_ITS_USER: Final = "run this as the sidecar's user"


class Outcome(StrEnum):
    """How it stands."""

    OK = "ok"
    WARN = "warn"
    """It works, with a limit or a risk."""
    BROKEN = "broken"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        what: What it is.
        outcome: How it stands.
        detail: What was found.
        advice: What to do; empty: nothing.
    """

    what: str
    outcome: Outcome
    detail: str
    advice: str = ""


@dataclass(frozen=True, slots=True)
class Subject:
    """What is examined.

    Attributes:
        store: The store's SQLite file; None: the ledger is in memory, or none is looked at.
        config: The configuration; None: only a store is looked at.
        config_path: Its file.
        report: What the core finds of the store: it looks once for all checks.
    """

    store: Path | None = None
    config: "Config | None" = None
    config_path: Path | None = None
    report: dict[str, Any] | None = None

    @property
    def in_use_by(self) -> int | None:
        """The process that has the store open."""
        pid = (self.report or {}).get("in_use_by")
        return int(pid) if isinstance(pid, str) and pid.isdigit() else None

    @property
    def database(self) -> dict[str, Any] | None:
        """What the core finds of the store's database, where it can be read."""
        return (self.report or {}).get("database")

    def beside(self, end: str) -> Path:
        """A file that belongs to the store, by the end of its name."""
        if self.store is None:
            raise ValueError("there is no store")
        return self.store.with_name(self.store.name + end)
