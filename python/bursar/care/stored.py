"""The doctor's look at what is kept: the store, its totals, the tokens and the journal.

Works on a store that is in use: nothing is written, and nobody waits for it.
"""

import contextlib
import json
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from bursar.care.files import unwritable
from bursar.care.findings import AS_ITS_USER, Finding, Outcome, Subject
from bursar.exceptions import BursarError
from bursar.watchdog import journal

__all__ = ["journal_file", "recovery", "tables", "token_file", "totals", "unread"]

RESTORE: Final = "move the store away and put the latest backup in its place: bursar restore"
_DECISIONS: Final = {
    "create": "make a new store",
    "start": "begin a new log",
    "import": "take over what the log has",
    "cut_then_import": "drop the record that was never finished, and take over the rest",
    "keep_database": "go on from the database without the log",
    "refuse": "be refused",
}
_SHOWN_MAX: Final = 5


def recovery(subject: Subject) -> Iterator[Finding]:
    """What opening the store would do."""
    report = subject.report or {}
    log = report["log"]
    if report["refusal"]:
        advice = f"do as it says; else {RESTORE}"
        yield Finding("recovery", Outcome.BROKEN, f"it is refused: {report['refusal']}", advice)
        return
    if report["case"] == "Fresh":
        yield Finding("recovery", Outcome.OK, "there is no store yet: the first start makes one")
        return
    if subject.in_use_by:
        detail = f"process {subject.in_use_by} has it open, and would survive a crash now"
        yield Finding("recovery", Outcome.OK, detail)
    else:
        detail = f"{report['case']}; opening it would {_DECISIONS[report['decision']]}"
        yield Finding("recovery", Outcome.OK, detail)
    spot = log["spot"]
    if spot and not subject.in_use_by:
        detail = f"{spot['reason']} in {spot['file']}, byte {spot['offset']}"
        advice = "nothing: it was never answered, and the next start drops it"
        yield Finding("log", Outcome.WARN, detail, advice)
    else:
        segments = len(log["segments"])
        counted = "1 segment" if segments == 1 else f"{segments} segments"
        yield Finding("log", Outcome.OK, f"{counted}, readable to the end")


def unread(store: Path, error: BursarError) -> Finding:
    """Why nothing can be said of a store: it is damaged, closed to this user, or on a full disk."""
    for path in (store, store.with_name(f"{store.name}-log")):
        try:
            os.close(os.open(path, os.O_RDONLY))
        except PermissionError as closed:
            detail = f"{path} cannot be looked at: {closed.strerror}"
            return Finding("recovery", Outcome.WARN, detail, AS_ITS_USER)
        except OSError:
            continue
    # Even to read a store that was closed, SQLite makes files beside it.
    full = store.parent.is_dir() and unwritable(store.parent)
    advice = "nothing is known of it yet: see `disk`, and look again after" if full else RESTORE
    return Finding("recovery", Outcome.BROKEN, str(error), advice)


def tables(subject: Subject) -> Iterator[Finding]:
    """Whether SQLite finds its file whole, and of which version it is."""
    database = subject.database
    if database is None:  # `recovery` says why
        return
    if damage := database["damage"]:
        yield Finding("database", Outcome.BROKEN, _some(damage), RESTORE)
        return
    counted = f"{database['entries']:,} entries, {database['holding']:,} reservations that hold"
    yield Finding("database", Outcome.OK, f"whole: {counted}")
    version = f"version {database['version']}"
    detail = f"{version}; the next start brings it up to date, and keeps a copy beside it"
    if database["version"] < database["newest_version"]:
        yield Finding("schema", Outcome.WARN, detail, "make a backup, then restart the sidecar")
    else:
        yield Finding("schema", Outcome.OK, f"{version}, the newest that this release knows")


def totals(subject: Subject) -> Iterator[Finding]:
    """Whether windows and reservations agree with the entries."""
    database = subject.database
    if database is None or database["damage"]:
        return
    advice = f"tell us of it, with a copy of the store; {RESTORE}"
    wrong = [
        f"window {one['window']} says {one['spent']} was spent, its entries say {one['entries']}"
        for one in database["mismatches"]
    ]
    if wrong:
        yield Finding("totals", Outcome.BROKEN, _some(wrong), advice)
    else:
        yield Finding("totals", Outcome.OK, "every window agrees with its entries")
    if database["odd_reservations"]:
        yield Finding("reservations", Outcome.BROKEN, _some(database["odd_reservations"]), advice)
    else:
        yield Finding("reservations", Outcome.OK, "each agrees with its entries")


def token_file(subject: Subject) -> Iterator[Finding]:
    """Whether the tokens can be read."""
    path = subject.beside(".tokens")
    advice = "the sidecar does not start with it: restore it, or move it away and make new tokens"
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
        version, count = read["version"], len(read["tokens"])
    except FileNotFoundError:
        yield Finding("tokens", Outcome.OK, "none were made")
        return
    except OSError as error:
        detail = f"{path} cannot be read: {error.strerror}"
        yield Finding("tokens", Outcome.WARN, detail, AS_ITS_USER)
        return
    except (ValueError, KeyError, TypeError) as error:
        yield Finding("tokens", Outcome.BROKEN, f"{path} cannot be understood: {error}", advice)
        return
    if version != 1:
        detail = f"{path} has version {version}"
        yield Finding("tokens", Outcome.BROKEN, detail, "use the release that wrote it")
    else:
        yield Finding("tokens", Outcome.OK, "1 token" if count == 1 else f"{count} tokens")


def journal_file(subject: Subject) -> Iterator[Finding]:
    """Whether the watchdog's journal can be read."""
    path = subject.beside(".watchdog")
    advice = "the watchdog does not start with it: restore it, or move it away"
    try:
        if path.exists():
            path.open("rb").close()  # SQLite would not say that it is the rights that it lacks
        version = journal.written_by(path)
        if not version:
            yield Finding("journal", Outcome.OK, "none yet")
            return
        with contextlib.closing(
            sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
        ) as db:
            [damage] = db.execute("PRAGMA integrity_check(1)").fetchone()
    except PermissionError as error:
        detail = f"{path} cannot be read: {error.strerror}"
        yield Finding("journal", Outcome.WARN, detail, AS_ITS_USER)
        return
    except (OSError, sqlite3.Error) as error:
        yield Finding("journal", Outcome.BROKEN, f"{path} cannot be read: {error}", advice)
        return
    if version > journal.VERSION:
        detail = f"{path} has version {version}"
        yield Finding("journal", Outcome.BROKEN, detail, "use the release that wrote it")
    elif damage != "ok":
        yield Finding("journal", Outcome.BROKEN, f"{path} is damaged: {damage}", advice)
    else:
        yield Finding("journal", Outcome.OK, "whole")


def _some(lines: list[str]) -> str:
    more = len(lines) - _SHOWN_MAX
    return "; ".join(lines[:_SHOWN_MAX]) + (f"; and {more} more" if more > 0 else "")
