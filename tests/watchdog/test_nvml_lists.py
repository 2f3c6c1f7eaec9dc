"""The process lists through a real daemon: whatever the driver's age, never a wrong pid."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
from support.gpu import GIB, MIB, StandIn
from support.gpu_worker import Worker
from support.sights import eventually, shown
from support.watched import QUICK, Watched

from bursar.processes import IncidentState, WatchdogState

V2 = "nvmlDeviceGetComputeRunningProcesses_v2"
V3 = "nvmlDeviceGetComputeRunningProcesses_v3"
LISTS = [
    f"nvmlDeviceGet{kind}RunningProcesses_v{age}"
    for kind in ("Compute", "Graphics", "MPSCompute")
    for age in (2, 3)
]


@pytest.fixture
def machine() -> StandIn:
    """A machine without a daemon yet; `Watched` ends it."""
    return StandIn()


def sees(watched: Watched, *workers: Worker) -> Callable[[], bool]:
    """Whether exactly these are listed."""
    return lambda: set(shown(watched)) == {one.pid for one in workers}


@pytest.mark.parametrize("layout", [16, 24, 32])
@pytest.mark.parametrize("has_v2", [True, False])
def test_every_layout_shows_the_right_pids_and_bytes_and_the_right_process_is_killed(
    machine: StandIn, *, layout: Literal[16, 24, 32], has_v2: bool
) -> None:
    machine.layout(layout)
    gpu = machine.add_gpu()
    if not has_v2:
        machine.fail(V2, 13)
    with Watched(machine) as watched:
        watched.limit_vram("over", 3 * GIB)
        kept = watched.register("under", gpu=gpu, vram_bytes=5 * GIB + MIB)
        eventually(sees(watched, kept))
        assert shown(watched)[kept.pid].vram_bytes == 5 * GIB + MIB
        other = watched.register("over", gpu=gpu, vram_bytes=4 * GIB)
        incident = watched.one("over", IncidentState.RECLAIMED)
        assert [one.pid for one in incident.victims] == [other.pid]
        assert incident.vram_bytes == 4 * GIB
        assert other.process.wait(5) == 0
        assert kept.process.poll() is None
        assert list(watched.client.list_incidents("under")) == []


@pytest.mark.parametrize("has_v2", [True, False])
@pytest.mark.parametrize("ages", [(24, 32), (32, 24), (24, 16), (16, 32)])
def test_a_layout_that_changes_under_a_running_daemon_never_shows_a_wrong_pid(
    machine: StandIn, *, has_v2: bool, ages: tuple[Literal[16, 24, 32], Literal[16, 24, 32]]
) -> None:
    gpu = machine.add_gpu()
    before, after = ages
    machine.layout(before)
    if not has_v2:
        machine.fail(V2, 13)
    with Watched(machine) as watched:
        workers = [watched.register(f"a{n}", gpu=gpu, vram_bytes=n * GIB) for n in (1, 2, 3)]
        eventually(sees(watched, *workers))
        machine.layout(after)
        own = {one.pid for one in workers}
        until = time.monotonic() + 1.0
        last: set[int] = set()
        while time.monotonic() < until:
            last = set(shown(watched))
            assert last <= own, f"a pid that nobody has: {last - own}"
            time.sleep(0.02)
        assert last == (own if has_v2 else set()), "by _v2 it goes on; without, it sees nothing"
        assert all(one.process.poll() is None for one in workers)
        if not has_v2:
            assert "cannot be read" in watched.daemon.log
            machine.layout(before)
            eventually(sees(watched, *workers))


def test_without_the_v3_calls_the_v2_calls_do() -> None:
    machine = StandIn(without=[one for one in LISTS if one.endswith("3")])
    gpu = machine.add_gpu()
    with Watched(machine) as watched:
        watched.limit_vram("over", GIB)
        worker = watched.register("over", gpu=gpu, vram_bytes=2 * GIB)
        incident = watched.one("over", IncidentState.RECLAIMED)
        assert [(one.pid, one.vram_bytes) for one in incident.victims] == [(worker.pid, 2 * GIB)]


def test_a_device_without_any_list_is_blind_and_nothing_on_it_is_killed_or_charged() -> None:
    machine = StandIn(without=LISTS)
    gpu, other = machine.add_gpu(energy_runs=True), machine.add_gpu()
    with Watched(machine) as watched:
        watched.limit_vram("over", GIB)
        worker = watched.register("over", gpu=gpu, vram_bytes=2 * GIB)
        watched.register("over", gpu=other, vram_bytes=2 * GIB)
        eventually(lambda: "cannot be read" in watched.daemon.log)
        time.sleep(0.5)
        listed = watched.client.list_processes()
        assert listed.watchdog.state is WatchdogState.WATCHING
        assert "neither _v3 nor _v2" in listed.watchdog.detail
        assert {one.uuid for one in listed.devices} == {gpu, other}
        assert not any(one.device for one in listed.processes)
        assert worker.process.poll() is None
        assert list(watched.client.list_incidents()) == []
        assert watched.held("over") == 0
        alarms = [line for line in watched.daemon.log.splitlines() if "cannot be read" in line]
        assert len(alarms) == 2, "once for each GPU, not for each sample"


def test_lists_that_become_unreadable_stop_nobody_for_what_was_seen_before() -> None:
    """The memory stays held in the ledger; the breach, which takes 1 s, does not come about."""
    with Watched(watchdog={"vram_patience": "1s"}) as watched:
        watched.limit_vram("over", 3 * GIB)
        worker = watched.register("over", vram_bytes=GIB)
        eventually(sees(watched, worker))
        watched.gpus.set_process(worker.pid, watched.gpu, vram_bytes=4 * GIB)
        eventually(lambda: shown(watched)[worker.pid].vram_bytes == 4 * GIB)
        watched.gpus.fail(V2, 13)
        watched.gpus.fail(V3, 13)
        time.sleep(2)
        assert worker.process.poll() is None
        assert list(watched.client.list_incidents()) == []
        watched.gpus.heal()
        assert watched.one("over", IncidentState.RECLAIMED).vram_bytes == 4 * GIB


def test_a_list_that_grows_between_two_calls_is_read_whole() -> None:
    with Watched() as watched:
        watched.gpus.grow_list(V3, 150, times=3)
        watched.gpus.grow_list(V2, 150, times=2)
        workers = [watched.register("a", vram_bytes=GIB) for _ in range(3)]
        eventually(sees(watched, *workers))
        highest = int(Path("/proc/sys/kernel/pid_max").read_text(encoding="ascii"))
        for pid in range(highest - 100, highest):
            watched.gpus.set_process(pid, watched.gpu, real=False, vram_bytes=MIB)
        eventually(lambda: len(shown(watched)) == 103)


def test_a_list_that_never_has_room_blinds_the_device_and_harms_nobody() -> None:
    with Watched() as watched:
        worker = watched.register("a", vram_bytes=GIB)
        eventually(sees(watched, worker))
        for symbol in (V2, V3):
            watched.gpus.grow_list(symbol, 100_000)
        eventually(sees(watched))
        watched.gpus.heal()
        eventually(sees(watched, worker))


def test_bytes_that_the_driver_does_not_tell_are_unknown_and_metered_by_the_rest() -> None:
    with Watched() as watched:
        watched.limit_vram("untold", 10 * GIB)
        told = watched.register("told", vram_bytes=2 * GIB)
        untold = watched.register("untold", vram_bytes=3 * GIB, tells_bytes=False)
        eventually(sees(watched, told, untold))
        rows = shown(watched)
        assert rows[untold.pid].vram_bytes is None
        assert rows[untold.pid].account == "untold"
        assert rows[told.pid].vram_bytes == 2 * GIB
        eventually(lambda: watched.held("untold") == 3 * GIB)


def test_nobody_is_stopped_for_bytes_that_may_be_anothers() -> None:
    with Watched() as watched:
        for account in ("small", "large"):
            watched.limit_vram(account, 4 * GIB)
        small = watched.register("small", vram_bytes=GIB, tells_bytes=False)
        large = watched.register("large", vram_bytes=11 * GIB, tells_bytes=False)
        eventually(lambda: "an equal share, and nobody is stopped for it" in watched.daemon.log)
        time.sleep(1)
        assert not list(watched.client.list_incidents())
        small.end()
        assert watched.ended("large")[0].vram_bytes == 0, "alone, what is in use is its own"
        assert large.process.wait(5) == 0


def test_a_process_in_two_lists_counts_once() -> None:
    with Watched() as watched:
        worker = watched.register("a", vram_bytes=GIB, contexts="CG")
        watched.limit_vram("a", 10 * GIB)
        eventually(lambda: watched.held("a") == GIB)
        rows = [one for one in watched.client.list_processes().processes if one.device]
        assert [one.pid for one in rows] == [worker.pid]


def test_pids_that_cannot_be_are_never_taken_for_processes() -> None:
    """What a list of the wrong size gives: our own group, init, everybody, and beyond the end."""
    with Watched(watchdog=QUICK) as watched:
        for pid in (1, 2, 2**31 - 1):
            watched.gpus.set_process(pid, watched.gpu, real=False, vram_bytes=70 * GIB)
        eventually(lambda: "cannot be read" in watched.daemon.log)
        assert shown(watched) == {}
        assert "gives pids that cannot be" in watched.client.list_processes().watchdog.detail
