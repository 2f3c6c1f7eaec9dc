"""The processes that hold memory in the NVML stand-in behave as badly as they are told to."""

import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pynvml as nv
import pytest
from support.gpu import GIB, Orders, StandIn

TESTS = Path(__file__).resolve().parent.parent


@pytest.fixture
def machine() -> Iterator[StandIn]:
    with StandIn() as stand_in:
        stand_in.load_into_this_process()
        nv.nvmlInit()
        yield stand_in


@pytest.fixture
def gpu(machine: StandIn) -> str:
    return machine.add_gpu()


def listed(gpu: str) -> dict[int, int | None]:
    """Who holds how many bytes."""
    device = nv.nvmlDeviceGetHandleByUUID(gpu)
    return {p.pid: p.usedGpuMemory for p in nv.nvmlDeviceGetComputeRunningProcesses(device)}


def process_state(pid: int) -> str:
    stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    return stat.rpartition(")")[2].split()[0]


def wait_until(met: Callable[[], bool], *, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_polite_worker_leaves_when_it_is_asked_to(machine: StandIn, gpu: str) -> None:
    with machine.worker(gpu, vram_bytes=GIB) as worker:
        assert listed(gpu) == {worker.pid: GIB}
        worker.process.terminate()
        assert worker.process.wait(10) == 0
        assert listed(gpu) == {}


def test_a_worker_may_ignore_that_and_has_to_be_killed(machine: StandIn, gpu: str) -> None:
    with machine.worker(gpu, orders=Orders(on_term="ignore")) as worker:
        worker.process.terminate()
        with pytest.raises(subprocess.TimeoutExpired):
            worker.process.wait(0.2)
        worker.process.kill()
        assert worker.process.wait(10) == -signal.SIGKILL


def test_a_worker_may_need_time_to_leave(machine: StandIn, gpu: str) -> None:
    with machine.worker(gpu, orders=Orders(on_term="linger", linger_s=0.3)) as worker:
        asked = time.monotonic()
        worker.process.terminate()
        assert worker.process.wait(10) == 0
        assert time.monotonic() - asked >= 0.3


def test_orphans_hold_memory_that_no_parent_leads_to(machine: StandIn, gpu: str) -> None:
    with machine.worker(gpu, vram_bytes=GIB, orders=Orders(children=3)) as worker:
        members = worker.members()
        assert members[0] == worker.pid
        assert listed(gpu) == dict.fromkeys(members, GIB)
        assert len(members) == 4
        children = Path(f"/proc/{worker.pid}/task/{worker.pid}/children").read_text()
        assert children.split() == []
        assert len({os.getsid(pid) for pid in members}) == 4
        worker.process.kill()
        worker.process.wait(10)
        assert listed(gpu) == dict.fromkeys(members[1:], GIB)
    assert listed(gpu) == {}


def test_a_killed_child_is_started_again(machine: StandIn, gpu: str) -> None:
    with machine.worker(gpu, vram_bytes=GIB, orders=Orders(respawns=True)) as worker:
        [first] = listed(gpu)
        assert worker.members() == [worker.pid, first]
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: bool(listed(gpu)) and first not in listed(gpu))
        [second] = listed(gpu)
        assert worker.members() == [worker.pid, first, second]
    assert listed(gpu) == {}


def test_a_stopped_worker_leaves_when_it_is_asked_and_continued(machine: StandIn, gpu: str) -> None:
    with machine.worker(gpu, orders=Orders(stops=True)) as worker:
        wait_until(lambda: process_state(worker.pid) == "T")
        worker.process.terminate()
        with pytest.raises(subprocess.TimeoutExpired):
            worker.process.wait(0.2)
        worker.process.send_signal(signal.SIGCONT)
        assert worker.process.wait(10) == 0


def test_a_worker_without_its_main_thread_looks_dead_and_holds_on(
    machine: StandIn, gpu: str
) -> None:
    with machine.worker(gpu, vram_bytes=GIB, orders=Orders(leaderless=True)) as worker:
        wait_until(lambda: process_state(worker.pid) == "Z")
        assert Path(f"/proc/{worker.pid}/cmdline").read_bytes() == b""
        assert listed(gpu) == {worker.pid: GIB}
        worker.process.kill()
        worker.process.wait(10)
        assert listed(gpu) == {}


def test_steps_are_counted_while_a_worker_is_left_alone(machine: StandIn, gpu: str) -> None:
    with machine.worker(gpu, orders=Orders(step_ms=5)) as worker:
        wait_until(lambda: worker.steps() >= 3)
        worker.process.send_signal(signal.SIGSTOP)
        wait_until(lambda: process_state(worker.pid) == "T")
        counted = worker.steps()
        time.sleep(0.1)
        assert worker.steps() == counted
        worker.process.send_signal(signal.SIGCONT)
        wait_until(lambda: worker.steps() > counted)


def test_what_a_worker_holds_may_grow_up_to_a_limit(machine: StandIn, gpu: str) -> None:
    orders = Orders(grow_bytes_per_s=20 * GIB, grow_bytes_max=3 * GIB)
    with machine.worker(gpu, vram_bytes=GIB, orders=orders) as worker:
        wait_until(lambda: listed(gpu)[worker.pid] == 3 * GIB)


def test_a_worker_may_belong_to_another_user(machine: StandIn, gpu: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    with machine.worker(gpu, vram_bytes=GIB, orders=Orders(uid=65534)) as worker:
        assert Path(f"/proc/{worker.pid}").stat().st_uid == 65534
        assert listed(gpu) == {worker.pid: GIB}


def test_a_worker_ends_by_itself(machine: StandIn, gpu: str) -> None:
    with machine.worker(gpu, orders=Orders(on_term="ignore", life_s=0.2)) as worker:
        assert worker.process.wait(10) == 0


KILLED_TEST = """
import sys
from support.gpu import Orders, StandIn
stand_in = StandIn()
gpu = stand_in.add_gpu()
for orders in (Orders(on_term="ignore", children=1), Orders(stops=True), Orders(leaderless=True)):
    print(*stand_in.worker(gpu, orders=orders).members(), flush=True)
print(stand_in.folder, flush=True)
sys.stdin.read()
"""


def test_workers_end_with_the_test_that_started_them() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", KILLED_TEST],
        cwd=TESTS,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as test:
        assert test.stdout is not None
        pids = [int(pid) for _ in range(3) for pid in test.stdout.readline().split()]
        assert len(pids) == 4
        pidfds = [os.pidfd_open(pid) for pid in pids]
        folder = Path(test.stdout.readline().strip())
        test.kill()
    for pidfd in pidfds:
        assert select.select([pidfd], [], [], 10)[0], "it goes on"
        os.close(pidfd)
    shutil.rmtree(folder)
