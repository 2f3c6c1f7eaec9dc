"""The lease of the asynchronous client: bare steps of either kind, and waits that hold up no loop.

A step that fits is made at once, on the loop. Only what attaches and detaches runs in a thread.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Final, Self

from bursar._metered import CountedStep
from bursar.exceptions import BudgetError, BursarError
from bursar.lease import OVER, PATIENCE_S, Chunks, LeaseTerms, SharedStep, Stuck, give_up, goes_on
from bursar.models import Advice, Verdict

_NAP_S: Final = 0.001  # between looks at a lease that the sidecar is at work on


class AsyncLease:
    """A lease whose debits wait without blocking the event loop; see `bursar.Lease`."""

    def __init__(
        self,
        step: SharedStep | CountedStep,
        terms: LeaseTerms,
        extend: Callable[..., Any],
        detach: Callable[[], Awaitable[int]],
    ) -> None:
        self._step = step
        self._extend = extend
        self._detach = detach
        self._chunks = Chunks(terms)
        self._one_asks = asyncio.Lock()

    async def debit(self, count: int = 1) -> Verdict:
        """As `Lease.debit`."""
        try:
            return self._step.debit(count)
        except Stuck as stuck:
            return await self._stuck(stuck.count, stuck.why)

    async def _stuck(self, count: int, why: str) -> Verdict:
        step = self._step
        if why not in {"exhausted", "away"}:
            return give_up(step, why)
        async with self._one_asks:
            while isinstance(fit := await self._fit(count), str):
                if fit != "exhausted":
                    return give_up(step, fit)
                wish = self._chunks.next_wish(step.used, step.granted, count)
                try:
                    if wish is not None:
                        await self._extend(**wish)
                        continue
                except BudgetError as refused:
                    step.refused = refused
                except OVER as refused:
                    step.refused = refused
                    return Verdict.STOP
                except BursarError as error:
                    if not goes_on(error) and not step.ended:
                        raise
                    step.refused = error if goes_on(error) else step.refused
                await self._take_rest(count)
                return Verdict.STOP
        step.refused = None
        return fit

    async def _fit(self, count: int) -> Verdict | str:
        """Debits `count`, or says why not; waits for a sidecar that is away or at work on it."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                return self._step.debit(count)
            except Stuck as stuck:
                if stuck.why != "away" or time.monotonic() > deadline:
                    return stuck.why
            await asyncio.sleep(_NAP_S)

    async def _take_rest(self, count: int) -> None:
        """Debits as much of `count` as is granted still."""
        while (rest := min(count, self._step.granted - self._step.used)) > 0:
            if await self._fit(rest) != "exhausted":
                return

    @property
    def refused(self) -> BursarError | None:
        """As `Lease.refused`."""
        return self._step.refused

    @property
    def used(self) -> int:
        """As `Lease.used`."""
        return self._step.used

    @property
    def granted(self) -> int:
        """As `Lease.granted`."""
        return self._step.granted

    @property
    def verdict(self) -> Verdict:
        """As `Lease.verdict`."""
        return self._step.verdict

    @property
    def advice(self) -> Advice | None:
        """As `Lease.advice`."""
        return self._step.advice

    @property
    def ended(self) -> bool:
        """As `Lease.ended`."""
        return self._step.ended

    @property
    def heard(self) -> bool:
        """As `Lease.heard`."""
        return self._step.heard

    async def detach(self) -> int:
        """As `Lease.detach`."""
        return await self._detach()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.detach()
