"""Text for a terminal: amounts at a glance, bars, states, and the columns that there is room for.

Pure. Colour is never the only sign: every state is a word, every part of a bar has a shape.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from types import MappingProxyType
from typing import Final

from rich.cells import cell_len, set_cell_size

from bursar.cli._output import COUNTS, safe, share
from bursar.cli.top._tree import STATES, Pace, Row, state
from bursar.models import Account, Balance, Threshold
from bursar.units import (
    CAPACITY_UNITS,
    format_amount,
    parse_amount,
    show_amount,
    show_duration,
)

SPENT: Final = "\N{FULL BLOCK}"
HELD: Final = "\N{MEDIUM SHADE}"
FREE: Final = "\N{MIDDLE DOT}"
MARK: Final = "\N{BOX DRAWINGS LIGHT VERTICAL}"
_OPENED: Final = "\N{BLACK DOWN-POINTING SMALL TRIANGLE} "
_CLOSED: Final = "\N{BLACK RIGHT-POINTING SMALL TRIANGLE} "
_LEAF: Final = "  "
_ELLIPSIS: Final = "\N{HORIZONTAL ELLIPSIS}"

Piece = tuple[str, str]
"""Text, and what it is: its style's name; empty: plain."""

_SHORT_UNITS: Final = {
    "usd_nanos": "usd",
    "gpu_ms": "gpu",
    "vram_bytes": "vram",
    "energy_mj": "energy",
    "vram_mib_s": "vram-time",
}
_SUFFIXES: Final = MappingProxyType({"T": 10**12, "G": 10**9, "M": 10**6, "k": 10**3})
_DECIMAL: Final = re.compile(r"\d+(\.\d+)?")
_GROUPED_BELOW: Final = 100_000
_NANOS: Final = 10**9
_DAY_S: Final = 86_400
_DAYS_MAX: Final = 99


def amount(unit: str, value: int) -> str:
    """An amount in some eight cells, rounded down where it is long: ``1.23M``, ``$12.34``."""
    if unit == "usd_nanos":
        sign, nanos = ("-" if value < 0 else ""), abs(value)
        if 0 < nanos < _NANOS:
            return f"{sign}${nanos // 10**5 / 10**4:.4f}" if nanos >= 10**5 else f"{sign}<$0.0001"
        if nanos < _GROUPED_BELOW * _NANOS:
            return f"{sign}${nanos // 10**7 / 100:,.2f}"
        return f"{sign}${_scaled(nanos // _NANOS)}"
    if unit in COUNTS:
        return f"{'-' if value < 0 else ''}{_scaled(abs(value))}"
    return signed(unit, value)


def signed(unit: str, value: int) -> str:
    """An amount as `show_amount` shows it, also below zero."""
    return show_amount(unit, value) if value >= 0 else f"-{show_amount(unit, -value)}"


def exact(unit: str, value: int) -> str:
    """A limit as a person reads it, and to the last digit where that says more."""
    shown, digits = show_amount(unit, value), format_amount(unit, value)
    return shown if shown == digits else f"{shown} ({digits})"


def read_amount(unit: str, text: str) -> int:
    """Reads an amount as `parse_amount` does, and counts as they are shown here: ``2.5M``."""
    number, suffix = text.strip()[:-1], text.strip()[-1:]
    if unit in COUNTS and suffix in _SUFFIXES and _DECIMAL.fullmatch(number):
        return parse_amount(unit, f"{Decimal(number) * _SUFFIXES[suffix]:f}")
    return parse_amount(unit, text)


def _scaled(value: int) -> str:
    if value < _GROUPED_BELOW:
        return f"{value:,}"
    for suffix, factor in _SUFFIXES.items():
        if value >= factor:
            hundredths = value * 100 // factor
            decimals = 2 if hundredths < 10**3 else 1 if hundredths < 10**4 else 0
            kept = hundredths // 10 ** (2 - decimals) / 10**decimals
            return f"{kept:,.{decimals}f}{suffix}"
    return str(value)


def rate(unit: str, per_s: float | None) -> str:
    """A rate: by the second, or by the minute or hour where that would be less than one."""
    if per_s is None or unit in CAPACITY_UNITS:  # what comes back is not burnt
        return ""
    for word, seconds in (("s", 1), ("min", 60), ("h", 3600)):
        by_word = per_s * seconds
        least = 10**6 if unit == "usd_nanos" else 10
        if by_word >= least or word == "h":
            return f"{amount(unit, int(by_word))}/{word}" if by_word >= 1 else "idle"
    return ""


def ends(pace: Pace | None) -> str:
    """When a window will be empty, in a few cells."""
    if pace is None or (pace.rate_per_s is None and pace.ends_s is None):
        return ""
    if pace.ends_s is None:
        return "lasts"
    if pace.ends_s <= 0:
        return "empty"
    return short_duration(pace.ends_s)


def short_duration(seconds: float) -> str:
    """A duration in at most five cells, its largest part: ``45s``, ``12m``, ``3h``, ``12d``."""
    for suffix, length in (("d", _DAY_S), ("h", 3600), ("m", 60)):
        if seconds >= 2 * length:
            count = int(seconds // length)
            return f">{_DAYS_MAX}d" if suffix == "d" and count > _DAYS_MAX else f"{count}{suffix}"
    return f"{int(seconds)}s"


def of_what(balance: Balance) -> str:
    """The unit and the period: ``usd/day``."""
    unit = _SHORT_UNITS.get(balance.unit, balance.unit)
    period = balance.period.partition("@")[0]
    if period == "total":
        return unit
    if period.startswith("rolling:"):
        seconds = period.removeprefix("rolling:").rstrip("ms")
        whole = seconds.isdigit() and not period.endswith("ms")
        return f"{unit}/~{short_duration(int(seconds))}" if whole else f"{unit}/{period}"
    return f"{unit}/{period}"


def bar(balance: Balance, thresholds: Sequence[Threshold], width: int) -> list[Piece]:
    """What is spent, held and left of a limit, with a mark at each threshold.

    Rounded so that what there is, is seen: anything spent has a cell, and only what is all of the
    limit fills the bar.
    """
    spent = cells(balance.spent, balance.limit, width)
    taken = cells(balance.spent + balance.held, balance.limit, width)
    if balance.held > 0 and taken == spent:
        most = width if balance.spent + balance.held >= balance.limit else width - 1
        taken, spent = (taken + 1, spent) if taken < most else (taken, spent - 1)
    marks = {one.permille * width // 1000 for one in thresholds}
    pieces: list[Piece] = []
    for at in range(width):
        part = "spent" if at < spent else "held" if at < taken else "free"
        glyph = {"spent": SPENT, "held": HELD, "free": FREE}[part]
        if at in marks:
            glyph, part = MARK, f"{part}-mark"
        if pieces and pieces[-1][1] == part:
            pieces[-1] = (pieces[-1][0] + glyph, part)
        else:
            pieces.append((glyph, part))
    return pieces


def cells(part: int, whole: int, width: int) -> int:
    """How many cells a part has: one at least, and all only where it is the whole."""
    if part <= 0:
        return 0
    if part >= whole:
        return width
    return max(1, min(width - 1, part * width // whole))


def fit(text: str, width: int, *, right: bool = False) -> str:
    """Text in exactly so many cells, with an ellipsis where it is cut."""
    if cell_len(text) > width:
        return set_cell_size(text, max(0, width - 1)) + _ELLIPSIS if width > 0 else ""
    gap = " " * (width - cell_len(text))
    return gap + text if right else text + gap


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its heading, its width, and which way it leans."""

    name: str
    width: int
    right: bool = False


_NAME_CELLS_MIN: Final = 10
_WIDE: Final = 110
_WIDER: Final = 150


def columns(width: int) -> list[Column]:
    """What there is room for; the first column takes what the others leave."""
    bar_width = 12 if width < _WIDE else 20 if width < _WIDER else 36
    rest = [
        Column("state", 8),
        Column("budget", bar_width),
        Column("used", 5, right=True),
        Column("spent/limit", 15 if width < _WIDE else 19, right=True),
        Column("of", 11 if width < _WIDE else 16),
    ]
    if width >= _WIDE:
        rest.append(Column("burns", 12, right=True))
    rest.append(Column("ends", 5, right=True))
    if width >= _WIDE:
        rest.append(Column("open", 5, right=True))
    while rest and width - sum(one.width + 1 for one in rest) < _NAME_CELLS_MIN:
        rest.pop()  # a terminal this narrow still shows names and states
    name = width - sum(one.width + 1 for one in rest)
    return [Column("account", max(1, name)), *rest]


def heading(shown: Sequence[Column]) -> str:
    """The line above the rows."""
    return " ".join(fit(one.name.upper(), one.width, right=one.right) for one in shown)


def line(
    row: Row,
    account: Account,
    balance: Balance | None,
    *,
    pace: Pace | None,
    thresholds: Sequence[Threshold],
    shown: Sequence[Column],
    worst: str = "",
) -> list[Piece]:
    """One row of the tree, as wide as its columns; `worst` is the worst state of what it hides."""
    marker = (_OPENED if row.expanded else _CLOSED) if row.parent else _LEAF
    name = f" {'  ' * row.depth}{marker}{safe(row.name)}"  # the first cell is for the cursor
    word = state(account)
    kind = STATES[word]
    shown_as: dict[str, Piece] = {"account": (name, ""), "state": (word, kind)}
    if worst not in {"", word}:
        shown_as["state"] = (f"{worst}\N{DOWNWARDS ARROW}", STATES[worst])
    shown_as["open"] = (f"{account.open_reservation_count:,}", "muted")
    if balance is not None:
        limit = amount(balance.unit, balance.limit)
        shown_as["used"] = (share(balance.spent + balance.held, balance.limit), kind)
        taken = balance.held if balance.unit in CAPACITY_UNITS else balance.spent
        shown_as["spent/limit"] = (f"{amount(balance.unit, taken)}/{limit}", "")
        shown_as["of"] = (of_what(balance), "muted")
        shown_as["burns"] = (rate(balance.unit, pace.rate_per_s if pace else None), "")
        soon = "stop" if pace and pace.ends_s is not None else "muted"
        shown_as["ends"] = ("" if balance.unit in CAPACITY_UNITS else ends(pace), soon)
    pieces: list[Piece] = []
    for column in shown:
        if pieces:
            pieces.append((" ", ""))
        if column.name == "budget":
            blank = [(" " * column.width, "")]
            pieces += bar(balance, thresholds, column.width) if balance else blank
            continue
        text, style = shown_as.get(column.name, ("", ""))
        pieces.append((fit(text, column.width, right=column.right), style))
    return pieces


def show_seconds(seconds: float) -> str:
    """A duration for a sentence: ``2 min 5 s``."""
    return show_duration(int(seconds) * 1000) if seconds >= 1 else "less than 1 s"
