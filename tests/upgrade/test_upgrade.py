"""Stores of earlier versions are brought up to date, exactly; those of later ones are left alone.

`stores/` holds what earlier builds left when they were killed, part of it in the log only, and what
they said of it (`write_store.py`). Both are of version 1: the first build, and the last.
"""

import hashlib
import json
import sqlite3
import struct
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.daemon import Daemon

import bursar
from bursar import _core
from bursar.care import backup
from bursar.watchdog.journal import Journal

STORES = sorted((Path(__file__).parent / "stores").glob("*.tar.xz"))
ENTRY_RETENTION = "3660d"
CASTAGNOLI = 0x82F63B78


def unpack(archive: Path, folder: Path) -> dict[str, Any]:
    """Puts a kept store into a folder; returns what its release said of it."""
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    said: dict[str, Any] = json.loads((folder / "said.json").read_text(encoding="utf-8"))
    return said


@pytest.fixture(params=STORES, ids=lambda path: path.name.removesuffix(".tar.xz"))
def old(request: pytest.FixtureRequest) -> Iterator[tuple[Daemon, dict[str, Any]]]:
    daemon = Daemon(store={"entry_retention": ENTRY_RETENTION}, reservations={"max_ttl": "8784h"})
    said = unpack(request.param, daemon.folder)
    with daemon:
        yield daemon, said


def sums(folder: Path) -> dict[str, str]:
    """The content of every file but those that are made anew by looking."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in paths
        if path.name not in {"lock", "sidecar.log"} and not path.name.endswith("-shm")
    }


def test_balances_reservations_and_entries_are_exactly_as_they_were(
    old: tuple[Daemon, dict[str, Any]],
) -> None:
    daemon, said = old
    assert "its tables were of version 1" in daemon.log
    with daemon.client() as client:
        for path, account in said["accounts"].items():
            now = client.get_account(path)
            assert (now.frozen, now.freeze_reason) == (account["frozen"], account["reason"])
            for one in now.balances:
                limit, held, spent, remaining = account["balances"][f"{one.unit} {one.period}"]
                assert (one.limit, one.held) == (limit, held)
                if str(one.period) == "total":  # those of a time are over
                    assert (one.spent, one.remaining) == (spent, remaining)
        for name, told in said["reservations"].items():
            read = client.get_reservation(name)
            state, account, granted, used, spent, parent, model = told
            assert (read.state, read.account, read.used) == (state, account, used)
            assert (read.spent, read.parent_reservation, read.model) == (spent, parent, model)
            if state == "pending":  # the first build forgot what a commit spent beyond its hold
                assert read.granted == granted
        entries = [
            [one.sequence, one.account, one.reservation, one.unit, one.kind, one.amount, one.model]
            for one in client.list_entries("")
        ]
        assert entries[: len(said["entries"])] == said["entries"]


def test_work_goes_on_in_an_old_store(old: tuple[Daemon, dict[str, Any]]) -> None:
    daemon, said = old
    pending = [name for name, told in said["reservations"].items() if told[0] == "pending"]
    assert len(pending) == 8
    with daemon.client() as client:
        ended = {name: client.commit(name).spent for name in reversed(pending)}
        used = {name: told[3] for name, told in said["reservations"].items() if name in pending}
        assert {name: spent for name, spent in ended.items() if spent.get("tokens")} == {
            name: {"tokens": 5_250} for name, told in used.items() if told == {"tokens": 5_250}
        }
        with pytest.raises(bursar.BudgetExceeded):
            client.reserve("acme/research/imported", tokens=10_000)
        client.record("acme/research/logged", amounts={"vram_mib_s": 5, "tokens": 1})
    daemon.restart()
    with daemon.client() as client:
        [total] = [
            one
            for one in client.get_account("acme/research/logged").balances
            if one.unit == "tokens"
        ]
        assert (total.held, total.spent) == (0, 300 + 77 + 5_250 + 1)
    daemon.terminate()


def test_the_windows_of_an_old_store_agree_with_its_entries(
    old: tuple[Daemon, dict[str, Any]],
) -> None:
    daemon, _ = old
    daemon.terminate()
    report = json.loads(_core.check_store(str(daemon.store_path)))
    assert report["ok"], report
    assert report["database"]["version"] == 2
    with sqlite3.connect(daemon.store_path) as db:
        spent = db.execute(
            "SELECT spent FROM windows w JOIN budgets b ON b.id = w.budget"
            " WHERE b.period = 'month' AND spent <> 0"
        )
        assert spent.fetchall() == [(2_500_000,)] * 2


def test_a_copy_of_the_store_as_it_was_is_kept(
    old: tuple[Daemon, dict[str, Any]], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    daemon, _ = old
    archive = request.node.callspec.params["old"]
    unpack(archive, tmp_path)
    kept = daemon.folder / "ledger.db.version-1"
    with sqlite3.connect(kept / "ledger.db") as db, sqlite3.connect(tmp_path / "ledger.db") as was:
        assert db.execute("PRAGMA user_version").fetchone() == (1,)
        for table in ("meta", "entry", "reservations", "windows"):
            query = f"SELECT * FROM {table}"  # noqa: S608 -- names of ours
            assert db.execute(query).fetchall() == was.execute(query).fetchall()
    log = "ledger.db-log"
    assert sums(kept / log) == sums(tmp_path / log)
    assert oct(kept.stat().st_mode & 0o777) == "0o700"


def test_a_store_that_was_upgraded_is_like_a_new_one(
    old: tuple[Daemon, dict[str, Any]], tmp_path: Path
) -> None:
    daemon, _ = old
    daemon.terminate()
    bursar.open(tmp_path / "new.db").close()

    def shape(path: Path) -> dict[str, Any]:
        with sqlite3.connect(path) as db:
            names = db.execute("SELECT type, name FROM sqlite_schema ORDER BY name").fetchall()
            columns = {
                name: db.execute(f"PRAGMA table_xinfo({name})").fetchall()
                for kind, name in names
                if kind in {"table", "view"}
            }
            indexes = {
                name: db.execute(f"PRAGMA index_xinfo({name})").fetchall()
                for kind, name in names
                if kind == "index"
            }
            words = [db.execute("SELECT * FROM units").fetchall()]
            words += [db.execute("SELECT * FROM kinds").fetchall()]
        return {"columns": columns, "indexes": indexes, "words": words}

    assert shape(daemon.store_path) == shape(tmp_path / "new.db")


def test_tokens_and_journals_of_earlier_builds_are_read(tmp_path: Path) -> None:
    [archive] = [path for path in STORES if "last" in path.name]
    daemon = Daemon(access={"mode": "enforce"})
    said = unpack(archive, daemon.folder)
    unpack(archive, tmp_path)
    journal = Journal(tmp_path / "ledger.db.watchdog")
    assert [kept.job.account for kept in journal.jobs()] == ["acme/job"]
    assert not journal.unreadable
    journal.close()
    with daemon, bursar.connect(daemon.target, token=said["secret"]) as client:
        assert client.who_am_i().name == "kept"


def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (CASTAGNOLI if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def raise_tables(store: Path) -> None:
    with sqlite3.connect(store) as db:
        db.execute("PRAGMA user_version = 99")


def raise_log(store: Path) -> None:
    [segment] = (store.parent / "ledger.db-log").glob("*.log")
    data = bytearray(segment.read_bytes())
    data[8:12] = struct.pack("<I", 99)
    data[24:28] = struct.pack("<I", crc32c(bytes(data[:24])))
    segment.write_bytes(data)


def raise_tokens(store: Path) -> None:
    path = store.with_name("ledger.db.tokens")
    path.write_text('{"version": 99, "tokens": {}, "more": 1}', encoding="utf-8")


def raise_journal(store: Path) -> None:
    with sqlite3.connect(store.with_name("ledger.db.watchdog")) as db:
        db.execute("PRAGMA user_version = 99")


@pytest.mark.parametrize(
    ("raise_version", "part"),
    [
        (raise_tables, "ledger.db"),
        (raise_log, "ledger.db-log"),
        (raise_tokens, "ledger.db.tokens"),
        (raise_journal, "ledger.db.watchdog"),
    ],
)
def test_a_later_version_is_refused_by_name_and_left_as_it_is(
    raise_version: Callable[[Path], None], part: str
) -> None:
    with Daemon() as daemon:
        with daemon.client() as client:
            client.set_budget("acme", unit="tokens", limit=100)
            client.record("acme", tokens=3)
            client.tokens.create("kept", role=bursar.access.Role.OPERATOR, ttl_s=60)
        daemon.kill9()
        raise_version(daemon.store_path)
        before = sums(daemon.folder)
        with pytest.raises(bursar.SidecarUnavailable, match="version 99") as refused:
            daemon.start()
        assert "use the release that wrote it" in str(refused.value)
        after = sums(daemon.folder)
        mine = [name for name in before if name.startswith(part)]
        assert mine
        if part in {"ledger.db", "ledger.db-log"}:
            assert after == before
        assert {name: after.get(name) for name in mine} == {name: before[name] for name in mine}


def test_a_later_backup_is_refused(tmp_path: Path) -> None:
    bursar.open(tmp_path / "ledger.db").close()
    backup.make(tmp_path / "ledger.db", tmp_path / "copy")
    manifest = json.loads((tmp_path / "copy/manifest.json").read_text(encoding="utf-8"))
    text = json.dumps(manifest | {"version": 99, "more": 1})
    (tmp_path / "copy/manifest.json").write_text(text, encoding="utf-8")
    with pytest.raises(backup.BackupError, match="has version 99: use the release that made it"):
        backup.restore(tmp_path / "copy", tmp_path / "new.db")
    assert not (tmp_path / "new.db").exists()
