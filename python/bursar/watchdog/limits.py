"""Which jobs are to be stopped, and why: wall time, budgets that are spent, memory that is passed.

It decides and tells of shares of a limit that are reached; opening an incident is the loop's. What
a job may be stopped for depends on who asked: a job that was registered to be enforced is stopped
at a hard limit of any unit, in every mode; others only for what they use of GPUs, and only where
the mode is "enforce".
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from bursar.units import show_duration
from bursar.v1 import process_pb2 as pb
from bursar.watchdog.books import Books, Over, chain
from bursar.watchdog.cases import GPU_UNITS, Cases, over_incident
from bursar.watchdog.escalation import Guard, Phase
from bursar.watchdog.gpus import Gpus, account_of, container_id, is_container
from bursar.watchdog.jobs import Jobs, Kept
from bursar.watchdog.journal import Case
from bursar.watchdog.processes import Held
from bursar.watchdog.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from bursar.v1 import ledger_pb2 as lg

__all__ = ["Due", "Limits"]

_COOL_DOWN_MS: Final = 60_000
_BREAKER_MS: Final = 600_000
_BREAKER_OPEN: Final = "the breaker is open: too much was to be stopped at once"
_SHARES_MAX: Final = 10_000  # beyond, the one told of longest ago may be told of again
_CAPACITIES: Final = frozenset({"vram_bytes", "concurrency"})

Due = tuple[Kept, pb.Incident]


@dataclass(slots=True)
class _Quiet:
    """A job that is left alone after an incident that stopped nobody.

    Attributes:
        about: What the incident was about.
        until_ms: When the same may be news again.
        lasts: Whether that is put off for as long as the limit is passed.
    """

    about: str
    until_ms: int
    lasts: bool


class Limits:
    """Decides who is due. Not safe to share between threads.

    Args:
        settings: What the configuration says.
        jobs: The registered jobs.
        books: Knows what is spent.
        cases: The open incidents.
        tell: Takes each event.
        start_ms: When the watchdog started, by CLOCK_BOOTTIME.
    """

    def __init__(
        self,
        settings: Settings,
        jobs: Jobs,
        books: Books,
        cases: Cases,
        *,
        tell: "Callable[[pb.WatchProcessesResponse], None]",
        start_ms: int,
    ) -> None:
        self._settings = settings
        self._jobs = jobs
        self._books = books
        self._cases = cases
        self._tell = tell
        self._start_ms = start_ms
        self._guards: dict[str, Guard] = {}
        self._shares: dict[tuple[str, str, str], Guard] = {}
        self._quiet: dict[str, _Quiet] = {}
        self._breaker_until_ms = 0
        self._measured_ms = start_ms

    def recover(self, recent: Iterable[Case]) -> None:
        """Opens the breaker again where it was open: as long after what it has held back last.

        Args:
            recent: The incidents of the last ten minutes.
        """
        held_back = [one.opened_ms for one in recent if one.forbidden == _BREAKER_OPEN]
        self._breaker_until_ms = max(held_back, default=-_BREAKER_MS) + _BREAKER_MS

    def measure(self, over: Iterable[str], now_ms: int) -> None:
        """Takes in which accounts' memory is over, once for each sample."""
        accounts = set(over)
        for account in accounts:
            guard = self._guards.get(account, Guard())
            self._guards[account] = guard.measure(over=True, now_ms=now_ms)
        self._measured_ms = now_ms
        self._guards = {account: self._guards[account] for account in accounts}

    def due(self, gpus: Gpus, over: dict[str, Over], now_ms: int) -> list[Due]:
        """The jobs that are to be stopped from now on, and why."""
        passed = self._memory_passed(gpus, over)
        due = []
        for kept in (*self._jobs, *gpus.containers(self._settings.term_grace_ms)):
            if self._cases.of_job(kept.job.id) is not None:
                continue
            incident = self._wall(kept, now_ms) or self._spent(kept, gpus)
            incident = incident or passed.get(kept.job.id)
            if incident is not None and self._is_news(kept, incident, gpus, now_ms):
                due.append((kept, incident))
        self._break(due, gpus, now_ms)
        return due

    def next_wall_ms(self, now_ms: int) -> int:
        """In how many milliseconds a job has run for as long as it may, if one soon has."""
        ends = (
            kept.start_boot_ms + kept.job.wall_limit.ToMilliseconds()
            for kept in self._jobs
            if kept.job.HasField("wall_limit")
        )
        return max(10, min((end - now_ms for end in ends if end > now_ms), default=_COOL_DOWN_MS))

    def forbidden(
        self, kept: Kept, cause: int, gpus: Gpus, members: Iterable[Held], now_ms: int
    ) -> str:
        """Why nobody of a job may be signalled; empty: they may."""
        if cause == pb.Incident.CAUSE_OPERATOR:
            return ""
        if is_container(kept.job.id) and not self._settings.signal_containers:
            return "it is a container's, and its runtime is who stops it"
        if not gpus.mps.isdisjoint(one.identity for one in members):
            return "it is a client of MPS, and its end could take the other clients along"
        if kept.job.enforce:
            return ""
        return "the mode is observe" if not self._settings.enforce else self.held_back(now_ms)

    def held_back(self, now_ms: int) -> str:
        """Why nobody but the jobs to be enforced is signalled for now."""
        if now_ms < self._breaker_until_ms:
            return _BREAKER_OPEN
        return ""

    def rest(self, kept: Kept, incident: pb.Incident, phase: Phase, now_ms: int) -> None:
        """Leaves a job alone after an incident that stopped nobody, until it is over anew."""
        if phase not in {Phase.CANCELLED, Phase.OBSERVED}:
            return
        # What holds back for a time is no reason to let a runaway go on for good.
        passes = self.held_back(now_ms) or self._cases.is_limited(kept.job.account, now_ms)
        lasts = phase is Phase.OBSERVED and not (self._settings.enforce and passes)
        until_ms = now_ms + (_COOL_DOWN_MS if lasts or phase is Phase.CANCELLED else _BREAKER_MS)
        self._quiet = {job: one for job, one in self._quiet.items() if now_ms < one.until_ms}
        self._quiet[kept.job.id] = _Quiet(_about(incident), until_ms, lasts)

    def forget(self, kept: Kept) -> None:
        """Forgets a job that has ended, and its account if that was its own."""
        self._quiet.pop(kept.job.id, None)
        if kept.own_account:
            account = kept.job.account
            self._shares = {key: one for key, one in self._shares.items() if key[0] != account}

    def _is_news(self, kept: Kept, incident: pb.Incident, gpus: Gpus, now_ms: int) -> bool:
        quiet = self._quiet.get(kept.job.id)
        if quiet is not None and quiet.about == _about(incident) and now_ms < quiet.until_ms:
            if quiet.lasts:
                quiet.until_ms = now_ms + _COOL_DOWN_MS
            return False
        if incident.unit not in GPU_UNITS:
            return True
        settled = now_ms - self._start_ms >= self._settings.settle_ms
        return settled and not gpus.view.is_stale

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
            reason=f"it ran for {show_duration(used_ms)} and may run for {show_duration(limit_ms)}",
        )

    def _spent(self, kept: Kept, gpus: Gpus) -> pb.Incident | None:
        """A budget that is used up: of GPUs for who is on one, any for who is to be enforced."""
        on_gpu = kept.job.id in gpus.pids_by_job
        for account in chain(kept.job.account):
            for balance in self._books.seen(account):
                self._warn(balance)
                if not 0 < balance.spent >= balance.limit:
                    continue
                mine = kept.job.enforce and account in {kept.job.account, kept.named_account}
                concerned = on_gpu if balance.unit in GPU_UNITS else mine
                if concerned and balance.unit not in _CAPACITIES:
                    over = Over(account, balance.unit, balance.limit, balance.spent)
                    return over_incident(over)
        return None

    def _memory_passed(self, gpus: Gpus, over: dict[str, Over]) -> dict[str, pb.Incident]:
        """For each account whose memory has been over for long enough: its largest job.

        Where a limit is passed because it was lowered, nobody below it is to blame more than the
        others: it is the largest job of them all.
        """
        patience_ms = self._settings.vram_patience_ms
        accounts = {container_id(account): account for account in self._guards}
        accounts |= {job: account_of(job) for job in gpus.vram_by_job if is_container(job)}
        accounts |= {kept.job.id: kept.job.account for kept in self._jobs}
        found = {}
        for account, guard in self._guards.items():
            # As of the latest sample: time alone, without another one, makes no breach.
            if account not in over or not guard.is_breach(self._measured_ms, patience_ms):
                continue
            passed = over[account]
            concerned = (
                job
                for job, whose in accounts.items()
                if whose == account or (not passed.has_grown and passed.account in chain(whose))
            )
            largest = max(concerned, key=lambda job: gpus.vram_by_job.get(job, -1))
            found[largest] = over_incident(passed)
        return found

    def _warn(self, balance: "lg.Balance") -> None:
        if balance.limit <= 0:
            return
        permille = balance.spent * 1000 // balance.limit
        if permille < Guard.SOFT_PERMILLE[0] and not self._shares:
            return  # as most are, at every look
        key = (balance.account, balance.unit, balance.period)
        guard, share = self._shares.get(key, Guard()).warn(permille)
        if share:
            text = f"{balance.account} has spent {share // 10} % of its {balance.unit}"
            kind = pb.WatchProcessesResponse.KIND_SOFT_LIMIT
            event = pb.WatchProcessesResponse(kind=kind, account=balance.account, detail=text)
            self._tell(event)
        if guard.soft_permille:
            self._shares.pop(key, None)
            self._shares[key] = guard
            if len(self._shares) > _SHARES_MAX:
                del self._shares[next(iter(self._shares))]
        else:
            self._shares.pop(key, None)

    def _break(self, due: list[Due], gpus: Gpus, now_ms: int) -> None:
        """Opens the breaker when several limits, with most of the host's GPU processes, are due.

        One limit alone never opens it: a host often has a single job, and a team's budget many.
        Neither do jobs that were registered to be enforced: their limits are their owners' orders.
        """
        if not self._settings.enforce:
            return
        found = [(kept.job, incident) for kept, incident in due if not kept.job.enforce]
        limits = {(incident.limit_account, incident.unit) for _, incident in found}
        pids = {pid for job, _ in found for pid in gpus.pids_by_job.get(job.id, ())}
        total = len(gpus.view.by_pid)
        if len(limits) < 2 or 2 * len(pids) <= total:  # noqa: PLR2004 -- see above; half of them
            return
        if now_ms >= self._breaker_until_ms:
            kind = pb.WatchProcessesResponse.KIND_ALARM
            text = f"{len(limits)} limits with {len(pids)} of {total} GPU processes"
            text = f"the breaker opens for 10 min: {text} were to be enforced at once"
            self._tell(pb.WatchProcessesResponse(kind=kind, detail=text))
        self._breaker_until_ms = now_ms + _BREAKER_MS


def _about(incident: pb.Incident) -> str:
    return f"{incident.cause} {incident.limit_account} {incident.unit} {incident.limit}"
