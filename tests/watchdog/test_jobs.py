"""Who belongs to a job: by identity, never by a pid that somebody else has by now."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest
from support.cast import Cast
from support.scene import until
from support.suspicion import start_of

from bursar.v1 import process_pb2 as pb
from bursar.watchdog import cgroups, processes
from bursar.watchdog import jobs as module
from bursar.watchdog.jobs import Jobs, Kept
from bursar.watchdog.processes import (
    Held,
    ProcessTable,
    all_children,
    ancestors,
    boot_id,
    descendants,
    read_stat,
)


@pytest.fixture(scope="module")
def cast() -> Iterator[Cast]:
    with Cast() as made:
        yield made


@pytest.fixture
def table() -> Iterator[ProcessTable]:
    made = ProcessTable()
    yield made
    made.close()


def a_job(pid: int, start: int, cgroup: str = "") -> Kept:
    job = pb.Job(id=f"j{pid}", account="acme", pid=pid, cgroup=cgroup)
    inode = cgroups.inode(cgroup) if cgroup else 0
    return Kept(job, start, inode, False, "", 0, boot_id())


def names(cast: Cast, held: list[Held]) -> set[str]:
    return {cast.name_of(one.pid) for one in held}


def started(pid: int | None = None) -> int:
    """A process that sleeps, with this pid where that can be had."""
    if pid is not None:
        try:
            Path("/proc/sys/kernel/ns_last_pid").write_text(str(pid - 1), encoding="ascii")
        except OSError as error:
            pytest.skip(f"pids cannot be chosen here: {error}")
    return os.posix_spawn("/bin/sleep", ["sleep", "60"], {})


def end(pid: int) -> None:
    os.kill(pid, 9)
    os.waitpid(pid, 0)


def test_all_that_descend_belong_and_nobody_else(cast: Cast, table: ProcessTable) -> None:
    jobs = Jobs(table)
    kept = a_job(cast.pids["a"], start_of(cast.pids["a"]))
    jobs.add(kept)
    assert names(cast, jobs.members(kept)) == cast.below("a")
    assert {pid for pid, _ in descendants([cast.pids["a"]], all_children())} == {
        cast.pids[one] for one in cast.below("a") - {"a"}
    }


def test_a_group_is_its_members(cast: Cast, table: ProcessTable) -> None:
    if not cast.groups:
        pytest.skip("no cgroup v2 can be made here")
    jobs = Jobs(table)
    pid = cast.pids["group"]
    kept = a_job(pid, start_of(pid), cast.groups["group"])
    jobs.add(kept)
    assert names(cast, jobs.members(kept)) == cast.below("group")
    assert jobs.of_group(f"{kept.job.cgroup}/below/that") is kept
    assert jobs.of_group("/elsewhere") is None
    assert not jobs.is_ended(kept)
    kept.cgroup_inode += 1
    assert jobs.of_group(kept.job.cgroup) is None


def test_of_a_root_that_is_another_process_nobody_belongs(cast: Cast, table: ProcessTable) -> None:
    jobs = Jobs(table)
    kept = a_job(cast.pids["a"], start_of(cast.pids["a"]) - 1)
    jobs.add(kept)
    held = table.hold(cast.pids["a"])
    assert held is not None
    assert jobs.members(kept) == []
    assert jobs.of_process(held) is None
    child = table.hold(cast.pids["a-child"])
    assert child is not None
    assert jobs.of_ancestor(child) is None
    assert jobs.is_ended(kept)


def test_a_pid_that_has_passed_to_another_process_takes_nobody_along(table: ProcessTable) -> None:
    """It was listed on a GPU, ended, and a stranger has its pid before the next sample."""
    jobs = Jobs(table)
    root = started()
    first = started()
    kept = a_job(root, start_of(root))
    jobs.add(kept)
    listed = table.hold(first)
    assert listed is not None
    kept.found = {listed.identity}
    assert [one.pid for one in jobs.members(kept, [listed])] == sorted([root, first])
    end(first)
    time.sleep(0.05)  # more than a clock tick: another start time
    second = started(first)
    try:
        if second != first:
            pytest.skip("the pid was taken")
        for look in range(3):
            assert [one.pid for one in jobs.members(kept, [listed])] == [root], f"look {look}"
            table.ended()
    finally:
        end(second)
        end(root)


def test_who_was_found_stays_found_until_it_ends(cast: Cast, table: ProcessTable) -> None:
    jobs = Jobs(table)
    pid = cast.pids["a"]
    kept = a_job(pid, start_of(pid))
    jobs.add(kept)
    jobs.members(kept)
    kept.start_ticks -= 1  # its root has ended; the others go on
    assert names(cast, jobs.members(kept)) == cast.below("a") - {"a"} | {"a"}


def test_what_no_process_can_have_is_not_held(table: ProcessTable) -> None:
    for pid in (0, -1, -(2**31), 2**22 + 1, 2**31 - 1, 2**31, 2**32 - 1, 2**64):
        assert table.hold(pid) is None
        assert not table.is_alive(pid, 0)
    assert len(table) == 0


def test_no_more_are_held_than_may_be(
    cast: Cast, table: ProcessTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "HELD_MAX", 2)
    found = [table.hold(cast.pids[name]) for name in ("a", "b", "pod")]
    assert [one is not None for one in found] == [True, True, False]
    assert table.hold(cast.pids["a"]) is found[0]


def test_a_job_lives_also_where_no_more_processes_can_be_held(
    table: ProcessTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a restart, in a flood of processes: a job that was forgotten is never stopped."""
    monkeypatch.setattr(processes, "HELD_MAX", 0)
    jobs, pid = Jobs(table), started()
    kept = a_job(pid, start_of(pid))
    assert not jobs.is_ended(kept)
    assert jobs.is_ended(a_job(pid, start_of(pid) + 1))
    os.kill(pid, 9)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert jobs.is_ended(kept)
    os.waitpid(pid, 0)
    assert jobs.is_ended(kept)


def test_the_end_of_a_process_is_told_once(table: ProcessTable) -> None:
    pid = started()
    held = table.hold(pid)
    assert held is not None
    assert table.is_alive(*held.identity)
    os.kill(pid, 9)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert not table.is_alive(*held.identity)
    assert table.ended() == [held]
    assert table.ended() == []
    os.waitpid(pid, 0)
    assert table.hold(pid) is None


def test_a_name_cannot_be_taken_for_more_fields(tmp_path: Path) -> None:
    program = tmp_path / ") Z 1 1 (("
    program.symlink_to("/bin/sleep")
    pid = os.posix_spawn(str(program), ["sleep", "60"], {})
    try:
        stat = read_stat(pid)
        assert stat is not None
        assert stat.ppid == os.getpid()
        assert stat.start_ticks == start_of(pid)
    finally:
        end(pid)


LEAVES: Final = """
import os, sys
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        print(os.getpid(), flush=True)
        os.close(1)
        os.read(0, 1)
        os._exit(0)
    os.read(int(sys.argv[1]), 1)
    os._exit(0)
os.wait()
os.read(0, 1)
"""
"""Starts a grandchild whose parent ends when the pipe that it is given does."""


@pytest.fixture
def leaver() -> Iterator[tuple[int, int, Callable[[], None]]]:
    """A process, its grandchild, and what leaves the grandchild without a parent."""
    reader, writer = os.pipe()
    command = [sys.executable, "-S", "-c", LEAVES, str(reader)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[reader]
    ) as process:
        os.close(reader)
        assert process.stdout is not None
        grandchild = int(process.stdout.readline())

        def leave() -> None:
            os.close(writer)
            until(lambda: process.pid not in ancestors(grandchild), "it has left")

        yield process.pid, grandchild, leave
        process.kill()
        assert process.stdin is not None
        process.stdin.close()


def test_who_was_found_once_stays_found_without_its_parents(
    leaver: tuple[int, int, Callable[[], None]], table: ProcessTable
) -> None:
    root, grandchild, leave = leaver
    jobs = Jobs(table)
    kept = a_job(root, start_of(root))
    jobs.add(kept)
    assert jobs.find() == [kept], "it is to be written down"
    leave()
    jobs.look_anew()
    assert jobs.find() == [], "there is nobody new"
    assert grandchild in {one.pid for one in jobs.members(kept)}
    held = table.hold(grandchild)
    assert held is not None
    assert jobs.of_ancestor(held) is kept
    kept.found = {(pid, start - 1) for pid, start in kept.found}  # the pids are others' by now
    assert jobs.of_ancestor(held) is None
    assert grandchild not in {one.pid for one in jobs.members(kept)}


def test_looking_for_who_belongs_holds_nobody_and_is_bounded(
    cast: Cast, table: ProcessTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = Jobs(table)
    kept = a_job(cast.stage, start_of(cast.stage))
    jobs.add(kept)
    jobs.find()
    assert {pid for pid, _ in kept.found} == {cast.stage, *cast.pids.values()}
    assert len(table) == 0
    monkeypatch.setattr(module, "FOUND_MAX", 3)
    jobs.look_anew()
    jobs.find()
    assert len(kept.found) == 3
    assert (cast.stage, start_of(cast.stage)) in kept.found


def test_jobs_in_cgroups_cost_no_look_at_proc(
    table: ProcessTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "all_children", None)
    jobs = Jobs(table)
    assert jobs.find() == []
    jobs.add(a_job(os.getpid(), start_of(os.getpid()), "/bursar-x"))
    assert jobs.find() == []


def test_everybody_descends_from_pid_1() -> None:
    line = list(ancestors(os.getpid()))
    assert line[0] == os.getppid()
    assert line[-1] == 1
    assert list(ancestors(1)) == []
