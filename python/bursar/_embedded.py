"""The embedded transport: the ledger in this process, without a daemon.

No deadline and no retries: the engine answers from memory and one write to its log.
"""

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, cast

from google.protobuf.message import Message

from bursar._errors import from_core, from_reason
from bursar.exceptions import SidecarUnavailable
from bursar.v1 import account_pb2
from bursar.v1.ledger_pb2 import MeterRequest, MeterResponse

if TYPE_CHECKING:
    from bursar._core import Engine, Server, Watch

_WATCH: Final = "AccountService/WatchAccounts"
_WATCH_PROCESSES: Final = "ProcessService/WatchProcesses"
_INTERVAL_MS: Final = 250


def open_engine(config_json: str) -> "Engine":
    """Opens the engine; raises what is wrong with the store or the configuration."""
    from bursar import _core

    try:
        return _core.Engine(config_json)
    except _core.CoreError as raised:
        raise from_core(raised) from None


def new_watch(account: str) -> "Watch":
    """A watch that has seen nothing yet; raises what is wrong with the path."""
    from bursar import _core

    try:
        return _core.Watch(account)
    except _core.CoreError as raised:
        raise from_core(raised) from None


def call_core(
    core: "Engine | Server", method: str, request: Message, response: type[Message]
) -> Message:
    """Runs one call in this process to its end, without a socket."""
    try:
        answer = core.call(method, request.SerializeToString())
    except Exception as raised:
        from bursar import _core  # not above: a client of a sidecar never loads it

        if isinstance(raised, _core.CoreError):
            raise from_core(raised) from None
        raise
    return response.FromString(answer)


class EmbeddedTransport:
    """Calls the engine in this process."""

    lease_socket: None = None

    def __init__(self, engine: "Engine") -> None:
        self._engine: Engine | None = engine

    def call(self, method: str, request: Message, response: type[Message]) -> Message:
        """Runs one call to its end."""
        return call_core(self._open(), method, request, response)

    def stream(self, method: str, request: Message, response: type[Message]) -> Iterator[Message]:
        """Watches by polling: the engine has no connection that it could push to."""
        if method == _WATCH_PROCESSES:
            raise from_reason(
                "UNAVAILABLE",
                "an embedded ledger has no watchdog; connect to a sidecar",
                reason="WATCHDOG_UNAVAILABLE",
            )
        if method != _WATCH or response is not account_pb2.WatchAccountsResponse:
            raise NotImplementedError(method)
        asked = cast("account_pb2.WatchAccountsRequest", request)
        given_ms = asked.min_interval.ToMilliseconds()
        watch = new_watch(asked.account)
        while True:
            changes = self._open().look(watch)
            if changes is not None:
                yield response.FromString(changes)
            time.sleep((given_ms or _INTERVAL_MS) / 1000)

    def meter(self, requests: Iterator[MeterRequest]) -> Iterator[MeterResponse]:
        """Refuses: a call of Debit costs no more here."""
        raise NotImplementedError("LedgerService/Meter")

    def _open(self) -> "Engine":
        if self._engine is None:
            raise SidecarUnavailable("the client is closed", code="UNAVAILABLE")
        return self._engine

    def close(self) -> None:
        """Flushes and closes the store; a repeat does nothing."""
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()
