"""What is so: incidents and a blind watchdog, a store that has failed; told also over restarts."""

import time
from contextlib import suppress
from pathlib import Path

import pytest
from support.gpu import GIB, Orders
from support.places import small_disk
from support.receivers import Hook, until, webhook
from support.told import Told
from support.watched import Watched

import bursar
from bursar.notify.notifier import spool_path
from bursar.notify.spool import standings


def taken_in(watched: Watched) -> bool:
    return bool(standings(spool_path(watched.daemon.store_path)))


def test_each_step_of_a_stopped_job_and_its_freeze_are_told(tmp_path: Path) -> None:
    with Hook() as hook, Watched(notify={"webhooks": [webhook(tmp_path, hook)]}) as watched:
        until(lambda: taken_in(watched), "the receiver is taken in")
        watched.limit_vram("acme", 4 * GIB)
        watched.register("acme", vram_bytes=5 * GIB, orders=Orders(on_term="ignore"))
        [incident] = watched.ended("acme")
        steps = [f"incident.{one.state}" for one in incident.steps]
        hook.saw(len(steps) + 2)
        events = [one.verified() for one in hook.requests]
    told = [one["type"].removeprefix("bursar.") for one in events]
    assert [one for one in told if one.startswith("incident.")] == steps
    assert {"incident.breach", "incident.kill", "incident.reclaimed"} <= set(steps)
    assert {"freeze", "unfreeze"} <= set(told)
    breach = next(one for one in events if one["type"] == "bursar.incident.breach")
    assert breach["subject"] == "acme"
    assert breach["data"]["incident"] == incident.id
    assert (breach["data"]["unit"], breach["data"]["limit"]) == ("vram_bytes", str(4 * GIB))
    assert breach["data"]["cause"] == "budget"


def test_a_watchdog_that_is_blind_and_sees_again_is_told_to_those_of_all_accounts(
    tmp_path: Path,
) -> None:
    with Hook() as hook, Hook() as bound:
        rows = [webhook(tmp_path, hook), webhook(tmp_path, bound, "bound", accounts=["acme/**"])]
        with Watched(notify={"webhooks": rows}) as watched:
            until(lambda: taken_in(watched), "the receivers are taken in")
            until(lambda: watched.client.list_processes().devices, "it sees")
            watched.gpus.fail("*", 999)
            hook.saw(1)
            watched.gpus.heal()
            hook.saw(2)
    assert hook.names == ["watchdog.blind", "watchdog.sees"]
    assert "cannot be seen" in hook.events[0]["data"]["detail"]
    assert bound.requests == []


@pytest.mark.timeout(180)
def test_a_full_disk_is_told_of_although_nothing_can_be_written(tmp_path: Path) -> None:
    """Goal: the notification that matters most goes out when the disk is full, and is not lost
    when the receiver is away just then. Method: a small disk is filled under a daemon."""
    with (
        Hook() as hook,
        small_disk(tmp_path / "disk", "64m") as disk,
        Told(webhook(tmp_path, hook)) as daemon,
    ):
        daemon.move_store(disk.path)
        disk.fill()
        with daemon.client() as client:
            end_s = time.monotonic() + 30
            while "notifications go on in memory" not in daemon.log:
                assert time.monotonic() < end_s, daemon.log
                with suppress(bursar.StoreUnavailable, bursar.SidecarTimeout):
                    client.record("acme", tokens=1)
                time.sleep(0.01)
        hook.saw(1)
        assert hook.names == ["store.read_only"]
        assert hook.events[0]["data"]["detail"]
        disk.empty()
        until(lambda: "ledger.db.notify is written again" in daemon.log, "there is room again")
        daemon.terminate()
        daemon.start()
        with daemon.client() as client:
            client.freeze("acme")
        hook.saw(3)
        assert hook.names == ["store.read_only", "store.writable", "freeze"]
    assert "Traceback" not in daemon.log
