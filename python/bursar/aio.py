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
from bursar import _entry_calls as entry_calls
from bursar import _process_calls as process_calls
from bursar._async_lease import AsyncLease
from bursar._async_reservation import AsyncReservation
from bursar._away import Away, Patience
from bursar._local import is_local
from bursar._metered import (
    AsyncReports,
    CountedHere,
    CountedStep,
    EmbeddedStep,
    debited_count,
)
from bursar._transport import AsyncTransport
from bursar.access import AsyncTokens, Principal, who_am_i
from bursar.exceptions import BursarError
from bursar.lease import LeaseTerms, SharedStep
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

__all__ = ["AsyncClient", "AsyncLease", "AsyncReservation"]

T = TypeVar("T")


class AsyncClient:
    """Reserves, debits and commits against one sidecar from an event loop.

    Belongs to the loop of its first call. Made by `bursar.connect_async`; close it, or use it as an
    asynchronous context manager.
    """

    def __init__(self, transport: AsyncTransport, patience: Patience) -> None:
        self._transport = transport
        self._patience = patience
        self._counted = CountedHere()
        self.tokens = AsyncTokens(self._run)

    async def _run(self, call: calls.Call[T]) -> T:
        course = self._patience.course(call)
        if course.is_remote:
            try:
                course.heard(await self._transport.call(call.method, call.request, call.response))
            except BursarError as error:
                course.failed(error)
            except BaseException:
                course.cancelled()
                raise
        return course.result()

    @property
    def away(self) -> Away:
        """As `Client.away`."""
        return self._patience.status

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
        await asyncio.to_thread(self._patience.close)
        await self._transport.close()

    async def lease(self, terms: LeaseTerms, *, granted: int) -> AsyncLease:
        """Opens a lease on a reservation that covers so much; see `Reservation.lease`."""
        extend = functools.partial(self.extend, terms.reservation)
        socket = self._transport.lease_socket
        if socket is not None and not is_local(terms.reservation):
            with contextlib.suppress(ConnectionError):
                shared = await asyncio.to_thread(SharedStep, socket, terms, 0.0)
                detach = functools.partial(asyncio.to_thread, shared.detach)
                return AsyncLease(shared, terms, extend, detach)
        used = debited_count(terms, await self.get_reservation(terms.reservation))
        if is_local(terms.reservation):
            return self._lease_here(terms, granted, used, extend)
        counted = self._counted.open(terms, lambda: CountedStep(terms, granted, used))
        reports = AsyncReports(self._transport, counted)

        async def extend_and_count(**wish: Any) -> None:  # noqa: ANN401 -- what `extend` takes
            counted.raised(await extend(**wish))

        return AsyncLease(counted, terms, extend_and_count, reports.detach)

    def _lease_here(
        self, terms: LeaseTerms, granted: int, used: int, extend: Callable[..., Any]
    ) -> AsyncLease:
        """A lease on what was granted in this process: no call of it waits."""
        spend = functools.partial(calls.debit, terms.reservation, tokens=None)
        tell = lambda **spent: self._patience.course(spend(**spent)).result()  # noqa: E731
        step = self._counted.open(terms, lambda: EmbeddedStep(terms, granted, used, tell))

        async def extend_and_count(**wish: Any) -> None:  # noqa: ANN401 -- what `extend` takes
            step.raised(await extend(**wish))

        async def detach() -> int:
            step.end()
            return step.used

        return AsyncLease(step, terms, extend_and_count, detach)

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

    async def list_reservations(self, account: str = "") -> tuple[OpenReservation, ...]:
        """As `Client.list_reservations`."""
        return await self._run(calls.list_reservations(account))

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
