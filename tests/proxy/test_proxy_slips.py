"""What a call or an upstream might slip past the meter of the proxy: nothing of it is free."""

import http.client
import json
import socket
from typing import Any, Final

import openai
import pytest
from support.proxied import ACCOUNT, NOTICE, Proxied, settled, tokens
from support.upstreams import RawUpstream, begin_stream, chunk, respond, usage, wait

MESSAGES: Any = [{"role": "user", "content": "hello"}]
LIMIT: Final = 1_000_000
DONE: Final = b"data: [DONE]\n\n"
WORDS: Final = ["one", "two", "six", "ten"] * 10


def request(
    proxied: Proxied, method: str, path: str, body: object = None, **headers: str
) -> http.client.HTTPResponse:
    """A request as it is written, with whatever path."""
    host, _, port = proxied.url.removeprefix("http://").rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=10)
    connection.request(method, path, None if body is None else json.dumps(body), headers)
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer


@pytest.mark.parametrize(
    "way",
    [
        "/v1/models/../chat/completions",
        "/v1/models/x/../../chat/completions",
        "/v1/models/%2e%2e/chat/completions",
        "/v1/models/.%2E/files",
        "/v1/models/..%2ffiles",
        "/v1/models/..\\files",
        "/v1/models/./x",
    ],
)
def test_nothing_but_models_is_reached_as_one(way: str) -> None:
    with (
        RawUpstream(lambda c, _h, _b: respond(c, {"data": []})) as upstream,
        Proxied(upstream.url, budgets=tokens(LIMIT)) as proxied,
    ):
        call = {"model": "m", "messages": MESSAGES}
        for prefix in ("", f"/a/{ACCOUNT}"):
            assert request(proxied, "GET", prefix + way, call).status == 404
        assert upstream.requests == []
        assert request(proxied, "GET", f"/a/{ACCOUNT}/v1/models/org/a.b-7B:free").status == 200


def test_a_question_about_models_stays_one_whatever_it_carries() -> None:
    with (
        RawUpstream(lambda c, _h, _b: respond(c, {"data": []})) as upstream,
        Proxied(upstream.url, budgets=tokens(LIMIT)) as proxied,
    ):
        call = {"model": "m", "messages": MESSAGES}
        assert request(proxied, "GET", f"/a/{ACCOUNT}/v1/models", call).status == 200
        [(head, body)] = upstream.requests
        assert head.startswith("GET /v1/models ")
        assert body == b""


@pytest.mark.parametrize(
    "told",
    [
        {"prompt_tokens": 9},
        usage(9, 0),
        usage(9, -1),
        usage(9, 10**15),
        {**usage(9, 30), "prompt_tokens_details": {"cached_tokens": 10}},
    ],
)
def test_a_whole_answer_whose_usage_cannot_be_is_measured(told: dict[str, Any]) -> None:
    choice = {"index": 0, "message": {"content": " ".join(WORDS)}, "finish_reason": "stop"}
    body = {"id": "c", "choices": [choice], "usage": told}
    with (
        RawUpstream(lambda c, _h, _b: respond(c, body)) as upstream,
        Proxied(upstream.url, budgets=tokens(LIMIT)) as proxied,
        proxied.client() as ledger,
    ):
        client = proxied.openai(max_retries=0)
        client.chat.completions.create(model="m", messages=MESSAGES, max_tokens=100)
        assert len(WORDS) < settled(ledger) < len(WORDS) + 40


@pytest.mark.parametrize(
    "told",
    [usage(9, 0), usage(9, 1), {**usage(9, 1), "prompt_tokens_details": {"cached_tokens": 10}}],
)
def test_an_upstream_that_tells_its_usage_once_is_measured_from_there_on(
    told: dict[str, Any],
) -> None:
    parts = [chunk("one", usage=told), *[chunk(f" {word}") for word in WORDS[1:] * 5]]
    with (
        RawUpstream(_streaming(*parts, chunk(finish="stop"), DONE)) as upstream,
        Proxied(upstream.url, budgets=tokens(60)) as proxied,
        proxied.client() as ledger,
    ):
        said = _ask(proxied, max_tokens=1000)
        assert said.endswith(NOTICE)
        assert len(said.removesuffix(NOTICE).split()) < 60
        assert settled(ledger) in (59, 60)


def test_a_list_of_prompts_is_held_for_as_the_answers_that_it_asks_for() -> None:
    with (
        RawUpstream(
            lambda c, _h, _b: respond(c, {"choices": [], "usage": usage(0, 0)})
        ) as upstream,
        Proxied(upstream.url, budgets=tokens(400)) as proxied,
    ):
        client = proxied.openai(max_retries=0)
        for prompt, most in (
            ("a b", 300),
            ([1, 2, 3], 300),
            (["a", "b", "c", "d"], 90),
            ([[1, 2], [3]], 180),
        ):
            client.completions.create(model="m", prompt=prompt, max_tokens=300)
            bound = json.loads(upstream.requests[-1][1])["max_tokens"]
            assert most <= bound <= most + 20
        with pytest.raises(openai.BadRequestError, match="128"):
            client.completions.create(model="m", prompt=["a"] * 65, n=2, max_tokens=1)
        with pytest.raises(openai.BadRequestError, match="128"):
            client.completions.create(
                model="m", prompt="a", max_tokens=1, extra_body={"n_cmpl": 129}
            )


@pytest.mark.parametrize("more", [{"n": 2}, {"extra_body": {"n_cmpl": 2}}])
@pytest.mark.parametrize("stream", [False, True])
def test_llama_cpp_makes_one_answer_at_a_time_as_it_tells_the_usage_of_no_more(
    llama: str, more: dict[str, Any], *, stream: bool
) -> None:
    settings = {"engine": "llama.cpp"}
    with (
        Proxied(llama, budgets=tokens(LIMIT), upstream_settings=settings) as proxied,
        proxied.client() as ledger,
    ):
        client: Any = proxied.openai(max_retries=0)
        with pytest.raises(openai.BadRequestError, match="one at a time"):
            client.chat.completions.create(
                model="m", messages=MESSAGES, max_tokens=5, stream=stream, **more
            )
        assert settled(ledger) == 0


@pytest.mark.parametrize("endpoint", ["chat/completions", "completions"])
def test_vllm_counts_what_the_call_reads(endpoint: str) -> None:
    def answer(connection: socket.socket, head: str, body: bytes) -> None:
        # As vLLM does: a prompt goes before messages.
        asked = json.loads(body)
        is_long = "long" in (asked.get("prompt") or asked["messages"][0]["content"])
        told: dict[str, Any] = {"count": 500 if is_long else 1, "tokens": []}
        respond(connection, told if "/tokenize" in head else {"choices": [], "usage": usage(9, 9)})

    both = [{"prompt": "x", "messages": [{"role": "user", "content": "long"}]}]
    both.append({"prompt": "long", "messages": [{"role": "user", "content": "x"}]})
    body = {"model": "m", "max_tokens": 5, **both[endpoint == "completions"]}
    settings = {"engine": "vllm"}
    with (
        RawUpstream(answer) as upstream,
        Proxied(upstream.url, budgets=tokens(100), upstream_settings=settings) as proxied,
    ):
        assert request(proxied, "POST", f"/a/{ACCOUNT}/v1/{endpoint}", body).status == 402
        assert all("/tokenize" in head for head, _ in upstream.requests)


def test_a_last_word_that_comes_with_its_reason_is_cut_like_any_other() -> None:
    text = " ".join(WORDS)
    with (
        RawUpstream(_streaming(chunk("one"), chunk(text, finish="stop"), DONE)) as upstream,
        Proxied(upstream.url, budgets=tokens(30)) as proxied,
        proxied.client() as ledger,
    ):
        client = proxied.openai(max_retries=0)
        stream: Any = client.chat.completions.create(
            model="m", messages=MESSAGES, max_tokens=1000, stream=True
        )
        chunks = list(stream)
        assert [one.choices[0].delta.content for one in chunks] == ["one", NOTICE, None]
        assert chunks[-1].choices[0].finish_reason == "length"
        assert settled(ledger) <= 30


def test_what_an_upstream_bills_at_the_end_is_paid_though_its_last_word_is_cut() -> None:
    end = chunk(" ".join(WORDS), finish="stop", usage=usage(9, 70))
    with (
        RawUpstream(_streaming(chunk("one"), end, DONE)) as upstream,
        Proxied(upstream.url, budgets=tokens(60)) as proxied,
        proxied.client() as ledger,
    ):
        assert _ask(proxied, max_tokens=1000) == f"one{NOTICE}"
        assert settled(ledger) == 79


def test_an_end_that_says_nothing_is_one_and_its_usage_is_paid() -> None:
    end = chunk(finish="stop", usage=usage(9, 70))
    with (
        RawUpstream(_streaming(chunk("one"), end, DONE)) as upstream,
        Proxied(upstream.url, budgets=tokens(60)) as proxied,
        proxied.client() as ledger,
    ):
        assert _ask(proxied, max_tokens=1000) == "one"
        assert settled(ledger) == 79


def test_one_answer_that_has_ended_does_not_let_the_others_run_on() -> None:
    def of(index: int, text: str | None, finish: str | None = None) -> bytes:
        return chunk(text, finish=finish).replace(b'"index": 0', b'"index": %d' % index)

    words = [of(1, f" {word}") for word in WORDS * 5]
    parts = [of(0, "a"), of(0, None, "stop"), of(1, "b"), *words, of(1, None, "stop"), DONE]
    with (
        RawUpstream(_streaming(*parts)) as upstream,
        Proxied(upstream.url, budgets=tokens(60)) as proxied,
        proxied.client() as ledger,
    ):
        said = _ask(proxied, max_tokens=1000, n=2)
        assert said.endswith(NOTICE)
        assert settled(ledger) == 60


def test_what_an_upstream_was_sent_is_paid_though_no_answer_comes() -> None:
    def hang_up(connection: socket.socket, _head: str, _body: bytes) -> None:
        connection.shutdown(socket.SHUT_RDWR)

    for silence in (hang_up, lambda connection, _h, _b: wait(connection)):
        with (
            RawUpstream(silence) as upstream,
            Proxied(upstream.url, budgets=tokens(LIMIT), first_byte_timeout="300ms") as proxied,
            proxied.client() as ledger,
        ):
            with pytest.raises(openai.InternalServerError):
                _ask(proxied)
            assert 0 < settled(ledger) < 50


def _streaming(*parts: bytes) -> Any:
    def answer(connection: socket.socket, _head: str, _body: bytes) -> None:
        begin_stream(connection)
        connection.sendall(b"".join(parts))

    return answer


def _ask(proxied: Proxied, **more: Any) -> str:
    """What a streamed answer says."""
    arguments = {"model": "m", "messages": MESSAGES, "max_tokens": 50, **more}
    stream: Any = proxied.openai(max_retries=0).chat.completions.create(stream=True, **arguments)
    return "".join(one.choices[0].delta.content or "" for one in stream if one.choices)


def test_the_context_of_a_trace_reaches_the_upstream_as_it_came() -> None:
    traced = {
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "tracestate": "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE",
    }
    with (
        RawUpstream(lambda c, _h, _b: respond(c, {"data": []})) as upstream,
        Proxied(upstream.url, budgets=tokens(LIMIT)) as proxied,
    ):
        way, call = f"/a/{ACCOUNT}/v1", {"model": "m", "messages": MESSAGES}
        request(proxied, "GET", f"{way}/models", **traced, baggage="user=alice")
        request(proxied, "POST", f"{way}/chat/completions", call, **traced, baggage="user=alice")
    assert len(upstream.requests) == 2
    for head, _ in upstream.requests:
        fields = dict(line.split(": ", 1) for line in head.lower().split("\r\n")[1:])
        sent = {name: value.lower() for name, value in traced.items()}
        assert {name: fields.get(name) for name in traced} == sent
        assert "baggage" not in fields
