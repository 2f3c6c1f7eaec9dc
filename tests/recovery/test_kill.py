"""R13: what was answered survives kill -9 of the daemon at any instant, exactly once."""

import random
import time
from pathlib import Path
from typing import Any

import pytest
from support.crew import LIMIT, Crew, check_answered, check_sums, restarted
from support.daemon import LONG, Daemon, new_seed

ROUNDS = 200 if LONG else 15
AGENTS = 4
CONFIG: dict[str, Any] = {"reservations": {"default_ttl": "1h", "key_retention": "1h"}}


def budgets(daemon: Daemon, crew: Crew) -> None:
    with daemon.client() as client:
        for account in ("acme", *crew.accounts):
            client.set_budget(account, unit="tokens", limit=LIMIT)


@pytest.mark.timeout(60 + ROUNDS * 20)
@pytest.mark.parametrize("durability", ["process", "power"])
def test_what_was_answered_is_there_exactly_once_after_every_kill(
    tmp_path: Path, durability: str
) -> None:
    """Goal: no interleaving of calls, the log, its sync, the import and a kill loses or doubles an
    answer. Method: agents journal each answer; the daemon dies after 20 ms to 1.6 s of that, in
    every third round a second time while it recovers; then journals and ledger are compared, what
    was not answered is repeated, and balances, journals and SQLite must agree."""
    seed = new_seed()
    print(f"seed {seed}")
    dice = random.Random(seed)
    rounds = ROUNDS if durability == "process" else ROUNDS // 3
    config = {**CONFIG, "store": {"durability": durability}}
    with Daemon(**config) as daemon, Crew(daemon, tmp_path, agents=AGENTS, seed=seed) as crew:
        budgets(daemon, crew)
        for number in range(rounds):
            crew.send("run")
            time.sleep(dice.choice((dice.uniform(0.02, 0.4), dice.uniform(0.4, 1.6))))
            crashed_at = time.monotonic()
            daemon.kill9()
            assert all(said.startswith("gone") for said in crew.wait())
            twice = number % 3 == 2
            if twice:
                assert daemon.start_and_crash(dice.uniform(0, 0.1))
            took = restarted(daemon)
            kept = crew.books()
            with daemon.client(timeout_s=30) as client:
                for book in kept.values():
                    check_answered(client, book, crashed_at=crashed_at)
                crew.settle()
                check_sums(daemon, client, crew)
            count = sum(len(book.holds) + len(book.recorded) for book in kept.values())
            print(f"round {number}: {count} keys, twice={twice}, started in {took:.2f} s")


@pytest.mark.timeout(120)
def test_crashes_upon_crashes_while_recovering_lose_nothing(tmp_path: Path) -> None:
    """A long log that SQLite has not taken over yet, and five kills within 100 ms of opening it."""
    seed = new_seed()
    print(f"seed {seed}")
    dice = random.Random(seed)
    with Daemon(**CONFIG) as daemon, Crew(daemon, tmp_path, agents=2, seed=seed) as crew:
        budgets(daemon, crew)
        crew.send("run")
        time.sleep(2)
        crashed_at = time.monotonic()
        daemon.kill9()
        crew.wait()
        opened = sum(daemon.start_and_crash(dice.uniform(0, 0.1)) for _ in range(5))
        assert opened == 5
        restarted(daemon)
        with daemon.client(timeout_s=30) as client:
            for book in crew.books().values():
                check_answered(client, book, crashed_at=crashed_at, newest=1_000)
            crew.settle()
            check_sums(daemon, client, crew)
