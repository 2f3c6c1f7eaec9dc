"""OpenAI's client for Node against the proxy: it changes its base URL and nothing else."""

import json
import socket
from pathlib import Path
from typing import Any, Final

import pytest
from support import toolchains
from support.proxied import ACCOUNT, NOTICE, Proxied, settled, tokens
from support.toolchains import Workshop, result, started
from support.upstreams import RawUpstream, begin_stream, chunk, usage

pytestmark = pytest.mark.timeout(400)  # the first test fetches the client

AMPLE: Final = 10_000_000
LIMIT: Final = 200  # the prompt, and less than what is asked for


@pytest.fixture(scope="session")
def shop(project: Path) -> Workshop:
    return toolchains.node(project, "openai")


def ask(shop: Workshop, proxied: Proxied, mode: str) -> Any:
    """What the program saw."""
    command = ["node", str(shop.folder / "client.js"), mode, f"{proxied.url}/a/{ACCOUNT}/v1"]
    with started(command) as process:
        return result(process)


@pytest.mark.parametrize("mode", ["stream", "whole"])
def test_an_answer_at_its_limit_ends_as_one_that_its_length_has_ended(
    shop: Workshop, llama: str, mode: str
) -> None:
    settings = {"engine": "llama.cpp"}
    with (
        Proxied(llama, budgets=tokens(LIMIT), upstream_settings=settings) as proxied,
        proxied.client() as ledger,
    ):
        seen = ask(shop, proxied, mode)
        assert (seen["finish"], seen["requests"]) == ("length", 1)
        assert seen["text"].endswith(NOTICE)
        assert seen["usage"]["total_tokens"] == settled(ledger) == LIMIT
        assert seen.get("afterwards", 0) == 0, "the usage is the last chunk"


def test_responses_are_charged_as_the_engine_counts_them(shop: Workshop, llama: str) -> None:
    settings = {"engine": "llama.cpp"}
    with (
        Proxied(llama, budgets=tokens(AMPLE), upstream_settings=settings) as proxied,
        proxied.client() as ledger,
    ):
        seen = ask(shop, proxied, "responses")
        assert seen["status"] in {"completed", "incomplete"}
        assert seen["usage"]["total_tokens"] == settled(ledger) > 0


def test_streamed_tool_calls_arrive_whole_and_are_charged(shop: Workshop) -> None:
    """The engine's tiny model calls no tools, so that a socket says what OpenAI's service says."""
    name = [{"index": 0, "id": "c", "type": "function", "function": {"name": "look_up"}}]
    parts = ('{"na', 'me": ', '"x"}')
    said = [[{"index": 0, "function": {"arguments": part}}] for part in parts]

    def answer(connection: socket.socket, _head: str, body: bytes) -> None:
        assert json.loads(body)["tools"][0]["function"]["name"] == "look_up"
        begin_stream(connection)
        for calls in (name, *said):
            event = json.loads(chunk().removeprefix(b"data: "))
            event["choices"][0]["delta"] = {"role": "assistant", "tool_calls": calls}
            connection.sendall(b"data: " + json.dumps(event).encode() + b"\n\n")
        last = json.loads(chunk(usage=usage(30, 9)).removeprefix(b"data: "))
        last["choices"] = []
        connection.sendall(chunk(finish="tool_calls"))
        connection.sendall(b"data: " + json.dumps(last).encode() + b"\n\ndata: [DONE]\n\n")

    with (
        RawUpstream(answer) as upstream,
        Proxied(upstream.url, budgets=tokens(AMPLE)) as proxied,
        proxied.client() as ledger,
    ):
        seen = ask(shop, proxied, "tools")
        assert seen == {"name": "look_up", "arguments": '{"name": "x"}', "requests": 1}
        assert settled(ledger) == 39


@pytest.mark.parametrize("mode", ["stream", "whole", "responses"])
def test_a_denial_is_one_request_and_an_error_that_the_client_knows(
    shop: Workshop, llama: str, mode: str
) -> None:
    with Proxied(llama, budgets=tokens(3)) as proxied:
        seen = ask(shop, proxied, mode)
    assert (seen["status"], seen["code"]) == (402, "budget_exceeded")
    assert (seen["refused"], seen["type"]) == ("APIError", "insufficient_quota")
    assert (seen["account"], seen["requests"]) == (ACCOUNT, 1)
    assert ACCOUNT in seen["message"]
    assert "tokens" in seen["message"]
