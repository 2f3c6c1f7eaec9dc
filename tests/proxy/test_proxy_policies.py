"""What the proxy makes of thresholds, of bounds on speed, and of prompts before they are sent."""

import json
import socket
import time
from typing import Any, Final

import openai
import pytest
from support.proxied import ACCOUNT, Proxied, settled, tokens
from support.upstreams import RawUpstream, respond, usage

from bursar.tokens import count_prompt_tokens

MESSAGES: Any = [{"role": "user", "content": "hello"}]
MAX_OUTPUT: Final = 50
PICTURE: Final = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
TOOL: Final = {
    "type": "function",
    "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}},
}
PROMPTS: Final[dict[str, list[dict[str, Any]]]] = {
    "a word": MESSAGES,
    "a chat": [
        {"role": "system", "content": "Be brief; it's 2026 \N{SNOWMAN}."},
        {"role": "user", "content": [{"type": "text", "text": "What is this? " * 50}]},
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}},
        ]},
        {"role": "tool", "tool_call_id": "c", "content": "an answer"},
    ],
    "a picture": [{"role": "user", "content": [{"type": "text", "text": "look"}, PICTURE]}],
    "a file": [{"role": "user", "content": [{"type": "file", "file": {"file_data": "AAAA"}}]}],
}  # fmt: skip


def saying(prompt: int, completion: int) -> Any:
    """An upstream that answers one word, and that it was so many tokens."""
    choices = [{"message": {"content": "c"}, "finish_reason": "stop", "index": 0}]
    body = {"choices": choices, "usage": usage(prompt, completion)}
    return lambda connection, _head, _body: respond(connection, body)


def ask(proxied: Proxied, **more: Any) -> Any:
    """A call, made once."""
    client = proxied.openai(max_retries=0)
    arguments = {"model": "m", "messages": MESSAGES, "max_tokens": MAX_OUTPUT, **more}
    return client.chat.completions.create(**arguments)


@pytest.mark.parametrize(
    ("engine", "member", "value"),
    [
        ("other", "frequency_penalty", 0.3),
        ("llama.cpp", "repeat_penalty", 1.3),
        ("vllm", "repetition_penalty", 1.3),
    ],
)
def test_from_a_threshold_on_the_model_samples_as_advised(
    engine: str, member: str, value: float
) -> None:
    advice = {"temperature": 0.2, "repetition_penalty": 1.3}
    threshold = {"percent": 1, "verdict": "warn", "advice": advice}
    budgets = [{"unit": "tokens", "limit": 10_000, "thresholds": [threshold]}]
    with (
        RawUpstream(saying(200, 3)) as upstream,
        Proxied(upstream.url, budgets=budgets, upstream_settings={"engine": engine}) as proxied,
    ):
        for _ in range(2):
            ask(proxied, temperature=0.9)
        proxied.anthropic().messages.create(model="m", messages=MESSAGES, max_tokens=9)
        calls = [
            json.loads(body)
            for head, body in upstream.requests
            if head.startswith(("POST /v1/chat/completions ", "POST /v1/messages "))
        ]
    before, after, of_anthropic = calls
    assert before["temperature"] == 0.9
    assert member not in before
    assert after["temperature"] == 0.2
    assert after[member] == value
    assert "penalty" not in " ".join(of_anthropic), "its interface has no such member"


def test_a_rolling_budget_of_seconds_is_a_bound_on_speed_that_clients_wait_for() -> None:
    budgets = [{"unit": "tokens", "limit": 20, "period": "rolling:2s"}]
    with (
        RawUpstream(saying(9, 9)) as upstream,
        Proxied(upstream.url, budgets=budgets) as proxied,
    ):
        ask(proxied)
        with pytest.raises(openai.RateLimitError) as raised:
            ask(proxied)
        assert raised.value.code == "rate_limit_exceeded"
        headers = raised.value.response.headers
        assert (headers["retry-after"], headers["x-should-retry"]) == ("2", "true")
        began = time.monotonic()
        patient = proxied.openai(max_retries=2)
        patient.chat.completions.create(model="m", messages=MESSAGES, max_tokens=MAX_OUTPUT)
        assert 0.5 < time.monotonic() - began < 8
        with pytest.raises(openai.APIStatusError) as hopeless:
            ask(proxied, messages=[{"role": "user", "content": "hello " * 30}])
        assert hopeless.value.status_code == 402, "it never fits, however long one waits"


@pytest.mark.parametrize("period", ["rolling:61s", "hour", "day", "total"])
def test_a_budget_of_more_than_a_minute_is_none(period: str) -> None:
    budgets = [{"unit": "tokens", "limit": 20, "period": period}]
    with (
        RawUpstream(saying(9, 9)) as upstream,
        Proxied(upstream.url, budgets=budgets) as proxied,
    ):
        ask(proxied)
        with pytest.raises(openai.APIStatusError) as raised:
            ask(proxied)
    assert (raised.value.status_code, raised.value.code) == (402, "budget_exceeded")
    assert "retry-after" not in raised.value.response.headers


def test_an_account_that_is_stopped_for_its_velocity_is_told_when_to_come_again() -> None:
    runaway = {"action": "stop", "velocity": 1, "interval": "30s"}
    budgets = [{"unit": "tokens", "limit": 1_000, "period": "day"}]
    with (
        RawUpstream(saying(300, 3)) as upstream,
        Proxied(upstream.url, budgets=budgets, runaway=runaway) as proxied,
    ):
        ask(proxied)
        with pytest.raises(openai.RateLimitError, match="has run away: velocity: 303") as raised:
            ask(proxied)
        assert 1 <= int(raised.value.response.headers["retry-after"]) <= 30
        assert raised.value.response.headers["x-budget-account"] == ACCOUNT


def test_an_agent_that_asks_the_same_again_and_again_is_stopped_by_name() -> None:
    runaway = {"action": "stop", "repeats": 3, "interval": "30s"}
    with (
        RawUpstream(saying(9, 3)) as upstream,
        Proxied(upstream.url, budgets=tokens(100_000), runaway=runaway) as proxied,
    ):
        client = proxied.openai(max_retries=0)

        def ask_for(prompt: Any) -> None:
            client.completions.create(model="m", prompt=prompt, max_tokens=5)

        for number in range(3):
            ask_for(f"what is {number}?")
            ask_for([1, 2, number])
        for _ in range(3):
            ask_for("what is love?")
        with pytest.raises(openai.APIStatusError, match="has run away: repeats: 4 times") as raised:
            ask_for("what is love?")
        assert raised.value.status_code == 402
        assert len(upstream.requests) == 9


@pytest.mark.parametrize("tokenizer", ["o200k_base", "cl100k_base", None])
def test_a_prompt_is_held_for_as_the_sdk_counts_it(tokenizer: str | None) -> None:
    """Goal: one definition. Method: what is held while the upstream has not answered yet."""
    held: list[int] = []
    answer = saying(9, 3)

    def look(connection: socket.socket, head: str, body: bytes) -> None:
        held.append(ledger.get_account(ACCOUNT).balances[0].held)
        answer(connection, head, body)

    model = {"name": "m", "output_nanos_per_million": 1, "tokenizer": tokenizer}
    rates = {"models": [{key: value for key, value in model.items() if value is not None}]}
    with (
        RawUpstream(look) as upstream,
        Proxied(upstream.url, budgets=tokens(100_000), rates=rates) as proxied,
        proxied.client() as ledger,
    ):
        for prompt in PROMPTS.values():
            for tools in ({}, {"tools": [TOOL]}):
                ask(proxied, messages=prompt, **tools)
                settled(ledger)
    sent = [json.loads(body) for _, body in upstream.requests]
    counted = [
        count_prompt_tokens(one["messages"], tools=one.get("tools", []), tokenizer=tokenizer).count
        for one in sent
    ]
    assert held == [count + MAX_OUTPUT for count in counted]
    assert len(set(counted)) == len(counted)
