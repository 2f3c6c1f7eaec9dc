"""The doctor's look at the host: what it lets the watchdog do. Needs no daemon.

It looks as the daemon would, so it tells the truth for the user and the cgroup that it is called
in. Nothing stays changed: a cgroup is made for a moment, and a signal that does nothing is sent to
this process.
"""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bursar.care.findings import Finding, Outcome
from bursar.watchdog import cgroups
from bursar.watchdog.poller import Poller
from bursar.watchdog.processes import in_host_pid_namespace
from bursar.watchdog.samples import Health

if TYPE_CHECKING:
    from bursar.watchdog.samples import Sample

__all__ = ["look"]

_CAP_KILL: Final = 5  # linux/capability.h
_CAP_SYS_PTRACE: Final = 19
_POLL_S: Final = 0.01


def look() -> list[Finding]:
    """Looks at everything; takes a few seconds at most."""
    return [*_gpus(_sample()), _namespace(), _cgroup(), _cap_kill(), _programs(), _pidfd()]


def _sample() -> "Sample":
    poller = Poller()
    try:
        poller.ask()
        while (sample := poller.take()) is None:  # the poller has a deadline
            time.sleep(_POLL_S)
    finally:
        poller.close()
    return sample


def _gpus(sample: "Sample") -> Iterator[Finding]:
    if sample.health is Health.NO_NVML:
        extra = "pip install 'bursar-sidecar[gpu]'"
        advice = f"on a host with GPUs, install NVIDIA's driver and the extra: {extra}"
        yield Finding("NVML", Outcome.WARN, f"not there: {sample.detail}", advice)
        return
    if sample.health is not Health.WATCHING:
        advice = (
            "see whether nvidia-smi answers; after an update of the driver, reboot or reload it"
        )
        yield Finding("NVML", Outcome.WARN, sample.detail, advice)
        return
    count = len(sample.devices)
    counted = "1 GPU or instance" if count == 1 else f"{count} GPUs or instances"
    yield Finding("NVML", Outcome.OK, f"answers, and counts {counted}")
    yield Finding("driver", Outcome.OK, sample.driver_version or "its version is not known")
    lost = [f"GPU {one.index}, {one.uuid}: {one.error}" for one in sample.devices if one.error]
    if lost:
        yield Finding("GPUs", Outcome.WARN, "; ".join(lost), "reset or replace them")
    blind = [one.uuid for one in sample.devices if not one.error and one.processes is None]
    if sample.detail or blind:
        detail = sample.detail or f"not there on {', '.join(blind)}"
        advice = "nobody is stopped by them: use a driver that this version of bursar knows"
        yield Finding("process lists", Outcome.WARN, detail, advice)
    elif any(one.processes for one in sample.devices):
        yield Finding("process lists", Outcome.OK, "their layout is known and can be trusted")
    else:
        detail = "empty; their layout is checked with the first process"
        yield Finding("process lists", Outcome.OK, detail)


def _namespace() -> Finding:
    if in_host_pid_namespace():
        return Finding("pid namespace", Outcome.OK, "the host's")
    advice = "run the sidecar in the host's: hostPID: true, or docker run --pid=host"
    detail = "not the host's: nobody is known on the GPUs, and only registered jobs are enforced"
    return Finding("pid namespace", Outcome.WARN, detail, advice)


def _cgroup() -> Finding:
    try:
        cgroups.remove(cgroups.make("doctor"))
    except OSError as error:
        advice = (
            "run jobs where cgroups are delegated: systemd-run --user --scope -p Delegate=yes "
            "bursar run …; else they are kept together by descent"
        )
        return Finding("cgroup v2", Outcome.WARN, f"no job's can be made: {error}", advice)
    return Finding("cgroup v2", Outcome.OK, "a job's can be made below this one")


def _has(capability: int) -> bool:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    effective = next(one.split()[1] for one in status.splitlines() if one.startswith("CapEff:"))
    return bool(int(effective, 16) >> capability & 1)


def _cap_kill() -> Finding:
    if _has(_CAP_KILL):
        return Finding("CAP_KILL", Outcome.OK, "held: jobs of every user can be stopped")
    detail = f"not held: only jobs of user {os.getuid()} can be stopped"
    advice = "for other users' jobs, run the sidecar as root or with AmbientCapabilities=CAP_KILL"
    return Finding("CAP_KILL", Outcome.WARN, detail, advice)


def _programs() -> Finding:
    what = "CAP_SYS_PTRACE"
    if _has(_CAP_SYS_PTRACE):
        return Finding(what, Outcome.OK, "held: protected programs are known by their files")
    detail = (
        "not held: of other users' processes only the names are seen, so that one which calls "
        "itself as a protected program does is left alone"
    )
    advice = (
        "where users do not trust each other, add it to AmbientCapabilities; with it, every "
        "process's memory can be read as well"
    )
    return Finding(what, Outcome.WARN, detail, advice)


def _pidfd() -> Finding:
    try:
        pidfd = os.pidfd_open(os.getpid())
        try:
            signal.pidfd_send_signal(pidfd, 0)
        finally:
            os.close(pidfd)
    except OSError as error:
        advice = (
            "use Linux 5.3 or later, and a sandbox that allows pidfd_open and pidfd_send_signal"
        )
        detail = f"not supported, so nothing can be stopped: {error.strerror}"
        return Finding("pidfd", Outcome.BROKEN, detail, advice)
    return Finding("pidfd", Outcome.OK, "supported: a signal cannot reach the wrong process")
