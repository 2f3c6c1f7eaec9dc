"""What an incident remembers, asks and writes: bounded, once, and still known after a restart."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import pytest
from support.cast import Cast

from bursar.v1 import ledger_pb2 as lg
from bursar.v1 import process_pb2 as pb
from bursar.watchdog import cases as module
from bursar.watchdog import limits as limits_module
from bursar.watchdog import processes, signals
from bursar.watchdog.cases import Cases
from bursar.watchdog.escalation import Patience, Phase, Standing
from bursar.watchdog.gpus import View, as_job
from bursar.watchdog.journal import Case, Journal
from bursar.watchdog.limits import Limits
from bursar.watchdog.processes import Held, ProcessTable, nvidia_holders
from bursar.watchdog.samples import GpuProcess
from bursar.watchdog.settings import Settings

NOTHING: Final[Any] = None


class Bench:
    """Cases with a journal in memory, and books that freeze nobody."""

    def __init__(self) -> None:
        self.journal = Journal(None)
        self.books: Any = SimpleNamespace(freeze=lambda *_: None, unfreeze=lambda *_: None)
        self.open()

    def open(self) -> None:
        """Begins anew from the journal."""
        self.cases = Cases(
            self.books,
            self.journal,
            signals.Rules(),
            Patience(term_grace_ms=0),
            per_account=2,
            per_host=3,
            tell=lambda _: None,
        )

    def stop(
        self,
        account: str,
        members: list[Held],
        *,
        forbidden: str = "",
        now_ms: int,
        view: View | None = None,
    ) -> Case:
        """Opens an incident of an account."""
        incident = pb.Incident(cause=pb.Incident.CAUSE_OPERATOR)
        about: dict[str, Any] = {"forbidden": forbidden, "now_ms": now_ms}
        return self.cases.open(as_job(account, 0), incident, view or View(), members, **about)


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.journal.close()


@pytest.fixture(scope="module")
def sleepers() -> Iterator[list[Held]]:
    table = ProcessTable()
    with Cast() as cast:
        names = ("a", "a-child", "a-grandchild", "b", "b-child")
        yield [held for name in names if (held := table.hold(cast.pids[name])) is not None]
    table.close()


def test_the_ancestors_of_the_sidecar_are_looked_up_once_for_all_members(
    bench: Bench, sleepers: list[Held], monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[int] = []

    def look(pid: int) -> Iterator[int]:
        looked.append(pid)
        return processes.ancestors(pid)

    monkeypatch.setattr(signals, "ancestors", look)
    case = bench.stop("acme", sleepers, now_ms=0)
    kept = as_job("acme", 0)
    targets, refusals = bench.cases._sort(case, kept, sleepers)
    assert (targets, refusals) == (sleepers, [])
    assert len(looked) == 1


def test_of_a_crowd_those_on_gpus_are_remembered_and_named_first(
    bench: Bench, sleepers: list[Held], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the memory of who comes after the crowd would never be asked for again."""
    monkeypatch.setattr(module, "VICTIMS_MAX", 2)
    monkeypatch.setattr(module, "NAMED_MAX", 1)
    *crowd, early, late = sleepers
    found = {one.pid: [("GPU-0", GpuProcess(one.pid, "C", 7))] for one in (early, late)}
    view = View(by_pid=found)
    case = bench.stop("acme", [*crowd, early], now_ms=0, view=view)
    bench.cases._move(case, case.standing, view, [late])
    assert {early.identity, late.identity} < case.victims
    assert len(case.victims) == 3
    assert case.incident.vram_bytes == 14
    assert [one.pid for one in case.incident.victims] == [early.pid]


def test_who_ends_while_it_is_looked_at_is_no_reason_not_to_signal_the_others(
    bench: Bench, sleepers: list[Held]
) -> None:
    table = ProcessTable()
    with subprocess.Popen(["/bin/sleep", "60"]) as process:
        held = table.hold(process.pid)
        assert held is not None
        process.kill()
        process.wait()
    case, kept = bench.stop("acme", sleepers, now_ms=0), as_job("acme", 0)
    assert bench.cases._sort(case, kept, [*sleepers, held]) == (sleepers, [])
    assert bench.cases._sort(case, kept, [held]) == ([], [])
    table.close()


def test_each_step_is_written_once_also_that_of_the_kill(
    bench: Bench, sleepers: list[Held], monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[tuple[Phase, int]] = []
    real = bench.journal.save_case
    sent: list[int] = []

    def save(case: Case) -> None:
        saved.append((case.standing.phase, len(case.killed)))
        real(case)

    monkeypatch.setattr(bench.journal, "save_case", save)
    monkeypatch.setattr(signals, "send", lambda held, number: sent.append(number))
    case = bench.stop("acme", sleepers, now_ms=0)
    for now_ms in (1, 2):
        about: dict[str, Any] = {"over": True, "forbidden": "", "now_ms": now_ms}
        bench.cases.advance(case, as_job("acme", 0), View(), sleepers, **about)
    assert saved == [(Phase.BREACH, 0), (Phase.TERM, 0), (Phase.KILL, 5)]
    assert sent == [15] * 5 + [9] * 5


def test_an_incident_names_so_many_victims_and_remembers_all(
    bench: Bench, sleepers: list[Held], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "NAMED_MAX", 2)
    case = bench.stop("acme", sleepers, now_ms=0)
    assert [one.pid for one in case.incident.victims] == [one.pid for one in sleepers[:2]]
    assert case.victims == {one.identity for one in sleepers}


def test_the_largest_incident_is_far_smaller_than_a_page(bench: Bench) -> None:
    command = "\N{ROCKET}" * 120
    incident = pb.Incident(reason="x" * 512)
    for pid in range(module.NAMED_MAX):
        incident.victims.add(pid=2**31 - 1 - pid, command=command, vram_bytes=2**62)
    for _ in range(module.STEPS_MAX):
        incident.steps.add(detail=command * 8)
    assert incident.ByteSize() < 400_000


def test_how_many_were_acted_on_is_known_from_the_journal(bench: Bench) -> None:
    bench.stop("a", [], now_ms=1_000)
    bench.stop("a", [], forbidden="a rule", now_ms=1_500)
    bench.stop("a", [], now_ms=2_000)
    boot = processes.boot_id()
    for now_ms, limited in ((601_000, "1"), (600_999, "2")):
        bench.open()
        bench.cases.recover(list(bench.journal.recent(boot, now_ms - 600_000)))
        said = bench.cases.is_limited("a", now_ms)
        assert said == ("" if limited == "1" else "2 incidents of a within ten minutes")
    assert not bench.cases.is_limited("b", 600_999)
    bench.stop("b", [], now_ms=3_000)
    bench.open()
    bench.cases.recover(list(bench.journal.recent(boot, 0)))
    assert "3 incidents on this host" in bench.cases.is_limited("c", 4_000)


def some_limits() -> Limits:
    nobody: Any = SimpleNamespace(is_limited=lambda *_: "too often")
    return Limits(Settings(enforce=True), NOTHING, NOTHING, nobody, tell=lambda _: None, start_ms=0)


def test_the_breaker_is_open_for_as_long_after_what_it_held_back_last() -> None:
    limits = some_limits()
    limits._breaker_until_ms = 1
    why = limits.held_back(0)
    assert why

    def case(opened_ms: int, forbidden: str) -> Case:
        return Case(pb.Incident(), Standing(Phase.OBSERVED, 0), "b", opened_ms, forbidden=forbidden)

    limits.recover([case(9_000, "a rule"), case(5_000, why), case(1_000, why)])
    assert limits.held_back(604_999)
    assert not limits.held_back(605_000)
    limits.recover([case(9_000, "a rule")])
    assert not limits.held_back(0)


def test_who_is_left_alone_is_forgotten_in_time_though_nobody_says_that_it_ended() -> None:
    limits = some_limits()
    for number in range(100):
        kept = as_job(f"pods/{number}", 0)
        limits.rest(kept, pb.Incident(), Phase.OBSERVED, 100_000 * number)
    assert len(limits._quiet) == 6


def test_shares_are_remembered_for_so_many_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits_module, "_SHARES_MAX", 3)
    limits = some_limits()
    for number in range(10):
        limits._warn(lg.Balance(account=f"pods/{number}", unit="gpu_ms", limit=10, spent=9))
    assert [account for account, *_ in limits._shares] == ["pods/7", "pods/8", "pods/9"]


def test_looking_for_holders_is_bounded_in_time_and_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = tmp_path / "gpu0"
    device.touch()
    monkeypatch.setattr(processes, "_NVIDIA", str(tmp_path / "gpu"))
    with ExitStack() as stack:
        for _ in range(12):
            file = stack.enter_context(device.open("rb"))
            one = stack.enter_context(subprocess.Popen(["/bin/sleep", "60"], stdin=file))
            stack.callback(one.kill)
            file.close()
        assert nvidia_holders(but=()) == [], "our own children read NVML for us"
        monkeypatch.setattr(os, "getpid", lambda: 0)
        found = nvidia_holders(but={one.pid})
        assert len(found) == 8
        assert found[0].startswith("/bin/sleep 60 (pid ")
        assert not any(str(one.pid) in text for text in found)
        monkeypatch.setattr(processes, "_HOLDERS_S", -1)
        assert nvidia_holders(but=()) == []
