"""The watchdog's thread: asks for samples, meters them, and sees to it that limits hold.

One thread does everything, so nothing in here is locked: it sleeps in the wait for the next call of
ProcessService, and in between takes samples, advances incidents and looks at the jobs. It signals
nobody itself; `cases` does, after the journal.
"""

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from bursar._errors import from_reason
from bursar.v1 import process_pb2 as pb
from bursar.watchdog.attribution import Attribution, Attributor, ContainerRule
from bursar.watchdog.books import Books, Over, chain
from bursar.watchdog.cases import GPU_UNITS, Cases, View, over_incident
from bursar.watchdog.escalation import Guard, Patience, Phase
from bursar.watchdog.jobs import Jobs, Kept
from bursar.watchdog.journal import Case, Journal
from bursar.watchdog.metering import Metered, Meter
from bursar.watchdog.poller import Poller
from bursar.watchdog.processes import Held, ProcessTable, boot_id, in_host_pid_namespace
from bursar.watchdog.samples import GpuProcess, Health, Sample
from bursar.watchdog.signals import Rules

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from bursar._core import Server

__all__ = ["Settings", "Watchdog"]

_ACTIVE_SAMPLE_S: Final = 0.1
_ACTIVE_WAKE_S: Final = 0.025
_WAITING_WAKE_S: Final = 0.01
_COOL_DOWN_MS: Final = 60_000
_BREAKER_MS: Final = 600_000
_OWN_XIDS: Final = frozenset({43, 45})  # a context was torn down: what our own kill looks like
_OWN_XID_MS: Final = 30_000
_NAMESPACE: Final = (
    "the sidecar is not in the host's pid namespace, and NVML's pids are the host's: processes on the "
    "GPUs belong to nobody here, and only registered jobs are enforced"
)


@dataclass(frozen=True, slots=True)
class Settings:
    """What the configuration says; see `[watchdog]`."""

    enforce: bool = False
    period_ms: int = 1000
    term_grace_ms: int = 10_000
    vram_patience_ms: int = 3000
    verify_ms: int = 30_000
    unkillable_ms: int = 60_000
    settle_ms: int = 30_000
    gpu_time: str = "allocated"
    protect: tuple[str, ...] = ()
    other_users: bool = False
    signal_containers: bool = False
    containers: tuple[ContainerRule, ...] = ()
    incidents_per_account: int = 3
    incidents_per_host: int = 10


@dataclass(slots=True)
class _Usage:
    """What the latest sample says of the accounts and jobs."""

    vram_by_account: dict[str, int] = field(default_factory=dict)
    vram_by_job: dict[str, int] = field(default_factory=dict)
    pids_by_job: dict[str, set[int]] = field(default_factory=dict)
    devices_by_job: dict[str, set[str]] = field(default_factory=dict)
    mps_jobs: set[str] = field(default_factory=set)
    over: dict[str, Over] = field(default_factory=dict)


def boot_ms() -> int:
    """Milliseconds since boot, those asleep included: the clock of incidents and wall limits."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


class Watchdog:
    """Owns the thread and everything on it.

    Args:
        server: The running server.
        settings: What the configuration says.
        journal_path: Where the journal is; None: nothing outlives this process.
        say: Takes each line for the daemon's log.
    """

    def __init__(
        self,
        server: "Server",
        settings: Settings,
        *,
        journal_path: str | None,
        say: Callable[[str], None],
    ) -> None:
        self.settings = settings
        self.server = server
        self._say = say
        self._journal_path = journal_path
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
        self.failure: BaseException | None = None

    def start(self) -> None:
        """Starts the thread; raises OSError where the journal cannot be opened."""
        Journal(self._journal_path).close()
        self.server.attach_watchdog()
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread: what was metered is committed; jobs and incidents are in the journal."""
        self._stop.set()
        self._thread.join(5)

    def _run(self) -> None:
        from bursar.watchdog.service import Service

        self._open()
        service = Service(self)
        try:
            while not self._stop.is_set():
                call = self.server.next_process_call(self._turn())
                if call is not None:
                    service.answer(*call)
        except BaseException as error:  # noqa: BLE001 -- said, kept, and seen by the main thread
            self.failure = error
            self._say(f"the watchdog has failed: {error!r}; nothing is watched any more")
            raise
        finally:
            self._poller.close()
            self.books.close()
            self.journal.close()
            self.table.close()

    def _open(self) -> None:
        settings = self.settings
        self.journal = Journal(self._journal_path)
        self.table = ProcessTable()
        self.jobs = Jobs(self.table)
        self.books = Books(self._call, self.journal)
        self.rules = Rules(settings.protect, settings.other_users)
        patience = Patience(settings.term_grace_ms, settings.unkillable_ms, settings.verify_ms)
        self.cases = Cases(
            self.jobs,
            self.books,
            self.journal,
            self.rules,
            patience,
            settings.incidents_per_account,
            settings.incidents_per_host,
            self.tell,
        )
        self.attributor = Attributor(self.jobs, settings.containers)
        self.meter = Meter(period_ns=settings.period_ms * 1_000_000)
        self.view = View()
        self.usage = _Usage()
        self.totals: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        self.owners: dict[int, Attribution] = {}
        self.held_back = ""
        self._namespaced = not in_host_pid_namespace()
        self._poller = Poller()
        self._health: Health | None = None
        self._started_ms = boot_ms()
        self._breaker_until_ms = 0
        self._next_sample_s = 0.0
        self._next_look_s = 0.0
        self._guards: dict[tuple[str, str], Guard] = {}
        self._quiet: dict[str, tuple[str, int]] = {}
        self._ended_ns: dict[int, int] = {}
        self._alarmed: set[str] = set()
        self._last_kill_ms: dict[str, int] = {}
        self.boot = boot_id()
        self._recover()

    def _recover(self) -> None:
        self.books.recover(boot_ms())
        self.cases.recover()
        open_jobs = {case.incident.job for case in self.cases}
        for kept in self.journal.jobs():
            same_boot = kept.boot == self.boot
            if same_boot and len(self.jobs) < HELD_JOBS_MAX:
                self.jobs.add(kept)
            elif kept.job.id not in open_jobs:
                self._forget_job(kept)

    def _call(self, method: str, request: "Message", response: type["Message"]) -> "Message":
        from bursar import _core

        try:
            answer = self.server.call(method, request.SerializeToString())
        except _core.CoreError as raised:
            raise from_reason(
                raised.code, raised.message, reason=raised.reason, metadata=raised.metadata
            ) from None
        return response.FromString(answer)

    def tell(self, event: pb.WatchProcessesResponse) -> None:
        """Sends an event to whoever watches, and alarms and incidents to the log."""
        event.time.GetCurrentTime()
        self.server.publish_process_event(event.SerializeToString())
        kinds = pb.WatchProcessesResponse
        if event.kind == kinds.KIND_INCIDENT:
            state = pb.Incident.State.Name(event.incident.state).removeprefix("STATE_")
            self._say(
                f"incident {event.incident.id} of {event.account} ({event.incident.job_name}): "
                f"{state}: {event.detail}"
            )
        elif event.kind in (kinds.KIND_ALARM, kinds.KIND_WATCHDOG):
            self._say(f"watchdog: {event.detail}")

    def alarm(self, detail: str, account: str = "", *, once: str = "") -> None:
        """Tells of something that a person should look at; `once` names it, to say it once."""
        if once and once in self._alarmed:
            return
        if once:
            self._alarmed.add(once)
        kind = pb.WatchProcessesResponse.KIND_ALARM
        self.tell(pb.WatchProcessesResponse(kind=kind, account=account, detail=detail))

    def _turn(self) -> float:
        """Does what is due; returns how long nothing will be."""
        now_s = time.monotonic()
        period_s = self.settings.period_ms / 1000
        for held in self.table.ended():
            self._ended_ns[held.pid] = time.monotonic_ns()
            self.attributor.forget(held)
        sample = self._poller.take()
        if sample is not None:
            self._see(sample)
        active = self.cases.has_active
        if now_s >= self._next_sample_s or (active and not self._poller.is_waiting):
            self._poller.ask()
            self._next_sample_s = now_s + (min(period_s, _ACTIVE_SAMPLE_S) if active else period_s)
        if sample is not None or active or now_s >= self._next_look_s:
            self._next_look_s = now_s + min(period_s, 1.0)
            self._look(fresh=sample is not None)
        if self._poller.is_waiting:
            return _WAITING_WAKE_S
        wake_s = min(self._next_sample_s, self._next_look_s) - time.monotonic()
        return max(0.0, min(wake_s, _ACTIVE_WAKE_S) if self.cases.has_active else wake_s)

    def _see(self, sample: Sample) -> None:
        """Takes a sample in: whose is what, what was used, who is over."""
        by_pid: dict[int, list[tuple[str, GpuProcess]]] = defaultdict(list)
        for device in sample.devices:
            for process in device.processes or ():
                by_pid[process.pid].append((device.uuid, process))
        self.view = View(sample, by_pid, is_stale=False)
        self._tell_health(sample)
        if sample.health is not Health.WATCHING:
            return
        self._attribute(by_pid)
        owners = {pid: whose.account for pid, whose in self.owners.items()}
        metered = self.meter.step(sample, owners, ended=self._ended_ns)
        self._ended_ns = {}
        self._book(metered)
        for gap in metered.gaps:
            missed_ms = (gap.until_ns - gap.since_ns - gap.charged_ns) // 1_000_000
            self.alarm(f"{gap.uuid} was not read for a while: {missed_ms} ms are charged to nobody")
        self._notice_faults(sample)

    def _attribute(self, by_pid: dict[int, list[tuple[str, GpuProcess]]]) -> None:
        owners: dict[int, Attribution] = {}
        listed: list[tuple[int, int]] = []
        usage = _Usage()
        pids = () if self._namespaced else by_pid
        for pid in pids:
            held = self.table.hold(pid)
            if held is None:
                continue
            listed.append(held.identity)
            whose = owners[pid] = self.attributor.whose(held)
            if whose.conflict:
                text = f"process {pid} is {whose.account}'s by its cgroup, but {whose.conflict}"
                self.alarm(text, whose.account, once=f"conflict {held.identity}")
            if whose.account:
                self._count(usage, whose, pid, by_pid[pid])
        self.owners = owners
        self.usage = usage
        self.server.set_gpu_processes(listed)

    def _count(
        self, usage: _Usage, whose: Attribution, pid: int, found: Iterable[tuple[str, GpuProcess]]
    ) -> None:
        job = whose.job_id or container_id(whose.account)
        usage.pids_by_job.setdefault(job, set()).add(pid)
        for uuid, process in found:
            usage.devices_by_job.setdefault(job, set()).add(uuid)
            size = process.vram_bytes or 0
            usage.vram_by_job[job] = usage.vram_by_job.get(job, 0) + size
            if "M" in process.contexts:
                usage.mps_jobs.add(job)

    def _book(self, metered: Metered) -> None:
        """Carries what was metered into the ledger, and makes the holds of memory follow."""
        now_ms = boot_ms()
        for account, amounts in metered.amounts.items():
            for meter, amount in amounts.items():
                self.totals[account][meter] += amount
            self.books.spend(account, self._in_ledger_units(amounts), now_ms)
        for meter, amount in metered.unattributed.items():
            self.totals[""][meter] += amount
        self.totals[""]["host_idle_mj"] += metered.host_idle_mj
        for account in self.books.unknown - self._alarmed:
            self._alarmed.add(account)
            self.alarm(f"there is no account {account}: what it uses of GPUs is not charged", account)
        self.usage.vram_by_account = dict(metered.vram_bytes)
        self._occupy(now_ms)

    def _in_ledger_units(self, amounts: dict[str, int]) -> dict[str, int]:
        busy = amounts.get("gpu_busy_ms", 0) + amounts.get("gpu_estimated_ms", 0)
        allocated = amounts.get("gpu_alloc_ms", 0)
        units = {
            "gpu_ms": allocated if self.settings.gpu_time == "allocated" else busy,
            "vram_mib_s": amounts.get("vram_mib_s", 0),
            "energy_mj": amounts.get("energy_mj", 0),
        }
        return {unit: amount for unit, amount in units.items() if amount}

    def _occupy(self, now_ms: int) -> None:
        """Holds what each account has in use, or was promised, or has stuck."""
        wanted = dict(self.usage.vram_by_account)
        for case in self.cases:
            if case.standing.phase in _STUCK:
                account = case.incident.account
                stuck = self.cases.stuck_bytes(case, self.view)
                wanted[account] = max(wanted.get(account, 0), stuck)
        for kept in self.jobs:
            account = kept.job.account
            declared = next((a.value for a in kept.job.limits if a.unit == "vram_bytes"), 0)
            if declared:
                wanted[account] = max(wanted.get(account, 0), declared)
            if kept.reservation and account in wanted:
                covered = self.books.vram_of(kept.reservation)
                wanted[account] = max(0, wanted[account] - covered)
        for account in self.books.occupied() | wanted.keys():
            over = self.books.occupy(account, wanted.get(account, 0), now_ms)
            if over is not None:
                self.usage.over[account] = over

    def _notice_faults(self, sample: Sample) -> None:
        now_ms = boot_ms()
        for case in self.cases:
            if case.standing.phase in (Phase.KILL, Phase.VERIFY):
                self._last_kill_ms.update(dict.fromkeys(case.bytes_by_device, now_ms))
        for uuid, number in sample.xids:
            if number in _OWN_XIDS and now_ms - self._last_kill_ms.get(uuid, -_OWN_XID_MS) < _OWN_XID_MS:
                continue
            self.alarm(f"GPU {uuid} reports the fault XID {number}")

    def _tell_health(self, sample: Sample) -> None:
        if sample.health is self._health:
            return
        first = self._health is None
        self._health = sample.health
        status = self.status()
        if first and sample.health is Health.NO_NVML:
            text = f"no GPUs are watched ({sample.detail}); jobs are"
        elif sample.health is Health.WATCHING:
            count = len(sample.devices)
            text = f"watching {count} GPU{'s' * (count != 1)}, driver {sample.driver_version}"
        else:
            text = f"the GPUs can no longer be seen: {sample.detail}"
        kind = pb.WatchProcessesResponse.KIND_WATCHDOG
        self.tell(pb.WatchProcessesResponse(kind=kind, detail=text, watchdog=status))

    def status(self) -> pb.Watchdog:
        """What the watchdog can see, for callers."""
        states = {
            Health.WATCHING: pb.Watchdog.STATE_WATCHING,
            Health.NO_NVML: pb.Watchdog.STATE_NO_NVML,
            Health.BLIND: pb.Watchdog.STATE_BLIND,
        }
        sample = self.view.sample
        status = pb.Watchdog(
            state=states[sample.health] if sample else pb.Watchdog.STATE_NO_NVML,
            detail=sample.detail if sample else "the first sample has not come yet",
            mode="enforce" if self.settings.enforce else "observe",
            held_back=self._held_back(),
        )
        if self._namespaced:
            status.detail = "; ".join(filter(None, (status.detail, _NAMESPACE)))
        if sample is not None:
            status.driver_version = sample.driver_version
            age_ns = time.monotonic_ns() - sample.time_ns
            status.sample_time.FromNanoseconds(time.time_ns() - age_ns)
        return status

    def _held_back(self) -> str:
        if boot_ms() < self._breaker_until_ms:
            return "the breaker is open: too many accounts were to be stopped at once"
        return ""

    def _look(self, *, fresh: bool) -> None:
        """Looks at every job and incident."""
        now_ms = boot_ms()
        sample = self.view.sample
        if sample is not None and self.view.is_stale is False:
            age_ns = time.monotonic_ns() - sample.time_ns
            if age_ns > 2_000_000 * max(self.settings.period_ms, 500):
                self.view = View(sample, self.view.by_pid, is_stale=True)
        for case in self.cases:
            self._advance(case, now_ms)
        due = self._due(now_ms, fresh=fresh)
        self._break(due, now_ms)
        for kept, incident in due:
            self._open_case(kept, incident, now_ms)
        for kept in self.jobs:
            if self.jobs.is_ended(kept) and self.cases.of_job(kept.job.id) is None:
                self._end_job(kept)

    def _due(self, now_ms: int, *, fresh: bool) -> list[tuple[Kept, pb.Incident]]:
        """The jobs that are to be stopped from now on, and why."""
        windows = _Windows(self.books)
        due = []
        breached = self._vram_breaches(now_ms, fresh=fresh)
        for kept in (*self.jobs, *self._containers()):
            if self.cases.of_job(kept.job.id) is not None:
                continue
            incident = self._wall(kept, now_ms) or self._budget(kept, windows, now_ms)
            incident = incident or breached.get(kept.job.id)
            if incident is None:
                self._quiet.pop(kept.job.id, None)
            elif self._is_news(kept, incident, now_ms):
                due.append((kept, incident))
        return due

    def _is_news(self, kept: Kept, incident: pb.Incident, now_ms: int) -> bool:
        """Whether this has not just been dealt with, and no other incident is in the way."""
        why, until_ms = self._quiet.get(kept.job.id, ("", 0))
        if why == _why(incident) and now_ms < until_ms:
            return False
        if incident.unit in GPU_UNITS:
            settling = now_ms - self._started_ms < self.settings.settle_ms
            devices = self.usage.devices_by_job.get(kept.job.id, ())
            return not (settling or self.view.is_stale or any(map(self.cases.on_device, devices)))
        return True

    def _wall(self, kept: Kept, now_ms: int) -> pb.Incident | None:
        if not kept.job.HasField("wall_limit"):
            return None
        limit_ms = kept.job.wall_limit.ToMilliseconds()
        used_ms = now_ms - kept.start_boot_ms
        if used_ms < limit_ms:
            return None
        return pb.Incident(
            cause=pb.Incident.CAUSE_WALL_TIME,
            limit=limit_ms,
            used=used_ms,
            reason=f"it ran for {used_ms / 1000:g} s and may run for {limit_ms / 1000:g} s",
        )

    def _budget(self, kept: Kept, windows: "_Windows", now_ms: int) -> pb.Incident | None:
        """A budget that is used up: one of the GPU for who is on one, any for who is to be enforced."""
        on_gpu = kept.job.id in self.usage.pids_by_job
        for balance in windows.of(kept.job.account):
            self._warn(balance.account, balance.unit, balance.spent, balance.limit, now_ms)
            if balance.unit in ("vram_bytes", "concurrency") or balance.spent < balance.limit:
                continue
            mine = balance.account == kept.job.account
            concerns = on_gpu if balance.unit in GPU_UNITS else kept.job.enforce and mine
            if concerns and balance.spent > 0:
                over = Over(balance.account, balance.unit, balance.limit, balance.spent)
                return over_incident(over)
        return None

    def _vram_breaches(self, now_ms: int, *, fresh: bool) -> dict[str, pb.Incident]:
        """For each account whose memory is over for long enough: its largest job."""
        found = {}
        accounts = {account for account, unit in self._guards if unit == "vram over"}
        for account in accounts | self.usage.over.keys():
            key = (account, "vram over")
            over = self.usage.over.get(account)
            guard = self._guards.get(key, Guard())
            if fresh:
                guard = guard.measure(over=over is not None, now_ms=now_ms)
            self._guards[key] = guard
            if over is None:
                self._guards.pop(key)
            elif guard.is_breach(now_ms, self.settings.vram_patience_ms):
                job = self._largest(account)
                if job:
                    found[job] = over_incident(over)
        return found

    def _largest(self, account: str) -> str:
        sizes = self.usage.vram_by_job
        jobs = [one.job.id for one in self.jobs if one.job.account == account]
        return max((*jobs, container_id(account)), key=lambda job: sizes.get(job, -1), default="")

    def _warn(self, account: str, unit: str, spent: int, limit: int, _: int) -> None:
        key = (account, unit)
        permille = spent * 1000 // limit if limit > 0 else 0
        guard, share = self._guards.get(key, Guard()).warn(permille)
        self._guards[key] = guard
        if share:
            kind = pb.WatchProcessesResponse.KIND_SOFT_LIMIT
            text = f"{account} has spent {share // 10} % of its {unit}"
            self.tell(pb.WatchProcessesResponse(kind=kind, account=account, detail=text))

    def _containers(self) -> list[Kept]:
        """What is on the GPUs and belongs to an account without a job, as if it were one."""
        found = {}
        for whose in self.owners.values():
            if whose.account and not whose.job_id:
                job = pb.Job(
                    id=container_id(whose.account), name="container", account=whose.account, uid=-1
                )
                job.term_grace.FromMilliseconds(self.settings.term_grace_ms)
                found[whose.account] = Kept(job, 0, None, 0, False, "", 0, self.boot)  # noqa: FBT003
        return list(found.values())

    def members(self, kept: Kept) -> list[Held]:
        """The processes of a job that live, those on GPUs included."""
        listed = self.usage.pids_by_job.get(kept.job.id, set())
        if is_container(kept.job.id):
            held = [one for pid in listed if (one := self.table.hold(pid)) is not None]
            return [one for one in held if self.table.is_alive(*one.identity)]
        return self.jobs.members(kept, listed)

    def forbidden(self, kept: Kept, cause: pb.Incident.Cause, now_ms: int) -> str:
        """Why nobody of a job may be signalled; empty: they may."""
        if cause == pb.Incident.CAUSE_OPERATOR:
            return ""
        if is_container(kept.job.id) and not self.settings.signal_containers:
            return "it is a container's, and its runtime is who stops it"
        if not (self.settings.enforce or kept.job.enforce):
            return "the mode is observe"
        if kept.job.id in self.usage.mps_jobs:
            return "it is a client of MPS, and its end could take the other clients along"
        if not kept.job.enforce and self._held_back():
            return self._held_back()
        del now_ms
        return ""

    def _break(self, due: list[tuple[Kept, pb.Incident]], now_ms: int) -> None:
        """Opens the breaker when several accounts, with most of the host's GPU processes, are due."""
        ordered = [kept for kept, _ in due if not kept.job.enforce]
        accounts = {one.job.account for one in ordered}
        pids = {pid for one in ordered for pid in self.usage.pids_by_job.get(one.job.id, ())}
        if self.settings.enforce and len(accounts) > 1 and 2 * len(pids) > len(self.view.by_pid):
            if now_ms >= self._breaker_until_ms:
                text = f"{len(accounts)} accounts with {len(pids)} of {len(self.view.by_pid)} processes"
                self.alarm(f"the breaker opens for 10 min: {text} were to be stopped at once")
            self._breaker_until_ms = now_ms + _BREAKER_MS

    def _open_case(self, kept: Kept, incident: pb.Incident, now_ms: int) -> None:
        if incident.unit in GPU_UNITS and any(
            map(self.cases.on_device, self.usage.devices_by_job.get(kept.job.id, ()))
        ):
            return  # one account at a time on each GPU
        forbidden = self.forbidden(kept, incident.cause, now_ms)
        if not forbidden and not kept.job.enforce:
            forbidden = self.cases.is_limited(kept.job.account, now_ms)
        members = self.members(kept)
        case = self.cases.open(
            kept, incident, self.view, members, forbidden=forbidden, now_ms=now_ms
        )
        self._step(case, kept, members, forbidden, now_ms)

    def _advance(self, case: Case, now_ms: int) -> None:
        kept = self.jobs.get(case.incident.job) or self._container(case)
        forbidden = self.forbidden(kept, case.incident.cause, now_ms)
        self._step(case, kept, self.members(kept), forbidden, now_ms)

    def _container(self, case: Case) -> Kept:
        job = pb.Job(id=case.incident.job, account=case.incident.account, uid=-1)
        job.term_grace.FromMilliseconds(self.settings.term_grace_ms)
        return Kept(job, 0, None, 0, False, "", 0, case.boot)  # noqa: FBT003

    def _step(
        self, case: Case, kept: Kept, members: list[Held], forbidden: str, now_ms: int
    ) -> None:
        self.cases.advance(
            case,
            kept,
            self.view,
            members,
            over=self._is_over(case),
            forbidden=forbidden,
            now_ms=now_ms,
        )
        phase = case.standing.phase
        if phase in (Phase.CANCELLED, Phase.OBSERVED):
            until = now_ms + (_COOL_DOWN_MS if phase is Phase.CANCELLED else 2**62)
            self._quiet[kept.job.id] = _why(case.incident), until

    def _is_over(self, case: Case) -> bool:
        """Whether the limit that an incident is about is still passed."""
        incident = case.incident
        if incident.cause != pb.Incident.CAUSE_BUDGET:
            return True
        if incident.unit == "vram_bytes":
            return incident.account in self.usage.over or not self.view.is_seeing
        windows = self.books.windows([incident.limit_account])
        balances = [one for one in windows if one.unit == incident.unit]
        return not balances or any(one.spent >= one.limit for one in balances)

    def _end_job(self, kept: Kept) -> None:
        self.jobs.remove(kept)
        self.attributor.forget_job(kept.job.id)
        self._quiet.pop(kept.job.id, None)
        self._forget_job(kept)
        event = pb.WatchProcessesResponse(
            kind=pb.WatchProcessesResponse.KIND_JOB_ENDED,
            account=kept.job.account,
            detail=f"job {kept.job.name} has ended",
            job=kept.job,
        )
        self.tell(event)

    def _forget_job(self, kept: Kept) -> None:
        from bursar.watchdog import cgroups

        if kept.job.cgroup and kept.boot == self.boot and cgroups.inode(kept.job.cgroup):
            cgroups.remove(kept.job.cgroup)
        shared = any(one.job.account == kept.job.account for one in self.jobs)
        if kept.own_account:
            if not self.books.retire(kept.job.account):
                self._retiring.add(kept.job.account)
        elif not shared:
            self.books.settle(kept.job.account)
        self.journal.delete_job(kept.job.id)


class _Windows:
    """The windows of accounts and their ancestors, each asked for once."""

    def __init__(self, books: Books) -> None:
        self._books = books
        self._known: dict[str, list] = {}

    def of(self, account: str) -> list:
        """Its own windows and its ancestors'."""
        found = []
        for one in chain(account):
            if one not in self._known:
                self._known[one] = self._books.windows([one])
            found += self._known[one]
        return found


def container_id(account: str) -> str:
    """The id of what is on the GPUs for an account without a job."""
    return f"container:{account}"


def is_container(job_id: str) -> bool:
    """Whether an id is one of those."""
    return job_id.startswith("container:")


def _why(incident: pb.Incident) -> str:
    return f"{incident.cause} {incident.limit_account} {incident.unit} {incident.limit}"
