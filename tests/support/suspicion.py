"""A watchdog whose signals go nowhere, and a plain statement of whom it may signal.

The watchdog is the real one, from the sample to the border: in place of the two system calls that
end processes there is a recorder, which asks the statement at once. The ledger is canned.
"""

import os
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import pytest

from bursar.v1 import ledger_pb2 as lg
from bursar.v1 import process_pb2 as pb
from bursar.watchdog import cgroups, loop
from bursar.watchdog.books import Over
from bursar.watchdog.cases import GPU_UNITS
from bursar.watchdog.gpus import is_container
from bursar.watchdog.jobs import Kept
from bursar.watchdog.journal import Case
from bursar.watchdog.loop import Watchdog
from bursar.watchdog.processes import Held
from bursar.watchdog.samples import Health, Sample
from bursar.watchdog.settings import Settings
from support.cast import Cast

PROTECTED_NAMES: Final = frozenset({"a-sshd", "mixed-sshd"})
POD_PATH: Final = f"/kubepods.slice/pod/cri-containerd-{'e' * 64}.scope"


class WronglySignalled(AssertionError):
    """Somebody was signalled who may not be."""


class Nowhere:
    """Stands in for the server: takes every event."""

    def publish_process_event(self, _: bytes) -> None:
        """Takes an event."""

    def set_gpu_processes(self, _: object) -> None:
        """Takes who is on the GPUs."""


class CannedBooks:
    """Says what it was told to say of limits."""

    def __init__(self, *_: object) -> None:
        self.over: dict[str, Over] = {}
        self.spent: dict[str, tuple[str, int, int]] = {}
        self.unknown: dict[str, None] = {}
        self.occupied: set[str] = set()

    def occupy(self, account: str, size: int, _: int) -> Over | None:
        """Over, if so told, for whoever has memory."""
        return self.over.get(account) if size else None

    def windows(self, accounts: Iterable[str]) -> list[lg.Balance]:
        """One window of each account that something is spent of."""
        found = []
        for account in accounts:
            if account in self.spent:
                unit, limit, spent = self.spent[account]
                found.append(lg.Balance(account=account, unit=unit, limit=limit, spent=spent))
        return found

    def is_spent(self, account: str, unit: str) -> bool:
        """Whether its window, if it has one, is used up."""
        return all(one.spent >= one.limit for one in self.windows([account]) if one.unit == unit)

    def seen(self, account: str) -> list[lg.Balance]:
        """The window of an account."""
        return self.windows([account])

    def freeze(self, *_: object) -> bool:
        """Freezes nothing."""
        return True

    def retire(self, *_: object) -> bool:
        """Retires nothing."""
        return True

    def vram_of(self, _: object) -> int:
        """Nobody holds anything."""
        return 0

    held_bytes = vram_of

    def recover(self, *_: object, **__: object) -> None:
        """There is nothing to take over."""

    spend = unfreeze = settle = renew = close = look_anew = recover


@dataclass
class Truth:
    """What is so, by what the test has made: nothing in here asks the watchdog.

    Attributes:
        now_ms: The time.
        members: Who belongs to each job, by its id: pids that are known by identity.
        open_ended: Jobs of processes that the test has not made: whoever descends from them.
        grouped: The jobs that the kernel keeps together.
        strangers_in: Pids that the kernel says are in a job's cgroup, and only a rule keeps out.
        ghosts: Pids whose process at the last sample has ended, and which are another's now.
        seen: The last sample.
        mps: Who used a GPU through MPS when every device could last be read, or since.
        started_ms: When the watchdog started.
        acted: When somebody was first signalled: by incident, with its account.
    """

    now_ms: int = 10_000_000
    members: dict[str, set[int]] = field(default_factory=dict)
    open_ended: dict[str, int] = field(default_factory=dict)
    grouped: set[str] = field(default_factory=set)
    strangers_in: dict[int, str] = field(default_factory=dict)
    ghosts: dict[int, Held] = field(default_factory=dict)
    seen: Sample | None = None
    mps: set[int] = field(default_factory=set)
    started_ms: int = 0
    acted: dict[int, tuple[int, str]] = field(default_factory=dict)
    tried: int = 0


class Suspicion:
    """A watchdog in a scenario, and the recorder in place of its signals.

    Args:
        cast: The processes.
        settings: How it behaves.
        namespaced: Whether it is to think that it is not in the host's pid namespace.
    """

    def __init__(self, cast: Cast, settings: Settings, *, namespaced: bool) -> None:
        self.cast = cast
        self.settings = settings
        self.namespaced = namespaced
        self.truth = Truth()
        self.truth.started_ms = self.truth.now_ms
        self.current: tuple[Case, Kept] | None = None
        self.watchdog = Watchdog(Nowhere(), settings, journal_path=None, say=lambda *_, **__: None)  # type: ignore[arg-type]

    @contextmanager
    def watching(self, patch: pytest.MonkeyPatch) -> Iterator[None]:
        """Puts the border in place, and opens the watchdog."""
        patch.setattr(loop, "Books", CannedBooks)
        patch.setattr(loop, "boot_ms", lambda: self.truth.now_ms)
        patch.setattr(signal, "pidfd_send_signal", self._send)
        patch.setattr(cgroups, "kill", self._kill)
        patch.setattr(cgroups, "members", self._members(cgroups.members))
        patch.setattr(cgroups, "path_of", self._path_of(cgroups.path_of))
        dog: Any = self.watchdog
        dog._open()
        dog._is_namespaced = self.namespaced
        real = dog.cases.advance

        def advance(case: Case, kept: Kept, *rest: Any, **named: Any) -> None:
            self.current = case, kept
            real(case, kept, *rest, **named)

        dog.cases.advance = advance
        try:
            yield
        finally:
            dog.journal.close()
            dog.table.close()

    def _members(self, real: Any) -> Any:
        def members(path: str) -> list[int]:
            said = self.truth.strangers_in.items()
            return [*real(path), *(pid for pid, inside in said if inside == path)]

        return members

    def _path_of(self, real: Any) -> Any:
        def path_of(pid: int) -> str | None:
            if pid == self.cast.pids["pod"]:
                return POD_PATH
            found: str | None = self.truth.strangers_in.get(pid) or real(pid)
            return found

        return path_of

    def see(self, sample: Sample, ghosts: dict[int, Held], job: Kept | None) -> None:
        """Takes a sample in; ghosts are processes of a job whose pids are others' from then on."""
        dog: Any = self.watchdog
        real, table = dog.table.hold, dog.table

        def hold(pid: int, start: int | None = None) -> Held | None:
            held: Held | None = ghosts.get(pid) if start is None else None
            return held or real(pid, start)

        if job is not None:
            for ghost in ghosts.values():
                dog.attributor._known[ghost.identity] = dog.attributor._of_job(
                    ghost, job, pb.Process.SOURCE_ANCESTOR
                )
        table.hold = hold
        self.truth.seen = sample
        readable = [one.processes for one in sample.devices if one.processes is not None]
        if sample.health is Health.WATCHING and len(readable) == len(sample.devices):
            self.truth.mps.clear()
        self.truth.mps -= ghosts.keys()  # who had one's pid before is another
        self.truth.mps |= {
            one.pid
            for processes in readable
            for one in processes
            if "M" in one.contexts and one.pid not in ghosts and not self.namespaced
        }
        try:
            dog._see(sample)
        finally:
            del table.hold

    def age(self, ns: int) -> None:
        """Lets so much time go by without a sample."""
        dog: Any = self.watchdog
        view = dog.gpus.view
        if view.sample is not None:
            self.truth.seen = replace(view.sample, time_ns=view.sample.time_ns - ns)
            dog.gpus.view = replace(view, sample=self.truth.seen)

    def look(self) -> None:
        """One look at everything."""
        dog: Any = self.watchdog
        dog.jobs.look_anew()
        dog._look()

    def kill(self, kept: Kept) -> None:
        """An operator asks for a job's end."""
        incident = pb.Incident(cause=pb.Incident.CAUSE_OPERATOR, reason="asked")
        self.watchdog.jobs.look_anew()
        if self.watchdog.cases.of_job(kept.job.id) is None:
            self.watchdog.stop_job(kept, incident, self.truth.now_ms)

    def _send(self, pidfd: int, number: int) -> None:
        text = Path(f"/proc/self/fdinfo/{pidfd}").read_text(encoding="ascii")
        pid = next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pid:"))
        # Zero asks whether one may, and sends nothing; a process that has gone (-1) hears nothing.
        if number and pid > 0:
            self._judge(pid, number)

    def _kill(self, path: str) -> None:
        for pid in cgroups.members(path):
            self._judge(pid, signal.SIGKILL)

    def _judge(self, pid: int, number: int) -> None:
        self.truth.tried += 1
        assert self.current is not None
        if wrong := self.why_not(pid, number, *self.current):
            name = self.cast.name_of(pid) or "somebody"
            raise WronglySignalled(f"{name}, pid {pid}, was sent signal {number}: {wrong}")

    def why_not(self, pid: int, number: int, case: Case, kept: Kept) -> str:
        """Why a process may not be signalled for an incident; empty: it may."""
        wrongs = (*self._who(pid, kept), *self._whether(case, kept, number))
        return "; ".join(wrongs)

    def _who(self, pid: int, kept: Kept) -> Iterator[str]:
        """What is wrong with the process."""
        truth, cast = self.truth, self.cast
        name = cast.name_of(pid)
        by_descent = kept.job.id not in truth.grouped and not is_container(kept.job.id)
        if pid <= 2:
            yield "the system's"
        if pid in lineage(os.getpid()):
            yield "the daemon or an ancestor"
        if parent_of(pid) in {2, os.getpid()}:
            yield "a kernel thread or the sampler"
        is_of_root = cast.is_root and name in PROTECTED_NAMES
        if is_of_root or (name == "a-served" and self.settings.protect):
            yield "protected"
        is_member = pid in truth.members.get(kept.job.id, ()) or (
            truth.open_ended.get(kept.job.id) in lineage(pid)
        )
        if not is_member and truth.strangers_in.get(pid, "-") != kept.job.cgroup:
            yield f"not of the job {kept.job.id}"
        if by_descent and not self.settings.other_users and owner_of(pid) != kept.job.uid:
            yield "another user's"

    def _whether(self, case: Case, kept: Kept, number: int) -> Iterator[str]:
        """What is wrong with the incident."""
        truth, settings, incident = self.truth, self.settings, case.incident
        rows = {one.number: one for one in self.watchdog.journal.open_cases()}
        phase = rows[case.number].standing.phase.name if case.number in rows else "nothing"
        if phase != ("KILL" if number == signal.SIGKILL else "TERM"):
            yield f"the journal says {phase}"
        first = case.number not in truth.acted
        truth.acted.setdefault(case.number, (truth.now_ms, incident.account))
        if incident.cause == pb.Incident.CAUSE_OPERATOR:
            return
        if is_container(kept.job.id) and not settings.signal_containers:
            yield "a container's"
        if truth.mps & truth.members.get(kept.job.id, set()):
            yield "a client of MPS"
        if not kept.job.enforce and not settings.enforce:
            yield "the mode is observe"
        if incident.cause == pb.Incident.CAUSE_BUDGET:
            yield from self._budget(case, kept, first=first)

    def _budget(self, case: Case, kept: Kept, *, first: bool) -> Iterator[str]:
        truth, incident = self.truth, case.incident
        if incident.unit not in GPU_UNITS:
            if not kept.job.enforce:
                yield "not a GPU's limit"
            return
        decided = case.standing.since_ms == truth.now_ms
        if decided and (wrong := self._stale()):
            yield wrong
        if not kept.job.enforce and first and (wrong := self._too_often(incident.account)):
            yield wrong

    def _stale(self) -> str:
        seen = self.truth.seen
        if seen is None or seen.health is not Health.WATCHING:
            return "the GPUs are not seen"
        age_ms = (time.monotonic_ns() - seen.time_ns) / 1_000_000
        if age_ms > 2 * max(self.settings.period_ms, 500) + 200:
            return f"the sample is {age_ms:.0f} ms old"
        if self.truth.now_ms - self.truth.started_ms < self.settings.settle_ms:
            return "the watchdog has just started"
        return ""

    def _too_often(self, account: str) -> str:
        since = self.truth.now_ms - 600_000
        recent = [whose for when, whose in self.truth.acted.values() if when > since]
        if len(recent) > self.settings.incidents_per_host:
            return "too many on this host"
        if recent.count(account) > self.settings.incidents_per_account:
            return "too many of the account"
        return ""


def stat_of(pid: int) -> list[str]:
    """The fields of a process's stat after its name."""
    return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()


def parent_of(pid: int) -> int:
    """The parent of a process."""
    return int(stat_of(pid)[1])


def start_of(pid: int) -> int:
    """When a process started."""
    return int(stat_of(pid)[19])


def owner_of(pid: int) -> int:
    """The effective user of a process."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("Uid:"):
            return int(line.split()[2])
    raise AssertionError("every status has a user")


def lineage(pid: int) -> set[int]:
    """A process and its ancestors."""
    found = set()
    while pid > 0:
        found.add(pid)
        pid = parent_of(pid)
    return found
