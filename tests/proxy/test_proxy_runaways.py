"""Agents that have lost their way through the proxy are stopped by name, at the exact bound."""

import socket
from typing import Any, Final

import openai
import pytest
from support.proxied import ACCOUNT, Proxied, tokens
from support.upstreams import RawUpstream, respond, usage

from bursar import Client

LIMIT: Final = 100_000
BODY: Final[dict[str, Any]] = {
    "choices": [{"text": "c", "finish_reason": "stop", "index": 0}],
    "usage": usage(9, 3),
}


def ask(client: openai.OpenAI, prompt: str, parent: str = "") -> None:
    headers = {"x-bursar-parent": parent} if parent else {}
    client.completions.create(model="m", prompt=prompt, max_tokens=5, extra_headers=headers)


def test_an_agent_that_calls_itself_is_stopped_by_its_depth() -> None:
    """Each level holds what it may spend, asks the model, and hands the rest on to itself."""
    runaway = {"action": "stop", "depth": 4}

    def agent(level: int, parent: str | None) -> None:
        levels.append(level)
        with ledger.reserve(ACCOUNT, tokens=1_000 - 100 * level, parent=parent) as held:
            ask(client, f"level {level}", held.id)
            agent(level + 1, held.id)

    levels: list[int] = []
    with (
        RawUpstream(lambda c, _h, _b: respond(c, BODY)) as upstream,
        Proxied(upstream.url, budgets=tokens(LIMIT), runaway=runaway) as proxied,
        proxied.client() as ledger,
    ):
        client = proxied.openai(max_retries=0)
        with pytest.raises(openai.APIStatusError, match="has run away: depth") as raised:
            agent(1, None)
        assert raised.value.status_code == 402
        assert levels == [1, 2, 3, 4]
        assert len(upstream.requests) == 3
        assert ledger.get_account(ACCOUNT).open_reservation_count == 0, "no hold is left"


def test_an_agent_that_calls_itself_and_tells_nobody_is_stopped_by_its_open_calls() -> None:
    """The upstream is an agent that asks the same proxy before it answers."""
    runaway = {"action": "stop", "open_reservations": 5}
    found: list[str] = []

    def answer(connection: socket.socket, _head: str, _body: bytes) -> None:
        try:
            ask(client, f"deeper than {len(upstream.requests)}")
        except openai.APIStatusError as error:
            found.append(error.message)
        respond(connection, BODY)

    with (
        RawUpstream(answer) as upstream,
        Proxied(upstream.url, budgets=tokens(LIMIT), runaway=runaway) as proxied,
    ):
        client = proxied.openai(max_retries=0)
        ask(client, "begin")
        assert len(upstream.requests) == 5
        assert len(found) == 1
        assert "has run away: open_reservations" in found[0]


@pytest.fixture
def quiet() -> Any:
    with (
        RawUpstream(lambda c, _h, _b: respond(c, BODY)) as upstream,
        Proxied(upstream.url, budgets=tokens(LIMIT)) as proxied,
        proxied.client() as ledger,
    ):
        yield upstream, proxied.openai(max_retries=0), ledger


def test_a_call_is_paid_out_of_the_reservation_that_it_is_a_part_of(quiet: Any) -> None:
    _, client, ledger = quiet
    with ledger.reserve(ACCOUNT, tokens=500) as held:
        ask(client, "hello", held.id)
        [balance] = ledger.get_account(ACCOUNT).balances
        assert (balance.spent, balance.held) == (12, 488)
        with pytest.raises(openai.APIStatusError) as raised:
            ask(client, "x " * 9_000, held.id)
        assert raised.value.status_code == 402


@pytest.mark.parametrize("parent", ["another's", "ended", "none"])
def test_a_call_is_no_part_of_anothers_reservation(quiet: Any, parent: str) -> None:
    upstream, client, ledger = quiet
    name = _parent(ledger, parent)
    with pytest.raises(openai.APIStatusError) as raised:
        ask(client, "x", name)
    assert raised.value.status_code == (409 if parent == "ended" else 400)
    assert upstream.requests == []


def _parent(ledger: Client, which: str) -> str:
    if which == "another's":
        return ledger.reserve("acme/other", tokens=500).id
    if which == "ended":
        held = ledger.reserve(ACCOUNT, tokens=5)
        held.release()
        return held.id
    return which
