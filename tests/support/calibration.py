"""Ledgers made by hand for calibration, and what was asked of them."""

from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import count

from bursar.calibrate.runs import Run
from bursar.models import Entry, EntryKind

TIME = datetime(2026, 5, 1, 12, tzinfo=UTC)


def single(spent: int, claimed: int | None = None, *, key: str = "r") -> Run:
    """A run of one call."""
    most = spent if claimed is None else claimed
    return Run(key, spent, most, 0, exhausted=False, floors=(0,), totals=(0, spent))


class Entries:
    """Entries in the order in which they are told."""

    def __init__(self) -> None:
        self.told: list[Entry] = []
        self._sequence = count(1)
        self.time = TIME

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.told)

    def tell(
        self, kind: str, amount: int, reservation: str, *, account: str = "acme/a"
    ) -> "Entries":
        """One more row, of tokens."""
        entry = Entry(
            sequence=next(self._sequence),
            time=self.time,
            account=account,
            reservation=reservation,
            unit="tokens",
            kind=EntryKind(kind),
            amount=amount,
            admit_time=self.time,
            model="",
        )
        self.told.append(entry)
        return self
