"""Leases: a reservation debited step by step, in nanoseconds, and stopped at the exact count.

`Lease` says what every lease does. `SharedLease` is the one on shared memory, for processes on the
sidecar's own host; `bursar._metered` has the one that works everywhere else, slower.
"""

import errno
import socket as sockets
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Final, Self

from bursar import _core
from bursar._convert import invalid
from bursar._errors import from_core
from bursar.exceptions import (
    BudgetError,
    BursarError,
    ReservationEnded,
    ReservationExpired,
    ReservationLeased,
    ReservationNotFound,
    SidecarError,
    SidecarUnavailable,
)
from bursar.models import Advice, Amounts, Usage, UsageEstimate, Verdict
from bursar.units import CAPACITY_UNITS, UNITS

__all__ = ["Lease"]

AHEAD: Final = 256
_CHUNK_MAX: Final = 65_536
_VERDICTS: Final = (Verdict.OK, Verdict.WARN, Verdict.DEGRADE, Verdict.STOP)
PATIENCE_S: Final = 5.0
OVER: Final = (ReservationEnded, ReservationExpired, ReservationNotFound)


@dataclass(frozen=True, slots=True)
class LeaseTerms:
    """What a lease counts, and how far it may go.

    Attributes:
        reservation: The reservation's id.
        unit: What one step counts; None: an output token of `estimate`.
        estimate: The model call, where output tokens are counted.
        ahead: How much the sidecar grants ahead of what is used; 0: no top-ups.
        at_most: The most that is ever counted; None: no such bound.
    """

    reservation: str
    unit: str | None
    estimate: UsageEstimate | None
    ahead: int
    at_most: int | None

    def bound(self, total: int) -> int:
        """The total, kept within `at_most`."""
        return total if self.at_most is None else min(total, self.at_most)

    def wish(self, total: int, least: int) -> dict[str, Any]:
        """The arguments of an `extend` that raises the hold to a count."""
        if self.unit is not None:
            wish: dict[str, Any] = {
                "granted": {self.unit: total},
                "min_acceptable": {self.unit: least},
            }
        elif self.estimate is not None:
            wish = {
                "usage": replace(
                    self.estimate, model="", max_output_tokens=total, min_output_tokens=least
                )
            }
        return wish | {"top_up": True}

    def spending(self, count: int) -> tuple[Amounts | None, Usage | None]:
        """What a count comes to, as a debit or a commit says it."""
        if self.unit is not None:
            return {self.unit: count}, None
        estimate = self.estimate
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


def terms_of(
    reservation: str,
    granted: Amounts,
    estimate: UsageEstimate | None,
    *,
    unit: str | None,
    top_up: bool,
    ahead: int,
    at_most: int | None,
) -> LeaseTerms:
    """Checks what a caller asks for and fills in what is left out."""
    if ahead < 1:
        raise invalid(f"ahead={ahead}: grant at least 1 ahead, or pass top_up=False", field="ahead")
    if at_most is not None and at_most < 1:
        raise invalid(f"at_most={at_most}: a lease counts at least 1", field="at_most")
    if unit is None and estimate is None:
        spent = [one for one in granted if one not in CAPACITY_UNITS]
        if len(spent) != 1:
            held = ", ".join(spent) or "nothing that is spent"
            raise invalid(f"the reservation holds {held}: name the unit to count", field="unit")
        unit = spent[0]
    if unit is not None and (unit not in UNITS or unit in CAPACITY_UNITS):
        raise invalid(f"unit={unit!r} is not a unit that is spent", field="unit")
    if unit is None and estimate is not None and at_most is None:
        at_most = estimate.max_output_tokens  # never more than was asked for
    return LeaseTerms(reservation, unit, estimate, ahead if top_up else 0, at_most)


class Lease(ABC):
    """A reservation that is debited step by step.

    ```python
    with client.reserve("acme/research", tokens=64) as reservation, reservation.lease() as lease:
        for token in model:
            if lease.debit(1) is Verdict.STOP:
                break
    ```

    Debits may come from any number of threads. When what is granted runs low it is topped up out
    of the budget, unnoticed; when the budget is gone, `debit` answers STOP at the exact count.
    Leaving the context ends the lease and keeps the reservation, to be committed. A process that is
    forked off does not own its parent's leases: its debits raise ReservationLeased.
    """

    refused: BursarError | None = None
    """Why `debit` answered STOP, where that is known: a BudgetError for want of budget, another
    error when the lease is over; None after a freeze or a limit, which the verdict alone tells."""

    @abstractmethod
    def debit(self, count: int = 1) -> Verdict:
        """Debits `count` steps and says how to go on.

        What fits is debited: on STOP for want of budget, `used` may have risen by less.

        Raises:
            SidecarUnavailable: The sidecar has gone away while it was at work on this lease.
            ReservationLeased: This process was forked from the one that has the lease.
        """

    @property
    @abstractmethod
    def used(self) -> int:
        """What is debited so far, as a count."""

    @property
    @abstractmethod
    def granted(self) -> int:
        """What may be debited in all, as far as is granted by now."""

    @property
    @abstractmethod
    def verdict(self) -> Verdict:
        """How to go on, as the sidecar said last."""

    @property
    @abstractmethod
    def advice(self) -> Advice | None:
        """What to change about the generation; None: nothing."""

    @property
    @abstractmethod
    def ended(self) -> bool:
        """Whether the lease or its reservation is over."""

    @property
    @abstractmethod
    def heard(self) -> bool:
        """Whether the sidecar is known to have heard all of `used`; sure once it is detached.

        What it has not heard, the commit or release of the reservation's handle tells it.
        """

    @abstractmethod
    def detach(self) -> int:
        """Ends the lease, keeps the reservation, and returns what was debited.

        Waits for the sidecar, but not for long; see `heard`. A repeat does nothing.
        """

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.detach()


class Stuck(Exception):
    """A step of a `SharedStep` that did not fit; `why` is exhausted, ended, away or forked."""

    def __init__(self, count: int, why: str) -> None:
        super().__init__(why)
        self.count, self.why = count, why


class Chunks:
    """How much to ask for at a time: twice as much each time, so that a fast loop asks rarely."""

    def __init__(self, terms: LeaseTerms) -> None:
        self._terms = terms
        self._size = terms.ahead

    def next_wish(self, used: int, granted: int, count: int) -> dict[str, Any] | None:
        """The arguments of the next `extend`; None: nothing more may be asked for."""
        if not self._terms.ahead:
            return None
        total = self._terms.bound(used + max(count, self._size))
        self._size = min(self._size * 2, _CHUNK_MAX)
        return self._terms.wish(total, granted + 1) if total > granted else None


class SharedStep(_core.Lease):
    """The bare steps on shared memory; what does not fit raises `Stuck`."""

    refused: BursarError | None = None
    _heard = False

    def __new__(cls, socket: str, terms: LeaseTerms, patience_s: float = PATIENCE_S) -> Self:
        """Attaches at the lease socket; its steps wait at most `patience_s` for the sidecar.

        Raises:
            ConnectionError: Nobody listens there.
            BursarError: The sidecar refused, or may have granted what did not arrive.
        """
        estimate = terms.estimate or UsageEstimate(model="", input_tokens=0, max_output_tokens=0)
        usage = (
            estimate.input_tokens,
            estimate.cached_input_tokens,
            estimate.cache_write_tokens,
            estimate.gpu_ms,
        )
        unit = None if terms.unit is None else list(UNITS).index(terms.unit)
        try:
            return super().__new__(
                cls,
                socket,
                terms.reservation,
                unit,
                usage,
                0,
                terms.ahead,
                terms.at_most or 0,
                _VERDICTS,
                patience_s,
            )
        except ConnectionError as error:
            if not is_listened_on(socket):
                raise
            raise SidecarUnavailable(
                f"the sidecar may have granted the lease, but it did not arrive ({error}): "
                "release the reservation and reserve anew",
                code="UNAVAILABLE",
            ) from None
        except _core.CoreError as raised:
            raise from_core(raised) from None

    def _stuck(self, count: int, why: str) -> Verdict:
        raise Stuck(count, why)

    def detach(self) -> int:
        """As `Lease.detach`; a sidecar that is away learns of it from the connection's end."""
        was_open = not self.ended
        try:
            used = super().detach()
        except (ConnectionError, _core.CoreError):
            return self.used
        self._heard = self._heard or was_open
        return used

    @property
    def heard(self) -> bool:
        """As `Lease.heard`."""
        return self._heard

    def fit(self, count: int) -> Verdict | None:
        """Debits `count`, or None."""
        return self.try_debit(count)

    def take_rest(self, count: int) -> None:
        """Debits as much of `count` as is granted still."""
        while (rest := min(count, self.granted - self.used)) > 0:
            if self.try_debit(rest) is not None or self.ended:
                return

    @property
    def verdict(self) -> Verdict:
        """As `Lease.verdict`."""
        return self.verdict_now

    @property
    def advice(self) -> Advice | None:
        """As `Lease.advice`."""
        told = self.advice_now
        return None if told is None else Advice(*told)


def is_listened_on(path: str) -> bool:
    """Whether somebody listens at a lease socket, as far as can be told."""
    try:
        probe = sockets.socket(sockets.AF_UNIX, sockets.SOCK_SEQPACKET)
    except OSError as error:  # out of them, or there are none of this kind
        return error.errno in {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
    with probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except OSError as error:
            return error.errno == errno.EAGAIN  # too many wait to be accepted
    return True


def give_up(step: Any, why: str) -> Verdict:  # noqa: ANN401 -- any kind of step
    """What a step means that more budget would not help."""
    if why == "forked":
        raise ReservationLeased(
            "this process was forked from the one that has the lease: reserve and lease anew here",
            reason="RESERVATION_LEASED",
        )
    if why == "away":
        raise SidecarUnavailable("the sidecar has gone away and has not come back")
    if step.refused is None:
        step.refused = ReservationEnded(
            "the lease is over: it was detached, its reservation has ended, or a new sidecar did "
            "not take it over",
            reason="RESERVATION_ENDED",
        )
    return Verdict.STOP


def goes_on(error: BursarError) -> bool:
    """Whether no sidecar answers, and the lease is to go on to the end of what is granted."""
    return isinstance(error, SidecarError) and error.decision == "fail_open"


class Refilling:
    """What the synchronous leases do with a step that does not fit."""

    refused: BursarError | None = None
    fit: Callable[[int], Verdict | None]
    take_rest: Callable[[int], None]

    def __init__(self, terms: LeaseTerms, extend: Callable[..., Any]) -> None:
        self._extend = extend
        self._chunks = Chunks(terms)
        self._one_asks = threading.Lock()

    def _stuck(self, count: int, why: str) -> Verdict:
        step: Any = self
        if why != "exhausted":
            return give_up(step, why)
        # One thread asks; the others find what it got.
        with self._one_asks:
            while (verdict := self.fit(count)) is None and not step.ended:
                wish = self._chunks.next_wish(step.used, step.granted, count)
                try:
                    if wish is not None:
                        self._extend(**wish)
                        continue
                except BudgetError as refused:
                    self.refused = refused
                except OVER as refused:
                    self.refused = refused
                    return Verdict.STOP
                except BursarError as error:
                    if not goes_on(error) and not step.ended:
                        raise
                    self.refused = error if goes_on(error) else self.refused
                self.take_rest(count)
                return Verdict.STOP
        if verdict is None:
            return give_up(step, "ended")
        self.refused = None
        return verdict


class SharedLease(Refilling, SharedStep, Lease):
    """A lease on shared memory: a debit is one compare-and-swap."""

    def __new__(cls, socket: str, terms: LeaseTerms, extend: Callable[..., Any]) -> Self:  # noqa: ARG004 -- for __init__
        """As `SharedStep`."""
        return super().__new__(cls, socket, terms)

    def __init__(self, socket: str, terms: LeaseTerms, extend: Callable[..., Any]) -> None:  # noqa: ARG002 -- for __new__
        super().__init__(terms, extend)
