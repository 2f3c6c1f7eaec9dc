"""Agents in processes of their own on one daemon, and their journals held against its ledger."""

import multiprocessing
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import bursar
from support import books, worker
from support.daemon import Daemon, balance

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.process import BaseProcess

PATIENCE_S = 60.0
FLOOR_S = 1.0  # a debit that was answered so long before a crash is in the log (every 100 ms)
LIMIT = 10**15


class Crew:
    """Some agents; as a context manager they start and end.

    Args:
        daemon: The one that they call.
        folder: Where their journals go.
        agents: How many there are.
        seed: What they do.
        target: Where they call it; None: at its socket.
        timeout_s: The deadline of each call.
    """

    def __init__(
        self,
        daemon: Daemon,
        folder: Path,
        *,
        agents: int,
        seed: int,
        target: str | None = None,
        timeout_s: float = 20,
    ) -> None:
        self._target = target or daemon.target
        self._timeout_s = timeout_s
        self._context = multiprocessing.get_context("spawn")
        self._folder = folder
        self.accounts = [f"acme/team{number % 2}/agent{number}" for number in range(agents)]
        self._seed = seed
        self._pipes: list[Connection] = []
        self._processes: list[BaseProcess] = []

    def __enter__(self) -> Self:
        for number, account in enumerate(self.accounts):
            mine, theirs = self._context.Pipe()
            seed = (self._seed * 1_000 + number) % 2**31
            where = (self._target, self._timeout_s)
            arguments = (theirs, where, account, seed, str(self._journal(account)))
            process = self._context.Process(target=worker.work, args=arguments, daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(mine)
            self._processes.append(process)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for pipe, process in zip(self._pipes, self._processes, strict=True):
            if process.is_alive() and kind is None:
                pipe.send("end")
            else:
                process.kill()
            process.join(PATIENCE_S)

    def _journal(self, account: str) -> Path:
        return self._folder / f"{account.replace('/', '-')}.jsonl"

    def send(self, order: str) -> None:
        """Tells all agents to run, or to settle."""
        for pipe in self._pipes:
            pipe.send(order)

    def wait(self) -> list[str]:
        """What they say when they have done so, or when the daemon was gone."""
        said = []
        for pipe in self._pipes:
            assert pipe.poll(PATIENCE_S), "an agent neither ends nor goes on"
            said.append(pipe.recv())
        return said

    def books(self) -> dict[str, worker.Book]:
        """Their journals."""
        return {account: worker.read(self._journal(account)) for account in self.accounts}

    def settle(self) -> None:
        """Has them repeat what was not answered, and some of what was."""
        self.send("settle")
        assert self.wait() == ["done"] * len(self._pipes)


def check_answered(
    client: bursar.Client, book: worker.Book, *, crashed_at: float | None, newest: int = 60
) -> None:
    """Every answered operation is there after a restart: states, amounts, and debits' floor.

    Args:
        client: Of the restarted daemon.
        book: What an agent was told, and it has not gone on since.
        crashed_at: When the daemon was killed; None: it was not, so no debit may be missing.
        newest: How many reservations are looked at, those that live apart.
    """
    uncertain = book.unanswered["key"] if book.unanswered else None
    chosen = dict(list(book.holds.items())[-newest:]) | book.live()
    for key, hold in chosen.items():
        found = client.get_reservation(hold.id)
        if key == uncertain:
            continue
        assert found.state.name == hold.state, (key, found, hold)
        if hold.spent is not None:
            assert found.spent.get("tokens", 0) == hold.spent, (key, found, hold)
            continue
        assert found.granted.get("tokens", 0) == hold.granted, (key, found, hold)
        sure = (used for at, used in hold.debits if crashed_at is None or at < crashed_at - FLOOR_S)
        assert max(sure, default=0) <= found.used.get("tokens", 0) <= hold.used, (key, found, hold)


def check_sums(daemon: Daemon, client: bursar.Client, crew: Crew) -> None:
    """After everybody has settled: balances are what journals say and what the books say."""
    kept = crew.books()
    root_held = sum(book.held() for book in kept.values())
    root_spent = sum(book.spent() for book in kept.values())
    expected = {"acme": (root_held, root_spent)}
    expected |= {account: (book.held(), book.spent()) for account, book in kept.items()}
    for account, (held, spent) in expected.items():
        assert balance(client, account) == (held, spent, LIMIT - held - spent), account
    next(client.list_entries("acme", page_size=1), None)  # what was answered is in the books then
    windows, sums = books.read(daemon.store_path)
    assert {window.account for window in windows} == set(expected)
    used_live = {
        account: sum(hold.used for hold in book.live().values()) for account, book in kept.items()
    }
    used_live["acme"] = sum(used_live.values())
    for window in windows:
        held, spent = expected[window.account]
        live = used_live[window.account]
        assert window.spent == window.counted_spent == spent - live, window
        assert window.pending_held == held + live, window
    for book in kept.values():
        for hold in book.holds.values():
            number = books.sequence(hold.id)
            of = {
                kind: sums.get((number, "tokens", kind), 0) for kind in ("hold", "return", "spend")
            }
            assert of["hold"] == hold.granted, (hold, of)
            assert of["spend"] == (hold.spent or 0), (hold, of)
            kept_back = (
                hold.granted - min(hold.granted, hold.spent) if hold.spent is not None else 0
            )
            assert of["return"] == kept_back, (hold, of)


def restarted(daemon: Daemon) -> float:
    """Starts the daemon; how long it took."""
    begun = time.monotonic()
    daemon.start()
    return time.monotonic() - begun
