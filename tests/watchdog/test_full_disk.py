"""A disk that is full under the watchdog: who is stopped then, who waits, and what is told.

The disk is a tmpfs of its own, really full; under the journal alone, or under the ledger as well.
"""

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner
from support.gpu import GIB, Orders
from support.places import Disk, small_disk
from support.scene import Scene, lives, until
from support.watched import states

import bursar
from bursar.cli import cli
from bursar.exceptions import StoreUnavailable
from bursar.processes import Incident, IncidentState
from bursar.watchdog.cases import INTENT_PATIENCE_MS

PATIENCE = timedelta(milliseconds=INTENT_PATIENCE_MS - 100)  # by the clock of the wall


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with small_disk(tmp_path / "disk", "96m") as disk:
        yield disk


def on(disk: Disk, what: str, **watchdog: object) -> Scene:
    """A scene whose journal, or all of whose store, is on that disk."""
    scene = Scene(watchdog=watchdog, store={"min_free_bytes": 0})
    if what == "everything":
        scene.daemon.store_path = disk.path / "ledger.db"
    else:
        (scene.daemon.folder / "ledger.db.watchdog").symlink_to(disk.path / "journal")
    return scene


def make_room(disk: Disk, scene: Scene) -> None:
    """Empties the disk, and waits until all is written."""
    told = "journal is written again"
    before = scene.daemon.log.count(told)
    disk.empty()
    until(lambda: scene.daemon.log.count(told) > before, "it is told")


def waited(incident: Incident) -> timedelta:
    """How long after the breach it was signalled."""
    times = [step.time for step in incident.steps[:2]]
    assert times[0] is not None
    assert times[1] is not None
    return times[1] - times[0]


@pytest.mark.parametrize("what", ["journal", "everything"])
def test_a_runaway_under_orders_is_stopped_though_nothing_can_be_written(
    disk: Disk, what: str
) -> None:
    with on(disk, what) as scene:
        worker = scene.launch("run/away", "--wall", "2s", orders=Orders(on_term="ignore"))
        disk.fill()
        until(lambda: not any(map(lives, worker.members())), "its end")
        incident = scene.one_ended("run/away")
        assert states(incident) == ["breach", "term", "kill", "verify", "reclaimed"]
        assert waited(incident) >= PATIENCE
        # Not once for each look. While the disk fills up, a little may yet be written in between.
        assert 1 <= scene.daemon.log.count("journal cannot be written") <= 3
        assert "journal cannot be written" in scene.client.list_processes().watchdog.detail
        make_room(disk, scene)
        assert "starts again" not in scene.daemon.log
        scene.daemon.kill9()
        scene.daemon.start()
        assert scene.one_ended("run/away") == incident


def test_an_operator_is_obeyed_though_nothing_can_be_written(disk: Disk) -> None:
    with on(disk, "journal", mode="observe") as scene:
        worker = scene.register("op")
        disk.fill()
        assert scene.client.kill_process(pid=worker.pid).state is IncidentState.BREACH
        assert waited(scene.one_ended("op")) >= PATIENCE
        assert not lives(worker.pid)


def test_who_is_stopped_by_mode_alone_waits_for_the_intent(disk: Disk) -> None:
    with on(disk, "journal") as scene:
        scene.limit_vram("mode", GIB)
        worker = scene.register("mode", vram_bytes=GIB)
        until(lambda: scene.held("mode"), "it is seen")
        disk.fill()
        scene.gpus.set_process(worker.pid, scene.gpu, vram_bytes=2 * GIB)
        scene.reached("mode", IncidentState.BREACH)
        with pytest.raises(AssertionError, match="not within"):
            until(lambda: not lives(worker.pid), "its end")
        [incident] = scene.client.list_incidents("mode")
        assert states(incident) == ["breach"]
        disk.empty()
        assert waited(scene.one_ended("mode")) >= 2 * PATIENCE
        assert not lives(worker.pid)


def test_an_incident_that_was_written_goes_on_when_the_disk_is_full(disk: Disk) -> None:
    with on(disk, "journal", term_grace="2s") as scene:
        scene.limit_vram("half", GIB)
        worker = scene.register("half", vram_bytes=2 * GIB, orders=Orders(on_term="ignore"))
        scene.reached("half", IncidentState.TERM)
        disk.fill()
        incident = scene.one_ended("half")
        assert incident.state is IncidentState.RECLAIMED
        assert not lives(worker.pid)
        assert "journal cannot be written" in scene.daemon.log
        assert incident.end_time is not None
        assert incident.create_time is not None
        assert incident.end_time - incident.create_time < PATIENCE


def test_a_job_that_a_restart_would_not_know_is_not_taken_in(disk: Disk) -> None:
    with on(disk, "journal") as scene, scene.gpus.worker(scene.gpu) as worker:
        disk.fill()
        scene.client.set_budget("late", unit="usd_nanos", limit=100)
        for _ in range(2):
            with pytest.raises(StoreUnavailable, match="journal cannot be written"):
                scene.client.register_process("late", pid=worker.pid, limits={"vram_bytes": GIB})
        assert not scene.client.list_processes().jobs
        until(lambda: [one.path for one in scene.client.list_accounts("late")] == ["late"], "it")
        make_room(disk, scene)
        scene.client.register_process("late", pid=worker.pid)
        assert scene.job("late").pid == worker.pid


def test_the_doctor_says_that_a_disk_is_full(disk: Disk) -> None:
    with on(disk, "everything") as scene:
        scene.client.set_budget("a", unit="usd_nanos", limit=100)
    store = str(disk.path / "ledger.db")
    assert not json.loads(CliRunner().invoke(cli, ["doctor", store, "--json"]).stdout)["unwritable"]
    disk.fill()
    told = CliRunner().invoke(cli, ["doctor", store])
    assert "the file system is full: 0 bytes are left" in told.stdout, bursar.__version__
