"""What is shown while the agents run: a live table, or one line per event.

Owns the picture only. Events come from the agents' processes, accounts from `watch_accounts`.
"""

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from rich.box import SIMPLE
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from bursar.models import Account, Balance, Verdict
from bursar.units import format_amount

_KEPT_CHARS: Final = 1000
_SHOWN_NANOS: Final = 100_000
_PANEL_LINES: Final = 2
_BAR_WIDTH: Final = 12
_FRAME_WIDTH: Final = 6  # the panel's border and padding, and room for words that wrap
_STYLES: Final[Mapping[str, str]] = {
    "OK": "green",
    "WARN": "yellow",
    "DEGRADE": "dark_orange",
    "STOP": "bold red",
}


class Board(Protocol):
    """Takes what happens; safe to call from several threads."""

    def event(self, agent: str, event: Mapping[str, Any]) -> None:
        """An agent said something."""

    def accounts(self, accounts: Iterable[Account]) -> None:
        """Accounts have changed."""


class PlainBoard:
    """One line per event, for logs."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._lock = threading.Lock()
        self._verdicts: dict[str, Verdict] = {}

    def event(self, agent: str, event: Mapping[str, Any]) -> None:
        """Writes the event, unless it is a piece of text."""
        if event["kind"] != "text":
            self._line(f"{agent:8} {describe(event)}")

    def accounts(self, accounts: Iterable[Account]) -> None:
        """Writes accounts whose verdict has changed."""
        for account in accounts:
            with self._lock:
                changed = self._verdicts.get(account.path, Verdict.OK) is not account.verdict
                self._verdicts[account.path] = account.verdict
            if changed:
                self._line(f"{'ledger':8} {account.path} is {account.verdict.name} now")

    def _line(self, text: str) -> None:
        with self._lock:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)


@dataclass(slots=True)
class _Answer:
    status: str = "starting"
    verdict: str = Verdict.OK.name
    text: str = ""


@dataclass(slots=True)
class LiveBoard:
    """A table of the budgets and the end of each answer; rendered by `rich.live.Live`."""

    _accounts: dict[str, Account] = field(default_factory=dict)
    _answers: dict[str, _Answer] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def event(self, agent: str, event: Mapping[str, Any]) -> None:
        """Keeps the event for the next picture."""
        with self._lock:
            answer = self._answers.setdefault(agent, _Answer())
            if event["kind"] == "text":
                answer.text = (answer.text + str(event["text"]))[-_KEPT_CHARS:]
            elif event.get("code") != 0:  # a good end leaves what it did in the picture
                answer.status = describe(event)
                answer.verdict = str(event.get("verdict", answer.verdict))

    def accounts(self, accounts: Iterable[Account]) -> None:
        """Keeps the accounts for the next picture."""
        with self._lock:
            self._accounts |= {account.path: account for account in accounts}

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draws the picture as it is now."""
        with self._lock:
            accounts = sorted(self._accounts.values(), key=lambda account: account.path)
            answers = sorted(self._answers.items())
            width = options.max_width - _FRAME_WIDTH
            panels = [_panel(name, answer, width) for name, answer in answers]
        yield budget_table(accounts)
        yield from panels


def describe(event: Mapping[str, Any]) -> str:
    """An event in words."""
    match event["kind"]:
        case "call":
            granted = f"{event['granted']:,} of {event['wanted']:,} output tokens granted"
            return f"{event['model']}: a prompt of {event['input_tokens']:,} tokens, {granted}"
        case "verdict":
            return f"{event['verdict']} at output token {event['output_tokens']:,}"
        case "end":
            return f"the answer ends after {event['output_tokens']:,} tokens"
        case "refused":
            return f"the next call is refused: {event['account']} has no {event['unit']} left"
        case "exit":
            return f"ended with exit code {event['code']}"
        case other:
            return str(other)


def budget_table(accounts: Iterable[Account]) -> Table:
    """The budgets of the accounts."""
    table = Table(box=SIMPLE, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("account", "per"):
        table.add_column(name, no_wrap=True)
    for name in ("limit", "spent", "held", "remaining"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("share", width=_BAR_WIDTH)
    table.add_column("verdict", no_wrap=True)
    for account in accounts:
        for balance in account.balances:
            table.add_row(*_row(account, balance))
    return table


def _row(account: Account, balance: Balance) -> list[RenderableType]:
    depth = account.path.count("/")
    style = _STYLES[account.verdict.name]
    share = balance.spent / max(balance.limit, 1)  # for the eye only
    amounts = (balance.limit, balance.spent, balance.held, balance.remaining)
    return [
        "  " * depth + account.path.rpartition("/")[2],
        "hour" if balance.period.startswith("rolling") else balance.period.partition("@")[0],
        *(_rough(balance.unit, amount) for amount in amounts),
        ProgressBar(total=1.0, completed=min(share, 1.0), complete_style=style, width=_BAR_WIDTH),
        Text(account.verdict.name, style=style),
    ]


def _rough(unit: str, amount: int) -> str:
    """An amount for the eye: dollars are cut to ten thousandths. The closing report is exact."""
    if unit != "usd_nanos":
        return format_amount(unit, amount)
    return format_amount(unit, amount // _SHOWN_NANOS * _SHOWN_NANOS)


def _panel(name: str, answer: _Answer, width: int) -> Panel:
    text = " ".join(answer.text.split())
    shown = text[-_PANEL_LINES * width :] if width > 0 else ""
    return Panel(
        Text(shown, overflow="crop"),
        title=Text(f"{name}: {answer.status}"),
        title_align="left",
        border_style=_STYLES[answer.verdict],
        height=_PANEL_LINES + 2,
    )
