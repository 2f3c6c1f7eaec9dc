"""What no gRPC library sends: garbage, fragments, silence, floods. The daemon serves on.

Each test leaves its connections open while another client works, and checks that the ledger and
the daemon's number of open files are what they were.
"""

import random
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from support import wire
from support.bare import Bare, amounts
from support.daemon import LONG, Daemon, new_seed, picture

import bursar
from bursar.v1 import ledger_pb2 as lg

CONNECTIONS = 1_000
HEADERS, DATA, SETTINGS = wire.HEADERS, wire.DATA, wire.SETTINGS
RESERVE = "/bursar.v1.LedgerService/Reserve"


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with Daemon() as running, running.client() as client:
        client.set_budget("acme", unit="tokens", limit=100)
        client.reserve("acme/a", tokens=1).release()
        yield running


@pytest.fixture
def works(daemon: Daemon) -> Iterator[bursar.Client]:
    """Before and after the test the ledger is the same, and the daemon answers new clients."""
    with daemon.client(timeout_s=20) as client:
        before = picture(client)
        yield client
        assert picture(client) == before
    with daemon.client(timeout_s=20) as newcomer:
        with newcomer.reserve("acme/a", tokens=100) as reservation:
            assert reservation.granted == {"tokens": 100}
        assert picture(newcomer) == before
    deadline = time.monotonic() + 20
    while open_files(daemon) > 40:
        assert time.monotonic() < deadline, f"{open_files(daemon)} files are still open"
        time.sleep(0.05)


def open_files(daemon: Daemon) -> int:
    return len(list(Path(f"/proc/{daemon.pid}/fd").iterdir()))


def dial(daemon: Daemon) -> socket.socket:
    one = socket.socket(socket.AF_UNIX)
    one.settimeout(10)
    one.connect(str(daemon.socket_path))
    return one


def ended(one: socket.socket) -> bool:
    """Whether the daemon hangs up, whatever it says before."""
    try:
        while one.recv(65_536):
            pass
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False
    return True


def reserve_bytes(tokens: int = 1) -> bytes:
    message = lg.ReserveRequest(account="acme/a", amounts=amounts(tokens=tokens))
    body = message.SerializeToString()
    return b"\0" + struct.pack(">I", len(body)) + body


def test_garbage_is_hung_up_on(daemon: Daemon, works: bursar.Client) -> None:
    seed = new_seed()
    print(f"seed {seed}")
    dice = random.Random(seed)
    for _ in range(200 if LONG else 30):
        with dial(daemon) as one:
            one.sendall(dice.randbytes(dice.randrange(24, 5_000)))
            assert ended(one)
    for text in (
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\x16\x03\x01\x02\x00" + b"\0" * 99,
    ):
        with dial(daemon) as one:
            one.sendall(text)
            assert ended(one)
    with dial(daemon) as one:
        one.sendall(wire.start() + dice.randbytes(5_000))
        assert ended(one)


@pytest.mark.parametrize(
    "fragment",
    [
        b"",
        b"PRI * HTT",
        wire.PREFACE,
        wire.PREFACE + b"\0\0",
        wire.start(),
        wire.start() + wire.frame(HEADERS, wire.END_HEADERS, 1, wire.headers(RESERVE))[:20],
        wire.start() + wire.frame(HEADERS, wire.END_HEADERS, 1, wire.headers(RESERVE)),
        wire.start()
        + wire.frame(HEADERS, wire.END_HEADERS, 1, wire.headers(RESERVE))
        + wire.frame(DATA, 0, 1, reserve_bytes()[:8]),
        wire.start() + wire.frame(HEADERS, 0, 1, wire.headers(RESERVE)),
    ],
    ids=[
        "nothing",
        "preface",
        "preface-only",
        "frame",
        "start",
        "header",
        "no-data",
        "half",
        "cont",
    ],
)
def test_a_peer_that_falls_silent_half_way_keeps_nobody_waiting(
    daemon: Daemon, works: bursar.Client, fragment: bytes
) -> None:
    with ExitStack() as stack:
        for _ in range(20):
            one = stack.enter_context(dial(daemon))
            if fragment:
                one.sendall(fragment)
        begun = time.monotonic()
        for _ in range(20):
            works.check("acme/a", tokens=1)
        assert time.monotonic() - begun < 5


def test_a_call_cut_off_before_its_end_reserves_nothing(
    daemon: Daemon, works: bursar.Client
) -> None:
    """The message is complete, its stream is not: half-closed never, or reset."""
    headers = wire.frame(HEADERS, wire.END_HEADERS, 1, wire.headers(RESERVE))
    body = reserve_bytes(100)
    for cut in range(len(body)):
        with dial(daemon) as one:
            one.sendall(wire.start() + headers + wire.frame(DATA, 0, 1, body[:cut]))
    with dial(daemon) as one:
        one.sendall(wire.start() + headers + wire.frame(DATA, 0, 1, body[:-1]))
        one.sendall(wire.frame(wire.RST_STREAM, 0, 1, struct.pack(">I", 8)))
        works.list_accounts()


def test_bytes_that_come_one_by_one_are_a_call_like_any_other(
    daemon: Daemon, works: bursar.Client
) -> None:
    """Slow is not wrong."""
    check = lg.CheckRequest(account="acme/a", amounts=amounts(tokens=1)).SerializeToString()
    body = b"\0" + struct.pack(">I", len(check)) + check
    path = "/bursar.v1.LedgerService/Check"
    all_bytes = (
        wire.start()
        + wire.frame(HEADERS, wire.END_HEADERS, 1, wire.headers(path))
        + wire.frame(DATA, wire.END_STREAM, 1, body)
    )
    with dial(daemon) as one:
        for piece in wire.chopped(all_bytes, range(1, len(all_bytes))):
            one.sendall(piece)
        got = b""
        while b"acme" not in got:
            more = one.recv(65_536)
            assert more, "hung up on"
            got += more


@pytest.mark.timeout(120)
def test_a_thousand_connections_opened_and_abandoned_leave_nothing_behind(
    daemon: Daemon, works: bursar.Client
) -> None:
    before = open_files(daemon)
    with ExitStack() as stack:
        for number in range(CONNECTIONS):
            one = stack.enter_context(dial(daemon))
            one.sendall((b"", wire.PREFACE[:9], wire.start())[number % 3])
        works.check("acme/a", tokens=1)
        with daemon.client() as newcomer:
            newcomer.check("acme/a", tokens=1)
        deadline = time.monotonic() + 20
        while open_files(daemon) < CONNECTIONS:
            assert time.monotonic() < deadline, f"only {open_files(daemon)} were taken"
            time.sleep(0.05)
    for _ in range(CONNECTIONS):
        dial(daemon).close()
    deadline = time.monotonic() + 30
    while open_files(daemon) > before + 5:
        assert time.monotonic() < deadline, f"{open_files(daemon)} files are still open"
        time.sleep(0.05)


@pytest.mark.parametrize("size", [20_000, 60_000, 10_000_000])
def test_headers_of_any_size_are_refused_without_being_kept(
    daemon: Daemon, works: bursar.Client, size: int
) -> None:
    memory = daemon.rss_bytes()
    extra = b"".join(wire.header(b"x-%d" % n, b"v" * 4_000) for n in range(size // 4_000))
    block = wire.headers(RESERVE, extra=extra)
    pieces = [block[at : at + 16_000] for at in range(0, len(block), 16_000)]
    with dial(daemon) as one:
        try:
            one.sendall(wire.start() + wire.frame(HEADERS, wire.END_STREAM, 1, pieces[0]))
            for piece in pieces[1:]:
                one.sendall(wire.frame(9, 0, 1, piece))  # CONTINUATION
            one.sendall(wire.frame(9, wire.END_HEADERS, 1))
        except (BrokenPipeError, ConnectionResetError):
            pass  # it did not even read them all
        works.check("acme/a", tokens=1)
    assert daemon.rss_bytes() - memory < 30 * 2**20


@pytest.mark.parametrize(
    "frames",
    [
        wire.frame(DATA, 0, 1, b"x" * 20_000),  # longer than SETTINGS_MAX_FRAME_SIZE
        wire.frame(DATA, 0, 7, b"on a stream that was never opened"),
        wire.frame(HEADERS, wire.END_HEADERS, 2, wire.headers(RESERVE)),  # an even stream
        wire.frame(HEADERS, wire.END_HEADERS, 1, b"\xff\xff\xff\xff\xff\xff"),  # no HPACK
        wire.frame(wire.WINDOW_UPDATE, 0, 0, struct.pack(">I", 2**31 - 1)) * 3,  # overflows
        wire.frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 2**31)),  # a window too large
        wire.frame(SETTINGS, 0, 0, b"odd"),
        wire.frame(wire.PING, 0, 0, b"short"),
        wire.frame(9, 0, 1, b"a continuation of nothing"),
    ],
    ids=["long", "stream", "even", "hpack", "window", "settings", "odd", "ping", "continuation"],
)
def test_frames_against_the_protocol_end_the_connection(
    daemon: Daemon, works: bursar.Client, frames: bytes
) -> None:
    with dial(daemon) as one:
        one.sendall(wire.start() + frames)
        assert ended(one)


def test_a_flood_of_streams_that_are_reset_at_once_is_ended(
    daemon: Daemon, works: bursar.Client
) -> None:
    """ "Rapid reset": calls that are cancelled as they are made cost the caller, not the daemon."""
    block = wire.headers(RESERVE)
    cpu = daemon.cpu_s()
    with dial(daemon) as one:
        one.sendall(wire.start())
        try:
            for stream in range(1, 100_001, 2):
                one.sendall(
                    wire.frame(HEADERS, wire.END_HEADERS, stream, block)
                    + wire.frame(wire.RST_STREAM, 0, stream, struct.pack(">I", 8))
                )
        except (BrokenPipeError, ConnectionResetError, TimeoutError):
            pass
        works.check("acme/a", tokens=1)
        assert ended(one)
    assert daemon.cpu_s() - cpu < 10


def test_floods_of_settings_and_pings_do_not_fill_the_memory(
    daemon: Daemon, works: bursar.Client
) -> None:
    memory = daemon.rss_bytes()
    flood = (wire.frame(wire.PING, 0, 0, b"12345678") + wire.frame(SETTINGS, 0, 0)) * 20_000
    with dial(daemon) as one:
        one.settimeout(2)
        with suppress(TimeoutError, BrokenPipeError, ConnectionResetError):
            one.sendall(wire.start() + flood)  # and never reads an answer
        works.check("acme/a", tokens=1)
        assert daemon.rss_bytes() - memory < 50 * 2**20


def test_messages_that_lie_about_their_length_are_refused(
    daemon: Daemon, works: bursar.Client
) -> None:
    for body in (
        b"\0" + struct.pack(">I", 2**32 - 1) + b"x",
        b"\0" + struct.pack(">I", 100) + b"short",
        b"\x01" + struct.pack(">I", 5) + b"small",  # compressed, and no compression agreed
        b"\xff" + struct.pack(">I", 5) + b"small",
        b"\0\0",
    ):
        with dial(daemon) as one:
            one.sendall(
                wire.start()
                + wire.frame(HEADERS, wire.END_HEADERS, 1, wire.headers(RESERVE))
                + wire.frame(DATA, wire.END_STREAM, 1, body)
            )
            one.recv(65_536)


def test_a_message_larger_than_allowed_is_refused_and_the_connection_lives(
    daemon: Daemon, works: bursar.Client
) -> None:
    memory = daemon.rss_bytes()
    with Bare(daemon.target) as bare:
        for size in (2**22 + 2**17, 2**25):
            failed = bare.fails("LedgerService/CountTokens", b"\x12" + b"x" * size)
            assert failed.code == "OUT_OF_RANGE"
            assert "limit is: 4259840 bytes" in failed.message
        bare("AccountService/ListAccounts", b"")
    assert daemon.rss_bytes() - memory < 64 * 2**20


def test_answers_that_nobody_reads_do_not_stop_the_others(
    daemon: Daemon, works: bursar.Client
) -> None:
    """A client that sends calls and reads nothing: its answers wait, bounded by its windows."""
    memory = daemon.rss_bytes()
    body = b"\0\0\0\0\0"
    block = wire.headers("/bursar.v1.AccountService/ListAccounts")
    with dial(daemon) as one:
        one.settimeout(1)
        try:
            one.sendall(wire.PREFACE + wire.frame(SETTINGS, 0, 0))
            for stream in range(1, 40_001, 2):
                one.sendall(
                    wire.frame(HEADERS, wire.END_HEADERS, stream, block)
                    + wire.frame(DATA, wire.END_STREAM, stream, body)
                )
        except (TimeoutError, BrokenPipeError, ConnectionResetError):
            pass
        begun = time.monotonic()
        for _ in range(20):
            works.check("acme/a", tokens=1)
        assert time.monotonic() - begun < 10
        assert daemon.rss_bytes() - memory < 100 * 2**20
