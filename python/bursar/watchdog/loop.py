"""The watchdog's thread: takes samples, meters them, and sees to it that limits hold.

One thread does everything, so nothing in here is locked: it sleeps in the wait for the next call of
ProcessService, and in between takes samples, advances incidents and looks at the jobs. It signals
nobody itself: `limits` says who is due, `cases` acts, after the journal.
"""

import contextlib
import dataclasses
import functools
import threading
import time
from typing import TYPE_CHECKING, Final

from bursar._embedded import call_core
from bursar._log import Level, Say
from bursar.v1 import process_pb2 as pb
from bursar.watchdog import cgroups
from bursar.watchdog.attribution import Attributor
from bursar.watchdog.booking import Booking
from bursar.watchdog.books import Books
from bursar.watchdog.cases import GPU_UNITS, LIMIT_WINDOW_MS, Cases
from bursar.watchdog.escalation import Patience, Phase
from bursar.watchdog.gpus import Gpus, View, as_job, is_container
from bursar.watchdog.jobs import JOBS_MAX, Jobs, Kept
from bursar.watchdog.journal import Case, Journal
from bursar.watchdog.limits import Limits
from bursar.watchdog.metering import Metered
from bursar.watchdog.poller import Poller
from bursar.watchdog.processes import Held, ProcessTable, boot_id, in_host_pid_namespace
from bursar.watchdog.samples import Health, Sample
from bursar.watchdog.settings import Settings
from bursar.watchdog.signals import Rules

if TYPE_CHECKING:
    from bursar._core import Server

__all__ = ["Watchdog", "boot_ms"]

_ACTIVE_SAMPLE_S: Final = 0.1
_ACTIVE_WAKE_S: Final = 0.025
_WAITING_WAKE_S: Final = 0.01
_LOOK_S: Final = 1.0
_FIND_S_MAX: Final = 10.0
_FIND_SHARE: Final = 0.002
"""How much of a core it may take to look for the processes of jobs, unless that is too seldom."""
_ALARMS_MAX: Final = 10_000
_RESTART_FIRST_S: Final = 1.0
_RESTART_MAX_S: Final = 60.0
_SIGNALLED: Final = frozenset({Phase.TERM, Phase.KILL, Phase.VERIFY})
_OWN_XIDS: Final = frozenset({43, 45})  # a context was torn down: what our own signal looks like
_OWN_XID_MS: Final = 30_000
_NAMESPACE: Final = (
    "the sidecar is not in the host's pid namespace, and NVML's pids are the host's: nobody's "
    "processes are known on the GPUs, and only registered jobs are enforced"
)
_TOLD: Final[dict[pb.WatchProcessesResponse.Kind, tuple[Level, str]]] = {
    pb.WatchProcessesResponse.KIND_ALARM: ("warning", "alarm"),
    pb.WatchProcessesResponse.KIND_WATCHDOG: ("info", "watchdog"),
    pb.WatchProcessesResponse.KIND_SOFT_LIMIT: ("warning", "soft_limit"),
}
_HEALTH: Final = {
    Health.WATCHING: pb.Watchdog.STATE_WATCHING,
    Health.NO_NVML: pb.Watchdog.STATE_NO_NVML,
    Health.BLIND: pb.Watchdog.STATE_BLIND,
}


def boot_ms() -> int:
    """Milliseconds since boot, those asleep included: the clock of incidents and wall limits."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


class Watchdog:
    """Owns the thread and everything on it.

    Args:
        server: The running server.
        settings: How it behaves.
        journal_path: Where the journal is; None: nothing outlives this process.
        say: Takes each event for the daemon's log.
    """

    def __init__(
        self,
        server: "Server",
        settings: Settings,
        *,
        journal_path: str | None,
        say: Say,
    ) -> None:
        self.settings = settings
        self._server = server
        self._call = functools.partial(call_core, server)
        self._say = say
        self._journal_path = journal_path
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
        self.sight = False, ""
        """Whether the GPUs are there and cannot be seen, and what there is to say of it."""

    def start(self) -> None:
        """Starts the thread; raises OSError where the journal cannot be opened."""
        Journal(self._journal_path).close()
        self._server.attach_watchdog()
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread: what was metered is committed; jobs and incidents are in the journal."""
        self._stop.set()
        self._thread.join(5)

    def _run(self) -> None:
        """Watches until it is stopped; a failure is as a crash: it begins anew from the journal."""
        pause_s = _RESTART_FIRST_S
        while not self._stop.is_set():
            began_s = time.monotonic()
            try:
                self._open()
                self._watch()
            except Exception as error:  # noqa: BLE001 -- whatever it was, jobs must be watched
                if time.monotonic() - began_s > _RESTART_MAX_S:
                    pause_s = _RESTART_FIRST_S
                text = f"the watchdog has failed and starts again in {pause_s:g} s: {error!r}"
                self._say(text, level="error", event="watchdog_failed")
                self._stop.wait(pause_s)
                pause_s = min(2 * pause_s, _RESTART_MAX_S)

    def _watch(self) -> None:
        from bursar.watchdog.service import Service

        service = Service(self, self._server)
        with contextlib.ExitStack() as stack:
            for owned in (self.table, self.journal, self.books, self._poller):
                stack.callback(owned.close)
            while not self._stop.is_set():
                self.jobs.look_anew()
                call = self._server.next_process_call(self._turn())
                if call is not None:
                    self.jobs.look_anew()
                    service.answer(*call)

    def _open(self) -> None:
        settings = self.settings
        self.journal = Journal(self._journal_path)
        self.table = ProcessTable()
        self.jobs = Jobs(self.table)
        self.books = Books(self._call, self.journal)
        self.rules = Rules(settings.protect, settings.other_users)
        self.cases = Cases(
            self.books,
            self.journal,
            self.rules,
            Patience(settings.term_grace_ms, settings.unkillable_ms, settings.verify_ms),
            per_account=settings.incidents_per_account,
            per_host=settings.incidents_per_host,
            tell=self.tell,
        )
        self.limits = Limits(
            settings, self.jobs, self.books, self.cases, tell=self.tell, start_ms=boot_ms()
        )
        self.attributor = Attributor(self.jobs, settings.containers)
        self.gpus = Gpus()
        self.boot = boot_id()
        self.booking = Booking(
            self.books,
            self.jobs,
            self.cases,
            gpu_time=settings.gpu_time,
            period_ns=settings.period_ms * 1_000_000,
        )
        self._is_namespaced = not in_host_pid_namespace()
        self._poller = Poller()
        self._health: Health | None = None
        self._next_sample_s = 0.0
        self._next_look_s = 0.0
        self._next_find_s = 0.0
        self._ended_ns: dict[int, int] = {}
        self._unread: set[str] = set()
        self._alarmed: set[str] = set()
        self._unwritten = False
        self._last_signal_ms: dict[str, int] = {}
        self._retiring: dict[str, str] = {}
        self._recover()

    def _recover(self) -> None:
        self.books.recover(boot_ms())
        recent = list(self.journal.recent(self.boot, boot_ms() - LIMIT_WINDOW_MS))
        self.cases.recover(recent)
        self.limits.recover(recent)
        for kept in self.journal.jobs():
            if len(self.jobs) < JOBS_MAX and kept.boot == self.boot:
                self.jobs.add(kept)
            elif self.cases.of_job(kept.job.id) is None:
                self._forget(kept)
        for row in self.journal.unreadable:
            self._alarm(f"a row of the watchdog's journal cannot be read and is left alone: {row}")

    def tell(self, event: pb.WatchProcessesResponse) -> None:
        """Sends an event to whoever watches; what an operator should know goes to the log, too."""
        event.time.GetCurrentTime()
        self._server.publish_process_event(event.SerializeToString())
        incident = event.incident
        if event.kind == pb.WatchProcessesResponse.KIND_INCIDENT:
            state = pb.Incident.State.Name(incident.state).removeprefix("STATE_")
            whose = f"{incident.account} ({incident.job_name})"
            self._say(
                f"incident {incident.id} of {whose}: {state}: {event.detail}",
                level="warning",
                event="incident",
                incident=incident.id,
                account=incident.account,
                job=incident.job,
                job_name=incident.job_name,
                state=state,
            )
        elif event.kind in _TOLD:
            level, name = _TOLD[event.kind]
            if event.watchdog.state == pb.Watchdog.STATE_BLIND:
                level = "warning"
            self._say(f"watchdog: {event.detail}", level=level, event=name, account=event.account)

    def _alarm(self, detail: str, account: str = "", *, once: str = "") -> None:
        """Tells of something that a person should look at; `once` names what is said only once."""
        if once in self._alarmed:
            return
        if once and len(self._alarmed) < _ALARMS_MAX:
            self._alarmed.add(once)
        kind = pb.WatchProcessesResponse.KIND_ALARM
        self.tell(pb.WatchProcessesResponse(kind=kind, account=account, detail=detail))

    def _turn(self) -> float:
        """Does what is due; returns for how many seconds nothing will be."""
        now_s = time.monotonic()
        period_s = self.settings.period_ms / 1000
        for held in self.table.ended():
            self._ended_ns[held.pid] = time.monotonic_ns()
            self.attributor.forget(held)
        sample = self._poller.take()
        if sample is not None:
            self._see(sample)
        active = self.cases.has_active
        if not self._poller.is_waiting and (
            now_s >= self._next_sample_s
            or (active and self._next_sample_s - now_s > _ACTIVE_SAMPLE_S)
        ):
            self._poller.ask()
            self._next_sample_s = now_s + (min(period_s, _ACTIVE_SAMPLE_S) if active else period_s)
        if sample is not None or now_s >= self._next_look_s:
            self._look()
            wall_s = self.limits.next_wall_ms(boot_ms()) / 1000
            self._next_look_s = now_s + min(period_s, _LOOK_S, wall_s)
        elif active:
            self._advance()
        if self._poller.is_waiting:
            return _WAITING_WAKE_S
        wake_s = max(0.0, min(self._next_sample_s, self._next_look_s) - time.monotonic())
        return min(wake_s, _ACTIVE_WAKE_S) if self.cases.has_active else wake_s

    def _see(self, sample: Sample) -> None:
        """Takes a sample in: whose is what, what was used, who is over."""
        view = View.of(sample, knows_pids=not self._is_namespaced)
        self.gpus = self.gpus.after(view, self.table.hold, self.attributor.whose)
        self._tell_health(sample)
        if sample.health is not Health.WATCHING:
            self._ended_ns = self.booking.only_held(self._ended_ns)
            self.limits.measure((), boot_ms())  # three samples in a row: none of these is one
            return
        self._tell_unread(sample)
        self._server.set_gpu_processes([held.identity for held in self.gpus.held.values()])
        for pid, whose in self.gpus.whose.items():
            if whose.conflict:
                text = f"process {pid} is {whose.account}'s by its cgroup, but {whose.conflict}"
                self._alarm(text, whose.account, once=f"conflict {self.gpus.held[pid].identity}")
        metered = self.booking.step(sample, self.gpus, self._ended_ns, boot_ms())
        self._ended_ns = {}
        self._tell_metered(metered)
        self.limits.measure(self.booking.over_now, boot_ms())
        self._notice_faults(sample)

    def _tell_metered(self, metered: Metered) -> None:
        for account in self.books.unknown:
            text = f"there is no account {account}: what it uses of GPUs is not charged"
            self._alarm(text, account, once=f"unknown {account}")
        for account in metered.divided:
            text = f"no driver tells how much memory {account} has beside others on the same GPU"
            text += ": it is metered as an equal share, and nobody is stopped for it"
            self._alarm(text, account, once=f"divided {account}")
        for gap in metered.gaps:
            missed_ms = (gap.until_ns - gap.since_ns - gap.charged_ns) // 1_000_000
            self._alarm(f"{gap.uuid} could not be read: {missed_ms} ms are charged to nobody")

    def _notice_faults(self, sample: Sample) -> None:
        now_ms = boot_ms()
        gpu_of = {one.uuid: one.parent_uuid or one.uuid for one in sample.devices}
        for case in self.cases:
            if case.standing.phase in _SIGNALLED:
                gpus = (gpu_of.get(uuid, uuid) for uuid in case.bytes_by_device)
                self._last_signal_ms.update(dict.fromkeys(gpus, now_ms))
        for uuid, number in sample.xids:
            ours = now_ms - self._last_signal_ms.get(uuid, -_OWN_XID_MS) < _OWN_XID_MS
            if not (ours and number in _OWN_XIDS):
                self._alarm(f"GPU {uuid} reports the fault XID {number}")

    def _tell_health(self, sample: Sample) -> None:
        if sample.health is self._health:
            return
        self._health = sample.health
        if sample.health is Health.WATCHING:
            count = len(sample.devices)
            text = f"{count} GPU{'' if count == 1 else 's'}, driver {sample.driver_version}"
        elif sample.health is Health.NO_NVML:
            text = f"no GPUs ({sample.detail}); jobs are watched all the same"
        else:
            text = f"the GPUs cannot be seen, and what they do is unknown: {sample.detail}"
        self.sight = sample.health is Health.BLIND, text
        kind = pb.WatchProcessesResponse.KIND_WATCHDOG
        self.tell(pb.WatchProcessesResponse(kind=kind, detail=text, watchdog=self.status()))

    def _tell_journal(self) -> None:
        """Tells when the journal can no longer be written, and when it can again."""
        failure = self.journal.failure
        if bool(failure) != self._unwritten:
            self._unwritten = bool(failure)
            text = f"cannot be written, and what a crash would need is not in it: {failure}"
            self._alarm(f"the watchdog's journal {text if failure else 'is written again'}")

    def _tell_unread(self, sample: Sample) -> None:
        """Tells of each device that can no longer be read."""
        unread = {
            device.uuid: device.error or sample.detail or "its process lists cannot be read"
            for device in sample.devices
            if device.error or device.processes is None
        }
        for uuid in unread.keys() - self._unread:
            text = f"GPU {uuid} cannot be read: {unread[uuid]}; nobody is charged or stopped for it"
            self._alarm(text)
        self._unread = set(unread)

    def status(self) -> pb.Watchdog:
        """What the watchdog can see, for callers."""
        sample = self.gpus.view.sample
        details = [sample.detail if sample else "the first sample has not come yet"]
        details += [_NAMESPACE] if self._is_namespaced else []
        if self.journal.failure:
            details.append(f"the watchdog's journal cannot be written: {self.journal.failure}")
        status = pb.Watchdog(
            state=_HEALTH[sample.health] if sample else pb.Watchdog.STATE_NO_NVML,
            detail="; ".join(filter(None, details)),
            mode="enforce" if self.settings.enforce else "observe",
            held_back=self.limits.held_back(boot_ms()),
        )
        if sample is not None:
            status.driver_version = sample.driver_version
            age_ns = time.monotonic_ns() - sample.time_ns
            status.sample_time.FromNanoseconds(time.time_ns() - age_ns)
        return status

    def _look(self) -> None:
        """Looks at every incident, job and budget."""
        now_ms = boot_ms()
        self.journal.retry()
        if time.monotonic() >= self._next_find_s:
            self._find()
        self._tell_journal()
        self.books.renew(now_ms)
        self.books.look_anew()
        self._advance()
        for kept in self.jobs:
            # What it used since the latest sample is booked with the next one: not ended before.
            is_booked = self.gpus.view.is_stale or kept.job.id not in self.gpus.pids_by_job
            is_free = is_booked and self.cases.of_job(kept.job.id) is None
            if is_free and self.jobs.is_ended(kept):
                self._end_job(kept)
        for kept, incident in self.limits.due(self.gpus, self.booking.over, now_ms):
            if is_container(kept.job.id) or not self.jobs.is_ended(kept):
                self.stop_job(kept, incident, now_ms)
        for account, job_id in list(self._retiring.items()):
            if self.books.retire(account):
                del self._retiring[account]
                self.journal.delete_job(job_id)
                self.booking.retire(account)

    def _find(self) -> None:
        """Notes who belongs to a job; where there are many processes, less often."""
        began_s = time.thread_time()
        for kept in self.jobs.find():
            self.journal.save_job(kept)
        rest_s = (time.thread_time() - began_s) / _FIND_SHARE
        self._next_find_s = time.monotonic() + min(max(_LOOK_S, rest_s), _FIND_S_MAX)

    def _advance(self) -> None:
        """Goes on with every incident."""
        self._age()
        for case in self.cases:
            kept = self.jobs.get(case.incident.job) or self._left_over(case)
            self.step(case, kept, self.members(kept), boot_ms())

    def _age(self) -> None:
        view = self.gpus.view
        if view.sample is not None and not view.is_stale:
            age_ns = time.monotonic_ns() - view.sample.time_ns
            if age_ns > 2_000_000 * max(self.settings.period_ms, 500):
                self.gpus.view = dataclasses.replace(view, is_stale=True)

    def _left_over(self, case: Case) -> Kept:
        """The job of an incident that is none any more: a container's, or that of another boot."""
        kept = as_job(case.incident.account, self.settings.term_grace_ms)
        kept.job.id = case.incident.job
        return kept

    def register(self, kept: Kept) -> str:
        """Takes a job in, and tells of it; why not, where a restart would not know it."""
        self.journal.save_job(kept)
        if self.journal.failure:
            self._forget(kept)
            return f"the watchdog's journal cannot be written: {self.journal.failure}"
        self.jobs.add(kept)
        self.attributor.forget_nobody()
        job = kept.job
        kind = pb.WatchProcessesResponse.KIND_JOB_REGISTERED
        text = f"job {job.name} is registered for {job.account}"
        self.tell(pb.WatchProcessesResponse(kind=kind, account=job.account, detail=text, job=job))
        return ""

    def members(self, kept: Kept) -> list[Held]:
        """The processes of a job that live, those on GPUs included."""
        listed = [self.gpus.held[pid] for pid in self.gpus.pids_by_job.get(kept.job.id, ())]
        if not is_container(kept.job.id):
            return self.jobs.members(kept, listed)
        found = {one.identity for one in listed}
        case = self.cases.of_job(kept.job.id)
        if case is not None and case.boot == self.boot and self.gpus.view.is_stale:
            found |= case.victims  # only NVML says who is there: without it, they have not ended
        return sorted(self.table.alive(found), key=lambda one: one.pid)

    def stop_job(self, kept: Kept, incident: pb.Incident, now_ms: int) -> Case | None:
        """Opens an incident and acts on it; None: another one on the same GPU is in the way."""
        devices = self.gpus.devices_by_job.get(kept.job.id, ())
        if incident.unit in GPU_UNITS and any(map(self.cases.on_device, devices)):
            return None
        members, view = self.members(kept), self.gpus.view
        forbidden = self.limits.forbidden(kept, incident.cause, self.gpus, members, now_ms)
        if not forbidden and not kept.job.enforce and incident.unit in GPU_UNITS:
            forbidden = self.cases.is_limited(kept.job.account, now_ms)
        case = self.cases.open(kept, incident, view, members, forbidden=forbidden, now_ms=now_ms)
        self.step(case, kept, members, now_ms)
        return case

    def step(self, case: Case, kept: Kept, members: list[Held], now_ms: int) -> None:
        """Goes on with an incident."""
        forbidden = case.forbidden or self.limits.forbidden(
            kept, case.incident.cause, self.gpus, members, now_ms
        )
        self.cases.advance(
            case,
            kept,
            self.gpus.view,
            members,
            over=self._is_over(case),
            forbidden=forbidden,
            now_ms=now_ms,
        )
        self.limits.rest(kept, case.incident, case.standing.phase, now_ms)

    def _is_over(self, case: Case) -> bool:
        """Whether the limit that an incident is about is still passed."""
        incident = case.incident
        if incident.cause != pb.Incident.CAUSE_BUDGET:
            return True
        if incident.unit == "vram_bytes":
            is_over = self.booking.is_over(incident.account, incident.limit_account)
            return is_over or not self.gpus.view.sees(case.bytes_by_device)
        return self.books.is_spent(incident.limit_account, incident.unit)

    def _end_job(self, kept: Kept) -> None:
        self.jobs.remove(kept)
        self.attributor.forget_job(kept.job.id)
        self.limits.forget(kept)
        self._forget(kept)
        text = f"job {kept.job.name} has ended"
        kind = pb.WatchProcessesResponse.KIND_JOB_ENDED
        self.tell(
            pb.WatchProcessesResponse(
                kind=kind, account=kept.job.account, detail=text, job=kept.job
            )
        )

    def _forget(self, kept: Kept) -> None:
        """Takes down what was made for a job that has ended."""
        account = kept.job.account
        if kept.has_group:
            cgroups.remove(kept.job.cgroup)
        if kept.own_account:
            self._retiring[account] = kept.job.id
            return
        if all(one.job.account != account for one in self.jobs):
            self.books.settle(account)
        self.journal.delete_job(kept.job.id)
