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
    from bursar._core import Engine, Server

_WATCH: Final = "AccountService/WatchAccounts"
_WATCH_PROCESSES: Final = "ProcessService/WatchProcesses"
_LIST: Final = "AccountService/ListAccounts"
_PAGE_SIZE: Final = 1000
_INTERVAL_MS: Final = 250


def open_engine(config_json: str) -> "Engine":
    """Opens the engine; raises what is wrong with the store or the configuration."""
    from bursar import _core

    try:
        return _core.Engine(config_json)
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
        if self._engine is None:
            raise SidecarUnavailable("the client is closed", code="UNAVAILABLE")
        return call_core(self._engine, method, request, response)

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
        watch = cast("account_pb2.WatchAccountsRequest", request)
        given_ms = watch.min_interval.ToMilliseconds() if watch.HasField("min_interval") else 0
        seen: dict[str, bytes] = {}
        first = True
        while True:
            current = {one.path: one for one in self._accounts(watch.account)}
            bytes_now = {path: one.SerializeToString() for path, one in current.items()}
            changed = [current[path] for path in current if seen.get(path) != bytes_now[path]]
            retired = [path for path in seen if path not in bytes_now]
            if first or changed or retired:
                yield response(accounts=changed, retired=retired)
            first, seen = False, bytes_now
            time.sleep((given_ms or _INTERVAL_MS) / 1000)

    def meter(self, requests: Iterator[MeterRequest]) -> Iterator[MeterResponse]:
        """Refuses: a call of Debit costs no more here."""
        raise NotImplementedError("LedgerService/Meter")

    def _accounts(self, account: str) -> Iterator[account_pb2.Account]:
        token = ""
        while True:
            request = account_pb2.ListAccountsRequest(
                account=account, page_size=_PAGE_SIZE, page_token=token
            )
            answer = self.call(_LIST, request, account_pb2.ListAccountsResponse)
            page = cast("account_pb2.ListAccountsResponse", answer)
            yield from page.accounts
            token = page.next_page_token
            if not token:
                return

    def close(self) -> None:
        """Flushes and closes the store; a repeat does nothing."""
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()
