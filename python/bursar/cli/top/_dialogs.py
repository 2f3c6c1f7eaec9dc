"""The questions that are asked before anything is changed, and the help. They change nothing."""

from datetime import UTC, datetime
from typing import ClassVar, Final, Generic, TypeVar

import click
from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Button, Input, Select, Static

from bursar.cli._output import safe
from bursar.cli._shared import Moment
from bursar.cli.top._draw import exact, read_amount
from bursar.cli.top._entries import Filters
from bursar.models import Budget, EntryKind
from bursar.units import UNITS, right_amount

KEYS: Final = (
    ("up down  j k", "move; page up, page down, home, end too"),
    ("left right h l", "collapse or expand; at a leaf, go up"),
    ("space  + -", "expand or collapse one, all, none"),
    ("a", "only accounts that are not OK, or all again"),
    ("s", "order: name, state, used, ends, open reservations"),
    ("u", "budgets of one unit; at first the tightest"),
    ("/", "filter by what a line contains; escape ends it"),
    ("1 … 6", "accounts, its entries, incidents, GPUs, its past, what it has open"),
    ("enter", "in a list: all about a line; an incident's steps"),
    ("e  o  n", "in entries: which, older ones, the newest"),
    ("w", "in what was spent: by hour or by day"),
    ("d  t", "details on or off; dark or light"),
    ("f", "freeze or unfreeze (operators; asks first)"),
    ("b", "change a limit (operators; asks first)"),
    ("q", "quit"),
)
_SIGNS: Final = (
    "Bars: \N{FULL BLOCK} spent  \N{MEDIUM SHADE} held  \N{MIDDLE DOT} left  "
    "\N{BOX DRAWINGS LIGHT VERTICAL} a threshold\n"
    "State: EMPTY nothing is left, OVER more than that is spent and held, FROZEN itself, "
    "frozen\N{UPWARDS ARROW} from above; OK, WARN, DEGRADE, STOP as the sidecar says; "
    "with \N{DOWNWARDS ARROW} it is the worst of what is collapsed\n"
    "Ends: when it is empty if it goes on like this; lasts: not before it resets"
)


T = TypeVar("T")


class _Dialog(ModalScreen[T | None], Generic[T]):
    """A box in the middle; escape leaves it without an answer: None."""

    DEFAULT_CSS = """
    _Dialog {
        align: center middle;
        & > Vertical {
            width: 72; max-width: 96%; height: auto; max-height: 96%;
            border: round $primary; background: $surface; padding: 0 1;
        }
        & Horizontal { height: auto; align-horizontal: right; }
        & Button { margin-left: 2; min-width: 12; }
        & VerticalScroll { height: auto; max-height: 100%; }
        & Toast { display: none; }  /* they would cover the buttons; they are shown afterwards */
        & .error { color: $text-error; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "leave", "Cancel")]

    def action_leave(self) -> None:
        """Gives no answer."""
        self.dismiss(None)


class Question(_Dialog[str]):
    """Says what is going to happen and asks whether; the cautious answer has the focus.

    With `asks` it takes a text as well. The answer is that text, which may be empty.
    """

    def __init__(self, title: str, lines: list[str], *, action: str, asks: str = "") -> None:
        super().__init__()
        self._title, self._lines = title, lines
        self._action, self._asks = action, asks

    def compose(self) -> ComposeResult:
        """The title, the lines, a field, and two buttons."""
        with Vertical() as box:
            box.border_title = Text(safe(self._title)).markup
            yield Static(Text("\n".join(safe(line) for line in self._lines)))
            if self._asks:
                yield Input(placeholder=self._asks, max_length=200)
            with Horizontal():
                yield Button(self._action, id="yes", variant="warning", flat=True)
                yield Button("Cancel", id="no", flat=True)

    def on_mount(self) -> None:
        """Enter at once changes nothing."""
        self.query_one(Input if self._asks else "#no").focus()

    def on_input_submitted(self) -> None:
        """Enter goes on to the button, which takes another one."""
        self.query_one("#yes").focus()

    def on_button_pressed(self, event: Button.Pressed) -> None:
        """Answers."""
        if event.button.id != "yes":
            self.dismiss(None)
            return
        self.dismiss(self.query_one(Input).value.strip() if self._asks else "")


class Choice(_Dialog[str]):
    """Asks which budget, by number, and its new limit; the answer is ``"index amount"``."""

    def __init__(self, account: str, budgets: tuple[Budget, ...], *, at: int) -> None:
        super().__init__()
        self._account, self._budgets, self._at = account, budgets, at

    def compose(self) -> ComposeResult:
        """The budgets, the chosen one marked, and a field."""
        with Vertical() as box:
            box.border_title = Text(f"Limit of {safe(self._account)}").markup
            yield Static(id="budgets")
            yield Input(max_length=40)
            yield Static(id="error", classes="error")

    def on_mount(self) -> None:
        """Begins with the budget that the tree shows."""
        self._show()
        self.query_one(Input).focus()

    def on_key(self, event: "object") -> None:
        """Up and down choose the budget."""
        key = getattr(event, "key", "")
        if key in {"up", "down"}:
            self._at = (self._at + (1 if key == "down" else -1)) % len(self._budgets)
            self._show()

    def _show(self) -> None:
        lines = Text()
        for at, one in enumerate(self._budgets):
            mark = ">" if at == self._at else " "
            limit = exact(one.unit, one.limit)
            style = "bold" if at == self._at else ""
            lines.append(f"{mark} {one.unit} {one.period}: {limit}\n", style)
        more = "up and down choose the budget; " if len(self._budgets) > 1 else ""
        lines.append(f"{more}enter goes on, escape leaves", "dim")
        self.query_one("#budgets", Static).update(lines)
        self.query_one(Input).placeholder = right_amount(self._budgets[self._at].unit)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Answers, or says what would be an amount."""
        unit = self._budgets[self._at].unit
        try:
            amount = read_amount(unit, event.value)
        except ValueError as error:
            self.query_one("#error", Static).update(Text(f"{event.value!r} is no amount: {error}"))
            return
        self.dismiss(f"{self._at} {amount}")


class WhichEntries(_Dialog[Filters]):
    """Asks which entries are shown."""

    DEFAULT_CSS = "WhichEntries Select, WhichEntries Input { margin-bottom: 1; }"

    def __init__(self, filters: Filters) -> None:
        super().__init__()
        self._filters = filters

    def compose(self) -> ComposeResult:
        """A field for each filter."""
        kept = self._filters
        with Vertical() as box:
            box.border_title = Text(f"Entries of {safe(kept.account) or 'all'}").markup
            for name, choices, chosen in (
                ("kind", list(EntryKind), kept.kind),
                ("unit", sorted(UNITS), kept.unit),
            ):
                options = [(f"every {name}", ""), *((str(one), str(one)) for one in choices)]
                yield Select(options, value=chosen, id=name, allow_blank=False, compact=True)
            for name, hint, value in (
                ("reservation", "every reservation", kept.reservation),
                ("since", "from: 2026-05-01T12:00, or 2h ago", _written(kept.since)),
                ("until", "until: 2026-05-01T12:00, or 2h ago", _written(kept.until)),
            ):
                yield Input(value, placeholder=hint, id=name, compact=True)
            yield Static(id="error", classes="error")
            with Horizontal():
                yield Button("Show", id="yes", variant="primary", flat=True)
                yield Button("Cancel", id="no", flat=True)

    def on_button_pressed(self, event: Button.Pressed) -> None:
        """Answers."""
        if event.button.id == "yes":
            self.on_input_submitted()
        else:
            self.dismiss(None)

    def on_input_submitted(self) -> None:
        """Answers, or says what would be a time."""
        kind, unit = (str(self.query_one(f"#{one}", Select).value) for one in ("kind", "unit"))
        reservation, since, until = (
            self.query_one(f"#{one}", Input).value.strip()
            for one in ("reservation", "since", "until")
        )
        try:
            start, end = (
                Moment().convert(one, None, None).astimezone(UTC) if one else None
                for one in (since, until)
            )
        except click.BadParameter as error:
            self.query_one("#error", Static).update(Text(error.message))
            return
        self.dismiss(Filters("", kind, unit, reservation, start, end))


def _written(moment: datetime | None) -> str:
    return moment.isoformat(timespec="seconds") if moment else ""


class Story(_Dialog[None]):
    """All about one line of a list."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,q,enter", "leave", "Close")]

    def __init__(self, lines: list[str]) -> None:
        super().__init__()
        self._lines = lines

    def compose(self) -> ComposeResult:
        """One text, which scrolls where there is little room."""
        with Vertical() as box:
            box.border_subtitle = "escape closes"
            with VerticalScroll():
                yield Static(Text("\n".join(safe(line) for line in self._lines)))


class Help(_Dialog[None]):
    """The keys and the signs."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,question_mark,enter", "leave", "Close")
    ]

    def compose(self) -> ComposeResult:
        """One text, which scrolls where there is little room."""
        with Vertical() as box:
            box.border_title = "bursar top"
            box.border_subtitle = "escape closes"
            text = Text()
            for keys, meaning in KEYS:
                text.append(f"{keys:<16}", "bold").append(f"{meaning}\n")
            with VerticalScroll():
                yield Static(text.append(f"\n{_SIGNS}"))
