"""Floods that would fill the memory: what is not finished, compressed, not read, or without end.

Each attacker keeps his connection open while an honest client works, and the memory that the daemon
takes meanwhile has a bound.
"""

import gzip
import http.client
import json
import select
import socket
import struct
import time
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import Any

import grpc
import pytest
from support import wire
from support.bare import Bare, amounts, failed
from support.daemon import LONG, Daemon
from support.proxied import ACCOUNT, Proxied, tokens
from support.upstreams import RawUpstream, respond

import bursar
from bursar.v1 import account_pb2 as ac
from bursar.v1 import ledger_pb2 as lg

MIB = 2**20
LARGEST = 4160 * 1024  # server.max_message_bytes
ROOM_BYTES = 32 * LARGEST
EACH = 50 if LONG else 20
RESERVE = "/bursar.v1.LedgerService/Reserve"


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    with Daemon() as running, running.client() as client:
        client.set_budget("acme", unit="tokens", limit=10**9)
        client.reserve("acme/a", tokens=1).release()
        yield running


def is_served(daemon: Daemon) -> None:
    """An honest client, old or new, hears its answers soon."""
    begun = time.monotonic()
    with daemon.client(timeout_s=20) as client:
        for _ in range(5):
            with client.reserve("acme/a", tokens=1) as held:
                held.commit(tokens=0)
    assert time.monotonic() - begun < 10


class Flowing:
    """A connection that keeps to HTTP/2's flow control, so that nothing but the flood is wrong."""

    def __init__(self, daemon: Daemon) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(10)
        self.socket.connect(str(daemon.socket_path))
        self.socket.sendall(wire.PREFACE + wire.frame(wire.SETTINGS, 0, 0))
        self.refused = 0
        self._all = self._first = 65_535
        self._each: dict[int, int] = {}
        self._in = b""
        self.hear(1)

    def begin(self, stream: int, path: str, announced: int) -> None:
        """Starts a call whose message is said to be so long."""
        self._each[stream] = self._first
        headers = wire.frame(wire.HEADERS, wire.END_HEADERS, stream, wire.headers(path))
        self.socket.sendall(headers)
        self._send(stream, b"\0" + struct.pack(">I", announced))

    def feed(self, sizes: dict[int, int], *, within_s: float = 30) -> None:
        """Sends so many bytes on each stream, as the daemon takes them."""
        left = dict(sizes)
        deadline = time.monotonic() + within_s
        while left and time.monotonic() < deadline:
            self.hear(0)
            moved = False
            for stream in list(left):
                if stream not in self._each:
                    del left[stream]
                    continue
                length = min(left[stream], self._each[stream], self._all, 16_000)
                if length > 0:
                    self._send(stream, b"x" * length)
                    left[stream] -= length
                    moved = True
                if stream in left and left[stream] <= 0:
                    del left[stream]
            if not moved:
                self.hear(0.2)

    def _send(self, stream: int, data: bytes) -> None:
        self.socket.sendall(wire.frame(wire.DATA, 0, stream, data))
        self._all -= len(data)
        self._each[stream] -= len(data)

    def hear(self, timeout_s: float) -> None:
        """Takes in what the daemon says."""
        while select.select([self.socket], [], [], timeout_s)[0]:
            got = self.socket.recv(MIB)
            if not got:
                raise ConnectionResetError
            timeout_s = 0
            self._in += got
            while len(self._in) >= 9:
                length = int.from_bytes(self._in[:3], "big")
                if len(self._in) < 9 + length:
                    break
                head, payload = self._in[:9], self._in[9 : 9 + length]
                self._in = self._in[9 + length :]
                self._frame(head[3], head[4], int.from_bytes(head[5:9], "big"), payload)

    def _frame(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == wire.WINDOW_UPDATE:
            if stream == 0:
                self._all += int.from_bytes(payload, "big")
            elif stream in self._each:
                self._each[stream] += int.from_bytes(payload, "big")
        elif kind == wire.SETTINGS and not flags & wire.ACK:
            for at in range(0, len(payload), 6):
                name, value = struct.unpack(">HI", payload[at : at + 6])
                if name == 4:
                    self._first = value
            self.socket.sendall(wire.frame(wire.SETTINGS, wire.ACK, 0))
        elif kind == wire.RST_STREAM:
            self.refused += self._each.pop(stream, None) is not None


def test_messages_that_never_end_share_a_bound_and_small_calls_pass(daemon: Daemon) -> None:
    """Many calls that send the largest message without its last byte, on two connections."""
    before = daemon.rss_bytes()
    with ExitStack() as stack:
        flood = [Flowing(daemon) for _ in range(2)]
        for one in flood:
            stack.callback(one.socket.close)
            streams = range(1, 2 * EACH, 2)
            for stream in streams:
                one.begin(stream, RESERVE, LARGEST)
            one.feed(dict.fromkeys(streams, LARGEST - 1))
        grown = daemon.rss_bytes() - before
        print(f"{grown // MIB} MiB for {sum(one.refused for one in flood)} refused")
        assert grown < ROOM_BYTES + 40 * MIB
        assert sum(one.refused for one in flood) >= 2 * EACH - 32
        is_served(daemon)
        with Bare(daemon.target) as bare:
            wish = lg.CountTokensRequest(model="o200k_base", text="x" * 10**6)
            refused = bare.fails("LedgerService/CountTokens", wish)
            assert refused.code == "UNAVAILABLE"
            assert "messages of 130 MiB are under way" in refused.message
    with daemon.client(timeout_s=20) as client:  # it tries again, and there is room
        assert client.count_tokens("o200k_base", text="word " * 100_000).token_count > 0


def test_answers_that_are_not_read_are_bounded(daemon: Daemon) -> None:
    """Entries by the page, accounts by watch: a thousand calls at once, and nothing is taken. The
    pages would be 300 MiB together."""
    with daemon.client(timeout_s=20) as client:
        for number in range(6_000):
            client.record(f"acme/agent{number % 50}/{'x' * 60}", tokens=number)
        before = daemon.rss_bytes()
        with ExitStack() as stack:
            for path, request in (
                ("AccountService/ListEntries", ac.ListEntriesRequest(page_size=10_000)),
                ("AccountService/WatchAccounts", ac.WatchAccountsRequest()),
            ):
                message = request.SerializeToString()
                body = b"\0" + struct.pack(">I", len(message)) + message
                one = stack.enter_context(socket.socket(socket.AF_UNIX))
                one.settimeout(2)
                one.connect(str(daemon.socket_path))
                one.sendall(wire.PREFACE + wire.frame(wire.SETTINGS, 0, 0))
                block = wire.headers(f"/bursar.v1.{path}")
                with suppress(TimeoutError, ConnectionError):
                    for stream in range(1, 801, 2):
                        one.sendall(
                            wire.frame(wire.HEADERS, wire.END_HEADERS, stream, block)
                            + wire.frame(wire.DATA, wire.END_STREAM, stream, body)
                        )
            is_served(daemon)
            time.sleep(2)
            for number in range(50):
                client.record(f"acme/agent{number}/{'x' * 60}", tokens=number)
            grown = daemon.rss_bytes() - before
            print(f"{grown // MIB} MiB")
            assert grown < 250 * MIB


def test_a_meter_that_is_not_read_is_bounded(daemon: Daemon) -> None:
    with daemon.client(timeout_s=20) as client:
        held = client.reserve("acme/a", tokens=1_000)
        debit = lg.MeterDebit(reservation=held.id, used=amounts(tokens=1))
        message = lg.MeterRequest(debits=[debit] * 1_000).SerializeToString()
        body = b"\0" + struct.pack(">I", len(message)) + message
        before = daemon.rss_bytes()
        with socket.socket(socket.AF_UNIX) as one:
            one.settimeout(2)
            one.connect(str(daemon.socket_path))
            one.sendall(wire.PREFACE + wire.frame(wire.SETTINGS, 0, 0))
            block = wire.headers("/bursar.v1.LedgerService/Meter")
            with suppress(TimeoutError, ConnectionError):
                one.sendall(wire.frame(wire.HEADERS, wire.END_HEADERS, 1, block))
                for _ in range(500):
                    for at in range(0, len(body), 16_000):
                        one.sendall(wire.frame(wire.DATA, 0, 1, body[at : at + 16_000]))
            is_served(daemon)
            assert daemon.rss_bytes() - before < 60 * MIB


def test_keys_labels_and_metadata_without_end_are_refused_by_name_and_bounded() -> None:
    """A flood of reservations, each with the longest key and labels, until their bound."""
    most = 3_000
    labels = {f"{n:02}" + "k" * 254: "v" * 256 for n in range(16)}
    with Daemon(limits={"max_reservations": most}) as daemon, Bare(daemon.target) as bare:
        with daemon.client(timeout_s=20) as client:
            client.set_budget("acme", unit="tokens", limit=10**9)
            before = daemon.rss_bytes()
            reasons = set()
            for number in range(most + 200):
                wish = lg.ReserveRequest(
                    account="acme",
                    idempotency_key=f"{number:06}" + "k" * 250,
                    amounts=amounts(tokens=1),
                    labels=labels,
                )
                if number < most:
                    bare("LedgerService/Reserve", wish)
                else:
                    reasons.add(bare.fails("LedgerService/Reserve", wish).reason)
            assert reasons == {"RESERVATION_LIMIT_REACHED"}
            each = (daemon.rss_bytes() - before) // most
            print(f"{each} bytes each")
            assert each < 24_000
            assert client.check("acme/b", tokens=1).verdict is bursar.Verdict.OK
        call: Any = bare.channel.unary_unary("/bursar.v1.AccountService/ListAccounts")
        flood = tuple((f"x-{n}", "v" * 1_000) for n in range(64))
        with pytest.raises(grpc.RpcError) as raised:
            call(b"", metadata=flood, timeout=10)
        assert failed(raised.value).code in ("RESOURCE_EXHAUSTED", "INTERNAL", "UNAVAILABLE")
        with daemon.client(timeout_s=20) as client:
            assert client.check("acme/b", tokens=1).verdict is bursar.Verdict.OK


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "zstd", "br", "identity,gzip"])
def test_a_compressed_message_is_refused_before_it_is_unpacked(
    daemon: Daemon, encoding: str
) -> None:
    """Bombs of 64 kB, shorter than the longest message, that would be 64 MiB each."""
    before = daemon.rss_bytes()
    bomb = gzip.compress(bytes(64 * MIB)) if encoding == "gzip" else zlib.compress(bytes(64 * MIB))
    extra = wire.header(b"grpc-encoding", encoding.encode())
    with ExitStack() as stack:
        for _ in range(20):
            one = stack.enter_context(socket.socket(socket.AF_UNIX))
            one.settimeout(10)
            one.connect(str(daemon.socket_path))
            body = b"\x01" + struct.pack(">I", len(bomb)) + bomb
            frames = b"".join(
                wire.frame(wire.DATA, 0, 1, body[at : at + 16_000])
                for at in range(0, len(body), 16_000)
            )
            headers = wire.headers(RESERVE, extra=extra)
            one.sendall(
                wire.start()
                + wire.frame(wire.HEADERS, wire.END_HEADERS, 1, headers)
                + frames
                + wire.frame(wire.DATA, wire.END_STREAM, 1)
            )
            assert one.recv(65_536)
        is_served(daemon)
        assert daemon.rss_bytes() - before < 30 * MIB


def test_a_compression_that_is_not_spoken_is_named(daemon: Daemon) -> None:
    options = [("grpc.default_authority", "localhost")]
    with grpc.insecure_channel(daemon.target, options=options) as channel:
        call: Any = channel.unary_unary("/bursar.v1.LedgerService/CountTokens")
        request = lg.CountTokensRequest(model="o200k_base", text="x" * 100_000)
        with pytest.raises(grpc.RpcError) as raised:
            call(request.SerializeToString(), compression=grpc.Compression.Gzip, timeout=10)
        assert failed(raised.value).code == "UNIMPLEMENTED"
        assert "gzip" in failed(raised.value).message


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd"])
def test_a_compressed_body_is_refused_by_the_proxy_and_never_unpacked(encoding: str) -> None:
    def answer(connection: socket.socket, _head: str, _body: bytes) -> None:
        respond(connection, {})

    bomb = gzip.compress(bytes(256 * MIB), 1)
    with RawUpstream(answer) as upstream, Proxied(upstream.url, budgets=tokens(10**6)) as proxied:
        host, _, port = proxied.url.removeprefix("http://").rpartition(":")
        before = proxied.rss_bytes()
        for body in (bomb, gzip.compress(json.dumps({"model": "m", "messages": []}).encode())):
            connection = http.client.HTTPConnection(host, int(port), timeout=10)
            path = f"/a/{ACCOUNT}/v1/chat/completions"
            head = {"content-encoding": encoding, "content-type": "application/json"}
            connection.request("POST", path, body, head)
            assert connection.getresponse().status in (400, 413, 415)
            connection.close()
        # Less than the bomb, and room for the tokenizer, which is read in the background.
        assert proxied.rss_bytes() - before < 100 * MIB
        assert upstream.requests == []
        with proxied.client() as client:
            assert isinstance(client, bursar.Client)
            assert client.get_account(ACCOUNT).balances[0].spent == 0
