"""The journal's file: what a crash leaves of it, who owns it, what damage and a full disk do."""

import errno
import fcntl
import multiprocessing
import os
import resource
import signal
import stat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bursar
from bursar import _journal
from bursar._journal import Journal, Kept
from bursar.exceptions import LimitReached

TARGET = "unix:/s"
METHODS = ("LedgerService/Commit", "LedgerService/Release", "LedgerService/Record")

kept = st.builds(Kept, st.sampled_from(METHODS), st.binary(max_size=40))
# A step keeps a call, replaces the one at an index, or answers it.
steps = st.lists(st.tuples(st.sampled_from("krd"), st.integers(0, 8), kept), max_size=30)


def files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def waiting(journal: Journal) -> list[Kept]:
    return [one for _, one in journal.ready()]


def keep_many(journal: Journal) -> None:
    for _ in range(100):
        journal.keep(Kept(METHODS[0], b"w" * 20))


@settings(max_examples=200, deadline=None)
@given(steps=steps, cut=st.floats(0, 1))
def test_what_a_crash_leaves_is_what_was_kept_and_not_answered(
    tmp_path_factory: pytest.TempPathFactory,
    steps: list[tuple[str, int, Kept]],
    cut: float,
) -> None:
    """After each step the file's length is noted with what waits then. Cut anywhere, the file says
    what waited at the last step that it holds whole: no call twice, none lost."""
    folder = tmp_path_factory.mktemp("journal")
    journal = Journal(folder, TARGET)
    model: dict[int, Kept] = {}
    history: list[tuple[int, dict[int, Kept]]] = [(0, {})]
    for step, index, one in steps:
        numbers = sorted(model)
        if step == "k" or not numbers:
            number = journal.keep(one)
            model[number] = one
        elif step == "r":
            number = journal.keep(one, number=numbers[index % len(numbers)])
            model[number] = one
        else:
            number = numbers[index % len(numbers)]
            journal.done(number)
            del model[number]
        [path] = files(folder)
        history.append((path.stat().st_size, dict(model)))
    if not steps:
        return
    data = path.read_bytes()
    length = round(cut * len(data))
    expected = [state for size, state in history if size <= length][-1]
    target, left, damaged = _journal.read(data[:length])
    assert (left, damaged) == (expected, 0)
    assert target in {None, TARGET}
    journal.close()


def test_the_next_client_takes_over_and_leaves_nothing_behind(tmp_path: Path) -> None:
    calls = [Kept(METHODS[0], b"%d" % number) for number in range(3)]
    first = Journal(tmp_path, TARGET)
    for one in calls:
        first.keep(one)
    other = Journal(tmp_path, TARGET)  # its owner lives
    assert len(other) == 0
    first.close()
    second = Journal(tmp_path, TARGET)
    assert waiting(second) == calls
    assert len(files(tmp_path)) == 1
    for number, _ in second.ready():
        second.done(number)
    second.close()
    assert files(tmp_path) == []


def test_a_journal_is_for_one_sidecar(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = Journal(tmp_path, TARGET)
    first.keep(Kept(METHODS[0], b"x"))
    first.close()
    assert len(Journal(tmp_path, "unix:/another")) == 0
    assert f"is for {TARGET}: its calls (1) are not sent to unix:/another" in caplog.text
    assert len(Journal(tmp_path, TARGET)) == 1


def test_a_crash_while_a_file_is_written_anew_leaves_nothing_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Journal(tmp_path, TARGET)
    monkeypatch.setattr(Path, "rename", lambda *_: os._exit(9))
    pid = os.fork()
    if pid == 0:
        first.keep(Kept(METHODS[0], b"x"))
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    monkeypatch.undo()
    [draft] = files(tmp_path)
    assert draft.suffix == ".draft"
    assert len(Journal(tmp_path, TARGET)) == 0
    assert files(tmp_path) == []


def test_where_nothing_can_be_locked_it_says_so_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unlockable(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks here")

    monkeypatch.setattr(fcntl, "flock", unlockable)
    journal = Journal(tmp_path, TARGET)
    before = len(files(Path("/proc/self/fd")))
    for _ in range(3):
        with pytest.raises(LimitReached, match="no locks here"):
            journal.keep(Kept(METHODS[0], b"x"))
    assert files(tmp_path) == []
    assert len(files(Path("/proc/self/fd"))) == before


def test_a_draft_that_is_taken_for_left_behind_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As another client does between its making and its lock."""
    lock = fcntl.flock
    taken: list[Path] = []

    def late(file: int, how: int) -> None:
        if not taken:
            taken.extend(files(tmp_path))
            taken[0].unlink()
        lock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    journal = Journal(tmp_path, TARGET)
    journal.keep(Kept(METHODS[0], b"x"))
    journal.close()
    assert len(taken) == 1
    assert len(Journal(tmp_path, TARGET)) == 1


def test_only_its_user_may_read_it(tmp_path: Path) -> None:
    folder = tmp_path / "state" / "journal"
    before = os.umask(0)
    try:
        journal = Journal(folder, TARGET)
        journal.keep(Kept(METHODS[0], b"x"))
    finally:
        os.umask(before)
    [path] = files(folder)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_damage_is_told_and_costs_only_its_own_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = Journal(tmp_path, TARGET)
    for number in range(3):
        first.keep(Kept(METHODS[0], b"%d" % number))
    first.close()
    [path] = files(tmp_path)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[2] = lines[2].replace(b'"request"', b'"reques!"')
    path.write_bytes(b"".join(lines))
    second = Journal(tmp_path, TARGET)
    assert [one.request for one in waiting(second)] == [b"0", b"2"]
    assert second.damaged == 1
    assert "1 damaged lines; what they kept is lost" in caplog.text


@pytest.mark.parametrize("content", [b"", b"\x00" * 64, b"nonsense\n\n\xff\n", b"x" * 2**16])
def test_a_file_that_is_no_journal_is_left_as_it_is(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.journal"
    path.write_bytes(content)
    journal = Journal(tmp_path, TARGET)
    journal.keep(Kept(METHODS[0], b"x"))
    assert path.read_bytes() == content


def test_what_is_answered_does_not_fill_the_file(tmp_path: Path) -> None:
    journal = Journal(tmp_path, TARGET)
    stays = journal.keep(Kept(METHODS[0], b"stays"))
    for _ in range(5_000):
        journal.done(journal.keep(Kept(METHODS[1], b"y" * 30)))
    [path] = files(tmp_path)
    assert path.stat().st_size < 2 * _journal._SLACK_BYTES
    assert _journal.read(path.read_bytes())[1] == {stays: Kept(METHODS[0], b"stays")}


def test_at_its_bound_it_says_so_and_keeps_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_journal, "BYTES_MAX", 1_000)
    journal = Journal(tmp_path, TARGET)
    with pytest.raises(LimitReached, match="calls wait for an answer") as caught:
        keep_many(journal)
    assert caught.value.reason == "JOURNAL_FULL"
    assert 5 < len(journal) < 20
    journal.done(journal.ready()[0][0])
    journal.keep(Kept(METHODS[0], b"z"))


def _fill(folder: Path) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, 1_000))
    journal = Journal(folder, TARGET)
    with pytest.raises(LimitReached, match="cannot be written"):
        keep_many(journal)
    [path] = files(folder)
    _, left, damaged = _journal.read(path.read_bytes())
    assert (list(left.values()), damaged) == (waiting(journal), 0)
    assert path.read_bytes().endswith(b"\n")
    number = journal.keep(Kept(METHODS[0], b"must"), bounded=False)
    assert (number, Kept(METHODS[0], b"must")) in journal.ready()


def test_a_disk_that_is_full_leaves_no_half_line(tmp_path: Path) -> None:
    """In a process of its own, whose files may have 1,000 bytes."""
    process = multiprocessing.get_context("spawn").Process(target=_fill, args=(tmp_path,))
    process.start()
    process.join(30)
    assert process.exitcode == 0


def _in_a_child(journal: Journal, folder: Path) -> None:
    assert len(journal) == 1
    journal.keep(Kept(METHODS[0], b"child"))
    assert waiting(journal) == [Kept(METHODS[0], b"child")]
    assert len(files(folder)) == 2
    os._exit(0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_has_a_file_of_its_own(tmp_path: Path) -> None:
    journal = Journal(tmp_path, TARGET)
    journal.keep(Kept(METHODS[0], b"parent"))
    child = os.fork()
    if child == 0:
        try:
            _in_a_child(journal, tmp_path)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert waiting(journal) == [Kept(METHODS[0], b"parent")]
    # What the child had kept is the next client's.
    assert waiting(Journal(tmp_path, TARGET)) == [Kept(METHODS[0], b"child")]


def test_a_folder_that_cannot_be_used_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x", encoding="ascii")
    with pytest.raises(bursar.InvalidRequest, match="the journal's folder"):
        bursar.connect(f"{tmp_path}/s", journal=tmp_path / "file")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
@pytest.mark.parametrize("kind", ["file", "pipe"])
@pytest.mark.timeout(30)
def test_what_another_user_has_planted_is_not_sent(tmp_path: Path, kind: str) -> None:
    """It would be sent with the token of whoever takes it over; a pipe would never end."""
    spender = Journal(tmp_path, TARGET)
    spender.keep(Kept(METHODS[2], b"w"))
    [path] = files(tmp_path)
    spender._folder = None  # gone without a word, as in a crash
    os.close(spender._file)
    if kind == "pipe":
        path.unlink()
        os.mkfifo(path)
    os.chown(path, 40_009, 40_009)
    assert waiting(Journal(tmp_path, TARGET)) == []
    assert files(tmp_path) == [path]
