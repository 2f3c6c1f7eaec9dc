"""What carries a call: one protocol, its deadlines and its retries.

The gRPC transport is in `_grpc`, the embedded one in `_embedded`. Both raise `BursarError`s only.
"""

import random
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Protocol

from google.protobuf.message import Message

from bursar.exceptions import BursarError, SidecarUnavailable
from bursar.v1.ledger_pb2 import MeterRequest, MeterResponse


@dataclass(frozen=True, slots=True)
class Retry:
    """How often and how patiently a call is repeated while no sidecar answers.

    Every call is idempotent, so repeating it is safe. Other errors are not repeated: the sidecar
    answered.

    Attributes:
        attempts: How often a call is sent at most; at least 1.
        first_s: The first pause in seconds; each one after it is four times as long.
        max_s: The longest pause in seconds.
    """

    attempts: int = 6
    first_s: float = 0.02
    max_s: float = 1.0

    def pause_s(self, attempt: int, error: BursarError, left_s: float) -> float | None:
        """Says how long to wait before the next attempt; None: give up.

        Args:
            attempt: How many attempts were made.
            error: What the last one ended with.
            left_s: Seconds until the call's deadline.
        """
        if attempt >= self.attempts or not isinstance(error, SidecarUnavailable):
            return None
        pause = self.spread_s(attempt)
        return pause if pause < left_s else None

    def spread_s(self, attempt: int) -> float:
        """The pause after so many attempts."""
        pause = min(self.max_s, self.first_s * 4.0 ** min(attempt - 1, 9))
        # Half fixed, half random: a thousand agents that lost one sidecar must not return as one.
        return pause * (0.5 + random.random() / 2)  # noqa: S311 -- spreads load, keeps no secret


class Transport(Protocol):
    """Carries calls."""

    @property
    def lease_socket(self) -> str | None:
        """Where leases on shared memory are to be had; None: nowhere."""

    def call(self, method: str, request: Message, response: type[Message]) -> Message:
        """Sends a request and returns the answer, parsed as `response`."""

    def stream(self, method: str, request: Message, response: type[Message]) -> Iterator[Message]:
        """Sends a request and yields the answers until the caller stops."""

    def meter(self, requests: Iterator[MeterRequest]) -> Iterator[MeterResponse]:
        """Opens a Meter stream; closing the iterator hangs up. Never repeated by itself.

        Requests are taken from another thread, ahead of their responses.
        """

    def close(self) -> None:
        """Frees what it holds; a repeat does nothing."""


class AsyncTransport(Protocol):
    """Carries calls without blocking the event loop."""

    @property
    def lease_socket(self) -> str | None:
        """Where leases on shared memory are to be had; None: nowhere."""

    async def call(self, method: str, request: Message, response: type[Message]) -> Message:
        """Sends a request and returns the answer, parsed as `response`."""

    def stream(
        self, method: str, request: Message, response: type[Message]
    ) -> AsyncGenerator[Message, None]:
        """Sends a request and yields the answers until the caller stops."""

    def meter(self, requests: AsyncIterator[MeterRequest]) -> AsyncGenerator[MeterResponse, None]:
        """Opens a Meter stream; closing the generator hangs up. Never repeated by itself."""

    async def close(self) -> None:
        """Frees what it holds; a repeat does nothing."""
