"""The handle of one pending reservation, for the synchronous client."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from bursar._calls import Admission
from bursar._convert import invalid
from bursar._courier import AWAY
from bursar._local import is_local
from bursar._metered import start
from bursar.exceptions import BursarError, ReservationError, SidecarError
from bursar.lease import AHEAD, Lease, LeaseTerms, terms_of
from bursar.models import (
    Advice,
    Amounts,
    Balance,
    CommitResult,
    DebitResult,
    ExtendResult,
    ReleaseResult,
    ReservationInfo,
    ReservationState,
    Usage,
    UsageEstimate,
    Verdict,
)

if TYPE_CHECKING:
    from bursar.client import Client

__all__ = ["Reservation"]

Spending = tuple[Amounts | None, Usage | None]
NOTHING: Final[Spending] = (None, None)


class Handle:
    """What the sync and the async handle have in common: all that needs no call."""

    def __init__(self, admission: Admission) -> None:
        self._info = admission.info
        self._verdict = admission.verdict
        self._advice = admission.advice
        self._balances = admission.balances
        self._estimate = admission.estimate
        self._ended = False
        self._owed = NOTHING

    def __repr__(self) -> str:
        state = "ended" if self._ended else "pending"
        granted = dict(self.granted)
        return f"<{type(self).__name__} {self.id} on {self.account}, {state}, {granted}>"

    @property
    def id(self) -> str:
        """The reservation's opaque id."""
        return self._info.id

    @property
    def local(self) -> bool:
        """Whether it was granted in this process, while no sidecar answered; see `FailOpen`."""
        return is_local(self.id)

    @property
    def account(self) -> str:
        """The account it holds on."""
        return self._info.account

    @property
    def granted(self) -> Mapping[str, int]:
        """What it holds in all, by unit, the spent part included."""
        return self._info.granted

    @property
    def max_output_tokens(self) -> int:
        """For one made from a usage: the output tokens that were granted."""
        return self._info.max_output_tokens

    @property
    def expire_time(self) -> datetime | None:
        """When it expires unless extended."""
        return self._info.expire_time

    @property
    def verdict(self) -> Verdict:
        """The latest verdict on it."""
        return self._verdict

    @property
    def advice(self) -> Advice | None:
        """The latest advice; None when there is none."""
        return self._advice

    @property
    def balances(self) -> tuple[Balance, ...]:
        """For each unit, the window with the least left, as Reserve saw it."""
        return self._balances

    @property
    def info(self) -> ReservationInfo:
        """The reservation as the latest Reserve or Extend answered it."""
        return self._info

    @property
    def ended(self) -> bool:
        """Whether this handle committed or released it."""
        return self._ended

    def _usage(self, usage: Usage | None, output_tokens: int | None) -> Usage | None:
        """Completes `output_tokens` with the prompt that the reservation was made for."""
        if output_tokens is None:
            return usage
        if usage is not None:
            raise invalid("give usage or output_tokens, not both", field="output_tokens")
        if self._estimate is None:
            raise invalid(
                "output_tokens needs a reservation made from usage=UsageEstimate(...); "
                "debit or commit amounts, or pass a whole Usage",
                field="output_tokens",
            )
        return usage_of(self._estimate, output_tokens)

    @contextlib.contextmanager
    def _ending(self) -> Iterator[None]:
        """An end that is not answered but kept is one: nothing more is to be said."""
        try:
            yield
        except SidecarError as error:
            self._ended = self._ended or error.kept
            raise

    def _saw_debit(self, result: DebitResult) -> DebitResult:
        self._verdict, self._advice, self._owed = result.verdict, result.advice, NOTHING
        return result

    def _unheard(self, error: SidecarError, used: Amounts, usage: Usage | None) -> DebitResult:
        """Counts a debit that no sidecar has heard: within what is granted, if so is decided."""
        if error.decision != "fail_open":
            raise error
        self._owed = (used or None), usage
        left = {unit: self.granted.get(unit, 0) - count for unit, count in used.items()}
        if usage is not None:
            left = {"tokens": self.max_output_tokens - usage.output_tokens}
        fits = min(left.values(), default=0) >= 0
        self._verdict = Verdict.WARN if fits else Verdict.STOP
        return DebitResult(self._verdict, {unit: max(0, one) for unit, one in left.items()})

    def _saw_extend(self, result: ExtendResult) -> ExtendResult:
        self._verdict, self._advice = result.verdict, result.advice
        self._info = result.reservation
        return result

    def _saw_commit(self, result: CommitResult) -> CommitResult:
        self._ended = True
        self._verdict, self._advice = result.verdict, result.advice
        return result

    def _saw_release(self, result: ReleaseResult) -> ReleaseResult:
        self._ended = True
        self._info = replace(self._info, state=result.state, spent=result.spent)
        return result


def used_of(tokens: int | None, used: Amounts | None) -> Amounts:
    """What a debit says in amounts; empty: it says a usage."""
    return {"tokens": tokens} if tokens is not None else used or {}


def usage_of(estimate: UsageEstimate, output_tokens: int) -> Usage:
    """The usage of a call that read the whole estimated prompt and wrote `output_tokens`."""
    return Usage(
        model="",  # the model that the reservation was made for
        input_tokens=estimate.input_tokens,
        cached_input_tokens=estimate.cached_input_tokens,
        cache_write_tokens=estimate.cache_write_tokens,
        output_tokens=output_tokens,
        gpu_ms=estimate.gpu_ms,
    )


def released(result: CommitResult) -> ReleaseResult:
    """A release that had to say what the sidecar has not heard, so that it was a commit."""
    state = ReservationState.COMMITTED
    return ReleaseResult(state, result.spent, result.returned, answered=result.answered)


def note_unreleased(error: BaseException, failure: BursarError) -> None:
    """Says on the error that is under way that the hold could not be given back."""
    error.add_note(f"the reservation was not released ({failure}); it ends by its time to live")


class Reservation(Handle):
    """A hold; as a context manager it releases what was not committed.

    ```python
    with client.reserve("acme/research", tokens=500) as reservation:
        ...
        reservation.commit(tokens=321)
    ```
    """

    def __init__(self, client: "Client", admission: Admission) -> None:
        super().__init__(admission)
        self._client = client
        self._leased: tuple[Lease, LeaseTerms] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._ended:
            return
        try:
            self.release()
        except BursarError as failure:
            if error is None:
                raise
            note_unreleased(error, failure)

    def debit(
        self,
        *,
        tokens: int | None = None,
        used: Amounts | None = None,
        usage: Usage | None = None,
        output_tokens: int | None = None,
    ) -> DebitResult:
        """Tells how much is spent so far (cumulative); see `Client.debit`.

        Args:
            tokens: Short for ``used={"tokens": tokens}``.
            used: What was used so far, in the base of each unit.
            usage: What was used so far, to be priced at the rates fixed by Reserve.
            output_tokens: Short for a usage with the estimated prompt and so much output.
        """
        usage = self._usage(usage, output_tokens)
        try:
            result = self._client.debit(self.id, tokens=tokens, used=used, usage=usage)
        except AWAY as error:
            return self._unheard(error, used_of(tokens, used), usage)
        return self._saw_debit(result)

    def lease(
        self,
        *,
        unit: str | None = None,
        top_up: bool = True,
        ahead: int = AHEAD,
        at_most: int | None = None,
    ) -> Lease:
        """Opens it for debits step by step.

        Where the sidecar is on this host, a debit is a step on shared memory; elsewhere it is
        counted here and reported by a stream.

        While the lease is open, `debit` by call is refused; `commit` and `release` end it.

        Args:
            unit: What one step counts. None: an output token of the usage that was reserved, else
                the one unit that is held.
            top_up: Whether more is taken from the budget once what was reserved runs low; what is
                unused of it goes back before somebody else is refused.
            ahead: How much is granted ahead of what is used.
            at_most: The most that is ever counted. None: for a usage, the output tokens that were
                asked for; else what the budget gives.

        Raises:
            ReservationLeased: It has a lease.
            NotTheOwner: Another process reserved it.
            LimitReached: The configured maximum of leases is reached.
            SidecarUnavailable: None answers, or it may have granted a lease that did not arrive.
        """
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
            self._tell()
        granted = start(terms, self.granted, self.max_output_tokens)
        lease = self._client.lease(terms, granted=granted)
        self._leased, self._owed = (lease, terms), NOTHING
        return lease

    def extend(
        self,
        *,
        tokens: int | None = None,
        granted: Amounts | None = None,
        min_acceptable: Amounts | None = None,
        ttl_s: float | None = None,
    ) -> ExtendResult:
        """Renews the time to live and raises the hold to the totals given; see `Client.extend`."""
        result = self._client.extend(
            self.id, tokens=tokens, granted=granted, min_acceptable=min_acceptable, ttl_s=ttl_s
        )
        return self._saw_extend(result)

    def commit(
        self,
        *,
        tokens: int | None = None,
        actual: Amounts | None = None,
        usage: Usage | None = None,
        output_tokens: int | None = None,
        success: bool | None = None,
    ) -> CommitResult:
        """Ends it with its true amounts; with none given, with what was debited.

        What its lease has counted is part of that, also where the sidecar has not heard it yet.
        `success` says whether the work came to what it was for; see `Client.commit`.
        """
        usage = self._usage(usage, output_tokens)
        if tokens is None and actual is None and usage is None:
            actual, usage = self._tell()
        with self._ending():
            result = self._client.commit(
                self.id, tokens=tokens, actual=actual, usage=usage, success=success
            )
        return self._saw_commit(result)

    def release(self) -> ReleaseResult:
        """Ends it at what was debited and returns the rest."""
        actual, usage = self._tell()
        with self._ending():
            if actual is None and usage is None:
                result = self._client.release(self.id)
            else:
                result = released(self._client.commit(self.id, actual=actual, usage=usage))
        return self._saw_release(result)

    def _tell(self) -> Spending:
        """Ends its lease and tells the sidecar what that has counted and the sidecar not heard.

        Returns:
            What the commit has to say instead, where a debit is not accepted any more.
        """
        if self._leased is not None:
            lease, terms = self._leased
            count = lease.detach()
            owed = NOTHING
            if not lease.heard:
                owed = used, usage = terms.spending(count)
                with contextlib.suppress(ReservationError, *AWAY):
                    self._client.debit(self.id, used=used, usage=usage)
                    owed = NOTHING
            self._leased, self._owed = None, owed
        return self._owed
