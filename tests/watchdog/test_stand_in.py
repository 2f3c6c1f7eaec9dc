"""The NVML stand-in against NVIDIA's own Python module, and against two displays that people use.

A wrong stand-in would make the watchdog's tests prove nothing.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal

import pynvml as nv
import pytest
from support.gpu import GIB, MIB, NEVER, StandIn

NA = 2**32 - 1


@pytest.fixture
def machine() -> Iterator[StandIn]:
    """A stand-in that this process has loaded, without any GPU yet."""
    with StandIn() as stand_in:
        stand_in.load_into_this_process()
        nv.nvmlInit()
        yield stand_in


@pytest.fixture
def gpu(machine: StandIn) -> str:
    """Its only GPU."""
    return machine.add_gpu(name="NVIDIA H100", base_bytes=MIB)


def handle(uuid: str) -> Any:
    return nv.nvmlDeviceGetHandleByUUID(uuid)


def compute(uuid: str) -> dict[int, int | None]:
    """The compute processes by pid, as the newest call tells them."""
    return {p.pid: p.usedGpuMemory for p in nv.nvmlDeviceGetComputeRunningProcesses(handle(uuid))}


def used(uuid: str) -> int:
    told: int = nv.nvmlDeviceGetMemoryInfo(handle(uuid), version=nv.nvmlMemory_v2).used
    return told


def code(call: Callable[..., object], *arguments: object) -> int:
    """NVML's code of a call that fails; 0 where it does not."""
    try:
        call(*arguments)
    except nv.NVMLError as error:
        return int(error.value)
    except nv.NVMLLibraryMismatchError:
        return 13
    return 0


def wait_until(met: Callable[[], bool], *, seconds: float = 5) -> None:
    deadline = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_device_is_what_was_described(machine: StandIn) -> None:
    uuids = [machine.add_gpu(name=f"NVIDIA Number {n}", minor=n + 2) for n in range(3)]
    assert nv.nvmlDeviceGetCount() == 3
    for index, uuid in enumerate(uuids):
        device = nv.nvmlDeviceGetHandleByIndex(index)
        assert nv.nvmlDeviceGetUUID(device) == uuid
        assert nv.nvmlDeviceGetName(device) == f"NVIDIA Number {index}"
        assert nv.nvmlDeviceGetIndex(handle(uuid)) == index
        assert nv.nvmlDeviceGetMinorNumber(device) == index + 2
        bus = nv.nvmlDeviceGetPciInfo(device).busId
        assert bus == f"00000000:{index + 3:02X}:00.0"
        assert nv.nvmlDeviceGetUUID(nv.nvmlDeviceGetHandleByPciBusId(bus)) == uuid
    assert nv.nvmlSystemGetDriverVersion() == "550.54.15"
    assert nv.nvmlSystemGetNVMLVersion() == "12.550.54.15"
    assert nv.nvmlSystemGetCudaDriverVersion() == 12040
    assert code(nv.nvmlDeviceGetHandleByIndex, 3) == 2
    assert code(handle, "GPU-unknown") == 6


def test_memory_counts_while_its_process_lives(machine: StandIn, gpu: str) -> None:
    with machine.worker(gpu, vram_bytes=5 * GIB) as worker:
        assert compute(gpu) == {worker.pid: 5 * GIB}
        assert used(gpu) == 5 * GIB + MIB
        worker.process.terminate()
        assert worker.process.wait() == 0
        assert compute(gpu) == {}
        assert used(gpu) == MIB


def test_a_process_that_took_over_a_pid_holds_nothing(machine: StandIn, gpu: str) -> None:
    machine.set_process(os.getpid(), gpu, vram_bytes=GIB)
    assert compute(gpu) == {os.getpid(): GIB}
    path = machine.folder / "processes" / str(os.getpid())
    path.write_text(path.read_text().replace("start=", "start=1"))  # another start time
    (machine.folder / "processes" / ".touched").touch()
    assert compute(gpu) == {}


def test_a_pid_of_another_namespace_is_listed_until_it_is_removed(
    machine: StandIn, gpu: str
) -> None:
    machine.set_process(4_000_000, gpu, real=False, vram_bytes=GIB)
    assert compute(gpu) == {4_000_000: GIB}
    machine.remove(4_000_000)
    assert compute(gpu) == {}


def test_the_first_version_of_memory_counts_what_is_reserved_as_used(
    machine: StandIn, gpu: str
) -> None:
    first = nv.nvmlDeviceGetMemoryInfo(handle(gpu))
    second = nv.nvmlDeviceGetMemoryInfo(handle(gpu), version=nv.nvmlMemory_v2)
    assert (first.total, second.total) == (80 * GIB, 80 * GIB)
    assert (first.used, second.used, second.reserved) == (513 * MIB, MIB, 512 * MIB)
    assert first.free == second.free == 80 * GIB - 513 * MIB
    assert code(nv.nvmlDeviceGetMemoryInfo, handle(gpu), 1) == 25
    machine.no_memory_v2()
    assert code(used, gpu) == 13
    assert nv.nvmlDeviceGetMemoryInfo(handle(gpu)).used == 513 * MIB


def test_unified_memory_is_not_supported_but_processes_are_listed(machine: StandIn) -> None:
    gpu = machine.add_gpu(unified=True)
    machine.set_process(os.getpid(), gpu, vram_bytes=GIB)
    assert code(nv.nvmlDeviceGetMemoryInfo, handle(gpu)) == 3
    assert code(used, gpu) == 3
    assert compute(gpu) == {os.getpid(): GIB}


def test_contexts_are_told_in_their_lists_and_counted_once(machine: StandIn, gpu: str) -> None:
    machine.set_process(os.getpid(), gpu, vram_bytes=GIB, contexts="CG")
    machine.set_process(4_000_000, gpu, real=False, vram_bytes=MIB, contexts="M")
    assert compute(gpu) == {os.getpid(): GIB}
    [graphics] = nv.nvmlDeviceGetGraphicsRunningProcesses(handle(gpu))
    [mps] = nv.nvmlDeviceGetMPSComputeRunningProcesses(handle(gpu))
    assert (graphics.pid, mps.pid) == (os.getpid(), 4_000_000)
    assert used(gpu) == GIB + 2 * MIB


def test_bytes_that_are_not_told_are_none_and_used(machine: StandIn, gpu: str) -> None:
    machine.set_process(os.getpid(), gpu, vram_bytes=GIB, tells_bytes=False)
    assert compute(gpu) == {os.getpid(): None}
    assert used(gpu) == GIB + MIB


@pytest.mark.parametrize("size", [16, 24, 32])
def test_another_layout_of_the_process_lists_gives_wrong_pids(
    machine: StandIn, gpu: str, size: Literal[16, 24, 32]
) -> None:
    pids = [4_000_000, 4_000_001, 4_000_002]
    for pid in pids:
        machine.set_process(pid, gpu, real=False, vram_bytes=GIB)
    machine.layout(size)
    told = sorted(p.pid for p in nv.nvmlDeviceGetComputeRunningProcesses_v3(handle(gpu)))
    if size == 24:
        assert told == pids
    else:
        assert set(told) - set(pids)
        assert set(told) & {0, NA, GIB % 2**32, *pids}
    listed = nv.nvmlDeviceGetComputeRunningProcesses_v2(handle(gpu))
    assert sorted(p.pid for p in listed) == pids
    assert {(p.gpuInstanceId, p.computeInstanceId) for p in listed} == {(NA, NA)}


LATECOMER = """
import time, pynvml as nv
nv.nvmlInit()
gpu = nv.nvmlDeviceGetHandleByIndex(0)
print(len(nv.nvmlDeviceGetComputeRunningProcesses(gpu)))
while nv.nvmlDeviceGetComputeRunningProcesses(gpu):
    time.sleep(0.02)
print(time.monotonic())
"""


def test_memory_may_be_freed_long_after_the_death(machine: StandIn, gpu: str) -> None:
    """All who look agree on when it is, those too who have started after the death."""
    with machine.worker(gpu, vram_bytes=GIB, free_after_ms=2_000) as worker:
        worker.process.kill()
        worker.process.wait()
        assert compute(gpu) == {worker.pid: GIB}
        died = time.monotonic()
        command = [sys.executable, "-c", LATECOMER]
        with subprocess.Popen(command, env=machine.env(), stdout=subprocess.PIPE) as latecomer:
            wait_until(lambda: compute(gpu) == {})
            freed = time.monotonic()
            told = latecomer.communicate(timeout=10)[0].split()
        assert told[0] == b"1"
        assert freed - died > 1.9
        assert abs(float(told[1]) - freed) < 1


def test_memory_may_never_be_freed(machine: StandIn, gpu: str) -> None:
    with machine.worker(gpu, vram_bytes=GIB, free_after_ms=NEVER) as worker:
        worker.end()
        time.sleep(0.1)
        assert compute(gpu) == {worker.pid: GIB}
        assert used(gpu) == GIB + MIB
        machine.remove(worker.pid)
        assert compute(gpu) == {}


def test_the_retry_does_not_fit_while_the_list_grows(machine: StandIn, gpu: str) -> None:
    machine.set_process(os.getpid(), gpu)
    name = "nvmlDeviceGetComputeRunningProcesses_v3"
    machine.grow_list(name, 100, times=2)
    assert [code(compute, gpu) for _ in range(3)] == [7, 7, 0]


def test_a_function_fails_as_long_and_for_the_device_that_it_was_told(
    machine: StandIn, gpu: str
) -> None:
    other = machine.add_gpu()
    machine.fail("nvmlDeviceGetPowerUsage", 999, gpu=gpu, times=2)
    told = [code(nv.nvmlDeviceGetPowerUsage, handle(gpu)) for _ in range(3)]
    assert told == [999, 999, 0]
    machine.fail("nvmlDeviceGetPowerUsage", 4, gpu=gpu)
    assert code(nv.nvmlDeviceGetPowerUsage, handle(other)) == 0
    assert code(nv.nvmlDeviceGetPowerUsage, handle(gpu)) == 4
    machine.heal("nvmlDeviceGetPowerUsage")
    assert code(nv.nvmlDeviceGetPowerUsage, handle(gpu)) == 0
    with pytest.raises(AssertionError, match="no such function"):
        machine.fail("nvmlDeviceGetProcesses", 3)


def test_the_whole_library_may_fail_and_return(machine: StandIn, gpu: str) -> None:
    device = handle(gpu)
    machine.fail("*", 999)
    assert code(nv.nvmlInit) == code(nv.nvmlDeviceGetCount) == code(used, gpu) == 999
    machine.heal("*")
    assert nv.nvmlDeviceGetCount() == 1
    assert nv.nvmlDeviceGetUUID(device) == gpu


def test_a_handle_that_is_none_is_refused(machine: StandIn, gpu: str) -> None:
    assert code(nv.nvmlDeviceGetName, None) == 2
    assert code(nv.nvmlDeviceGetName, nv.c_nvmlDevice_t()) == 2


@pytest.mark.parametrize("refusal", [9, 12, 18])
def test_the_library_may_refuse_to_start(machine: StandIn, refusal: int) -> None:
    machine.fail_init(refusal)
    assert code(nv.nvmlInit) == refusal
    machine.heal()
    assert code(nv.nvmlInit) == 0


def test_calls_fail_after_the_shutdown(machine: StandIn) -> None:
    nv.nvmlShutdown()
    assert code(nv.nvmlDeviceGetCount) == 1
    nv.nvmlInit()
    assert nv.nvmlDeviceGetCount() == 0


def test_a_gpu_is_lost_and_then_gone(machine: StandIn, gpu: str) -> None:
    other = machine.add_gpu()
    device = handle(gpu)
    machine.lose(gpu)
    assert nv.nvmlDeviceGetCount() == 2
    assert code(nv.nvmlDeviceGetName, device) == 15
    assert code(nv.nvmlDeviceGetHandleByIndex, 0) == 15
    assert nv.nvmlDeviceGetIndex(handle(other)) == 1
    machine.remove_gpu(gpu)
    assert nv.nvmlDeviceGetCount() == 1
    assert code(nv.nvmlDeviceGetName, device) == 15
    assert code(handle, gpu) == 6
    assert nv.nvmlDeviceGetIndex(handle(other)) == 0


COUNT = """
import pynvml as nv
nv.nvmlInit()
print(len(nv.nvmlDeviceGetComputeRunningProcesses(nv.nvmlDeviceGetHandleByIndex(0))))
"""


def test_a_hung_call_answers_when_it_is_healed_and_others_answer_meanwhile(
    machine: StandIn, gpu: str
) -> None:
    machine.hang("nvmlDeviceGetComputeRunningProcesses_v3")
    with subprocess.Popen(
        [sys.executable, "-c", COUNT], env=machine.env(), stdout=subprocess.PIPE
    ) as child:
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(0.5)
        assert nv.nvmlDeviceGetCount() == 1
        machine.heal()
        assert child.communicate(timeout=10)[0] == b"0\n"


def test_processes_have_samples_only_where_they_are_newer(machine: StandIn, gpu: str) -> None:
    machine.system(sample_ms=10_000)
    machine.set_process(os.getpid(), gpu, busy_percent=30)
    machine.set_process(4_000_000, gpu, real=False, busy_percent=90, contexts="")
    [first, second] = sorted(
        nv.nvmlDeviceGetProcessesUtilizationInfo(handle(gpu), 0), key=lambda one: one.smUtil
    )
    assert [(first.pid, first.smUtil), (second.pid, second.smUtil)] == [
        (os.getpid(), 30),
        (4_000_000, 90),
    ]
    assert abs(first.timeStamp / 1e6 - time.time()) < 15
    newest = first.timeStamp
    before = nv.nvmlDeviceGetProcessUtilization(handle(gpu), newest - 1)
    assert sorted(one.smUtil for one in before) == [30, 90]
    seen = 2**63  # later than any sample, so that no moment of this test can come too late
    assert code(nv.nvmlDeviceGetProcessUtilization, handle(gpu), seen) == 6
    assert code(nv.nvmlDeviceGetProcessesUtilizationInfo, handle(gpu), seen) == 6
    assert nv.nvmlDeviceGetUtilizationRates(handle(gpu)).gpu == 100
    assert compute(gpu) == {os.getpid(): 0}
    machine.update(gpu, busy_percent=42)
    assert nv.nvmlDeviceGetUtilizationRates(handle(gpu)).gpu == 42
    machine.update(gpu, tells_busy=False)
    assert code(nv.nvmlDeviceGetUtilizationRates, handle(gpu)) == 3


def test_energy_is_a_counter_that_may_run_and_be_reset(machine: StandIn) -> None:
    still = machine.add_gpu(energy_mj=5_000, power_mw=300_000)
    runs = machine.add_gpu(energy_runs=True, power_mw=1_000_000)
    assert nv.nvmlDeviceGetTotalEnergyConsumption(handle(still)) == 5_000
    assert nv.nvmlDeviceGetPowerUsage(handle(still)) == 300_000
    began, first = time.monotonic(), nv.nvmlDeviceGetTotalEnergyConsumption(handle(runs))
    time.sleep(0.1)
    machine.update(runs, power_mw=0)  # what it has counted stays
    most = (time.monotonic() - began) * 1_000_000
    told = nv.nvmlDeviceGetTotalEnergyConsumption(handle(runs)) - first
    assert 99_000 <= told <= most
    machine.update(runs, energy_mj=0)
    assert nv.nvmlDeviceGetTotalEnergyConsumption(handle(runs)) == 0
    machine.update(still, energy_mj=None, power_mw=None)
    assert code(nv.nvmlDeviceGetTotalEnergyConsumption, handle(still)) == 3
    assert code(nv.nvmlDeviceGetPowerUsage, handle(still)) == 3


def test_mig_instances_are_devices_of_their_own(machine: StandIn, gpu: str) -> None:
    assert nv.nvmlDeviceGetMigMode(handle(gpu)) == [0, 0]
    small = machine.add_instance(gpu)
    large = machine.add_instance(
        gpu, slot=3, gpu_instance=9, multiprocessors=60, slices=3, total_bytes=40 * GIB
    )
    machine.set_process(os.getpid(), large, vram_bytes=GIB, busy_percent=50)
    assert nv.nvmlDeviceGetCount() == 1
    assert nv.nvmlDeviceGetMigMode(handle(gpu)) == [1, 1]
    assert nv.nvmlDeviceGetMaxMigDeviceCount(handle(gpu)) == 7
    found = {}
    for slot in range(7):
        if code(nv.nvmlDeviceGetMigDeviceHandleByIndex, handle(gpu), slot) != 6:
            instance = nv.nvmlDeviceGetMigDeviceHandleByIndex(handle(gpu), slot)
            found[slot] = nv.nvmlDeviceGetUUID(instance)
    assert found == {0: small, 3: large}
    instance = handle(large)
    assert nv.nvmlDeviceIsMigDeviceHandle(instance)
    assert not nv.nvmlDeviceIsMigDeviceHandle(handle(gpu))
    parent = nv.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(instance)
    assert nv.nvmlDeviceGetUUID(parent) == gpu
    assert nv.nvmlDeviceGetGpuInstanceId(instance) == 9
    assert nv.nvmlDeviceGetComputeInstanceId(instance) == 0
    attributes = nv.nvmlDeviceGetAttributes(instance)
    assert (attributes.multiprocessorCount, attributes.gpuInstanceSliceCount) == (60, 3)
    assert attributes.memorySizeMB == 40 * 1024
    whole = nv.nvmlDeviceGetGpuInstanceProfileInfo(handle(gpu), 4, version=1)
    assert (whole.multiprocessorCount, whole.sliceCount) == (132, 7)
    assert code(nv.nvmlDeviceGetAttributes, handle(gpu)) == 3


def test_mig_lists_and_memory_are_those_of_the_instance(machine: StandIn, gpu: str) -> None:
    small, large = machine.add_instance(gpu), machine.add_instance(gpu)
    machine.set_process(os.getpid(), large, vram_bytes=GIB, busy_percent=50)
    assert (compute(small), compute(large)) == ({}, {os.getpid(): GIB})
    [listed] = nv.nvmlDeviceGetComputeRunningProcesses(handle(gpu))
    assert (listed.pid, listed.gpuInstanceId, listed.computeInstanceId) == (os.getpid(), 2, 0)
    assert (used(small), used(large), used(gpu)) == (0, GIB, GIB + MIB)
    for device in (handle(gpu), handle(large)):
        assert code(nv.nvmlDeviceGetUtilizationRates, device) == 3
        assert code(nv.nvmlDeviceGetProcessUtilization, device, 0) == 3
        assert code(nv.nvmlDeviceGetProcessesUtilizationInfo, device, 0) == 3
    assert code(nv.nvmlDeviceGetTotalEnergyConsumption, handle(large)) == 3
    machine.lose(gpu)
    assert code(compute, large) == 15


def test_faults_are_told_once_to_those_who_registered(machine: StandIn, gpu: str) -> None:
    other = machine.add_gpu()
    machine.xid(gpu, 13)  # before anybody listens
    listener = nv.nvmlEventSetCreate()
    nv.nvmlDeviceRegisterEvents(handle(gpu), nv.nvmlEventTypeXidCriticalError, listener)
    began = time.monotonic()
    assert code(nv.nvmlEventSetWait_v2, listener, 100) == 10
    assert time.monotonic() - began >= 0.1
    machine.xid(other, 48)
    machine.xid(gpu, 79)
    told = nv.nvmlEventSetWait_v2(listener, 1_000)
    assert (nv.nvmlDeviceGetUUID(told.device), told.eventData) == (gpu, 79)
    assert told.eventType == nv.nvmlEventTypeXidCriticalError
    assert code(nv.nvmlEventSetWait_v2, listener, 0) == 10
    nv.nvmlEventSetFree(listener)


FORK = """
import os, signal, sys, time, pynvml as nv
def listed():
    device = nv.nvmlDeviceGetHandleByIndex(0)
    return [p.pid for p in nv.nvmlDeviceGetComputeRunningProcesses(device)]
pid = int(sys.argv[1])
nv.nvmlInit()
assert listed() == [pid]
child = os.fork()
if child == 0:
    os._exit(listed() != [pid])
assert os.waitpid(child, 0)[1] == 0
os.kill(pid, signal.SIGKILL)
end = time.monotonic() + 5
while listed():
    assert time.monotonic() < end
    time.sleep(0.01)
"""


def test_a_forked_child_does_not_blind_its_parent(machine: StandIn, gpu: str) -> None:
    with machine.worker(gpu, vram_bytes=GIB) as worker:
        command = [sys.executable, "-c", FORK, str(worker.pid)]
        subprocess.run(command, env=machine.env(), check=True)
