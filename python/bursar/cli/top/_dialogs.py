"""The questions that are asked before anything is changed, and the help. They change nothing."""

from typing import ClassVar, Final

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Button, Input, Static

from bursar.cli._output import safe
from bursar.models import Budget
from bursar.units import format_amount, parse_amount, right_amount

KEYS: Final = (
    ("up down  j k", "move; page up, page down, home, end too"),
    ("left right h l", "collapse or expand; at a leaf, go up"),
    ("space  + -", "expand or collapse one, all, none"),
    ("a", "only accounts that are not OK; a again: all"),
    ("s", "order: name, state, used, ends, open; by the worst below too"),
    ("u", "budgets of one unit; at first the tightest"),
    ("/", "filter by what a line contains; escape ends it"),
    ("1 2 3 4", "accounts, its entries, incidents, GPUs"),
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


class _Dialog(ModalScreen[str | None]):
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


class Question(_Dialog):
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


class Choice(_Dialog):
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
            limit = format_amount(one.unit, one.limit)
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
            amount = parse_amount(unit, event.value)
        except ValueError as error:
            self.query_one("#error", Static).update(Text(f"{event.value!r} is no amount: {error}"))
            return
        self.dismiss(f"{self._at} {amount}")


class Help(_Dialog):
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
