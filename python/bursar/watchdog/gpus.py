"""What a sample says once it is known whose each process is. Plain values; asks nobody."""

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from bursar.v1 import process_pb2 as pb
from bursar.watchdog.attribution import Attribution
from bursar.watchdog.jobs import Kept
from bursar.watchdog.processes import Held
from bursar.watchdog.samples import GpuProcess, Health, Sample

__all__ = ["Gpus", "View", "account_of", "container_id", "is_container"]

_CONTAINER: Final = "container:"
_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class View:
    """The GPUs as they were last seen.

    Attributes:
        sample: The latest sample; None: there was none yet.
        by_pid: Who is on which device: pid → (device uuid, process); empty where NVML's pids are
            another namespace's, and would name the wrong processes here.
        is_stale: Whether the sample is too old to act on.
        disputed: Pids that NVML may list for a process that has ended, while another one has the
            pid by now: they are nobody's until NVML has once not listed them.
    """

    sample: Sample | None = None
    by_pid: Mapping[int, Sequence[tuple[str, GpuProcess]]] = field(default_factory=dict)
    is_stale: bool = True
    disputed: set[int] = field(default_factory=set)

    @classmethod
    def of(cls, sample: Sample, *, knows_pids: bool = True) -> "View":
        """The view of a sample that has just come; one that saw nothing is not fit to act on."""
        by_pid: dict[int, list[tuple[str, GpuProcess]]] = {}
        for device in sample.devices if knows_pids else ():
            for process in device.processes or ():
                by_pid.setdefault(process.pid, []).append((device.uuid, process))
        return cls(sample, by_pid, is_stale=sample.health is not Health.WATCHING)

    def has_mps(self, pid: int) -> bool:
        """Whether a process uses a GPU through MPS."""
        return any("M" in process.contexts for _, process in self.by_pid.get(pid, ()))

    @property
    def is_whole(self) -> bool:
        """Whether every device could be read."""
        return self.sample is not None and self.sees(one.uuid for one in self.sample.devices)

    def sees(self, devices: Iterable[str]) -> bool:
        """Whether these devices could be read, so that absence from their lists means something."""
        if self.sample is None or self.sample.health is not Health.WATCHING:
            return False
        readable = {one.uuid for one in self.sample.devices if one.processes is not None}
        return readable.issuperset(devices)


@dataclass(slots=True)
class Gpus:
    """Whose the processes on the GPUs are, and what each job has there.

    What belongs to an account without a job, such as a container, goes by an id of its own; see
    `container_id`.

    Attributes:
        view: The GPUs as they were last seen.
        whose: Whose each process is, by pid.
        held: The processes that could be held, by pid.
        vram_by_job: Bytes on all devices, by job.
        pids_by_job: Processes, by job.
        devices_by_job: Devices, by job.
        mps: The processes that use a GPU through MPS, as far as was last seen of every device.
    """

    view: View = field(default_factory=View)
    whose: dict[int, Attribution] = field(default_factory=dict)
    held: dict[int, Held] = field(default_factory=dict)
    vram_by_job: dict[str, int] = field(default_factory=dict)
    pids_by_job: dict[str, set[int]] = field(default_factory=dict)
    devices_by_job: dict[str, set[str]] = field(default_factory=dict)
    mps: set[tuple[int, int]] = field(default_factory=set)

    def after(
        self,
        view: View,
        hold: Callable[[int], Held | None],
        whose: Callable[[Held], Attribution],
    ) -> "Gpus":
        """Finds out whose the processes are in the view after this one.

        Args:
            view: The GPUs.
            hold: Holds a process.
            whose: Says whose a process is.
        """
        gpus = Gpus(view)
        for pid in view.by_pid:
            held = hold(pid)
            if held is None:
                continue
            if self.held.get(pid) is not held and self._is_disputed(held):
                view.disputed.add(pid)
            else:
                gpus.held[pid] = held
                gpus.whose[pid] = whose(held)
                gpus._count(pid, gpus.whose[pid])
                if view.has_mps(pid):
                    gpus.mps.add(held.identity)
        for pid, start_ticks in () if view.is_whole else self.mps:
            before = hold(pid)
            if before is not None and before.start_ticks == start_ticks:
                gpus.mps.add(before.identity)
        return gpus

    def _is_disputed(self, held: Held) -> bool:
        """Whether a pid was listed before the process that has it now had started."""
        if held.pid not in self.view.by_pid:
            return False
        if held.pid in self.view.disputed:
            return True
        sampled_ns = self.view.sample.time_ns if self.view.sample else 0
        asleep_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - time.monotonic_ns()
        started_ns = held.start_ticks * (1_000_000_000 // _TICKS_PER_S)
        return started_ns > sampled_ns + asleep_ns

    def _count(self, pid: int, whose: Attribution) -> None:
        if not whose.account:
            return
        job = whose.job_id or container_id(whose.account)
        if job not in self.pids_by_job:
            self.pids_by_job[job], self.devices_by_job[job] = set(), set()
            self.vram_by_job[job] = 0
        self.pids_by_job[job].add(pid)
        devices, size = self.devices_by_job[job], 0
        for uuid, process in self.view.by_pid[pid]:
            devices.add(uuid)
            size += process.vram_bytes or 0
        self.vram_by_job[job] += size

    def containers(self, term_grace_ms: int) -> list[Kept]:
        """The accounts without a job that have processes here, each as if it were a job."""
        accounts = sorted(account_of(job) for job in self.pids_by_job if is_container(job))
        return [as_job(account, term_grace_ms) for account in accounts]


def as_job(account: str, term_grace_ms: int) -> Kept:
    """What is on the GPUs for an account without a job, as if it were one."""
    job = pb.Job(id=container_id(account), name="container", account=account, uid=-1)
    job.term_grace.FromMilliseconds(term_grace_ms)
    return Kept(
        job=job,
        start_ticks=0,
        cgroup_inode=0,
        own_account=False,
        reservation="",
        start_boot_ms=0,
        boot="",
    )


def container_id(account: str) -> str:
    """The id of what is on the GPUs for an account without a job."""
    return f"{_CONTAINER}{account}"


def account_of(container: str) -> str:
    """The account that such an id was made of."""
    return container.removeprefix(_CONTAINER)


def is_container(job_id: str) -> bool:
    """Whether an id is one of those."""
    return job_id.startswith(_CONTAINER)
