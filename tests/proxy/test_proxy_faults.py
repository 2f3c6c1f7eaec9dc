"""What goes wrong behind the proxy and before it: every case is bounded, told and settled."""

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import openai
import pytest
from support.proxied import ACCOUNT, NOTICE, Proxied, settled, tokens
from support.upstreams import RawUpstream, begin_stream, chunk, respond, usage, wait

MESSAGES: Any = [{"role": "user", "content": "hello"}]
LIMIT: Final = 1_000_000
KEY: Final = "sk-of-the-provider-0123456789"
DONE: Final = b"data: [DONE]\n\n"
Answer = Callable[[socket.socket, str, bytes], None]


def streaming(*parts: bytes, then: Callable[[socket.socket], None] | None = None) -> Answer:
    """An upstream that streams these bytes."""

    def answer(connection: socket.socket, _head: str, _body: bytes) -> None:
        begin_stream(connection)
        for part in parts:
            connection.sendall(part)
        if then is not None:
            then(connection)

    return answer


def ask(proxied: Proxied, *, stream: bool = True, **more: Any) -> Any:
    """A call, and all chunks of its answer."""
    client = proxied.openai(max_retries=0)
    arguments = {"model": "m", "messages": MESSAGES, "max_tokens": 50, **more}
    answer: Any = client.chat.completions.create(stream=stream, **arguments)
    return list(answer) if stream else answer


def text_of(chunks: list[Any]) -> str:
    """What a stream says."""
    return "".join(one.choices[0].delta.content or "" for one in chunks if one.choices)


def test_an_upstream_that_is_down_is_told_and_costs_nothing() -> None:
    with RawUpstream(streaming()) as gone:
        url = gone.url
    with Proxied(url, budgets=tokens(LIMIT)) as proxied, proxied.client() as client:
        with pytest.raises(openai.InternalServerError, match="cannot be reached") as raised:
            ask(proxied)
        assert raised.value.status_code == 502
        assert settled(client) == 0


def test_an_upstream_that_hangs_is_given_up_in_time() -> None:
    def hang(connection: socket.socket, _head: str, _body: bytes) -> None:
        connection.recv(1)

    with (
        RawUpstream(hang) as upstream,
        Proxied(upstream.url, budgets=tokens(LIMIT), first_byte_timeout="300ms") as proxied,
        proxied.client() as client,
    ):
        started = time.monotonic()
        with pytest.raises(openai.InternalServerError, match="first_byte_timeout") as raised:
            ask(proxied)
        assert raised.value.status_code == 504
        assert time.monotonic() - started < 3
        assert 0 < settled(client) < 50, "it may compute: the prompt is paid"


def test_a_stream_that_stops_coming_is_ended_with_an_error_and_paid() -> None:
    answer = streaming(chunk("a"), chunk(" b"), then=wait)
    with (
        RawUpstream(answer) as upstream,
        Proxied(upstream.url, budgets=tokens(LIMIT), idle_timeout="300ms") as proxied,
        proxied.client() as client,
    ):
        with pytest.raises(openai.APIError, match="paused for too long"):
            ask(proxied)
        assert 0 < settled(client) < 50


def test_an_upstream_that_dies_in_the_middle_of_a_chunk_is_told_and_paid() -> None:
    with (
        RawUpstream(streaming(chunk("a"), chunk(" b")[:-20])) as upstream,
        Proxied(upstream.url, budgets=tokens(LIMIT)) as proxied,
        proxied.client() as client,
    ):
        with pytest.raises(openai.APIError, match="ended in the middle"):
            ask(proxied)
        assert 0 < settled(client) < 50


@pytest.mark.parametrize(
    "rubbish", [b"data: {not json\n\n", b"data: [1]\n\n", b'data: {"choices": 7}\n\n']
)
def test_what_is_no_event_ends_the_stream_with_an_error(rubbish: bytes) -> None:
    with (
        RawUpstream(streaming(chunk("a"), rubbish, chunk(" b"), DONE)) as upstream,
        Proxied(upstream.url, budgets=tokens(LIMIT)) as proxied,
        proxied.client() as client,
    ):
        with pytest.raises(openai.APIError, match="makes no sense"):
            ask(proxied)
        assert 0 < settled(client) < 50


def test_an_event_without_end_takes_no_memory() -> None:
    def flood(connection: socket.socket) -> None:
        for _ in range(200):
            connection.sendall(b"x" * 2**20)

    with (
        RawUpstream(streaming(chunk("a"), b"data: ", then=flood)) as upstream,
        Proxied(upstream.url, budgets=tokens(LIMIT)) as proxied,
        proxied.client() as client,
    ):
        used = []
        for _ in range(4):  # the first reads the encoding too
            with pytest.raises(openai.APIError, match="an event of more than"):
                ask(proxied)
            used.append(proxied.rss_bytes())
        assert used[-1] - used[0] < 16 * 2**20
        assert settled(client) > 0


def test_a_chunk_of_ten_megabytes_passes_whole_in_bounded_memory() -> None:
    words = b"word " * 100_000
    event = chunk(words.decode())
    many = event * 20 + chunk(finish="stop") + DONE

    def in_one_chunk(connection: socket.socket, _head: str, _body: bytes) -> None:
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
        connection.sendall(head + b"transfer-encoding: chunked\r\n\r\n")
        connection.sendall(b"%x\r\n" % len(many) + many + b"\r\n0\r\n\r\n")

    with (
        RawUpstream(in_one_chunk) as upstream,
        Proxied(upstream.url, budgets=tokens(10**9)) as proxied,
        proxied.client() as client,
    ):
        used = []
        for _ in range(2):
            assert text_of(ask(proxied, max_tokens=10**7)) == words.decode() * 20
            used.append(proxied.rss_bytes())
        assert len(many) > 10 * 10**6
        assert used[1] - used[0] < 16 * 2**20
        # "word word … " has a token a word, and the prompt has a few.
        assert 4_000_000 <= settled(client) < 4_000_200


def test_an_answer_that_is_too_long_is_refused() -> None:
    body = {"choices": [{"message": {"content": "x" * 200_000}}], "usage": usage(1, 1)}
    with (
        RawUpstream(lambda connection, _h, _b: respond(connection, body)) as upstream,
        Proxied(upstream.url, budgets=tokens(LIMIT), max_body_bytes="64 KiB") as proxied,
        proxied.client() as client,
    ):
        with pytest.raises(openai.InternalServerError, match="max_body_bytes"):
            ask(proxied, stream=False)
        assert settled(client) > 0, "the prompt was paid"


@pytest.mark.parametrize(
    ("told", "spent"),
    [
        (usage(9, 3), 12),
        (usage(9, 70), 79),  # more than was allowed: what is true is written
        (usage(-5, 3), None),
        (usage(9, -1), None),
        (usage(9, 10**15), None),
        (usage(2**62, 2**62), None),
        (usage(9, 0), None),
    ],
)
def test_the_upstreams_usage_counts_unless_it_cannot_be(told: Any, spent: int | None) -> None:
    parts = (chunk("a b"), chunk(" c"), chunk(finish="stop"), chunk(usage=told), DONE)
    parts = (*parts[:3], parts[3].replace(b'"choices": [{', b'"choices": [], "x": [{'), DONE)
    with (
        RawUpstream(streaming(*parts)) as upstream,
        Proxied(upstream.url, budgets=tokens(LIMIT)) as proxied,
        proxied.client() as client,
    ):
        assert text_of(ask(proxied)) == "a b c"
        if spent is not None:
            assert settled(client) == spent
        else:
            assert 3 <= settled(client) < 50


def test_an_upstream_that_ignores_its_bound_is_cut_at_what_is_covered() -> None:
    words = [chunk(f" {word}") for word in ["one", "two", "six", "ten"] * 50]
    with (
        RawUpstream(streaming(*words, chunk(finish="stop"), DONE)) as upstream,
        Proxied(upstream.url, budgets=tokens(40)) as proxied,
        proxied.client() as client,
    ):
        chunks = ask(proxied, max_tokens=1000, stream_options={"include_usage": True})
        assert chunks[-2].choices[0].finish_reason == "length"
        assert text_of(chunks).endswith(NOTICE)
        got = len(text_of(chunks).removesuffix(NOTICE).split())
        assert chunks[-1].usage.completion_tokens == got
        assert settled(client) == 40


def test_in_strict_mode_a_cut_stream_ends_in_an_error() -> None:
    words = [chunk(f" {word}") for word in ["one", "two", "six", "ten"] * 50]
    with (
        RawUpstream(streaming(*words, DONE)) as upstream,
        Proxied(upstream.url, budgets=tokens(40), strict_errors=True) as proxied,
        pytest.raises(openai.APIError) as raised,
    ):
        ask(proxied, max_tokens=1000)
    assert raised.value.code == "budget_exhausted"


def test_an_upstreams_own_refusal_passes_and_costs_nothing() -> None:
    body = {"error": {"message": "too fast", "type": "rate_limit", "code": "x"}}
    with (
        RawUpstream(lambda c, _h, _b: respond(c, body, "429 Too Many Requests")) as upstream,
        Proxied(upstream.url, budgets=tokens(LIMIT)) as proxied,
        proxied.client() as client,
    ):
        with pytest.raises(openai.RateLimitError, match="too fast"):
            ask(proxied)
        assert settled(client) == 0


def test_the_providers_key_reaches_the_provider_and_nobody_else(tmp_path: Path) -> None:
    """Goal: the key is in no answer, log or store, and the client's own never leaves.

    Method: an upstream that repeats all that it was sent, whole, streamed and as errors.
    """
    status = ["200 OK"]

    def repeat(connection: socket.socket, head: str, body: bytes) -> None:
        if b'"stream":true' in body.replace(b" ", b""):
            begin_stream(connection)
            error = {"error": {"message": head}}
            connection.sendall(b"data: " + json.dumps(error).encode() + b"\n\n")
            return
        choices = [{"message": {"content": head}, "finish_reason": "stop", "index": 0}]
        respond(connection, {"choices": choices, "usage": usage(1, 1), "error": head}, status[0])

    secret = tmp_path / "key"
    secret.write_text(f"{KEY}\n", encoding="utf-8")
    settings = {"key_file": str(secret)}
    seen = []
    with (
        RawUpstream(repeat) as upstream,
        Proxied(upstream.url, budgets=tokens(LIMIT), upstream_settings=settings) as proxied,
    ):
        seen.append(ask(proxied, stream=False).model_dump_json())
        for one in ("401 Unauthorized", "500 Internal Server Error"):
            status[0] = one
            with pytest.raises(openai.APIStatusError) as raised:
                ask(proxied, stream=False)
            seen.append(raised.value.response.text + str(raised.value.response.headers))
        with pytest.raises(openai.APIError) as broken:
            ask(proxied)
        seen.append(str(broken.value.body))
        with proxied.client() as client:
            seen += [str(one) for one in client.list_entries()]
        proxied.terminate()
        stored = [path.read_bytes() for path in proxied.folder.iterdir() if path.is_file()]
    assert all(f"bearer {KEY}" in head.lower() for head, _ in upstream.requests)
    assert not any("of-the-client" in head for head, _ in upstream.requests)
    assert not any(KEY in one for one in seen)
    assert not any(KEY.encode() in one for one in stored)


def test_a_client_that_is_slow_to_send_or_to_read_is_let_go() -> None:
    flood = streaming(*[chunk("x" * 1000) for _ in range(20_000)], DONE)
    with (
        RawUpstream(flood) as upstream,
        Proxied(upstream.url, budgets=tokens(10**9), client_timeout="1s") as proxied,
        proxied.client() as ledger,
    ):
        host, _, port = proxied.url.removeprefix("http://").rpartition(":")
        body = json.dumps(
            {"model": "m", "messages": MESSAGES, "stream": True, "max_tokens": 10**6}
        ).encode()
        head = f"POST /a/{ACCOUNT}/v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: "
        with (
            socket.create_connection((host, int(port))) as half,
            socket.create_connection((host, int(port))) as silent,
            socket.create_connection((host, int(port))) as unread,
        ):
            half.sendall(f"{head}{len(body)}\r\n\r\n".encode() + body[:10])
            silent.sendall(b"POST /v1/")
            unread.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            unread.sendall(f"{head}{len(body)}\r\n\r\n".encode() + body)
            half.settimeout(5)
            silent.settimeout(5)
            assert b" 408 " in half.recv(4096)
            assert b" 408 " in (silent.recv(4096) or b" 408 ")
            assert settled(ledger, within_s=15) > 0


def test_a_client_that_resets_its_connection_is_settled() -> None:
    answer = streaming(chunk("a"), then=wait)
    with (
        RawUpstream(answer) as upstream,
        Proxied(upstream.url, budgets=tokens(LIMIT)) as proxied,
        proxied.client() as ledger,
    ):
        host, _, port = proxied.url.removeprefix("http://").rpartition(":")
        connection = http.client.HTTPConnection(host, int(port))
        body = json.dumps({"model": "m", "messages": MESSAGES, "stream": True})
        connection.request("POST", f"/a/{ACCOUNT}/v1/chat/completions", body)
        assert connection.getresponse().status == 200
        linger = struct.pack("ii", 1, 0)
        connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        connection.sock.close()
        connection.close()
        assert 0 < settled(ledger) < 50


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/v1/nothing", "", 404),
        ("GET", "/v1/chat/completions", "", 405),
        ("POST", f"/a/{ACCOUNT}/v1/chat/completions", "{", 400),
        ("POST", f"/a/{ACCOUNT}/v1/chat/completions", "[" * 50_000, 400),
        ("POST", f"/a/{ACCOUNT}/v1/chat/completions", '{"model": "m", "model": "n"}', 400),
        ("POST", f"/a/{ACCOUNT}/v1/chat/completions", '{"messages": []}', 400),
        ("POST", "/v1/chat/completions", '{"model": "m"}', 404),
        ("POST", f"/a/{ACCOUNT}/v1/chat/completions", "x" * 70_000, 413),
        ("POST", "/a/../v1/chat/completions", '{"model": "m"}', 400),
    ],
)
def test_bad_requests_are_told_and_never_reach_the_upstream(
    method: str, path: str, body: str, status: int
) -> None:
    with (
        RawUpstream(streaming()) as upstream,
        Proxied(upstream.url, max_body_bytes="64 KiB") as proxied,
    ):
        host, _, port = proxied.url.removeprefix("http://").rpartition(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=10)
        connection.request(method, path, body or None)
        answer = connection.getresponse()
        assert answer.status == status
        assert answer.headers["x-should-retry"] == "false"
        assert json.loads(answer.read())["error"]["message"]
        connection.close()
        assert upstream.requests == []


def test_large_requests_that_never_end_leave_the_small_ones_alone() -> None:
    """Goal: no crowd of unfinished requests takes the memory. Method: more of the longest than
    there is room for, each without its last byte; a long one finds none until they are gone."""
    longest = 64 * 2**10
    with (
        RawUpstream(streaming()) as upstream,
        Proxied(upstream.url, max_body_bytes="64 KiB") as proxied,
        contextlib.ExitStack() as stack,
    ):
        host, _, port = proxied.url.removeprefix("http://").rpartition(":")
        path = f"/a/{ACCOUNT}/v1/chat/completions"

        def answered(length: int) -> int:
            connection = http.client.HTTPConnection(host, int(port), timeout=10)
            with contextlib.closing(connection):
                connection.request("POST", path, "x" * length)
                return connection.getresponse().status

        head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {longest}\r\n\r\n".encode()
        for _ in range(32):
            one = stack.enter_context(socket.create_connection((host, int(port)), timeout=10))
            with contextlib.suppress(ConnectionError):  # those that find no room
                one.sendall(head + b"x" * (longest - 1))
        while answered(longest) != 503:
            time.sleep(0.01)
        assert answered(1_000) == 400, "it is no call"
        stack.close()
        while answered(longest) != 400:
            time.sleep(0.01)


def test_embeddings_are_charged_for_their_input() -> None:
    data = [{"object": "embedding", "index": 0, "embedding": [0.5]}]
    body = {"object": "list", "data": data, "model": "m", "usage": {"prompt_tokens": 6}}
    with (
        RawUpstream(lambda c, _h, _b: respond(c, body)) as upstream,
        Proxied(upstream.url, budgets=tokens(LIMIT)) as proxied,
        proxied.client() as ledger,
    ):
        answer = proxied.openai().embeddings.create(model="m", input=["a", "b"])
        assert answer.data[0].embedding == [0.5]
        assert settled(ledger) == 6
        assert b"max_tokens" not in upstream.requests[0][1]


def test_a_repeat_with_the_same_idempotency_key_hears_the_same_and_is_charged_once() -> None:
    words = (chunk("a b"), chunk(finish="stop"), chunk(usage=usage(9, 3)), DONE)

    def answer(connection: socket.socket, _head: str, body: bytes) -> None:
        if b"stream" in body:
            streaming(*words)(connection, "", b"")
        else:
            choices = [{"message": {"content": "c"}, "finish_reason": "stop", "index": 0}]
            respond(connection, {"id": str(len(upstream.requests)), "choices": choices,
                                 "usage": usage(9, 3)})  # fmt: skip

    with (
        RawUpstream(answer) as upstream,
        Proxied(upstream.url, budgets=tokens(LIMIT)) as proxied,
        proxied.client() as ledger,
    ):
        for stream in (False, True):
            before, sent = settled(ledger), len(upstream.requests)
            key = {"Idempotency-Key": f"key-{stream}"}
            first, second = (ask(proxied, stream=stream, extra_headers=key) for _ in range(2))
            assert first == second
            assert len(upstream.requests) == sent + 1
            assert settled(ledger) - before == 12
            with pytest.raises(openai.BadRequestError, match="another call"):
                ask(proxied, stream=stream, extra_headers=key, max_tokens=7)


def test_a_broken_call_may_be_made_again_with_its_key() -> None:
    answers = [streaming(chunk("a")), streaming(chunk("b"), chunk(finish="stop"), DONE)]

    def in_turn(connection: socket.socket, head: str, body: bytes) -> None:
        answers.pop(0)(connection, head, body)

    with (
        RawUpstream(in_turn) as upstream,
        Proxied(upstream.url, budgets=tokens(LIMIT)) as proxied,
    ):
        key = {"Idempotency-Key": "one"}
        with pytest.raises(openai.APIError, match="ended in the middle"):
            ask(proxied, extra_headers=key)
        assert text_of(ask(proxied, extra_headers=key)) == "b"


def test_a_drain_lets_a_stream_finish() -> None:
    def slowly(connection: socket.socket) -> None:
        for _ in range(10):
            time.sleep(0.05)
            connection.sendall(chunk(" x"))
        connection.sendall(chunk(finish="stop") + DONE)

    with (
        RawUpstream(streaming(chunk("a"), then=slowly)) as upstream,
        Proxied(upstream.url, budgets=tokens(LIMIT)) as proxied,
    ):
        answer: Any = proxied.openai(max_retries=0).chat.completions.create(
            model="m", messages=MESSAGES, max_tokens=50, stream=True
        )
        iterator = iter(answer)
        next(iterator)
        os.kill(proxied.pid, signal.SIGTERM)
        assert len(text_of(list(iterator)).split()) == 10
        proxied.terminate()
        assert "drained" in proxied.log
        proxied.start()
        with proxied.client() as ledger:
            assert settled(ledger) > 0


def test_an_upstream_behind_tls_is_trusted_by_the_systems_roots_only(tmp_path: Path) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("there is no openssl to make a certificate")
    make = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    about = ["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    about += ["-addext", "basicConstraints=critical,CA:FALSE"]  # it is no authority's
    files = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run([openssl, *make, *about, *files], check=True, capture_output=True)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate, key)
    parts = (chunk("a"), chunk(finish="stop"), DONE)
    with (
        RawUpstream(streaming(*parts), tls=server) as upstream,
        pytest.MonkeyPatch.context() as patch,
    ):
        with Proxied(upstream.url) as proxied, pytest.raises(openai.InternalServerError) as raised:
            ask(proxied)
        assert raised.value.status_code == 502
        patch.setenv("SSL_CERT_FILE", str(certificate))
        with Proxied(upstream.url) as proxied:
            assert text_of(ask(proxied)) == "a"
