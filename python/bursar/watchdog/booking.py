"""From a sample to the ledger: meters it, charges the accounts, makes the holds of memory follow.

It owns what was metered since the start and which accounts' memory is over; the calls are `books`'.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Final, Literal

from bursar.watchdog.books import Books, Over, chain
from bursar.watchdog.cases import Cases
from bursar.watchdog.escalation import Phase
from bursar.watchdog.gpus import Gpus
from bursar.watchdog.jobs import Jobs
from bursar.watchdog.journal import Case
from bursar.watchdog.metering import Meter, Metered
from bursar.watchdog.samples import Sample

__all__ = ["Booking"]

TOTALS_MAX: Final = 4096
"""The most accounts whose totals are kept apart; the one idle longest is added to the one above."""

_ENDED: Final = frozenset({Phase.VERIFY, Phase.UNVERIFIED, Phase.RECLAIM_FAILED})


class Booking:
    """Charges what samples say. Not safe to share between threads.

    Args:
        books: The ledger's reservations.
        jobs: The registered jobs, for what they were promised.
        cases: The open incidents, for what is stuck.
        gpu_time: What is charged as gpu_ms.
        period_ns: How far apart samples are meant to be.

    Attributes:
        totals: By account and meter, since the start, the one idle longest first; "" is nobody.
        over: The accounts whose memory is over a limit.
    """

    def __init__(
        self,
        books: Books,
        jobs: Jobs,
        cases: Cases,
        *,
        gpu_time: Literal["allocated", "busy"],
        period_ns: int,
    ) -> None:
        self._books = books
        self._jobs = jobs
        self._cases = cases
        self._gpu_time = gpu_time
        self._meter = Meter(period_ns=period_ns)
        self._unsure: set[str] = set()
        self._retired: set[str] = set()
        self.totals: dict[str, dict[str, int]] = {}
        self.over: dict[str, Over] = {}

    def step(self, sample: Sample, gpus: Gpus, ended_ns: Mapping[int, int], now_ms: int) -> Metered:
        """Charges what was used since the sample before.

        Args:
            sample: A sample that saw the GPUs.
            gpus: Whose the processes are.
            ended_ns: By pid: when it ended, by the sample's clock.
            now_ms: By CLOCK_BOOTTIME.
        """
        owners = {pid: whose.account for pid, whose in gpus.whose.items()}
        metered = self._meter.step(sample, owners, ended=ended_ns)
        for account, amounts in metered.amounts.items():
            payer = self._payer(account)
            self._add(payer, amounts)
            self._books.spend(payer, self._in_ledger_units(amounts), now_ms)
        self._add("", metered.unattributed | {"host_idle_mj": metered.host_idle_mj})
        while len(self.totals) > TOTALS_MAX:
            self._fold(next(iter(self.totals)))
        unsure = metered.unseen | metered.divided
        self._unsure = {one for account in unsure for one in chain(account)}
        in_use: dict[str, int] = defaultdict(int)
        for account, size in metered.vram_bytes.items():
            in_use[self._payer(account)] += size
        self._retired &= self._meter.accounts
        self._occupy(in_use, gpus, now_ms)
        return metered

    def _payer(self, account: str) -> str:
        """Who pays for an account: the one above it, where it is no more and would come back."""
        return account.rpartition("/")[0] if account in self._retired else account

    def _add(self, account: str, amounts: Mapping[str, int]) -> None:
        totals = self.totals.pop(account, None) or defaultdict(int)
        for meter, amount in amounts.items():
            totals[meter] += amount
        self.totals[account] = totals

    def only_held(self, ended_ns: Mapping[int, int]) -> dict[int, int]:
        """Those of the processes that have ended which are still to be charged."""
        held = self._meter.pids
        return {pid: when for pid, when in ended_ns.items() if pid in held}

    @property
    def over_now(self) -> list[str]:
        """The accounts that are over by what is seen now, and is theirs.

        Not by what was there when last seen, nor by an equal share of what may be another's; and
        not those whose limit was lowered while a job is being stopped for it: it may be enough.
        """
        stopping = {case.incident.limit_account for case in self._cases if _is_about_memory(case)}
        return [
            one
            for one, over in self.over.items()
            if over.account not in self._unsure and (over.has_grown or over.account not in stopping)
        ]

    def is_over(self, account: str, limit_account: str) -> bool:
        """Whether memory is over: an account's own, or a limit above it that was lowered."""
        lowered = (one.account for one in self.over.values() if not one.has_grown)
        return account in self.over or limit_account in lowered

    def retire(self, account: str) -> None:
        """Makes the account above pay for one that is no more, also for what is still to come."""
        if account in self._meter.accounts:
            self._retired.add(account)
        self._fold(account)

    def _fold(self, account: str) -> None:
        """Adds the totals of an account to the one above it; without one, they are forgotten."""
        amounts, above = self.totals.pop(account, None), account.rpartition("/")[0]
        if amounts and above:
            self._add(above, amounts)

    def _in_ledger_units(self, amounts: dict[str, int]) -> dict[str, int]:
        busy = amounts.get("gpu_busy_ms", 0) + amounts.get("gpu_estimated_ms", 0)
        allocated = amounts.get("gpu_alloc_ms", 0)
        units = {
            "gpu_ms": allocated if self._gpu_time == "allocated" else busy,
            "vram_mib_s": amounts.get("vram_mib_s", 0),
            "energy_mj": amounts.get("energy_mj", 0),
        }
        return {unit: amount for unit, amount in units.items() if amount}

    def _occupy(self, in_use: Mapping[str, int], gpus: Gpus, now_ms: int) -> None:
        """Holds the memory that each account uses, was promised, or has stuck."""
        wanted, lost = self._wanted(in_use, gpus), self._stuck(gpus)
        promised, counted = self._promised(), dict(in_use)
        self.over = {}
        # Those below first: what passes an account's own limit is held on the one above it.
        accounts = {above for one in wanted.keys() | promised.keys() for above in chain(one)}
        accounts |= self._books.occupied
        for account in sorted(accounts, key=lambda one: one.count("/"), reverse=True):
            size = wanted.get(account, 0)
            over = self._books.occupy(account, max(size, promised.get(account, 0)), now_ms)
            beyond = size - self._books.held_bytes(account)
            if over is None or beyond <= 0:  # what is promised and not in use passes nothing
                continue
            counted[account] = max(0, counted.get(account, 0) - beyond)
            if over.account == account and "/" in account:
                above = account.rpartition("/")[0]
                wanted[above] = wanted.get(above, 0) + beyond
                lost[above] = lost.get(above, 0) + beyond
            # What a job that has ended leaves behind is held, but no other job can help it.
            if over.used - lost.get(account, 0) > over.limit:
                self.over[account] = over
        self._find_lowered(counted)

    def _find_lowered(self, in_use: Mapping[str, int]) -> None:
        """Finds limits below what is in use, of which nothing was refused when it was taken.

        What is only promised, or held by others, passes no limit: nobody here could give it back.
        """
        below: Counter[str] = Counter()
        for account, size in in_use.items():
            below.update(dict.fromkeys(chain(account), size))
        passed = {
            account: Over(account, "vram_bytes", one.limit, size, has_grown=False)
            for account, size in below.items()
            for one in self._books.seen(account)
            if one.unit == "vram_bytes" and size > one.limit
        }
        for account in in_use if passed else ():
            found = [passed[one] for one in chain(account) if one in passed]
            if found and in_use[account]:
                self.over.setdefault(account, found[0])

    def _wanted(self, in_use: Mapping[str, int], gpus: Gpus) -> dict[str, int]:
        """How much memory each account uses beyond the holds of its jobs' own clients."""
        wanted = dict(in_use)
        for case in self._cases:
            account = case.incident.account
            stuck = self._cases.stuck_bytes(case, gpus.view, but=gpus.whose)
            wanted[account] = wanted.get(account, 0) + stuck
        for kept in self._jobs:
            account = kept.job.account
            if kept.reservation and account in wanted:
                covered = self._books.vram_of(kept.reservation)
                wanted[account] = max(0, wanted[account] - covered)
        return wanted

    def _promised(self) -> dict[str, int]:
        """How much memory jobs have asked for when they were registered, by account."""
        promised: Counter[str] = Counter()
        for kept in self._jobs:
            size = sum(one.value for one in kept.job.limits if one.unit == "vram_bytes")
            if size:
                promised[kept.job.account] += size
        return promised

    def _stuck(self, gpus: Gpus) -> dict[str, int]:
        """What jobs that have ended have left on the GPUs, by account."""
        found: dict[str, int] = {}
        for case in self._cases:
            if case.standing.phase in _ENDED:
                account = case.incident.account
                size = self._cases.stuck_bytes(case, gpus.view, but=gpus.whose)
                found[account] = found.get(account, 0) + size
        return found


def _is_about_memory(case: Case) -> bool:
    return case.incident.unit == "vram_bytes" and not case.standing.phase.is_over
