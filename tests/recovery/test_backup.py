"""Backups made beside a sidecar under load hold every answer that was given before, and add up."""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner
from support.daemon import LONG, Daemon, balance, new_seed

import bursar
from bursar.care import backup
from bursar.cli import cli

BACKUPS = 200 if LONG else 20
WRITERS = 3


class Writers:
    """Threads that reserve and commit without a pause, and remember what they were answered."""

    def __init__(self, daemon: Daemon) -> None:
        self.answered: list[tuple[str, int]] = []
        self._daemon = daemon
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._work, args=(n,)) for n in range(WRITERS)]

    def _work(self, number: int) -> None:
        with self._daemon.client() as client:
            amount = 0
            while not self._stop.is_set():
                amount = amount % 97 + 1
                hold = client.reserve(f"acme/w{number}", tokens=amount)
                client.commit(hold.id, tokens=amount)
                self.answered.append((hold.id, amount))

    @contextmanager
    def at_work(self) -> Iterator[None]:
        for one in self._threads:
            one.start()
        try:
            yield
        finally:
            self._stop.set()
            for one in self._threads:
                one.join()


def look(copy: Path) -> tuple[dict[str, int], int]:
    """What was committed in a copy by reservation, and what its windows say that was spent."""
    with sqlite3.connect(f"{copy.as_uri()}/ledger.db?mode=ro", uri=True) as db:
        names = "SELECT store_id FROM meta"
        [(store,)] = db.execute(names)
        rows = db.execute(
            "SELECT r.sequence, r.slot, sum(e.amount) FROM reservations r"
            " JOIN entry e ON e.reservation = r.sequence JOIN kinds k ON k.id = e.kind"
            " WHERE r.state = 'committed' AND k.name = 'spend' GROUP BY r.sequence"
        )
        spent = {f"{store:08x}-{sequence:x}-{slot:x}": amount for sequence, slot, amount in rows}
        [(total,)] = db.execute(
            "SELECT w.spent FROM windows w JOIN budgets b ON b.id = w.budget"
            " JOIN accounts a ON a.id = b.account WHERE a.path = 'acme'"
        )
    return spent, total


def test_every_answer_before_a_backup_is_in_it(tmp_path: Path) -> None:
    """Goal: no backup under full load misses what was answered before it began.

    Method: writers note each commit once it is answered. Those that are noted when a backup begins
    have to be in it, with their amounts, and the copy has to add up.
    """
    with Daemon() as daemon, daemon.client() as client:
        client.set_budget("acme", unit="tokens", limit=2**50)
        writers = Writers(daemon)
        with writers.at_work():
            for number in range(BACKUPS):
                until_more(writers, 20)
                before = len(writers.answered)
                copy = tmp_path / f"copy-{number}"
                manifest = backup.make(daemon.store_path, copy)
                spent, total = look(copy)
                missing = [one for one in writers.answered[:before] if spent.get(one[0]) != one[1]]
                assert not missing
                assert sum(spent.values()) == total
                assert manifest.sequence > 0
                if number % 5:
                    shutil.rmtree(copy)
        assert balance(client, "acme")[1] == sum(amount for _, amount in writers.answered)


def until_more(writers: Writers, count: int) -> None:
    wanted = len(writers.answered) + count
    while len(writers.answered) < wanted:
        time.sleep(0.005)


def test_a_restored_store_goes_on_where_the_backup_was_made(tmp_path: Path) -> None:
    with Daemon(access={"mode": "open"}) as daemon, daemon.client() as client:
        client.set_budget("acme", unit="tokens", limit=1_000)
        secret = client.tokens.create("ci", role=bursar.access.Role.OPERATOR, ttl_s=600).secret
        held = client.reserve("acme", tokens=100, ttl_s=600)
        client.debit(held.id, tokens=30)
        client.record("acme", tokens=7)
        time.sleep(0.3)  # what is debited is logged
        made = CliRunner().invoke(
            cli, ["backup", str(tmp_path / "copy"), "--store", str(daemon.store_path)]
        )
        assert made.exit_code == 0, made.output
        forgotten = client.reserve("acme", tokens=200, ttl_s=600)
        client.record("acme", tokens=50)
    with Daemon(access={"mode": "enforce"}) as second:
        second.terminate()
        for path in second.folder.glob("ledger.db*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        restored = CliRunner().invoke(
            cli, ["restore", str(tmp_path / "copy"), str(second.store_path)]
        )
        assert restored.exit_code == 0, restored.output
        second.start()
        with bursar.connect(second.target, token=secret) as client:
            assert balance(client, "acme") == (70, 37, 893), "without what came after"
            assert client.get_reservation(held.id).used == {"tokens": 30}
            with pytest.raises(bursar.ReservationNotFound):
                client.commit(forgotten.id, tokens=200)
            new = [client.reserve("acme", tokens=1, ttl_s=600).id for _ in range(50)]
            assert forgotten.id not in new, "its id is nobody else's"
            assert client.commit(held.id, tokens=90).spent == {"tokens": 90}
            assert balance(client, "acme") == (50, 97, 853)
        second.restart()
        with bursar.connect(second.target, token=secret) as client:
            assert balance(client, "acme") == (50, 97, 853)


def test_a_backup_is_its_owners_only(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        bursar.open(tmp_path / "ledger.db").close()
        backup.make(tmp_path / "ledger.db", tmp_path / "copy")
        backup.restore(tmp_path / "copy", tmp_path / "new" / "ledger.db")
    finally:
        os.umask(old)
    assert (tmp_path / "copy").stat().st_mode & 0o777 == 0o700
    files = [*(tmp_path / "copy").iterdir(), *(tmp_path / "new").iterdir()]
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["ledger.db"]


def test_a_store_that_a_crash_left_can_be_copied_as_well(tmp_path: Path) -> None:
    with Daemon() as daemon:
        with daemon.client() as client:
            client.set_budget("acme", unit="tokens", limit=1_000)
            lock = sqlite3.connect(daemon.store_path, isolation_level=None)
            lock.execute("BEGIN IMMEDIATE")
            client.record("acme", tokens=41)
            daemon.kill9()
            lock.close()
        before = {path: path.read_bytes() for path in daemon.folder.glob("ledger.db-log/*.log")}
        backup.make(daemon.store_path, tmp_path / "copy")
        assert before == {path: path.read_bytes() for path in before}
        backup.restore(tmp_path / "copy", tmp_path / "new.db")
        with bursar.open(tmp_path / "new.db") as client:
            assert balance(client, "acme") == (0, 41, 959)


def test_a_backup_that_was_killed_has_no_name(tmp_path: Path) -> None:
    """Kills the command at random moments: the name is there with a whole backup, or not at all."""
    seed = new_seed()
    print(f"BURSAR_SEED={seed}")
    with Daemon() as daemon, daemon.client() as client:
        client.set_budget("acme", unit="tokens", limit=10**9)
        for _ in range(300):
            client.record("acme", tokens=1)
        command = [sys.executable, "-m", "bursar", "backup", "--store", str(daemon.store_path)]
        began = time.monotonic()
        subprocess.run([*command, str(tmp_path / "whole")], check=True, capture_output=True)
        took = time.monotonic() - began
        seen = set()
        for number in range(60 if LONG else 12):
            copy = tmp_path / f"copy-{number}"
            with subprocess.Popen([*command, str(copy)], stdout=subprocess.DEVNULL) as process:
                time.sleep(took * (0.5 + (seed + number * 7919) % 1000 / 1200))
                process.send_signal(signal.SIGKILL)
            seen.add(copy.exists())
            if copy.exists():
                backup.verify(copy)
        print(f"whole or not there: {seen}")


@pytest.mark.parametrize("part", ["ledger.db", "ledger.db.tokens", "manifest.json"])
def test_a_backup_that_has_changed_is_refused(tmp_path: Path, part: str) -> None:
    with Daemon() as daemon:
        with daemon.client() as client:
            client.tokens.create("ci", role=bursar.access.Role.OPERATOR, ttl_s=600)
        backup.make(daemon.store_path, tmp_path / "copy")
    data = bytearray((tmp_path / "copy" / part).read_bytes())
    data[len(data) // 2] ^= 0x55
    (tmp_path / "copy" / part).write_bytes(data)
    told = CliRunner().invoke(cli, ["restore", "--check", str(tmp_path / "copy")])
    assert told.exit_code == 1
    assert str(tmp_path / "copy") in told.stderr
    with pytest.raises(backup.BackupError):
        backup.restore(tmp_path / "copy", tmp_path / "new.db")
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


@pytest.mark.parametrize("there", ["", "-log", "-wal", ".tokens", ".watchdog"])
def test_nothing_is_ever_replaced(tmp_path: Path, there: str) -> None:
    bursar.open(tmp_path / "ledger.db").close()
    backup.make(tmp_path / "ledger.db", tmp_path / "copy")
    with pytest.raises(backup.BackupError, match="copy is there already"):
        backup.make(tmp_path / "ledger.db", tmp_path / "copy")
    (tmp_path / f"new.db{there}").write_text("mine", encoding="utf-8")
    with pytest.raises(backup.BackupError, match="is there already; stop the sidecar"):
        backup.restore(tmp_path / "copy", tmp_path / "new.db")
    assert (tmp_path / f"new.db{there}").read_text(encoding="utf-8") == "mine"


def test_a_store_in_use_is_not_restored_over() -> None:
    with Daemon() as daemon:
        copy = daemon.folder / "copy"
        backup.make(daemon.store_path, copy)
        daemon.store_path.unlink()  # the folder of its log is still held
        with pytest.raises(backup.BackupError, match="is there already"):
            backup.restore(copy, daemon.store_path)


def test_a_store_that_does_not_add_up_is_not_backed_up(tmp_path: Path) -> None:
    with bursar.open(tmp_path / "ledger.db") as client:
        client.set_budget("acme", unit="tokens", limit=1_000)
        client.record("acme", tokens=41)
    with sqlite3.connect(tmp_path / "ledger.db") as db:
        db.execute("UPDATE windows SET spent = spent + 1")
    with pytest.raises(bursar.BursarError, match="its entries say 41"):
        backup.make(tmp_path / "ledger.db", tmp_path / "copy")
    assert [path.name for path in tmp_path.iterdir() if "copy" in path.name] == []


def test_what_is_no_backup_and_what_is_no_store_is_said(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    told = CliRunner().invoke(cli, ["restore", str(tmp_path / "empty"), str(tmp_path / "new.db")])
    assert (told.exit_code, "is no backup" in told.stderr) == (1, True)
    told = CliRunner().invoke(cli, ["restore", str(tmp_path / "empty")])
    assert (told.exit_code, "--check" in told.stderr) == (2, True)
    told = CliRunner().invoke(cli, ["backup", str(tmp_path / "x"), "--store", str(tmp_path / "no")])
    assert (told.exit_code, "is no store" in told.stderr) == (1, True)
    config = tmp_path / "bursar.toml"
    config.write_text('[store]\npath = ""\n', encoding="utf-8")
    told = CliRunner().invoke(cli, ["backup", str(tmp_path / "x"), "--config", str(config)])
    assert (told.exit_code, "in memory only" in told.stderr) == (1, True)


def test_the_manifest_says_what_it_holds(tmp_path: Path) -> None:
    bursar.open(tmp_path / "ledger.db").close()
    told = CliRunner().invoke(
        cli, ["backup", str(tmp_path / "copy"), "--store", str(tmp_path / "ledger.db"), "--json"]
    )
    shown = json.loads(told.stdout)
    assert shown == json.loads((tmp_path / "copy/manifest.json").read_text(encoding="utf-8"))
    assert set(shown["sha256"]) == {"ledger.db"}
