"""What the process calls answer: frozen dataclasses, free of wire types.

None means that the driver, or the sidecar, does not tell; it is never the same as zero. Times are
aware datetimes in UTC. Nothing here calls anything.
"""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final

__all__ = [
    "Device",
    "Incident",
    "IncidentCause",
    "IncidentState",
    "IncidentStep",
    "Job",
    "Process",
    "ProcessEvent",
    "ProcessEventKind",
    "ProcessSource",
    "Processes",
    "Victim",
    "WatchdogState",
    "WatchdogStatus",
]


class WatchdogState(StrEnum):
    """Whether the GPUs can be seen."""

    UNKNOWN = "unknown"
    """What this client does not know."""
    WATCHING = "watching"
    """The latest sample is fresh."""
    NO_NVML = "no_nvml"
    """There is no NVML library or no driver: jobs are enforced, GPUs are not watched."""
    BLIND = "blind"
    """NVML does not answer as it should: what the GPUs do is unknown."""


class ProcessSource(StrEnum):
    """How the account of a process is known."""

    UNKNOWN = "unknown"
    """What this client does not know."""
    CGROUP = "cgroup"
    """It is in the cgroup of a job."""
    REGISTERED = "registered"
    """It is the process of a job."""
    ANCESTOR = "ancestor"
    """It descends from the process of a job."""
    CONTAINER = "container"
    """It is in a pod or container that the configuration maps to an account."""


class IncidentState(StrEnum):
    """Where an escalation is."""

    UNKNOWN = "unknown"
    """What this client does not know."""
    BREACH = "breach"
    """The limit is passed; nothing is signalled yet."""
    TERM = "term"
    """SIGTERM was sent; the grace period runs."""
    KILL = "kill"
    """SIGKILL was sent; the processes have not ended yet."""
    VERIFY = "verify"
    """The processes have ended; NVML still lists some of them."""
    RECLAIMED = "reclaimed"
    """It has ended, and its VRAM is back."""
    UNVERIFIED = "unverified"
    """It has ended; NVML cannot be asked whether its VRAM is back."""
    RECLAIM_FAILED = "reclaim_failed"
    """It has ended and its VRAM has not come back: those bytes are quarantined."""
    UNKILLABLE = "unkillable"
    """A process survives SIGKILL: its bytes are quarantined."""
    CANCELLED = "cancelled"
    """It came back under the limit before it was killed."""
    OBSERVED = "observed"
    """It would have been stopped, but nothing is signalled: by the mode, a rule or a limit."""


class IncidentCause(StrEnum):
    """Why a job was stopped."""

    UNKNOWN = "unknown"
    """What this client does not know."""
    BUDGET = "budget"
    """A budget of the account or an ancestor is spent, or its VRAM is passed."""
    WALL_TIME = "wall_time"
    """It ran longer than it may."""
    OPERATOR = "operator"
    """Somebody asked for it."""


class ProcessEventKind(StrEnum):
    """What `watch_processes` saw happen."""

    UNKNOWN = "unknown"
    """What this client does not know."""
    JOB_REGISTERED = "job_registered"
    """A job was registered."""
    JOB_ENDED = "job_ended"
    """A job has ended."""
    SOFT_LIMIT = "soft_limit"
    """An account has passed 80, 90 or 95 % of a limit."""
    INCIDENT = "incident"
    """An incident is in another state."""
    WATCHDOG = "watchdog"
    """The watchdog sees the GPUs, or no longer does."""
    ALARM = "alarm"
    """Something that a person should look at."""


@dataclass(frozen=True, slots=True)
class Job:
    """A registered process with everything that it starts.

    Attributes:
        id: An opaque name.
        name: What people call it.
        account: The account that pays: the one that was named, or the job's own below it.
        pid: The process that was registered.
        uid: The user that it ran as when it was registered.
        cgroup: The cgroup v2 that holds the job and nothing else; empty: none.
        limits: The limits of the job alone.
        wall_limit_ms: How long it may run, in milliseconds; None: as long as it wants.
        enforce: Whether it is stopped at a hard limit of any unit, also in mode "observe".
        term_grace_ms: From SIGTERM to SIGKILL, in milliseconds.
        create_time: When it was registered.
    """

    id: str
    name: str
    account: str
    pid: int
    uid: int
    cgroup: str
    limits: dict[str, int]
    wall_limit_ms: int | None
    enforce: bool
    term_grace_ms: int
    create_time: datetime | None


@dataclass(frozen=True, slots=True)
class WatchdogStatus:
    """What the watchdog can see.

    Attributes:
        state: Whether the GPUs can be seen.
        detail: Why not, or what is limited; for a person to read.
        mode: "observe" or "enforce".
        sample_time: When the latest sample was taken; None: never.
        driver_version: The driver's version, where it is known.
        held_back: Why nobody is signalled for now, in any mode; empty: nothing holds it back.
    """

    state: WatchdogState
    detail: str
    mode: str
    sample_time: datetime | None
    driver_version: str
    held_back: str


@dataclass(frozen=True, slots=True)
class Device:
    """One GPU, or one MIG instance of it.

    Attributes:
        uuid: What identifies it; the index may move.
        index: NVML's index at the last sample.
        name: The product's name.
        vram_total_bytes: Memory in all; None: unknown.
        vram_used_bytes: Memory in use as the device tells it; None: it does not.
        busy_percent: How busy it is; None: unknown.
        vram_quarantined_bytes: Bytes that did not come back after a stop and are not sold again.
        error: Why it is not seen now; empty: it is.
    """

    uuid: str
    index: int
    name: str
    vram_total_bytes: int | None
    vram_used_bytes: int | None
    busy_percent: int | None
    vram_quarantined_bytes: int
    error: str


@dataclass(frozen=True, slots=True)
class Process:
    """A process on a GPU, or a job without one.

    Attributes:
        pid: The process id, in the host's namespace.
        command: The first words of its command, as the process chose them.
        uid: Who it runs as.
        account: The account that pays; empty: unattributed, metered and never signalled.
        source: How that is known; None: nobody says whose it is.
        job: The id of its job, or empty.
        device: The UUID of the device; empty: it has none.
        vram_bytes: Its bytes on the device; None: the driver does not tell.
        busy_percent: How busy it keeps the device; None: unknown.
        state: Where the incident of its account is; None: none is open.
    """

    pid: int
    command: str
    uid: int
    account: str
    source: ProcessSource | None
    job: str
    device: str
    vram_bytes: int | None
    busy_percent: int | None
    state: IncidentState | None


@dataclass(frozen=True, slots=True)
class Processes:
    """Everything at the last sample.

    Attributes:
        watchdog: What the watchdog can see.
        devices: The GPUs in the order of their index.
        processes: One for each process and device, and one for each job without a GPU.
        jobs: The jobs, the oldest first.
        metered: What each account has used since the watchdog started, by meter: gpu_alloc_ms (a
            context is held), gpu_busy_ms (measured), gpu_estimated_ms (not measured, but divided),
            vram_mib_s, energy_mj. Under "": what is nobody's, and host_idle_mj.
    """

    watchdog: WatchdogStatus
    devices: tuple[Device, ...]
    processes: tuple[Process, ...]
    jobs: tuple[Job, ...]
    metered: dict[str, dict[str, int]]


@dataclass(frozen=True, slots=True)
class IncidentStep:
    """One step of an escalation: the state that was reached, when, and what happened."""

    state: IncidentState
    time: datetime | None
    detail: str


@dataclass(frozen=True, slots=True)
class Victim:
    """A process that was to be stopped, with its bytes on all devices at that time."""

    pid: int
    command: str
    vram_bytes: int


_OPEN: Final = frozenset(
    {
        IncidentState.UNKNOWN,
        IncidentState.BREACH,
        IncidentState.TERM,
        IncidentState.KILL,
        IncidentState.VERIFY,
    }
)


@dataclass(frozen=True, slots=True)
class Incident:
    """One job that was stopped, or would have been.

    Attributes:
        id: An opaque name.
        state: Where the escalation is.
        account: The account whose job it is.
        job: The id of the job.
        job_name: What people call the job.
        cause: Why it was stopped.
        limit_account: For BUDGET: the account whose limit was passed, its own or an ancestor.
        unit: For BUDGET: the unit.
        limit: What was allowed, in the unit; milliseconds for WALL_TIME.
        used: What was used.
        reason: Why, for a person to read.
        steps: Everything that happened, in order.
        victims: The processes that were to be stopped; the first 100 of them.
        vram_bytes: The bytes that the victims had.
        vram_returned_bytes: The bytes of them that have come back.
        vram_quarantined_bytes: The bytes of them that are not sold again until they come back.
        create_time: When the breach was seen.
        end_time: When the escalation ended; None: it has not.
    """

    id: str
    state: IncidentState
    account: str
    job: str
    job_name: str
    cause: IncidentCause
    limit_account: str
    unit: str
    limit: int
    used: int
    reason: str
    steps: tuple[IncidentStep, ...]
    victims: tuple[Victim, ...]
    vram_bytes: int
    vram_returned_bytes: int
    vram_quarantined_bytes: int
    create_time: datetime | None
    end_time: datetime | None

    @property
    def ended(self) -> bool:
        """Whether nothing more is going to happen."""
        return self.end_time is not None or self.state not in _OPEN


@dataclass(frozen=True, slots=True)
class ProcessEvent:
    """Something that happened to a job, an incident or the GPUs.

    Attributes:
        time: When.
        kind: What happened.
        account: The account, or empty.
        detail: What happened, for a person to read.
        job: For JOB_REGISTERED and JOB_ENDED; else None.
        incident: For INCIDENT; else None.
        watchdog: For WATCHDOG; else None.
    """

    time: datetime | None
    kind: ProcessEventKind
    account: str
    detail: str
    job: Job | None
    incident: Incident | None
    watchdog: WatchdogStatus | None
