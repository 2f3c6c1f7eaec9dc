"""The open incidents: what `escalation` decides is written to the journal, then carried out.

Every change goes journal first, deed second: after a crash the new daemon finds the intent, looks
at what is true, and goes on. It owns the freezes and the quarantine that incidents bring about.

Where the journal cannot be written, as on a full disk, an incident that it already has goes on: a
restart would take it up from there, at worst with a second SIGTERM. A new one waits for its intent,
up to `INTENT_PATIENCE_MS`. Then who was registered to be enforced, or is to be stopped by an
operator's order, is stopped without it: a runaway that goes on for as long as a disk is full is
worse than an incident that a crash forgets, and who may be signalled never depends on the journal.
All others go on waiting: how many of them may be stopped in a time is counted by what is recorded.
"""

import signal
import time
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Final, cast

from google.protobuf.timestamp_pb2 import Timestamp

from bursar.units import show_over
from bursar.v1 import process_pb2 as pb
from bursar.watchdog import cgroups, signals
from bursar.watchdog.books import Books, Over
from bursar.watchdog.escalation import (
    Action,
    Look,
    Patience,
    Phase,
    Standing,
    open_standing,
    step,
)
from bursar.watchdog.gpus import View, is_container
from bursar.watchdog.jobs import Kept
from bursar.watchdog.journal import Case, Journal
from bursar.watchdog.processes import (
    HELD_MAX,
    Held,
    boot_id,
    command_of,
    nvidia_holders,
    read_stat,
)

__all__ = ["GPU_UNITS", "Cases", "over_incident"]

GPU_UNITS: Final = frozenset({"gpu_ms", "vram_bytes", "vram_mib_s", "energy_mj"})
STEPS_MAX: Final = 64
VICTIMS_MAX: Final = 1000
"""How many victims an incident remembers; of those on GPUs, as many as can be held."""
NAMED_MAX: Final = 100
"""How many of them it names."""
INTENT_PATIENCE_MS: Final = 5000
"""How long an intent that cannot be written holds up those whose limits are orders."""
LIMIT_WINDOW_MS: Final = 600_000
"""The time in which so many incidents may be acted on."""


class Cases:
    """The incidents that may still change. Not safe to share between threads.

    Args:
        books: Freezes accounts.
        journal: Remembers.
        rules: Who is never signalled.
        patience: How long each state may last; the grace period is the job's own.
        per_account: How many incidents of one account may be acted on in ten minutes.
        per_host: How many of all accounts together.
        tell: Takes each event.
    """

    def __init__(
        self,
        books: Books,
        journal: Journal,
        rules: signals.Rules,
        patience: Patience,
        *,
        per_account: int,
        per_host: int,
        tell: Callable[[pb.WatchProcessesResponse], None],
    ) -> None:
        self._books = books
        self._journal = journal
        self._rules = rules
        self._patience = patience
        self._per_account = per_account
        self._per_host = per_host
        self._tell = tell
        self._boot = boot_id()
        self._open: dict[str, Case] = {}
        self._acted: list[tuple[int, str]] = []
        self._ended_ns: dict[str, int] = {}

    def __iter__(self) -> Iterator[Case]:
        return iter(list(self._open.values()))

    @property
    def has_active(self) -> bool:
        """Whether something is going on that should be looked at more often."""
        return any(not case.standing.phase.is_over for case in self._open.values())

    def recover(self, recent: Iterable[Case]) -> None:
        """Takes over the incidents that a crash has cut off.

        Args:
            recent: The incidents of the last `LIMIT_WINDOW_MS`: those that were acted on count.
        """
        self._acted = [(one.opened_ms, one.incident.account) for one in recent if one.froze]
        for case in self._journal.open_cases():
            self._open[case.incident.job] = case
            if case.froze and not case.standing.phase.is_over:  # the crash may have come before
                self._books.freeze(case.incident.account, case.incident.reason)

    def of_job(self, job_id: str) -> Case | None:
        """The incident of a job that may still change."""
        return self._open.get(job_id)

    def on_device(self, uuid: str) -> Case | None:
        """An incident that is going on and has victims on a device."""
        for case in self._open.values():
            if not case.standing.phase.is_over and uuid in case.bytes_by_device:
                return case
        return None

    def is_limited(self, account: str, now_ms: int) -> str:
        """Why no further incident may be acted on now; empty: it may."""
        since = now_ms - LIMIT_WINDOW_MS
        self._acted = [(when, whose) for when, whose in self._acted if when > since]
        if len(self._acted) >= self._per_host:
            return f"{len(self._acted)} incidents on this host within ten minutes"
        own = sum(whose == account for _, whose in self._acted)
        return (
            f"{own} incidents of {account} within ten minutes" if own >= self._per_account else ""
        )

    def open(
        self,
        kept: Kept,
        incident: pb.Incident,
        view: View,
        members: Iterable[Held],
        *,
        forbidden: str,
        now_ms: int,
    ) -> Case:
        """Records the intent: who is to be stopped, and why. Signals nobody.

        Args:
            kept: The job.
            incident: The cause, the limit, what was used and the reason.
            view: The GPUs, for the victims' bytes.
            members: The processes of the job.
            forbidden: Why nobody may be signalled; then the account is not frozen either.
            now_ms: By CLOCK_BOOTTIME.
        """
        incident.account, incident.job = kept.job.account, kept.job.id
        incident.job_name = kept.job.name
        incident.create_time.GetCurrentTime()
        standing = open_standing(now_ms, incident.reason)
        case = Case(incident, standing, self._boot, now_ms, forbidden=forbidden)
        self._note(case)
        # Those on GPUs first: it is their memory that has to come back.
        for held in sorted(members, key=lambda one: one.pid not in view.by_pid):
            self._add_victim(case, held, view)
        if not forbidden:
            case.froze = True
            self._acted.append((now_ms, kept.job.account))
        self._journal.save_case(case)
        self._open[kept.job.id] = case
        if case.froze:
            self._books.freeze(kept.job.account, incident.reason)
        self._announce(case)
        return case

    def order(self, case: Case, reason: str) -> None:
        """Makes an incident that goes on an operator's: it ends no sooner than its processes.

        Args:
            case: The incident.
            reason: Who asked for it, and why.
        """
        incident = case.incident
        if case.standing.phase.is_over or incident.cause == pb.Incident.CAUSE_OPERATOR:
            return
        incident.cause = pb.Incident.CAUSE_OPERATOR
        incident.reason = f"{reason}; before that: {incident.reason}"
        case.forbidden, was_frozen, case.froze = "", case.froze, True
        self._journal.save_case(case)
        if not was_frozen:
            self._books.freeze(incident.account, incident.reason)

    def _add_victim(self, case: Case, held: Held, view: View) -> None:
        most = HELD_MAX if held.pid in view.by_pid else VICTIMS_MAX
        if held.identity in case.victims or len(case.victims) >= most:
            return
        case.victims.add(held.identity)
        size = 0
        for uuid, process in view.by_pid.get(held.pid, ()):
            known = process.vram_bytes or 0
            case.bytes_by_device.setdefault(uuid, {})[held.pid] = known
            size += known
        case.incident.vram_bytes += size
        if len(case.incident.victims) < NAMED_MAX:
            command = command_of(held.pid)
            victim = pb.Incident.Victim(pid=held.pid, command=command, vram_bytes=size)
            case.incident.victims.append(victim)

    def advance(
        self, case: Case, kept: Kept, view: View, members: Iterable[Held], *, over: bool,
        forbidden: str, now_ms: int,
    ) -> None:  # fmt: skip
        """Goes on with an incident as far as it goes now.

        Args:
            case: The incident.
            kept: Its job.
            view: The GPUs.
            members: The processes of the job that live.
            over: Whether its limit is still passed.
            forbidden: Why nobody may be signalled; empty: they may.
            now_ms: By CLOCK_BOOTTIME.
        """
        targets, refusals = self._sort(case, kept, members)
        if refusals and not targets:
            forbidden = forbidden or refusals[0]
        if targets:
            self._ended_ns.pop(kept.job.id, None)
        else:
            self._ended_ns.setdefault(kept.job.id, time.monotonic_ns())
        patience = replace(self._patience, term_grace_ms=kept.job.term_grace.ToMilliseconds())
        while not self._must_wait(case, kept, view, targets):
            look = Look(
                over=over,
                alive=len(targets) or len(refusals),
                unsignalled=sum(one.identity not in case.killed for one in targets),
                listed=self._listed(case, view),
                forbidden=forbidden,
            )
            standing, actions = step(case.standing, look, now_ms, patience)
            if standing == case.standing and not actions:
                return
            if actions and not self._is_recorded(case, kept, now_ms):
                return
            if Action.SIGKILL in actions:
                case.killed |= {one.identity for one in targets}
            self._move(case, standing, view, targets if actions else ())
            for action in actions:
                self._act(action, kept, targets, whole=not refusals)
            if actions or standing.phase.is_final:
                return

    def _sort(
        self, case: Case, kept: Kept, members: Iterable[Held]
    ) -> tuple[list[Held], list[str]]:
        """The processes that may be signalled, and why the others may not."""
        targets, refusals = [], []
        has_group, family = kept.has_group, signals.own_family()
        for held in members if case.boot == self._boot else ():
            is_kept = is_container(kept.job.id) or (
                has_group and cgroups.is_inside(kept.job.cgroup, held.pid)
            )
            uid = None if is_kept else kept.job.uid
            refusal = self._rules.refusal(held, uid=uid, family=family)
            if not refusal:
                targets.append(held)
            elif not held.has_ended:  # of who has, while it was looked at, nothing more can be said
                refusals.append(refusal)
        return targets, refusals

    def _must_wait(self, case: Case, kept: Kept, view: View, targets: Sequence[Held]) -> bool:
        """Whether what is known is too old to go on with."""
        phase = case.standing.phase
        if phase in {Phase.BREACH, Phase.TERM, Phase.VERIFY} and targets:
            is_seen = case.incident.cause == pb.Incident.CAUSE_BUDGET  # and not asked for
            return is_seen and view.is_stale and case.incident.unit in GPU_UNITS
        if phase is not Phase.VERIFY or not case.bytes_by_device:
            return False
        # Only a sample from after the end of the processes tells what is back.
        ended_ns = self._ended_ns.get(kept.job.id, 0)
        return view.sample is None or view.sample.time_ns <= ended_ns

    def _is_recorded(self, case: Case, kept: Kept, now_ms: int) -> bool:
        """Whether a restart would find the intent, or it is time to act without it."""
        if not self._journal.failure or self._journal.has(case):
            return True
        is_order = kept.job.enforce or case.incident.cause == pb.Incident.CAUSE_OPERATOR
        return is_order and now_ms - case.opened_ms >= INTENT_PATIENCE_MS

    def _move(self, case: Case, standing: Standing, view: View, fresh: Iterable[Held]) -> None:
        """Writes down where an incident stands, before anything is done about it."""
        for held in fresh:
            self._add_victim(case, held, view)
        moved = standing != case.standing
        if moved and standing.phase.is_stuck and self.stuck_bytes(case, view):
            holders = nvidia_holders(but=view.by_pid)
            told = f"; NVML does not list, but has a GPU open: {', '.join(holders)}"
            standing = replace(standing, detail=standing.detail + told * bool(holders))
        case.standing = standing
        if moved:
            self._note(case)
        self._account_for(case, view)
        self._journal.save_case(case)
        if moved:
            self._announce(case)
        if standing.phase.is_final:
            self._finish(case)

    def _act(self, action: Action, kept: Kept, targets: Sequence[Held], *, whole: bool) -> None:
        if action is Action.SIGTERM:
            for held in targets:
                signals.send(held, signal.SIGTERM)
        elif action is Action.SIGKILL:
            if whole and kept.job.cgroup:
                signals.kill_group(kept.job.cgroup, kept.cgroup_inode)
            for held in targets:  # the group may be gone, and who has left it is the job's too
                signals.send(held, signal.SIGKILL)

    def _listed(self, case: Case, view: View) -> int | None:
        """How many victims NVML lists; None: it cannot be asked."""
        if case.boot != self._boot or not case.bytes_by_device:
            return 0  # memory does not outlive a boot, and who had none has none to give back
        if not view.sees(case.bytes_by_device):
            return None
        return sum(_lists(view, pid, start) for pid, start in case.victims)

    def _account_for(self, case: Case, view: View) -> None:
        """What has come back and what is quarantined, as far as can be seen."""
        incident = case.incident
        stuck = self.stuck_bytes(case, view)
        if case.standing.phase.is_over:
            incident.vram_returned_bytes = incident.vram_bytes - stuck
            incident.vram_quarantined_bytes = stuck if case.standing.phase.is_stuck else 0

    def stuck_bytes(
        self, case: Case, view: View, uuid: str | None = None, *, but: Container[int] = ()
    ) -> int:
        """The victims' bytes that have not been seen to come back.

        Args:
            case: The incident.
            view: The GPUs.
            uuid: On this device alone; None: on all.
            but: Processes that do not count.
        """
        sizes = case.bytes_by_device
        devices = sizes if uuid is None else {uuid} & sizes.keys()
        is_seen = view.sees(devices)
        starts = dict(case.victims)
        return sum(
            size
            for one in devices
            for pid, size in sizes[one].items()
            if pid not in but and (not is_seen or _lists(view, pid, starts.get(pid, 0), one))
        )

    def quarantined(self, view: View, uuid: str) -> int:
        """The bytes on a device that did not come back and are not sold again."""
        stuck = [case for case in self if case.incident.vram_quarantined_bytes]
        return sum(self.stuck_bytes(case, view, uuid) for case in stuck)

    def _note(self, case: Case) -> None:
        """Adds the state that was reached to what happened."""
        incident, phase = case.incident, case.standing.phase
        incident.state = cast("pb.Incident.State", phase.value)
        now = Timestamp()
        now.GetCurrentTime()
        step_ = pb.Incident.Step(state=incident.state, time=now, detail=case.standing.detail)
        if len(incident.steps) < STEPS_MAX:
            incident.steps.append(step_)
        if phase.is_over:
            incident.end_time.CopyFrom(now)

    def _announce(self, case: Case) -> None:
        event = pb.WatchProcessesResponse(
            kind=pb.WatchProcessesResponse.KIND_INCIDENT,
            account=case.incident.account,
            detail=case.standing.detail,
            incident=case.incident,
        )
        self._tell(event)

    def _finish(self, case: Case) -> None:
        self._ended_ns.pop(case.incident.job, None)
        del self._open[case.incident.job]
        account = case.incident.account
        if case.froze and not any(one.incident.account == account for one in self if one.froze):
            self._books.unfreeze(account)


def _lists(view: View, pid: int, start_ticks: int, uuid: str | None = None) -> bool:
    """Whether NVML lists this process, and not another one that has its pid now."""
    if not any(uuid in (None, device) for device, _ in view.by_pid.get(pid, ())):
        return False
    stat = read_stat(pid)
    return stat is None or stat.start_ticks == start_ticks or pid in view.disputed


def over_incident(over: Over) -> pb.Incident:
    """An incident for a limit that is passed, not opened yet."""
    return pb.Incident(
        cause=pb.Incident.CAUSE_BUDGET,
        limit_account=over.account,
        unit=over.unit,
        limit=over.limit,
        used=over.used,
        reason=f"{show_over(over.unit, over.used, over.limit)} of {over.account}",
    )
