"""SIGTERM: the daemon finishes what it has begun, keeps the holds, and loses no answer."""

import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from support.bare import Bare, amounts
from support.crew import LIMIT, Crew, check_answered, check_sums
from support.daemon import LONG, Daemon, new_seed, picture

import bursar
from bursar.v1 import access_pb2 as ax
from bursar.v1 import account_pb2 as ac
from bursar.v1 import ledger_pb2 as lg

ROUNDS = 50 if LONG else 4
CONFIG: dict[str, Any] = {"reservations": {"default_ttl": "1h", "key_retention": "1h"}}


@pytest.mark.timeout(60 + ROUNDS * 20)
@pytest.mark.parametrize("durability", ["process", "power", "memory"])
def test_a_drain_under_load_ends_with_code_0_and_loses_no_answer(
    tmp_path: Path, durability: str
) -> None:
    """In every durability: a clean end writes everything, so no debit is missing either."""
    seed = new_seed()
    print(f"seed {seed}")
    dice = random.Random(seed)
    config = {**CONFIG, "store": {"durability": durability}}
    with Daemon(**config) as daemon, Crew(daemon, tmp_path, agents=3, seed=seed) as crew:
        with daemon.client() as client:
            for account in ("acme", *crew.accounts):
                client.set_budget(account, unit="tokens", limit=LIMIT)
        for _ in range(ROUNDS):
            crew.send("run")
            time.sleep(dice.uniform(0.1, 0.8))
            assert daemon.terminate() == 0
            assert all(said.startswith("gone") for said in crew.wait())
            assert not daemon.socket_path.exists()
            daemon.start()
            with daemon.client(timeout_s=30) as client:
                for book in crew.books().values():
                    check_answered(client, book, crashed_at=None)
                crew.settle()
                check_sums(daemon, client, crew)
        assert daemon.log.count("drained after") == ROUNDS
        assert "closed cleanly" in daemon.log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_open_stream_and_idle_clients_do_not_hold_up_a_drain(number: signal.Signals) -> None:
    with Daemon() as daemon, daemon.client() as client, daemon.client() as idle:
        idle.list_accounts()
        watch = client.watch_accounts()
        next(watch)
        begun = time.monotonic()
        assert daemon._end(number) == 0
        assert time.monotonic() - begun < 5
        with pytest.raises((StopIteration, bursar.SidecarUnavailable)):
            next(watch)


@pytest.mark.parametrize("durability", ["process", "power", "memory"])
def test_every_durability_keeps_the_whole_ledger_over_a_clean_restart(durability: str) -> None:
    """Balances, freezes, budgets, thresholds, keys and reservations of all states."""
    with Daemon(store={"durability": durability}) as daemon, daemon.client() as client:
        warn = bursar.Threshold(500, bursar.Verdict.WARN, bursar.Advice(max_new_tokens=9))
        client.set_budget("acme", unit="tokens", limit=100, thresholds=[warn])
        client.set_budget("acme", unit="usd_nanos", limit=7, period="day@Europe/Berlin")
        client.set_budget("acme", unit="calls", limit=70, period="rolling:3600s")
        client.set_budget("acme/a", unit="vram_bytes", limit=50)
        held = client.reserve(
            "acme/a/x", amounts={"tokens": 30, "vram_bytes": 20, "calls": 1}, ttl_s=600,
            idempotency_key="k", labels={"action": "y"},
        )  # fmt: skip
        held.debit(tokens=11)
        nested = client.reserve("acme/a/x/y", tokens=5, parent=held.id, ttl_s=600)
        committed = client.reserve("acme/b", tokens=3, idempotency_key="c")
        committed.commit(tokens=45)
        client.record("acme/b", amounts={"tokens": 1, "calls": 2}, idempotency_key="r")
        client.reserve("acme/b", tokens=3, idempotency_key="l").release()
        client.freeze("acme/c", reason="audit")
        before = picture(client)
        infos = [client.get_reservation(one.id) for one in (held, nested, committed)]
        budgets = client.get_account("acme").budgets
        for _ in range(2):
            daemon.restart()
            assert picture(client) == before
            assert client.get_account("acme").budgets == budgets
            again = [client.get_reservation(one.id) for one in (held, nested, committed)]
            kept = [(one.id, one.state, one.used, one.spent) for one in again]
            assert kept == [(one.id, one.state, one.used, one.spent) for one in infos]
            assert again[0].granted == infos[0].granted
            assert client.reserve(
                "acme/a/x", amounts={"tokens": 30, "vram_bytes": 20, "calls": 1}, ttl_s=600,
                idempotency_key="k", labels={"action": "y"},
            ).id == held.id  # fmt: skip
            client.record("acme/b", amounts={"tokens": 1, "calls": 2}, idempotency_key="r")
            assert picture(client) == before
        nested.commit(tokens=5)
        assert held.commit(tokens=30).spent == {"tokens": 30, "calls": 1}
        [tokens] = [one for one in client.get_account("acme").balances if one.unit == "tokens"]
        assert (tokens.held, tokens.spent) == (0, 30 + 5 + 45 + 1)


@pytest.mark.parametrize("durability", ["process", "power"])
def test_every_kind_of_call_survives_a_kill_right_after_its_answer(durability: str) -> None:
    """One call, then kill -9 at once, for each call that changes anything; what an operator did is
    an entry of the history as well."""
    with Daemon(store={"durability": durability}) as daemon:
        with daemon.client() as client:
            client.set_budget("acme", unit="tokens", limit=1_000)
            one = client.reserve("acme/a", tokens=10, ttl_s=600).id
            two = client.reserve("acme/a", tokens=10, ttl_s=600).id
            token = client.tokens.create("first", role=bursar.Role.AGENT, ttl_s=600).token.id
            client.set_budget("acme/gone", unit="tokens", limit=7)
        total = ac.Period(kind=ac.Period.KIND_TOTAL)
        budget = ac.Budget(account="acme", unit="tokens", limit=5, period=total)
        made = ax.CreateTokenRequest(name="second", role=ax.ROLE_AGENT)
        made.ttl.FromSeconds(60)
        gone = ac.RetireAccountRequest(account="acme/gone")
        calls: list[tuple[str, Any, str]] = [
            (
                "LedgerService/Reserve",
                lg.ReserveRequest(account="acme/b", amounts=amounts(tokens=7)),
                "",
            ),
            (
                "LedgerService/Extend",
                lg.ExtendRequest(reservation=one, granted=amounts(tokens=20)),
                "",
            ),
            (
                "LedgerService/Commit",
                lg.CommitRequest(reservation=one, actual=amounts(tokens=25)),
                "",
            ),
            ("LedgerService/Release", lg.ReleaseRequest(reservation=two), ""),
            (
                "LedgerService/Record",
                lg.RecordRequest(account="acme", amounts=amounts(tokens=4)),
                "",
            ),
            ("AccountService/Freeze", ac.FreezeRequest(account="acme/a", reason="why"), "why"),
            ("AccountService/Unfreeze", ac.UnfreezeRequest(account="acme/a"), "ended its freeze"),
            ("AccountService/SetBudget", ac.SetBudgetRequest(budget=budget), "limit of 5 tokens"),
            ("AccountService/RetireAccount", gone, "retired it"),
            ("AccessService/CreateToken", made, "(second)"),
            ("AccessService/RevokeToken", ax.RevokeTokenRequest(id=token), "revoked the token"),
        ]
        for method, request, noted in calls:
            with Bare(daemon.target) as bare:
                bare(method, request)
                with daemon.client() as client:
                    answered = (picture(client), client.tokens.list())
                daemon.kill9()
            daemon.start()
            with daemon.client() as client:
                assert (picture(client), client.tokens.list()) == answered, method
                operated = client.list_entries(kinds=[bursar.EntryKind.OPERATED])
                assert any(noted in entry.detail for entry in operated), method


def test_memory_durability_starts_after_a_kill_and_agrees_with_its_books(tmp_path: Path) -> None:
    """It may lose what was answered, never its consistency: the daemon and SQLite say the same."""
    config: dict[str, Any] = {**CONFIG, "store": {"durability": "memory"}}
    with Daemon(**config) as daemon, daemon.client() as client:
        client.set_budget("acme", unit="tokens", limit=LIMIT)
        for number in range(200):
            with client.reserve("acme/a", tokens=5) as reservation:
                reservation.commit(tokens=number % 7)
        next(client.list_entries("acme", page_size=1))  # now it is in SQLite
        client.reserve("acme/a", tokens=5)
        daemon.kill9()
        daemon.start()
        [balance] = client.get_account("acme").balances
        assert balance.spent == sum(number % 7 for number in range(200))
        assert balance.held in (0, 5)
        client.reserve("acme/a", tokens=5).commit(tokens=5)
