"""Never signalled, whatever goes wrong: whoever is not provably the job's, by any fault injected.

Everything is real but NVML, the ledger and the two system calls that end processes: real trees of
processes, real cgroups where they can be made, pids that were reused, lists full of other pids,
stale and blind samples. That the property can fail is shown by switching the rules off, one by one.
"""

import os
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import pytest
from support.cast import PEOPLE, Cast
from support.daemon import LONG, new_seed
from support.suspicion import Suspicion, WronglySignalled, owner_of, parent_of, start_of

from bursar.v1 import process_pb2 as pb
from bursar.watchdog import cases, cgroups, gpus, limits, processes, signals
from bursar.watchdog.attribution import ContainerRule
from bursar.watchdog.books import Over
from bursar.watchdog.jobs import Jobs, Kept
from bursar.watchdog.journal import Journal
from bursar.watchdog.processes import Held
from bursar.watchdog.samples import DeviceSample, GpuProcess, Health, Sample
from bursar.watchdog.settings import Settings

TRIES: Final = 12_000 if LONG else 200
TRIES_FOR_A_PLANT: Final = 3_000
NAMES: Final = sorted(PEOPLE)
GPU: Final = "GPU-0"
ROOTS: Final = ("a", "a-child", "b", "group", "mixed")
ACCOUNTS: Final = ("acme", "acme/x", "other")
POD_ACCOUNT: Final = "pods/all"
UNITS: Final = ("gpu_ms", "vram_mib_s", "energy_mj", "tokens", "usd_nanos")
SECOND: Final = 1_000_000_000


@pytest.fixture(scope="module")
def cast() -> Iterator[Cast]:
    """The processes, the same for all tests: nobody is signalled."""
    with Cast() as made:
        yield made
        missing = [name for name, pid in made.pids.items() if not Path(f"/proc/{pid}").exists()]
        assert not missing, "the border leaks"


@dataclass
class Player:
    """Plays one scenario out of a stream of random numbers."""

    cast: Cast
    rng: random.Random

    def __post_init__(self) -> None:
        rng = self.rng
        self.kept: list[Kept] = []
        self.settings = Settings(
            enforce=rng.random() < 0.7,
            vram_patience_ms=rng.choice([0, 3000]),
            settle_ms=rng.choice([0, 0, 30_000]),
            term_grace_ms=rng.choice([0, 10_000]),
            protect=rng.choice([(), ("my-.*",)]),
            other_users=rng.random() < 0.2,
            signal_containers=rng.random() < 0.5,
            containers=(ContainerRule(re.compile("kubepods"), POD_ACCOUNT),),
            incidents_per_account=rng.choice([1, 3]),
            incidents_per_host=rng.choice([1, 10]),
        )
        self.scene = Suspicion(self.cast, self.settings, namespaced=rng.random() < 0.1)

    def play(self) -> int:
        """Plays; returns how many signals were judged."""
        with pytest.MonkeyPatch.context() as patch, self.scene.watching(patch):
            self._register()
            for _ in range(self.rng.randint(2, 7)):
                self._turn()
        return self.scene.truth.tried

    def _register(self) -> None:
        rng, truth, cast = self.rng, self.scene.truth, self.cast
        truth.members[f"container:{POD_ACCOUNT}"] = {cast.pids["pod"]}
        roots = rng.sample(ROOTS, rng.randint(1, 3))
        if rng.random() < 0.1 and os.getppid() > 1:
            roots.append("parent")
        for root in roots:
            kept = self._made(root)
            self._know(root, kept)
            self.kept.append(kept)
            self.scene.watchdog.register(kept)

    def _made(self, root: str) -> Kept:
        """A job, which may have lost its process or its cgroup to another one."""
        rng, cast = self.rng, self.cast
        pid = os.getppid() if root == "parent" else cast.pids[root]
        path = cast.groups.get(root, "") if rng.random() < 0.8 else ""
        lost_group = bool(path) and rng.random() < 0.2
        if cast.groups and root in {"a", "b"} and rng.random() < 0.2:
            path, lost_group = cast.groups["group"], True
        job = pb.Job(
            id=f"j-{root}",
            name=root,
            account=rng.choice(ACCOUNTS),
            pid=pid,
            uid=rng.choice([owner_of(pid)] * 4 + [-1]),
            cgroup=path,
            enforce=rng.random() < 0.4,
        )
        job.term_grace.FromMilliseconds(rng.choice([0, 2_000]))
        if rng.random() < 0.15:
            job.wall_limit.FromMilliseconds(rng.choice([1, 5_000]))
        found = rng.sample(NAMES, 2) if rng.random() < 0.3 else []
        return Kept(
            job=job,
            start_ticks=start_of(pid) - (rng.random() < 0.15),
            cgroup_inode=(cgroups.inode(path) if path else 0) + lost_group,
            own_account=False,
            reservation="",
            start_boot_ms=self.scene.truth.now_ms,
            boot=processes.boot_id(),
            # They were found once, have ended since, and their pids are others'.
            found={(cast.pids[one], start_of(cast.pids[one]) - 1) for one in found},
        )

    def _know(self, root: str, kept: Kept) -> None:
        """Notes who belongs to a job in truth."""
        rng, truth, cast = self.rng, self.scene.truth, self.cast
        pid, path = kept.job.pid, kept.job.cgroup
        members = truth.members[kept.job.id] = set()
        if root == "parent":
            if kept.start_ticks == start_of(pid):
                truth.open_ended[kept.job.id] = pid
            return
        family = {cast.pids[one] for one in cast.below(root)}
        if path and cgroups.inode(path) == kept.cgroup_inode:
            truth.grouped.add(kept.job.id)
            members |= family
            if rng.random() < 0.5:
                truth.strangers_in |= dict.fromkeys(rng.sample(self._others(), 2), path)
        elif kept.start_ticks == start_of(pid):
            members |= family

    def _others(self) -> list[int]:
        """Pids that no job may ever be stopped for, and some that nobody has."""
        kthread = next((one.pid for one in processes.all_stats() if one.ppid == 2), 2)
        return [1, 2, kthread, os.getpid(), os.getppid(), self.cast.stage]

    def _sample(self) -> Sample:
        rng = self.rng
        health = rng.choice([Health.WATCHING] * 8 + [Health.BLIND, Health.NO_NVML])
        known = [*self._others(), *(self.cast.pids[one] for one in NAMES)]
        invented = [0, -1, 2**31 - 1, 2**32 - 1, 32_769, 4_194_305]
        listed = [*rng.sample(known, rng.randint(3, len(known))), *rng.sample(invented, 2)]
        found = tuple(
            GpuProcess(
                pid,
                rng.choice(["C", "C", "C", "C", "G", "CG"] + ["M"] * (rng.random() < 0.3)),
                rng.choice([None, 0, 1 << 30, 8 << 30]),
                rng.choice([None, 500]),
            )
            for pid in listed
        )
        readable = rng.random() < 0.9
        device = DeviceSample(GPU, 0, energy_mj=0, processes=found if readable else None)
        devices = (device,) if health is Health.WATCHING else ()
        return Sample(time.monotonic_ns(), health, devices)

    def _turn(self) -> None:
        rng, truth = self.rng, self.scene.truth
        books: Any = self.scene.watchdog.books
        truth.now_ms += rng.choice([0, 100, 1_000, 3_000, 10_000, 61_000])
        if rng.random() < 0.8:
            accounts = rng.sample((*ACCOUNTS, POD_ACCOUNT), rng.randint(0, 3))
            books.over = {one: Over(one, "vram_bytes", 1, 2) for one in accounts}
            accounts = rng.sample((*ACCOUNTS, POD_ACCOUNT), rng.randint(0, 2))
            books.spent = {one: (rng.choice(UNITS), 10, rng.choice([5, 10])) for one in accounts}
        if rng.random() < 0.8:
            names = rng.sample(NAMES, rng.choice([0, 0, 2, 4]))
            pids = [self.cast.pids[one] for one in names]
            truth.ghosts = {pid: Held(pid, start_of(pid) - 1, _dead_pidfd()) for pid in pids}
            job = rng.choice(self.kept)
            for _ in range(rng.choice([1, 1, 3])):
                self.scene.see(self._sample(), truth.ghosts, job)
        if rng.random() < 0.2:
            self.scene.age(rng.choice([3, 60]) * SECOND)
        if rng.random() < 0.15:
            self.scene.kill(rng.choice(self.kept))
        self.scene.look()


_DEAD: list[int] = []


def _dead_pidfd() -> int:
    """Of a process that has ended."""
    if not _DEAD:
        pid = os.posix_spawn("/bin/true", ["true"], {})
        _DEAD.append(os.pidfd_open(pid))
        os.waitpid(pid, 0)
    return _DEAD[0]


def play(cast: Cast, seed: int, tries: int) -> Counter[str]:
    """Plays so many scenarios; raises WronglySignalled with the number of the bad one."""
    counts: Counter[str] = Counter()
    for number in range(tries):
        try:
            judged = Player(cast, random.Random(f"{seed}.{number}")).play()
        except WronglySignalled as wrong:
            raise WronglySignalled(f"seed {seed}, scenario {number}: {wrong}") from wrong
        counts["scenarios"] += 1
        counts["signals"] += judged
        counts["with signals"] += judged > 0
    return counts


def test_nobody_is_signalled_who_may_not_be(cast: Cast) -> None:
    seed = new_seed()
    counts = play(cast, seed, TRIES)
    print(f"seed {seed}: {dict(counts)}")
    assert counts["with signals"] > TRIES // 20, "the scenarios test nothing"


def _without(*said: str) -> Callable[[pytest.MonkeyPatch], None]:
    """Switches off the rules of `signals.Rules` that say so."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        def refusal(self: signals.Rules, held: Held, *, uid: int | None, family: Any) -> str:
            reasons = self._reasons(held, uid, family)
            return next((one for one in reasons if not any(word in one for word in said)), "")

        patch.setattr(signals.Rules, "refusal", refusal)

    return plant


def _instead(owner: Any, name: str, made: Any) -> Callable[[pytest.MonkeyPatch], None]:
    """Puts something else in place of a function."""
    return lambda patch: patch.setattr(owner, name, made)


def _members_by_pid(self: Jobs, kept: Kept, also: Any = ()) -> list[Held]:
    found = {one.pid for one in also} | {pid for pid, _ in self._descendants(kept)}
    return [held for pid in found if (held := self._table.hold(pid)) is not None]


def _anybody(self: Jobs, kept: Kept, also: Any = ()) -> list[Held]:
    return list(self._table._held.values())


def _group_regardless(path: str, inode: int) -> None:
    cgroups.kill(path)


def _whole_group(self: Any, action: Any, kept: Kept, targets: Any, *, whole: bool) -> None:
    _ACT(self, action, kept, targets, whole=True)


_ACT: Final = cases.Cases._act
_VIEW_OF: Final = gpus.View.of

PLANTS: Final[dict[str, Callable[[pytest.MonkeyPatch], None]]] = {
    "the system's pids are signalled": _without("is the system's"),
    "the daemon is signalled": _without("is the sidecar"),
    "kernel threads are signalled": _without("kernel thread"),
    "the sampler is signalled": _without("part of the sidecar"),
    "protected programs are signalled": _without("protected"),
    "other users are signalled": _without("runs as user"),
    "members go by pid alone": _instead(Jobs, "members", _members_by_pid),
    "whoever is held is a member": _instead(Jobs, "members", _anybody),
    "start times count for nothing": _instead(
        processes.ProcessTable,
        "hold",
        lambda self, pid, start_ticks=None: self._held.get(pid) or self._open(pid),
    ),
    "a group of the same name is killed": _instead(signals, "kill_group", _group_regardless),
    "a group with the protected is killed": _instead(cases.Cases, "_act", _whole_group),
    "a blind sample is as good as any": _instead(
        gpus.View,
        "of",
        classmethod(lambda _, sample, **named: replace(_VIEW_OF(sample, **named), is_stale=False)),
    ),
    "old samples are acted on": _instead(cases.Cases, "_must_wait", lambda *_: False),
    "nothing is forbidden": _instead(limits.Limits, "forbidden", lambda *_: ""),
    "nothing is too often": _instead(cases.Cases, "is_limited", lambda *_: ""),
    "MPS is not looked at": _instead(gpus.View, "has_mps", lambda *_: False),
    "MPS is forgotten while nobody sees": _instead(gpus.View, "is_whole", True),
    "the first seconds are as any": _instead(
        limits.Limits,
        "_is_news",
        lambda _, kept, incident, seen, now: not seen.view.is_stale,
    ),
    "the journal comes later": _instead(Journal, "save_case", lambda *_: None),
}


@pytest.mark.parametrize("plant", PLANTS)
def test_the_property_finds_out_when(plant: str, cast: Cast) -> None:
    seed = new_seed()
    print(f"seed {seed}")
    with pytest.MonkeyPatch.context() as patch:
        PLANTS[plant](patch)
        with pytest.raises(WronglySignalled):
            play(cast, seed, TRIES_FOR_A_PLANT)


def test_each_rule_holds_by_itself(cast: Cast) -> None:
    rules, family = signals.Rules(), signals.own_family()
    pid = cast.pids["a"]
    pidfd = os.pidfd_open(pid)
    try:
        held = Held(pid, start_of(pid), pidfd)
        assert not rules.refusal(held, uid=owner_of(pid), family=family)
        assert "runs as user" in rules.refusal(held, uid=owner_of(pid) + 1, family=family)
        assert "another process" in rules.refusal(
            replace(held, start_ticks=1), uid=None, family=family
        )
        assert "another process" in rules.refusal(
            replace(held, pid=4_194_303), uid=None, family=family
        )
        protected = cast.pids["a-sshd"]
        sshd = replace(held, pid=protected, start_ticks=start_of(protected))
        assert "sshd (pid" in rules.refusal(sshd, uid=owner_of(pid), family=family)
        assert parent_of(pid) == cast.stage
    finally:
        os.close(pidfd)
