"""Devices of all kinds through a real daemon: MIG, unified memory, old memory calls, counters."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.gpu import GIB, StandIn
from support.sights import eventually, shown, spent
from support.watched import Watched

from bursar.processes import IncidentState

NAMESPACE = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")


def test_mig_instances_are_devices_with_their_own_processes_and_a_share_of_the_gpu() -> None:
    """Two instances, of 1 and 2 of 7 slices: time goes by weight, energy by weight of the parent's.

    Method: both are held for as long as each other, so that what they are charged has a ratio.
    """
    machine = StandIn()
    gpu = machine.add_gpu(energy_runs=True, power_mw=700_000)
    small = machine.add_instance(gpu)
    large = machine.add_instance(gpu, slices=2, total_bytes=20 * GIB)
    both = ("small", "large")
    with Watched(machine) as watched:
        for account in both:
            watched.limit_vram(account, 8 * GIB)
            watched.client.set_budget(account, unit="gpu_ms", limit=3_600_000)
            watched.client.set_budget(account, unit="energy_mj", limit=2**40)
        one = watched.register("small", gpu=small, vram_bytes=5 * GIB)
        two = watched.register("large", gpu=large, vram_bytes=6 * GIB)
        eventually(lambda: one.pid in shown(watched) and two.pid in shown(watched))
        listed = watched.client.list_processes()
        assert {one.uuid for one in listed.devices} == {small, large}
        rows = {row.pid: row for row in listed.processes}
        assert (rows[one.pid].device, rows[one.pid].vram_bytes) == (small, 5 * GIB)
        assert (rows[two.pid].device, rows[two.pid].account) == (large, "large")
        first = {
            who: (spent(watched, who, "gpu_ms"), time.monotonic()) for who in ("small", "large")
        }
        time.sleep(2)
        for who, slices in (("small", 1), ("large", 2)):
            before, since = first[who]
            rate = (spent(watched, who, "gpu_ms") - before) / (time.monotonic() - since) / 1000
            assert rate == pytest.approx(slices / 7, rel=0.3)
        ratio = spent(watched, "large", "energy_mj") / spent(watched, "small", "energy_mj")
        assert ratio == pytest.approx(2, rel=0.5)
        machine.set_process(two.pid, large, vram_bytes=9 * GIB)
        incident = watched.one("large", IncidentState.RECLAIMED)
        assert [victim.pid for victim in incident.victims] == [two.pid]
        assert one.process.poll() is None


def test_a_fault_of_a_gpu_after_a_kill_on_its_instance_is_our_own() -> None:
    machine = StandIn()
    gpu = machine.add_gpu()
    instance = machine.add_instance(gpu)
    with Watched(machine, watchdog={"term_grace": "0s"}) as watched:
        watched.limit_vram("over", GIB)
        watched.register("over", gpu=instance, vram_bytes=2 * GIB, free_after_ms=500)
        watched.one("over", IncidentState.RECLAIMED)
        machine.xid(gpu, 45)
        machine.xid(gpu, 79)
        eventually(lambda: "XID 79" in watched.daemon.log)
        assert "XID 45" not in watched.daemon.log


def test_unified_memory_has_no_total_but_processes_with_bytes_that_are_enforced() -> None:
    machine = StandIn()
    gpu = machine.add_gpu(unified=True)
    with Watched(machine) as watched:
        watched.limit_vram("over", 2 * GIB)
        worker = watched.register("over", gpu=gpu, vram_bytes=GIB)
        eventually(lambda: worker.pid in shown(watched))
        [device] = watched.client.list_processes().devices
        assert (device.vram_total_bytes, device.vram_used_bytes) == (None, None)
        machine.set_process(worker.pid, gpu, vram_bytes=3 * GIB)
        assert watched.one("over", IncidentState.RECLAIMED).vram_returned_bytes == 3 * GIB


@pytest.mark.parametrize("missing", [True, False])
def test_a_driver_with_the_first_memory_call_alone_is_read_by_that(*, missing: bool) -> None:
    machine = StandIn(without=["nvmlDeviceGetMemoryInfo_v2"] if missing else [])
    gpu = machine.add_gpu(total_bytes=40 * GIB, reserved_bytes=GIB)
    if not missing:
        machine.no_memory_v2()
    with Watched(machine) as watched:
        worker = watched.register("a", gpu=gpu, vram_bytes=2 * GIB)
        eventually(lambda: worker.pid in shown(watched))
        [device] = watched.client.list_processes().devices
        assert device.vram_total_bytes == 40 * GIB
        assert device.vram_used_bytes == 3 * GIB, "it has what the driver keeps in it"


def test_an_energy_counter_that_starts_anew_is_never_charged_twice_or_below_zero() -> None:
    with Watched() as watched:
        watched.client.set_budget("a", unit="energy_mj", limit=2**40)
        watched.gpus.update(watched.gpu, energy_mj=1_000_000)
        worker = watched.register("a", vram_bytes=GIB)
        eventually(lambda: worker.pid in shown(watched))
        time.sleep(0.3)
        watched.gpus.update(watched.gpu, energy_mj=1_500_000)
        eventually(lambda: spent(watched, "a", "energy_mj") == 500_000)
        watched.gpus.update(watched.gpu, energy_mj=7)
        time.sleep(0.5)
        assert spent(watched, "a", "energy_mj") == 500_000
        watched.gpus.update(watched.gpu, energy_mj=1007)
        eventually(lambda: spent(watched, "a", "energy_mj") == 501_000)


def test_without_a_counter_energy_is_summed_from_the_power() -> None:
    machine = StandIn()
    gpu = machine.add_gpu(energy_mj=None, power_mw=200_000)
    with Watched(machine) as watched:
        watched.client.set_budget("a", unit="energy_mj", limit=2**40)
        watched.register("a", gpu=gpu, vram_bytes=GIB)
        eventually(lambda: spent(watched, "a", "energy_mj") > 0)
        before, since = spent(watched, "a", "energy_mj"), time.monotonic()
        time.sleep(1.5)
        drawn_mw = (spent(watched, "a", "energy_mj") - before) / (time.monotonic() - since)
        assert drawn_mw == pytest.approx(200_000, rel=0.3)


def can_unshare() -> str:
    """Why a pid namespace cannot be made here; empty: it can."""
    try:
        made = subprocess.run([*NAMESPACE, "true"], capture_output=True, check=False)
    except FileNotFoundError:
        return "there is no unshare"
    return made.stderr.decode() if made.returncode else ""


INSIDE = """
import subprocess, sys, time
sys.path[:0] = sys.argv[2:3]
from bursar.processes import IncidentState
from support.gpu import GIB, StandIn
from support.watched import Watched

machine = StandIn()
gpu = machine.add_gpu()
with Watched(machine) as watched:
    watched.limit_vram("a", GIB)
    job = subprocess.Popen(["sleep", "60"])
    bystander = subprocess.Popen(["sleep", "60"])
    for pid in range(3, 120):  # the host's, and as numbers ours too
        machine.set_process(pid, gpu, real=False, vram_bytes=GIB // 2)
    watched.client.register_process("a", pid=job.pid, wall_limit_s=1.5, enforce=True)
    watched.client.register_process("b", pid=bystander.pid)
    deadline = time.monotonic() + 10
    while not any(one.device for one in watched.client.list_processes().processes):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    listed = watched.client.list_processes()
    assert "not in the host's pid namespace" in listed.watchdog.detail, listed.watchdog
    assert {(one.account, one.source) for one in listed.processes if one.device} == {("", None)}
    incident = watched.one("a", IncidentState.RECLAIMED)
    assert [one.pid for one in incident.victims] == [job.pid], incident.victims
    assert (incident.vram_bytes, incident.vram_quarantined_bytes) == (0, 0), incident
    assert job.wait(5) == -15
    assert bystander.poll() is None
    assert [one.account for one in watched.client.list_incidents()] == ["a"]
    assert watched.held("a") == 0
    bystander.kill()
print("as it should be")
"""


@pytest.mark.skipif(bool(can_unshare()), reason=f"no pid namespace: {can_unshare()}")
def test_in_another_pid_namespace_nvmls_pids_are_nobodys_and_jobs_are_enforced_all_the_same() -> (
    None
):
    """Pids of the host mean other processes there, so they must not name anybody.

    Method: a script inside of it, with its daemon and with jobs whose own pids NVML lists as well.
    """
    tests = Path(__file__).resolve().parent.parent
    # Not as pid 1 of it, which is nobody's ancestor.
    shell = ["sh", "-c", '"$@"; exit $?', "sh"]
    command = [*NAMESPACE, *shell, sys.executable, "-c", INSIDE, "", str(tests)]
    made = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert made.stdout == "as it should be\n", made.stderr[-3000:]
