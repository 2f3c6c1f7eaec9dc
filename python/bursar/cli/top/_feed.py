"""What `bursar top` knows of the sidecar: read by threads, taken by the screen when it draws.

The threads never touch the screen; the screen never waits for a call that reads. Between two draws
changes of one account become one, so a slow terminal makes no queue grow.
"""

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

import bursar
from bursar.access import Principal
from bursar.cli._follow import Away, Snapshot, follow
from bursar.cli.top._entries import EntryReader, Filters, Page
from bursar.cli.top._history import Spent, SpentOf, SpentReader
from bursar.exceptions import BursarError
from bursar.models import Account, AccountChanges, Budget, Finding, OpenReservation
from bursar.processes import Incident, Processes

INCIDENTS_MAX: Final = 200
FINDINGS_MAX: Final = 200

_BUDGETS_A_TURN: Final = 50
_BUDGETS_AGE_S: Final = 10.0
_BUDGETS_MAX: Final = 2_000
_TURN_S: Final = 0.25
_REREAD_S: Final = 1.0
_REREAD_INCIDENTS_S: Final = 5.0
_PAUSE_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the screen shows now, and so what is worth reading.

    Attributes:
        view: accounts, entries, incidents, gpus, history or reservations.
        account: Whose reservations; empty: all.
        entries: Which entries.
        spent: What was spent of what.
        paths: The accounts in sight, whose thresholds are shown.
    """

    view: str = "accounts"
    account: str = ""
    entries: Filters = field(default_factory=Filters)
    spent: SpentOf = field(default_factory=SpentOf)
    paths: tuple[str, ...] = ()


@dataclass(slots=True)
class News:
    """What came since the screen took the news before; None: nothing new of that kind."""

    anew: bool = False
    accounts: dict[str, Account] = field(default_factory=dict)
    retired: set[str] = field(default_factory=set)
    findings: list[Finding] = field(default_factory=list)
    budgets: dict[str, tuple[Budget, ...]] = field(default_factory=dict)
    principal: Principal | None = None
    entries: Page | None = None
    reservations: tuple[OpenReservation, ...] | None = None
    incidents: tuple[Incident, ...] | None = None
    processes: Processes | None = None
    spent: Spent | None = None
    troubles: dict[str, str] = field(default_factory=dict)  # by view; empty: it is over

    def changes(self) -> AccountChanges:
        """The accounts and findings, as a watcher hears them."""
        return AccountChanges(
            tuple(self.accounts.values()), tuple(self.retired), tuple(self.findings)
        )


class Feed:
    """The threads that follow one sidecar. `start` it once, `take` its news, `close` it."""

    def __init__(self, client: bursar.Client, account: str, *, interval_s: float) -> None:
        self._client = client
        self._account = account
        self._interval_s = interval_s
        self._lock = threading.Lock()
        self._news = News()
        self._over = threading.Event()
        self._due: set[str] = {"principal", "incidents", "processes"}
        self._budgets: dict[str, float] = {}
        self._entries = EntryReader(client)
        self._spent = SpentReader(client)
        self._read_s = dict.fromkeys(
            ("entries", "incidents", "processes", "reservations", "spent"), 0.0
        )
        self.wanted = Wanted()
        self.away: Away | None = None

    def start(self) -> None:
        """Starts to read."""
        for work in (self._accounts, self._processes, self._lists):
            threading.Thread(target=work, name=f"top{work.__name__}", daemon=True).start()

    def close(self) -> None:
        """Ends the threads, at the latest with the answer that they wait for."""
        self._over.set()
        self._client.close()

    def take(self) -> News:
        """What came since the last time."""
        with self._lock:
            taken, self._news = self._news, News()
        return taken

    def look_again(self, account: str) -> None:
        """Reads the budgets of an account anew, after they were changed."""
        self._budgets.pop(account, None)

    def _accounts(self) -> None:
        client, pause = self._client, self._over.wait
        for event in follow(
            client, self._account, min_interval_s=self._interval_s, every_error=True, sleep=pause
        ):
            if self._over.is_set():
                return
            if isinstance(event, Away):
                self.away = event
                continue
            if self.away is not None:
                self.away = None
                self._due |= {"principal", "incidents", "processes"}
            anew = isinstance(event, Snapshot)
            self._hear(event.changes if isinstance(event, Snapshot) else event, anew=anew)

    def _hear(self, changes: AccountChanges, *, anew: bool) -> None:
        with self._lock:
            news = self._news
            if anew:
                news.anew, news.accounts, news.retired = True, {}, set()
            for path in changes.retired:
                news.accounts.pop(path, None)
                news.retired.add(path)
            for account in changes.accounts:
                news.accounts[account.path] = account
                news.retired.discard(account.path)
            news.findings = [*news.findings, *changes.findings][-FINDINGS_MAX:]

    def _processes(self) -> None:
        while not self._over.is_set():
            try:
                for _ in self._client.watch_processes(self._account):
                    self._due |= {"incidents", "processes"}
            except BursarError:
                pass  # `_accounts` says that the sidecar is away
            self._over.wait(_PAUSE_S)

    def _lists(self) -> None:
        while not self._over.wait(_TURN_S):
            if self.away is None:
                self._turn(self.wanted)

    def _turn(self, wanted: Wanted) -> None:
        view = wanted.view
        self._try("", "principal" in self._due, self._read_principal)
        self._try("accounts", bool(wanted.paths), lambda: self._read_budgets(wanted.paths))
        due = self._is_due("entries", shown=view == "entries")
        self._try("entries", due, lambda: self._read_entries(wanted.entries))
        due = self._is_due("reservations", shown=view == "reservations")
        self._try("reservations", due, lambda: self._read_reservations(wanted.account))
        due = self._is_due("spent", shown=view == "history")
        self._try("history", due, lambda: self._read_spent(wanted.spent))
        due = self._is_due("incidents", shown=view == "incidents")
        self._try("incidents", due, self._read_incidents)
        self._try("gpus", self._is_due("processes", shown=view == "gpus"), self._read_processes)

    def _is_due(self, name: str, *, shown: bool) -> bool:
        every_s = _REREAD_INCIDENTS_S if name == "incidents" else _REREAD_S
        old = time.monotonic() - self._read_s[name] >= every_s
        due = name in self._due or (shown and old)
        if due:
            self._read_s[name] = time.monotonic()
            self._due.discard(name)
        return due

    def _try(self, view: str, due: bool, read: Callable[[], None]) -> None:  # noqa: FBT001 -- inner
        if not due or self._over.is_set():
            return
        try:
            read()
        except BursarError as error:
            trouble = str(error)
        else:
            trouble = ""
        with self._lock:
            self._news.troubles[view] = trouble

    def _read_principal(self) -> None:
        principal = self._client.who_am_i()
        self._due.discard("principal")
        with self._lock:
            self._news.principal = principal

    def _read_budgets(self, paths: Iterable[str]) -> None:
        """Thresholds are in no stream: they are read for what is in sight, and kept for a while."""
        now_s = time.monotonic()
        if len(self._budgets) > _BUDGETS_MAX:
            self._budgets.clear()
        due = (one for one in paths if now_s - self._budgets.get(one, -1e9) > _BUDGETS_AGE_S)
        for path in list(islice(due, _BUDGETS_A_TURN)):
            self._budgets[path] = now_s
            try:
                budgets = self._client.get_account(path).budgets
            except bursar.AccountNotFound:
                continue  # it has just retired, which the stream says
            with self._lock:
                self._news.budgets[path] = budgets

    def _read_entries(self, filters: Filters) -> None:
        found = Page(filters, self._entries.read(filters))
        with self._lock:
            self._news.entries = found

    def _read_reservations(self, account: str) -> None:
        found = self._client.list_reservations(account)
        with self._lock:
            self._news.reservations = found

    def _read_spent(self, of: SpentOf) -> None:
        found = self._spent.read(of)
        with self._lock:
            self._news.spent = found

    def _read_incidents(self) -> None:
        found = self._client.list_incidents(self._account, page_size=INCIDENTS_MAX)
        latest = tuple(islice(found, INCIDENTS_MAX))
        with self._lock:
            self._news.incidents = latest

    def _read_processes(self) -> None:
        found = self._client.list_processes(self._account)
        with self._lock:
            self._news.processes = found
