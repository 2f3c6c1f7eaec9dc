"""Floods of frames that cost the sender nothing: each is ended or bounded, and others are served.

Resets, pings, settings and headers of any length are in `test_bad_bytes.py`.
"""

import socket
import struct
import threading
import time
from collections.abc import Iterator

import pytest
from support import wire
from support.daemon import LONG, Daemon

MIB = 2**20
SECONDS = 10.0 if LONG else 1.2
RESERVE = "/bursar.v1.LedgerService/Reserve"
PRIORITY, PUSH_PROMISE, CONTINUATION = 2, 5, 9
OPEN = wire.frame(wire.HEADERS, wire.END_HEADERS, 1, wire.headers(RESERVE))


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with Daemon() as running, running.client() as client:
        client.set_budget("acme", unit="tokens", limit=10**9)
        client.reserve("acme/a", tokens=1).release()
        yield running


def window_update(stream: int, by: int) -> bytes:
    return wire.frame(wire.WINDOW_UPDATE, 0, stream, struct.pack(">I", by))


def madeyoureset(count: int) -> bytes:
    """Calls that the daemon itself has to reset, by a window that overflows: each costs it work."""
    frames = []
    for stream in range(1, 2 * count, 2):
        frames.append(wire.frame(wire.HEADERS, wire.END_HEADERS, stream, wire.headers(RESERVE)))
        frames.append(window_update(stream, 2**31 - 1))
    return b"".join(frames)


def header_bomb() -> bytes:
    """One large header in the table, and then calls that name it again and again by one byte."""
    stored = b"\x40\x05x-big" + wire._text(b"v" * 3_900)
    frames = [
        wire.frame(wire.HEADERS, wire.END_HEADERS, 1, wire.headers(RESERVE, extra=stored)),
    ]
    again = wire.headers(RESERVE, extra=b"\xbe" * 12_000)
    frames += [
        wire.frame(wire.HEADERS, wire.END_HEADERS, stream, again) for stream in range(3, 203, 2)
    ]
    return b"".join(frames)


FLOODS: dict[str, tuple[bytes, bytes]] = {
    # What is said first, and what is repeated for as long as the daemon listens.
    "data without any": (OPEN, wire.frame(wire.DATA, 0, 1) * 2_000),
    "data that is padding": (OPEN, wire.frame(wire.DATA, 0x8, 1, b"\x01\x00") * 2_000),
    "headers that go on without any": (
        wire.frame(wire.HEADERS, 0, 1, wire.headers(RESERVE)),
        wire.frame(CONTINUATION, 0, 1) * 2_000,
    ),
    "headers that go on byte by byte": (
        wire.frame(wire.HEADERS, 0, 1, wire.headers(RESERVE)),
        b"".join(wire.frame(CONTINUATION, 0, 1, wire.header(b"a", b"")) for _ in range(2_000)),
    ),
    "windows that grow by one": (b"", window_update(0, 1) * 2_000),
    "windows of a call": (OPEN, window_update(1, 1) * 2_000),
    "priorities": (b"", wire.frame(PRIORITY, 0, 3, struct.pack(">IB", 0, 1)) * 2_000),
    "priorities of themselves": (OPEN, wire.frame(PRIORITY, 0, 1, struct.pack(">IB", 1, 1)) * 9),
    "settings of every kind": (
        b"",
        b"".join(
            wire.frame(wire.SETTINGS, 0, 0, struct.pack(">HI", name, value))
            for name, value in ((1, 0), (1, 4_096), (3, 0), (4, 0), (4, 65_535), (6, 1), (99, 7))
        )
        * 300,
    ),
    "pings": (b"", wire.frame(wire.PING, 0, 0, b"12345678") * 2_000),
    "answers to no ping": (b"", wire.frame(wire.PING, wire.ACK, 0, b"12345678") * 2_000),
    "answers to no settings": (b"", wire.frame(wire.SETTINGS, wire.ACK, 0) * 2_000),
    "frames of no kind": (b"", wire.frame(0xEE, 0xFF, 0, b"x" * 50) * 2_000),
    "promises": (OPEN, wire.frame(PUSH_PROMISE, wire.END_HEADERS, 1, struct.pack(">I", 2)) * 9),
    "resets of nothing": (b"", wire.frame(wire.RST_STREAM, 0, 1, struct.pack(">I", 8)) * 2_000),
    "farewells": (b"", wire.frame(wire.GOAWAY, 0, 0, struct.pack(">II", 0, 0)) * 2_000),
    "calls that the daemon has to reset": (b"", madeyoureset(500)),
    "a header that is large once and named often": (b"", header_bomb()),
}


class Flood(threading.Thread):
    """Somebody who sends, and reads nothing, until he is hung up on or told to stop."""

    def __init__(self, daemon: Daemon, first: bytes, again: bytes) -> None:
        super().__init__()
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(0.5)
        self._socket.connect(str(daemon.socket_path))
        self._first, self._again = first, again
        self._enough = threading.Event()
        self.sent = 0
        self.ended = False

    def run(self) -> None:
        try:
            self._socket.sendall(wire.start() + self._first)
            while not self._enough.is_set():
                self.sent += self._socket.send(self._again)
                # Pieces of frames are no frames: what was cut off goes first.
                rest = self._again[self.sent % len(self._again) :]
                if len(rest) != len(self._again):
                    self._socket.sendall(rest)
                    self.sent += len(rest)
        except TimeoutError:
            self._enough.wait()
        except OSError:
            self.ended = True

    def close(self) -> None:
        self._enough.set()
        self.join()
        self._socket.close()


@pytest.mark.parametrize("what", FLOODS)
def test_a_flood_takes_no_memory_and_holds_nobody_up(daemon: Daemon, what: str) -> None:
    before = daemon.rss_bytes()
    first, again = FLOODS[what]
    flood = [Flood(daemon, first, again) for _ in range(2)]
    for one in flood:
        one.start()
    try:
        waits: list[float] = []
        with daemon.client(timeout_s=20) as client:
            end = time.monotonic() + SECONDS
            while time.monotonic() < end or len(waits) < 10:
                begun = time.monotonic()
                with client.reserve("acme/a", tokens=1) as held:
                    held.commit(tokens=1)
                waits.append(time.monotonic() - begun)
                time.sleep(0.01)
        grown = daemon.rss_bytes() - before
    finally:
        for one in flood:
            one.close()
    waits.sort()
    median = waits[len(waits) // 2]
    sent = sum(one.sent for one in flood)
    ended = [one.ended for one in flood]
    print(f"{median * 1e3:.1f} ms, {sent / MIB:.1f} MiB sent, ended: {ended}, {grown // MIB} MiB")
    assert median < 0.5
    assert grown < 40 * MIB
