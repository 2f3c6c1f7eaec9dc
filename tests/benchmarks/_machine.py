"""The machine that is measured on: what it is, what else runs on it, and where processes run.

Reads /proc only. Times are in clock ticks, of which there are 100 a second.
"""

import os
import platform
import time
from contextlib import suppress
from pathlib import Path

QUIET_SHARE = 0.15  # of the CPUs measured: with more, somebody else decides the figures
QUIET_WAIT_S = 3.0
SETTLE_WAIT_S = 60.0


def describe() -> str:
    """The machine in a line."""
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        if line.startswith("model name")
    ]
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    name = names[0] if names else platform.machine()
    kernel = ".".join(platform.release().split(".")[:2])
    return f"{len(cpus())} x {name}, {memory_gib:.0f} GiB, Linux {kernel}"


def cpus() -> list[int]:
    """The CPUs that this process may use."""
    return sorted(os.sched_getaffinity(0))


def pin(pid: int, to: list[int]) -> None:
    """Keeps every thread of a process, and those that it starts from now on, on these CPUs."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(ProcessLookupError):  # a thread may end meanwhile
            os.sched_setaffinity(int(task.name), to)


def used_ticks(pid: int) -> int:
    """The CPU time of a process so far."""
    stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    user, system = stat[stat.rindex(")") + 1 :].split()[11:13]
    return int(user) + int(system)


def busy_ticks(on: list[int]) -> int:
    """What anybody has used of these CPUs so far, time stolen by the hypervisor included."""
    busy = 0
    for line in Path("/proc/stat").read_text(encoding="utf-8").splitlines():
        name, *fields = line.split()
        if name.startswith("cpu") and name != "cpu" and int(name[3:]) in on:
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields[:8])
            busy += user + nice + system + irq + softirq + steal
    return busy


class Foreign:
    """How much of some CPUs others use, from its making to `share`."""

    def __init__(self, on: list[int], own: list[int]) -> None:
        self._on, self._own = on, own
        self._since = time.monotonic()
        self._busy, self._used = busy_ticks(on), self._own_ticks()

    def _own_ticks(self) -> int:
        ended = os.times()  # the children that have ended: the load
        ticks = (ended.children_user + ended.children_system) * 100
        return round(ticks) + sum(map(used_ticks, self._own))

    def share(self) -> float:
        """The share of these CPUs that processes other than our own have used."""
        busy = busy_ticks(self._on) - self._busy - (self._own_ticks() - self._used)
        passed = (time.monotonic() - self._since) * 100 * len(self._on)
        return max(0.0, busy / passed)


def wait_until_quiet(on: list[int], own: list[int]) -> None:
    """Waits a while for others to let go of the CPUs."""
    deadline = time.monotonic() + QUIET_WAIT_S
    while time.monotonic() < deadline:
        foreign = Foreign(on, own)
        time.sleep(0.2)
        if foreign.share() <= QUIET_SHARE:
            return


def settle(pids: list[int]) -> float:
    """Waits until our servers have nothing left to do in the background; returns for how long."""
    begin = last = time.monotonic()
    used = sum(map(used_ticks, pids))
    while time.monotonic() - begin < SETTLE_WAIT_S:
        time.sleep(0.1)
        now_used = sum(map(used_ticks, pids))
        if now_used - used > len(pids):
            used, last = now_used, time.monotonic()
        elif time.monotonic() - last > 0.4:
            break
        else:
            used = now_used
    return last - begin
