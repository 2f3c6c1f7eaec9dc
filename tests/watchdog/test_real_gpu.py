"""The watchdog on a real NVIDIA GPU, with the real NVML; skipped, with the reason, without one.

Goal: what the stand-in is made to say, a driver says. Method: small processes that hold memory by
the CUDA driver alone, registered and under `bursar run`, some of which ignore SIGTERM or have
children, beside a neighbour that must not lose a step.
"""

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.cuda import Orders, Worker, why_none
from support.daemon import Daemon
from support.watched import QUICK

import bursar
from bursar.processes import Incident, IncidentState
from bursar.watchdog.poller import Poller
from bursar.watchdog.processes import in_host_pid_namespace
from bursar.watchdog.samples import DeviceSample, Health, Sample

MIB = 2**20
SIZE = 256 * MIB
LIMIT = 64 * MIB
CONTEXT_MAX = 2048 * MIB  # a context costs some hundreds of MiB, by the driver and the device
SLACK = 64 * MIB
PATIENCE_S = 30.0

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(180)]


@pytest.fixture(scope="module", autouse=True)
def gpu() -> None:
    """Skips where there is no GPU."""
    if why := why_none():
        pytest.skip(f"no NVIDIA GPU can be used: {why}")


@pytest.fixture
def poller() -> Iterator[Poller]:
    poller = Poller()
    yield poller
    poller.close()


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    """A daemon that enforces, where NVML's pids are the ones that we see."""
    if not in_host_pid_namespace():
        pytest.skip("NVML's pids are the host's, and this is another pid namespace")
    with Daemon(watchdog=QUICK) as daemon:
        yield daemon


@pytest.fixture
def client(daemon: Daemon) -> Iterator[bursar.Client]:
    with daemon.client() as client:
        until(lambda: client.list_processes().watchdog.state == "watching")
        yield client


def until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def look(poller: Poller) -> Sample:
    poller.ask()
    while (sample := poller.take()) is None:
        time.sleep(0.01)
    assert sample.health is Health.WATCHING, sample.detail
    return sample


def used(poller: Poller) -> int:
    size = look(poller).devices[0].vram_used_bytes
    assert size is not None
    return size


def first(sample: Sample) -> DeviceSample:
    """The device that CUDA calls the first; MIG has its instances there, which CUDA tells apart."""
    return sample.devices[0]


def test_the_layout_of_the_lists_is_trusted_with_a_process_on_the_gpu(poller: Poller) -> None:
    with Worker(Orders(size=SIZE)) as worker:
        sample = look(poller)
        assert sample.detail == ""
        listed = first(sample).processes
        assert listed is not None
        if not in_host_pid_namespace():
            pytest.skip("NVML's pids are the host's, and this is another pid namespace")
        [mine] = [one for one in listed if one.pid == worker.pid]
        assert "C" in mine.contexts
        assert mine.vram_bytes is not None
        assert SIZE <= mine.vram_bytes <= SIZE + CONTEXT_MAX


def test_the_device_tells_what_is_held_and_that_it_came_back(poller: Poller) -> None:
    before = used(poller)
    with Worker(Orders(size=SIZE)):
        assert used(poller) >= before + SIZE - SLACK
    until(lambda: used(poller) <= before + SLACK)


def test_the_energy_counter_rises(poller: Poller, tmp_path: Path) -> None:
    orders = Orders(size=SIZE, step_ms=1, steps=str(tmp_path / "steps"))
    with Worker(orders):
        earlier = first(look(poller)).energy_mj
        time.sleep(1)
        later = first(look(poller)).energy_mj
    if earlier is None or later is None:
        pytest.skip("this device tells neither its energy nor its power")
    assert later > earlier


def stopped(client: bursar.Client, account: str) -> Incident:
    """Waits for the incident of an account to end."""
    found: list[Incident] = []

    def is_over() -> bool:
        found[:] = [one for one in client.list_incidents(account) if one.ended]
        return bool(found)

    until(is_over)
    [incident] = found
    return incident


def states(incident: Incident) -> list[str]:
    return [step.state.value for step in incident.steps]


@pytest.mark.parametrize("on_term", ["exit", "ignore"])
def test_a_process_over_its_limit_is_stopped_and_its_memory_is_back(
    client: bursar.Client, poller: Poller, on_term: str
) -> None:
    client.set_budget("acme/bad", unit="vram_bytes", limit=LIMIT)
    before = used(poller)
    with Worker(Orders(size=SIZE, on_term=on_term)) as worker:  # type: ignore[arg-type]
        client.register_process("acme/bad", pid=worker.pid)
        incident = stopped(client, "acme/bad")
        assert worker.process.wait(PATIENCE_S) == (-9 if on_term == "ignore" else -15)
    assert incident.state is IncidentState.RECLAIMED
    assert ("kill" in states(incident)) == (on_term == "ignore")
    [victim] = incident.victims
    assert victim.pid == worker.pid
    assert SIZE <= victim.vram_bytes <= SIZE + CONTEXT_MAX
    assert incident.vram_returned_bytes == victim.vram_bytes
    until(lambda: used(poller) <= before + SLACK)


def test_a_job_of_bursar_run_ends_with_its_children_and_the_neighbour_goes_on(
    daemon: Daemon, client: bursar.Client, poller: Poller, tmp_path: Path
) -> None:
    """The limit comes once all of them hold memory: else the first child would be too much."""
    steps = tmp_path / "steps"
    before = used(poller)
    launcher = [sys.executable, "-m", "bursar", "run", "--target", daemon.target]
    launcher += ["--account", "acme/bad", "--grace", "500ms", "--"]
    with Worker(Orders(size=MIB, step_ms=10, steps=str(steps))) as neighbour:
        client.register_process("acme/good", pid=neighbour.pid)
        until(lambda: neighbour.steps() > 0)
        with Worker(Orders(size=SIZE, on_term="ignore", children=2), launcher) as job:
            client.set_budget("acme/bad", unit="vram_bytes", limit=LIMIT)
            incident = stopped(client, "acme/bad")
            job.process.wait(PATIENCE_S)
        assert incident.state is IncidentState.RECLAIMED
        assert len(incident.victims) >= 3
        assert neighbour.process.poll() is None
        count = neighbour.steps()
        until(lambda: neighbour.steps() > count + 10)
        listed = {one.pid for one in client.list_processes("acme/good").processes}
        assert listed == {neighbour.pid}
        assert list(client.list_incidents("acme/good")) == []
    until(lambda: used(poller) <= before + SLACK)
