"""`bursar log`: the entries, every money movement, from a sidecar or from a store at rest."""

import csv
import dataclasses
import io
import json
from collections import deque
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Final

import click

import bursar
from bursar._entry_calls import ENTRIES_PAGE_MAX
from bursar.cli._output import echo_table, plain
from bursar.cli._shared import Moment, connect, json_option, store_option, target_option
from bursar.models import Entry, EntryKind
from bursar.units import UNITS, format_amount

COLUMNS: Final = (
    "sequence",
    "time",
    "account",
    "kind",
    "amount",
    "unit",
    "reservation",
    "model",
    "detail",
)
_FIELDS: Final = tuple(field.name for field in dataclasses.fields(Entry))
_WITHOUT_AMOUNT: Final = frozenset(
    {
        *(EntryKind.FREEZE, EntryKind.UNFREEZE, EntryKind.OPERATED),
        *(EntryKind.SUCCESS, EntryKind.FAILURE),
    }
)
_CHUNK_ROWS: Final = 1_000


@click.command(short_help="Show every money movement.")
@click.argument("account", default="")
@click.option("--unit", default="", help="Only this unit.")
@click.option(
    "--kind",
    "kinds",
    multiple=True,
    type=click.Choice([kind.value for kind in EntryKind]),
    help="Only these kinds.",
)
@click.option("--since", type=Moment(), help='From this time on: "2026-05-01", or "2h" ago.')
@click.option("--until", type=Moment(), help="Before this time.")
@click.option("--reservation", default="", help="Only this reservation.")
@click.option(
    "--limit",
    type=click.IntRange(min=0),
    default=100,
    show_default=True,
    help="The newest so many; 0: all.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "csv", "json"]),
    default="table",
    show_default=True,
    help="CSV and JSON hold integers in base units.",
)
@json_option
@store_option
@target_option
def log(
    account: str,
    *,
    unit: str,
    kinds: tuple[str, ...],
    since: datetime | None,
    until: datetime | None,
    reservation: str,
    limit: int,
    form: str,
    as_json: bool,
    store: Path | None,
    target: str | None,
) -> None:
    """Show what happened: every hold, spend, return, limit and freeze, oldest first."""
    with bursar.open(store) if store else connect(target) as client:
        found = client.list_entries(
            account,
            reservation=reservation,
            unit=unit,
            kinds=kinds,
            start_time=since,
            end_time=until,
            page_size=ENTRIES_PAGE_MAX,
        )
        entries: Iterable[Entry] = deque(found, maxlen=limit) if limit else found
        form = "json" if as_json else form
        if form == "table":
            echo_table(COLUMNS, [cells(entry) for entry in entries])
            return
        for text in _csv(entries) if form == "csv" else _json(entries):
            click.echo(text, nl=False)


def cells(entry: Entry) -> list[str]:
    """The cells of `COLUMNS`."""
    time = entry.time.isoformat(sep=" ", timespec="milliseconds") if entry.time else ""
    return [
        str(entry.sequence),
        time.removesuffix("+00:00"),
        entry.account,
        entry.kind.value,
        _amount(entry),
        entry.unit,
        entry.reservation,
        entry.model,
        entry.detail,
    ]


def _amount(entry: Entry) -> str:
    if entry.kind is EntryKind.CROSSING:
        return f"{entry.amount / 10:g}%"
    if entry.kind in _WITHOUT_AMOUNT:
        return ""
    return format_amount(entry.unit, entry.amount) if entry.unit in UNITS else str(entry.amount)


def _csv(entries: Iterable[Entry]) -> Iterator[str]:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(_FIELDS)
    for count, entry in enumerate(entries, start=1):
        row = plain(entry)
        writer.writerow([row[name] for name in _FIELDS])
        if count % _CHUNK_ROWS == 0:
            yield buffer.getvalue()
            buffer.seek(0)
            buffer.truncate()
    yield buffer.getvalue()


def _json(entries: Iterable[Entry]) -> Iterator[str]:
    opening = "["
    for entry in entries:
        yield f"{opening}\n  {json.dumps(plain(entry))}"
        opening = ","
    yield "[]\n" if opening == "[" else "\n]\n"
