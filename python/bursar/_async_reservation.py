"""The handle of one pending reservation, for the asynchronous client; see `bursar.reservation`."""

import contextlib
from types import TracebackType
from typing import TYPE_CHECKING, Self

from bursar import _calls as calls
from bursar._async_lease import AsyncLease
from bursar._courier import AWAY
from bursar._metered import start
from bursar.exceptions import BursarError, ReservationError
from bursar.lease import AHEAD, LeaseTerms, terms_of
from bursar.models import (
    Amounts,
    CommitResult,
    DebitResult,
    ExtendResult,
    ReleaseResult,
    Usage,
)
from bursar.reservation import NOTHING, Handle, Spending, note_unreleased, released, used_of

if TYPE_CHECKING:
    from bursar.aio import AsyncClient


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
        try:
            result = await self._client.debit(self.id, tokens=tokens, used=used, usage=usage)
        except AWAY as error:
            return self._unheard(error, used_of(tokens, used), usage)
        return self._saw_debit(result)

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
        with self._ending():
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
                with contextlib.suppress(ReservationError, *AWAY):
                    await self._client.debit(self.id, used=used, usage=usage)
                    owed = NOTHING
            self._leased, self._owed = None, owed
        return self._owed

    async def release(self) -> ReleaseResult:
        """As `Reservation.release`."""
        actual, usage = await self._tell()
        with self._ending():
            if actual is None and usage is None:
                result = await self._client.release(self.id)
            else:
                result = released(await self._client.commit(self.id, actual=actual, usage=usage))
        return self._saw_release(result)
