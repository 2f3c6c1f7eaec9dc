"""Whose an entry of NVML's lists is, when a pid has passed from one process to another."""

import os
import time
from typing import Final

from bursar.v1 import process_pb2 as pb
from bursar.watchdog.attribution import Attribution
from bursar.watchdog.gpus import Gpus, View
from bursar.watchdog.processes import Held
from bursar.watchdog.samples import DeviceSample, GpuProcess, Health, Sample

PID: Final = 4242
TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")


def ticks(seconds_ago: float) -> int:
    """A start time so long ago, as /proc/PID/stat tells it."""
    return int((time.clock_gettime(time.CLOCK_BOOTTIME) - seconds_ago) * TICKS_PER_S)


def view(*pids: int, seconds_ago: float = 0) -> View:
    """The GPUs as they were so long ago, with these processes on the only one."""
    processes = tuple(GpuProcess(pid, "C", 1 << 30) for pid in pids)
    device = DeviceSample(uuid="GPU-0", index=0, processes=processes)
    time_ns = time.monotonic_ns() - int(seconds_ago * 1e9)
    return View.of(Sample(time_ns, Health.WATCHING, (device,)))


def after(gpus: Gpus, seen: View, *held: Held) -> Gpus:
    """The next look, when these processes have the pids."""
    known = {one.pid: one for one in held}
    source = pb.Process.SOURCE_REGISTERED
    whose = Attribution("acme/a", source, "j1", "worker", 0)
    return gpus.after(seen, known.get, lambda _: whose)


def test_an_entry_from_before_a_process_started_is_not_charged_to_it() -> None:
    """The driver frees late: it still lists who has died, and somebody else has the pid."""
    old, new = Held(PID, ticks(60), 9), Held(PID, ticks(1), 10)
    gpus = after(Gpus(), view(PID, seconds_ago=2), old)
    assert gpus.vram_by_job == {"j1": 1 << 30}
    for _ in range(3):
        gpus = after(gpus, view(PID), new)
        assert gpus.view.disputed == {PID}
        assert (gpus.whose, gpus.held, gpus.vram_by_job) == ({}, {}, {})


def test_it_is_known_again_once_nvml_has_not_listed_it() -> None:
    old, new = Held(PID, ticks(60), 9), Held(PID, ticks(1), 10)
    gpus = after(Gpus(), view(PID, seconds_ago=2), old)
    gpus = after(gpus, view(PID), new)
    gpus = after(gpus, view(), new)
    gpus = after(gpus, view(PID), new)
    assert gpus.view.disputed == set()
    assert gpus.held == {PID: new}


def test_who_had_died_at_the_sample_before_leaves_the_pid_disputed_too() -> None:
    gpus = after(Gpus(), view(PID, seconds_ago=2))  # nobody has the pid: it is being freed
    gpus = after(gpus, view(PID), Held(PID, ticks(1), 10))
    assert gpus.view.disputed == {PID}


def test_a_process_that_is_new_on_a_gpu_is_known_at_once() -> None:
    started_before = Held(PID, ticks(30), 9)
    assert after(Gpus(), view(PID), started_before).held == {PID: started_before}
    gpus = after(Gpus(), view(seconds_ago=2))
    assert after(gpus, view(PID), Held(PID, ticks(1), 9)).view.disputed == set()


def test_who_uses_a_gpu_through_mps_does_so_while_nobody_sees_it() -> None:
    held = Held(PID, ticks(60), 9)
    client = DeviceSample(uuid="GPU-0", index=0, processes=(GpuProcess(PID, "M", 0),))
    gpus = after(Gpus(), View.of(Sample(1, Health.WATCHING, (client,))), held)
    assert gpus.mps == {held.identity}
    lost = DeviceSample(uuid="GPU-0", index=0, error="lost")
    for sample in (
        Sample(2, Health.BLIND),
        Sample(3, Health.NO_NVML),
        Sample(4, Health.WATCHING, (lost,)),
    ):
        gpus = after(gpus, View.of(sample), held)
        assert gpus.mps == {held.identity}, sample
    assert after(gpus, View.of(Sample(5, Health.BLIND)), Held(PID, ticks(1), 10)).mps == set()
    assert after(gpus, view(PID), held).mps == set()
