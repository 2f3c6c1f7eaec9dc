"""Sends what the journal keeps until it is answered, from a thread of its own.

The thread is there only while something waits or the sidecar is known to be away. It has a channel
of its own, so that it serves clients of an event loop as well.
"""

import itertools
import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Protocol

from google.protobuf.message import DecodeError, Message

from bursar._journal import Journal, Kept
from bursar._transport import Retry, Transport
from bursar.exceptions import (
    AccessError,
    BudgetError,
    BursarError,
    InvalidRequest,
    ReservationError,
    SidecarTimeout,
    SidecarUnavailable,
    StoreUnavailable,
)
from bursar.v1 import access_pb2 as ac
from bursar.v1 import ledger_pb2 as lg

RESERVE: Final = "LedgerService/Reserve"
COMMIT: Final = "LedgerService/Commit"
RELEASE: Final = "LedgerService/Release"
RECORD: Final = "LedgerService/Record"
_PROBE: Final = "AccessService/WhoAmI"

AWAY: Final = (SidecarUnavailable, SidecarTimeout)
"""What a call ends with when no sidecar answers."""

UNHEARD: Final = (*AWAY, StoreUnavailable)
"""What a call ends with that may not have happened, and is good to be repeated later."""

_FINAL: Final = (ReservationError, InvalidRequest, BudgetError)
"""Answers that will not change. Others, such as a token that has expired, may."""

_MESSAGES: Final[dict[str, tuple[type[Message], type[Message]]]] = {
    RESERVE: (lg.ReserveRequest, lg.ReserveResponse),
    COMMIT: (lg.CommitRequest, lg.CommitResponse),
    RELEASE: (lg.ReleaseRequest, lg.ReleaseResponse),
    RECORD: (lg.RecordRequest, lg.RecordResponse),
}
_PAUSES: Final = Retry(first_s=0.25, max_s=5.0)
_LAST_ROUND_S: Final = 1.0  # how long `close` waits for a last try
_LOG: Final = logging.getLogger("bursar.journal")


class Told(Protocol):
    """Hears what became of what was kept."""

    def answered(self, number: int) -> None:
        """The sidecar has taken it in."""

    def lost(self, number: int) -> None:
        """The sidecar never will."""

    def returned(self) -> None:
        """The sidecar answers."""


class Courier:
    """Sends what is kept; see the module."""

    def __init__(self, connect: Callable[[], Transport], journal: Journal, told: Told) -> None:
        self._connect, self._journal, self._told = connect, journal, told
        self._news = threading.Condition()
        self._thread: threading.Thread | None = None
        self._probing = self._closing = False

    def wake(self, *, probe: bool = False, now: bool = False) -> None:
        """Begins to send what is ready.

        Args:
            probe: Also asks, until the sidecar answers.
            now: The sidecar has just answered somebody: does not wait for the next turn.
        """
        with self._news:
            self._probing = self._probing or probe
            if now:
                self._news.notify_all()
            if not self._closing:
                self._start()

    def _start(self) -> threading.Thread:
        if self._thread is None or not self._thread.is_alive():  # a forked child has none
            self._thread = threading.Thread(target=self._run, name="bursar-courier", daemon=True)
            self._thread.start()
        return self._thread

    def close(self) -> None:
        """Tries once more, for a moment, and ends."""
        with self._news:
            self._closing = True
            self._news.notify_all()
            thread = self._thread
            with suppress(RuntimeError):  # the interpreter ends: it starts no thread any more
                thread = self._start() if self._journal.ready() else thread
        if thread is not None:
            thread.join(_LAST_ROUND_S)

    def _run(self) -> None:
        transport = self._connect()
        try:
            for attempt in itertools.count(1):
                with self._news:
                    if not self._closing:
                        self._news.wait(_PAUSES.spread_s(attempt))
                self._round(transport)
                with self._news:
                    if self._closing or not (self._probing or self._journal.ready()):
                        self._thread = None
                        return
        finally:
            transport.close()

    def _round(self, transport: Transport) -> None:
        """Sends what is ready, as long as the sidecar answers."""
        try:
            for number, kept in self._journal.ready():
                self._send(transport, number, kept)
            if self._probing:
                with suppress(AccessError):  # that is an answer
                    transport.call(_PROBE, ac.WhoAmIRequest(), ac.WhoAmIResponse)
        except BursarError as error:
            _LOG.debug("%d calls wait: %s", len(self._journal), error)
        else:
            self._probing = False
            self._told.returned()

    def _send(self, transport: Transport, number: int, kept: Kept) -> None:
        request: Message | None = None
        try:
            request_type, response_type = _MESSAGES[kept.method]
            request = request_type.FromString(kept.request)
            answer = transport.call(kept.method, request, response_type)
            if isinstance(answer, lg.ReserveResponse) and answer.reservation.id:
                # Nobody heard of this hold: it goes back.
                release = lg.ReleaseRequest(reservation=answer.reservation.id)
                transport.call(RELEASE, release, lg.ReleaseResponse)
        except UNHEARD:
            raise
        except (KeyError, DecodeError, *_FINAL) as error:  # some are damaged, or of another version
            _LOG.error("lost, no sidecar takes it: %s: %r: %s", kept.method, error, request)
            self._told.lost(number)
        except BursarError as error:
            _LOG.warning("%s is kept: %s", kept.method, error)
            return
        else:
            self._told.answered(number)
        self._journal.done(number)
