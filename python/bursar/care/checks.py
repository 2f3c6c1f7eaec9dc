"""Everything that the doctor looks at, as a table."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from bursar._errors import from_core
from bursar.care import clocks, files, host, running, stored
from bursar.care.findings import AS_ITS_USER, Finding, Outcome, Subject
from bursar.daemon.config import ConfigError, load_config
from bursar.exceptions import BursarError

__all__ = ["examine_config", "examine_store", "report_on"]

Check = Callable[[Subject], Iterator[Finding]]

OF_WHAT_IS_STORED: Final[tuple[Check, ...]] = (
    stored.recovery,
    stored.tables,
    stored.totals,
)
AROUND_A_STORE: Final[tuple[Check, ...]] = (
    stored.token_file,
    stored.journal_file,
    files.permissions,
    files.room,
    files.file_system,
    clocks.wall_clock,
    clocks.time_zones,
)
OF_A_SIDECAR: Final[tuple[Check, ...]] = (
    files.config_files,
    running.sockets,
    running.code,
    running.descriptors,
)


def report_on(store: Path) -> dict[str, Any]:
    """What the core finds of a store; changes nothing. Raises StoreUnavailable where it cannot."""
    from bursar import _core

    try:
        report: dict[str, Any] = json.loads(_core.check_store(str(store)))
    except _core.CoreError as raised:
        raise from_core(raised) from None
    return report


def examine_store(store: Path, report: dict[str, Any]) -> Iterator[Finding]:
    """Looks at a store, in use or not."""
    subject = Subject(store=store, report=report)
    for check in (*OF_WHAT_IS_STORED, *AROUND_A_STORE):
        yield from _found_by(check, subject)


def examine_config(path: Path) -> Iterator[Finding]:
    """Looks at a sidecar, running or not: its configuration, its store, its host."""
    try:
        config = load_config(path)
    except ConfigError as error:
        yield Finding("configuration", Outcome.BROKEN, str(error), "see `bursar check`")
        yield from host.look()
        return
    store = Path(config.store.path) if config.store.path else None
    report, failure = None, None
    if store is not None:
        try:
            report = report_on(store)
        except BursarError as error:
            failure = stored.unread(store, error)
    subject = Subject(store=store, config=config, config_path=path, report=report)
    for check in OF_A_SIDECAR:
        yield from _found_by(check, subject)
    if failure is not None:
        yield failure
    for check in OF_WHAT_IS_STORED if report is not None else ():
        yield from _found_by(check, subject)
    for check in AROUND_A_STORE if store is not None else ():
        yield from _found_by(check, subject)
    yield from host.look()


def _found_by(check: Check, subject: Subject) -> Iterator[Finding]:
    """What a check finds; where this user may not look, that."""
    try:
        yield from check(subject)
    except PermissionError as error:
        detail = f"{error.filename} cannot be looked at: {error.strerror}"
        yield Finding(check.__name__.replace("_", " "), Outcome.WARN, detail, AS_ITS_USER)
