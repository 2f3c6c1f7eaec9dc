"""What two displays that people use show of the NVML stand-in, and what looking at it costs."""

import ctypes
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from support.gpu import GIB, MIB, StandIn
from support.gpu_claims import Claim, claim

COST_SHARE_MAX = 0.005  # of a core
GPUS = 8
PROCESSES = 200
SLEEP = shutil.which("sleep") or "/bin/sleep"

NVITOP = """
import json
from nvitop import Device
for gpu in Device.all():
    for one in gpu.mig_devices() or [gpu]:
        for pid, seen in one.processes().items():
            print(json.dumps([one.uuid(), pid, seen.gpu_memory()]))
"""


@pytest.fixture
def machine() -> Iterator[StandIn]:
    with StandIn() as stand_in:
        yield stand_in


def populate(stand_in: StandIn) -> list[tuple[str, int, int]]:
    """Two GPUs, and a third with an instance: who holds how much on which."""
    first, second, third = (stand_in.add_gpu(name="NVIDIA H100") for _ in range(3))
    devices = [first, second, stand_in.add_instance(third)]
    held = [(device, number * GIB) for number, device in enumerate(devices, start=1)]
    return [
        (device, stand_in.worker(device, vram_bytes=size, busy_percent=20).pid, size)
        for device, size in held
    ]


def run(stand_in: StandIn, *command: str) -> str:
    """What a program prints that sees these GPUs."""
    return subprocess.run(
        command,
        env=stand_in.env(TERM="xterm", COLUMNS="120", LC_ALL="C.UTF-8"),
        capture_output=True,
        check=True,
        encoding="utf-8",
        timeout=30,
    ).stdout


def by_nvitop(stand_in: StandIn) -> list[tuple[str, int, int]]:
    lines = run(stand_in, sys.executable, "-c", NVITOP).splitlines()
    return [tuple(json.loads(line)) for line in lines]


def test_nvitop_finds_who_holds_what(machine: StandIn) -> None:
    assert by_nvitop(machine) == []
    held = populate(machine)
    assert by_nvitop(machine) == held


def test_nvitop_reads_the_long_layout_of_a_driver_that_had_it() -> None:
    # It tells these drivers by the function that came with the next layout.
    with StandIn(without=["nvmlDeviceGetRunningProcessDetailList"]) as old:
        old.layout(32)
        held = populate(old)
        assert by_nvitop(old) == held


def test_the_screen_of_nvitop_shows_devices_and_pids(machine: StandIn) -> None:
    held = populate(machine)
    screen = run(machine, sys.executable, "-m", "nvitop", "-1")
    assert screen.count("H100") == 3
    assert "1024MiB / 80.00GiB" in screen
    assert "1g.10gb @ GI/CI: 1/0" in screen
    shown = re.findall(r"│ +[0-9:]+ +(\d+) C +\S+ +(\d+)MiB", screen)
    assert [(int(pid), int(size)) for pid, size in shown] == [
        (pid, size // MIB) for _, pid, size in held
    ]


def test_gpustat_shows_devices_and_pids(machine: StandIn) -> None:
    held = populate(machine)
    gpus = json.loads(run(machine, sys.executable, "-m", "gpustat", "--json"))["gpus"]
    shown = [(one["pid"], one["gpu_memory_usage"]) for gpu in gpus for one in gpu["processes"]]
    assert shown == [(pid, size // MIB) for _, pid, size in held]
    assert [gpu["uuid"] for gpu in gpus[:2]] == [uuid for uuid, _, _ in held[:2]]
    assert [gpu["memory.used"] for gpu in gpus] == [1024, 2048, 3072]
    assert [gpu["utilization.gpu"] for gpu in gpus] == [20, 20, None]


def look(library: ctypes.CDLL, gpu: ctypes.c_void_p, room: ctypes.Array[ctypes.c_char]) -> int:
    """All that a watchdog asks a device for in one period; returns how many processes it saw."""
    seen = 0
    for kind in ("Compute", "Graphics", "MPSCompute"):
        count = ctypes.c_uint(0)
        listed = library[f"nvmlDeviceGet{kind}RunningProcesses_v3"]
        listed(gpu, ctypes.byref(count), None)
        count.value = len(room) // 24
        assert listed(gpu, ctypes.byref(count), room) == 0
        seen += count.value
    for name in ("MemoryInfo", "UtilizationRates", "TotalEnergyConsumption"):
        assert library[f"nvmlDeviceGet{name}"](gpu, room) == 0
    count.value = 0
    library.nvmlDeviceGetProcessUtilization(gpu, None, ctypes.byref(count), ctypes.c_uint64(0))
    assert library.nvmlDeviceGetProcessUtilization(gpu, room, ctypes.byref(count), 0) == 0
    return seen


def test_looking_once_a_second_at_many_processes_costs_next_to_nothing(machine: StandIn) -> None:
    gpus = [machine.add_gpu() for _ in range(GPUS)]
    machine.load_into_this_process()
    library = ctypes.CDLL(str(machine.library_path))
    room = ctypes.create_string_buffer(PROCESSES * 40)
    with ExitStack() as sleepers:
        for _ in range(PROCESSES):
            sleeper = sleepers.enter_context(subprocess.Popen([SLEEP, "60"]))
            sleepers.callback(sleeper.kill)
            held = [Claim(gpu=gpu, vram_bytes=MIB, busy_percent=1) for gpu in gpus]
            claim(machine.folder, sleeper.pid, *held)
        assert library.nvmlInitWithFlags(0) == 0
        devices = [ctypes.c_void_p() for _ in gpus]
        for uuid, device in zip(gpus, devices, strict=True):
            assert library.nvmlDeviceGetHandleByUUID(uuid.encode(), ctypes.byref(device)) == 0
        time.sleep(0.05)  # files that are younger are read again
        spent = []
        for _ in range(5):
            began = time.process_time()
            assert sum(look(library, device, room) for device in devices) == GPUS * PROCESSES
            spent.append(time.process_time() - began)
        print(f"a look at {GPUS} GPUs with {PROCESSES} processes each: {min(spent) * 1e6:.0f} us")
        assert min(spent) < COST_SHARE_MAX
