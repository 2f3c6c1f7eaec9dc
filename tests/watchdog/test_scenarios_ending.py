"""How a job over its limit ends, whatever its processes do when they are asked to.

Real processes, a real daemon and the stand-in for NVML. The tests share one daemon; each has an
account of its own, and leaves nothing behind.
"""

import secrets
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.gpu import GIB, NEVER, Orders
from support.scene import MANY, MODES, Scene, lives, until
from support.watched import states

import bursar
from bursar.processes import Incident, IncidentState

LIMIT = 4 * GIB
TOO_MUCH = 5 * GIB


@pytest.fixture(scope="module")
def machine() -> Iterator[Scene]:
    with Scene(watchdog=MANY) as scene:
        yield scene


@pytest.fixture
def scene(machine: Scene) -> Iterator[Scene]:
    yield from machine.one_test()


def took_s(incident: Incident) -> float:
    """From the breach to the end."""
    assert incident.create_time is not None
    assert incident.end_time is not None
    return (incident.end_time - incident.create_time).total_seconds()


def test_a_polite_process_ends_at_sigterm_and_its_memory_is_seen_to_be_back(scene: Scene) -> None:
    scene.limit_vram("polite", LIMIT)
    worker = scene.register("polite", vram_bytes=TOO_MUCH)
    incident = scene.one("polite", IncidentState.RECLAIMED)
    assert states(incident) == ["breach", "term", "verify", "reclaimed"]
    assert worker.process.wait(5) == 0
    assert [(one.pid, one.vram_bytes) for one in incident.victims] == [(worker.pid, TOO_MUCH)]
    assert incident.vram_bytes == incident.vram_returned_bytes == TOO_MUCH
    assert (incident.limit, incident.used) == (LIMIT, TOO_MUCH)
    assert took_s(incident) < 1
    assert scene.held("polite") == 0


@pytest.mark.parametrize("mode", MODES)
def test_a_process_that_ignores_sigterm_is_killed_after_the_grace_period(
    scene: Scene, mode: str
) -> None:
    worker = scene.launch(
        f"deaf/{mode}",
        "--vram",
        "4GiB",
        *MODES[mode],
        vram_bytes=TOO_MUCH,
        orders=Orders(on_term="ignore"),
    )
    incident = scene.one_ended(f"deaf/{mode}")
    assert states(incident) == ["breach", "term", "kill", "verify", "reclaimed"]
    assert worker.process.wait(5) == 137
    assert 0.5 <= took_s(incident) < 2
    assert incident.vram_returned_bytes == TOO_MUCH


@pytest.mark.parametrize(
    ("linger_s", "expected", "code"),
    [
        (0.2, ["breach", "term", "verify", "reclaimed"], 0),
        (30, ["kill", "verify", "reclaimed"], -9),
    ],
    ids=["within", "beyond"],
)
def test_a_process_that_takes_its_time_has_the_grace_period_and_no_more(
    scene: Scene, linger_s: float, expected: list[str], code: int
) -> None:
    account = f"slow/{abs(code)}"
    scene.limit_vram(account, LIMIT)
    orders = Orders(on_term="linger", linger_s=linger_s)
    worker = scene.register(account, vram_bytes=TOO_MUCH, orders=orders)
    incident = scene.one(account, IncidentState.RECLAIMED)
    assert states(incident)[-len(expected) :] == expected
    assert worker.process.wait(5) == code
    assert min(linger_s, 0.5) <= took_s(incident) < 2


def test_memory_that_comes_back_late_is_waited_for(scene: Scene) -> None:
    scene.limit_vram("late", LIMIT)
    scene.register("late", vram_bytes=TOO_MUCH, free_after_ms=800)
    incident = scene.reached("late", IncidentState.VERIFY)
    assert incident.state is IncidentState.VERIFY
    assert scene.client.get_account("late").frozen, "it could take what is not back yet"
    incident = scene.one("late", IncidentState.RECLAIMED)
    assert states(incident) == ["breach", "term", "verify", "reclaimed"]
    assert 0.8 <= took_s(incident) < 2
    assert incident.vram_quarantined_bytes == 0


def test_memory_that_never_comes_back_is_not_sold_until_it_does(scene: Scene) -> None:
    client = scene.client
    scene.limit_vram("stuck", 6 * GIB)
    scene.limit_vram("stuck/job", LIMIT)
    worker = scene.register("stuck/job", vram_bytes=TOO_MUCH, free_after_ms=NEVER)
    incident = scene.one("stuck/job", IncidentState.RECLAIM_FAILED)
    assert worker.process.wait(5) == 0
    assert incident.vram_quarantined_bytes == TOO_MUCH
    assert incident.vram_returned_bytes == 0
    assert took_s(incident) >= 1
    [device] = client.list_processes().devices
    assert device.vram_quarantined_bytes == TOO_MUCH
    time.sleep(0.3)  # several samples, and none of them gives it back
    with pytest.raises(bursar.AccountFrozen):
        client.reserve("stuck/job", amounts={"vram_bytes": GIB})
    with pytest.raises(bursar.BudgetExceeded) as refused:
        client.reserve("stuck/other", amounts={"vram_bytes": 2 * GIB + 1})
    assert refused.value.account == "stuck"
    scene.gpus.remove(worker.pid)
    incident = scene.one("stuck/job", IncidentState.RECLAIMED)
    assert states(incident) == ["breach", "term", "verify", "reclaim_failed", "reclaimed"]
    assert (incident.vram_returned_bytes, incident.vram_quarantined_bytes) == (TOO_MUCH, 0)
    until(lambda: scene.held("stuck") == 0, "the hold is given back")
    client.release(client.reserve("stuck/job", amounts={"vram_bytes": LIMIT}).id)


def test_what_is_stuck_stays_held_when_another_job_of_the_account_ends(scene: Scene) -> None:
    scene.limit_vram("shared", 6 * GIB)
    stuck = scene.register("shared", vram_bytes=TOO_MUCH, free_after_ms=NEVER)
    other = scene.register("shared", vram_bytes=2 * GIB)
    scene.one("shared", IncidentState.RECLAIM_FAILED)
    assert lives(other.pid), "the larger one was enough"
    other.end()
    until(lambda: len(scene.client.list_processes("shared").jobs) == 1, "its end is seen")
    time.sleep(0.3)
    assert scene.held("shared") >= TOO_MUCH
    scene.gpus.remove(stuck.pid)
    scene.one("shared", IncidentState.RECLAIMED)


def test_a_stopped_process_is_made_to_go_on_so_that_it_can_leave(scene: Scene) -> None:
    scene.limit_vram("stopped", LIMIT)
    worker = scene.register("stopped", vram_bytes=TOO_MUCH, orders=Orders(stops=True))
    incident = scene.one("stopped", IncidentState.RECLAIMED)
    assert "kill" not in states(incident)
    assert worker.process.wait(5) == 0


def test_a_process_whose_main_thread_has_ended_counts_as_alive_until_the_last_one_has(
    scene: Scene,
) -> None:
    scene.limit_vram("leaderless", LIMIT)
    orders = Orders(leaderless=True, on_term="ignore")
    worker = scene.register("leaderless", vram_bytes=TOO_MUCH, orders=orders)
    incident = scene.one("leaderless", IncidentState.RECLAIMED)
    assert states(incident) == ["breach", "term", "kill", "verify", "reclaimed"]
    assert worker.process.wait(5) == -9


@pytest.mark.parametrize("mode", MODES)
def test_children_in_sessions_of_their_own_end_with_the_job(scene: Scene, mode: str) -> None:
    orders = Orders(children=3, on_term="ignore")
    worker = scene.launch(
        f"forked/{mode}", "--vram", "4GiB", *MODES[mode], vram_bytes=2 * GIB, orders=orders
    )
    incident = scene.one_ended(f"forked/{mode}")
    assert states(incident)[-3:] == ["kill", "verify", "reclaimed"]
    assert worker.process.wait(5) == 137
    assert {one.pid for one in incident.victims} >= set(worker.members())
    assert incident.vram_bytes == incident.vram_returned_bytes == 8 * GIB


def test_of_a_registered_process_only_what_descends_from_it_is_stopped(scene: Scene) -> None:
    scene.limit_vram("escaped", LIMIT)
    worker = scene.register("escaped", vram_bytes=TOO_MUCH, orders=Orders(children=2))
    scene.one("escaped", IncidentState.RECLAIMED)
    leader, *orphans = worker.members()
    assert not lives(leader) or worker.process.wait(5) == 0
    assert all(map(lives, orphans)), "they had left before it was registered: nobody's"
    seen = {one.pid: one.account for one in scene.client.list_processes().processes}
    assert {seen[pid] for pid in orphans} == {""}
    worker.end()


@pytest.mark.parametrize("mode", MODES)
def test_a_job_that_starts_its_processes_again_and_again_ends_whole(
    scene: Scene, mode: str
) -> None:
    orders = Orders(respawns=True, on_term="ignore")
    worker = scene.launch(
        f"again/{mode}", "--vram", "4GiB", *MODES[mode], vram_bytes=TOO_MUCH, orders=orders
    )
    incident = scene.one_ended(f"again/{mode}")
    assert incident.state is IncidentState.RECLAIMED
    worker.process.wait(5)
    until(lambda: not any(map(lives, worker.members())), "nobody is left")


def test_a_registered_process_that_respawns_ends_whole_too(scene: Scene) -> None:
    scene.limit_vram("respawner", LIMIT)
    worker = scene.register("respawner", vram_bytes=TOO_MUCH, orders=Orders(respawns=True))
    incident = scene.one("respawner", IncidentState.RECLAIMED)
    worker.process.wait(5)
    assert {one.pid for one in incident.victims} >= set(worker.members()[:2])
    until(lambda: not any(map(lives, worker.members())), "nobody is left")


def test_who_has_a_gpu_open_unlisted_is_named_with_the_quarantine() -> None:
    device = Path(f"/dev/nvidia-{secrets.token_hex(4)}")
    try:
        device.touch(exist_ok=False)
    except OSError as error:
        pytest.skip(f"no file can be made in /dev: {error}")
    try:
        with Scene() as scene:
            scene.limit_vram("held", LIMIT)
            worker = scene.register("held", vram_bytes=TOO_MUCH, free_after_ms=-1)
            command = ["/bin/sh", "-c", f"exec sleep 60 <{device}"]
            with subprocess.Popen(command) as holder:
                incident = scene.one("held", IncidentState.RECLAIM_FAILED)
                holder.kill()
            assert f"has a GPU open: sleep 60 (pid {holder.pid})" in incident.steps[-1].detail
            scene.gpus.remove(worker.pid)
            scene.one("held", IncidentState.RECLAIMED)
    finally:
        device.unlink()
