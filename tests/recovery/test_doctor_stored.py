"""`bursar doctor` on what a crash, a wrong clock or a bad disk has left of a store."""

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Final

import pytest
from support.daemon import Daemon, picture
from support.examined import edit, examine, findings, new_store, sidecar

import bursar
from bursar.care import clocks

HEADER_BYTES: Final = 64  # of a segment, as `rust/store/src/frame.rs` has it
HEAD_BYTES: Final = 16  # of a record
DAY_S: Final = 86_400


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    with sidecar() as running:
        yield running


def log_folder(daemon: Daemon) -> Path:
    return daemon.store_path.with_name(daemon.store_path.name + "-log")


def last_segment(daemon: Daemon) -> Path:
    return max(log_folder(daemon).glob("*.log"))


@pytest.mark.parametrize(
    ("torn_bytes", "said"),
    [
        (HEAD_BYTES - 1, "the head of the record is cut off"),
        (HEAD_BYTES + 4, "the record is cut off"),
    ],
)
def test_a_torn_end_of_the_log_is_named_and_left_alone_and_the_next_start_drops_it(
    daemon: Daemon, torn_bytes: int, said: str
) -> None:
    """As a power cut leaves it: of a record that nobody was answered for, only a part is there."""
    with daemon.client() as client:
        client.record("acme", tokens=7)
        before = picture(client)
    daemon.kill9()
    segment = last_segment(daemon)
    whole = segment.read_bytes()
    torn = whole + whole[HEADER_BYTES : HEADER_BYTES + torn_bytes]
    assert len(torn) == len(whole) + torn_bytes
    segment.write_bytes(torn)
    found = findings(daemon)
    assert found["recovery"]["outcome"] == "ok"
    assert found["recovery"]["detail"].startswith("TornTail; opening it would drop the record")
    told = found["log"]
    assert told["outcome"] == "warn"
    assert told["detail"].startswith(f"{said} in ")
    assert told["detail"].endswith(f"{segment.name}, byte {len(whole)}")
    assert told["advice"].startswith("nothing: it was never answered")
    assert segment.read_bytes() == torn
    daemon.start()
    with daemon.client() as client:
        assert picture(client) == before
    told = findings(daemon)["log"]
    assert (told["outcome"], told["detail"]) == ("ok", "1 segment, readable to the end")
    daemon.terminate()
    told = findings(daemon)["log"]
    assert (told["outcome"], told["detail"]) == ("ok", "0 segments, readable to the end")


def test_what_the_next_start_would_do_with_a_log_is_said(daemon: Daemon) -> None:
    daemon.kill9()
    told = findings(daemon)["recovery"]["detail"]
    assert told == "CleanEnd; opening it would take over what the log has"
    daemon.start()
    daemon.terminate()
    told = findings(daemon)["recovery"]["detail"]
    assert told == "CleanStart; opening it would begin a new log"


def test_a_store_that_promised_no_power_cut_goes_on_from_its_database() -> None:
    with Daemon(store={"durability": "memory"}) as daemon:
        with daemon.client() as client:
            client.set_budget("acme", unit="tokens", limit=100)
            client.record("acme", tokens=7)
            len(list(client.list_entries("")))  # they are in SQLite
            before = picture(client)
        daemon.kill9()
        with last_segment(daemon).open("r+b") as log:
            log.truncate(HEADER_BYTES)
        told = examine(daemon.store_path)["recovery"]
        said = "LogBehindInMemory; opening it would go on from the database without the log"
        assert (told["outcome"], told["detail"]) == ("ok", said)
        daemon.start()
        with daemon.client() as client:
            assert picture(client) == before


def recorded(store: Path, ahead_s: int) -> None:
    """Has a store's latest time be so far ahead of the clock."""
    time_ms = time.time_ns() // 1_000_000 + ahead_s * 1_000
    edit(store, f"UPDATE meta SET ledger_time_ms = {time_ms}")  # noqa: S608 -- a number of ours


@pytest.mark.parametrize(
    ("ahead_s", "outcome", "said"),
    [
        (2, "ok", ", not before what the store has recorded"),
        (60, "warn", " s before what the store has recorded: until then no window ends"),
        (50 * 60, "warn", " s before what the store has recorded: until then no window ends"),
        (70 * 60, "broken", " s before what the store has recorded: until then no window ends"),
        (-360 * DAY_S, "ok", ", not before what the store has recorded"),
        (-370 * DAY_S, "warn", ", and the store was last written "),
    ],
)
def test_a_clock_is_held_against_the_time_that_the_store_has_recorded(
    tmp_path: Path, ahead_s: int, outcome: str, said: str
) -> None:
    store = new_store(tmp_path)
    recorded(store, ahead_s)
    found = examine(store)
    told = found["clock"]
    assert told["outcome"] == outcome
    assert said in told["detail"]
    assert bool(told["advice"]) is (outcome != "ok")
    assert found["exit"] == (outcome == "broken")


def test_a_recorded_time_that_is_no_time_is_told_and_ends_nothing(tmp_path: Path) -> None:
    """What is left of a time of today when the highest of its bits flips."""
    store = new_store(tmp_path)
    recorded(store, -(2**47) // 1_000)
    told = examine(store)["clock"]
    assert told["outcome"] == "warn"
    assert "the store was last written -1" in told["detail"]


@pytest.mark.parametrize(("before_ms", "outcome"), [(1, "broken"), (0, "ok")])
def test_a_clock_that_was_never_set_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before_ms: int, outcome: str
) -> None:
    store = new_store(tmp_path)
    edit(store, "UPDATE meta SET ledger_time_ms = 0")
    now_ns = int(datetime(2026, 1, 1, tzinfo=UTC).timestamp()) * 10**9 - before_ms * 10**6
    # The clock of the machine is everybody's: what the doctor reads of it is set, and nothing else.
    monkeypatch.setattr(clocks, "time", SimpleNamespace(time_ns=lambda: now_ns))
    told = examine(store)["clock"]
    assert told["outcome"] == outcome
    assert ("2025-12-31 23:59:59 UTC, and was never set" in told["detail"]) is bool(before_ms)


def test_a_time_zone_that_is_no_text_is_found_as_the_next_start_would(daemon: Daemon) -> None:
    """One bit of the name has flipped."""
    daemon.terminate()
    edit(daemon.store_path, "UPDATE budgets SET time_zone = CAST(x'4575726f70652fc2' AS TEXT)")
    told = findings(daemon)["time zones"]
    assert told["outcome"] == "broken"
    assert "Europe/\ufffd" in told["detail"]
    with pytest.raises(bursar.SidecarUnavailable, match="did not start"):
        daemon.start()


def misled(file: Path, index: str, columns: str) -> None:
    """Has an index say that it is of other columns than what is in it: damage that still opens."""
    sql = f"CREATE INDEX {index} ON {columns}"
    edit(
        file,
        "PRAGMA writable_schema = ON",
        f"UPDATE sqlite_schema SET sql = '{sql}' WHERE name = '{index}'",  # noqa: S608 -- names of ours
    )


def a_wrong_index(store: Path) -> None:
    misled(store, "accounts_path", "accounts (freeze_reason)")


def a_wrong_index_of_the_journal(store: Path) -> None:
    journal = store.with_name("ledger.db.watchdog")
    row = "(account, job, final, body, extra) VALUES ('acme', 'j1', 1, x'', '{}')"
    edit(journal, f"INSERT INTO incidents {row}")
    misled(journal, "incidents_account", "incidents (job, number)")


@pytest.mark.parametrize(
    ("damage", "what", "said"),
    [
        (a_wrong_index, "database", "row 1 missing from index accounts_path"),
        (a_wrong_index_of_the_journal, "journal", "row 1 missing from index incidents_account"),
    ],
)
def test_a_file_that_opens_and_is_damaged_is_found(
    daemon: Daemon, damage: Callable[[Path], None], what: str, said: str
) -> None:
    daemon.terminate()
    assert findings(daemon)[what]["outcome"] == "ok"
    damage(daemon.store_path)
    found = findings(daemon)
    assert found[what]["outcome"] == "broken"
    assert said in found[what]["detail"]
    assert "restore" in found[what]["advice"]
    assert found["exit"] == 1


def test_of_many_things_that_are_wrong_the_first_are_named_and_the_rest_counted(
    tmp_path: Path,
) -> None:
    store = tmp_path / "ledger.db"
    with bursar.open(store) as client:
        for number in range(7):
            client.set_budget(f"acme{number}", unit="tokens", limit=100)
            client.record(f"acme{number}", tokens=number)
    edit(store, "UPDATE windows SET spent = spent + 1")
    told = examine(store)["totals"]
    assert told["outcome"] == "broken"
    assert told["detail"].count("was spent, its entries say") == 5
    assert told["detail"].endswith("; and 2 more")
