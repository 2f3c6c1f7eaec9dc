"""Which budgets stop a job: GPU time, money, tokens, wall time; some only where it was asked for.

Real processes, a real daemon and the stand-in for NVML. The tests share one daemon; each has an
account of its own, and leaves nothing behind.
"""

import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from support.daemon import Daemon
from support.gpu import GIB, Orders
from support.scene import MANY, Scene, lives, until
from support.watched import QUICK, states

from bursar.processes import IncidentCause, IncidentState, WatchdogState

LIMIT = 4 * GIB
TOO_MUCH = 5 * GIB
SPENDER = """
import os, time, bursar
account = os.environ["BURSAR_ACCOUNT"]
with bursar.connect() as client:
    try:
        while True:
            held = client.reserve(account, amounts={"usd_nanos": 300_000_000})
            client.commit(held.id, actual={"usd_nanos": 250_000_000})
            print("spent", flush=True)
    except bursar.BudgetExceeded:
        client.record(account, amounts={"usd_nanos": 250_000_000})
        print("refused", flush=True)
        time.sleep(60)
"""


@pytest.fixture(scope="module")
def machine() -> Iterator[Scene]:
    with Scene(watchdog=MANY) as scene:
        yield scene


@pytest.fixture
def scene(machine: Scene) -> Iterator[Scene]:
    yield from machine.one_test()


def run(target: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "bursar", "run", "--target", target, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)


def test_a_job_that_shrinks_within_the_grace_period_goes_on_and_is_left_alone(
    scene: Scene,
) -> None:
    scene.limit_vram("shrinks", LIMIT)
    worker = scene.register("shrinks", vram_bytes=TOO_MUCH, orders=Orders(on_term="ignore"))
    scene.reached("shrinks", IncidentState.TERM)
    scene.gpus.set_process(worker.pid, scene.gpu, vram_bytes=3 * GIB)
    incident = scene.one("shrinks", IncidentState.CANCELLED)
    assert states(incident) == ["breach", "term", "cancelled"]
    assert lives(worker.pid)
    assert not scene.client.get_account("shrinks").frozen
    until(lambda: scene.held("shrinks") <= LIMIT, "what it uses is held")
    scene.gpus.set_process(worker.pid, scene.gpu, vram_bytes=TOO_MUCH)
    time.sleep(1)
    assert len(list(scene.client.list_incidents("shrinks"))) == 1, "it has a minute"
    assert lives(worker.pid)
    worker.end()


def test_a_process_that_passes_its_limit_for_a_moment_only_is_not_stopped() -> None:
    with Scene(watchdog={"vram_patience": "600ms"}) as scene:
        scene.limit_vram("spike", LIMIT)
        worker = scene.register("spike", vram_bytes=TOO_MUCH)
        time.sleep(0.4)
        scene.gpus.set_process(worker.pid, scene.gpu, vram_bytes=GIB)
        time.sleep(0.8)
        assert not list(scene.client.list_incidents())
        scene.gpus.set_process(worker.pid, scene.gpu, vram_bytes=TOO_MUCH)
        assert scene.one("spike", IncidentState.RECLAIMED).vram_bytes == TOO_MUCH
        scene.check_clean()


def test_gpu_time_that_is_used_up_stops_every_job_of_the_account_at_once(scene: Scene) -> None:
    scene.client.set_budget("hours", unit="gpu_ms", limit=400)
    first = scene.register("hours", vram_bytes=GIB)
    second = scene.register("hours", vram_bytes=GIB)
    incidents = scene.ended("hours", 2)
    assert len({one.job for one in incidents}) == 2
    for incident in incidents:
        assert incident.state is IncidentState.RECLAIMED
        assert (incident.limit_account, incident.unit, incident.limit) == ("hours", "gpu_ms", 400)
        assert incident.used >= 400
    assert first.process.wait(5) == second.process.wait(5) == 0
    [balance] = scene.client.get_account("hours").balances
    assert 400 <= balance.spent < 1_600, "two jobs for a few samples"


def test_a_run_has_the_gpu_time_that_it_was_given(scene: Scene) -> None:
    worker = scene.launch("given", "--gpu-time", "500ms", vram_bytes=GIB)
    began = time.monotonic()
    incident = scene.one_ended("given")
    assert worker.process.wait(5) == 0
    assert 0.2 < time.monotonic() - began < 3
    assert incident.limit == 500
    assert incident.used >= 500
    assert incident.limit_account == incident.account


@pytest.mark.parametrize("heeds", [True, False], ids=["heeds", "ignores"])
def test_a_run_that_has_spent_its_money_is_stopped(scene: Scene, heeds: bool) -> None:  # noqa: FBT001 -- from parametrize
    account = f"money/{heeds}".lower()
    deaf = "" if heeds else "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    options = ["--account", account, "--name", scene.job_name, "--limit", "usd=1"]
    ended = run(scene.daemon.target, *options, "--", sys.executable, "-c", deaf + SPENDER)
    assert ended.returncode == (143 if heeds else 137), ended.stderr
    assert ended.stdout.split()[:3] == ["spent"] * 3
    assert "a spend of $1.00 reached the limit of $1.00; SIGTERM after" in ended.stderr
    incident = scene.one_ended(account)
    assert (incident.unit, incident.limit, incident.used) == ("usd_nanos", 10**9, 10**9)
    assert incident.state is IncidentState.RECLAIMED


@pytest.mark.parametrize("limits", [{}, {"tokens": 1_000}], ids=["account", "own"])
def test_an_agent_that_asked_for_it_is_stopped_when_its_tokens_are_gone(
    scene: Scene, limits: dict[str, int]
) -> None:
    account = f"agents/{len(limits)}"
    scene.client.set_budget(account, unit="tokens", limit=1_000)
    with subprocess.Popen(["/bin/sleep", "60"]) as agent:
        job = scene.client.register_process(
            account, pid=agent.pid, name=scene.job_name, limits=limits, enforce=True
        )
        scene.client.record(job.account, amounts={"tokens": 999})
        time.sleep(0.4)
        assert agent.poll() is None
        scene.client.record(job.account, amounts={"tokens": 1})
        assert agent.wait(5) == -15
    incident = scene.one_ended(account)
    assert (incident.unit, incident.limit, incident.used) == ("tokens", 1_000, 1_000)


def test_an_agent_that_did_not_ask_for_it_goes_on_without_tokens(scene: Scene) -> None:
    scene.client.set_budget("free", unit="tokens", limit=1_000)
    with subprocess.Popen(["/bin/sleep", "60"]) as agent:
        scene.client.register_process("free", pid=agent.pid)
        scene.client.record("free", amounts={"tokens": 5_000})
        time.sleep(0.6)
        assert agent.poll() is None
        assert not list(scene.client.list_incidents("free"))
        agent.kill()


def test_a_job_with_limits_of_its_own_is_stopped_when_the_account_above_is_spent(
    scene: Scene,
) -> None:
    scene.client.set_budget("named", unit="tokens", limit=1_000)
    with subprocess.Popen(["/bin/sleep", "60"]) as agent:
        limits = {"tokens": 900_000}
        scene.client.register_process(
            "named", pid=agent.pid, name=scene.job_name, limits=limits, enforce=True
        )
        scene.client.record("named", amounts={"tokens": 1_000})
        assert agent.wait(5) == -15
    incident = scene.one_ended("named")
    assert (incident.limit_account, incident.unit, incident.used) == ("named", "tokens", 1_000)


def test_without_a_grace_period_sigkill_comes_at_once(scene: Scene) -> None:
    scene.client.set_budget("graceless", unit="tokens", limit=1)
    with subprocess.Popen(["/bin/sh", "-c", "trap '' TERM; while :; do sleep 0.05; done"]) as agent:
        job = scene.client.register_process(
            "graceless", pid=agent.pid, name=scene.job_name, enforce=True, term_grace_s=0
        )
        assert job.term_grace_ms == 0
        scene.client.record("graceless", amounts={"tokens": 1})
        assert agent.wait(5) == -9
    steps = scene.one_ended("graceless").steps
    at_s = {str(step.state): step.time.timestamp() for step in steps if step.time}
    assert at_s["kill"] - at_s["term"] < 0.3


def test_wall_time_counts_from_the_registration(scene: Scene) -> None:
    with subprocess.Popen(["/bin/sleep", "60"]) as agent:
        time.sleep(0.7)
        scene.client.register_process(
            "patient", pid=agent.pid, name=scene.job_name, wall_limit_s=0.6
        )
        began = time.monotonic()
        assert agent.wait(5) == -15
        assert time.monotonic() - began > 0.5
    assert 600 <= scene.one_ended("patient").used < 900


def test_of_all_below_a_limit_that_is_lowered_the_largest_is_stopped_and_no_more(
    scene: Scene,
) -> None:
    scene.limit_vram("dept", 20 * GIB)
    small = scene.register("dept/small", vram_bytes=3 * GIB)
    large = scene.register("dept/large", vram_bytes=6 * GIB)
    middle = scene.register("dept/team/middle", vram_bytes=5 * GIB)
    until(lambda: scene.held("dept") == 14 * GIB, "all is held")
    scene.limit_vram("dept", 9 * GIB)
    incident = scene.one("dept/large", IncidentState.RECLAIMED)
    assert (incident.limit_account, incident.limit) == ("dept", 9 * GIB)
    assert large.process.wait(5) == 0
    until(lambda: scene.held("dept") == 8 * GIB, "what came back is not held")
    time.sleep(2.5)  # longer than from one look at limits to the next
    assert len(list(scene.client.list_incidents("dept"))) == 1
    for worker in (small, middle):
        assert lives(worker.pid)
        worker.end()


@pytest.mark.parametrize("first", ["small", "large"])
def test_a_limit_that_is_set_below_what_is_in_use_stops_the_largest(
    scene: Scene, first: str
) -> None:
    team, sizes = f"set-{first}", {"small": 3 * GIB, "large": 6 * GIB}
    workers = {
        name: scene.register(f"{team}/{name}", vram_bytes=sizes[name])
        for name in sorted(sizes, key=lambda one: one != first)
    }
    accounts = [f"{team}/{name}" for name in workers]
    ask = scene.client.get_account
    until(lambda: all(ask(one).open_reservation_count for one in accounts), "all is held")
    scene.limit_vram(team, 8 * GIB)
    incident = scene.one(f"{team}/large", IncidentState.RECLAIMED)
    assert (incident.limit, incident.used) == (8 * GIB, 9 * GIB)
    time.sleep(2.5)  # longer than from one look at limits to the next
    assert len(list(scene.client.list_incidents(team))) == 1
    assert lives(workers["small"].pid)
    workers["small"].end()


def test_what_is_promised_or_held_by_others_and_not_in_use_stops_nobody(scene: Scene) -> None:
    scene.limit_vram("unused", 40 * GIB)
    reserved = scene.client.reserve("unused", amounts={"vram_bytes": 10 * GIB})
    promised = scene.launch("unused", "--vram", "8GiB", vram_bytes=GIB)
    job = scene.job("unused")
    other = scene.register("unused/other", vram_bytes=GIB)
    until(lambda: scene.held("unused") == 19 * GIB, "all is held")
    scene.limit_vram("unused", 4 * GIB)
    time.sleep(2.5)  # longer than from one look at limits to the next
    assert not list(scene.client.list_incidents("unused"))
    scene.gpus.set_process(job.pid, scene.gpu, vram_bytes=6 * GIB)
    assert scene.one_ended("unused").used == 7 * GIB
    assert promised.process.wait(5) == 0
    assert lives(other.pid)
    scene.client.release(reserved.id)
    other.end()


def test_a_job_without_a_gpu_has_its_wall_time_on_a_host_that_has_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("LD_LIBRARY_PATH", "NVML_STAND_IN"):
        monkeypatch.delenv(name, raising=False)
    with Daemon(watchdog=QUICK) as daemon, daemon.client() as client:
        began = time.monotonic()
        options = ["--account", "cpu", "--wall", "600ms", "--grace", "300ms", "--"]
        ended = run(
            daemon.target, *options, "sh", "-c", "trap '' TERM; while :; do sleep 0.05; done"
        )
        assert ended.returncode == 137
        assert time.monotonic() - began < 5
        assert "may run for 600 ms" in ended.stderr
        assert client.list_processes().watchdog.state is WatchdogState.NO_NVML
        [incident] = client.list_incidents("cpu")
        assert incident.cause is IncidentCause.WALL_TIME
        assert states(incident) == ["breach", "term", "kill", "verify", "reclaimed"]
        assert incident.limit == 600
        assert 600 <= incident.used < 900
        until(lambda: not client.list_processes().jobs, "the job is over")
        assert client.get_account("cpu").open_reservation_count == 0


def test_a_job_that_asks_for_memory_that_is_not_left_does_not_start(scene: Scene) -> None:
    scene.limit_vram("full", LIMIT)
    taken = scene.client.reserve("full", amounts={"vram_bytes": 3 * GIB})
    options = ["--account", "full", "--name", scene.job_name, "--vram", "2GiB"]
    refused = run(scene.daemon.target, *options, "--", "echo", "ran")
    assert (refused.returncode, refused.stdout) == (3, "")
    assert "full" in refused.stderr
    scene.client.release(taken.id)
    started = run(scene.daemon.target, *options, "--", "echo", "ran")
    assert (started.returncode, started.stdout) == (0, "ran\n")
    scene.client.freeze("full")
    frozen = run(scene.daemon.target, *options, "--", "echo", "ran")
    scene.client.unfreeze("full")
    assert (frozen.returncode, frozen.stdout) == (3, "")
