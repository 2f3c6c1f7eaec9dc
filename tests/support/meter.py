"""A Meter stream as a test drives it: one request at a time, and news told from answers."""

import queue
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Final, Self

import grpc

from bursar._grpc import channel_options
from bursar.v1 import ledger_pb2 as lg
from support.bare import Failed, amounts, failed

PATIENCE_S: Final = 20


def debit(reservation: str, **used: int) -> lg.MeterDebit:
    """`debit(id, tokens=5)` as a message."""
    return lg.MeterDebit(reservation=reservation, used=amounts(**used))


class Meter:
    """One stream on a connection of its own."""

    def __init__(self, target: str, *, token: str = "") -> None:
        options = (*channel_options(target), ("grpc.use_local_subchannel_pool", 1))
        self.channel = grpc.insecure_channel(target, options=options)
        shown = (("authorization", f"Bearer {token}"),) if token else ()
        self._requests: queue.SimpleQueue[lg.MeterRequest | None] = queue.SimpleQueue()
        self._call: Any = self.channel.stream_stream(
            "/bursar.v1.LedgerService/Meter",
            request_serializer=lg.MeterRequest.SerializeToString,
            response_deserializer=lg.MeterResponse.FromString,
        )(self._sent(), timeout=PATIENCE_S, metadata=shown)
        self.news: list[lg.MeterAnswer] = []
        """What came unasked before an answer."""

    def _sent(self) -> Iterator[lg.MeterRequest]:
        while (one := self._requests.get()) is not None:
            yield one

    def send(self, *debits: lg.MeterDebit) -> None:
        """Sends one request and does not wait."""
        self._requests.put(lg.MeterRequest(debits=debits))

    def receive(self) -> lg.MeterResponse:
        """The next response; raises `Failed` where the stream failed, StopIteration at its end."""
        try:
            response: lg.MeterResponse = next(self._call)
        except grpc.RpcError as error:
            raise failed(error) from None
        return response

    def answers(self) -> list[lg.MeterAnswer]:
        """The next response to a request; keeps what comes unasked before."""
        while (response := self.receive()).unasked:
            self.news += response.answers
        return list(response.answers)

    def __call__(self, *debits: lg.MeterDebit) -> list[lg.MeterAnswer]:
        """Sends one request and waits for its answers."""
        self.send(*debits)
        return self.answers()

    def told(self, count: int = 1) -> list[lg.MeterAnswer]:
        """So many answers that nobody asked for."""
        while len(self.news) < count:
            response = self.receive()
            assert response.unasked
            self.news += response.answers
        told, self.news = self.news[:count], self.news[count:]
        return told

    def fails(self) -> Failed:
        """How the stream fails, answers and news before it aside."""
        try:
            while True:
                self.receive()
        except Failed as error:
            return error

    def end(self) -> None:
        """Says that no request follows, and waits until the server has ended as well."""
        self._requests.put(None)
        for response in self._call:
            self.news += response.answers if response.unasked else []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._requests.put(None)
        self._call.cancel()
        self.channel.close()
