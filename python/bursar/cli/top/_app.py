"""The screen of `bursar top`: it shows what the feed brings, and asks before it changes anything.

It draws a few times a second, whatever arrives, and never waits for the sidecar while it draws.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, ClassVar, Final

from rich.text import Text
from textual import on, work
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container, VerticalScroll
from textual.widgets import ContentSwitcher, DataTable, Footer, Input, Static

import bursar
from bursar.access import Principal, Role
from bursar.cli._output import safe
from bursar.cli.accounts import RESERVATION_COLUMNS
from bursar.cli.top import _panels as panels
from bursar.cli.top._accounts import AccountsView
from bursar.cli.top._dialogs import Choice, Help, Question, Story, WhichEntries
from bursar.cli.top._draw import exact, short_duration
from bursar.cli.top._entries import Filters, Page
from bursar.cli.top._feed import FINDINGS_MAX, Feed, News, Wanted
from bursar.cli.top._history import STRETCHES, SpentOf
from bursar.cli.top._tree import AccountTree
from bursar.exceptions import BursarError
from bursar.models import Budget, Finding

if TYPE_CHECKING:
    from bursar.processes import Incident

WIDE: Final = 160
"""From this width on the details are beside the tree, not below it."""

HIGH: Final = 18
"""Below this height the details leave their room to the tree."""

_VIEWS: Final = {
    "accounts": "1 accounts",
    "entries": "2 entries",
    "incidents": "3 incidents",
    "gpus": "4 GPUs",
    "history": "5 spent",
    "reservations": "6 open",
}
_BUDGETS_KEPT_MAX: Final = 5_000


class TopApp(App[None]):
    """The app. Give it a client of its own; it is closed when the app ends."""

    TITLE = "bursar top"
    ENABLE_COMMAND_PALETTE = False
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (WIDE, "-wide")]  # noqa: RUF012 -- as Textual declares it
    VERTICAL_BREAKPOINTS = [(0, "-low"), (HIGH, "-high")]  # noqa: RUF012 -- as Textual declares it
    CSS = """
    Screen { overflow: hidden; }
    ContentSwitcher { height: 1fr; }
    #status, #trouble {
        height: 1; background: $panel; text-wrap: nowrap; text-overflow: ellipsis;
    }
    #status { width: 100%; }
    #trouble { background: $error; color: $text; text-style: bold; display: none; }
    #filter { height: 1; border: none; padding: 0 1; display: none; background: $surface; }
    #accounts { layout: vertical; }
    #detail { height: 9; padding: 0 1; border-top: solid $primary; }
    .-wide #accounts { layout: horizontal; }
    .-wide #detail {
        width: 46; height: 100%; border-top: none; border-left: solid $primary;
    }
    .-low.-narrow #detail { height: 5; }
    #detail.flipped, .-low.-narrow #detail { display: none; }
    .-low.-narrow #detail.flipped { display: block; }
    #tree { height: 1fr; width: 1fr; }
    DataTable { height: 1fr; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("question_mark", "help", "Help", key_display="?"),
        Binding("slash", "filter", "Filter", key_display="/"),
        Binding("a", "attention", "Attention"),
        Binding("s", "sort", "Sort"),
        Binding("u", "unit", "Unit"),
        Binding("f", "freeze", "Freeze"),
        Binding("b", "limit", "Limit"),
        Binding("1", "view('accounts')", show=False),
        Binding("2", "view('entries')", show=False),
        Binding("3", "view('incidents')", show=False),
        Binding("4", "view('gpus')", show=False),
        Binding("5", "view('history')", show=False),
        Binding("6", "view('reservations')", show=False),
        Binding("d", "detail", show=False),
        Binding("t", "theme", show=False),
        Binding("escape", "clear", show=False),
        Binding("q", "quit", "Quit"),
        Binding("ctrl+c", "quit", show=False, priority=True),
    ]

    def __init__(
        self,
        client: bursar.Client,
        account: str,
        *,
        target: str,
        interval_s: float,
        light: bool = False,
    ) -> None:
        super().__init__()
        self._client = client
        self._account = account
        self._target = target
        self._interval_s = interval_s
        self._light = light
        self.feed = Feed(client, account, interval_s=interval_s)
        self.tree_model = AccountTree()
        self.budgets: dict[str, tuple[Budget, ...]] = {}
        self.view = AccountsView(self.tree_model, self.budgets)
        self._status, self._trouble_line = Static(id="status"), Static(id="trouble")
        self._detail = Static(id="detail-text")
        self._lists = {
            "entries": panels.Entries(
                panels.ENTRY_COLUMNS, name="entries", nothing="no such entries; e: others, o: older"
            ),
            "incidents": panels.Table(
                panels.INCIDENT_COLUMNS, name="incidents", nothing="nothing was stopped"
            ),
            "reservations": panels.Table(
                RESERVATION_COLUMNS, name="reservations", nothing="no reservation is open"
            ),
        }
        self._gpus = panels.Gpus(id="gpus")
        self._history = panels.History(id="history")
        self._which = Filters()
        self._stretch = "hour"
        self._field = Input(id="filter", placeholder="filter", max_length=200, compact=True)
        self.principal: Principal | None = None
        self._page: Page | None = None
        self._incidents: tuple[Incident, ...] = ()
        self._reservations: tuple[bursar.OpenReservation, ...] = ()
        self._findings: deque[Finding] = deque(maxlen=FINDINGS_MAX)
        self._troubles: dict[str, str] = {}
        self._shown = "accounts"
        self._narrow = ""
        self.draws_ms: deque[float] = deque(maxlen=100)
        """How long the latest draws took, for those who measure."""

    def compose(self) -> ComposeResult:
        """The status, the views of which one is shown, the filter, and the keys."""
        yield self._status
        yield self._trouble_line
        with ContentSwitcher(initial="accounts"):
            with Container(id="accounts"):
                yield self.view
                with VerticalScroll(id="detail", can_focus=False):
                    yield self._detail
            yield from self._lists.values()
            yield self._gpus
            yield self._history
        yield self._field
        yield Footer(compact=True)

    def on_mount(self) -> None:
        """Starts to read and to draw."""
        self.theme = "textual-light" if self._light else "textual-dark"
        self.feed.start()
        self.view.focus()
        self.set_interval(self._interval_s, self.draw)

    def on_unmount(self) -> None:
        """Hangs up."""
        self.feed.close()

    def draw(self) -> None:
        """Takes the news in and shows them."""
        began_s = time.perf_counter()
        self._take(self.feed.take())
        self._show()
        self.draws_ms.append((time.perf_counter() - began_s) * 1000)

    def _take(self, news: News) -> None:
        if news.anew or news.accounts or news.retired:
            self.tree_model.apply(news.changes(), anew=news.anew, now_s=time.monotonic())
        if len(self.budgets) > _BUDGETS_KEPT_MAX:
            self.budgets.clear()
        self.budgets.update(news.budgets)
        self._troubles.update(news.troubles)
        self.principal = news.principal or self.principal
        self._page = news.entries or self._page
        self._incidents = self._incidents if news.incidents is None else news.incidents
        if news.reservations is not None:
            self._reservations = news.reservations
        for found in news.findings:
            self._findings.append(found)
            text = f"{safe(found.account)}: {panels.runaway(found)}; {found.action}"
            self.notify(text, title="runaway", severity="warning", markup=False)
        if news.processes is not None:
            self._gpus.show(news.processes)
        if news.spent is not None:
            self._history.show(news.spent)

    def _show(self) -> None:
        self._show_status()
        if self._shown == "accounts":
            self.view.update()
            self._show_detail()
        elif self._shown == "entries":
            entries = self._page.entries if self._page else ()
            self._lists["entries"].show(panels.entry_lines(entries), self._narrow)
        elif self._shown == "incidents":
            lines = panels.incident_lines(self._incidents, tuple(self._findings))
            self._lists["incidents"].show(lines, self._narrow)
        elif self._shown == "reservations":
            lines = panels.reservation_lines(self._reservations, datetime.now(UTC))
            self._lists["reservations"].show(lines, self._narrow)
        account = self.view.selected or self._account
        self.feed.wanted = Wanted(
            view=self._shown,
            account=account,
            entries=replace(self._which, account=account),
            spent=SpentOf(account, self.tree_model.spent_unit(account), self._stretch),
            paths=self.view.in_sight() if self._shown == "accounts" else (),
        )

    def _show_detail(self) -> None:
        account = self.tree_model.accounts.get(self.view.selected)
        text = Text("no accounts yet" if not self.tree_model.accounts else "", "dim")
        if account is not None:
            budgets = self.budgets.get(account.path, ())
            text = panels.detail(
                self.tree_model, account, budgets, now_s=self.view.now_s, now=self.view.now
            )
        self._detail.update(text)

    def _show_status(self) -> None:
        tabs = Text()
        for name, shown in _VIEWS.items():
            style = "reverse bold" if name == self._shown else ""
            count = sum(1 for one in self._incidents if not one.ended)
            more = f" ({count} open)" if name == "incidents" and count else ""
            tabs.append(" ").append(f"{shown}{more}", style)
        parts: list[str] = []
        if self._shown == "accounts":
            parts.append("attention only" if self.tree_model.attention_only else "")
            parts += [f"by {self.tree_model.sort.value}", self.tree_model.unit]
        elif self._shown == "reservations":
            parts.append(f"of {safe(self.view.selected) or 'all'}")
        elif self._shown == "entries":
            parts += [f"of {safe(self.view.selected) or 'all'}", *panels.in_short(self._which)]
        parts.append(f"/{safe(self._narrow)}" if self._narrow else "")
        parts.append(self.principal.role.value if self.principal else "")
        parts.append(f"{len(self.tree_model.accounts):,} accounts")
        tabs.append("  " + " \N{MIDDLE DOT} ".join(filter(None, parts)))
        self._status.update(tabs, layout=False)
        trouble = self._trouble()
        self._trouble_line.display = bool(trouble)
        self._trouble_line.update(Text(safe(trouble)), layout=False)

    def _trouble(self) -> str:
        away = self.feed.away
        if away is not None:
            since = short_duration(away.for_s)
            return f" AWAY for {since}, trying again; figures are old: {away.error}"
        found = self._troubles.get(self._shown) or self._troubles.get("")
        return f" {found}" if found else ""

    def action_view(self, name: str) -> None:
        """Shows another view."""
        self._shown = name
        self.query_one(ContentSwitcher).current = name
        self.query_one("#tree" if name == "accounts" else f"#{name}").focus()
        self.refresh_bindings()
        self._show()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool:
        """What is done to the tree can only be done where it is."""
        del parameters
        return self._shown == "accounts" or action not in {"sort", "attention", "detail"}

    def action_detail(self) -> None:
        """Shows the details or leaves their room to the tree."""
        self.query_one("#detail").toggle_class("flipped")

    def action_theme(self) -> None:
        """Dark or light."""
        self.theme = "textual-dark" if self.theme == "textual-light" else "textual-light"

    def action_attention(self) -> None:
        """Shows only accounts that are not OK, or everything again."""
        self.tree_model.flip_attention_only()
        self._show()
        self.view.select_match()

    def action_sort(self) -> None:
        """Orders the tree otherwise."""
        self.tree_model.next_sort()
        self._show()

    def action_unit(self) -> None:
        """Shows the budgets of another unit."""
        self.tree_model.next_unit()
        self._show()

    def action_help(self) -> None:
        """Shows the keys."""
        self.push_screen(Help())

    def action_filter(self) -> None:
        """Begins to type what is looked for."""
        self._field.display = True
        self._field.focus()

    def action_clear(self) -> None:
        """Ends the filters."""
        self._field.value = ""
        self._field.display = False
        self._which = Filters()
        self.action_view(self._shown)

    @on(Input.Changed, "#filter")
    def narrow(self, event: Input.Changed) -> None:
        """Narrows what is shown with each key."""
        self._narrow = event.value
        self.tree_model.narrow(event.value)
        self._show()
        if self._shown == "accounts":
            self.view.select_match()

    @on(Input.Submitted, "#filter")
    def narrowed(self) -> None:
        """Goes back to the list; the filter stays."""
        self._field.display = bool(self._narrow)
        self.action_view(self._shown)

    @on(AccountsView.Selected)
    def selected(self) -> None:
        """Shows the details of another account at once, and of its entries the latest."""
        self._which = replace(self._which, before=None)
        self._show_detail()

    @on(DataTable.RowSelected)
    def row_selected(self, event: DataTable.RowSelected) -> None:
        """Shows all about one line, if it is still there."""
        table = event.data_table
        line = table.line(event.row_key.value) if isinstance(table, panels.Table) else None
        if line is not None:
            self.push_screen(Story(line.story))

    @work(exclusive=True, group="filters")
    async def action_filters(self) -> None:
        """Asks which entries are shown."""
        asked = replace(self._which, account=self.view.selected)
        answer = await self.push_screen_wait(WhichEntries(asked))
        self._which = answer or self._which
        self._show()

    def action_older(self) -> None:
        """Shows the entries before the oldest that is shown, once those asked for are."""
        if self._page and self._page.filters == self.feed.wanted.entries:
            self._which = self._page.older()
            self._show()

    def action_newest(self) -> None:
        """Shows the latest entries again."""
        self._which = replace(self._which, before=None)
        self._show()

    def action_stretch(self) -> None:
        """Sums by hour or by day."""
        every = list(STRETCHES)
        self._stretch = every[(every.index(self._stretch) + 1) % len(every)]
        self._show()

    def _may_change(self) -> bool:
        who = self.principal
        if who is not None and who.role is Role.OPERATOR:
            return True
        known = f"{safe(who.name)} is {who.role.value}" if who else "who you are is not known yet"
        self.notify(f"only operators may do that; {known}", severity="error", markup=False)
        return False

    @work(exclusive=True, group="change")
    async def action_freeze(self) -> None:
        """Freezes the selected account, or ends its freeze, once somebody has said yes."""
        path = self.view.selected
        account = self.tree_model.accounts.get(path)
        if account is None or not self._may_change():
            return
        below = self.tree_model.count_below(path)
        whom = f"{path} and {below:,} below it" if below else path
        if account.frozen:
            lines = [f"{whom} may spend again, unless frozen from above."]
            answer = await self.push_screen_wait(
                Question(f"End the freeze of {path}?", lines, action="Unfreeze")
            )
            if answer is not None:
                await self._change(f"{path} is no longer frozen", self._client.unfreeze, path)
            return
        lines = [
            f"This stops {whom} at once.",
            f"Open reservations that get STOP: {account.open_reservation_count:,}",
        ]
        reason = await self.push_screen_wait(
            Question(f"Freeze {path}?", lines, action="Freeze", asks="why, for those who find it")
        )
        if reason is not None:
            await self._change(f"{path} is frozen", self._client.freeze, path, reason=reason)

    @work(exclusive=True, group="change")
    async def action_limit(self) -> None:
        """Changes a limit of the selected account, once somebody has said yes."""
        path = self.view.selected
        account = self.tree_model.accounts.get(path)
        if account is None or not self._may_change():
            return
        found = await self._called(self._client.get_account, path)
        if found is None:
            return
        if not found.budgets:
            self.notify(f"{path} has no budget of its own", severity="warning", markup=False)
            return
        shown = self.tree_model.shown(account)
        keys = [(one.unit, str(one.period)) for one in found.budgets]
        key = (shown.unit, shown.period) if shown else keys[0]
        at = keys.index(key) if key in keys else 0
        answer = await self.push_screen_wait(Choice(path, found.budgets, at=at))
        if answer is None:
            return
        index, amount = (int(one) for one in answer.split())
        await self._set_limit(found.budgets[index], amount)

    async def _set_limit(self, budget: Budget, amount: int) -> None:
        path, unit = budget.account, budget.unit
        before, after = (exact(unit, one) for one in (budget.limit, amount))
        lines = [f"{unit} {budget.period}: from {before} to {after}, at once.", "Thresholds stay."]
        question = Question(f"Change the limit of {path}?", lines, action="Change")
        if await self.push_screen_wait(question) is None:
            return
        await self._change(
            f"{path}: the limit is {after}",
            self._client.set_budget,
            path,
            unit=unit,
            limit=amount,
            period=budget.period,
            thresholds=budget.thresholds,
        )
        self.feed.look_again(path)

    async def _change(self, done: str, call: Callable[..., Any], *given: str, **named: Any) -> None:  # noqa: ANN401 -- as the call takes them
        if await self._called(call, *given, **named) is not None:
            self.notify(safe(done), markup=False)

    async def _called(self, call: Callable[..., Any], *given: str, **named: Any) -> Any:  # noqa: ANN401 -- as the call takes and answers
        """What a call answers, without holding up the screen; None, and told, where it fails."""
        try:
            return await asyncio.to_thread(call, *given, **named)
        except BursarError as error:
            self.notify(safe(str(error)), title="not done", severity="error", markup=False)
            return None
