"""From entries to runs: what each run spent, and the most that it had claimed. Pure.

A call is one reservation, with every row that names it. A run is one call, or all calls of one
account directly below the one that is calibrated, in one window of a period. Calls that are still
open are left out and counted: what they will spend is not known. Capacity units have nothing that
is spent, so they are left out.

Entries do not name the parent of a nested reservation. It counts as a call of its own whose carve
is its hold; its parent's hold is not lessened by it.

A run succeeded, or failed, as the Commit of its call says; one of several calls as the last Commit
among them that says it: what came before led there.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from itertools import accumulate
from typing import Final, NamedTuple
from zoneinfo import ZoneInfo

from bursar.models import Entry, EntryKind, Period, PeriodKind
from bursar.units import CAPACITY_UNITS

__all__ = ["ENTRIES_MAX", "JUDGED", "KINDS", "By", "History", "Run", "TooMuchHistory", "read_runs"]

ENTRIES_MAX: Final = 5_000_000
"""Entries that one calibration reads: about a gigabyte of memory."""

KINDS: Final = (
    EntryKind.HOLD,
    EntryKind.CARVE,
    EntryKind.RETURN,
    EntryKind.SPEND,
    EntryKind.OVERDRAFT,
)
"""The kinds of entries that runs are made of."""

JUDGED: Final = (EntryKind.SUCCESS, EntryKind.FAILURE)
"""The kinds of entries that say how the work of a call ended; they have no unit."""

_HELD: Final = frozenset({EntryKind.HOLD, EntryKind.CARVE})
_LABELS: Final = {PeriodKind.HOUR: "%Y-%m-%dT%H%z", PeriodKind.MONTH: "%Y-%m"}


class TooMuchHistory(ValueError):
    """The account has more entries than one calibration reads."""


class By(StrEnum):
    """What a run is."""

    RESERVATION = "reservation"
    ACCOUNT = "account"


@dataclass(frozen=True, slots=True)
class Run:
    """One run in one unit.

    Attributes:
        key: The reservation's id, or the account's path; with a window behind it, after an "@".
        spent: What it spent in all.
        claimed: The most that it had spent and held at one moment; never less than `spent`.
        overdraft: The part of `spent` that passed a limit of the time.
        exhausted: Whether a call spent all that it held, so that it may have wanted more.
        floors: For each call in the order of their beginnings: what was settled before it began.
        totals: What the first 0, 1, 2, … calls spent together; one more than `floors`.
        success: Whether it succeeded; None: no Commit says.
    """

    key: str
    spent: int
    claimed: int
    overdraft: int
    exhausted: bool
    floors: tuple[int, ...]
    totals: tuple[int, ...]
    success: bool | None = None

    def spent_if_checked_between_calls(self, limit: int) -> int:
        """What it spends if a call may begin, and then runs to its end, while less is settled.

        Floors never fall, so the calls that may begin are the first ones; up to the one that may
        not, everything is as it was.
        """
        admitted = 0
        for floor in self.floors:
            if floor >= limit:
                break
            admitted += 1
        return self.totals[admitted]


@dataclass(frozen=True, slots=True)
class History:
    """What the entries came to.

    Attributes:
        runs: The runs of each unit that any call spent or held, by unit.
        open_calls: Calls that have not ended; left out.
        calls_without_hold: Calls whose hold is not among the entries: recorded spending, or older
            than what the store keeps. Left out where a run is a reservation.
    """

    runs: dict[str, list[Run]]
    open_calls: int
    calls_without_hold: int


class _Row(NamedTuple):
    position: int
    unit: str
    kind: EntryKind
    amount: int


class _Call:
    """The rows of one reservation."""

    __slots__ = ("account", "id", "judged", "rows", "time")

    def __init__(self, entry: Entry) -> None:
        self.id = entry.reservation
        self.account = entry.account
        self.time = entry.time
        self.rows: list[_Row] = []
        self.judged: tuple[int, bool] | None = None
        """Where a Commit says whether it succeeded, and what."""

    def has_hold(self) -> bool:
        return any(row.kind in _HELD for row in self.rows)

    def has_ended(self, is_pending: Callable[[str], bool]) -> bool:
        """Settling spends or returns, all units at once.

        Only where something came back and nothing was spent, and yet something is held, do the rows
        not tell: a lease from which slack was reclaimed looks like a parent that spent nothing.
        """
        kinds = {row.kind for row in self.rows}
        if EntryKind.SPEND in kinds:
            return True
        if EntryKind.RETURN not in kinds:
            return False
        held: dict[str, int] = {}
        for row in self.rows:
            sign = 1 if row.kind in _HELD else -1
            held[row.unit] = held.get(row.unit, 0) + sign * row.amount
        return not any(held.values()) or not is_pending(self.id)


def read_runs(
    entries: Iterable[Entry],
    account: str = "",
    *,
    by: By = By.RESERVATION,
    period: Period | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    is_pending: Callable[[str], bool] = lambda _: True,
) -> History:
    """Makes runs of the entries of an account and those below it.

    Args:
        entries: All of `KINDS`, from the beginning and in order, so that no call is cut in two;
            those of `JUDGED` among them or behind them.
        account: The account that is calibrated; empty: all.
        by: What a run is.
        period: With `By.ACCOUNT`: each window makes a run of its own. A call counts in the window
            in which it began; a window without calls is no run.
        since: Only calls that began from this time on.
        until: Only calls that began before this time.
        is_pending: Whether a reservation is open; asked where entries do not tell.

    Raises:
        TooMuchHistory: There are more than `ENTRIES_MAX` entries.
        ValueError: The period is rolling: its windows have no edges to divide calls by.
    """
    if period is not None and period.kind is PeriodKind.ROLLING:
        raise ValueError("a rolling period has no windows that divide runs")
    groups: dict[str, list[_Call]] = {}
    open_calls = without_hold = 0
    for call in _calls(entries):
        began = call.time
        if began and ((since and began < since) or (until and began >= until)):
            continue
        if not call.has_ended(is_pending):
            open_calls += 1
            continue
        if not call.has_hold():
            without_hold += 1
            if by is By.RESERVATION:
                continue
        key = call.id if by is By.RESERVATION else _key(call, account, period)
        groups.setdefault(key, []).append(call)
    runs: dict[str, list[Run]] = {}
    for key, calls in groups.items():
        for unit in sorted({row.unit for call in calls for row in call.rows}):
            runs.setdefault(unit, []).append(_run(key, calls, unit))
    return History(dict(sorted(runs.items())), open_calls, without_hold)


def _calls(entries: Iterable[Entry]) -> Iterable[_Call]:
    calls: dict[str, _Call] = {}
    for position, entry in enumerate(entries):
        if position >= ENTRIES_MAX:
            raise TooMuchHistory(
                f"more than {ENTRIES_MAX:,} entries; name one unit, or an account further down"
            )
        if entry.unit in CAPACITY_UNITS or not entry.reservation:
            continue
        call = calls.get(entry.reservation)
        if entry.kind in JUDGED:
            if call is not None:  # else it moved nothing of the unit that is asked for
                call.judged = position, entry.kind is EntryKind.SUCCESS
            continue
        if call is None:
            call = calls[entry.reservation] = _Call(entry)
        call.rows.append(_Row(position, entry.unit, entry.kind, entry.amount))
    return calls.values()


def _key(call: _Call, account: str, period: Period | None) -> str:
    """The account directly below the calibrated one, or that one itself; and the window."""
    depth = len(account.split("/")) if account else 0
    child = "/".join(call.account.split("/")[: depth + 1])
    if period is None or period.kind is PeriodKind.TOTAL or call.time is None:
        return child
    local = call.time.astimezone(ZoneInfo(period.time_zone))
    if period.kind is PeriodKind.WEEK:
        return f"{child}@{local:%G-W%V}"
    return f"{child}@{local.strftime(_LABELS.get(period.kind, '%Y-%m-%d'))}"


def _run(key: str, calls: list[_Call], unit: str) -> Run:
    """Walks the rows of all calls in the order in which they happened."""
    rows = sorted(
        (row.position, index, row.kind, row.amount)
        for index, call in enumerate(calls)
        for row in call.rows
        if row.unit == unit
    )
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for position, index, _, _ in rows:
        first.setdefault(index, position)
        last[index] = position
    spent = dict.fromkeys(first, 0)
    unused = dict.fromkeys(first, 0)
    claim = claimed = overdraft = 0
    exhausted = False
    for position, index, kind, amount in rows:
        if kind is EntryKind.OVERDRAFT:
            overdraft += amount
        elif kind is EntryKind.SPEND:
            covered = min(amount, unused[index])
            unused[index] -= covered
            spent[index] += amount
            claim += amount - covered
            exhausted = exhausted or (covered > 0 and unused[index] == 0)
        else:
            change = amount if kind in _HELD else -amount
            unused[index] += change
            claim += change
        claimed = max(claimed, claim)
        if position == last[index]:
            # What a parent carved out of its hold never comes back to it by a row of its own.
            claim -= unused.pop(index)
    floors, totals = _steps(first, last, spent)
    _, success = max((call.judged for call in calls if call.judged), default=(0, None))
    return Run(key, totals[-1], claimed, overdraft, exhausted, floors, totals, success)


def _steps(
    first: dict[int, int], last: dict[int, int], spent: dict[int, int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """`Run.floors` and `Run.totals`, out of where calls began and ended and what they spent."""
    if len(first) == 1:
        return (0,), (0, *spent.values())
    beginnings = sorted(first, key=first.__getitem__)
    endings = sorted(last, key=last.__getitem__, reverse=True)
    floors, settled = [], 0
    for index in beginnings:
        while endings and last[endings[-1]] < first[index]:
            settled += spent[endings.pop()]
        floors.append(settled)
    totals = accumulate((spent[index] for index in beginnings), initial=0)
    return tuple(floors), tuple(totals)
