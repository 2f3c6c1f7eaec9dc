"""The gRPC transports, sync and async."""

import asyncio
import inspect
import os
import re
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator
from functools import partial
from typing import Any, Final, Protocol, cast

import grpc
import grpc.aio
from google.protobuf.message import Message

from bursar._convert import invalid
from bursar._errors import from_status
from bursar._tls import Tls, credentials
from bursar._transport import Retry
from bursar.exceptions import BursarError, SidecarTimeout, SidecarUnavailable
from bursar.v1.ledger_pb2 import MeterRequest, MeterResponse

DEFAULT_TARGET: Final = "unix:/run/bursar/bursar.sock"
TARGET_VARIABLE: Final = "BURSAR_TARGET"
TOKEN_VARIABLE: Final = "BURSAR_TOKEN"  # noqa: S105 -- its name
PACKAGE: Final = "bursar.v1"
_TARGET: Final = re.compile(r"unix:.+|unix-abstract:.+|(?:\[[0-9A-Fa-f:.]+\]|[\w.-]+):\d{1,5}")
_TOKEN: Final = re.compile(r"bursar_[0-9a-f]+_[0-9a-f]+")
METER: Final = "LedgerService/Meter"
_RECEIVE_BYTES_MAX: Final = 64 * 2**20  # a page of 10,000 entries is a few MiB

_OPTIONS: Final[tuple[tuple[str, Any], ...]] = (
    # A local peer answers or is gone; waiting seconds before dialling again only adds delay. Where
    # a service manager listens for one that starts, it is waited for: gRPC's 20 s stay.
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.max_receive_message_length", _RECEIVE_BYTES_MAX),
    # A sidecar that hangs while a stream is open is told of within 15 s.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    # The sidecar is on this host: a proxy for the outside world is not on the way.
    ("grpc.enable_http_proxy", 0),
)
# On Unix sockets the C core would send the percent-encoded path, which the server's HTTP/2 rejects.
_UNIX_OPTIONS: Final = (*_OPTIONS, ("grpc.default_authority", "localhost"))


def resolve_target(target: str | None) -> str:
    """Picks the target: the argument, else BURSAR_TARGET, else the default socket.

    Raises:
        InvalidRequest: It is neither a socket nor a host with a port. gRPC would take it for a name
            on port 443, and look for it out in the network.
    """
    chosen = target or os.environ.get(TARGET_VARIABLE) or DEFAULT_TARGET
    if chosen.startswith(("/", "./", "../")):
        return f"unix:{chosen}"
    if not _TARGET.fullmatch(chosen):
        raise invalid(
            f"{chosen!r} is no target; write unix:/run/bursar/bursar.sock, a socket's path or "
            "host:port",
            field="target",
        )
    return chosen


def lease_socket(target: str) -> str | None:
    """The lease socket beside a sidecar's own; None: the sidecar is elsewhere."""
    path = target.removeprefix("unix:").removeprefix("//") if target.startswith("unix:") else ""
    return f"{path}.lease" if path else None


def channel_options(target: str) -> tuple[tuple[str, Any], ...]:
    """The channel options that reach a sidecar at the target; for those who use bare stubs too."""
    return _UNIX_OPTIONS if target.startswith(("unix:", "unix-abstract:")) else _OPTIONS


def dialler(target: str, secure: Any) -> partial[Any]:  # noqa: ANN401 -- gRPC's
    """What opens a channel to the target with credentials; with None in the clear."""
    options = channel_options(target)
    if secure is None:
        return partial(grpc.insecure_channel, target, options=options)
    return partial(grpc.secure_channel, target, secure, options=options)


def _metadata(token: str | None) -> tuple[tuple[str, str], ...]:
    """What a token, or the one in BURSAR_TOKEN, adds to every call; raises InvalidRequest."""
    shown = os.environ.get(TOKEN_VARIABLE, "") if token is None else token
    if not shown:
        return ()
    if not _TOKEN.fullmatch(shown):
        raise invalid("the token is none: it looks like bursar_…", field="token")
    return (("authorization", f"Bearer {shown}"),)


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()


def _closed() -> SidecarUnavailable:
    return SidecarUnavailable("the client is closed", code="UNAVAILABLE")


def _late(target: str, timeout_s: float) -> SidecarTimeout:
    message = f"the sidecar at {target} has not taken the stream within {timeout_s:g} s"
    return SidecarTimeout(message, code="DEADLINE_EXCEEDED")


class _RpcFailure(Protocol):
    """What both kinds of gRPC errors can tell; the sync one is typed as a bare exception."""

    def code(self) -> grpc.StatusCode: ...
    def details(self) -> str | None: ...
    def trailing_metadata(self) -> Iterable[tuple[str, str | bytes]] | None: ...


def _translate(error: _RpcFailure, target: str) -> BursarError:
    """Turns what gRPC raised into what Bursar raises."""
    code = error.code()
    details = error.details() or ""
    translated = from_status(code.name, details, error.trailing_metadata())
    if isinstance(translated, SidecarUnavailable) and not translated.reason:
        return SidecarUnavailable(unanswered(target, details), code=code.name)
    return translated


def unanswered(target: str, details: str) -> str:
    """Why no sidecar answers: what the system said, out of all that gRPC says around it."""
    cause = details.rpartition(": ")[2] if "last error: " in details else details
    if cause == "Permission denied":
        return (
            f"user {os.getuid()} may not connect to {target}: join the group of the socket, "
            "and log in anew"
        )
    return f"no sidecar answers at {target}: {cause}"


class GrpcTransport:
    """Calls a sidecar over gRPC."""

    def __init__(
        self,
        target: str,
        *,
        timeout_s: float,
        retry: Retry,
        token: str | None = None,
        tls: Tls | None = None,
    ) -> None:
        self._target = target
        self._metadata = _metadata(token)
        secure = credentials(target, tls, shows_token=bool(self._metadata))
        self.lease_socket = lease_socket(target)
        self._timeout_s = timeout_s
        self._retry = retry
        dial = dialler(target, secure)
        self._channel = self._streams = dial()
        # What traces gRPC may hand back streams that can be neither cancelled nor waited for.
        plain: Any = inspect.unwrap(dial.func)
        if plain is not dial.func:
            self._streams = plain(*dial.args, **dial.keywords)
        self._methods: dict[str, Callable[..., Any]] = {}
        self._closed = False

    def _method(self, make: str, method: str, response: type[Message]) -> Callable[..., Any]:
        if self._closed:
            raise _closed()
        known = self._methods.get(method)
        if known is None:
            channel = self._channel if make == "unary_unary" else self._streams
            known = getattr(channel, make)(
                f"/{PACKAGE}.{method}",
                request_serializer=_serialize,
                response_deserializer=response.FromString,
            )
            self._methods[method] = known
        return known

    def call(self, method: str, request: Message, response: type[Message]) -> Message:
        """Sends a request; repeats it while no sidecar answers, until the deadline."""
        send = self._method("unary_unary", method, response)
        deadline = time.monotonic() + self._timeout_s
        attempt = 0
        while True:
            attempt += 1
            try:
                answer: Message = send(
                    request,
                    timeout=max(0.0, deadline - time.monotonic()),
                    metadata=self._metadata,
                )
            except grpc.RpcError as raised:
                error = _translate(cast("_RpcFailure", raised), self._target)
                pause = self._retry.pause_s(attempt, error, deadline - time.monotonic())
                if pause is None:
                    raise error from None
                time.sleep(pause)
            else:
                return answer

    def stream(self, method: str, request: Message, response: type[Message]) -> Iterator[Message]:
        """Sends a request and yields answers; leaving the loop hangs up."""
        answers = self._method("unary_stream", method, response)(request, metadata=self._metadata)
        try:
            self._open(answers)
            yield from answers
        except grpc.RpcError as raised:
            raise _translate(cast("_RpcFailure", raised), self._target) from None
        finally:
            answers.cancel()

    def meter(self, requests: Iterator[MeterRequest]) -> Iterator[MeterResponse]:
        """Opens a Meter stream; leaving the loop hangs up."""
        responses = self._method("stream_stream", METER, MeterResponse)(
            requests, metadata=self._metadata
        )
        try:
            self._open(responses)
            yield from responses
        except grpc.RpcError as raised:
            raise _translate(cast("_RpcFailure", raised), self._target) from None
        finally:
            responses.cancel()

    def _open(self, answers: Any) -> None:  # noqa: ANN401 -- a stream, which gRPC does not type
        """Waits until the sidecar has taken a stream; raises SidecarTimeout."""
        is_late = threading.Event()

        def hang_up() -> None:
            is_late.set()
            answers.cancel()

        timer = threading.Timer(self._timeout_s, hang_up)
        timer.daemon = True
        timer.start()
        answers.initial_metadata()
        timer.cancel()
        if is_late.is_set():
            raise _late(self._target, self._timeout_s)

    def close(self) -> None:
        """Closes the channel; a repeat does nothing."""
        self._closed = True
        self._channel.close()
        self._streams.close()


class AsyncGrpcTransport:
    """Calls a sidecar over gRPC from an event loop."""

    def __init__(
        self,
        target: str,
        *,
        timeout_s: float,
        retry: Retry,
        token: str | None = None,
        tls: Tls | None = None,
    ) -> None:
        self._target = target
        self._metadata = _metadata(token)
        self._credentials = credentials(target, tls, shows_token=bool(self._metadata))
        self.lease_socket = lease_socket(target)
        self._timeout_s = timeout_s
        self._retry = retry
        self._channel: grpc.aio.Channel | None = None
        self._methods: dict[str, Callable[..., Any]] = {}
        self._closed = False

    def _method(self, make: str, method: str, response: type[Message]) -> Callable[..., Any]:
        if self._closed:
            raise _closed()
        if self._channel is None:  # made late: a channel belongs to the loop that runs its calls
            options = channel_options(self._target)
            self._channel = (
                grpc.aio.secure_channel(self._target, self._credentials, options=options)
                if self._credentials is not None
                else grpc.aio.insecure_channel(self._target, options=options)
            )
        known = self._methods.get(method)
        if known is None:
            known = getattr(self._channel, make)(
                f"/{PACKAGE}.{method}",
                request_serializer=_serialize,
                response_deserializer=response.FromString,
            )
            self._methods[method] = known
        return known

    async def call(self, method: str, request: Message, response: type[Message]) -> Message:
        """Sends a request; repeats it while no sidecar answers, until the deadline."""
        send = self._method("unary_unary", method, response)
        deadline = time.monotonic() + self._timeout_s
        attempt = 0
        while True:
            attempt += 1
            try:
                left_s = max(0.0, deadline - time.monotonic())
                answer: Message = await send(request, timeout=left_s, metadata=self._metadata)
            except grpc.aio.AioRpcError as raised:
                error = _translate(cast("_RpcFailure", raised), self._target)
                pause = self._retry.pause_s(attempt, error, deadline - time.monotonic())
                if pause is None:
                    raise error from None
                await asyncio.sleep(pause)
            else:
                return answer

    async def stream(
        self, method: str, request: Message, response: type[Message]
    ) -> AsyncGenerator[Message, None]:
        """Sends a request and yields answers; leaving the loop hangs up."""
        answers = self._method("unary_stream", method, response)(request, metadata=self._metadata)
        try:
            await self._open(answers)
            async for answer in answers:
                yield answer
        except grpc.aio.AioRpcError as raised:
            raise _translate(cast("_RpcFailure", raised), self._target) from None
        finally:
            answers.cancel()

    async def meter(
        self, requests: AsyncIterator[MeterRequest]
    ) -> AsyncGenerator[MeterResponse, None]:
        """Opens a Meter stream; leaving the loop hangs up."""
        responses = self._method("stream_stream", METER, MeterResponse)(
            requests, metadata=self._metadata
        )
        try:
            await self._open(responses)
            async for response in responses:
                yield response
        except grpc.aio.AioRpcError as raised:
            raise _translate(cast("_RpcFailure", raised), self._target) from None
        finally:
            responses.cancel()

    async def _open(self, answers: Any) -> None:  # noqa: ANN401 -- as `GrpcTransport._open`
        try:
            await asyncio.wait_for(answers.initial_metadata(), self._timeout_s)
        except TimeoutError:
            raise _late(self._target, self._timeout_s) from None

    async def close(self) -> None:
        """Closes the channel; a repeat does nothing."""
        self._closed = True
        if self._channel is not None:
            await self._channel.close()
            self._channel = None
