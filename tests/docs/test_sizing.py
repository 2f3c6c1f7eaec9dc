"""What an account, a reservation and an entry take is what the operators' page says, with room."""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing

import pytest
from support.bare import amounts
from support.daemon import Daemon
from support.pages import DOCS, rows
from support.wire import Call, Wire, call

from bursar.v1 import ledger_pb2 as lg

COUNT = 10_000
HOLDS = 30_000  # what the accounts left free is little beside them
TOLD = {
    what: int(most.split()[0].replace(",", ""))
    for what, most, *_ in rows(DOCS / "operations.md", "Sizing")
}
ACCOUNTS = [{"path": "acme/*/*", "budgets": [{"unit": "tokens", "limit": 10**9}]}, {"path": "**"}]


def path(number: int) -> str:
    return f"acme/team{number % 100}/agent{number}"


def records() -> Iterator[Call]:
    for number in range(COUNT):
        request = lg.RecordRequest(account=path(number), amounts=amounts(tokens=1))
        yield call("LedgerService/Record", request)


def reservations() -> Iterator[Call]:
    for number in range(HOLDS):
        request = lg.ReserveRequest(
            account=path(number % COUNT), amounts=amounts(tokens=1), idempotency_key=f"key-{number}"
        )
        yield call("LedgerService/Reserve", request)


def entries(daemon: Daemon) -> int:
    with closing(sqlite3.connect(f"file:{daemon.store_path}?mode=ro", uri=True)) as database:
        [count] = database.execute("SELECT count(*) FROM entries").fetchone()
    return int(count)


@pytest.mark.timeout(120)
def test_sizes_are_as_the_page_says() -> None:
    ended: Iterator[Call] = iter(())
    with Daemon(accounts=ACCOUNTS, watchdog={"mode": "off"}) as daemon:
        with Wire(daemon.socket_path, connections=4) as wire:
            begun = daemon.rss_bytes()
            wire.keep_busy(lambda *_: ended, records(), in_flight=64)
            time.sleep(1)
            with_accounts = daemon.rss_bytes()
            wire.keep_busy(lambda *_: ended, reservations(), in_flight=64)
            with_holds = daemon.rss_bytes()
        daemon.terminate()  # it takes the whole log into the store
        made, store = entries(daemon), daemon.store_path.stat().st_size
    assert made == 2 * COUNT + HOLDS, "limits, what was spent, what is held"
    measured = {
        "an account with one budget": (with_accounts - begun) // COUNT,
        "a pending reservation with a key": (with_holds - with_accounts) // HOLDS,
        "an entry": store // made,
    }
    print(measured, f"{made} entries")
    for what, size in measured.items():
        assert TOLD[what] // 4 < size <= TOLD[what], (what, size)
