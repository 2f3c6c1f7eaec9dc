"""The asynchronous client: the names and meanings of `bursar.client`, awaited.

What a method takes, answers and raises is documented once, on `bursar.Client` and
`bursar.Reservation`.
"""

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from datetime import datetime
from types import TracebackType
from typing import Any, Self, TypeVar

from bursar import _calls as calls
from bursar import _process_calls as process_calls
from bursar._async_lease import AsyncLease
from bursar._metered import AsyncReports, CountedHere, CountedStep, debited_count, start
from bursar._transport import AsyncTransport
from bursar.access import AsyncTokens, Principal, who_am_i
from bursar.exceptions import BursarError, ReservationError
from bursar.lease import AHEAD, LeaseTerms, SharedStep, terms_of
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
from bursar.reservation import NOTHING, Handle, Spending, note_unreleased

__all__ = ["AsyncClient", "AsyncLease", "AsyncReservation"]

T = TypeVar("T")


class AsyncReservation(Handle):
    """A hold; as an asynchronous context manager it releases what was not committed."""

    def __init__(self, client: "AsyncClient", admission: calls.Admission) -> None:
        super().__init__(admission)
        self._client = client
        self._leased: tuple[AsyncLease, LeaseTerms] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._ended:
            return
        try:
            await self.release()
        except BursarError as failure:
            if error is None:
                raise
            note_unreleased(error, failure)

    async def debit(
        self,
        *,
        tokens: int | None = None,
        used: Amounts | None = None,
        usage: Usage | None = None,
        output_tokens: int | None = None,
    ) -> DebitResult:
        """As `Reservation.debit`."""
        usage = self._usage(usage, output_tokens)
        return self._saw_debit(
            await self._client.debit(self.id, tokens=tokens, used=used, usage=usage)
        )

    async def lease(
        self,
        *,
        unit: str | None = None,
        top_up: bool = True,
        ahead: int = AHEAD,
        at_most: int | None = None,
    ) -> AsyncLease:
        """As `Reservation.lease`."""
        terms = terms_of(
            self.id,
            self.granted,
            self._estimate,
            unit=unit,
            top_up=top_up,
            ahead=ahead,
            at_most=at_most,
        )
        if self._leased is not None and self._leased[0].ended:
            await self._tell()
        granted = start(terms, self.granted, self.max_output_tokens)
        lease = await self._client.lease(terms, granted=granted)
        self._leased, self._owed = (lease, terms), NOTHING
        return lease

    async def extend(
        self,
        *,
        tokens: int | None = None,
        granted: Amounts | None = None,
        min_acceptable: Amounts | None = None,
        ttl_s: float | None = None,
    ) -> ExtendResult:
        """As `Reservation.extend`."""
        result = await self._client.extend(
            self.id, tokens=tokens, granted=granted, min_acceptable=min_acceptable, ttl_s=ttl_s
        )
        return self._saw_extend(result)

    async def commit(
        self,
        *,
        tokens: int | None = None,
        actual: Amounts | None = None,
        usage: Usage | None = None,
        output_tokens: int | None = None,
        success: bool | None = None,
    ) -> CommitResult:
        """As `Reservation.commit`."""
        usage = self._usage(usage, output_tokens)
        if tokens is None and actual is None and usage is None:
            actual, usage = await self._tell()
        result = await self._client.commit(
            self.id, tokens=tokens, actual=actual, usage=usage, success=success
        )
        return self._saw_commit(result)

    async def _tell(self) -> Spending:
        """As `Reservation._tell`."""
        if self._leased is not None:
            lease, terms = self._leased
            count = await lease.detach()
            owed = NOTHING
            if not lease.heard:
                owed = used, usage = terms.spending(count)
                with contextlib.suppress(ReservationError):
                    await self._client.debit(self.id, used=used, usage=usage)
                    owed = NOTHING
            self._leased, self._owed = None, owed
        return self._owed

    async def release(self) -> ReleaseResult:
        """As `Reservation.release`."""
        await self._tell()
        return self._saw_release(await self._client.release(self.id))


class AsyncClient:
    """Reserves, debits and commits against one sidecar from an event loop.

    Belongs to the loop of its first call. Made by `bursar.connect_async`; close it, or use it as an
    asynchronous context manager.
    """

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport
        self._counted = CountedHere()
        self.tokens = AsyncTokens(self._run)

    async def _run(self, call: calls.Call[T]) -> T:
        return call.read(await self._transport.call(call.method, call.request, call.response))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """As `Client.close`."""
        await self._transport.close()

    async def lease(self, terms: LeaseTerms, *, granted: int) -> AsyncLease:
        """Opens a lease on a reservation that covers so much; see `Reservation.lease`."""
        extend = functools.partial(self.extend, terms.reservation)
        socket = self._transport.lease_socket
        if socket is not None:
            with contextlib.suppress(ConnectionError):
                shared = await asyncio.to_thread(SharedStep, socket, terms, 0.0)
                detach = functools.partial(asyncio.to_thread, shared.detach)
                return AsyncLease(shared, terms, extend, detach)
        used = debited_count(terms, await self.get_reservation(terms.reservation))
        counted = self._counted.open(terms, lambda: CountedStep(terms, granted, used))
        reports = AsyncReports(self._transport, counted)

        async def extend_and_count(**wish: Any) -> None:  # noqa: ANN401 -- what `extend` takes
            counted.raised(await extend(**wish))

        return AsyncLease(counted, terms, extend_and_count, reports.detach)

    async def reserve(
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
    ) -> AsyncReservation:
        """As `Client.reserve`."""
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
        return AsyncReservation(self, await self._run(call))

    async def debit(
        self,
        reservation: str,
        *,
        tokens: int | None = None,
        used: Amounts | None = None,
        usage: Usage | None = None,
    ) -> DebitResult:
        """As `Client.debit`."""
        return await self._run(calls.debit(reservation, tokens=tokens, used=used, usage=usage))

    async def extend(
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
        """As `Client.extend`."""
        call = calls.extend(
            reservation,
            tokens=tokens,
            granted=granted,
            min_acceptable=min_acceptable,
            ttl_s=ttl_s,
            usage=usage,
            top_up=top_up,
        )
        return await self._run(call)

    async def commit(
        self,
        reservation: str,
        *,
        tokens: int | None = None,
        actual: Amounts | None = None,
        usage: Usage | None = None,
        success: bool | None = None,
    ) -> CommitResult:
        """As `Client.commit`."""
        call = calls.commit(reservation, tokens=tokens, actual=actual, usage=usage, success=success)
        return await self._run(call)

    async def release(self, reservation: str) -> ReleaseResult:
        """As `Client.release`."""
        return await self._run(calls.release(reservation))

    async def record(
        self,
        account: str,
        *,
        tokens: int | None = None,
        amounts: Amounts | None = None,
        usage: Usage | None = None,
        labels: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
    ) -> RecordResult:
        """As `Client.record`."""
        call = calls.record(
            account,
            tokens=tokens,
            amounts=amounts,
            usage=usage,
            labels=labels,
            idempotency_key=idempotency_key,
        )
        return await self._run(call)

    async def check(
        self,
        account: str,
        *,
        tokens: int | None = None,
        amounts: Amounts | None = None,
        usage: UsageEstimate | None = None,
        min_acceptable: Amounts | None = None,
    ) -> CheckResult:
        """As `Client.check`."""
        call = calls.check(
            account, tokens=tokens, amounts=amounts, usage=usage, min_acceptable=min_acceptable
        )
        return await self._run(call)

    async def get_reservation(self, reservation: str) -> ReservationInfo:
        """As `Client.get_reservation`."""
        return await self._run(calls.get_reservation(reservation))

    async def count_tokens(self, model: str, *, text: str) -> TokenCount:
        """As `Client.count_tokens`."""
        return await self._run(calls.count_tokens(model, text=text))

    async def set_budget(
        self,
        account: str,
        *,
        unit: str,
        limit: int | str,
        period: Period | str = "total",
        thresholds: Sequence[Threshold] = (),
    ) -> Balance:
        """As `Client.set_budget`."""
        call = calls.set_budget(
            account, unit=unit, limit=limit, period=period, thresholds=thresholds
        )
        return await self._run(call)

    async def get_account(self, account: str) -> Account:
        """As `Client.get_account`."""
        return await self._run(calls.get_account(account))

    def list_accounts(
        self, account: str = "", *, page_size: int = calls.ACCOUNTS_PAGE_MAX
    ) -> AsyncIterator[Account]:
        """As `Client.list_accounts`."""
        return self._pages(
            lambda token: calls.list_accounts(account, page_size=page_size, page_token=token)
        )

    async def freeze(self, account: str, *, reason: str = "") -> Account:
        """As `Client.freeze`."""
        return await self._run(calls.freeze(account, reason=reason))

    async def unfreeze(self, account: str) -> Account:
        """As `Client.unfreeze`."""
        return await self._run(calls.unfreeze(account))

    async def retire_account(self, account: str) -> None:
        """As `Client.retire_account`."""
        await self._run(calls.retire_account(account))

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
    ) -> AsyncIterator[Entry]:
        """As `Client.list_entries`."""
        wanted = calls.entry_filter(
            account,
            reservation=reservation,
            unit=unit,
            kinds=kinds,
            start_time=start_time,
            end_time=end_time,
        )
        return self._pages(
            lambda token: calls.list_entries(wanted, page_size=page_size, page_token=token)
        )

    async def watch_accounts(
        self, account: str = "", *, min_interval_s: float | None = None
    ) -> AsyncIterator[AccountChanges]:
        """As `Client.watch_accounts`."""
        call = calls.watch_accounts(account, min_interval_s=min_interval_s)
        answers = self._transport.stream(call.method, call.request, call.response)
        async with aclosing(answers):  # hangs up as soon as this generator is closed
            async for answer in answers:
                yield call.read(answer)

    async def who_am_i(self) -> Principal:
        """As `Client.who_am_i`."""
        return await self._run(who_am_i())

    async def register_process(
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
        """As `Client.register_process`."""
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
        return await self._run(call)

    async def list_processes(self, account: str = "") -> Processes:
        """As `Client.list_processes`."""
        return await self._run(process_calls.list_processes(account))

    async def kill_process(self, *, job: str = "", pid: int = 0, reason: str = "") -> Incident:
        """As `Client.kill_process`."""
        return await self._run(process_calls.kill_process(job=job, pid=pid, reason=reason))

    def list_incidents(
        self, account: str = "", *, job: str = "", page_size: int = 100
    ) -> AsyncIterator[Incident]:
        """As `Client.list_incidents`."""
        return self._pages(
            lambda token: process_calls.list_incidents(
                account, job=job, page_size=page_size, page_token=token
            )
        )

    async def watch_processes(self, account: str = "") -> AsyncIterator[ProcessEvent]:
        """As `Client.watch_processes`."""
        call = process_calls.watch_processes(account)
        answers = self._transport.stream(call.method, call.request, call.response)
        async with aclosing(answers):  # hangs up as soon as this generator is closed
            async for answer in answers:
                yield call.read(answer)

    async def _pages(self, page: Callable[[str], calls.Call[calls.Page[T]]]) -> AsyncIterator[T]:
        token = ""
        while True:
            answer: calls.Page[T] = await self._run(page(token))
            for item in answer.items:
                yield item
            token = answer.next_token
            if not token:
                return
