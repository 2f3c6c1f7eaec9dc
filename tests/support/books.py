"""What a store's SQLite file says, read as an auditor would: with sqlite3 and nothing of ours."""

import sqlite3
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

Sums = Mapping[tuple[int, str, str], int]
"""Amounts by reservation, unit and kind."""


@dataclass(frozen=True)
class Window:
    """One window, and what the entries that count in it come to."""

    account: str
    unit: str
    spent: int
    counted_spent: int
    pending_held: int


def read(path: Path) -> tuple[list[Window], Sums]:
    """The windows, and the sums of entries by reservation."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)) as books:
        windows = books.execute(
            """
            SELECT a.path, b.unit, w.spent - w.pruned,
              coalesce((SELECT sum(e.amount) FROM entries e
                JOIN chain_windows c ON c.chain = e.chain
                WHERE c.window = w.id AND e.kind = 'spend' AND e.unit = b.unit), 0),
              coalesce((SELECT sum(e.amount) FROM entries e
                JOIN chain_windows c ON c.chain = e.chain
                JOIN reservations r ON r.sequence = e.reservation
                WHERE c.window = w.id AND e.kind = 'hold' AND e.unit = b.unit
                  AND r.state = 'pending'), 0)
            FROM windows w JOIN budgets b ON b.id = w.budget JOIN accounts a ON a.id = b.account
            """
        ).fetchall()
        sums = books.execute(
            """
            SELECT reservation, unit, kind, sum(amount) FROM entries
            WHERE reservation IS NOT NULL GROUP BY reservation, unit, kind
            """
        ).fetchall()
        [(intact,)] = books.execute("PRAGMA quick_check").fetchall()
        assert intact == "ok"
    by_reservation = {(sequence, unit, kind): amount for sequence, unit, kind, amount in sums}
    return [Window(*row) for row in windows], by_reservation


def sequence(reservation: str) -> int:
    """The number under which the books know a reservation."""
    return int(reservation.split("-")[1], 16)
