"""The registered jobs, and which processes belong to each.

A job is a process that was registered and everything that it starts. With a cgroup of its own, the
kernel says who that is. Without, it is the descent from its process, which adopts its orphans where
the launcher made it; who was once found to belong to a job stays with it, so `find` looks for them
before they are needed. Who has left its parents between two looks is found by nobody: only a cgroup
helps there. Nothing in here signals.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Final

from bursar.v1 import process_pb2 as pb
from bursar.watchdog import cgroups
from bursar.watchdog.processes import (
    Children,
    Held,
    ProcessTable,
    all_children,
    ancestors,
    descendants,
)

__all__ = ["JOBS_MAX", "Jobs", "Kept"]

JOBS_MAX: Final = 10_000
"""The most jobs that are registered at once."""
FOUND_MAX: Final = 4096
"""The most processes of a job without a cgroup that are remembered; the latest go without."""


@dataclass(slots=True)
class Kept:
    """A job and what is known of it beyond what it was registered with.

    Attributes:
        job: The job as callers see it.
        start_ticks: When its process started; with the pid, who it is.
        cgroup_inode: What its cgroup's folder was at registration; 0 without one.
        own_account: Whether its account was made for it and retires with it.
        reservation: The client's own hold of VRAM that covers it; empty: none.
        start_boot_ms: When it was registered, by CLOCK_BOOTTIME: its wall time counts from then.
        boot: The boot that it belongs to.
        found: Processes that were once found to descend from its process.
        noted: Those of them that the journal has.
    """

    job: pb.Job
    start_ticks: int
    cgroup_inode: int
    own_account: bool
    reservation: str
    start_boot_ms: int
    boot: str
    found: set[tuple[int, int]] = field(default_factory=set)
    noted: set[tuple[int, int]] = field(default_factory=set, compare=False)

    @property
    def named_account(self) -> str:
        """The account that it was registered for: its own, or the one above its own."""
        return self.job.account.rpartition("/")[0] if self.own_account else self.job.account

    @property
    def has_group(self) -> bool:
        """Whether its cgroup is there: one of the same name that was made since is another."""
        return bool(self.job.cgroup) and cgroups.inode(self.job.cgroup) == self.cgroup_inode


class Jobs:
    """The jobs by id, by process, and by cgroup."""

    def __init__(self, table: ProcessTable) -> None:
        self._table = table
        self._by_id: dict[str, Kept] = {}
        self._by_root: dict[tuple[int, int], Kept] = {}
        self._by_group: dict[str, Kept] = {}
        self._children: Children | None = None

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Kept]:
        return iter(list(self._by_id.values()))

    def look_anew(self) -> None:
        """Forgets who descends from whom: of all jobs, the next that asks looks at /proc again."""
        self._children = None

    def get(self, job_id: str) -> Kept | None:
        """The job of that id."""
        return self._by_id.get(job_id)

    def add(self, kept: Kept) -> None:
        """Takes a job in."""
        self._by_id[kept.job.id] = kept
        self._by_root[kept.job.pid, kept.start_ticks] = kept
        if kept.job.cgroup:
            self._by_group[kept.job.cgroup] = kept

    def remove(self, kept: Kept) -> None:
        """Forgets a job."""
        del self._by_id[kept.job.id]
        self._by_root.pop((kept.job.pid, kept.start_ticks), None)
        if kept.job.cgroup:
            self._by_group.pop(kept.job.cgroup, None)

    def of_process(self, held: Held) -> Kept | None:
        """The job that was registered with this process."""
        return self._by_root.get(held.identity)

    def of_group(self, path: str | None) -> Kept | None:
        """The job whose cgroup this is, or is above it."""
        while path:
            kept = self._by_group.get(path)
            if kept is not None and kept.has_group:
                return kept
            path = path.rpartition("/")[0]
        return None

    def of_ancestor(self, held: Held) -> Kept | None:
        """The job of the nearest ancestor that has one; else the one that it was found in."""
        line = [held.pid, *ancestors(held.pid)]
        found = {one: kept for kept in self._by_id.values() for one in kept.found}
        for known in (self._by_root, found):
            pids = {pid for pid, _ in known}
            for pid in line:
                one = self._table.hold(pid) if pid in pids else None
                if (
                    one is not None
                    and one.identity in known
                    and self._table.is_alive(*one.identity)
                ):
                    return known[one.identity]
        return None

    def find(self) -> list[Kept]:
        """Looks for the processes of all jobs without a cgroup: one look at /proc, holding nobody.

        Returns:
            The jobs with processes that are to be written down: after a restart, nothing else may
            lead to them.
        """
        jobs = [kept for kept in self._by_id.values() if not kept.job.cgroup]
        if not jobs:
            return []
        children = self._look()
        alive = {(one.pid, one.start_ticks) for found in children.values() for one in found}
        grown = []
        for kept in jobs:
            roots = {*kept.found, (kept.job.pid, kept.start_ticks)} & alive
            found = roots | descendants((pid for pid, _ in roots), children)
            if len(found) > FOUND_MAX:
                found = set(sorted(found, key=itemgetter(1))[:FOUND_MAX])
            if not found <= kept.noted:
                grown.append(kept)
                kept.noted = found
            kept.found = found
        return grown

    def _look(self) -> Children:
        if self._children is None:
            self._children = all_children()
        return self._children

    def members(self, kept: Kept, also: Iterable[Held] = ()) -> list[Held]:
        """The processes of a job that live now, as far as can be seen.

        Args:
            kept: The job.
            also: Further processes that were attributed to it, such as those that NVML lists.
        """
        # By identity, not by pid: who was listed may have ended, and a stranger have its pid.
        found = {one.identity for one in also}
        if kept.has_group:
            inside = self._group(kept)
            found |= inside
            if (kept.job.pid, kept.start_ticks) not in inside:  # it has ended, or has moved out
                found |= self._descendants(kept)
        else:
            found |= self._descendants(kept)
        alive = self._table.alive(found)
        if not kept.job.cgroup:
            kept.found = {one.identity for one in alive}
        return sorted(alive, key=lambda one: one.pid)

    def _group(self, kept: Kept) -> set[tuple[int, int]]:
        """Who is in the job's cgroup, and still is once it is held."""
        held = [self._table.hold(pid) for pid in cgroups.members(kept.job.cgroup)]
        return {
            one.identity
            for one in held
            if one is not None and cgroups.is_inside(kept.job.cgroup, one.pid)
        }

    def _descendants(self, kept: Kept) -> set[tuple[int, int]]:
        roots = {identity for identity in kept.found if self._table.is_alive(*identity)}
        if self._table.is_alive(kept.job.pid, kept.start_ticks):
            roots.add((kept.job.pid, kept.start_ticks))
        if not roots:
            return roots
        return roots | descendants((pid for pid, _ in roots), self._look())

    def is_ended(self, kept: Kept) -> bool:
        """Whether nothing of a job lives any more. Cheap while its process lives."""
        if self._table.is_alive(kept.job.pid, kept.start_ticks):
            return False
        if kept.has_group:
            return cgroups.is_empty(kept.job.cgroup)
        return not self.members(kept)
