"""What the watchdog remembers over a crash: written before the deed, read back as it was."""

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bursar.v1 import ledger_pb2 as lg
from bursar.v1 import process_pb2 as pb
from bursar.watchdog import journal as module
from bursar.watchdog.escalation import Phase, Standing
from bursar.watchdog.jobs import Kept
from bursar.watchdog.journal import Case, Hold, Journal


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db.watchdog"


@pytest.fixture
def journal(path: Path) -> Iterator[Journal]:
    made = Journal(path)
    yield made
    made.close()


def a_job(number: int = 1) -> Kept:
    job = pb.Job(
        id=f"j{number}",
        name="train",
        account="acme/a",
        pid=4000 + number,
        uid=1000,
        cgroup="/x/bursar-1",
        limits=[lg.Amount(unit="vram_bytes", value=5)],
        enforce=True,
    )
    return Kept(job, 77, 99, True, "r-1", 5_000, "boot")


def a_case(account: str = "acme/a", job: str = "j1", phase: Phase = Phase.TERM) -> Case:
    incident = pb.Incident(account=account, job=job, reason="over")
    return Case(
        incident,
        Standing(phase, 1234, "why"),
        "boot",
        victims={(4001, 77), (4002, 78)},
        killed={(4002, 78)},
        bytes_by_device={"GPU-0": {4001: 2**40, 4002: 0}},
        froze=True,
        forbidden="a rule",
    )


def test_what_is_written_is_read_back_as_it_was(journal: Journal, path: Path) -> None:
    case, kept, hold = a_case(), a_job(), Hold("r-1", "acme/a", "vram_bytes")
    journal.save_case(case)
    journal.save_job(kept)
    journal.add_hold(hold)
    journal.add_hold(hold)
    other = Journal(path)
    assert list(other.open_cases()) == [case]
    assert list(other.jobs()) == [kept]
    assert other.holds() == [hold]
    other.close()
    journal.delete_job("j1")
    journal.drop_hold("r-1")
    case.standing = Standing(Phase.RECLAIMED, 2000, "")
    journal.save_case(case)
    assert (list(journal.open_cases()), list(journal.jobs()), journal.holds()) == ([], [], [])
    assert [one.id for one in journal.incidents("", "", None, 10)[0]] == [case.incident.id]


@pytest.mark.parametrize("phase", Phase)
def test_only_what_may_still_change_is_open(phase: Phase, journal: Journal) -> None:
    journal.save_case(a_case(phase=phase))
    assert [one.standing.phase for one in journal.open_cases()] == [phase] * (not phase.is_final)


def test_only_its_owner_may_read_it(journal: Journal, path: Path) -> None:
    journal.save_job(a_job())
    for file in path.parent.iterdir():
        assert file.stat().st_mode & 0o077 == 0, file.name


def test_without_a_path_nothing_outlives_it() -> None:
    journal = Journal(None)
    journal.save_job(a_job())
    assert len(list(journal.jobs())) == 1
    journal.close()


def test_one_of_a_newer_version_is_left_alone(path: Path) -> None:
    Journal(path).close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 2")
    db.close()
    before = path.read_bytes()
    with pytest.raises(OSError, match=r"has version 2: use the release that wrote it"):
        Journal(path)
    assert path.read_bytes() == before


def test_what_is_no_journal_is_said_to_be_none(path: Path, tmp_path: Path) -> None:
    path.write_bytes(b"something else entirely" * 100)
    with pytest.raises(OSError, match=r"ledger\.db\.watchdog cannot be used"):
        Journal(path)
    with pytest.raises(OSError, match="cannot be used"):
        Journal(tmp_path)
    with pytest.raises(OSError, match="cannot be used"):
        Journal(tmp_path / "no" / "folder")


def test_a_new_incident_is_written_in_one_piece(journal: Journal) -> None:
    written: list[str] = []
    journal._db.set_trace_callback(written.append)
    journal.save_case(a_case())
    assert [one.split()[0] for one in written] == ["DELETE", "INSERT"]


def ids(page: tuple[list[pb.Incident], int]) -> tuple[list[str], int]:
    return [one.id for one in page[0]], page[1]


def test_pages_go_back_in_time_within_an_account(journal: Journal) -> None:
    accounts = ["acme", "acme/a", "acme-2", "acme/a/b", "acme0", "b"]
    for number, account in enumerate(accounts):
        journal.save_case(a_case(account, f"j{number % 2}"))
    found = [one.account for one in journal.incidents("acme", "", None, 10)[0]]
    assert found == ["acme/a/b", "acme/a", "acme"]
    assert ids(journal.incidents("", "", 4, 2)) == (["i3", "i2"], 2)
    assert ids(journal.incidents("", "", 3, 2)) == (["i2", "i1"], 0)
    assert ids(journal.incidents("", "j1", None, 10)) == (["i6", "i4", "i2"], 0)
    assert journal.incidents("", "", 1, 10) == ([], 0)


def test_the_oldest_that_are_over_go_first(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "INCIDENTS_MAX", 3)
    journal.save_case(a_case(job="open"))
    for number in range(6):
        journal.save_case(a_case(job=f"j{number}", phase=Phase.OBSERVED))
    found, _ = journal.incidents("", "", None, 10)
    assert [one.job for one in found] == ["j5", "j4", "j3", "open"]


_DEEDS = """
    import sys
    from bursar.v1 import process_pb2 as pb
    from bursar.watchdog.escalation import Phase, Standing
    from bursar.watchdog.journal import Case, Journal
    journal = Journal(sys.argv[1])
    case = Case(pb.Incident(account="acme", job="j"), Standing(Phase.BREACH, 0), "boot")
    for number in range(10_000):
        case.standing = Standing(Phase.TERM, number)
        case.victims = {(number, number)}
        journal.save_case(case)
        print(number, flush=True)  # the deed
"""


def test_no_deed_is_ahead_of_the_journal_when_it_is_killed(path: Path) -> None:
    for patience in (1, 3, 10):
        command = [sys.executable, "-c", textwrap.dedent(_DEEDS), str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ) as process:
            assert process.stdout is not None
            for _ in range(patience):
                process.stdout.readline()
            process.send_signal(signal.SIGKILL)
            done = patience - 1 + len(process.stdout.read().split())
        journal = Journal(path)
        case = list(journal.open_cases())[-1]
        assert case.standing.since_ms in {done, done + 1}
        assert case.victims == {(case.standing.since_ms, case.standing.since_ms)}
        journal.close()


def full(journal: Journal) -> None:
    """From now on, it may not grow: SQLite itself says that it is full."""
    pages = journal._db.execute("PRAGMA page_count").fetchone()[0]
    journal._db.execute(f"PRAGMA max_page_count = {pages}")


def room(journal: Journal) -> None:
    """Lets it grow again, and writes what waits."""
    journal._db.execute("PRAGMA max_page_count = 1000000")
    journal.retry()


def big_case(job: str) -> Case:
    """One that needs pages of its own."""
    case = a_case(job=job)
    case.incident.reason = "x" * 10_000
    return case


def test_what_cannot_be_written_is_kept_and_shown_and_written_later(
    journal: Journal, path: Path
) -> None:
    written = a_case(job="written")
    journal.save_case(written)
    full(journal)
    waiting = [big_case(f"j{number}") for number in range(3)]
    for case in waiting:
        journal.save_case(case)
    assert "full" in journal.failure
    assert journal.has(written)
    assert not journal.has(waiting[0])
    waiting[1].standing = Standing(Phase.RECLAIMED, 9, "")
    journal.save_case(waiting[1])
    journal.save_job(a_job())
    assert ids(journal.incidents("", "", None, 10)) == (["i4", "i3", "i2", "i1"], 0)
    assert ids(journal.incidents("acme", "j1", None, 10)) == (["i3"], 0)
    assert ids(journal.incidents("acm", "", None, 10)) == ([], 0)
    assert ids(journal.incidents("", "", 4, 2)) == (["i3", "i2"], 2)
    journal.retry()
    assert journal.failure
    room(journal)
    assert not journal.failure
    other = Journal(path)
    assert list(other.open_cases()) == [written, waiting[0], waiting[2]]
    assert list(other.jobs()) == [a_job()]
    assert ids(other.incidents("", "", None, 10)) == (["i4", "i3", "i2", "i1"], 0)
    other.close()


def test_what_waits_to_be_written_is_bounded(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "OWED_MAX", 5)
    full(journal)
    journal.save_case(big_case("first"))
    for number in range(20):
        journal.add_hold(Hold(f"r-{number}", "acme", ""))
    assert len(journal._owed) == 5
    room(journal)
    assert [one.reservation for one in journal.holds()] == [f"r-{n}" for n in range(15, 20)]


def test_a_file_that_somebody_has_locked_is_not_waited_for(journal: Journal, path: Path) -> None:
    with sqlite3.connect(path, isolation_level=None) as db:
        db.execute("BEGIN IMMEDIATE")
        began_s = time.monotonic()
        for number in range(20):
            journal.add_hold(Hold(f"r-{number}", "acme", ""))
        assert time.monotonic() - began_s < 2
        assert "locked" in journal.failure
        db.execute("ROLLBACK")
    db.close()
    journal.retry()
    assert len(journal.holds()) == 20


def test_a_page_comes_to_no_more_bytes_than_clients_take(journal: Journal) -> None:
    for number in range(12):
        case = a_case(job=f"j{number}")
        case.incident.reason = "x" * 400_000
        journal.save_case(case)
    seen: list[str] = []
    before: int | None = None
    pages = 0
    while before != 0:
        page, before = journal.incidents("", "", before, 1000)
        size = pb.ListIncidentsResponse(incidents=page).ByteSize()
        assert size <= module.PAGE_BYTES_MAX + 10_000
        seen += [one.job for one in page]
        pages += 1
    assert seen == [f"j{number}" for number in reversed(range(12))]
    assert pages == 3


def test_one_incident_that_is_larger_than_a_page_comes_alone(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAGE_BYTES_MAX", 10)
    for _ in range(2):
        journal.save_case(a_case())
    assert ids(journal.incidents("", "", None, 10)) == (["i2"], 2)
    assert ids(journal.incidents("", "", 2, 10)) == (["i1"], 0)


def test_the_latest_of_this_boot_are_those_of_this_boot_and_the_latest(journal: Journal) -> None:
    for boot, opened_ms in (("before", 900), ("boot", 100), ("boot", 500), ("boot", 700)):
        case = a_case()
        case.boot, case.opened_ms = boot, opened_ms
        journal.save_case(case)
    assert [one.opened_ms for one in journal.recent("boot", 0)] == [700, 500, 100]
    assert [one.opened_ms for one in journal.recent("boot", 500)] == [700]
    assert list(journal.recent("after", 0)) == []


def test_a_job_is_read_back_with_whom_was_found_of_it(journal: Journal) -> None:
    kept = a_job()
    kept.found = {(4002, 78), (4003, 79)}
    journal.save_job(kept)
    assert list(journal.jobs()) == [kept]
