"""TCP through packets that are lost, late or gone: retries charge once, deadlines hold."""

import re
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.crew import LIMIT, Crew, check_answered, check_sums
from support.daemon import LONG, Daemon, balance, new_seed
from support.places import Network
from support.spender import Spender

ROUNDS = 20 if LONG else 3
DEADLINE_S = 2.0


@pytest.fixture
def network() -> Iterator[Network]:
    with Network() as network:
        yield network


@pytest.fixture
def daemon(network: Network) -> Iterator[Daemon]:
    server = {"tcp": "127.0.0.1:0"}
    with Daemon(server=server, reservations={"key_retention": "1h"}) as daemon:
        yield daemon


def tcp_target(daemon: Daemon) -> str:
    return str(re.findall(r"127\.0\.0\.1:\d+", daemon.log)[-1])


@pytest.mark.timeout(60 + ROUNDS * 30)
def test_a_network_that_parts_and_heals_comes_to_the_exact_totals(
    tmp_path: Path, network: Network, daemon: Daemon
) -> None:
    """Goal: no call is lost or charged twice however its packets fare. Method: agents with journals
    call through loss and delay, are cut off in the middle, hear so by their deadlines, and repeat
    what was not answered once the network is back; journals and ledger are then compared."""
    seed = new_seed()
    print(f"seed {seed}")
    target = tcp_target(daemon)
    with Crew(
        daemon, tmp_path, agents=4, seed=seed, target=target, timeout_s=DEADLINE_S
    ) as crew, daemon.client(timeout_s=30) as client:  # fmt: skip
        for account in ("acme", *crew.accounts):
            client.set_budget(account, unit="tokens", limit=LIMIT)
        delays = 0
        for number in range(ROUNDS):
            network.lose((2, 5, 10)[number % 3])
            network.delay((5, 20, 40)[number % 3])
            crew.send("run")
            time.sleep(0.7)
            network.lose(100)
            parted = time.monotonic()
            assert all(said.startswith("gone") for said in crew.wait())
            took = time.monotonic() - parted
            assert took < DEADLINE_S + 5, "deadlines are those of the client"
            network.lose(0)
            delayed = network.delay_no_more()
            delays += delayed
            print(f"round {number}: told after {took:.1f} s, {delayed} packets delayed")
        assert delays > 0, "no round had late packets"
        crew.settle()
        for book in crew.books().values():
            check_answered(client, book, crashed_at=None)
        check_sums(daemon, client, crew)


def test_an_sdk_that_repeats_through_loss_and_a_parted_network_charges_once(
    network: Network, daemon: Daemon
) -> None:
    with ExitStack() as stack, daemon.client(timeout_s=30) as client:
        client.set_budget("acme", unit="tokens", limit=LIMIT)
        network.lose(3)
        agents = [
            stack.enter_context(Spender(tcp_target(daemon), f"acme/{number}", seconds=4))
            for number in range(3)
        ]
        time.sleep(2.5)
        network.lose(100)
        time.sleep(1.5)
        network.lose(0)
        spent = [agent.result()[0] for agent in agents]
        assert all(spent)
        assert balance(client, "acme") == (0, sum(spent), LIMIT - sum(spent))
