"""Messages of ProcessService to models. Pure: no calls, no state.

A name that a newer sidecar sends becomes UNKNOWN, so that a watch does not end over it.
"""

from collections.abc import Callable
from enum import StrEnum
from typing import TypeVar

from google.protobuf.message import Message

from bursar import processes
from bursar._convert import amounts, moment
from bursar.v1 import process_pb2 as pr

E = TypeVar("E", bound=StrEnum)


def _member(kind: type[E], name: Callable[[int], str], value: int, *, prefix: str = "STATE_") -> E:
    """Reads a member of an enum, whose values are the proto's names in lower case."""
    try:
        return kind(name(value).removeprefix(prefix).lower())
    except ValueError:
        return kind("unknown")


def _optional(parent: Message, name: str) -> int | None:
    return getattr(parent, name) if parent.HasField(name) else None


def job(wire: pr.Job) -> processes.Job:
    """Reads a job."""
    return processes.Job(
        id=wire.id,
        name=wire.name,
        account=wire.account,
        pid=wire.pid,
        uid=wire.uid,
        cgroup=wire.cgroup,
        limits=amounts(wire.limits),
        wall_limit_ms=wire.wall_limit.ToMilliseconds() if wire.HasField("wall_limit") else None,
        enforce=wire.enforce,
        term_grace_ms=wire.term_grace.ToMilliseconds(),
        create_time=moment(wire, "create_time"),
    )


def watchdog(wire: pr.Watchdog) -> processes.WatchdogStatus:
    """Reads what the watchdog can see."""
    return processes.WatchdogStatus(
        state=_member(processes.WatchdogState, pr.Watchdog.State.Name, wire.state),
        detail=wire.detail,
        mode=wire.mode,
        sample_time=moment(wire, "sample_time"),
        driver_version=wire.driver_version,
        held_back=wire.held_back,
    )


def device(wire: pr.Device) -> processes.Device:
    """Reads a device."""
    return processes.Device(
        uuid=wire.uuid,
        index=wire.index,
        name=wire.name,
        vram_total_bytes=wire.vram_total_bytes or None,
        vram_used_bytes=_optional(wire, "vram_used_bytes"),
        busy_percent=_optional(wire, "busy_percent"),
        vram_quarantined_bytes=wire.vram_quarantined_bytes,
        error=wire.error,
    )


def process(wire: pr.Process) -> processes.Process:
    """Reads a process."""
    name = pr.Process.Source.Name
    source = _member(processes.ProcessSource, name, wire.source, prefix="SOURCE_")
    return processes.Process(
        pid=wire.pid,
        command=wire.command,
        uid=wire.uid,
        account=wire.account,
        source=source if wire.source else None,
        job=wire.job,
        device=wire.device,
        vram_bytes=_optional(wire, "vram_bytes"),
        busy_percent=_optional(wire, "busy_percent"),
        state=_incident_state(wire.state) if wire.state else None,
    )


def listing(wire: pr.ListProcessesResponse) -> processes.Processes:
    """Reads everything at the last sample."""
    return processes.Processes(
        watchdog=watchdog(wire.watchdog),
        devices=tuple(device(one) for one in wire.devices),
        processes=tuple(process(one) for one in wire.processes),
        jobs=tuple(job(one) for one in wire.jobs),
        metered={one.account: amounts(one.amounts) for one in wire.metered},
    )


def _incident_state(value: int) -> processes.IncidentState:
    return _member(processes.IncidentState, pr.Incident.State.Name, value)


def incident(wire: pr.Incident) -> processes.Incident:
    """Reads an incident."""
    name = pr.Incident.Cause.Name
    return processes.Incident(
        id=wire.id,
        state=_incident_state(wire.state),
        account=wire.account,
        job=wire.job,
        job_name=wire.job_name,
        cause=_member(processes.IncidentCause, name, wire.cause, prefix="CAUSE_"),
        limit_account=wire.limit_account,
        unit=wire.unit,
        limit=wire.limit,
        used=wire.used,
        reason=wire.reason,
        steps=tuple(
            processes.IncidentStep(_incident_state(one.state), moment(one, "time"), one.detail)
            for one in wire.steps
        ),
        victims=tuple(
            processes.Victim(one.pid, one.command, one.vram_bytes) for one in wire.victims
        ),
        vram_bytes=wire.vram_bytes,
        vram_returned_bytes=wire.vram_returned_bytes,
        vram_quarantined_bytes=wire.vram_quarantined_bytes,
        create_time=moment(wire, "create_time"),
        end_time=moment(wire, "end_time"),
    )


def event(wire: pr.WatchProcessesResponse) -> processes.ProcessEvent:
    """Reads something that happened."""
    name = pr.WatchProcessesResponse.Kind.Name
    return processes.ProcessEvent(
        time=moment(wire, "time"),
        kind=_member(processes.ProcessEventKind, name, wire.kind, prefix="KIND_"),
        account=wire.account,
        detail=wire.detail,
        job=job(wire.job) if wire.HasField("job") else None,
        incident=incident(wire.incident) if wire.HasField("incident") else None,
        watchdog=watchdog(wire.watchdog) if wire.HasField("watchdog") else None,
    )
