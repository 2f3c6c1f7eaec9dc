"""What hostile or unlucky surroundings do to the watchdog: names, descriptors, users, moves."""

import os
import re
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from google.protobuf.message import Message
from support.bare import Bare
from support.gpu import GIB, Orders
from support.jobs import need_cgroups
from support.scene import MANY, Scene, lives, until

from bursar import _core
from bursar.daemon.config import Config
from bursar.processes import IncidentState
from bursar.v1 import ledger_pb2 as lg
from bursar.v1 import process_pb2 as pb
from bursar.watchdog import cgroups, jobs, loop, processes, signals
from bursar.watchdog.books import Books
from bursar.watchdog.escalation import Phase
from bursar.watchdog.gpus import as_job
from bursar.watchdog.journal import Journal
from bursar.watchdog.limits import Limits
from bursar.watchdog.poller import Poller
from bursar.watchdog.processes import Children, ProcessTable, uid_of
from bursar.watchdog.settings import Settings

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


@pytest.fixture
def sleeper() -> Iterator["subprocess.Popen[bytes]"]:
    with subprocess.Popen(["/bin/sleep", "60"]) as started:
        yield started
        started.kill()


def test_a_cgroup_whose_name_is_no_text_can_be_told(sleeper: "subprocess.Popen[bytes]") -> None:
    need_cgroups()
    mounted = cgroups.mount_point()
    assert mounted is not None
    folder = os.fsencode(mounted) + b"/bursar-review-\xff"
    os.mkdir(folder)  # noqa: PTH102 -- a name in bytes
    try:
        Path(os.fsdecode(folder), "cgroup.procs").write_text(str(sleeper.pid), encoding="ascii")
        path = cgroups.path_of(sleeper.pid)
        assert path is not None
        assert os.fsencode(path) == b"/bursar-review-\xff"
    finally:
        sleeper.kill()
        sleeper.wait()
        os.rmdir(folder)  # noqa: PTH106 -- a name in bytes


def test_the_refusal_of_a_program_whose_name_is_no_text_can_be_sent(tmp_path: Path) -> None:
    program = os.fsencode(tmp_path) + b"/systemd-\xff"
    shutil.copy(b"/bin/sleep", program)
    with subprocess.Popen([program, "60"]) as process:
        name = signals._program(process.pid)
        process.kill()
    assert any(re.fullmatch(pattern, name) for pattern in signals.PROTECTED)
    name.encode()


def test_the_sampler_is_read_also_where_a_thousand_descriptors_are_open() -> None:
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < 1200:
        pytest.skip("this process may not open so many")
    poller = Poller()
    with ExitStack() as stack:
        for _ in range(1100):
            stack.callback(os.close, os.open("/dev/null", os.O_RDONLY))
        stack.callback(poller.close)
        poller.ask()
        until(lambda: poller.take() is not None, "a sample")


@pytest.mark.parametrize(
    ("took_s", "least_s", "most_s"), [(0, 0.9, 1), (0.006, 3, 5), (0.2, 9, 10)]
)
def test_where_there_are_many_processes_jobs_are_searched_less_often(
    took_s: float, least_s: float, most_s: float
) -> None:
    def find() -> list[jobs.Kept]:
        began_s = time.thread_time()
        while time.thread_time() - began_s < took_s:
            pass
        return []

    watchdog = loop.Watchdog.__new__(loop.Watchdog)
    watchdog.jobs = cast("Any", SimpleNamespace(find=find))
    watchdog._find()
    assert least_s < watchdog._next_find_s - time.monotonic() <= most_s


@as_root
def test_a_process_that_may_not_be_dumped_is_its_users_all_the_same() -> None:
    code = """if True:
        import ctypes, os
        os.setuid(65534)
        ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)  # PR_SET_DUMPABLE
        print(flush=True)
        input()
    """
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        proc_owner = Path(f"/proc/{process.pid}").stat().st_uid
        found = uid_of(process.pid)
        process.kill()
    print(f"/proc says {proc_owner}")
    assert found == 65534


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with Scene(watchdog=MANY) as scene:
        yield scene


def test_a_page_token_of_any_length_is_refused_and_the_watchdog_goes_on(scene: Scene) -> None:
    for token in ("9" * 5000, "-1", "x"):
        request = pb.ListIncidentsRequest(page_token=token)
        with Bare(scene.daemon.target) as bare:
            error = bare.fails("ProcessService/ListIncidents", request)
        assert error.reason == "INVALID_FIELD"
    assert "starts again" not in scene.daemon.log


def _in_parent_group(pid: int) -> None:
    path = cgroups.path_of(pid)
    mounted = cgroups.mount_point()
    assert path is not None
    assert mounted is not None
    above = mounted / path.rpartition("/")[0].lstrip("/")
    (above / "cgroup.procs").write_text(str(pid), encoding="ascii")


@pytest.mark.parametrize("who", ["leader", "child"])
def test_who_leaves_the_cgroup_of_a_job_is_stopped_with_it(scene: Scene, who: str) -> None:
    need_cgroups()
    account = f"left/{who}"
    command = [sys.executable, "-m", "bursar", "run", "--target", scene.daemon.target]
    options = ["--account", account, "--name", scene.job_name, "--grace", "100ms", "--"]
    script = "trap '' TERM; sleep 60 & echo $! $$; while :; do sleep 0.1; done"
    with subprocess.Popen(
        [*command, *options, "/bin/sh", "-c", script], stdout=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout is not None
        child, leader = map(int, run.stdout.readline().split())
        pid = leader if who == "leader" else child
        if who == "child":
            scene.gpus.set_process(child, scene.gpu, vram_bytes=2**30)
            until(lambda: scene.client.list_processes(account).processes[0].pid == child, "seen")
        _in_parent_group(pid)
        scene.client.kill_process(pid=leader)
        until(lambda: not lives(pid), f"the end of the {who}")
        until(lambda: not lives(leader), "the end of the leader")
        if who == "child":
            scene.gpus.remove(child)
        assert scene.one_ended(account).state is IncidentState.RECLAIMED
        run.wait(20)


def test_many_jobs_look_at_all_processes_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []
    real = processes.all_children

    def looked() -> Children:
        looks.append(1)
        return real()

    monkeypatch.setattr(jobs, "all_children", looked)
    table = ProcessTable()
    registered = jobs.Jobs(table)
    with subprocess.Popen(["/bin/sleep", "60"]) as process:
        held = table.hold(process.pid)
        assert held is not None
        for number in range(20):
            kept = as_job(f"a/{number}", 0)
            kept.job.pid, kept.start_ticks = held.identity
            assert registered.members(kept) == [held]
        assert len(looks) == 1
        registered.look_anew()
        registered.members(kept)
        assert len(looks) == 2
        process.kill()
    table.close()


@pytest.mark.parametrize("before", [0, 8 * GIB])
def test_a_limit_of_memory_that_is_set_below_what_is_in_use_stops_the_job(
    scene: Scene, before: int
) -> None:
    account = f"later/from{before}"
    if before:
        scene.limit_vram(account, before)
    worker = scene.register(account, vram_bytes=6 * GIB)
    until(lambda: scene.client.get_account(account).open_reservation_count, "a hold")
    scene.limit_vram(account, 4 * GIB)
    assert scene.one_ended(account).unit == "vram_bytes"
    until(lambda: not lives(worker.pid), "its end")


def test_an_account_stays_frozen_until_the_last_of_its_incidents_ends(scene: Scene) -> None:
    account = "frozen/twice"
    quick = scene.register(account)
    slow = scene.register(account, orders=Orders(on_term="ignore"))
    for worker in (quick, slow):
        scene.client.kill_process(pid=worker.pid)
    [first] = scene.ended(account)
    assert lives(slow.pid)
    assert scene.client.get_account(account).frozen
    second = next(one for one in scene.ended(account, 2) if one.id != first.id)
    assert second.victims[0].pid == slow.pid
    assert not scene.client.get_account(account).frozen, scene.daemon.log[-1500:]


def test_a_journal_with_rows_that_cannot_be_read_is_used_all_the_same() -> None:
    with Scene() as scene:
        worker = scene.register("poison", vram_bytes=GIB)
        scene.daemon.kill9()
        with sqlite3.connect(scene.daemon.folder / "ledger.db.watchdog") as db:
            db.execute("INSERT INTO jobs VALUES ('j0', x'ff', '{}'), ('j1', x'', '[1]')")
            row = "INSERT INTO incidents VALUES (?, 'a', 'j', 0, ?, ?)"
            bad = ((b"\xff", "{}"), (b"x", "nonsense"), (b"\x0a\x00", "[]"))
            db.executemany(row, [(8 + number, *one) for number, one in enumerate(bad)])
        db.close()
        scene.daemon.start()
        assert scene.job("poison").pid == worker.pid
        assert "starts again" not in scene.daemon.log
        assert scene.daemon.log.count("cannot be read and is left alone") == 5
        scene.client.kill_process(pid=worker.pid)
        assert scene.one_ended("poison").state is IncidentState.RECLAIMED


def test_incidents_of_any_size_are_listed_also_next_to_what_cannot_be_read() -> None:
    with Scene() as scene:
        scene.daemon.kill9()
        with sqlite3.connect(scene.daemon.folder / "ledger.db.watchdog") as db:
            row = "INSERT INTO incidents VALUES (?, 'a', 'j', 1, ?, '{}')"
            for number in range(1, 13):
                incident = pb.Incident(id=f"i{number}", account="a", reason="x" * 500_000)
                db.execute(row, (number, incident.SerializeToString()))
            db.execute(row, (13, b"\xff"))
        db.close()
        scene.daemon.start()
        with Bare(scene.daemon.target) as bare:
            request = pb.ListIncidentsRequest(page_size=1000)
            first = bare("ProcessService/ListIncidents", request)
        assert 0 < first.ByteSize() < 4 << 20
        assert first.next_page_token
        found = [one.id for one in scene.client.list_incidents()]
        assert found == [f"i{number}" for number in range(12, 0, -1)]


def test_what_holds_back_for_a_time_does_not_let_a_runaway_go_for_good() -> None:
    incident = pb.Incident(cause=pb.Incident.CAUSE_BUDGET, unit="vram_bytes", limit=1)
    kept = as_job("acme", 0)
    told: Any = SimpleNamespace(is_limited=lambda *_: "too often")
    seen: Any = SimpleNamespace(view=SimpleNamespace(is_stale=False))
    nothing: Any = None
    settings = Settings(enforce=True, settle_ms=0)
    limits = Limits(settings, nothing, nothing, told, tell=lambda _: None, start_ms=0)
    limits.rest(kept, incident, Phase.OBSERVED, 0)
    for now_ms in range(0, 600_000, 1000):  # over all the time
        assert not limits._is_news(kept, incident, seen, now_ms)
    assert limits._is_news(kept, incident, seen, 600_000)


def test_what_was_metered_is_committed_also_when_nothing_more_comes(tmp_path: Path) -> None:
    config = {"store": {"path": ""}, "accounts": [{"path": "pods/**"}]}
    engine = _core.Engine(Config.from_dict(config).to_core_json(listen=False))
    journal = Journal(tmp_path / "journal")

    def call(method: str, request: Message, answer: type[Message]) -> Any:
        return answer.FromString(engine.call(method, request.SerializeToString()))

    books = Books(call, journal)
    for number in range(20):
        books.spend(f"pods/{number}", {"gpu_ms": 100}, 0)
    assert len(journal.holds()) == 20
    books.renew(89_999)
    assert len(journal.holds()) == 20
    books.renew(90_000)
    assert not journal.holds()
    assert not books._meters
    journal.close()
    engine.close()


def test_what_was_told_of_a_jobs_own_account_is_forgotten_with_it() -> None:
    nothing: Any = None
    limits = Limits(Settings(), nothing, nothing, nothing, tell=lambda _: None, start_ms=0)
    kept = as_job("acme/run-1", 0)
    kept.own_account = True
    for account in ("acme", "acme/run-1"):
        limits._warn(lg.Balance(account=account, unit="usd_nanos", limit=10, spent=9))
    limits.forget(kept)
    assert [account for account, *_ in limits._shares] == ["acme"]


@as_root
def test_a_process_that_may_not_be_signalled_is_told_of_as_such() -> None:
    command = ["sh", "-c", "sleep 60 & echo $!; wait"]
    with subprocess.Popen(command, user=65533, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        held = ProcessTable().hold(int(parent.stdout.readline()))
        assert held is not None
        os.seteuid(65534)
        try:
            refusal = signals.Rules(other_users=True).refusal(
                held, uid=65533, family=signals.own_family()
            )
        finally:
            os.seteuid(0)
        assert "does not let the sidecar signal" in refusal
        assert (
            signals.Rules(other_users=True).refusal(held, uid=65533, family=signals.own_family())
            == ""
        )
        signals.send(held, signal.SIGKILL)
