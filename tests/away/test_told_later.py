"""Ends that no sidecar answered: kept, sent again until answered, counted once."""

import asyncio
import logging
import multiprocessing
import random
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from support.away import told, wait_for, wait_until_told
from support.daemon import LONG, Daemon, balance, new_seed

import bursar
from bursar import ReservationState
from bursar._journal import Journal, Kept
from bursar.v1 import ledger_pb2 as lg

SPAWN = multiprocessing.get_context("spawn")


def test_without_a_sidecar_nothing_is_admitted_and_the_error_says_what_to_do() -> None:
    with Daemon(in_memory=True) as daemon, daemon.client(timeout_s=5) as client:
        client.reserve("acme", tokens=1).release()
        daemon.kill9()
        with pytest.raises(bursar.SidecarUnavailable) as caught:
            client.reserve("acme", tokens=1)
        assert (caught.value.decision, caught.value.kept) == ("fail_closed", False)
        assert "the decision is fail_closed: nothing may be spent. Start the" in str(caught.value)
        assert "when_away=bursar.FailOpen(" in str(caught.value)
        assert client.away.since is not None
        daemon.start()
        client.reserve("acme", tokens=1).release()
        assert told(client)


@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_a_commit_that_was_not_answered_is_told_once_the_sidecar_is_back(how: str) -> None:
    with Daemon() as daemon, daemon.client(timeout_s=1) as client:
        client.set_budget("acme", unit="tokens", limit=1_000)
        first, second = (client.reserve("acme", tokens=100) for _ in range(2))
        second.debit(tokens=30)

        def end() -> None:
            for ending in (lambda: first.commit(tokens=40), second.release):
                with pytest.raises(bursar.SidecarError, match="sent until it is answered") as error:
                    ending()
                assert error.value.kept
            assert first.ended
            assert second.ended
            assert client.away.waiting_count == 2

        if how == "killed":
            time.sleep(0.3)  # by then the debit is logged
            daemon.kill9()
            end()
            daemon.start()
        else:
            with daemon.stopped():
                end()
        wait_for(lambda: told(client))
        assert client.away.told_count == 2
        assert balance(client, "acme") == (0, 70, 930)


def test_what_a_lease_has_counted_is_told_later_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """On shared memory, and where the sidecar has not heard the last counts: by its release."""
    with Daemon() as daemon, daemon.client(timeout_s=1, attempts=2) as client:
        client.set_budget("acme", unit="tokens", limit=1_000)
        near = client.reserve("acme", tokens=50, ttl_s=60)
        near_lease = near.lease(top_up=False)
        monkeypatch.setattr(client._transport, "lease_socket", None)
        far = client.reserve("acme", tokens=50, ttl_s=60)
        far_lease = far.lease(top_up=False)
        daemon.kill9()
        near_lease.debit(20)
        far_lease.debit(7)
        with pytest.raises(bursar.SidecarUnavailable):
            near.commit(tokens=near_lease.used)
        with pytest.raises(bursar.SidecarUnavailable):
            far.release()
        daemon.start()
        wait_for(lambda: told(client))
        assert balance(client, "acme") == (0, 27, 973)


def test_what_the_sidecar_will_never_take_is_told_of_as_lost(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    with Daemon() as daemon:
        journal = Journal(tmp_path, daemon.target)
        unknown = lg.CommitRequest(reservation="ffffffff-1-0")
        journal.keep(Kept("LedgerService/Commit", unknown.SerializeToString()))
        journal.keep(Kept("LedgerService/Commit", b"\xff"))
        journal.keep(Kept("LedgerService/OfANewerVersion", b""))
        good = lg.RecordRequest(account="acme", amounts=[lg.Amount(unit="tokens", value=5)])
        journal.keep(Kept("LedgerService/Record", good.SerializeToString()))
        journal.close()
        with bursar.connect(daemon.target, journal=tmp_path) as client:
            wait_for(lambda: told(client))
            assert (client.away.lost_count, client.away.told_count) == (3, 1)
        assert list(tmp_path.iterdir()) == []
    assert caplog.text.count("lost, no sidecar takes it") == 3
    assert 'reservation: "ffffffff-1-0"' in caplog.text


def test_what_is_still_not_told_when_the_client_closes_is_said(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    for folder, level, how in (
        (None, logging.ERROR, "1 calls were not told to the sidecar: lost"),
        (tmp_path, logging.WARNING, "1 calls were not told to the sidecar: kept for the next"),
    ):
        client = bursar.connect(f"{tmp_path}/none", attempts=1, journal=folder)
        with pytest.raises(bursar.SidecarUnavailable, match="it is kept"):
            client.release("r")
        client.close()
        client.close()
        assert [one.levelno for one in caplog.records if how in one.message] == [level]


def _spend(pipe: Any, target: str, folder: Path, seed: int) -> None:
    """Reserves, then ends all of them one after the other, in one way or the other."""
    dice = random.Random(seed)
    with bursar.connect(target, journal=folder, timeout_s=30, attempts=100) as client:
        holds = [client.reserve("acme", tokens=10, ttl_s=3600) for _ in range(40)]
        pipe.send([one.id for one in holds])
        pipe.recv()
        for one in holds:
            pipe.send(tokens := dice.randint(0, 20))
            one.commit(tokens=tokens)
            pipe.send("answered")
        pipe.recv()


def test_kill_9_of_the_client_at_any_instant_loses_and_doubles_no_commit(tmp_path: Path) -> None:
    """The client announces each commit before it makes it. Killed at random, alone or with the
    daemon, what it announced is what the ledger has, but for the last one: that had begun or not.
    """
    seed = new_seed()
    print(f"BURSAR_SEED={seed}")
    dice = random.Random(seed)
    with Daemon() as daemon:
        for number in range(40 if LONG else 4):
            _kill_one(daemon, tmp_path / str(number), dice)


def _kill_one(daemon: Daemon, folder: Path, dice: random.Random) -> None:
    ours, theirs = SPAWN.Pipe()
    arguments = (theirs, daemon.target, folder, dice.randrange(2**31))
    process = SPAWN.Process(target=_spend, args=arguments)
    process.start()
    theirs.close()
    holds = ours.recv()
    ours.send("go")
    said: list[Any] = []
    until = dice.randint(1, 60)
    while len(said) < until:
        said.append(ours.recv())
    if dice.random() < 0.5:
        daemon.kill9()
    time.sleep(dice.random() * 0.01)
    process.kill()
    process.join()
    with suppress(EOFError):
        while True:
            said.append(ours.recv())
    if daemon._process is None:
        daemon.start()
    with bursar.connect(daemon.target, journal=folder) as client:
        wait_for(lambda: told(client))
        begun = [one for one in said if one != "answered"]
        ended = [client.get_reservation(one) for one in holds[: len(begun)]]
        *sure, last = [one.spent.get("tokens", 0) for one in ended]
        assert sure == begun[:-1]
        is_in = ended[-1].state is ReservationState.COMMITTED
        assert is_in or said[-1] != "answered"
        assert last == (begun[-1] if is_in else 0)
    assert list(folder.iterdir()) == []


def _commit_in_vain(pipe: Any, target: str, folder: Path, reservation: str) -> None:
    with bursar.connect(target, journal=folder, timeout_s=60) as client:
        client.get_reservation(reservation)  # so that it has a connection
        pipe.send("ready")
        pipe.recv()
        client.commit(reservation, tokens=33)


@pytest.mark.parametrize("how", ["goes on", "is killed"])
def test_a_client_that_is_killed_between_commit_and_answer(tmp_path: Path, how: str) -> None:
    with Daemon() as daemon, daemon.client() as observer:
        observer.set_budget("acme", unit="tokens", limit=1_000)
        hold = observer.reserve("acme", tokens=50, ttl_s=3600)
        ours, theirs = SPAWN.Pipe()
        arguments = (theirs, daemon.target, tmp_path, hold.id)
        process = SPAWN.Process(target=_commit_in_vain, args=arguments)
        process.start()
        assert ours.recv() == "ready"
        with daemon.stopped():
            ours.send("go")
            wait_for(lambda: any(tmp_path.glob("*.journal")), timeout_s=8)
            process.kill()
            process.join()
            if how == "is killed":
                daemon.kill9()
        if how == "is killed":
            daemon.start()
        with bursar.connect(daemon.target, journal=tmp_path) as client:
            wait_for(lambda: told(client))
            assert balance(client, "acme") == (0, 33, 967)
            assert client.commit(hold.id, tokens=33).spent == {"tokens": 33}


def test_a_reserve_that_is_cancelled_leaves_no_hold() -> None:
    async def run(daemon: Daemon) -> None:
        async with daemon.client_async(timeout_s=5) as client:
            await client.set_budget("acme", unit="tokens", limit=100)
            with daemon.stopped():
                reserving = asyncio.ensure_future(client.reserve("acme", tokens=60))
                named = asyncio.ensure_future(
                    client.reserve("acme", tokens=5, idempotency_key="mine")
                )
                await asyncio.sleep(0.3)
                for one in (reserving, named):
                    one.cancel()
                    with pytest.raises(asyncio.CancelledError):
                        await one
            await wait_until_told(client)
            # Whoever gave a key may repeat it, and gets that hold.
            again = await client.reserve("acme", tokens=5, idempotency_key="mine")
            [window] = (await client.get_account("acme")).balances
            assert (window.held, window.spent) == (5, 0)
            await again.commit(tokens=1)

    with Daemon(in_memory=True) as daemon:
        asyncio.run(run(daemon))


def test_a_commit_that_is_cancelled_is_told_all_the_same() -> None:
    async def run(daemon: Daemon) -> None:
        async with daemon.client_async(timeout_s=5) as client:
            await client.set_budget("acme", unit="tokens", limit=100)
            hold = await client.reserve("acme", tokens=60)
            with daemon.stopped():
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(hold.commit(tokens=11), 0.3)
                assert client.away.waiting_count == 1
            await wait_until_told(client)
            [window] = (await client.get_account("acme")).balances
            assert (window.held, window.spent) == (0, 11)

    with Daemon(in_memory=True) as daemon:
        asyncio.run(run(daemon))


def test_a_record_without_a_key_is_not_kept_for_a_repeat_would_be_charged_twice(
    tmp_path: Path,
) -> None:
    with bursar.connect(f"{tmp_path}/none", attempts=1, journal=tmp_path) as client:
        with pytest.raises(bursar.SidecarUnavailable) as caught:
            client.record("acme", tokens=5, idempotency_key="")
        assert (caught.value.kept, client.away.waiting_count) == (False, 0)


def test_a_program_that_ends_without_closing_says_what_it_leaves_behind(tmp_path: Path) -> None:
    program = (
        "import bursar\n"
        f"client = bursar.connect({str(tmp_path / 'none')!r}, attempts=1)\n"
        "try: client.release('r')\n"
        "except bursar.SidecarUnavailable: pass\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30
    )
    assert "1 calls were not told to the sidecar: lost" in ran.stderr
