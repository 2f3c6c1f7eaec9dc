"""Entries as `bursar top` reads them: the latest that filters let through, and the pages before.

They are listed from the oldest, so the latest are looked for in growing stretches.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Final

import bursar
from bursar.models import Entry

ENTRIES_MAX: Final = 300
"""How many are kept: a page."""

_LOOKBACKS: Final = tuple(timedelta(minutes=one) for one in (1, 10, 60, 360, 1_440, 10_080))
_DAY: Final = timedelta(days=1)
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
        before: Not later than this entry: the page before the one that ends with it.
    """

    account: str = ""
    kind: str = ""
    unit: str = ""
    reservation: str = ""
    since: datetime | None = None
    until: datetime | None = None
    before: Entry | None = None


class EntryReader:
    """Reads the entries of one set of filters, and what is new of them."""

    def __init__(self, client: bursar.Client) -> None:
        self._client = client
        self._filters: Filters | None = None
        self._entries: deque[Entry] = deque(maxlen=ENTRIES_MAX)

    def read(self, filters: Filters) -> tuple[Entry, ...]:
        """The entries, the latest first."""
        if filters != self._filters:
            self._entries.clear()
            self._look_back(filters)
            self._filters = filters
        elif filters.before is None:
            last = self._entries[-1] if self._entries else None
            since = last.time if last and last.time else datetime.now(UTC) - _LOOKBACKS[0]
            after = last.sequence if last else -1
            self._entries += (one for one in self._listed(filters, since) if one.sequence > after)
        return tuple(reversed(self._entries))

    def _look_back(self, filters: Filters) -> None:
        end = _end(filters) or datetime.now(UTC)
        usual = _DAY if filters.before is None else _MONTH
        longest = end - filters.since if filters.since else usual
        for stretch in (*(one for one in _LOOKBACKS if one < longest), longest):
            found = list(islice(self._listed(filters, end - stretch), _READ_MAX))
            if len(found) == _READ_MAX and self._entries:
                return  # the latest of so many are not worth reading all of them
            self._entries.clear()
            self._entries += found
            if len(found) >= _ENOUGH:
                return

    def _listed(self, filters: Filters, since: datetime) -> Iterator[Entry]:
        # An operation of which a page had only a part is on both pages.
        latest = filters.before.sequence if filters.before else float("inf")
        listed = self._client.list_entries(
            filters.account,
            reservation=filters.reservation,
            unit=filters.unit,
            kinds=[filters.kind] if filters.kind else (),
            start_time=since,
            end_time=_end(filters),
            page_size=_PAGE_SIZE,
        )
        return (one for one in listed if one.sequence <= latest)


def _end(filters: Filters) -> datetime | None:
    before = filters.before
    return before.time + _TICK if before and before.time else filters.until
