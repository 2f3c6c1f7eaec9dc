"""The doctor's look at clocks: calendar windows follow the wall clock, and it never steps back."""

import contextlib
import sqlite3
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final

from bursar.care.findings import Finding, Outcome, Subject

__all__ = ["time_zones", "wall_clock"]

_NOTICED_MS: Final = 5_000
_GRAVE_MS: Final = 3_600_000
_FIRST_MS: Final = 1_767_225_600_000  # 2026-01-01: before it, there was no Bursar
_LONG_MS: Final = 366 * 86_400_000


def wall_clock(subject: Subject) -> Iterator[Finding]:
    """Whether the clock is behind, or far ahead of, what the store has recorded."""
    now_ms = time.time_ns() // 1_000_000
    now = _show(now_ms)
    if now_ms < _FIRST_MS:
        advice = "set it, and keep it by NTP"
        yield Finding("clock", Outcome.BROKEN, f"it says {now}, and was never set", advice)
        return
    database = subject.database
    last_ms = database["last_time_ms"] if database else 0
    behind_ms = last_ms - now_ms
    if behind_ms > _NOTICED_MS:
        behind = f"{behind_ms // 1000:,} s before what the store has recorded"
        detail = f"it says {now}, {behind}: until then no window ends"
        outcome = Outcome.BROKEN if behind_ms > _GRAVE_MS else Outcome.WARN
        advice = "set the clock right; if it was wrong before, wait, or restore a backup of before"
        yield Finding("clock", outcome, detail, advice)
    elif last_ms and -behind_ms > _LONG_MS:
        detail = f"it says {now}, and the store was last written {_show(last_ms)}"
        advice = "see whether the clock is right before the sidecar starts: what it records stays"
        yield Finding("clock", Outcome.WARN, detail, advice)
    else:
        yield Finding("clock", Outcome.OK, f"{now}, not before what the store has recorded")


def time_zones(subject: Subject) -> Iterator[Finding]:
    """Whether the time zones of all budgets are known."""
    from bursar import _core

    names = set()
    if subject.config is not None:
        budgets = [budget for one in subject.config.accounts for budget in one.budgets]
        names |= {one.period.partition("@")[2] for one in budgets}
    if subject.store is not None and subject.database is not None:
        read_only = f"{subject.store.absolute().as_uri()}?mode=ro"
        with (
            contextlib.suppress(sqlite3.Error),  # `tables` says what is wrong with it
            contextlib.closing(sqlite3.connect(read_only, uri=True)) as db,
        ):
            db.text_factory = lambda raw: raw.decode("utf-8", "replace")
            rows = db.execute("SELECT DISTINCT time_zone FROM budgets")
            names |= {name for (name,) in rows}
    unknown = sorted(name for name in names if name and not _core.check_time_zone(name))
    if unknown:
        detail = f"not known: {', '.join(unknown)}"
        advice = "use the release that knows them: the sidecar does not start with them"
        yield Finding("time zones", Outcome.BROKEN, detail, advice)
    else:
        yield Finding("time zones", Outcome.OK, "all that budgets name are known")


def _show(time_ms: int) -> str:
    try:
        return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (ValueError, OverflowError, OSError):  # a flipped bit takes it out of all calendars
        return f"{time_ms:,} ms after 1970"
