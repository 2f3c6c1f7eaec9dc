"""The daemon dies, or is restarted, in the middle of things: its jobs and incidents go on.

Real processes, a real daemon of each test's own and the stand-in for NVML.
"""

import signal
import subprocess
import sys
import time
from datetime import timedelta

import pytest
from support.gpu import GIB, Orders
from support.scene import MODES, Scene, lives, until
from support.watched import states

from bursar.processes import Incident, IncidentCause, IncidentState
from bursar.watchdog.processes import ancestors, command_of

LIMIT = 4 * GIB
TOO_MUCH = 5 * GIB
GRACE_S = 2.0


def between(incident: Incident, first: IncidentState, second: IncidentState) -> timedelta:
    times = {step.state: step.time for step in incident.steps}
    before, after = times[first], times[second]
    assert before is not None
    assert after is not None
    return after - before


@pytest.mark.parametrize("mode", [*MODES, "registered"])
def test_a_daemon_that_dies_between_sigterm_and_sigkill_goes_on_with_the_incident(
    mode: str,
) -> None:
    with Scene(watchdog={"term_grace": "2s"}) as scene:
        orders = Orders(on_term="ignore", children=0 if mode == "registered" else 1)
        if mode == "registered":
            scene.limit_vram("cut/off", LIMIT)
            worker = scene.register("cut/off", vram_bytes=TOO_MUCH, orders=orders)
        else:
            options = ("--vram", "4GiB", *MODES[mode])
            worker = scene.launch("cut", *options, vram_bytes=TOO_MUCH, orders=orders)
        before = scene.reached("cut", IncidentState.TERM)
        scene.daemon.kill9()
        assert all(map(lives, worker.members()))
        scene.daemon.start()
        after = scene.one(before.account, IncidentState.RECLAIMED)
        assert (after.id, after.job) == (before.id, before.job)
        assert states(after) == ["breach", "term", "kill", "verify", "reclaimed"]
        grace_s = between(after, IncidentState.TERM, IncidentState.KILL).total_seconds()
        assert GRACE_S - 0.01 <= grace_s < GRACE_S + 2, "the time of before counts"
        assert {one.pid for one in after.victims} >= set(worker.members())
        assert after.vram_returned_bytes == after.vram_bytes > 0
        assert worker.process.wait(5) in (137, -signal.SIGKILL)
        scene.check_clean()


def test_a_victim_that_ends_while_the_daemon_is_down_is_seen_to_have_ended() -> None:
    with Scene(watchdog={"term_grace": "2s"}) as scene:
        scene.limit_vram("away", LIMIT)
        orders = Orders(on_term="ignore")
        worker = scene.register("away", vram_bytes=TOO_MUCH, orders=orders)
        scene.reached("away", IncidentState.TERM)
        scene.daemon.kill9()
        worker.process.kill()
        worker.process.wait(5)
        scene.daemon.start()
        incident = scene.one("away", IncidentState.RECLAIMED)
        assert states(incident) == ["breach", "term", "verify", "reclaimed"]
        assert incident.vram_returned_bytes == TOO_MUCH
        scene.check_clean()


@pytest.mark.parametrize("how", ["killed", "drained"])
def test_a_job_is_under_its_limits_again_after_a_restart_and_its_memory_is_held_once(
    how: str,
) -> None:
    with Scene() as scene:
        scene.limit_vram("goes", 20 * GIB)
        worker = scene.launch("goes/on", "--vram", "8GiB", vram_bytes=6 * GIB)
        job = scene.job("goes/on")
        until(lambda: scene.client.list_processes("goes/on").processes[0].device, "it is seen")
        assert scene.held("goes") == scene.held(job.account) == 8 * GIB
        if how == "killed":
            scene.daemon.kill9()
            scene.daemon.start()
        else:
            scene.daemon.restart()
        until(lambda: scene.client.list_processes("goes/on").jobs, "the job is known")
        assert scene.job("goes/on") == job
        until(lambda: scene.client.list_processes("goes/on").processes[0].device, "it is seen")
        assert scene.held("goes") == scene.held(job.account) == 8 * GIB
        [member] = worker.members()
        scene.gpus.set_process(member, scene.gpu, vram_bytes=9 * GIB)
        incident = scene.one(job.account, IncidentState.RECLAIMED)
        assert incident.vram_returned_bytes == 9 * GIB
        assert worker.process.wait(5) == 0
        scene.check_clean()
        assert scene.held("goes") == 0


def test_a_job_that_ends_while_the_daemon_is_down_leaves_nothing_behind() -> None:
    with Scene() as scene:
        scene.limit_vram("gone", 20 * GIB)
        worker = scene.launch("gone/job", "--vram", "8GiB", vram_bytes=6 * GIB)
        until(lambda: scene.client.list_processes("gone").processes[0].device, "it is seen")
        scene.daemon.kill9()
        worker.end()
        scene.daemon.start()
        scene.check_clean()
        assert scene.held("gone") == 0
        assert not list(scene.client.list_incidents())


STRAYS = """if True:
    import os, time
    if os.fork() == 0:
        os.setsid()
        if os.fork():
            time.sleep(2.5)  # long enough to be seen
            os._exit(0)
        print(os.getpid(), flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("restarts", [False, True])
def test_who_leaves_its_parents_before_anything_happens_is_stopped_with_the_job(
    *, restarts: bool
) -> None:
    """It uses no GPU, is in no cgroup, and nothing but having been found leads to it."""
    command = [sys.executable, "-S", "-c", STRAYS]
    with Scene() as scene, subprocess.Popen(command, stdout=subprocess.PIPE) as root:
        assert root.stdout is not None
        scene.client.register_process("stray", pid=root.pid)
        stray = int(root.stdout.readline())
        until(lambda: root.pid not in ancestors(stray), "it has left")
        if restarts:
            scene.daemon.kill9()
            scene.daemon.start()
        assert lives(stray)
        scene.client.kill_process(pid=root.pid)
        incident = scene.one_ended("stray")
        assert {one.pid for one in incident.victims} == {root.pid, stray}
        assert not lives(stray)


def test_how_often_somebody_may_be_stopped_is_counted_over_a_restart() -> None:
    with Scene(watchdog={"max_incidents_per_account": 1}) as scene:
        scene.limit_vram("often", LIMIT)
        scene.register("often", vram_bytes=TOO_MUCH)
        scene.one("often", IncidentState.RECLAIMED)
        scene.daemon.kill9()
        scene.daemon.start()
        worker = scene.register("often", vram_bytes=TOO_MUCH)
        observed = scene.ended("often", 2)[1]
        assert observed.state is IncidentState.OBSERVED
        assert "1 incidents of often within ten minutes" in observed.steps[-1].detail
        assert lives(worker.pid)


def test_the_breaker_stays_open_over_a_restart() -> None:
    with Scene() as scene:
        for account in ("one", "two"):
            scene.limit_vram(account, LIMIT)
        workers = [scene.register(account, vram_bytes=GIB) for account in ("one", "two")]
        until(lambda: all(scene.held(one) for one in ("one", "two")), "both are seen")
        with scene.daemon.stopped():
            time.sleep(0.5)  # the sample that it has asked for sees neither
            for worker in workers:
                scene.gpus.set_process(worker.pid, scene.gpu, vram_bytes=TOO_MUCH)
        until(lambda: scene.client.list_processes().watchdog.held_back, "the breaker opens")
        scene.daemon.kill9()
        for worker in workers:  # so that nothing opens it anew
            scene.gpus.set_process(worker.pid, scene.gpu, vram_bytes=GIB)
        scene.daemon.start()
        until(lambda: scene.client.list_processes().devices, "the GPUs are seen")
        assert "the breaker is open" in scene.client.list_processes().watchdog.held_back
        assert all(lives(worker.pid) for worker in workers)


def test_what_is_quarantined_stays_so_over_a_restart() -> None:
    with Scene() as scene:
        scene.limit_vram("stuck", LIMIT)
        worker = scene.register("stuck", vram_bytes=TOO_MUCH, free_after_ms=-1)
        before = scene.one("stuck", IncidentState.RECLAIM_FAILED)
        scene.daemon.kill9()
        scene.daemon.start()
        until(lambda: scene.client.list_processes().devices, "the GPU is seen")
        assert scene.one("stuck", IncidentState.RECLAIM_FAILED).id == before.id
        assert scene.client.list_processes().devices[0].vram_quarantined_bytes == TOO_MUCH
        assert scene.held("stuck") == LIMIT
        assert scene.client.get_account("stuck").frozen
        scene.gpus.remove(worker.pid)
        scene.one("stuck", IncidentState.RECLAIMED)
        scene.check_clean()


def test_a_launcher_that_is_killed_leaves_its_job_under_its_limits() -> None:
    with Scene() as scene:
        command = [sys.executable, "-m", "bursar", "run", "--target", scene.daemon.target]
        command += ["--account", "left", "--name", scene.job_name, "--wall", "1500ms", "--"]
        with subprocess.Popen([*command, "sleep", "60"]) as launcher:
            until(lambda: scene.client.list_processes("left").jobs, "it is registered")
            job = scene.job("left")
            until(lambda: command_of(job.pid) == "sleep 60", "it is registered before it starts")
            launcher.kill()
        assert lives(job.pid)
        incident = scene.one_ended("left")
        assert incident.cause is IncidentCause.WALL_TIME
        assert states(incident) == ["breach", "term", "verify", "reclaimed"]
        scene.check_clean()
