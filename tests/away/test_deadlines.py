"""A sidecar that takes calls and never answers: every method of both clients ends in time."""

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import pytest
from support.daemon import Daemon

import bursar
from bursar.access import AsyncTokens, Tokens
from bursar.lease import LeaseTerms

TIMEOUT_S: Final = 1.0
SLACK_S: Final = 7.0  # a lease waits 5 s for its daemon; the rest is a busy machine's
ARGUMENTS: Final[dict[str, dict[str, Any]]] = {
    "check": {"account": "acme", "tokens": 1},
    "commit": {"reservation": "r", "tokens": 1},
    "count_tokens": {"model": "gpt-4o", "text": "x"},
    "create": {"name": "x", "role": bursar.Role.AGENT, "ttl_s": 60.0},
    "debit": {"reservation": "r", "tokens": 1},
    "extend": {"reservation": "r", "tokens": 1},
    "freeze": {"account": "cold"},
    "get_account": {"account": "acme"},
    "get_reservation": {"reservation": "r"},
    "kill_process": {"job": "j"},
    "record": {"account": "cold", "tokens": 1},
    "register_process": {"account": "acme"},
    "release": {"reservation": "r"},
    "reserve": {"account": "acme", "tokens": 1},
    "retire_account": {"account": "cold"},
    "revoke": {"token_id": "t"},
    "set_budget": {"account": "cold", "unit": "tokens", "limit": 1},
    "unfreeze": {"account": "acme"},
}
"""Of methods that need some."""


def methods(*classes: type) -> list[str]:
    """Every public method but `close`, which has a test of its own."""
    found = [
        name
        for cls in classes
        for name, _ in inspect.getmembers(cls, inspect.isfunction)
        if not name.startswith("_") and name != "close"
    ]
    assert len(found) > 25
    return found


def arguments(name: str, reservation: str) -> dict[str, Any]:
    if name == "lease":
        terms = LeaseTerms(reservation, "tokens", None, ahead=1, at_most=None)
        return {"terms": terms, "granted": 5}
    return ARGUMENTS.get(name, {})


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with Daemon(in_memory=True) as one:
        yield one


def test_each_method_of_the_client_ends_in_time(daemon: Daemon) -> None:
    """All at once, each from a thread of its own."""
    names = methods(bursar.Client, Tokens)
    with daemon.client(timeout_s=TIMEOUT_S) as client:
        hold = client.reserve("acme", tokens=5)

        def call(name: str) -> float:
            started = time.monotonic()
            method = getattr(client, name, None) or getattr(client.tokens, name)
            with pytest.raises(bursar.SidecarError):
                next(method(**arguments(name, hold.id)))
            return time.monotonic() - started

        with ThreadPoolExecutor(len(names)) as threads, daemon.stopped():
            waiting = {name: threads.submit(call, name) for name in names}
            took_s = {name: future.result(timeout=40) for name, future in waiting.items()}
    assert {name: one for name, one in took_s.items() if one > TIMEOUT_S + SLACK_S} == {}


def test_each_method_of_the_asynchronous_client_ends_in_time(daemon: Daemon) -> None:
    names = methods(bursar.AsyncClient, AsyncTokens)

    async def run() -> dict[str, float]:
        async with daemon.client_async(timeout_s=TIMEOUT_S) as client:
            hold = await client.reserve("acme", tokens=5)

            async def call(name: str) -> float:
                started = time.monotonic()
                method = getattr(client, name, None) or getattr(client.tokens, name)
                answer = method(**arguments(name, hold.id))
                with pytest.raises(bursar.SidecarError):
                    await (anext(answer) if isinstance(answer, AsyncIterator) else answer)
                return time.monotonic() - started

            with daemon.stopped():
                took_s = await asyncio.wait_for(asyncio.gather(*map(call, names)), 40)
            return dict(zip(names, took_s, strict=True))

    took_s = asyncio.run(run())
    assert {name: one for name, one in took_s.items() if one > TIMEOUT_S + SLACK_S} == {}


def test_closing_and_leases_end_in_time(daemon: Daemon) -> None:
    client = daemon.client(timeout_s=TIMEOUT_S)
    hold = client.reserve("acme", tokens=5)
    lease = hold.lease(top_up=False)
    with daemon.stopped():
        started = time.monotonic()
        assert lease.debit(3) is bursar.Verdict.OK
        with pytest.raises(bursar.SidecarTimeout) as caught:
            hold.commit()
        assert caught.value.kept
        client.close()
        assert time.monotonic() - started < 3 * TIMEOUT_S + SLACK_S


def test_a_stream_that_is_open_ends_soon_after_its_sidecar_hangs(daemon: Daemon) -> None:
    with daemon.client(timeout_s=TIMEOUT_S) as client:
        watch = client.watch_accounts()
        next(watch)
        with daemon.stopped():
            started = time.monotonic()
            with pytest.raises(bursar.SidecarUnavailable):
                next(watch)
            assert time.monotonic() - started < 30
