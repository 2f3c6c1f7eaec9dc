"""The spool alone: bounded, kept over crashes, and in memory where the file cannot be written."""

import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from bursar._log import Field, Level
from bursar.notify.events import Event, Waiting
from bursar.notify.outcomes import Outcome
from bursar.notify.spool import Spool, standings

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)


@dataclass(frozen=True)
class Receiver:
    name: str
    only: str = ""
    address: str = "x"
    kind: str = "receiver"

    def deliver(self, waiting: Waiting, stop: threading.Event) -> Outcome:
        raise NotImplementedError

    def wants(self, name: str, account: str) -> bool:
        return self.only in {"", name}


def event(key: str, name: str = "freeze", size: int = 0) -> Event:
    return Event(key, name, NOW, "acme", {"x": "y" * size})


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def spool(tmp_path: Path, said: list[str]) -> Iterator[Spool]:
    made = opened(tmp_path, said)
    made.receive([Receiver("a"), Receiver("b", only="unfreeze")])
    yield made
    made.close()


def opened(folder: Path, said: list[str], most: int = 10) -> Spool:
    def say(line: str, /, *, level: Level = "info", **fields: Field) -> None:
        assert (level, fields["event"]) in {("error", "notify"), ("info", "notify")}
        said.append(line)

    return Spool(folder / "spool", source="bursar://test", most=most, say=say)


def drained(spool: Spool, name: str = "a") -> list[str]:
    found = []
    while (waiting := spool.next(name)) is not None:
        found.append(waiting.id.partition("-")[2])
        spool.told(name, waiting.number)
    return found


def test_each_gets_what_it_wants_once_and_what_nobody_waits_for_goes(spool: Spool) -> None:
    spool.add([event("1"), event("2", "unfreeze"), event("1")], {"entries": {"sequence": 7}})
    assert drained(spool) == ["1", "2"]
    assert drained(spool, "b") == ["2"]
    assert spool.places() == {"entries": {"sequence": 7}}
    assert spool._db.execute("SELECT count(*) FROM events").fetchone() == (0,)
    [a, b] = standings(spool._path)
    assert (a.told, b.told, a.lost) == (2, 1, 0)


def test_at_the_bound_the_oldest_goes_but_not_for_others(spool: Spool) -> None:
    spool.add([event("b", "unfreeze")], {})
    spool.add([event(str(number)) for number in range(12)], {})
    assert spool.standing("a").lost == 3  # type: ignore[union-attr]
    assert drained(spool, "b") == ["b"]
    assert drained(spool) == [str(number) for number in range(2, 12)]


def test_the_first_loss_is_said_and_again_once_it_was_told(spool: Spool, said: list[str]) -> None:
    spool.add([event(str(number)) for number in range(10)], {})
    assert said == []
    for number in range(10, 13):
        spool.add([event(str(number))], {})
    assert len(said) == 1
    assert said[0].startswith("a has 10 events waiting, the most")
    spool.knows_of_lost("a", 3)
    spool.add([event("14"), event("15")], {})
    assert len(said) == 2
    assert spool.end("a") == 10, "so many waited"
    assert spool.end("a") == 0


def test_what_was_let_go_while_it_was_told_is_known_and_never_counted_back(spool: Spool) -> None:
    spool.add([event("first")], {})
    waiting = spool.next("a")
    assert waiting is not None
    spool.add([event(str(number)) for number in range(12)], {})
    spool.told("a", waiting.number)
    standing = spool.standing("a")
    assert standing is not None
    assert (standing.lost, standing.lost_told) == (3, 1), "it missed two"


@pytest.mark.parametrize("is_gone", [False, True])
def test_at_another_address_nothing_has_failed_yet(spool: Spool, *, is_gone: bool) -> None:
    for _ in range(2):
        spool.failed("a", "it does not answer")
    if is_gone:
        spool.end("a")
    before = spool.standing("a")
    spool.receive([Receiver("a")])
    assert spool.standing("a") == before
    spool.receive([Receiver("a", address="y")])
    after = spool.standing("a")
    assert before is not None
    assert after is not None
    assert (before.is_gone, before.failures, before.failure) == (is_gone, 2, "it does not answer")
    assert (after.is_gone, after.failures, after.failure_ms, after.failure) == (False, 0, None, "")


def test_what_fails_half_way_changes_nothing(spool: Spool) -> None:
    class Broken(Event):
        def body(self, event_id: str, source: str) -> bytes:
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        spool.add([event("1"), Broken("2", "freeze", NOW)], {"entries": {"sequence": 9}})
    assert (drained(spool), spool.places()) == ([], {})


def test_without_room_it_goes_on_in_memory_and_is_written_once_there_is(
    spool: Spool, tmp_path: Path, said: list[str]
) -> None:
    """Goal: a full disk stops no notification. Method: SQLite's own limit of pages makes writes
    fail with SQLITE_FULL; it is lifted again, and the file is read by another."""
    spool.add([event("before")], {"entries": {"sequence": 1}})
    pages = spool._file.execute("PRAGMA page_count").fetchone()[0]
    spool._file.execute(f"PRAGMA max_page_count = {pages}")
    spool.add([event(str(number), size=5_000) for number in range(5)], {"entries": {"sequence": 2}})
    assert len(said) == 1
    assert "cannot be written, notifications go on in memory" in said[0]
    waiting = spool.next("a")
    assert waiting is not None
    spool.told("a", waiting.number)
    assert standings(tmp_path / "spool")[0].waiting == 1, "the file is as it was"
    spool._file.execute("PRAGMA max_page_count = 1000000")
    spool._retry_s = 0.0
    spool.add([event("after")], {"entries": {"sequence": 3}})
    assert said[1].endswith("is written again")
    assert standings(tmp_path / "spool")[0].waiting == 6
    spool.close()
    again = opened(tmp_path, said)
    assert again.places() == {"entries": {"sequence": 3}}
    assert drained(again) == ["0", "1", "2", "3", "4", "after"]
    again.close()


def test_its_ids_begin_alike_for_as_long_as_it_is_the_same_file(
    spool: Spool, tmp_path: Path, said: list[str]
) -> None:
    spool.add([event("1")], {})
    first = spool.next("a")
    spool.close()
    again = opened(tmp_path, said)
    assert again.next("a") == first
    assert (tmp_path / "spool").stat().st_mode & 0o777 == 0o600
    again.close()
    (tmp_path / "other").mkdir()
    other = opened(tmp_path / "other", said)
    assert other.id != again.id
    other.close()


def test_a_damaged_file_is_put_aside_and_told_of(tmp_path: Path, said: list[str]) -> None:
    (tmp_path / "spool").write_bytes(b"SQLite format 3\0" + os_random(8_000))
    made = opened(tmp_path, said)
    assert "is damaged" in said[0]
    assert len(list(tmp_path.glob("spool.damaged-*"))) == 1
    made.receive([Receiver("a")])
    made.add([event("1")], {})
    assert drained(made) == ["1"]
    made.close()


def os_random(size: int) -> bytes:
    return bytes(number * 37 % 251 for number in range(size))


def test_a_later_version_is_refused_by_name_and_left_alone(tmp_path: Path, said: list[str]) -> None:
    with sqlite3.connect(tmp_path / "spool") as db:
        db.execute("PRAGMA user_version = 2")
        db.execute("CREATE TABLE later (x)")
    db.close()
    before = (tmp_path / "spool").read_bytes()
    with pytest.raises(OSError, match="has version 2: use the release that wrote it"):
        opened(tmp_path, said)
    assert (tmp_path / "spool").read_bytes() == before
