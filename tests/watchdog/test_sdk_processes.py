"""The process calls of both clients against a server of our own making."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from support.processes import (
    BREACH_TIME,
    GIB,
    JOB,
    LISTING,
    FakeWatchdog,
    at,
    incident,
    serving,
)

import bursar
from bursar.v1 import ledger_pb2
from bursar.v1 import process_pb2 as pr


@pytest.fixture
def fake() -> FakeWatchdog:
    return FakeWatchdog()


@pytest.fixture
def target(fake: FakeWatchdog, tmp_path: Path) -> Iterator[str]:
    with serving(fake, f"unix:{tmp_path}/s") as address:
        yield address


@dataclass
class Caller:
    """Runs a method of the client named by the test's parameter; a listing comes as a list."""

    target: str
    asynchronous: bool

    def __call__(self, method: str, *args: Any, **kwargs: Any) -> Any:
        if self.asynchronous:
            return asyncio.run(self._awaited(method, args, kwargs))
        with bursar.connect(self.target) as client:
            answer = getattr(client, method)(*args, **kwargs)
            return list(answer) if isinstance(answer, Iterator) else answer

    async def _awaited(self, method: str, args: Any, kwargs: Any) -> Any:
        async with bursar.connect_async(self.target) as client:
            answer = getattr(client, method)(*args, **kwargs)
            if isinstance(answer, Coroutine):
                return await answer
            return [one async for one in answer]


@pytest.fixture(params=["sync", "async"])
def call(request: pytest.FixtureRequest, target: str) -> Caller:
    return Caller(target, asynchronous=request.param == "async")


def test_a_process_is_registered_with_all_that_was_said(call: Caller, fake: FakeWatchdog) -> None:
    fake.answers["RegisterProcess"] = [pr.RegisterProcessResponse(job=JOB)]
    job = call(
        "register_process",
        "acme/x",
        pid=4321,
        name="train",
        limits={"vram_bytes": 8 * GIB},
        wall_limit_s=7200,
        cgroup="bursar/j1",
        enforce=True,
        term_grace_s=0.5,
        reservation="r1",
    )
    assert job == bursar.Job(
        id="j1",
        name="train",
        account="acme/x/j1",
        pid=4321,
        uid=1000,
        cgroup="bursar/j1",
        limits={"vram_bytes": 8 * GIB},
        wall_limit_ms=7_200_000,
        enforce=True,
        term_grace_ms=5_000,
        create_time=BREACH_TIME - timedelta(minutes=1),
    )
    assert fake.requests == [
        pr.RegisterProcessRequest(
            account="acme/x",
            pid=4321,
            name="train",
            limits=[{"unit": "vram_bytes", "value": 8 * GIB}],
            wall_limit={"seconds": 7200},
            cgroup="bursar/j1",
            enforce=True,
            term_grace={"nanos": 500_000_000},
            reservation="r1",
        )
    ]


def test_by_default_the_caller_is_registered_without_limits(
    call: Caller, fake: FakeWatchdog
) -> None:
    fake.answers["RegisterProcess"] = [pr.RegisterProcessResponse(job=pr.Job(id="j2"))]
    job = call("register_process", "acme")
    assert (job.id, job.limits, job.wall_limit_ms, job.create_time) == ("j2", {}, None, None)
    assert fake.requests == [pr.RegisterProcessRequest(account="acme")]


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("REASON_BUDGET_EXHAUSTED", bursar.BudgetExceeded),
        ("REASON_ACCOUNT_FROZEN", bursar.AccountFrozen),
    ],
)
def test_a_refusal_raises_as_that_of_reserve(
    call: Caller, fake: FakeWatchdog, reason: str, expected: type[bursar.BudgetError]
) -> None:
    refusal = ledger_pb2.Refusal(
        reason=reason,
        account="acme",
        unit="vram_bytes",
        shortfall=5,
    )
    fake.answers["RegisterProcess"] = [
        pr.RegisterProcessResponse(verdict="VERDICT_STOP", refusal=refusal)
    ]
    with pytest.raises(expected) as caught:
        call("register_process", "acme/x", limits={"vram_bytes": 7})
    assert caught.value.account == "acme"
    if isinstance(caught.value, bursar.BudgetExceeded):
        assert (caught.value.shortfall, caught.value.requested) == (5, 7)


@pytest.mark.parametrize(
    ("code", "reason", "expected"),
    [
        ("NOT_FOUND", "PROCESS_NOT_FOUND", bursar.ProcessNotFound),
        ("FAILED_PRECONDITION", "PROCESS_PROTECTED", bursar.ProcessProtected),
        ("UNAVAILABLE", "WATCHDOG_UNAVAILABLE", bursar.WatchdogUnavailable),
        ("RESOURCE_EXHAUSTED", "JOB_LIMIT_REACHED", bursar.LimitReached),
    ],
)
def test_an_error_of_the_watchdog_is_told_once_by_its_reason(
    call: Caller, fake: FakeWatchdog, code: str, reason: str, expected: type[bursar.BursarError]
) -> None:
    fake.failure = (grpc.StatusCode[code], reason)
    with pytest.raises(expected, match="what happened") as caught:
        call("kill_process", job="j1")
    assert (caught.value.reason, caught.value.code) == (reason, code)
    assert len(fake.requests) == 1


def test_what_is_not_told_is_none_and_never_zero(call: Caller, fake: FakeWatchdog) -> None:
    fake.answers["ListProcesses"] = [LISTING]
    found = call("list_processes", "acme")
    assert fake.requests == [pr.ListProcessesRequest(account="acme")]
    assert found.watchdog == bursar.WatchdogStatus(
        state=bursar.WatchdogState.WATCHING,
        detail="",
        mode="observe",
        sample_time=BREACH_TIME,
        driver_version="580.82",
        held_back="",
    )
    seen, lost = found.devices
    assert (seen.vram_total_bytes, seen.vram_used_bytes, seen.busy_percent) == (
        80 * GIB, 20 * GIB, 37,
    )  # fmt: skip
    assert (lost.vram_total_bytes, lost.vram_used_bytes, lost.busy_percent) == (None, None, None)
    trainer, nobody, _ = found.processes
    assert (trainer.source, trainer.state) == (
        bursar.ProcessSource.CGROUP,
        bursar.IncidentState.TERM,
    )
    assert (nobody.account, nobody.source, nobody.state) == ("", None, None)
    assert (nobody.vram_bytes, nobody.busy_percent) == (None, None)
    assert [job.id for job in found.jobs] == ["j1"]


def test_what_was_metered_is_told_by_account_and_meter(call: Caller, fake: FakeWatchdog) -> None:
    fake.answers["ListProcesses"] = [
        pr.ListProcessesResponse(
            metered=[
                {"account": "acme/x", "amounts": [{"unit": "gpu_alloc_ms", "value": 7}]},
                {"amounts": [{"unit": "host_idle_mj", "value": 9}]},
            ]
        )
    ]
    expected = {"acme/x": {"gpu_alloc_ms": 7}, "": {"host_idle_mj": 9}}
    assert call("list_processes").metered == expected


def test_zero_bytes_and_idle_are_told_apart_from_unknown(call: Caller, fake: FakeWatchdog) -> None:
    idle = pr.Process(pid=5, device="GPU-1", vram_bytes=0, busy_percent=0)
    fake.answers["ListProcesses"] = [pr.ListProcessesResponse(processes=[idle])]
    [process] = call("list_processes").processes
    assert (process.vram_bytes, process.busy_percent) == (0, 0)


def test_a_kill_answers_with_the_incident(call: Caller, fake: FakeWatchdog) -> None:
    fake.answers["KillProcess"] = [pr.KillProcessResponse(incident=incident())]
    told = call("kill_process", pid=4321, reason="why")
    assert fake.requests == [pr.KillProcessRequest(pid=4321, reason="why")]
    assert (told.id, told.state, told.cause) == (
        "i1",
        bursar.IncidentState.RECLAIMED,
        bursar.IncidentCause.BUDGET,
    )
    assert told.steps[1] == bursar.IncidentStep(
        bursar.IncidentState.TERM, BREACH_TIME + timedelta(milliseconds=12), "SIGTERM to 1 process"
    )
    assert told.victims == (bursar.Victim(4321, "python train.py", 19 * GIB // 2),)
    assert (told.limit, told.used) == (8 * GIB, 19 * GIB // 2)
    assert told.ended


@pytest.mark.parametrize("state", [one for one in bursar.IncidentState if one != "unknown"])
def test_an_incident_has_ended_unless_a_step_is_to_come(
    call: Caller, fake: FakeWatchdog, state: bursar.IncidentState
) -> None:
    wire = incident(1, state=f"STATE_{state.name}")
    fake.answers["KillProcess"] = [pr.KillProcessResponse(incident=wire)]
    told = call("kill_process", job="j1")
    assert told.state is state
    assert told.ended == (state.value not in {"breach", "term", "kill", "verify"})


def test_incidents_are_read_page_by_page(call: Caller, fake: FakeWatchdog) -> None:
    fake.answers["ListIncidents"] = [
        pr.ListIncidentsResponse(incidents=[incident(id="i3"), incident(id="i2")])
        if token == ""
        else pr.ListIncidentsResponse(incidents=[incident()])
        for token in ("", "next")
    ]
    fake.answers["ListIncidents"][0].next_page_token = "next"  # noqa: S105 -- no password
    told = call("list_incidents", "acme", job="j1", page_size=2)
    assert [one.id for one in told] == ["i3", "i2", "i1"]
    assert fake.requests == [
        pr.ListIncidentsRequest(account="acme", job="j1", page_size=2, page_token=token)
        for token in ("", "next")
    ]


def test_a_watch_yields_events_with_what_belongs_to_them(call: Caller, fake: FakeWatchdog) -> None:
    fake.events = [
        pr.WatchProcessesResponse(time=at(0), kind="KIND_JOB_REGISTERED", account="acme", job=JOB),
        pr.WatchProcessesResponse(kind="KIND_INCIDENT", incident=incident(2)),
        pr.WatchProcessesResponse(kind="KIND_WATCHDOG", watchdog=LISTING.watchdog),
        pr.WatchProcessesResponse(kind="KIND_ALARM", detail="a gap"),
    ]
    told = call("watch_processes", "acme")
    assert [one.kind.value for one in told] == ["job_registered", "incident", "watchdog", "alarm"]
    assert (told[0].time, told[0].account, told[0].job.id) == (BREACH_TIME, "acme", "j1")
    assert (told[0].incident, told[0].watchdog) == (None, None)
    assert told[1].incident.state is bursar.IncidentState.TERM
    assert told[2].watchdog.mode == "observe"
    assert told[3].detail == "a gap"


def test_what_a_newer_sidecar_names_is_unknown_and_not_an_error(
    call: Caller, fake: FakeWatchdog
) -> None:
    # Written as bytes: the constructors refuse numbers that have no name.
    newer = pr.Incident.FromString(b"\x10\x63\x30\x63")  # fields 2 and 6: 99
    process = pr.Process.FromString(b"\x28\x63\x50\x63")  # fields 5 and 10: 99
    watchdog = pr.Watchdog.FromString(b"\x08\x63")
    event = pr.WatchProcessesResponse.FromString(b"\x10\x63")
    event.incident.CopyFrom(newer)
    fake.events = [event]
    fake.answers["ListProcesses"] = [
        pr.ListProcessesResponse(processes=[process], watchdog=watchdog)
    ]
    [told] = call("watch_processes")
    assert told.kind is bursar.ProcessEventKind.UNKNOWN
    assert told.incident.state is bursar.IncidentState.UNKNOWN
    assert told.incident.cause is bursar.IncidentCause.UNKNOWN
    assert not told.incident.ended
    found = call("list_processes")
    assert found.watchdog.state is bursar.WatchdogState.UNKNOWN
    [read] = found.processes
    assert read.source is bursar.ProcessSource.UNKNOWN
    assert read.state is bursar.IncidentState.UNKNOWN


@pytest.mark.parametrize(
    ("kind", "wire", "prefix"),
    [
        (bursar.IncidentState, pr.Incident.State, "STATE_"),
        (bursar.IncidentCause, pr.Incident.Cause, "CAUSE_"),
        (bursar.ProcessSource, pr.Process.Source, "SOURCE_"),
        (bursar.WatchdogState, pr.Watchdog.State, "STATE_"),
        (bursar.ProcessEventKind, pr.WatchProcessesResponse.Kind, "KIND_"),
    ],
)
def test_every_name_of_the_proto_has_a_member(kind: Any, wire: Any, prefix: str) -> None:
    names = {name.removeprefix(prefix) for name in wire.keys()}  # noqa: SIM118 -- an enum wrapper
    assert {one.name for one in kind} == names - {"UNSPECIFIED"} | {"UNKNOWN"}


WRONG: dict[str, Callable[[bursar.Client], Any]] = {
    "no job and no pid": lambda c: c.kill_process(),
    "a job and a pid": lambda c: c.kill_process(job="j", pid=1),
    "a pid below zero": lambda c: c.kill_process(pid=-1),
    "a pid that is none": lambda c: c.register_process("acme", pid=2**31),
    "a pid as a text": lambda c: c.register_process("acme", pid="7"),  # type: ignore[arg-type]
    "a negative limit": lambda c: c.register_process("acme", limits={"tokens": -1}),
    "no time at all": lambda c: c.register_process("acme", wall_limit_s=0),
    "a grace of ages": lambda c: c.register_process("acme", term_grace_s=1e30),
    "a surrogate in a name": lambda c: c.register_process("acme", name="\ud800"),
    "a surrogate in a reason": lambda c: c.kill_process(job="j", reason="\ud800"),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_input_is_refused_before_it_is_sent(
    target: str, fake: FakeWatchdog, what: str
) -> None:
    with bursar.connect(target) as client, pytest.raises(bursar.InvalidRequest):
        WRONG[what](client)
    assert fake.requests == []


def test_an_embedded_ledger_has_nothing_to_watch() -> None:
    with bursar.open() as client, pytest.raises(bursar.WatchdogUnavailable):
        next(client.watch_processes())
