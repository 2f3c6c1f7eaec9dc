"""The synchronous client: one method per call, the same over gRPC and embedded.

Methods raise `bursar.BursarError`s only. Repeats are safe: calls that spend get an idempotency key
when none is given, and all others are idempotent by nature.
"""

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import Self, TypeVar

from bursar import _calls as calls
from bursar import _entry_calls as entry_calls
from bursar import _process_calls as process_calls
from bursar._away import NEVER_AWAY, Away, Patience
from bursar._embedded import EmbeddedTransport
from bursar._local import is_local
from bursar._metered import CountedHere, EmbeddedLease, MeteredLease, debited_count
from bursar._transport import Transport
from bursar.access import Principal, Tokens, who_am_i
from bursar.exceptions import BursarError
from bursar.lease import Lease, LeaseTerms, SharedLease
from bursar.models import (
    Account,
    AccountChanges,
    Amounts,
    Balance,
    CheckResult,
    CommitResult,
    DebitResult,
    Entry,
    EntryKind,
    ExtendResult,
    OpenReservation,
    Period,
    RecordResult,
    ReleaseResult,
    ReservationInfo,
    Threshold,
    TokenCount,
    Usage,
    UsageEstimate,
)
from bursar.processes import Incident, Job, Processes, ProcessEvent
from bursar.reservation import Reservation

__all__ = ["Client"]

T = TypeVar("T")


class Client:
    """Reserves, debits and commits against one sidecar or one embedded ledger.

    Safe to share between threads. Made by `bursar.connect` or `bursar.open`; close it, or use it as
    a context manager.
    """

    def __init__(self, transport: Transport, patience: Patience | None = None) -> None:
        self._transport = transport
        self._patience = patience
        self._counted = CountedHere()
        self.tokens = Tokens(self._run)

    def _run(self, call: calls.Call[T]) -> T:
        if self._patience is None:  # the ledger is in this process
            return call.read(self._transport.call(call.method, call.request, call.response))
        course = self._patience.course(call)
        if course.is_remote:
            try:
                course.heard(self._transport.call(call.method, call.request, call.response))
            except BursarError as error:
                course.failed(error)
            except BaseException:
                course.cancelled()
                raise
        return course.result()

    @property
    def away(self) -> Away:
        """What happened while no sidecar answered."""
        return NEVER_AWAY if self._patience is None else self._patience.status

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Tells what waits, for a second at most, and hangs up. What is reserved keeps its TTL."""
        if self._patience is not None:
            self._patience.close()
        self._transport.close()

    def reserve(
        self,
        account: str,
        *,
        tokens: int | None = None,
        amounts: Amounts | None = None,
        usage: UsageEstimate | None = None,
        min_acceptable: Amounts | None = None,
        ttl_s: float | None = None,
        parent: str | None = None,
        labels: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
    ) -> Reservation:
        """Holds amounts on the account and all its ancestors, in every unit, or nowhere.

        Args:
            account: The account's path, from the organisation down: ``acme/research/agent-7``.
            tokens: Short for ``amounts={"tokens": tokens}``.
            amounts: What to hold, in the base of each unit.
            usage: What the model call will use at most; the rate card prices it.
            min_acceptable: With amounts: the least worth having; what is left is granted.
            ttl_s: Seconds until the hold expires unless extended; None: the configured default.
            parent: Carve the hold from the unused hold of the reservation with this id.
            labels: Names for the history: model, action, prompt fingerprint.
            idempotency_key: Tells repeats from new calls; None: a fresh key; empty: never a repeat.

        Returns:
            The hold: a context manager that releases what was not committed.

        Raises:
            BudgetExceeded: It does not fit; nothing is held.
            AccountFrozen: The account or an ancestor is frozen; nothing is held.
            AccountNotFound: No such account, and no pattern that would create it.
            UnpricedModel: The rate card has no price for the model.
        """
        call = calls.reserve(
            account,
            tokens=tokens,
            amounts=amounts,
            usage=usage,
            min_acceptable=min_acceptable,
            ttl_s=ttl_s,
            parent=parent,
            labels=labels,
            idempotency_key=idempotency_key,
        )
        return Reservation(self, self._run(call))

    def debit(
        self,
        reservation: str,
        *,
        tokens: int | None = None,
        used: Amounts | None = None,
        usage: Usage | None = None,
    ) -> DebitResult:
        """Tells how much of a hold is spent so far: cumulative, never "since the last call".

        Does not raise on STOP; `DebitResult.verdict` says it.

        Raises:
            ReservationEnded: It was committed or released.
            ReservationExpired: Its time to live is over; a commit still counts.
        """
        return self._run(calls.debit(reservation, tokens=tokens, used=used, usage=usage))

    def extend(
        self,
        reservation: str,
        *,
        tokens: int | None = None,
        granted: Amounts | None = None,
        min_acceptable: Amounts | None = None,
        ttl_s: float | None = None,
        usage: UsageEstimate | None = None,
        top_up: bool = False,
    ) -> ExtendResult:
        """Renews the time to live, and raises the hold to the totals given.

        Args:
            reservation: The reservation's id.
            tokens: Short for ``granted={"tokens": tokens}``.
            granted: The totals to reach, including what is held; units not named stay.
            min_acceptable: The least totals worth having.
            ttl_s: The new time to live in seconds, from now; None: the reservation's own again.
            usage: The model call to cover, in place of amounts, at the rates fixed by Reserve.
            top_up: For a lease: what is added may be taken back while it is unused, before somebody
                else is refused.

        Raises:
            BudgetExceeded: The hold stays as it was; its time to live is renewed all the same.
        """
        call = calls.extend(
            reservation,
            tokens=tokens,
            granted=granted,
            min_acceptable=min_acceptable,
            ttl_s=ttl_s,
            usage=usage,
            top_up=top_up,
        )
        return self._run(call)

    def commit(
        self,
        reservation: str,
        *,
        tokens: int | None = None,
        actual: Amounts | None = None,
        usage: Usage | None = None,
        success: bool | None = None,
    ) -> CommitResult:
        """Ends a reservation with its true amounts; with none given, with what was debited.

        Never refused for lack of budget: what passes the limit is `CommitResult.overdraft`.
        `success` says whether the work came to what it was for, for calibration; None: not judged.

        Raises:
            IdempotencyMismatch: It was committed before with other amounts or another `success`.
        """
        call = calls.commit(reservation, tokens=tokens, actual=actual, usage=usage, success=success)
        return self._run(call)

    def release(self, reservation: str) -> ReleaseResult:
        """Ends a reservation at what was debited and returns the rest. A repeat is safe."""
        return self._run(calls.release(reservation))

    def record(
        self,
        account: str,
        *,
        tokens: int | None = None,
        amounts: Amounts | None = None,
        usage: Usage | None = None,
        labels: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
    ) -> RecordResult:
        """Records spending that no reservation announced; never refused for lack of budget."""
        call = calls.record(
            account,
            tokens=tokens,
            amounts=amounts,
            usage=usage,
            labels=labels,
            idempotency_key=idempotency_key,
        )
        return self._run(call)

    def check(
        self,
        account: str,
        *,
        tokens: int | None = None,
        amounts: Amounts | None = None,
        usage: UsageEstimate | None = None,
        min_acceptable: Amounts | None = None,
    ) -> CheckResult:
        """Says what `reserve` would answer now. Holds nothing and does not raise on a refusal."""
        call = calls.check(
            account, tokens=tokens, amounts=amounts, usage=usage, min_acceptable=min_acceptable
        )
        return self._run(call)

    def get_reservation(self, reservation: str) -> ReservationInfo:
        """Reads one reservation, pending or ended; raises ReservationNotFound."""
        return self._run(calls.get_reservation(reservation))

    def list_reservations(self, account: str = "") -> tuple[OpenReservation, ...]:
        """Reads what is open there and below, at most 1000: leases first, then the newest."""
        return self._run(calls.list_reservations(account))

    def count_tokens(self, model: str, *, text: str) -> TokenCount:
        """Counts the tokens of a text with the model's own tokenizer, or with a named encoding.

        Raises:
            InvalidRequest: No exact tokenizer is built in (reason UNKNOWN_TOKENIZER).
        """
        return self._run(calls.count_tokens(model, text=text))

    def set_budget(
        self,
        account: str,
        *,
        unit: str,
        limit: int | str,
        period: Period | str = "total",
        thresholds: Sequence[Threshold] = (),
    ) -> Balance:
        """Sets a hard limit and its thresholds at once; creates account and budget where missing.

        Args:
            account: The account's path.
            unit: The unit that the budget counts.
            limit: An integer in the unit's base, or an amount such as ``"25.00 USD"``.
            period: ``"total"``, ``"day@Europe/Berlin"``, ``"rolling:3600s"``, … or a `Period`.
            thresholds: At most 4, ascending.

        Returns:
            The current window under the new limit.
        """
        call = calls.set_budget(
            account, unit=unit, limit=limit, period=period, thresholds=thresholds
        )
        return self._run(call)

    def get_account(self, account: str) -> Account:
        """Reads one account with its budgets and balances; raises AccountNotFound."""
        return self._run(calls.get_account(account))

    def list_accounts(
        self, account: str = "", *, page_size: int = calls.ACCOUNTS_PAGE_MAX
    ) -> Iterator[Account]:
        """Yields the account and those below it in the order of their paths; empty: all."""
        return self._pages(
            lambda token: calls.list_accounts(account, page_size=page_size, page_token=token)
        )

    def freeze(self, account: str, *, reason: str = "") -> Account:
        """Stops an account and everything below it, at once. A repeat is safe."""
        return self._run(calls.freeze(account, reason=reason))

    def unfreeze(self, account: str) -> Account:
        """Ends a freeze; an ancestor's freeze still holds. A repeat is safe."""
        return self._run(calls.unfreeze(account))

    def retire_account(self, account: str) -> None:
        """Takes an account with its budgets out of use; its history stays. A repeat is safe.

        Raises:
            AccountInUse: It has accounts below it or pending reservations, or holds capacity.
        """
        self._run(calls.retire_account(account))

    def list_entries(
        self,
        account: str = "",
        *,
        reservation: str = "",
        unit: str = "",
        kinds: Iterable[EntryKind | str] = (),
        start_time: datetime | None = None,
        end_time: datetime | None = None,
        page_size: int = 1000,
    ) -> Iterator[Entry]:
        """Yields the money movements of the account and those below it, oldest first.

        Args:
            account: Only this account and those below it; empty: all.
            reservation: Only this reservation.
            unit: Only this unit.
            kinds: Only these kinds.
            start_time: Only from this time on; an aware datetime.
            end_time: Only before this time; an aware datetime.
            page_size: How many to fetch at a time, at most 10,000.
        """
        wanted = entry_calls.entry_filter(
            account,
            reservation=reservation,
            unit=unit,
            kinds=kinds,
            start_time=start_time,
            end_time=end_time,
        )
        return self._pages(
            lambda token: entry_calls.list_entries(wanted, page_size=page_size, page_token=token)
        )

    def watch_accounts(
        self, account: str = "", *, min_interval_s: float | None = None
    ) -> Iterator[AccountChanges]:
        """Yields the accounts below a path as they are, then whatever changes, without end.

        One stream: when the sidecar goes away it raises SidecarUnavailable; watch again then, the
        first message holds everything. An embedded client polls.
        """
        call = calls.watch_accounts(account, min_interval_s=min_interval_s)
        answers = self._transport.stream(call.method, call.request, call.response)
        return (call.read(answer) for answer in answers)

    def who_am_i(self) -> Principal:
        """Asks who this client is to the sidecar, and what it may do."""
        return self._run(who_am_i())

    def register_process(
        self,
        account: str,
        *,
        pid: int = 0,
        name: str = "",
        limits: Amounts | None = None,
        wall_limit_s: float | None = None,
        cgroup: str = "",
        enforce: bool = False,
        term_grace_s: float | None = None,
        reservation: str = "",
    ) -> Job:
        """Puts a process, and everything that it starts, under the budgets of an account.

        Args:
            account: The account's path, from the organisation down.
            pid: This process or one that descends from it; 0: this one.
            name: What people call the job; empty: its command.
            limits: Limits of the job alone, on an account of its own. VRAM is held from now on.
            wall_limit_s: How many seconds it may run; None: as long as it wants.
            cgroup: A cgroup v2 of the job alone that holds it, below the root of the hierarchy.
            enforce: Stop it at a hard limit of any unit, also in mode "observe".
            term_grace_s: Seconds from SIGTERM to SIGKILL, at most 300, and 0: at once; None: as
                configured.
            reservation: A pending reservation of vram_bytes, so that they are not held twice.

        Returns:
            The job; the same one again when the process is registered already.

        Raises:
            BudgetExceeded: Its VRAM is not left, or the budget is gone; nothing is registered.
            AccountFrozen: The account or an ancestor is frozen; nothing is registered.
            IdempotencyMismatch: The process is registered for another account.
            NotTheOwner: The process is neither the caller nor one of its user that it started.
            WatchdogUnavailable: The watchdog is off, or this client is embedded.
        """
        call = process_calls.register_process(
            account,
            pid=pid,
            name=name,
            limits=limits,
            wall_limit_s=wall_limit_s,
            cgroup=cgroup,
            enforce=enforce,
            term_grace_s=term_grace_s,
            reservation=reservation,
        )
        return self._run(call)

    def list_processes(self, account: str = "") -> Processes:
        """Reads GPUs, processes and jobs as they were at the last sample; empty: all accounts'."""
        return self._run(process_calls.list_processes(account))

    def kill_process(self, *, job: str = "", pid: int = 0, reason: str = "") -> Incident:
        """Stops a job, or the job of a process, and answers before it has ended.

        The incident goes on by itself: SIGTERM, the grace period, SIGKILL, the check that its VRAM
        is back; `list_incidents` tells. A repeat answers with the same incident.

        Args:
            job: The job's id.
            pid: Instead of `job`: a process of it.
            reason: Why, for the incident; at most 256 bytes.

        Raises:
            ProcessNotFound: No such job, or the process is no job's.
            ProcessProtected: A rule forbids it; the message says which.
        """
        return self._run(process_calls.kill_process(job=job, pid=pid, reason=reason))

    def list_incidents(
        self, account: str = "", *, job: str = "", page_size: int = 100
    ) -> Iterator[Incident]:
        """Yields what was stopped, of the account and those below it, the latest first.

        Args:
            account: Only this account and those below it; empty: all.
            job: Only the job with this id.
            page_size: How many to fetch at a time, at most 1000.
        """
        return self._pages(
            lambda token: process_calls.list_incidents(
                account, job=job, page_size=page_size, page_token=token
            )
        )

    def watch_processes(self, account: str = "") -> Iterator[ProcessEvent]:
        """Yields what happens to jobs, incidents and GPUs from now on, without end.

        One stream: when the sidecar goes away it raises SidecarUnavailable; list, and watch again.
        """
        call = process_calls.watch_processes(account)
        return map(call.read, self._transport.stream(call.method, call.request, call.response))

    def lease(self, terms: LeaseTerms, *, granted: int) -> Lease:
        """Opens a lease on a reservation that covers so much; see `Reservation.lease`."""
        extend = functools.partial(self.extend, terms.reservation)
        transport, counted = self._transport, self._counted.open
        if transport.lease_socket is not None and not is_local(terms.reservation):
            with contextlib.suppress(ConnectionError):
                return SharedLease(transport.lease_socket, terms, extend)
        used = debited_count(terms, self.get_reservation(terms.reservation))
        if isinstance(transport, EmbeddedTransport) or is_local(terms.reservation):
            debit = functools.partial(self.debit, terms.reservation)
            return counted(terms, lambda: EmbeddedLease(terms, granted, used, extend, debit))
        return counted(terms, lambda: MeteredLease(transport, terms, granted, used, extend))

    def _pages(self, page: Callable[[str], calls.Call[calls.Page[T]]]) -> Iterator[T]:
        answer = self._run(page(""))
        yield from answer.items
        while answer.next_token:
            answer = self._run(page(answer.next_token))
            yield from answer.items
