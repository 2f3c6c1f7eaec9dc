"""A disk that fills up under load and is emptied again: what was answered is there, once."""

import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import pytest
from support.bare import Bare, amounts
from support.crew import LIMIT, Crew, check_answered, check_sums
from support.daemon import LONG, Daemon, balance, new_seed
from support.places import small_disk

import bursar
from bursar.v1 import account_pb2 as ac
from bursar.v1 import ledger_pb2 as lg

MIB: Final = 2**20


def until(what: Callable[[], bool], why: str, *, patience_s: float = 20) -> None:
    deadline = time.monotonic() + patience_s
    while not what():
        assert time.monotonic() < deadline, why
        time.sleep(0.05)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("durability", ["process", "power"] if LONG else ["process"])
def test_a_disk_that_fills_under_load_loses_no_answer_and_agents_are_told(
    tmp_path: Path, durability: str
) -> None:
    """Goal: ENOSPC at any step of four busy agents loses and doubles nothing. Method: the disk is
    filled while they call; each is told by name; reads go on, also once there is room again, and
    writes come back with a restart; journals and ledger are then compared."""
    seed = new_seed()
    print(f"seed {seed}")
    config: dict[str, Any] = {"reservations": {"key_retention": "1h"}}
    config["store"] = {"durability": durability, "min_free_bytes": 0}
    with (
        small_disk(tmp_path / "disk", "64m") as disk,
        Daemon(**config) as daemon,
    ):
        daemon.move_store(disk.path)
        with Crew(daemon, tmp_path, agents=4, seed=seed) as crew:
            with daemon.client() as client:
                for account in ("acme", *crew.accounts):
                    client.set_budget(account, unit="tokens", limit=LIMIT)
            crew.send("run")
            time.sleep(0.5)
            disk.fill()
            assert set(crew.wait()) == {"gone: STORE_UNAVAILABLE"}
            is_read_only(daemon)
            disk.empty()
            is_read_only(daemon)
            assert daemon.terminate() == 4
            assert "Traceback" not in daemon.log
            assert "panicked" not in daemon.log
            daemon.start()
            with daemon.client(timeout_s=30) as client:
                for book in crew.books().values():
                    # A debit may be told by another channel than the log, as after a crash.
                    check_answered(client, book, crashed_at=time.monotonic() - 5)
                crew.settle()
                check_sums(daemon, client, crew)


def is_read_only(daemon: Daemon) -> None:
    """Balances are told, and nothing is changed, with the reason."""
    with daemon.client(timeout_s=30) as client, Bare(daemon.target) as bare:
        before = balance(client, "acme")
        for method, request in (
            ("LedgerService/Reserve", lg.ReserveRequest(account="acme", amounts=amounts(tokens=1))),
            ("LedgerService/Record", lg.RecordRequest(account="acme", amounts=amounts(tokens=1))),
            ("AccountService/Freeze", ac.FreezeRequest(account="acme")),
        ):
            failed = bare.fails(method, request)
            assert (failed.code, failed.reason) == ("UNAVAILABLE", "STORE_UNAVAILABLE")
            # By the log, or by the database that is filled from it.
            assert "No space left" in failed.message or "disk is full" in failed.message, failed
        assert balance(client, "acme") == before
    until(lambda: "only reads are answered" in daemon.log, "the operator is not told")


def test_a_lease_on_a_full_disk_stops_at_its_grant_and_its_count_is_kept(tmp_path: Path) -> None:
    bare = {"min_free_bytes": 0}
    with small_disk(tmp_path / "disk", "32m") as disk, Daemon(store=bare) as daemon:
        daemon.move_store(disk.path)
        with daemon.client(timeout_s=20, attempts=100) as client:
            client.set_budget("acme", unit="tokens", limit=1_000)
            held = client.reserve("acme/a", tokens=100, ttl_s=600)
            lease = held.lease(top_up=False)
            lease.debit(10)
            disk.fill()
            with pytest.raises(bursar.StoreUnavailable):
                record_until_full(client)
            assert lease.debit(20) is bursar.Verdict.OK
            disk.empty()
            daemon.terminate()
            daemon.start()
            until(lambda: balance(client, "acme") == (70, 30, 900), "it did not attach again")
            assert lease.debit(70) is bursar.Verdict.OK
            assert lease.debit(1) is bursar.Verdict.STOP
            assert held.commit().spent == {"tokens": 100}


def record_until_full(client: bursar.Client) -> None:
    """The last page of the log is there already, and takes some."""
    for _ in range(1_000):
        client.record("acme", amounts={"calls": 1})


LOOP: Final = """
import sys, time, bursar
done, refused = 0, 0
with bursar.connect(sys.argv[1], token=sys.argv[2], attempts=1) as client:
    while refused < 20:  # what is in the log may take less room in the database
        try:
            client.reserve(f"acme/loop/{done % 97}", tokens=1, labels={"x": "y" * 256}).release()
            done, refused = done + 1, 0
        except bursar.StoreUnavailable as error:
            said, refused = error, refused + 1
            time.sleep(0.1)
print(done, said.reason, said.code, said.message)
"""


@pytest.mark.timeout(180)
def test_an_agent_that_fills_the_disk_is_refused_while_others_end_what_they_hold(
    tmp_path: Path,
) -> None:
    """Goal: nobody takes the room that ends and operators need. Method: agents loop until a small
    disk is nearly full; others then end holds, the operator acts; with room all goes on, and the
    books balance, also after a kill."""
    with small_disk(tmp_path / "disk", "64m") as disk, Daemon(access={"mode": "enforce"}) as daemon:
        daemon.move_store(disk.path)
        with daemon.client(timeout_s=30, attempts=1) as operator:
            operator.set_budget("acme", unit="tokens", limit=1_000)
            token = operator.tokens.create(
                "x", role=bursar.Role.AGENT, account="acme/loop", ttl_s=600
            )
            held = [operator.reserve("acme/other", tokens=10, ttl_s=600) for _ in range(20)]
            leased = operator.reserve("acme/leased", tokens=100, ttl_s=600)
            lease = leased.lease()
            disk.leave(10 * MIB)
            for told in loops(daemon.target, token.secret):
                assert "STORE_NEARLY_FULL RESOURCE_EXHAUSTED the store is nearly full" in told
            until(lambda: "the store is nearly full" in daemon.log, "the operator is not told")
            with pytest.raises(bursar.StoreUnavailable) as full:
                operator.record("acme/other", tokens=1)
            assert (full.value.reason, full.value.kept) == ("STORE_NEARLY_FULL", True)
            with pytest.raises(bursar.StoreUnavailable):
                held[0].extend(tokens=20)
            assert held[0].commit(tokens=7).spent == {"tokens": 7}
            for one in held[1:]:
                one.release()
            assert lease.debit(100) is bursar.Verdict.OK
            operator.freeze("acme/loop", reason="it loops")
            operator.unfreeze("acme/loop")
            operator.set_budget("acme", unit="tokens", limit=2_000)
            operator.tokens.revoke(token.token.id)
            leased.commit()
            assert balance(operator, "acme") == (0, 107, 1_893)
            disk.empty()
            until(lambda: "the store has room again" in daemon.log, "the operator is not told")
            until(lambda: balance(operator, "acme")[1] == 108, "what was kept is not sent")
            operator.reserve("acme/loop", tokens=1).commit(tokens=1)
            daemon.kill9()
            daemon.start()
            assert balance(operator, "acme") == (0, 109, 1_891)


def loops(target: str, secret: str) -> list[str]:
    """What four agents say in the end that reserve and release without end."""
    command = [sys.executable, "-c", LOOP, target, secret]
    pipe = subprocess.PIPE
    with ExitStack() as stack:
        agents = [
            stack.enter_context(subprocess.Popen(command, stdout=pipe, text=True)) for _ in range(4)
        ]
        return [agent.communicate(timeout=120)[0] for agent in agents]
