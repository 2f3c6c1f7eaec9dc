"""Anthropic's own client against the proxy, in front of a real engine."""

from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
from support.proxied import ACCOUNT, NOTICE, Proxied, settled, tokens

MESSAGES: Any = [{"role": "user", "content": "hello"}]
# Greedy: this interface of the engine heeds the end of a text, which chance would bring.
CALL: Any = {"model": "m", "messages": MESSAGES, "extra_body": {"temperature": 0}}


@pytest.fixture(scope="module")
def ample(llama: str) -> Iterator[Proxied]:
    """A proxy with a budget that no test uses up."""
    settings = {"engine": "llama.cpp"}
    with Proxied(llama, budgets=tokens(10_000_000), upstream_settings=settings) as proxied:
        yield proxied


def prompt_tokens(ample: Proxied) -> int:
    """What the engine itself counts for the prompt; the proxy passes the question on."""
    counted = ample.anthropic().messages.count_tokens(model="m", messages=MESSAGES)
    return counted.input_tokens


def test_a_message_is_charged_as_the_engine_counts_it(ample: Proxied) -> None:
    with ample.client() as client:
        before = settled(client)
        message = ample.anthropic().messages.create(max_tokens=6, **CALL)
        assert message.stop_reason == "max_tokens"
        assert settled(client) - before == prompt_tokens(ample) + 6


def test_a_stream_is_charged_as_the_engine_counts_it(ample: Proxied) -> None:
    with ample.client() as client:
        before = settled(client)
        with ample.anthropic().messages.stream(max_tokens=6, **CALL) as stream:
            message = stream.get_final_message()
        assert message.usage.output_tokens == 6
        assert NOTICE not in str(message.content)
        assert settled(client) - before == prompt_tokens(ample) + 6


@pytest.mark.parametrize("way", ["whole", "streamed"])
def test_at_a_limit_a_message_has_exactly_the_tokens_that_are_left_and_the_notice(
    llama: str, ample: Proxied, way: str
) -> None:
    limit = prompt_tokens(ample) + 5
    settings = {"engine": "llama.cpp"}
    with Proxied(llama, budgets=tokens(limit), upstream_settings=settings) as proxied:
        client = proxied.anthropic()
        if way == "streamed":
            with client.messages.stream(max_tokens=500, **CALL) as events:
                message: Any = events.get_final_message()
        else:
            message = client.messages.create(max_tokens=500, **CALL)
        assert message.stop_reason == "max_tokens"
        assert message.usage.output_tokens == 5
        assert message.content[-1].text == NOTICE
        with proxied.client() as ledger:
            assert settled(ledger) == limit


def test_a_message_is_cut_in_the_middle_when_its_account_is_frozen(llama: str) -> None:
    settings = {"engine": "llama.cpp"}
    with (
        Proxied(llama, budgets=tokens(100_000), upstream_settings=settings) as proxied,
        proxied.client() as ledger,
    ):
        with proxied.anthropic().messages.stream(max_tokens=1900, **CALL) as stream:
            for event in stream:
                if event.type == "text":
                    break
            ledger.freeze(ACCOUNT, reason="a test")
            message = stream.get_final_message()
        assert message.stop_reason == "max_tokens"
        assert message.content[-1].text.endswith(NOTICE)  # type: ignore[union-attr]
        assert settled(ledger) < 1900


def test_a_denial_is_one_request_in_the_shape_that_the_client_knows(llama: str) -> None:
    with Proxied(llama, budgets=tokens(3)) as proxied:
        with pytest.raises(anthropic.APIStatusError) as raised:
            proxied.anthropic(max_retries=3).messages.create(max_tokens=5, **CALL)
        assert raised.value.status_code == 402
        body: Any = raised.value.body
        assert body["type"] == "error"
        assert body["error"]["type"] == "billing_error"
        assert ACCOUNT in body["error"]["message"]
