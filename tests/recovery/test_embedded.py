"""R13 without a daemon: kill -9 of the process that has the ledger open; another opens it."""

import multiprocessing
import random
import time
from pathlib import Path
from typing import Any

import pytest
from support import books, worker
from support.bare import Failed
from support.daemon import LONG, balance, new_seed

import bursar
from bursar.v1 import account_pb2, ledger_pb2

ROUNDS = 100 if LONG else 8
LIMIT = 10**15


class Embedded:
    """An embedded ledger behind the calls that an agent makes."""

    def __init__(self, store: Path) -> None:
        self.client = bursar.open(store)

    def __call__(self, method: str, request: Any) -> Any:
        module = ledger_pb2 if method.startswith("LedgerService") else account_pb2
        answer = getattr(module, method.partition("/")[2] + "Response")
        try:
            return self.client._transport.call(method, request, answer)
        except bursar.BursarError as error:
            raise Failed(error.code, error.reason, error.message, error.metadata) from None


def host(store: str, journal: str, seed: int) -> None:
    """The process that is killed."""
    embedded = Embedded(Path(store))
    embedded.client.set_budget("acme", unit="tokens", limit=LIMIT)
    agent = worker.Agent(embedded, "acme/a", seed, Path(journal))
    agent.settle()
    while True:
        agent.step()


@pytest.mark.timeout(60 + ROUNDS * 10)
def test_an_embedded_ledger_survives_kills_of_its_host(tmp_path: Path) -> None:
    """Method: as for the daemon: an agent journals every answer, its process dies at random, and
    journal, ledger and SQLite have to agree. A hold lasts for an hour, so none expires."""
    seed = new_seed()
    print(f"seed {seed}")
    dice = random.Random(seed)
    store, journal = tmp_path / "ledger.db", tmp_path / "journal.jsonl"
    context = multiprocessing.get_context("spawn")
    for number in range(ROUNDS):
        before = journal.stat().st_size if journal.exists() else 0
        process = context.Process(target=host, args=(str(store), str(journal), seed + number))
        process.start()
        while not journal.exists() or journal.stat().st_size <= before:
            assert process.is_alive()
            time.sleep(0.01)
        time.sleep(dice.uniform(0.0, 0.5))
        process.kill()
        process.join()
        _mend(journal)
        embedded = Embedded(store)
        with embedded.client as client:
            agent = worker.Agent(embedded, "acme/a", seed, journal)
            _compare(client, agent.book)
            agent.settle()
            agent.repeat(20)
            book = agent.book
            assert balance(client, "acme")[:2] == (book.held(), book.spent())
            agent.close()
            print(f"round {number}: {len(book.holds)} reservations, {len(book.live())} live")
        windows, _ = books.read(store)
        for window in windows:
            assert window.spent == window.counted_spent
            assert window.pending_held == book.held() + sum(h.used for h in book.live().values())


def _mend(journal: Path) -> None:
    """Cuts off a line that the kill tore: nobody was told of it."""
    text = journal.read_bytes()
    journal.write_bytes(text[: text.rfind(b"\n") + 1])


def _compare(client: bursar.Client, book: worker.Book) -> None:
    uncertain = book.unanswered["key"] if book.unanswered else None
    for key, hold in list(book.holds.items())[-100:]:
        if key == uncertain:
            continue
        found = client.get_reservation(hold.id)
        assert found.state.name == hold.state, (key, found, hold)
        if hold.spent is not None:
            assert found.spent.get("tokens", 0) == hold.spent


def test_a_store_is_open_in_one_process_at_a_time(tmp_path: Path) -> None:
    with bursar.open(tmp_path / "ledger.db") as first:
        first.set_budget("acme", unit="tokens", limit=5)
        with pytest.raises(bursar.StoreUnavailable) as caught:
            bursar.open(tmp_path / "ledger.db")
        assert "ledger.db" in str(caught.value)
        assert first.reserve("acme/a", tokens=5).granted == {"tokens": 5}
    with bursar.open(tmp_path / "ledger.db") as second:
        assert second.get_account("acme").balances[0].held == 5
