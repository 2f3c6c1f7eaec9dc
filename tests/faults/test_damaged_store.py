"""A store that is taken away, cut, flipped, or wanted by two: told, and never quietly another.

What recovery does with a log that is cut or flipped at every byte is in `rust/store/tests`; here
the files are those of a real daemon, and so is what is said.
"""

import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.daemon import LONG, Daemon, balance, new_seed, picture

import bursar

LIMIT = 10**9
FLIPS = 400 if LONG else 40


def log_folder(daemon: Daemon) -> Path:
    return daemon.store_path.with_name(daemon.store_path.name + "-log")


def log_files(daemon: Daemon) -> list[Path]:
    return sorted(log_folder(daemon).glob("*.log"))


def used(daemon: Daemon, count: int = 200) -> None:
    """Puts something into the ledger, and waits until it is on the disk."""
    with daemon.client() as client:
        client.set_budget("acme", unit="tokens", limit=LIMIT)
        client.freeze("acme/frozen", reason="a reason")
        for number in range(count):
            client.record(f"acme/agent{number % 5}", tokens=number)
        client.reserve("acme/agent0", tokens=100, ttl_s=3_600).debit(tokens=10)
    time.sleep(0.3)


def cut(path: Path, *, to_bytes: int) -> None:
    os.truncate(path, to_bytes)


def delete(*paths: Path) -> None:
    for one in paths:
        one.unlink()


def everything(daemon: Daemon) -> None:
    daemon.store_path.unlink()
    shutil.rmtree(log_folder(daemon))


def replaced(daemon: Daemon) -> None:
    copy = daemon.store_path.with_name("copy")
    shutil.copy(daemon.store_path, copy)
    copy.rename(daemon.store_path)


TAKEN: dict[str, Callable[[Daemon], None]] = {
    "the database is deleted": lambda d: delete(d.store_path),
    "the database is replaced": replaced,
    "the database is cut": lambda d: cut(d.store_path, to_bytes=0),
    "the log is deleted": lambda d: delete(*log_files(d)),
    "the lock is deleted": lambda d: delete(log_folder(d) / "lock"),
    "everything is deleted": everything,
}


def recorded_until_refused(client: bursar.Client) -> int:
    deadline = time.monotonic() + 20
    recorded = 0
    while time.monotonic() < deadline:
        try:
            client.record("acme", tokens=1)
        except bursar.StoreUnavailable as error:
            assert "was removed, replaced or cut" in str(error)
            assert "/proc/" in str(error), "where it still is"
            return recorded
        recorded += 1
        time.sleep(0.01)
    raise AssertionError("it is written to where nobody will find it")


@pytest.mark.parametrize("what", TAKEN)
def test_a_store_that_is_taken_away_while_it_is_open_takes_nothing_more(what: str) -> None:
    """What would be written now is found by nobody after the next start, so nothing is promised."""
    with Daemon() as daemon:
        used(daemon)
        with daemon.client(attempts=1) as client:
            before = balance(client, "acme")
            TAKEN[what](daemon)
            recorded = recorded_until_refused(client)
            held, spent, _ = before
            assert balance(client, "acme") == (
                held,
                spent + recorded,
                LIMIT - held - spent - recorded,
            )
        deadline = time.monotonic() + 20
        while "only reads are answered" not in daemon.log:
            assert time.monotonic() < deadline, daemon.log
            time.sleep(0.05)
        assert daemon.terminate() == 4
        assert "Traceback" not in daemon.log


def test_a_log_that_is_cut_while_it_is_open_is_named_at_the_latest_at_the_next_start() -> None:
    """Where something was written before anybody looked, the file is as long again, with a hole."""
    with Daemon() as daemon:
        used(daemon)
        for one in log_files(daemon):
            cut(one, to_bytes=100)
        try:
            with daemon.client(attempts=1) as client:
                client.record("acme", tokens=1)
                time.sleep(0.6)
                client.record("acme", tokens=1)
        except bursar.StoreUnavailable as error:
            assert "was removed, replaced or cut" in str(error)
        daemon.kill9()
        with pytest.raises(
            bursar.SidecarUnavailable, match="its log is damaged where it was synced"
        ):
            daemon.start()


def test_a_second_daemon_is_refused_even_where_the_lock_was_deleted() -> None:
    with Daemon() as daemon:
        used(daemon, 5)
        (log_folder(daemon) / "lock").unlink()
        second = Daemon()
        second.store_path = daemon.store_path
        with pytest.raises(bursar.SidecarUnavailable, match="is in use"), second:
            pass


def test_a_second_daemon_names_the_process_that_has_the_store() -> None:
    with Daemon() as daemon:
        second = Daemon()
        second.store_path = daemon.store_path
        named = f"is in use by process {daemon.pid}"
        with pytest.raises(bursar.SidecarUnavailable, match=named), second:
            pass


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_folder_that_may_not_be_written_is_told_at_the_start() -> None:
    """As another user, since root may write everywhere."""
    with Daemon() as daemon:
        used(daemon, 5)
        daemon.terminate()
        daemon.folder.chmod(0o555)
        folder, name = daemon.folder, daemon.store_path.name
        code = f"""
import os, bursar, bursar._core, bursar._embedded, bursar.daemon.config
os.setgroups([]); os.setgid(40009); os.setuid(40009)
try:
    bursar.open({str(folder / name)!r})
except bursar.BursarError as error:
    print(error)
"""
        command = [sys.executable, "-c", code]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        assert "Permission denied" in ran.stdout, ran.stdout + ran.stderr
        assert name in ran.stdout
        assert len(ran.stdout.splitlines()) == 1


def opened(store: Path) -> dict[str, Any] | str:
    """The ledger of a store, or why there is none."""
    try:
        with bursar.open(store) as client:
            return picture(client)
    except bursar.BursarError as error:
        return str(error)


def flip(path: Path, at: int, bit: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        [byte] = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 1 << bit]))


@pytest.mark.timeout(600 if LONG else 90)
def test_a_flipped_bit_is_named_or_changes_nothing_that_the_log_says(tmp_path: Path) -> None:
    """Goal: no flip crashes the daemon, and none in the log changes a ledger quietly. Method: a
    daemon is killed with all of it synced; one bit after the other is flipped, in log and database,
    and the store is opened. The database is trusted: what it says of itself is checked by `bursar
    doctor`, which has to see what changed any sum."""
    seed = new_seed()
    print(f"seed {seed}")
    dice = random.Random(seed)
    with Daemon() as daemon:
        used(daemon, 500)
        with daemon.client() as client:
            next(client.list_entries("acme", page_size=1))
            for number in range(200):
                client.record("acme/late", tokens=number)
        time.sleep(0.1)
        daemon.kill9()
        kept = tmp_path / "kept"
        shutil.copytree(daemon.folder, kept, ignore=shutil.ignore_patterns("*.sock*"))
    whole = opened(copy_of(kept, tmp_path / "whole"))
    assert not isinstance(whole, str)
    outcomes = {"refused": 0, "the same": 0, "seen by the doctor": 0}
    for number in range(FLIPS):
        store = copy_of(kept, tmp_path / "flipped")
        logs = sorted(store.with_name(store.name + "-log").glob("*.log"))
        path = dice.choice([*logs, store])
        at, bit = dice.randrange(path.stat().st_size), dice.randrange(8)
        flip(path, at, bit)
        found = opened(store)
        about = f"flip {number}: {path.name}, byte {at}, bit {bit}: {found}"
        if isinstance(found, str):
            assert "panicked" not in found, about
            outcomes["refused"] += 1
        elif found == whole:
            outcomes["the same"] += 1
        else:
            assert path == store, about
            ran = doctor(store)
            assert ran.returncode != 0, about + ran.stdout
            outcomes["seen by the doctor"] += 1
    print(outcomes)
    assert outcomes["refused"] > 0


def copy_of(kept: Path, to: Path) -> Path:
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(kept, to)
    return to / "ledger.db"


def doctor(store: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "bursar", "doctor", str(store)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
