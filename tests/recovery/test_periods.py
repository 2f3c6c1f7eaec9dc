"""Budgets of every period, charged alike, stand alike after any crash: all windows recover."""

import random
import threading
import time
from typing import Any

import pytest
from support.daemon import LONG, Daemon, new_seed

import bursar

ROUNDS = 60 if LONG else 6
PERIODS = ("total", "hour", "day@Europe/Berlin", "week", "month", "rolling:3600s", "rolling:30d")
LIMIT = 10**9
CONFIG: dict[str, Any] = {"reservations": {"default_ttl": "1h", "key_retention": "2s"}}


def spend(daemon: Daemon, account: str, dice: random.Random, stopping: threading.Event) -> None:
    """Calls of all kinds until the daemon is gone, or the test is over."""
    held: list[bursar.Reservation] = []
    with daemon.client(attempts=1) as client:
        try:
            while not stopping.is_set():
                held.append(client.reserve(account, tokens=dice.randint(1, 50)))
                held[-1].debit(tokens=1)
                one = dice.randrange(len(held))
                match dice.randrange(6):
                    case 0:
                        held.pop(one).commit(tokens=dice.randint(0, 80))
                    case 1:
                        held.pop(one).release()
                    case 2:
                        held[one].release()
                        held.pop(one).commit(tokens=dice.randint(0, 60))
                    case 3:
                        client.record(account, tokens=3)
                    case 4:
                        client.extend(held[one].id, tokens=60)
        except bursar.BursarError:
            return


@pytest.mark.timeout(60 + ROUNDS * 15)
def test_budgets_of_every_period_agree_after_every_crash() -> None:
    """Method: one account has a budget of each period; whatever happens is charged to all of them,
    so all show the same. At a full hour, a new hour's window would differ: the hour is left out
    from then on."""
    seed = new_seed()
    print(f"seed {seed}")
    dice = random.Random(seed)
    with Daemon(**CONFIG) as daemon:
        with daemon.client() as client:
            for period in PERIODS:
                client.set_budget("acme", unit="tokens", limit=LIMIT, period=period)
            begun = client.get_account("acme").balances
        for number in range(ROUNDS):
            stopping = threading.Event()
            threads = [
                threading.Thread(
                    target=spend,
                    args=(daemon, f"acme/{n}", random.Random(dice.random()), stopping),
                )
                for n in range(4)
            ]
            for thread in threads:
                thread.start()
            time.sleep(dice.uniform(0.2, 1.0))
            (daemon.kill9 if number % 3 else daemon.terminate)()
            stopping.set()
            for thread in threads:
                thread.join()
            if number % 3 == 1:
                daemon.start_and_crash(dice.uniform(0, 0.05))
            daemon.start()
            with daemon.client() as client:
                now = client.get_account("acme").balances
            same = [
                one for one, old in zip(now, begun, strict=True) if one.start_time == old.start_time
            ]
            assert len(same) >= len(PERIODS) - 3
            assert len({(one.held, one.spent) for one in same}) == 1, same
            print(f"round {number}: held {same[0].held}, spent {same[0].spent}")
        assert same[0].spent > 0
