"""What `bursar top` reads of entries: pages that lose nothing, sums that count nothing twice."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

import bursar
from bursar import Entry, EntryKind
from bursar.cli.top import _entries
from bursar.cli.top._entries import ENTRIES_MAX, EntryReader, Filters, Page
from bursar.cli.top._history import SpentOf, SpentReader


class Ledger(bursar.Client):
    """A client whose entries are a list."""

    def __init__(self, *entries: Entry) -> None:
        self.entries = list(entries)

    def list_entries(
        self, account: str = "", *, start_time: Any = None, end_time: Any = None, **_: Any
    ) -> Iterator[Entry]:
        """Those of the time, the oldest first."""
        for one in self.entries:
            if one.time and one.time >= start_time and (end_time is None or one.time < end_time):
                yield one


def entry(sequence: int, ago: timedelta, amount: int = 1) -> Entry:
    moment = datetime.now(UTC) - ago
    return Entry(sequence, moment, "a", "", "tokens", EntryKind.SPEND, amount, moment, "")


def test_pages_of_entries_follow_each_other_and_lose_nothing_of_what_is_cut() -> None:
    """Two entries an operation: a page may begin in the middle of one."""
    count = ENTRIES_MAX * 2 + 3
    ages = [timedelta(days=20) - timedelta(minutes=at) for at in range(count)]
    ledger = Ledger(*(entry(at // 2, age) for at, age in enumerate(ages)))
    ledger.entries.insert(0, entry(-1, timedelta(days=20, minutes=1)))
    newest = entry(count, timedelta(seconds=1))
    ledger.entries.append(newest)
    reader = EntryReader(ledger)
    page = reader.read(Filters())
    assert page == (newest,)
    seen = list(page)
    while page[-1].sequence >= 0:
        page = reader.read(Filters(before=page[-1]))
        seen += [one for one in page if one not in seen]
    assert seen == ledger.entries[::-1]


def test_pages_of_a_busy_sidecar_begin_with_the_latest_and_lose_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """More a minute than are read at a time, and as many in one millisecond, after a quiet hour."""
    monkeypatch.setattr(_entries, "_READ_MAX", 400)
    count = 2_000
    ages = [timedelta(seconds=50) - timedelta(milliseconds=20 * at) for at in range(count)]
    ledger = Ledger(*(entry(at, age) for at, age in enumerate(ages, count)))
    burst = datetime.now(UTC) - timedelta(hours=1)
    at_once = [replace(entry(at, timedelta(0)), time=burst) for at in range(count)]
    ledger.entries = [*at_once, *ledger.entries]
    reader = EntryReader(ledger)
    page = reader.read(Filters())
    seen = dict.fromkeys(page)
    while page[-1].sequence > 0:
        page = reader.read(Filters(before=page[-1]))
        assert len(page) > 1
        seen |= dict.fromkeys(page)
    assert list(seen) == ledger.entries[::-1]


def test_the_latest_of_a_week_are_found_and_the_pages_before_go_on_from_there() -> None:
    old, older = entry(2, timedelta(days=6)), entry(1, timedelta(days=30))
    reader = EntryReader(Ledger(older, old))
    assert reader.read(Filters()) == (old,)
    reader = EntryReader(Ledger(older))
    page = Page(Filters(), reader.read(Filters()))
    assert page.entries == ()
    page = Page(page.older(), reader.read(page.older()))
    assert page.entries == (older,)
    since = Filters(since=datetime.now(UTC) - timedelta(days=1))
    assert Page(since, ()).older() == since


def test_a_gap_of_months_is_crossed() -> None:
    old, new = entry(1, timedelta(days=70)), entry(2, timedelta(hours=1))
    reader = EntryReader(Ledger(old, new))
    filters, pages = Filters(), []
    for _ in range(5):
        page = Page(filters, reader.read(filters))
        pages.append(page.entries)
        filters = page.older()
    assert pages == [(new,), (new,), (), (old,), (old,)]


def test_entries_from_a_time_on_are_found_however_long_ago_it_is() -> None:
    old, new = entry(1, timedelta(days=400)), entry(2, timedelta(0))
    reader = EntryReader(Ledger(old, new))
    since = datetime.now(UTC) - timedelta(days=401)
    assert reader.read(Filters()) == (new,)
    assert reader.read(Filters(since=since)) == (new, old)
    until = datetime.now(UTC) - timedelta(days=1)
    assert reader.read(Filters(since=since, until=until)) == (old,)


def test_what_takes_too_long_to_sum_is_gone_on_with_and_counted_once() -> None:
    """The clock leaves time for two operations a turn."""
    ledger = Ledger(*(entry(at, timedelta(0), 10**at) for at in range(5)))
    turns = iter([0.0, 0.5, 2.0, 2.0] * 3 + [0.0] * 100)
    reader = SpentReader(ledger, clock=lambda: next(turns))
    of = SpentOf("a", "tokens", "day")
    first = reader.read(of)
    assert (first.sums[0][1], first.whole) == (11, False)
    assert first.sums[1][1] is None
    last = first
    for _ in range(5):
        last = reader.read(of)
    assert (last.sums[0][1], last.whole) == (11_111, True)
    assert last.sums[1][1] == 0
    ledger.entries.append(entry(5, timedelta(0), 7))
    assert reader.read(of).sums[0][1] == 11_118
