"""What is shown beside the tree: the details of one account, and the lists. They only show."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import ClassVar, Final

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.coordinate import Coordinate
from textual.geometry import Size
from textual.widgets import DataTable, Static

from bursar.cli import accounts, gpu, incidents, log
from bursar.cli._output import Cell, safe, share, show_thresholds, show_time
from bursar.cli.top import _draw as draw
from bursar.cli.top import _history as history
from bursar.cli.top._accounts import thresholds_of
from bursar.cli.top._entries import Filters
from bursar.cli.top._tree import AccountTree, Pace, state
from bursar.models import Account, Balance, Budget, Entry, Finding, OpenReservation
from bursar.processes import Incident, Processes
from bursar.units import CAPACITY_UNITS, format_amount

_BAR_CELLS: Final = 24
ENTRY_COLUMNS: Final = ("time", "kind", "amount", "unit", "account", "model", "reservation")
INCIDENT_COLUMNS: Final = ("when", "state", "account", "why", "came back", "took", "job")


@dataclass(frozen=True, slots=True)
class Line:
    """A row of a list: what tells it from others, what it shows, and what there is to say of it."""

    key: str
    cells: list[Cell]
    story: list[str]


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
    amounts = (balance.spent, balance.held, balance.remaining, balance.limit)
    spent, held, left, limit = (draw.signed(unit, one) for one in amounts)
    if unit in CAPACITY_UNITS:
        text.append(f"held {held} of {limit}, left {left}\n")
    else:
        text.append(f"spent {spent} of {limit}\nheld {held}, left {left}\n")
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
        self._shown: dict[str, Line] | None = None

    def show(self, lines: Sequence[Line], narrow: str) -> None:
        """Shows the lines that contain the text; the cursor stays on its line."""
        wanted = narrow.casefold()
        kept = (one for one in lines if wanted in "  ".join(one.cells).casefold())
        shown, before = _by_key(kept), self._shown
        self._shown = shown
        if before is None or list(shown) != list(before):
            self._rebuild(list(before or ()))
            return
        for at, name in enumerate(self._names):
            cells = {key: one.cells[at] for key, one in shown.items()}
            changed = [key for key, cell in cells.items() if cell != before[key].cells[at]]
            self._update(name, {key: Text(safe(cells[key])) for key in changed})

    def line(self, key: str | None) -> Line | None:
        """The line of a row, unless it is no longer shown."""
        return (self._shown or {}).get(key or "")

    def _update(self, name: str, changed: dict[str, Text]) -> None:
        # The widest alone is measured: each would be with its whole column.
        widest = max(changed, key=lambda key: changed[key].cell_len, default="")
        for key, cell in changed.items():
            self.update_cell(key, name, cell, update_width=key == widest)

    def _rebuild(self, before: list[str]) -> None:
        shown = self._shown or {}
        at, left, top = self.cursor_row, self.scroll_x, self.scroll_y
        # Who is at the top stays there and sees what is new.
        follows = before[at] if at < len(before) and (at or top) else ""
        to = next((row for row, key in enumerate(shown) if key == follows), at)
        # Past the watcher of the cursor, which would scroll to it.
        self.set_reactive(DataTable.cursor_coordinate, Coordinate(0, 0))
        self.clear(columns=True)  # their widths are those of what is shown, not of what once was
        for name in self._names if shown else ():
            self.add_column(name.upper(), key=name)
        for key, one in shown.items():
            self.add_row(*(Text(safe(cell)) for cell in one.cells), key=key)
        if not shown:
            self.add_column(self._nothing)
        self.set_reactive(
            DataTable.cursor_coordinate, Coordinate(max(0, min(to, len(shown) - 1)), 0)
        )
        # It measures itself later, and is scrolled no further than it is high.
        self.virtual_size = Size(self.virtual_size.width, len(shown) + self.header_height)
        self.scroll_to(left, top + to - at, animate=False)


def _by_key(lines: Iterable[Line]) -> dict[str, Line]:
    """The lines by their keys; those of one key are counted."""
    counts: Counter[str] = Counter()
    found = {}
    for one in lines:
        counts[one.key] += 1
        found[f"{one.key} {counts[one.key]}"] = one
    return found


class Entries(Table):
    """The entries, whose filters and pages have keys."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("e", "app.filters", "Entries"),
        Binding("o", "app.older", "Older"),
        Binding("n", "app.newest", "Newest"),
    ]


def entry_lines(entries: Sequence[Entry]) -> list[Line]:
    """The lines of `ENTRY_COLUMNS`."""
    lines = []
    for entry in entries:
        by_name = dict(zip(log.COLUMNS, log.cells(entry), strict=True))
        row = [by_name[name] for name in ENTRY_COLUMNS]
        row[0] = row[0].partition("-")[2].partition(".")[0]  # the rest is in its story
        row[-1] = by_name["detail"] or row[-1]
        story = [f"{name:<12}{cell}" for name, cell in by_name.items() if cell]
        lines.append(Line(str(entry.sequence), row, story))
    return lines


def in_short(filters: Filters) -> list[str]:
    """The filters in a few words."""
    since, until = show_time(filters.since), show_time(filters.until)
    before = filters.before
    oldest = show_time(before.time if isinstance(before, Entry) else before)
    told = {"since": since, "until": until, "up to": oldest}
    times = [f"{word} {moment}" for word, moment in told.items() if moment]
    return [*filter(None, (filters.kind, filters.unit, safe(filters.reservation))), *times]


def reservation_lines(found: Sequence[OpenReservation], now: datetime) -> list[Line]:
    """The lines of `RESERVATION_COLUMNS`."""
    lines = []
    for one in found:
        cells = accounts.reservation_cells(one, now)
        named = zip(accounts.RESERVATION_COLUMNS, cells, strict=True)
        story = [f"{name:<12}{cell}" for name, cell in named if cell]
        parent = one.reservation.parent_reservation
        story += [f"{'parent':<12}{parent}"] if parent else []
        lines.append(Line(one.reservation.id, cells, story))
    return lines


def incident_lines(found: Sequence[Incident], findings: Sequence[Finding]) -> list[Line]:
    """The lines of `INCIDENT_COLUMNS`: incidents and runaways, the latest first."""
    lines = []
    for one in found:
        cells = dict(zip(incidents.COLUMNS, incidents.cells(one), strict=True))
        row = [cells[name] for name in INCIDENT_COLUMNS]
        lines.append(Line(one.id, row, incidents.story(one)))
    for each in findings:
        words = [show_time(each.time), each.action, each.account, runaway(each)]
        lines.append(Line("  ".join(words), [*words, "", "", ""], words))
    return sorted(lines, key=lambda line: line.cells[0], reverse=True)


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


class History(VerticalScroll, can_focus=True):
    """What was spent, by hour or by day."""

    DEFAULT_CSS: ClassVar[str] = "History { padding: 0 1; }"
    BINDINGS: ClassVar[list[BindingType]] = [Binding("w", "app.stretch", "Hours or days")]

    def __init__(self, *, id: str) -> None:  # noqa: A002 -- as Textual calls it
        super().__init__(id=id)
        self._text = Static(Text("being read", "dim"))

    def compose(self) -> ComposeResult:
        """One text."""
        yield self._text

    def show(self, spent: history.Spent) -> None:
        """Shows what was read last."""
        self._text.update(history.drawn(spent))
