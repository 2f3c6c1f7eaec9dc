"""Calls without the SDK: what the daemon answers, or its error as code, reason, message, metadata.

Requests are messages or bytes; nothing is validated, repeated or translated on the way.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import grpc
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

from bursar._grpc import channel_options
from bursar.v1 import access_pb2, account_pb2, ledger_pb2, process_pb2

M = TypeVar("M", bound=Message)

_MODULES: Final[dict[str, Any]] = {
    "AccessService": access_pb2,
    "LedgerService": ledger_pb2,
    "AccountService": account_pb2,
    "ProcessService": process_pb2,
}


@dataclass(frozen=True)
class Failed(Exception):
    """How a call failed."""

    code: str
    reason: str
    message: str
    metadata: Mapping[str, str]


def answer_type(method: str) -> type[Message]:
    """The message that answers "LedgerService/Reserve"."""
    return _type(f"{method}Response")


def request_type(method: str) -> type[Message]:
    """The message that asks it."""
    return _type(f"{method}Request")


def _type(path: str) -> type[Message]:
    service, _, name = path.partition("/")
    found: type[Message] = getattr(_MODULES[service], name)
    return found


class Bare:
    """One channel; calls by name, as in `bare("LedgerService/Reserve", request)`."""

    def __init__(self, target: str, *, timeout_s: float = 10) -> None:
        options = (*channel_options(target), ("grpc.max_send_message_length", -1))
        # A channel of its own, or two clients of one target would share a connection.
        options += (("grpc.use_local_subchannel_pool", 1),)
        self.channel = grpc.insecure_channel(target, options=options)
        self._timeout_s = timeout_s
        self._methods: dict[str, Any] = {}

    def __call__(self, method: str, request: Message | bytes) -> Any:
        """The answer; raises `Failed`."""
        known = self._methods.get(method)
        if known is None:
            known = self._methods[method] = self.channel.unary_unary(
                f"/bursar.v1.{method}",
                request_serializer=None,
                response_deserializer=answer_type(method).FromString,
            )
        sent = request if isinstance(request, bytes) else request.SerializeToString()
        try:
            return known(sent, timeout=self._timeout_s)
        except grpc.RpcError as error:
            raise failed(error) from None

    def fails(self, method: str, request: Message | bytes) -> Failed:
        """The error that the call has to end with."""
        try:
            answer = self(method, request)
        except Failed as error:
            return error
        raise AssertionError(f"{method} was answered: {answer}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.channel.close()


def failed(error: Any) -> Failed:
    """What a gRPC error says."""
    info = ErrorInfo()
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            for detail in Status.FromString(value).details:
                detail.Unpack(info)
    code, message = error.code().name, error.details() or ""
    return Failed(code, info.reason, message, dict(info.metadata))


def amounts(**units: int) -> list[ledger_pb2.Amount]:
    """`amounts(tokens=1)` as messages."""
    return [ledger_pb2.Amount(unit=unit, value=value) for unit, value in units.items()]


def budget(account: str, limit: int, *, unit: str = "tokens") -> account_pb2.SetBudgetRequest:
    """A budget without a period."""
    period = account_pb2.Period(kind=account_pb2.Period.KIND_TOTAL)
    return account_pb2.SetBudgetRequest(
        budget=account_pb2.Budget(account=account, unit=unit, period=period, limit=limit)
    )
