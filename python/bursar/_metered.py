"""Leases where there is no shared memory: counted here, within what is granted, and reported.

A step is counted under a lock and never passes the grant. What is counted is reported behind it: by
a Meter stream of the lease's own, on which the sidecar's verdicts come back unasked, or, where the
ledger is in this process, by a debit each time. The stream may break: counts are cumulative, so the
next one says it all.
"""

import asyncio
import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Final

from bursar import _convert as convert
from bursar._transport import AsyncTransport, Transport
from bursar.exceptions import BursarError, ReservationError, SidecarUnavailable
from bursar.lease import Lease, LeaseTerms, Refilling, Stuck
from bursar.models import Advice, Amounts, DebitResult, ExtendResult, Usage, Verdict
from bursar.v1 import errors_pb2
from bursar.v1 import ledger_pb2 as lg

_PAUSE_S: Final = 0.05  # before a stream that broke is opened anew
_LAST_REPORT_S: Final = 5.0  # how long `detach` waits for the last count to arrive


class CountedStep:
    """The bare steps, counted in this process; what does not fit raises `Stuck`."""

    def __init__(self, terms: LeaseTerms, granted: int) -> None:
        self._terms = terms
        self._granted = terms.bound(granted)
        self._used = 0
        self._verdict = Verdict.OK
        self._advice: Advice | None = None
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._ended = False
        self.wake: Callable[[], None] = lambda: None

    def debit(self, count: int = 1) -> Verdict:
        """Counts `count`, or raises `Stuck`."""
        if count < 0:
            raise OverflowError("a debit is never negative")
        if os.getpid() != self._pid:
            raise Stuck(count, "forked")
        if (verdict := self.fit(count)) is not None:
            return verdict
        raise Stuck(count, "ended" if self.ended else "exhausted")

    def fit(self, count: int) -> Verdict | None:
        """Counts `count`, or answers None."""
        with self._lock:
            if self.ended or count > self._granted - self._used:
                return None
            self._used += count
        self.wake()
        return self._verdict

    def take_rest(self, count: int) -> None:
        """Counts as much of `count` as is granted still."""
        with self._lock:
            self._used += max(0, min(count, self._granted - self._used))
        self.wake()

    @property
    def used(self) -> int:
        """As `Lease.used`."""
        return self._used

    @property
    def granted(self) -> int:
        """As `Lease.granted`."""
        return self._granted

    @property
    def verdict(self) -> Verdict:
        """As `Lease.verdict`."""
        return Verdict.STOP if self.ended else self._verdict

    @property
    def advice(self) -> Advice | None:
        """As `Lease.advice`."""
        return self._advice

    @property
    def ended(self) -> bool:
        """As `Lease.ended`."""
        return self._ended

    def end(self) -> None:
        """Counts nothing any more."""
        self._ended = True

    def raised(self, result: ExtendResult) -> None:
        """Counts on, up to what an extend has granted."""
        with self._lock:
            granted = granted_count(self._terms, result.reservation.granted)
            if self._terms.unit is None:
                granted = result.reservation.max_output_tokens
            self._granted = max(self._granted, self._terms.bound(granted))

    def spending(self, count: int) -> tuple[Amounts | None, Usage | None]:
        """What a count comes to, as a debit says it."""
        if self._terms.unit is not None:
            return {self._terms.unit: count}, None
        estimate = self._terms.estimate
        if estimate is None:  # `terms_of` sees to it that there is a unit then
            return {}, None
        usage = Usage(
            model="",
            input_tokens=estimate.input_tokens,
            cached_input_tokens=estimate.cached_input_tokens,
            cache_write_tokens=estimate.cache_write_tokens,
            output_tokens=count,
            gpu_ms=estimate.gpu_ms,
        )
        return None, usage

    def report(self) -> tuple[int, lg.MeterRequest]:
        """What is counted now, and the request that says so."""
        count = self._used
        used, usage = self.spending(count)
        debit = lg.MeterDebit(
            reservation=self._terms.reservation,
            used=convert.amounts_to_wire(used or {}, field="used"),
            usage=convert.usage_to_wire(usage) if usage else None,
        )
        return count, lg.MeterRequest(debits=[debit])

    def hear(self, answer: lg.MeterAnswer) -> None:
        """Takes an answer of the sidecar."""
        if answer.HasField("error"):
            # Another channel debits it: the stream before this one, most likely, for a moment.
            if answer.error.reason != errors_pb2.ERROR_REASON_RESERVATION_LEASED:
                self._ended = True
            return
        self._verdict, self._advice = convert.verdict(answer.verdict), convert.advice(answer)

    def debited(self, result: DebitResult) -> None:
        """Takes the answer to a debit in this process."""
        self._verdict, self._advice = result.verdict, result.advice


def granted_count(terms: LeaseTerms, granted: Amounts) -> int:
    """What may be counted, of a unit, with so much granted."""
    return granted.get(terms.unit or "", 0)


class MeteredLease(Refilling, CountedStep, Lease):
    """A lease that reports by a Meter stream, from a thread of its own."""

    def __init__(
        self,
        transport: Transport,
        terms: LeaseTerms,
        granted: int,
        extend: Callable[..., ExtendResult],
    ) -> None:
        CountedStep.__init__(self, terms, granted)
        Refilling.__init__(self, terms, lambda **wish: self.raised(extend(**wish)))
        self._transport = transport
        self._news = threading.Condition()
        self._leaving = False
        self._told = self._heard = -1  # the latest count that was sent, and that was answered
        self._on_the_way: deque[int] = deque()
        self.wake = self._notify
        self._thread = threading.Thread(target=self._run, name="bursar-meter", daemon=True)
        self._thread.start()

    def debit(self, count: int = 1) -> Verdict:
        """As `Lease.debit`."""
        try:
            return super().debit(count)
        except Stuck as stuck:
            return self._stuck(stuck.count, stuck.why)

    def _notify(self) -> None:
        with self._news:
            self._news.notify_all()

    def _requests(self) -> Iterator[lg.MeterRequest]:
        """The latest count whenever it is another than the last one, until the lease ends."""
        self._told = -1
        self._on_the_way.clear()
        while True:
            with self._news:
                self._news.wait_for(lambda: self._leaving or self.ended or self.used != self._told)
            if self.ended or (self._leaving and self._told == self.used):
                return
            self._told, request = self.report()
            self._on_the_way.append(self._told)
            yield request

    def _run(self) -> None:
        while not (self.ended or (self._leaving and self._heard == self.used)):
            with contextlib.suppress(SidecarUnavailable, ReservationError):
                for response in self._transport.meter(self._requests()):
                    for answer in response.answers:
                        self.hear(answer)
                    if not response.unasked:
                        self._heard = self._on_the_way.popleft()
            if not self._leaving:
                time.sleep(_PAUSE_S)

    def detach(self) -> int:
        """As `Lease.detach`."""
        if os.getpid() == self._pid:
            with self._news:
                self._leaving = True
                self._news.notify_all()
            self._thread.join(_LAST_REPORT_S)
        self._ended = True
        return self.used


class EmbeddedLease(Refilling, CountedStep, Lease):
    """A lease on a ledger in this process: each step is a debit."""

    def __init__(
        self,
        terms: LeaseTerms,
        granted: int,
        extend: Callable[..., ExtendResult],
        debit: Callable[..., DebitResult],
    ) -> None:
        CountedStep.__init__(self, terms, granted)
        Refilling.__init__(self, terms, lambda **wish: self.raised(extend(**wish)))
        self._debit = debit
        self.wake = self._tell
        self._tell()

    def _tell(self) -> None:
        used, usage = self.spending(self.used)
        try:
            self.debited(self._debit(used=used, usage=usage))
        except ReservationError:
            self._ended = True

    def debit(self, count: int = 1) -> Verdict:
        """As `Lease.debit`."""
        try:
            super().debit(count)
        except Stuck as stuck:
            return self._stuck(stuck.count, stuck.why)
        return self.verdict

    def detach(self) -> int:
        """As `Lease.detach`."""
        self._ended = True
        return self.used


class AsyncReports:
    """Reports a `CountedStep` by a Meter stream, from a task."""

    def __init__(self, transport: AsyncTransport, step: CountedStep) -> None:
        self._transport, self._step = transport, step
        self._news = asyncio.Event()
        self._leaving = False
        step.wake = self._news.set
        self._task = asyncio.create_task(self._run())

    async def _requests(self) -> AsyncIterator[lg.MeterRequest]:
        told = -1
        while not self._step.ended:
            if self._step.used != told:
                told, request = self._step.report()
                yield request
            elif self._leaving:
                return
            else:
                await self._news.wait()
                self._news.clear()

    async def _run(self) -> None:
        while not self._step.ended:
            with contextlib.suppress(BursarError):
                async for response in self._transport.meter(self._requests()):
                    for answer in response.answers:
                        self._step.hear(answer)
            if self._leaving:
                return
            await asyncio.sleep(_PAUSE_S)

    async def detach(self) -> int:
        """As `Lease.detach`."""
        self._leaving = True
        self._news.set()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._task, _LAST_REPORT_S)
        self._step.end()
        return self._step.used


def start(terms: LeaseTerms, granted: Amounts, max_output_tokens: int) -> int:
    """What may be counted at the start."""
    return max_output_tokens if terms.unit is None else granted_count(terms, granted)
