"""The account tree on the screen. Draws only the lines in sight, so that 10,000 accounts cost none.

Reads the tree that the app keeps, moves a cursor, expands and collapses; it changes no account.
"""

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import ClassVar

from rich.segment import Segment
from rich.style import Style
from textual.binding import Binding, BindingType
from textual.events import Click
from textual.geometry import Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

from bursar.cli.top import _draw as draw
from bursar.cli.top._tree import AccountTree, Row
from bursar.models import Account, Balance, Budget, Threshold

STYLES = ("ok", "warn", "degrade", "stop", "muted", "spent", "held", "free")


def thresholds_of(budgets: tuple[Budget, ...], balance: Balance) -> tuple[Threshold, ...]:
    """The thresholds of the budget that a balance belongs to."""
    key = (balance.unit, balance.period)
    return next((one.thresholds for one in budgets if (one.unit, str(one.period)) == key), ())


class AccountsView(ScrollView, can_focus=True):
    """The tree: its first line is the heading, which stays."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {"cursor", "heading", "mark", *STYLES}
    DEFAULT_CSS = """
    AccountsView {
        background: $background;
        overflow-x: hidden;
        scrollbar-size-vertical: 1;
        & > .heading { color: $foreground; text-style: bold; }
        & > .cursor { background: $surface-lighten-2; text-style: bold; }
        & > .ok { color: $text-success; }
        & > .warn { color: $text-warning; text-style: bold; }
        & > .degrade { color: $text-accent; text-style: bold; }
        & > .stop { color: $text-error; text-style: bold; }
        & > .muted { color: $foreground; text-style: dim; }
        & > .spent { color: $primary; }
        & > .held { color: $secondary; }
        & > .free { color: $foreground; text-style: dim; }
        & > .mark { color: $text-warning; text-style: bold; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)", show=False),
        Binding("down,j", "move(1)", show=False),
        Binding("pageup", "page(-1)", show=False),
        Binding("pagedown", "page(1)", show=False),
        Binding("home,g", "move(-1_000_000_000)", show=False),
        Binding("end,G", "move(1_000_000_000)", show=False),
        Binding("left,h", "fold", show=False),
        Binding("right,l", "unfold", show=False),
        Binding("space", "flip", show=False),
        Binding("plus", "all(True)", show=False),
        Binding("minus", "all(False)", show=False),
    ]

    class Selected(Message):
        """The cursor is on another account."""

    def __init__(self, tree: AccountTree, budgets: Mapping[str, tuple[Budget, ...]]) -> None:
        super().__init__(id="tree")
        self._tree = tree
        self._budgets = budgets
        self._rows: list[Row] = []
        self._columns: list[draw.Column] = []
        self._cursor = 0
        self.selected = ""
        self.now_s, self.now = time.monotonic(), datetime.now(UTC)

    def on_mount(self) -> None:
        """Without data there is a heading."""
        self.update()

    def on_resize(self) -> None:
        """Other widths have other columns."""
        self.update()

    def update(self) -> None:
        """Takes the tree as it is now; the cursor stays on its account."""
        self.now_s, self.now = time.monotonic(), datetime.now(UTC)
        rows = self._tree.rows(self.now_s, self.now)
        if rows is not self._rows or not self.selected:
            self._rows = rows
            at = next((i for i, row in enumerate(rows) if row.path == self.selected), self._cursor)
            self._point_at(at, follow=False)
        self._columns = draw.columns(self.scrollable_content_region.width or self.size.width or 80)
        self.virtual_size = Size(0, len(rows) + 1)
        self.refresh()

    def in_sight(self) -> tuple[str, ...]:
        """The accounts whose lines are on the screen."""
        top = self.scroll_offset.y
        return tuple(row.path for row in self._rows[top : top + self.size.height])

    def _point_at(self, at: int, *, follow: bool = True) -> None:
        before = self.selected
        self._cursor = max(0, min(at, len(self._rows) - 1))
        self.selected = self._rows[self._cursor].path if self._rows else ""
        if follow:
            # The heading hides one line of the region, so the cursor's line and the one above it.
            self.scroll_to_region(Region(0, self._cursor, 1, 2), animate=False, immediate=True)
        if before != self.selected:
            self.post_message(self.Selected())
        self.refresh()

    def select(self, path: str) -> None:
        """Puts the cursor on an account, if it is shown."""
        at = next((i for i, row in enumerate(self._rows) if row.path == path), None)
        if at is not None:
            self._point_at(at)

    def select_match(self) -> None:
        """Puts the cursor on the first that is looked for, unless it is on one already."""
        if not self._tree.is_match(self.selected):
            matches = (row.path for row in self._rows if self._tree.is_match(row.path))
            self.select(next(matches, self.selected))

    def render_line(self, y: int) -> Strip:
        """Draws one line of the screen."""
        width = self.size.width
        base = self.rich_style
        if y == 0:
            style = base + self.get_component_rich_style("heading", partial=True)
            text = draw.fit(draw.heading(self._columns), width)
            return Strip([Segment(text, style)], width)
        at = self.scroll_offset.y + y - 1
        if at >= len(self._rows):
            return Strip.blank(width, base)
        if at == self._cursor and self.has_focus:
            base += self.get_component_rich_style("cursor", partial=True)
        pieces = self._pieces(self._rows[at])
        if at == self._cursor and pieces:
            text, kind = pieces[0]
            pieces[0] = (f">{text[1:]}", kind)  # seen without colour as well
        segments = [Segment(text, base + self._style(kind)) for text, kind in pieces]
        return Strip(segments).adjust_cell_length(width, base)

    def _pieces(self, row: Row) -> list[draw.Piece]:
        account: Account | None = self._tree.accounts.get(row.path)
        if account is None:
            return []
        balance = self._tree.shown(account)
        budgets = self._budgets.get(row.path, ())
        return draw.line(
            row,
            account,
            balance,
            pace=self._tree.pace(balance, self.now_s, self.now) if balance else None,
            thresholds=thresholds_of(budgets, balance) if balance else (),
            shown=self._columns,
            worst="" if row.expanded else self._tree.worst(row.path),
        )

    def _style(self, kind: str) -> Style:
        if kind in STYLES:
            return self.get_component_rich_style(kind, partial=True)
        return self.get_component_rich_style("mark", partial=True) if kind else Style.null()

    def on_click(self, event: Click) -> None:
        """Selects the line; on the selected one, expands or collapses it."""
        at = self.scroll_offset.y + event.y - 1
        if event.y > 0 and at < len(self._rows):
            if at == self._cursor:
                self.action_flip()
            self._point_at(at, follow=False)

    def action_move(self, by: int) -> None:
        """Moves the cursor."""
        self._point_at(self._cursor + by)

    def action_page(self, by: int) -> None:
        """Moves the cursor by what the screen holds."""
        self._point_at(self._cursor + by * max(1, self.size.height - 2))

    def action_unfold(self) -> None:
        """Expands, or goes to the first below."""
        if self._tree.is_expanded(self.selected):
            self._point_at(self._cursor + 1)
        else:
            self._fold(to=True)

    def action_fold(self) -> None:
        """Collapses, or goes to the one above."""
        if self._tree.is_expanded(self.selected):
            self._fold(to=False)
        else:
            self.select(self.selected.rpartition("/")[0])

    def action_flip(self) -> None:
        """Expands or collapses."""
        self._fold(to=not self._tree.is_expanded(self.selected))

    def action_all(self, to: bool) -> None:  # noqa: FBT001 -- actions take their arguments by position
        """Expands everything, or collapses to the roots."""
        self._tree.expand_all(to=to)
        self.update()

    def _fold(self, *, to: bool) -> None:
        self._tree.expand(self.selected, to=to)
        self.update()
