"""What a client does while no sidecar answers: fails closed, or goes on within a local grant.

Every call of either client passes through here: `Course` is one call, from what is kept before it
is sent to what its method returns. It owns the decisions; it sends nothing and never waits, so both
clients share it. `_local` has the grant, `_journal` what waits, `_courier` sends that.
"""

import atexit
import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, cast

from google.protobuf.message import Message

from bursar._calls import Call
from bursar._courier import AWAY, RESERVE, UNHEARD, Courier
from bursar._journal import Journal, Kept
from bursar._local import FailOpen, LocalLedger, Spent, is_local
from bursar._transport import Transport
from bursar.exceptions import (
    BursarError,
    LimitReached,
    SidecarError,
    SidecarTimeout,
    SidecarUnavailable,
)

if TYPE_CHECKING:
    from bursar.models import Amounts
    from bursar.v1 import ledger_pb2 as lg

__all__ = ["Away", "FailOpen"]

T = TypeVar("T")

JOURNAL_VARIABLE: Final = "BURSAR_JOURNAL"
_DEBIT: Final = "LedgerService/Debit"
_EXTEND: Final = "LedgerService/Extend"
_ASKED_LATER: Final = frozenset({RESERVE, _DEBIT, _EXTEND})
"""What is not even tried, once the sidecar is known to be away and the client fails open."""

_CLOSED: Final = (
    "the decision is fail_closed: nothing may be spent. Start the sidecar, or choose to go on "
    "without it for a while: bursar.connect(when_away=bursar.FailOpen(...))"
)
_OVER: Final = "the decision is fail_closed, for nothing more is granted here"
_WITHIN: Final = "the decision is fail_open: go on within what is granted"
_LOG: Final = logging.getLogger("bursar.away")


@dataclass(frozen=True, slots=True)
class Away:
    """What a client has done without its sidecar, since it was made.

    Attributes:
        since: Since when no sidecar answers; None: the last call was answered.
        granted_count: How many reservations were granted in this process.
        waiting_count: How many calls are kept, to be told to the sidecar.
        told_count: How many of those it has taken in by now.
        lost_count: How many it never will, and lines of the journal that were damaged; the log says
            which.
    """

    since: datetime | None
    granted_count: int
    waiting_count: int
    told_count: int
    lost_count: int


NEVER_AWAY: Final = Away(None, 0, 0, 0, 0)


class Patience:
    """The policy of one client, and what it has come to.

    Args:
        target: The sidecar.
        when_away: What may be spent without it; None: nothing.
        journal: The folder of the journal; None: in memory only.
        connect: Makes a transport to the sidecar that tries each call once.
    """

    def __init__(
        self,
        target: str,
        *,
        when_away: FailOpen | None,
        journal: Path | None,
        connect: Callable[[], Transport],
    ) -> None:
        self.policy = when_away
        self.local = LocalLedger(when_away) if when_away is not None else None
        self.journal = Journal(journal, target)
        self.courier = Courier(connect, self.journal, self)
        self._spent: dict[int, Amounts] = {}
        self._lock = threading.Lock()
        self.one_here = threading.Lock()
        """Held from a change of a local hold until that is kept, so that they agree."""
        self._since: datetime | None = None
        self._deadline = 0.0
        self._last: SidecarError | None = None
        self._granted = self._told = self._lost = 0
        self.closed = self._is_at_exit = False
        if self.journal.ready():
            self.wake()

    @property
    def status(self) -> Away:
        """As `Client.away`."""
        lost = self._lost + self.journal.damaged
        return Away(self._since, self._granted, len(self.journal), self._told, lost)

    def course(self, call: Call[T]) -> "Course[T]":
        """Begins a call."""
        return Course(self, call)

    def wake(self, *, probe: bool = False, now: bool = False) -> None:
        """Wakes the courier; a program that ends without `close` says what it leaves behind."""
        if not self._is_at_exit:
            self._is_at_exit = True
            atexit.register(self.close)
        self.courier.wake(probe=probe, now=now)

    def close(self) -> None:
        """Tells what it can, and says what it cannot; a repeat does nothing."""
        if self.closed:
            return
        self.closed = True
        atexit.unregister(self.close)
        self.journal.send_all()
        self.courier.close()
        if len(self.journal):
            how = "kept for the next client" if self.journal.durable else "lost"
            level = logging.WARNING if self.journal.durable else logging.ERROR
            _LOG.log(level, "%d calls were not told to the sidecar: %s", len(self.journal), how)
        self.journal.close()
        if self.local is not None:
            self.local.close()

    @property
    def known_away(self) -> SidecarError | None:
        """What the last call ended with, while the courier asks whether the sidecar is back."""
        return self._last if self.local is not None else None

    @property
    def goes_on(self) -> bool:
        """Whether anything is granted in this process now."""
        return self.local is not None and time.monotonic() < self._deadline

    @property
    def _level(self) -> int:
        # An error says it as well, unless the client goes on.
        return logging.INFO if self.policy is None else logging.WARNING

    def went_away(self, error: SidecarError) -> None:
        """Notes that no sidecar answers."""
        with self._lock:
            self._last = error
            if self._since is None:
                self._since = datetime.now(UTC)
                for_s = 0.0 if self.policy is None else self.policy.for_s
                self._deadline = time.monotonic() + for_s
                _LOG.log(self._level, "%s", error)
        if self.local is not None:
            self.wake(probe=True)

    def returned(self) -> None:
        """Notes that the sidecar answers."""
        if self._since is None:
            return
        with self._lock:
            self._since = self._last = None
        _LOG.log(self._level, "the sidecar answers again; %d calls wait", len(self.journal))
        if self.journal.ready():
            self.wake(now=True)

    def granted(self, account: str) -> None:
        """Counts a reservation that was granted here, and says so."""
        with self._lock:
            self._granted += 1
        _LOG.warning("%s spends without the sidecar, by the decision fail_open", account)

    def keep_spent(self, spent: Spent) -> None:
        """Keeps what a local reservation has spent so far, or in the end."""
        ended = spent.amounts is not None
        number = spent.hold.number
        if spent.kept is not None:
            number = spent.hold.number = self.journal.keep(
                spent.kept, number=number, ready=False, bounded=False
            )
        if not ended or number is None:
            return
        with self._lock:
            self._spent[number] = spent.amounts or {}
        if spent.kept is None:
            self.journal.done(number)
            self.answered(number)
        else:
            self.journal.send(number)
            self.wake()

    def answered(self, number: int) -> None:
        """What was kept is told: so much may be granted anew."""
        with self._lock:
            self._told += 1
            spent = self._spent.pop(number, None)
        if spent is not None and self.local is not None:
            self.local.told(spent)

    def lost(self, number: int) -> None:
        """What was kept is refused for good; it stays counted against the grant."""
        with self._lock:
            self._lost += 1
            self._spent.pop(number, None)


class Course(Generic[T]):
    """One call: `is_remote` says whether to send it; then `heard` or `failed`; then `result`."""

    def __init__(self, patience: Patience, call: Call[T]) -> None:
        self._patience, self._call = patience, call
        self._results: list[T] = []
        self._error: BursarError | None = None
        self._number: int | None = None
        self.is_remote = True
        if patience.local is not None:
            request: Any = call.request
            name = getattr(request, "reservation", "") or getattr(request, "parent_reservation", "")
            if is_local(name):
                self.is_remote = False
                self._run_here(patience.local)
            elif call.method in _ASKED_LATER and (known := patience.known_away) is not None:
                self.is_remote = False
                self._decide(known)
        if self.is_remote and patience.journal.durable and call.unanswered is not None:
            with suppress(LimitReached):  # full: if it is not answered, `failed` says so
                self._keep(ready=False)

    def heard(self, answer: Message) -> None:
        """The sidecar has answered."""
        if self._number is not None:
            self._patience.journal.done(self._number)
        self._patience.returned()
        try:
            self._results.append(self._call.read(answer))
        except BursarError as error:
            self._error = error

    def failed(self, error: BursarError) -> None:
        """The call has ended with an error."""
        away = isinstance(error, AWAY) and not self._patience.closed
        if away:
            self._patience.went_away(cast("SidecarError", error))
        elif not isinstance(error, AWAY):
            self._patience.returned()
        if self._call.unanswered is not None and isinstance(error, UNHEARD):
            self._settle_later(error, away=away)
            return
        if self._number is not None:
            self._patience.journal.done(self._number)
        if not away:
            self._error = error
            return
        if isinstance(error, SidecarTimeout):
            self._undo()
        self._decide(cast("SidecarError", error))

    def cancelled(self) -> None:
        """Nobody waits for the answer any more: an end is told all the same, a hold goes back."""
        if self._call.unanswered is not None:
            with suppress(LimitReached):
                self._keep(ready=True)
                self._patience.wake()
        else:
            self._undo()

    def result(self) -> T:
        """What the method returns, or raises."""
        if self._error is not None:
            raise self._error
        return self._results[0]

    def _keep(self, *, ready: bool) -> None:
        journal = self._patience.journal
        if self._number is None:
            kept = Kept(self._call.method, self._call.request.SerializeToString())
            self._number = journal.keep(kept, ready=ready)
        elif ready:
            journal.send(self._number)

    def _settle_later(self, error: SidecarError, *, away: bool) -> None:
        patience = self._patience
        try:
            self._keep(ready=True)
        except LimitReached as full:
            self._error = error.decided(f"it is not kept either: {full}")
            return
        patience.wake()
        if away and patience.policy is not None and self._call.unanswered is not None:
            self._results.append(self._call.unanswered)
        else:
            self._error = error.decided("it is kept, and sent until it is answered", kept=True)

    def _undo(self) -> None:
        """Gives back the hold that an unheard Reserve may have made, if only we have its key."""
        if self._call.method == RESERVE and not self._call.is_repeatable:
            with suppress(LimitReached):  # its time to live ends it as well
                self._patience.journal.keep(Kept(RESERVE, self._call.request.SerializeToString()))
                self._patience.wake()

    def _decide(self, error: SidecarError) -> None:
        """No sidecar answers: what is to be done about the spending that was asked for?"""
        patience = self._patience
        if patience.local is None or self._call.method not in _ASKED_LATER:
            self._error = error.decided(_CLOSED) if self._call.method == RESERVE else error
        elif not patience.goes_on:
            for_s = 0 if patience.policy is None else patience.policy.for_s
            self._error = error.decided(f"{_OVER}: FailOpen grants for {for_s:g} s")
        elif patience.journal.full:
            self._error = error.decided(f"{_OVER}: its journal is full")
        elif self._call.method == RESERVE:
            self._admit_here(patience.local)
        else:
            self._error = error.decided(_WITHIN, decision="fail_open")

    def _admit_here(self, local: LocalLedger) -> None:
        request = cast("lg.ReserveRequest", self._call.request)
        try:
            self._results.append(local.reserve(self._call))
        except BursarError as error:
            self._error = error
        else:
            self._patience.granted(request.account)

    def _run_here(self, local: LocalLedger) -> None:
        if self._call.method in {RESERVE, _EXTEND} and not self._patience.goes_on:
            over = "what was granted without the sidecar cannot be raised now: reserve anew"
            self._error = SidecarUnavailable(over)
        elif self._call.method == RESERVE:
            self._admit_here(local)
        else:
            with self._patience.one_here:
                try:
                    result, spent = local.call(self._call)
                except BursarError as error:
                    self._error = error
                    return
                self._results.append(result)
                if spent is not None:
                    self._patience.keep_spent(spent)
