"""Backups and restores that find no room, or what is not to be copied, leave nothing."""

import hashlib
import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from support.examined import edit, new_store
from support.places import small_disk

import bursar
from bursar.care import backup
from bursar.watchdog.journal import Journal


def test_a_backup_that_finds_no_room_leaves_nothing(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    with small_disk(tmp_path / "disk", "1m") as disk:
        disk.fill()
        with pytest.raises(bursar.BursarError, match=r"full|No space left"):
            backup.make(store, disk.path / "copy")
        assert [one.name for one in disk.path.iterdir()] == ["filling"]
        disk.empty()
        backup.make(store, disk.path / "copy")


def test_a_restore_that_finds_no_room_leaves_nothing(tmp_path: Path) -> None:
    backup.make(new_store(tmp_path), tmp_path / "copy")
    with small_disk(tmp_path / "disk", "2m") as disk:
        disk.leave(40_960)
        with pytest.raises(backup.BackupError, match="No space left"):
            backup.restore(tmp_path / "copy", disk.path / "new.db")
        assert [one.name for one in disk.path.iterdir()] == ["filling"]
        disk.empty()
        backup.restore(tmp_path / "copy", disk.path / "new.db")
        bursar.open(disk.path / "new.db").close()


def test_a_journal_that_is_damaged_is_not_backed_up(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    journal = tmp_path / "ledger.db.watchdog"
    Journal(journal).close()
    edit(
        journal,
        "INSERT INTO incidents (account, job, final, body, extra) VALUES ('a', 'j', 1, x'', '{}')",
        "PRAGMA writable_schema = ON",
        "UPDATE sqlite_schema SET sql = 'CREATE INDEX incidents_account ON incidents (job, number)'"
        " WHERE name = 'incidents_account'",
    )
    with closing(sqlite3.connect(journal)) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() != ("ok",)
    with pytest.raises(backup.BackupError, match=r"ledger\.db\.watchdog is damaged: row 1 missing"):
        backup.make(store, tmp_path / "copy")
    assert not [one.name for one in tmp_path.iterdir() if "copy" in one.name]


def rewritten(copy: Path, **sums: str) -> None:
    """Has a manifest name the files as they are now, and others."""
    manifest = json.loads((copy / "manifest.json").read_text(encoding="utf-8"))
    data = (copy / "ledger.db").read_bytes()
    manifest["sha256"] = {"ledger.db": hashlib.sha256(data).hexdigest(), **sums}
    (copy / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


def test_a_backup_that_does_not_add_up_is_refused_though_its_sums_are_right(tmp_path: Path) -> None:
    with bursar.open(tmp_path / "ledger.db") as client:
        client.set_budget("acme", unit="tokens", limit=1_000)
        client.record("acme", tokens=41)
    backup.make(tmp_path / "ledger.db", tmp_path / "copy")
    edit(tmp_path / "copy/ledger.db", "UPDATE windows SET spent = spent + 1")
    rewritten(tmp_path / "copy")
    with pytest.raises(backup.BackupError, match="does not agree with itself"):
        backup.restore(tmp_path / "copy", tmp_path / "new.db")
    edit(tmp_path / "copy/ledger.db", "UPDATE windows SET spent = spent - 1")
    rewritten(tmp_path / "copy")
    backup.restore(tmp_path / "copy", tmp_path / "new.db")


def test_a_manifest_that_names_what_no_backup_has_is_refused(tmp_path: Path) -> None:
    """What it names is copied beside the store: it names no way out of the folder."""
    backup.make(new_store(tmp_path), tmp_path / "copy")
    (tmp_path / "secret").write_bytes(b"x")
    rewritten(tmp_path / "copy", **{"../secret": hashlib.sha256(b"x").hexdigest()})
    with pytest.raises(backup.BackupError, match="names other files than a backup has"):
        backup.restore(tmp_path / "copy", tmp_path / "new" / "ledger.db")
    assert not (tmp_path / "new").exists()
