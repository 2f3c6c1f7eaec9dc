"""The accounts as a tree: which rows there are, in which order, and what each of them shows.

Pure: no clock, no calls, no terminal. Times are arguments.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from bursar.forecast import Burn, exhausted_in_s, resets_in_s
from bursar.models import Account, AccountChanges, Balance, Verdict
from bursar.units import CAPACITY_UNITS

EXPANDED_MAX: Final = 200
"""Up to this many accounts the whole tree is open at first; else its roots are."""

REORDER_S: Final = 2.0
"""Rows that are ordered by figures change their places no more often: one can follow them."""

STATES: Final = MappingProxyType(
    {
        "OK": "ok",
        "WARN": "warn",
        "DEGRADE": "degrade",
        "STOP": "stop",
        "EMPTY": "stop",
        "OVER": "stop",
        "frozen\N{UPWARDS ARROW}": "stop",
        "FROZEN": "stop",
    }
)
"""What an account can be, the worst last, each with the name of its style."""

_BADNESS: Final = MappingProxyType({word: at for at, word in enumerate(STATES)})
_NEVER: Final = float("inf")


class Sort(StrEnum):
    """How accounts that share a parent are ordered."""

    NAME = "name"
    STATE = "state"
    USED = "used"
    ENDS = "ends"
    OPEN = "open"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the tree."""

    path: str
    name: str
    depth: int
    parent: bool
    expanded: bool


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast a window is spent, and when it will be empty; None: not known, or it lasts."""

    rate_per_s: float | None
    ends_s: float | None


def used_share(balance: Balance) -> float:
    """The share of a limit that is spent or held."""
    taken = balance.spent + balance.held
    if balance.limit <= 0:
        return _NEVER if taken > 0 else 1.0
    return taken / balance.limit


def state(account: Account) -> str:
    """The one of `STATES` that an account is, the worst that is true."""
    if account.frozen:
        return "FROZEN"
    if account.stopped:
        return "frozen\N{UPWARDS ARROW}"
    least = min((one.remaining for one in account.balances), default=1)
    if account.verdict is Verdict.STOP or least < 0:
        return "OVER" if least < 0 else "STOP"
    return "EMPTY" if least == 0 else account.verdict.name


class AccountTree:
    """The accounts that were seen, what is expanded, and the filter."""

    def __init__(self) -> None:
        self.accounts: dict[str, Account] = {}
        self.sort = Sort.NAME
        self.unit = ""  # whose budgets are shown; empty: of each account the tightest
        self.attention_only = False  # whether only accounts are shown that are not OK
        self._filter = ""
        self._children: dict[str, dict[str, None]] = {}
        self._expanded: set[str] | None = None  # None: nothing was seen yet
        self._burns: dict[tuple[str, str, str], Burn] = {}
        self._troubled: dict[str, str] = {}  # the states of those that are not OK
        self._worst: dict[str, str] | None = None  # of each subtree; None: not known now
        self._rows: list[Row] | None = None
        self._moved = False  # whether figures by which the rows are ordered have changed since
        self._ordered_s = 0.0

    def apply(self, changes: AccountChanges, *, anew: bool, now_s: float) -> None:
        """Takes changes in; `anew`: they are everything there is."""
        if anew:
            there = {one.path for one in changes.accounts}
            self._drop(path for path in list(self.accounts) if path not in there)
        self._drop(changes.retired)
        for account in changes.accounts:
            if account.path not in self.accounts:
                self._children.setdefault(_parent(account.path), {})[account.path] = None
                self._rows = None
            self.accounts[account.path] = account
            self._note_state(account.path, state(account))
            for balance in account.balances:
                burn = self._burns.setdefault(_key(balance), Burn())
                burn.see(now_s, balance.spent, start=balance.start_time)
        if self._expanded is None and self.accounts:
            few = len(self.accounts) <= EXPANDED_MAX
            self._expanded = set(self.accounts if few else self._roots())
        self._moved = self._moved or self.sort is not Sort.NAME or self.attention_only

    def _note_state(self, path: str, word: str) -> None:
        if word != self._troubled.get(path, "OK"):
            self._worst = None
            self._troubled[path] = word
            if word == "OK":
                del self._troubled[path]

    def _drop(self, paths: Iterable[str]) -> None:
        for path in paths:
            account = self.accounts.pop(path, None)
            self._note_state(path, "OK")
            self._children.get(_parent(path), {}).pop(path, None)
            for balance in account.balances if account else ():
                self._burns.pop(_key(balance), None)
            self._rows = None

    def _roots(self) -> list[str]:
        return [path for path in self.accounts if _parent(path) not in self.accounts]

    def narrow(self, text: str) -> None:
        """Shows only paths that contain the text, with all above them; empty: everything."""
        self._filter = text.casefold()
        self._rows = None

    def is_match(self, path: str) -> bool:
        """Whether an account is itself what is looked for, not only above it."""
        troubled = not self.attention_only or path in self._troubled
        return troubled and self._filter in path.casefold()

    def flip_attention_only(self) -> None:
        """Shows only accounts that are not OK, with all above them; or everything again."""
        self.attention_only = not self.attention_only
        self._rows = None

    def units(self) -> list[str]:
        """The units that there are budgets of."""
        return sorted({one.unit for each in self.accounts.values() for one in each.balances})

    def next_sort(self) -> None:
        """Orders by the next of `Sort`."""
        every = list(Sort)
        self.sort = every[(every.index(self.sort) + 1) % len(every)]
        self._rows = None

    def next_unit(self) -> None:
        """Shows the budgets of the next unit."""
        every = ["", *self.units()]
        at = every.index(self.unit) if self.unit in every else 0
        self.unit = every[(at + 1) % len(every)]
        self._rows = None

    def worst(self, path: str) -> str:
        """The worst state of an account and all below it."""
        if self._worst is None:
            self._worst = {}
            for one, word in self._troubled.items():
                while one and _BADNESS[word] > _BADNESS[self._worst.get(one, "OK")]:
                    self._worst[one] = word
                    one = _parent(one)  # noqa: PLW2901 -- up the tree
        return self._worst.get(path, "OK")

    def has_below(self, path: str) -> bool:
        """Whether there are accounts below it."""
        return bool(self._children.get(path))

    def count_below(self, path: str) -> int:
        """How many accounts there are below it."""
        return sum(1 for one in self.accounts if one.startswith(f"{path}/"))

    def is_expanded(self, path: str) -> bool:
        """Whether what is below it is shown."""
        return self.has_below(path) and path in (self._expanded or ())

    def expand(self, path: str, *, to: bool) -> None:
        """Shows, or no longer shows, what is below an account."""
        chosen = self._expanded if self._expanded is not None else set()
        (chosen.add if to else chosen.discard)(path)
        self._rows = None

    def expand_all(self, *, to: bool) -> None:
        """Shows everything, or the roots only."""
        self._expanded = set(self.accounts) if to else set()
        self._rows = None

    def rows(self, now_s: float = 0.0, now: datetime | None = None) -> list[Row]:
        """The lines, from the top; the times are for the order by forecast."""
        if self._moved and now_s - self._ordered_s >= REORDER_S:
            self._rows = None
        if self._rows is None:
            self._moved, self._ordered_s = False, now_s
            kept = self._kept()
            ranks = self._ranks(now_s, now)
            self._rows = []
            stack = [(path, 0) for path in reversed(_ordered(self._roots(), ranks))]
            while stack:
                path, depth = stack.pop()
                if kept is not None and path not in kept:
                    continue
                below = self._children.get(path, {})
                opened = bool(below) and (kept is not None or path in (self._expanded or ()))
                name = path.rpartition("/")[2] if depth else path
                self._rows.append(Row(path, name, depth, bool(below), opened))
                if opened:
                    stack += ((one, depth + 1) for one in reversed(_ordered(below, ranks)))
        return self._rows

    def _kept(self) -> set[str] | None:
        """What the filter lets through, with all above it; None: everything."""
        if not self._filter and not self.attention_only:
            return None
        kept: set[str] = set()
        for path in self.accounts:
            if self.is_match(path):
                while path and path not in kept:
                    kept.add(path)
                    path = _parent(path)  # noqa: PLW2901 -- up the tree
        return kept

    def _ranks(self, now_s: float, now: datetime | None) -> Mapping[str, float]:
        """By what accounts are ordered: each has the first rank of all that is below it."""
        ranks: dict[str, float] = {}
        for path in self.accounts if self.sort is not Sort.NAME else ():
            rank = self._rank(path, now_s, now)
            while path and rank < ranks.get(path, _NEVER):
                ranks[path] = rank
                path = _parent(path)  # noqa: PLW2901 -- up the tree
        return ranks

    def _rank(self, path: str, now_s: float, now: datetime | None) -> float:
        account = self.accounts[path]
        if self.sort is Sort.STATE:
            return -_BADNESS[state(account)]
        if self.sort is Sort.OPEN:
            return -account.open_reservation_count
        shown = self.shown(account)
        if shown is None:
            return _NEVER
        if self.sort is Sort.USED or now is None:
            return -used_share(shown)
        ends_s = self.pace(shown, now_s, now).ends_s
        return _NEVER if ends_s is None else ends_s

    def shown(self, account: Account) -> Balance | None:
        """The balance that stands for an account: of those with the unit, the tightest."""
        wanted = [one for one in account.balances if self.unit in {"", one.unit}]
        return max(wanted, key=used_share, default=None)

    def spent_unit(self, path: str) -> str:
        """The unit whose spending is shown: the chosen one, that of the account, or money."""
        account = self.accounts.get(path)
        shown = self.shown(account) if account else None
        every = (self.unit, shown.unit if shown else "", "usd_nanos")
        return next(one for one in every if one and one not in CAPACITY_UNITS)

    def pace(self, balance: Balance, now_s: float, now: datetime) -> Pace:
        """How fast a balance is spent."""
        burn = self._burns.get(_key(balance))
        rate = burn.rate_per_s(now_s) if burn else None
        left, resets_s = balance.limit - balance.spent, resets_in_s(balance, now=now)
        ends_s = exhausted_in_s(left=left, rate_per_s=rate, resets_in_s=resets_s)
        return Pace(rate, ends_s)

    def tightest_above(self, path: str) -> Mapping[str, Balance]:
        """The tightest balance of each account above that has one, from the top."""
        names = path.split("/")
        above = ("/".join(names[:count]) for count in range(1, len(names)))
        found = ((one, self.accounts[one].balances) for one in above if one in self.accounts)
        return {one: max(balances, key=used_share) for one, balances in found if balances}


def _ordered(paths: Iterable[str], ranks: Mapping[str, float]) -> list[str]:
    return sorted(paths, key=lambda path: (ranks.get(path, _NEVER), path))


def _parent(path: str) -> str:
    return path.rpartition("/")[0]


def _key(balance: Balance) -> tuple[str, str, str]:
    return (balance.account, balance.unit, balance.period)
