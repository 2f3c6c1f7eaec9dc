"""What is shown beside the tree: the details of one account, and the lists. They only show."""

from collections.abc import Sequence
from datetime import datetime
from typing import ClassVar, Final

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.widgets import DataTable, Static

from bursar.cli import gpu, incidents, log
from bursar.cli._output import Cell, safe, share, show_thresholds, show_time
from bursar.cli.top import _draw as draw
from bursar.cli.top._accounts import thresholds_of
from bursar.cli.top._tree import AccountTree, Pace, state
from bursar.models import Account, Balance, Budget, Entry, Finding
from bursar.processes import Incident, Processes
from bursar.units import CAPACITY_UNITS, format_amount

_BAR_CELLS: Final = 24
ENTRY_COLUMNS: Final = ("time", "kind", "amount", "unit", "account", "model", "reservation")
INCIDENT_COLUMNS: Final = ("when", "account", "why", "state", "came back", "took", "job")


def detail(
    tree: AccountTree,
    account: Account,
    budgets: tuple[Budget, ...],
    *,
    now_s: float,
    now: datetime,
) -> Text:
    """Everything about one account."""
    text = Text().append(f"{safe(account.path)}  ", "bold").append(state(account), "reverse bold")
    count = account.open_reservation_count
    text.append(f"\n{count:,} open reservation{'' if count == 1 else 's'}\n")
    if account.freeze_reason:
        text.append(f"frozen: {safe(account.freeze_reason)}\n")
    for balance in account.balances:
        pace = tree.pace(balance, now_s, now)
        _add_balance(text, balance, pace, budgets, now)
    if not account.balances:
        text.append("no budget of its own\n")
    for path, balance in tree.tightest_above(account.path).items():
        used = share(balance.spent + balance.held, balance.limit)
        text.append(f"above: {safe(path)}  {draw.of_what(balance)}  {used} used\n", "dim")
    return text


def _add_balance(
    text: Text, balance: Balance, pace: Pace, budgets: tuple[Budget, ...], now: datetime
) -> None:
    unit, thresholds = balance.unit, thresholds_of(budgets, balance)
    text.append(f"\n{unit}/{balance.period}\n", "bold")
    bar = "".join(glyphs for glyphs, _ in draw.bar(balance, thresholds, _BAR_CELLS))
    used = share(balance.spent + balance.held, balance.limit)
    text.append(f"{bar} {used} used\n")
    shown = {name: format_amount(unit, getattr(balance, name)) for name in ("spent", "held")}
    left, limit = (format_amount(unit, one) for one in (balance.remaining, balance.limit))
    text.append(f"spent {shown['spent']} of {limit}\nheld {shown['held']}, left {left}\n")
    if unit not in CAPACITY_UNITS:
        text.append(f"{in_words(unit, pace, rolling=balance.period.startswith('rolling'))}\n")
    if balance.reset_time:
        resets = draw.show_seconds(max(0.0, (balance.reset_time - now).total_seconds()))
        text.append(f"resets in {resets} ({show_time(balance.reset_time)} UTC)\n")
    if thresholds:
        text.append(f"{show_thresholds(thresholds)}\n")


def in_words(unit: str, pace: Pace, *, rolling: bool) -> str:
    """How fast it is spent and when it ends, in a sentence."""
    if pace.ends_s == 0:
        return "nothing is left"
    if pace.rate_per_s is None:
        return "burns: too little seen yet"
    burns = draw.rate(unit, pace.rate_per_s)
    if burns == "idle":
        return "burns nothing now"
    if pace.ends_s is None:
        return f"burns {burns}: lasts"
    earliest = " at the earliest" if rolling else ""
    return f"burns {burns}: empty in {draw.show_seconds(pace.ends_s)}{earliest}"


class Table(DataTable[Text]):
    """A list of which the screen has the latest, and which a text narrows."""

    def __init__(self, columns: Sequence[str], *, name: str, nothing: str) -> None:
        super().__init__(id=name, cursor_type="row", zebra_stripes=False)
        self._names = columns
        self._nothing = nothing
        self._shown: object = None

    def show(self, rows: Sequence[Sequence[Cell]], narrow: str) -> None:
        """Shows the rows that contain the text, where they are others than before."""
        wanted = narrow.casefold()
        kept = [row for row in rows if not wanted or wanted in "  ".join(row).casefold()]
        if kept == self._shown:
            return
        self._shown = kept
        at = self.cursor_row
        self.clear(columns=True)  # their widths are those of what is shown, not of what once was
        self.add_columns(*(name.upper() for name in self._names if kept))
        for row in kept:
            self.add_row(*(Text(safe(cell)) for cell in row))
        if not kept:
            self.add_column(self._nothing)
        self.move_cursor(row=at)


def entry_rows(entries: Sequence[Entry]) -> list[list[Cell]]:
    """The rows of `ENTRY_COLUMNS`."""
    rows = []
    for entry in entries:
        by_name = dict(zip(log.COLUMNS, log.cells(entry), strict=True))
        row = [by_name[name] for name in ENTRY_COLUMNS]
        row[0] = row[0].partition(" ")[2] or row[0]  # the day is today, or the day before
        row[-1] = by_name["detail"] or row[-1]
        rows.append(row)
    return rows


def incident_rows(found: Sequence[Incident], findings: Sequence[Finding]) -> list[list[Cell]]:
    """The rows of `INCIDENT_COLUMNS`: incidents and runaways, the latest first."""
    rows = []
    for one in found:
        cells = dict(zip(incidents.COLUMNS, incidents.cells(one), strict=True))
        rows.append([cells[name] for name in INCIDENT_COLUMNS])
    rows += [
        [show_time(one.time), one.account, runaway(one), one.action, "", "", ""] for one in findings
    ]
    return sorted(rows, key=lambda row: row[0], reverse=True)


def runaway(found: Finding) -> str:
    """A finding in a few words."""
    figure, allowed = (
        (format_amount(found.unit, one) for one in (found.figure, found.allowed))
        if found.unit
        else (f"{found.figure:,}", f"{found.allowed:,}")
    )
    return f"runaway, {found.rule}: {figure} of {allowed}"


class Gpus(VerticalScroll, can_focus=True):
    """The GPUs, their processes and the jobs, as `bursar gpu` shows them."""

    DEFAULT_CSS: ClassVar[str] = "Gpus { padding: 0 1; }"

    def __init__(self, *, id: str) -> None:  # noqa: A002 -- as Textual calls it
        super().__init__(id=id)
        self._text = Static(Text("waiting for the watchdog", "dim"))

    def compose(self) -> ComposeResult:
        """One text."""
        yield self._text

    def show(self, found: Processes) -> None:
        """Shows what the watchdog saw last."""
        self._text.update(gpu.drawn(found))
