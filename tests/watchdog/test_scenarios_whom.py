"""Who is signalled and who is not: other users, reused pids, observers, neighbours, operators.

Real processes, a real daemon and the stand-in for NVML. The tests share a daemon for each mode;
each has an account of its own, and leaves nothing behind.
"""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.gpu import GIB, Orders
from support.scene import MANY, MODES, Scene, lives, until
from support.watched import states

import bursar
from bursar.processes import Incident, IncidentCause, IncidentState

LIMIT = 4 * GIB
TOO_MUCH = 5 * GIB
STEP_MS = 5

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


@pytest.fixture(scope="module")
def enforcing() -> Iterator[Scene]:
    with Scene(watchdog=MANY) as scene:
        yield scene


@pytest.fixture
def scene(enforcing: Scene) -> Iterator[Scene]:
    yield from enforcing.one_test()


@pytest.fixture
def observing() -> Iterator[Scene]:
    with Scene(watchdog={**MANY, "mode": "observe"}) as scene:
        yield from scene.one_test()


def bursar_kill(scene: Scene, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "bursar", "kill", *arguments, "--target", scene.daemon.target]
    return subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)


def test_a_runaway_is_stopped_and_its_neighbour_on_the_same_gpu_never_pauses(scene: Scene) -> None:
    steady = Orders(step_ms=STEP_MS)
    neighbour = scene.launch("runs/well", "--vram", "8GiB", vram_bytes=6 * GIB, orders=steady)
    runaway = scene.launch(
        "runs/away",
        "--vram",
        "4GiB",
        vram_bytes=GIB,
        orders=Orders(on_term="ignore", grow_bytes_per_s=8 * GIB, grow_bytes_max=30 * GIB),
    )
    longest_s, seen, since_s = 0.0, neighbour.steps(), time.monotonic()
    incident: Incident | None = None
    while incident is None or not incident.ended:
        until_s = time.monotonic() + 0.2
        while (now_s := time.monotonic()) < until_s:
            if (steps := neighbour.steps()) != seen:
                longest_s, seen, since_s = max(longest_s, now_s - since_s), steps, now_s
            time.sleep(0.001)
        incident = next(iter(scene.client.list_incidents("runs")), None)
    assert incident.state is IncidentState.RECLAIMED
    assert runaway.process.wait(5) == 137
    print(f"the longest pause of the neighbour: {longest_s * 1000:.1f} ms")
    assert longest_s < 0.25, "far from the grace period, with room for a busy machine"
    assert lives(neighbour.members()[0])
    assert scene.held("runs/well/" + scene.job("runs/well").account.rpartition("/")[2]) == 8 * GIB
    [device] = scene.client.list_processes().devices
    assert device.vram_used_bytes == 6 * GIB
    assert incident.vram_returned_bytes == incident.vram_bytes > LIMIT
    neighbour.process.terminate()
    assert neighbour.process.wait(5) == 0


@as_root
def test_a_process_of_a_registered_job_that_became_another_user_is_left_alone(scene: Scene) -> None:
    scene.limit_vram("user/registered", LIMIT)
    account, code = (
        "user/registered",
        "import os, sys; sys.stdin.read(1); os.setuid(65534); input()",
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        scene.client.register_process(account, pid=process.pid)
        scene.gpus.set_process(process.pid, scene.gpu, vram_bytes=TOO_MUCH)
        process.stdin.write(b"x")
        process.stdin.flush()
        until(lambda: Path(f"/proc/{process.pid}").stat().st_uid == 65534, "it is another user")
        scene.limit_vram(account, LIMIT)
        incident = scene.one(account, IncidentState.OBSERVED)
        assert "runs as user 65534, its job as user 0" in incident.steps[-1].detail
        with pytest.raises(bursar.ProcessProtected, match="runs as user 65534"):
            scene.client.kill_process(pid=process.pid)
        assert process.poll() is None
        process.kill()
        process.wait()
        scene.gpus.remove(process.pid)


@as_root
@pytest.mark.parametrize("mode", MODES)
def test_a_launched_job_is_stopped_whoever_its_processes_become_where_a_cgroup_holds_it(
    scene: Scene, mode: str
) -> None:
    account = f"user/{mode}"
    orders = Orders(uid=65534, on_term="ignore")
    worker = scene.launch(
        account, "--vram", "4GiB", *MODES[mode], vram_bytes=TOO_MUCH, orders=orders
    )
    [member] = worker.members()
    if mode == "cgroup":
        assert len(scene.one_ended(account).steps) == 5
        assert worker.process.wait(5) == 137
        return
    incident = scene.one_ended(account)
    assert {one.pid for one in incident.victims} > {member}
    # The keeper of the job alone; this worker ends because that has.
    assert "1 process " in f"{incident.steps[1].detail} "


def test_a_pid_that_means_another_process_by_now_is_not_signalled() -> None:
    """While the daemon is down, its journal is made to name a start time that is no longer true."""
    with Scene() as scene:
        scene.limit_vram("reused", LIMIT)
        worker = scene.register("reused", vram_bytes=GIB)
        scene.daemon.kill9()
        journal = scene.daemon.folder / "ledger.db.watchdog"
        with sqlite3.connect(journal) as db:
            [(extra,)] = db.execute("SELECT extra FROM jobs").fetchall()
            about = json.loads(extra)
            about["start_ticks"] -= 1
            db.execute("UPDATE jobs SET extra = ?", (json.dumps(about),))
        db.close()
        scene.gpus.set_process(worker.pid, scene.gpu, vram_bytes=TOO_MUCH)
        scene.daemon.start()
        until(lambda: not scene.client.list_processes().jobs, "the job has ended")
        time.sleep(0.5)
        assert lives(worker.pid)
        assert not list(scene.client.list_incidents())
        until(lambda: scene.client.list_processes().processes, "the GPU is seen")
        [process] = scene.client.list_processes().processes
        assert (process.pid, process.account) == (worker.pid, "")
        with pytest.raises(bursar.ProcessNotFound):
            scene.client.kill_process(pid=worker.pid)
        worker.end()
        scene.check_clean()


def test_in_mode_observe_a_registered_job_is_told_of_once_and_left_alone(observing: Scene) -> None:
    scene = observing
    scene.limit_vram("seen", LIMIT)
    worker = scene.register("seen", vram_bytes=TOO_MUCH)
    incident = scene.one("seen", IncidentState.OBSERVED)
    assert states(incident) == ["breach", "observed"]
    assert "observe" in incident.steps[-1].detail
    time.sleep(1)
    assert len(list(scene.client.list_incidents("seen"))) == 1
    assert lives(worker.pid)
    account = scene.client.get_account("seen")
    assert not account.frozen
    assert scene.held("seen") == LIMIT, "all of it that it may have"
    stopped = scene.launch("launched", "--vram", "4GiB", vram_bytes=TOO_MUCH)
    assert scene.one_ended("launched").state is IncidentState.RECLAIMED
    assert stopped.process.wait(5) == 0
    watched = scene.launch("watched", "--observe", "--vram", "4GiB", vram_bytes=TOO_MUCH)
    assert scene.one_ended("watched").state is IncidentState.OBSERVED
    assert lives(watched.members()[0])
    assert not scene.client.get_account(scene.job("watched").account).frozen
    scene.client.kill_process(pid=worker.pid, reason="by hand")
    until(lambda: not lives(worker.pid), "an operator stops it all the same")
    watched.process.terminate()
    watched.process.wait(5)
    until(lambda: len(scene.ended("seen", 2)) == 2, "both incidents are over")


def test_a_job_that_an_operator_stops_too_is_stopped_although_it_shrinks() -> None:
    with Scene(watchdog={"term_grace": "3s"}) as scene:
        scene.limit_vram("both", GIB)
        worker = scene.register("both", vram_bytes=2 * GIB, orders=Orders(on_term="ignore"))
        first = scene.reached("both", IncidentState.TERM)
        told = scene.client.kill_process(pid=worker.pid, reason="runs wild")
        assert (told.id, told.cause) == (first.id, IncidentCause.OPERATOR)
        assert scene.client.kill_process(pid=worker.pid).reason == told.reason
        scene.gpus.set_process(worker.pid, scene.gpu, vram_bytes=GIB // 2)
        incident = scene.one("both", IncidentState.RECLAIMED)
        assert "runs wild; before that: VRAM of 2 GiB passed the limit" in incident.reason
        assert not lives(worker.pid)
        assert not scene.client.get_account("both").frozen


@pytest.mark.parametrize("by", ["job", "pid"])
def test_bursar_kill_stops_a_job_and_follows_it_to_its_end(scene: Scene, by: str) -> None:
    account = f"killed/{by}"
    worker = scene.launch(
        account, "--grace", "300ms", vram_bytes=GIB, orders=Orders(on_term="ignore", children=1)
    )
    asked = scene.job(account).id if by == "job" else str(worker.members()[-1])
    ended = bursar_kill(scene, asked, "--reason", "spring cleaning")
    assert ended.returncode == 0, ended.stderr
    assert "2 GiB" in ended.stdout.splitlines()[-1]
    incident = scene.one_ended(account)
    assert incident.cause is IncidentCause.OPERATOR
    assert "spring cleaning" in incident.reason
    assert states(incident) == ["breach", "term", "kill", "verify", "reclaimed"]
    assert worker.process.wait(5) == 137
    gone = bursar_kill(scene, asked)
    assert gone.returncode != 0
    assert "is no job's" in gone.stderr


def test_nobodys_process_cannot_be_stopped(scene: Scene) -> None:
    worker = scene.gpus.worker(scene.gpu, vram_bytes=TOO_MUCH)
    until(lambda: scene.client.list_processes().processes, "it is seen")
    with pytest.raises(bursar.ProcessNotFound):
        scene.client.kill_process(pid=worker.pid)
    refused = bursar_kill(scene, str(worker.pid))
    assert refused.returncode != 0
    assert lives(worker.pid)
    worker.end()


@as_root
def test_a_protected_program_is_not_registered_and_not_stopped(
    scene: Scene, tmp_path: Path
) -> None:
    program = tmp_path / "sshd"
    shutil.copy(shutil.which("sleep") or "", program)
    with subprocess.Popen([program, "30"]) as protected:
        until(lambda: Path(f"/proc/{protected.pid}/exe").readlink() == program, "exec")
        with pytest.raises(bursar.ProcessProtected, match="sshd"):
            scene.client.register_process("guarded", pid=protected.pid)
        protected.kill()
    wrapped = ["sh", "-c", f'{program} 30; echo "$?"']
    command = [sys.executable, "-m", "bursar", "run", "--target", scene.daemon.target]
    command += ["--name", scene.job_name, "--account", "guarded", "--grace", "200ms", "--"]
    with subprocess.Popen([*command, *wrapped], stdout=subprocess.PIPE) as job:
        until(lambda: _programs(scene, "guarded") == 2, "both run")
        scene.client.kill_process(job=scene.job("guarded").id)
        time.sleep(1)
        [left] = [pid for pid in _group(scene, "guarded") if _is(pid, program)]
        assert lives(left), "the job's cgroup is not killed whole with it inside"
        os.kill(left, signal.SIGKILL)
        job.wait(10)
    scene.one_ended("guarded")


@as_root
def test_a_program_that_a_user_gave_a_protected_name_is_stopped_all_the_same(
    scene: Scene, tmp_path: Path
) -> None:
    program = tmp_path / "sshd"
    shutil.copy(shutil.which("sleep") or "", program)
    os.chown(program, 65534, 65534)
    command = [sys.executable, "-m", "bursar", "run", "--target", scene.daemon.target]
    command += ["--name", scene.job_name, "--account", "sly", "--wall", "300ms", "--"]
    with subprocess.Popen([*command, program, "30"]) as job:
        assert job.wait(10) == 143
    assert scene.one_ended("sly").state is IncidentState.RECLAIMED


def _group(scene: Scene, account: str) -> list[int]:
    from bursar.watchdog import cgroups

    jobs = scene.client.list_processes(account).jobs
    return cgroups.members(jobs[0].cgroup) if jobs and jobs[0].cgroup else []


def _programs(scene: Scene, account: str) -> int:
    return len(_group(scene, account))


def _is(pid: int, program: Path) -> bool:
    return Path(f"/proc/{pid}/exe").readlink() == program
