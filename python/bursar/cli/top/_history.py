"""What an account spent by hour or by day: sums of its entries, read from the latest on."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Final

from rich.text import Text

import bursar
from bursar.cli._output import safe
from bursar.cli.top import _draw as draw
from bursar.models import Entry, EntryKind

STRETCHES: Final = MappingProxyType(
    {"hour": (timedelta(hours=1), 24), "day": (timedelta(days=1), 30)}
)
"""How long one sum is of, and how many there are; days are those of UTC."""

_PATIENCE_S: Final = 1.0
_SETTLED: Final = timedelta(minutes=1)
_PAGE_SIZE: Final = 10_000
_BAR_CELLS: Final = 40


@dataclass(frozen=True, slots=True)
class SpentOf:
    """Whose spending is wanted, of which unit, and by which of `STRETCHES`."""

    account: str = ""
    unit: str = "usd_nanos"
    by: str = "hour"


@dataclass(frozen=True, slots=True)
class Spent:
    """The sums, the latest first; None: not read yet. `whole`: there is no more to read now."""

    of: SpentOf
    sums: tuple[tuple[datetime, int | None], ...]
    whole: bool


@dataclass(slots=True)
class _Sum:
    amount: int = 0
    last: Entry | None = None
    whole: bool = False


class SpentReader:
    """Sums what is wanted; what takes long it goes on with the next time."""

    def __init__(
        self, client: bursar.Client, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._client = client
        self._clock = clock
        self._of: SpentOf | None = None
        self._sums: dict[datetime, _Sum] = {}

    def read(self, of: SpentOf) -> Spent:
        """Reads for a second at most, the latest first."""
        if of != self._of:
            self._of, self._sums = of, {}
        length, count = STRETCHES[of.by]
        now = datetime.now(UTC)
        latest = now - (now - datetime.min.replace(tzinfo=UTC)) % length
        starts = [latest - length * back for back in range(count)]
        until_s = self._clock() + _PATIENCE_S
        whole = all(self._add(of, start, start + length, until_s) for start in starts)
        sums = ((start, self._sums.get(start)) for start in starts)
        return Spent(of, tuple((start, one.amount if one else None) for start, one in sums), whole)

    def _add(self, of: SpentOf, start: datetime, end: datetime, until_s: float) -> bool:
        """Adds what was not added yet; whether there was time for all of it."""
        known = self._sums.setdefault(start, _Sum())
        if known.whole:
            return True
        since = known.last.time if known.last else start
        after = known.last.sequence if known.last else -1
        listed = self._client.list_entries(
            of.account,
            unit=of.unit,
            kinds=[EntryKind.SPEND],
            start_time=since,
            end_time=end,
            page_size=_PAGE_SIZE,
        )
        for entry in listed:
            if entry.sequence <= after:
                continue
            is_next = known.last is not None and entry.sequence != known.last.sequence
            if is_next and self._clock() > until_s:
                return False
            known.amount += entry.amount
            known.last = entry
        known.whole = end + _SETTLED < datetime.now(UTC)
        return self._clock() <= until_s


def drawn(spent: Spent) -> Text:
    """The sums as bars, all of one scale."""
    of, amounts = spent.of, [amount or 0 for _, amount in spent.sums]
    text = Text().append(f"{safe(of.account) or 'all'}  {of.unit} by {of.by}\n", "bold")
    total, more = draw.signed(of.unit, sum(amounts)), "" if spent.whole else ", more is being read"
    text.append(f"{total} in {len(amounts)} {of.by}s{more}\n\n")
    form = "%d %b %H:%M" if of.by == "hour" else "%d %b"
    for start, amount in spent.sums:
        bar = draw.SPENT * draw.cells(amount or 0, max(amounts), _BAR_CELLS)
        shown = draw.signed(of.unit, amount) if amount else "" if amount == 0 else "?"
        text.append(f"{start.strftime(form)}  {bar:<{_BAR_CELLS}}  {shown}\n")
    return text
