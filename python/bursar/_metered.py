"""Leases where there is no shared memory: counted here, within what is granted, and reported.

A step is counted under a lock and never passes the grant. What is counted is reported behind it: by
a Meter stream of the lease's own, on which the sidecar's verdicts come back unasked, or, where the
ledger is in this process, by a debit each time. The stream may break, or a count may be refused:
counts are cumulative, so the next one says it all. A lease whose count is refused for longer than a
moment ends, so nobody counts for long what is not debited.
"""

import asyncio
import os
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from typing import Final, TypeVar
from weakref import WeakValueDictionary

from bursar import _convert as convert
from bursar._errors import from_reason
from bursar._transport import AsyncTransport, Transport
from bursar.exceptions import (
    ERRORS,
    BursarError,
    ReservationError,
    ReservationLeased,
    SidecarTimeout,
    SidecarUnavailable,
)
from bursar.lease import OVER, Lease, LeaseTerms, Refilling, Stuck
from bursar.models import (
    Advice,
    Amounts,
    DebitResult,
    ExtendResult,
    ReservationInfo,
    Verdict,
)
from bursar.v1 import errors_pb2
from bursar.v1 import ledger_pb2 as lg

_PAUSES_S: Final = (0.05, 0.4)  # before a stream is opened anew: doubled from the first to the last
_REFUSED_S: Final = 1.0  # how long a count may be refused before the lease ends
_LAST_REPORT_S: Final = 5.0  # how long `detach` waits for the last count to arrive

S = TypeVar("S", bound="CountedStep")


class CountedStep:
    """The bare steps, counted in this process; what does not fit raises `Stuck`."""

    refused: BursarError | None = None

    def __init__(self, terms: LeaseTerms, granted: int, used: int) -> None:
        self._terms = terms
        self._granted = terms.bound(granted)
        self._used = self._heard = used
        self._refused_since: float | None = None
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
            if not self.ended:
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

    @property
    def heard(self) -> bool:
        """As `Lease.heard`; what a forked child has copied is its parent's to tell."""
        return self._heard >= self._used or os.getpid() != self._pid

    def end(self, why: BursarError | None = None) -> None:
        """Counts nothing any more."""
        self.refused = self.refused or why
        self._ended = True

    def end_detached(self) -> int:
        """Ends what the last report was waited for."""
        unheard = SidecarUnavailable(
            f"the sidecar has not heard the last count, {self._used}: commit tells it"
        )
        self.end(None if self.heard else unheard)
        return self._used

    def raised(self, result: ExtendResult) -> None:
        """Counts on, up to what an extend has granted."""
        with self._lock:
            granted = granted_count(self._terms, result.reservation.granted)
            if self._terms.unit is None:
                granted = result.reservation.max_output_tokens
            self._granted = max(self._granted, self._terms.bound(granted))

    def report(self) -> tuple[int, lg.MeterRequest]:
        """What is counted now, and the request that says so."""
        count = self._used
        used, usage = self._terms.spending(count)
        debit = lg.MeterDebit(
            reservation=self._terms.reservation,
            used=convert.amounts_to_wire(used or {}, field="used"),
            usage=convert.usage_to_wire(usage) if usage else None,
        )
        return count, lg.MeterRequest(debits=[debit])

    def hear(self, response: lg.MeterResponse, on_the_way: deque[int]) -> bool:
        """Takes a response of the sidecar; False: the count has to be told again, on a new stream.

        Args:
            response: What came.
            on_the_way: The counts that were sent and not answered, the oldest first.
        """
        for answer in response.answers:
            if answer.HasField("error"):
                self.refuse(_failure(answer.error))
                return False
            self._verdict, self._advice = convert.verdict(answer.verdict), convert.advice(answer)
        if not response.unasked:
            self._heard = max(self._heard, on_the_way.popleft())
        self._refused_since = None
        return True

    def refuse(self, why: BursarError) -> None:
        """Ends the lease if the reservation is over, or counts have been refused for long.

        Not at once: another channel that debits it is, most likely, the stream before this one.
        """
        if isinstance(why, SidecarUnavailable | SidecarTimeout):
            self._refused_since = None
            return
        since = self._refused_since = self._refused_since or time.monotonic()
        if isinstance(why, OVER) or time.monotonic() - since >= _REFUSED_S:
            self.end(why)

    def debited(self, count: int, result: DebitResult) -> None:
        """Takes the answer to a debit in this process."""
        self._heard = max(self._heard, count)
        self._verdict, self._advice = result.verdict, result.advice


class CountedHere:
    """The leases that a client counts itself: one for each reservation, as at the sidecar."""

    def __init__(self) -> None:
        self._steps: WeakValueDictionary[str, CountedStep] = WeakValueDictionary()
        self._lock = threading.Lock()

    def open(self, terms: LeaseTerms, make: Callable[[], S]) -> S:
        """Makes a lease, unless the reservation has one."""
        with self._lock:
            known = self._steps.get(terms.reservation)
            if known is not None and not known.ended:
                raise ReservationLeased(
                    f"{terms.reservation} has a lease: detach it first, or use it from all threads",
                    reason="RESERVATION_LEASED",
                    metadata={"reservation": terms.reservation},
                )
            made = self._steps[terms.reservation] = make()
            return made


def _failure(error: lg.MeterError) -> BursarError:
    """What a debit on a stream failed with."""
    reason = errors_pb2.ErrorReason.Name(error.reason).removeprefix("ERROR_REASON_")
    row = ERRORS.get(reason)
    code = row.code if row else "UNKNOWN"
    return from_reason(code, error.message, reason=reason, metadata=error.metadata)


def debited_count(terms: LeaseTerms, info: ReservationInfo) -> int:
    """What was debited of a reservation, as a lease counts."""
    if terms.unit is not None:
        return info.used.get(terms.unit, 0)
    prompt = terms.estimate.input_tokens if terms.estimate is not None else 0
    return max(0, info.used.get("tokens", 0) - prompt)


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
        used: int,
        extend: Callable[..., ExtendResult],
    ) -> None:
        CountedStep.__init__(self, terms, granted, used)
        Refilling.__init__(self, terms, lambda **wish: self.raised(extend(**wish)))
        self._transport = transport
        self._news = threading.Condition()
        self._leaving = False
        self._on_the_way: deque[int] = deque()  # of the stream that is open
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

    def _requests(self, on_the_way: deque[int]) -> Iterator[lg.MeterRequest]:
        """The latest count whenever it is another than the last one, until the stream ends."""
        told = -1
        while True:
            with self._news:
                while not (is_over := self.ended or self._on_the_way is not on_the_way):
                    if self._leaving or self.used != told:
                        break
                    self._news.wait()
                if is_over or self.used == told:
                    return
                told, request = self.report()
                on_the_way.append(told)
            yield request

    def _stream(self) -> bool:
        """Reports until the stream ends; whether anything was heard."""
        heard = False
        on_the_way: deque[int] = deque()
        self._on_the_way = on_the_way
        try:
            for response in self._transport.meter(self._requests(on_the_way)):
                if not self.hear(response, on_the_way):
                    break
                heard = True
        except BursarError as error:
            self.refuse(error)
        finally:
            with self._news:
                self._on_the_way = deque()
                self._news.notify_all()
        return heard

    def _run(self) -> None:
        pause_s, longest_s = _PAUSES_S
        while not (self.ended or (self._leaving and self.heard)):
            pause_s = _PAUSES_S[0] if self._stream() else min(pause_s * 2, longest_s)
            if not self._leaving or not self.heard:
                time.sleep(pause_s)

    def detach(self) -> int:
        """As `Lease.detach`."""
        if os.getpid() == self._pid:
            with self._news:
                self._leaving = True
                self._news.notify_all()
            self._thread.join(_LAST_REPORT_S)
        used = self.end_detached()
        self._notify()
        return used


class EmbeddedStep(CountedStep):
    """The bare steps on a ledger in this process: each is a debit."""

    def __init__(
        self, terms: LeaseTerms, granted: int, used: int, debit: Callable[..., DebitResult]
    ) -> None:
        super().__init__(terms, granted, used)
        self._debit = debit
        self.wake = self._tell
        self._tell()

    def _tell(self) -> None:
        count = self.used
        used, usage = self._terms.spending(count)
        try:
            self.debited(count, self._debit(used=used, usage=usage))
        except ReservationError as error:
            self.end(error)

    def debit(self, count: int = 1) -> Verdict:
        """As `CountedStep.debit`; the debit may have ended it."""
        super().debit(count)
        return self.verdict


class EmbeddedLease(Refilling, EmbeddedStep, Lease):
    """A lease on a ledger in this process."""

    def __init__(
        self,
        terms: LeaseTerms,
        granted: int,
        used: int,
        extend: Callable[..., ExtendResult],
        debit: Callable[..., DebitResult],
    ) -> None:
        EmbeddedStep.__init__(self, terms, granted, used, debit)
        Refilling.__init__(self, terms, lambda **wish: self.raised(extend(**wish)))

    def debit(self, count: int = 1) -> Verdict:
        """As `Lease.debit`."""
        try:
            return super().debit(count)
        except Stuck as stuck:
            return self._stuck(stuck.count, stuck.why)

    def detach(self) -> int:
        """As `Lease.detach`."""
        self.end()
        return self.used


class AsyncReports:
    """Reports a `CountedStep` by a Meter stream, from a task."""

    def __init__(self, transport: AsyncTransport, step: CountedStep) -> None:
        self._transport, self._step = transport, step
        self._news = asyncio.Event()
        self._leaving = False
        step.wake = self._news.set
        self._task = asyncio.create_task(self._run())

    async def _requests(self, on_the_way: deque[int]) -> AsyncIterator[lg.MeterRequest]:
        told = -1
        while not self._step.ended:
            if self._step.used != told:
                told, request = self._step.report()
                on_the_way.append(told)
                yield request
            elif self._leaving:
                return
            else:
                await self._news.wait()
                self._news.clear()

    async def _stream(self) -> bool:
        """As `MeteredLease._stream`."""
        heard = False
        on_the_way: deque[int] = deque()
        try:
            async with aclosing(self._transport.meter(self._requests(on_the_way))) as responses:
                async for response in responses:
                    if not self._step.hear(response, on_the_way):
                        break
                    heard = True
        except BursarError as error:
            self._step.refuse(error)
        return heard

    async def _run(self) -> None:
        pause_s, longest_s = _PAUSES_S
        while not (self._step.ended or (self._leaving and self._step.heard)):
            pause_s = _PAUSES_S[0] if await self._stream() else min(pause_s * 2, longest_s)
            if not self._leaving or not self._step.heard:
                await asyncio.sleep(pause_s)

    async def detach(self) -> int:
        """As `Lease.detach`."""
        self._leaving = True
        self._news.set()
        _, late = await asyncio.wait({self._task}, timeout=_LAST_REPORT_S)
        for task in late:
            task.cancel()
        return self._step.end_detached()


def start(terms: LeaseTerms, granted: Amounts, max_output_tokens: int) -> int:
    """What may be counted at the start."""
    return max_output_tokens if terms.unit is None else granted_count(terms, granted)
