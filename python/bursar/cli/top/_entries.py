"""Entries as `bursar top` reads them: the latest that filters let through, and the pages before.

They are listed from the oldest, so the latest are looked for in stretches, each before the last and
longer, until there are enough.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import chain, islice
from typing import Final

import bursar
from bursar.models import Entry

ENTRIES_MAX: Final = 300
"""How many are kept: a page."""

_SHORTEST: Final = timedelta(seconds=1)
_GROWTH: Final = 8
_MINUTE: Final = timedelta(minutes=1)
_WEEK: Final = timedelta(days=7)
_MONTH: Final = timedelta(days=30)
_TICK: Final = timedelta(milliseconds=1)
_ENOUGH: Final = 60
_READ_MAX: Final = 20_000
_PAGE_SIZE: Final = 2_000


@dataclass(frozen=True, slots=True)
class Filters:
    """Which entries are wanted; what is empty lets all through.

    Attributes:
        account: Of this account and those below it.
        kind: Of this kind.
        unit: Of this unit.
        reservation: Of this reservation.
        since: From this time on.
        until: Before this time.
        before: Not later than this entry, or before this time: the page before the one that ends
            there.
    """

    account: str = ""
    kind: str = ""
    unit: str = ""
    reservation: str = ""
    since: datetime | None = None
    until: datetime | None = None
    before: Entry | datetime | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """Entries, the latest first, and the filters that let them through."""

    filters: Filters
    entries: tuple[Entry, ...]

    def older(self) -> Filters:
        """Those of the page before: up to the oldest entry, or further back where none is new."""
        before = self.filters.before
        known = before.sequence if isinstance(before, Entry) else -1
        if any(one.sequence != known for one in self.entries):
            return replace(self.filters, before=self.entries[-1])
        if self.filters.since:
            return self.filters
        return replace(self.filters, before=_earliest(self.filters))


class EntryReader:
    """Reads the entries of one set of filters, and what is new of them."""

    def __init__(self, client: bursar.Client) -> None:
        self._client = client
        self._filters: Filters | None = None
        self._entries: deque[Entry] = deque(maxlen=ENTRIES_MAX)

    def read(self, filters: Filters) -> tuple[Entry, ...]:
        """The entries, the latest first."""
        if filters != self._filters:
            self._entries = self._look_back(filters)
            self._filters = filters
        elif filters.before is None:
            last = self._entries[-1] if self._entries else None
            since = last.time if last and last.time else datetime.now(UTC) - _MINUTE
            after = last.sequence if last else -1
            listed = self._listed(filters, since, filters.until)
            self._entries += (one for one in listed if one.sequence > after)
        return tuple(reversed(self._entries))

    def _look_back(self, filters: Filters) -> deque[Entry]:
        until, earliest = _end(filters), _earliest(filters)
        at, stretch = until or datetime.now(UTC), _SHORTEST
        entries: deque[Entry] = deque(maxlen=ENTRIES_MAX)
        while at > earliest and len(entries) < _ENOUGH:
            since = max(at - stretch, earliest)
            listed = self._listed(filters, since, until)
            found = list(islice(listed, _READ_MAX))
            if len(found) == _READ_MAX and stretch > _TICK:
                # The latest of so many are not worth reading all of them.
                stretch = max((at - since) / _GROWTH, _TICK)
                continue
            entries = deque(chain(found, listed, entries), ENTRIES_MAX)
            at = until = since
            stretch *= _GROWTH
        return entries

    def _listed(self, filters: Filters, since: datetime, until: datetime | None) -> Iterator[Entry]:
        # An operation of which a page had only a part is on both pages.
        latest = filters.before.sequence if isinstance(filters.before, Entry) else float("inf")
        listed = self._client.list_entries(
            filters.account,
            reservation=filters.reservation,
            unit=filters.unit,
            kinds=[filters.kind] if filters.kind else (),
            start_time=since,
            end_time=until,
            page_size=_PAGE_SIZE,
        )
        return (one for one in listed if one.sequence <= latest)


def _earliest(filters: Filters) -> datetime:
    """Where looking back ends; further back than that are the pages before."""
    usual = _WEEK if filters.before is None else _MONTH
    return filters.since or (_end(filters) or datetime.now(UTC)) - usual


def _end(filters: Filters) -> datetime | None:
    before = filters.before
    if isinstance(before, Entry):
        return before.time + _TICK if before.time else filters.until
    return before or filters.until
