"""How things are shown: rich tables on a terminal, plain aligned text elsewhere, JSON on demand.

Text that agents and processes chose (models, reasons, labels, commands) never reaches a terminal
with control characters.
"""

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

import click

from bursar._log import Field, Level
from bursar.models import Balance, Budget, Period, Threshold, Verdict
from bursar.units import format_amount, show_amount, show_used

if TYPE_CHECKING:
    from rich.table import Table

_VERDICT_STYLES: Final = {
    "OK": "green",
    "WARN": "yellow",
    "DEGRADE": "dark_orange",
    "STOP": "bold red",
}

COUNTS: Final = frozenset({"tokens", "calls", "concurrency"})
"""Units whose amounts are shown as bare numbers."""

Cell = str
BALANCE_COLUMNS: Final = ("unit", "period", "limit", "spent", "held", "remaining", "used", "resets")
RIGHT_ALIGNED: Final = frozenset(
    {
        *("limit", "spent", "held", "remaining", "used", "amount", "open"),
        *("pid", "vram", "busy", "quarantined", "took"),
        *("waiting", "told", "lost"),
        *("quantile", "claimed", "unused", "cut", "saved", "degraded", "overshoot"),
        *("checked late", "refused", "falsely", "success", "good cut", "bad cut", "saved on bad"),
    }
)


def plain(value: object) -> Any:  # noqa: ANN401 -- what json.dumps takes
    """Turns models into what JSON can hold: enums by name or value, times in ISO 8601."""
    if isinstance(value, Enum):
        return value.name if isinstance(value, Verdict) else value.value
    if isinstance(value, Period):
        return str(value)
    if isinstance(value, datetime):
        return value.isoformat()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {one.name: getattr(value, one.name) for one in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    return [plain(one) for one in value] if isinstance(value, list | tuple) else value


def echo_json(value: object) -> None:
    """Writes a value as indented JSON."""
    click.echo(json.dumps(plain(value), indent=2))


def safe(text: str) -> str:
    """Replaces what could move a terminal's cursor or change its colours."""
    return "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in text)


def say(line: str, /, *, level: Level = "info", **fields: Field) -> None:  # noqa: ARG001 -- text has none
    """Says what happened in one line on stderr, whatever it was that somebody chose in it."""
    click.echo(f"bursar: {safe(line)}", err=True)


def echo_table(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
    """Writes a table: rich on a terminal, aligned text elsewhere; nothing but a word if empty."""
    if not rows:
        click.echo("nothing", err=True)
    elif sys.stdout.isatty():
        from rich.console import Console

        Console().print(rich_table(columns, rows))
    else:
        _plain_table(columns, [[safe(cell) for cell in row] for row in rows])


def _plain_table(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
    widths = [max(len(row[index]) for row in (columns, *rows)) for index in range(len(columns))]
    for row in (tuple(column.upper() for column in columns), *rows):
        cells = (
            cell.rjust(width) if column in RIGHT_ALIGNED else cell.ljust(width)
            for column, cell, width in zip(columns, row, widths, strict=True)
        )
        click.echo("  ".join(cells).rstrip())


def rich_table(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> "Table":
    """The table that a terminal shows."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in RIGHT_ALIGNED else "left")
    for row in rows:
        # Text, not str: brackets in a model's name are no markup.
        table.add_row(*(Text(safe(cell), style=_VERDICT_STYLES.get(cell, "")) for cell in row))
    return table


def balance_cells(balance: Balance) -> list[Cell]:
    """The cells of `BALANCE_COLUMNS`."""
    unit = balance.unit
    amounts = (balance.limit, balance.spent, balance.held, balance.remaining)
    shown = [format_amount(unit, amount) for amount in amounts]
    resets = balance.reset_time.isoformat(sep=" ", timespec="seconds") if balance.reset_time else ""
    return [
        unit,
        balance.period,
        *shown,
        share(balance.spent + balance.held, balance.limit),
        resets,
    ]


def share(part: int, whole: int) -> Cell:
    """A share of a limit in per cent, rounded down, so that 100 % means all of it."""
    return f"{part * 100 // whole}%" if whole > 0 else "-"


def show_thresholds(thresholds: Sequence[Threshold]) -> Cell:
    """Thresholds in a few words: ``warn at 80%, degrade at 90%``."""
    return ", ".join(f"{one.verdict.name.lower()} at {one.permille / 10:g}%" for one in thresholds)


def thresholds_of(budgets: Sequence[Budget], balance: Balance) -> Cell:
    """The thresholds of the budget that a balance belongs to."""
    for budget in budgets:
        if (budget.unit, str(budget.period)) == (balance.unit, balance.period):
            return show_thresholds(budget.thresholds)
    return ""


def show_bytes(value: int | None) -> Cell:
    """Bytes such as ``9.5 GiB``; what nobody told is no zero."""
    return "unknown" if value is None else show_amount("vram_bytes", value)


def used_of_limit(unit: str, used: int, limit: int) -> Cell:
    """What was used of what: ``9.5 GiB of 8 GiB``."""
    return " of ".join(show_used(unit, used, limit))


def show_time(moment: datetime | None) -> Cell:
    """A time in UTC to the second."""
    return moment.strftime("%Y-%m-%d %H:%M:%S") if moment else ""
