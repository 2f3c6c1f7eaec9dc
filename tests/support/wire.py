"""HTTP/2 and gRPC as raw bytes on a Unix socket.

For what no gRPC library sends (half a frame, garbage), and for sending thousands of calls at once:
a library needs 100 microseconds for a call, this needs 10. It reads what the answers hold, not
their headers: a call that failed has no message.
"""

import selectors
import socket
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Final, Self

from google.protobuf.message import Message

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, ACK, END_HEADERS = 0x1, 0x1, 0x4
_WINDOW: Final = 2**30
_DEFAULT_WINDOW: Final = 65_535

Call = tuple[str, bytes]
"""A method, as in "LedgerService/Reserve", and a serialized request."""


def call(method: str, request: Message) -> Call:
    """A call, ready to be sent."""
    return method, request.SerializeToString()


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One HTTP/2 frame."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def _text(value: bytes) -> bytes:
    """An HPACK string without Huffman coding."""
    assert len(value) < 2**14
    if len(value) < 127:
        return bytes([len(value)]) + value
    rest = len(value) - 127
    return bytes([127, rest & 127 | 128, rest >> 7]) + value


def header(name: bytes, value: bytes) -> bytes:
    """One header field, outside of the compression's table."""
    return b"\x00" + _text(name) + _text(value)


def headers(path: str, *, extra: bytes = b"") -> bytes:
    """The header block of a gRPC call."""
    return (
        b"\x83\x86"  # :method POST, :scheme http
         b"\x04" + _text(path.encode())
        + b"\x01" + _text(b"localhost")  # :authority
        + b"\x0f\x10" + _text(b"application/grpc")  # content-type
        + header(b"te", b"trailers")
        + extra
    )  # fmt: skip


def start() -> bytes:
    """What a client says first: it takes as much as the server can send."""
    settings = struct.pack(">HI", 4, 2**31 - 1)  # SETTINGS_INITIAL_WINDOW_SIZE
    window = frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", _WINDOW))
    return PREFACE + frame(SETTINGS, 0, 0, settings) + window


class Connection:
    """One connection: calls go in by `send`, answers come out of `receive`, none blocks."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.connect(str(path))
        self.socket.setblocking(False)
        self.open_calls = 0
        self._out = bytearray(start())
        self._window = _DEFAULT_WINDOW
        self._waiting: list[tuple[int, bytes]] = []
        self._in = bytearray()
        self._next = 1
        self._messages: dict[int, bytes] = {}
        self._consumed = 0
        self._blocks: dict[str, bytes] = {}

    def send(self, one: Call) -> int:
        """Starts a call; returns its stream."""
        method, message = one
        block = self._blocks.get(method)
        if block is None:
            block = self._blocks[method] = headers(f"/bursar.v1.{method}")
        stream, self._next = self._next, self._next + 2
        body = b"\x00" + struct.pack(">I", len(message)) + message
        self.open_calls += 1
        frames = frame(HEADERS, END_HEADERS, stream, block) + frame(DATA, END_STREAM, stream, body)
        self._waiting.append((len(body), frames))
        return stream

    def flush(self) -> None:
        """Sends what the peer and the kernel take."""
        sent = 0
        for length, frames in self._waiting:
            if length > self._window:
                break
            self._window -= length
            self._out += frames
            sent += 1
        del self._waiting[:sent]
        if self._out:
            try:
                del self._out[: self.socket.send(self._out)]
            except BlockingIOError:
                return

    def receive(self) -> list[tuple[int, bytes | None]]:
        """The calls that have ended since: stream, and the message or None."""
        try:
            got = self.socket.recv(1 << 18)
        except BlockingIOError:
            return []
        if not got:
            raise ConnectionResetError
        self._in += got
        ended: list[tuple[int, bytes | None]] = []
        at, buffer = 0, self._in
        while len(buffer) - at >= 9:
            length = buffer[at] << 16 | buffer[at + 1] << 8 | buffer[at + 2]
            if len(buffer) - at - 9 < length:
                break
            kind, flags = buffer[at + 3], buffer[at + 4]
            stream = int.from_bytes(buffer[at + 5 : at + 9], "big")
            self._frame(kind, flags, stream, bytes(buffer[at + 9 : at + 9 + length]), ended)
            at += 9 + length
        del buffer[:at]
        return ended

    def _frame(
        self, kind: int, flags: int, stream: int, payload: bytes,
        ended: list[tuple[int, bytes | None]],
    ) -> None:  # fmt: skip
        if kind == DATA:
            self._messages[stream] = self._messages.get(stream, b"") + payload
            self._consumed += len(payload)
            if self._consumed > _WINDOW // 2:
                update = struct.pack(">I", self._consumed)
                self._out += frame(WINDOW_UPDATE, 0, 0, update)
                self._consumed = 0
        elif kind == SETTINGS and not flags & ACK:
            self._out += frame(SETTINGS, ACK, 0)
        elif kind == PING and not flags & ACK:
            self._out += frame(PING, ACK, 0, payload)
        elif kind == WINDOW_UPDATE and stream == 0:
            self._window += int.from_bytes(payload, "big")
        elif kind == GOAWAY:
            raise ConnectionResetError
        if (kind in (DATA, HEADERS) and flags & END_STREAM) or kind == RST_STREAM:
            message = self._messages.pop(stream, None)
            ended.append((stream, message[5:] if message is not None else None))
            self.open_calls -= 1

    def close(self) -> None:
        """Hangs up."""
        self.socket.close()


class Wire:
    """Many connections to one daemon, driven by one thread."""

    def __init__(self, path: Path, *, connections: int) -> None:
        self.connections = [Connection(path) for _ in range(connections)]
        self._selector = selectors.DefaultSelector()
        for number, connection in enumerate(self.connections):
            connection.flush()
            self._selector.register(connection.socket, selectors.EVENT_READ, number)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._selector.close()
        for connection in self.connections:
            connection.close()

    def all_at_once(
        self, calls: Sequence[Call], *, held: AbstractContextManager[object] | None = None
    ) -> list[bytes | None]:
        """Sends the calls, spread over the connections, and waits for all answers, in order.

        None of them waits for another one's answer. `held`: what surrounds the sending, to keep the
        daemon from answering before it has everything.
        """
        for connection in self.connections:
            connection.receive()  # the daemon's settings, if it has come to send them
            connection.flush()
        places: dict[tuple[int, int], int] = {}
        for index, one in enumerate(calls):
            number = index % len(self.connections)
            places[number, self.connections[number].send(one)] = index
        with held or nullcontext():
            for connection in self.connections:
                connection.flush()
        answers: list[bytes | None] = [None] * len(calls)
        while places:
            for number, stream, message in self._events():
                answers[places.pop((number, stream))] = message
        return answers

    def keep_busy(
        self,
        feed: Callable[[str, bytes, bytes | None], Iterable[Call]],
        first: Iterator[Call],
        *,
        in_flight: int,
    ) -> int:
        """Keeps so many calls under way until `first` is exhausted; returns how many were made.

        Args:
            feed: Takes a call and its answer, and returns the calls that follow from it.
            first: The calls that follow from nothing.
            in_flight: How many calls are under way, over all connections.
        """
        pending: dict[tuple[int, int], Call] = {}
        count = 0
        share = max(1, in_flight // len(self.connections))

        def fill(number: int) -> None:
            connection = self.connections[number]
            while connection.open_calls < share:
                one = next(first, None)
                if one is None:
                    break
                pending[number, connection.send(one)] = one
            connection.flush()

        for number in range(len(self.connections)):
            fill(number)
        while pending:
            touched = set()
            for number, stream, message in self._events():
                count += 1
                touched.add(number)
                for one in feed(*pending.pop((number, stream)), message):
                    pending[number, self.connections[number].send(one)] = one
            for number in touched:
                fill(number)
        return count

    def _events(self) -> Iterator[tuple[int, int, bytes | None]]:
        ready = self._selector.select(30)
        if not ready:
            raise TimeoutError("no answer for 30 s")
        for key, _ in ready:
            connection = self.connections[key.data]
            for stream, message in connection.receive():
                yield key.data, stream, message
            connection.flush()


def chopped(bytes_: bytes, cuts: Iterable[int]) -> Iterator[bytes]:
    """The bytes in pieces."""
    for begin, end in pairwise((0, *sorted(cuts), len(bytes_))):
        yield bytes_[begin:end]
