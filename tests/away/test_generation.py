"""A sidecar that is killed in the middle of a generation: what the adapters do."""

import asyncio
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.away import told, wait_for, wait_until_told
from support.daemon import Daemon, balance

import bursar
from bursar import FailOpen, Verdict
from bursar.middleware import BUDGET_EXHAUSTED, AsyncGeneration, Generation, Policy

LIMIT = 10_000
OPEN = FailOpen({"tokens": 300})
POLICIES = pytest.mark.parametrize("when_away", [None, OPEN], ids=["fail closed", "fail open"])


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    with Daemon() as one:
        with one.client() as client:
            client.set_budget("acme", unit="tokens", limit=LIMIT)
        yield one


@pytest.fixture(scope="module")
def llama() -> Iterator[Any]:
    """A llama.cpp server on the tiny model."""
    pytest.importorskip("xllamacpp", reason="the extra xllamacpp is not installed")
    pytest.importorskip("gguf", reason="gguf writes the model; it is not installed")
    from support import llama

    folder = Path(tempfile.mkdtemp(prefix="bursar-llama-"))
    try:
        yield llama.start(folder)
    finally:
        shutil.rmtree(folder)


def generate_for_ever(generation: Generation, daemon: Daemon) -> None:
    with generation:
        generation.on_prompt(10, max_new_tokens=5_000)
        daemon.kill9()
        while True:
            generation.on_step()


@POLICIES
def test_a_generation_ends_within_its_grant_and_is_told_later(
    daemon: Daemon, when_away: FailOpen | None
) -> None:
    with bursar.connect(daemon.target, timeout_s=1, attempts=2, when_away=when_away) as client:
        with Generation(client, "acme") as generation:
            assert generation.on_prompt(10, max_new_tokens=50) == 50
            for step in range(50):
                if step == 20:
                    daemon.kill9()
                assert generation.on_step() is not Verdict.STOP
            assert generation.on_end("length") == "length"
        after = Generation(client, "acme")
        if when_away is None:
            with pytest.raises(bursar.SidecarUnavailable, match="fail_closed"):
                after.on_prompt(10, max_new_tokens=50)
            spent = 60
        else:  # what is left of the grant cuts it, at the exact token
            with after:
                assert after.on_prompt(10, max_new_tokens=500) == 290
                while after.on_step() is not Verdict.STOP:
                    pass
                assert after.on_end("length") == BUDGET_EXHAUSTED
                assert after.used == 290
            spent = 360
        daemon.start()
        wait_for(lambda: told(client))
        assert balance(client, "acme") == (0, spent, LIMIT - spent)


@pytest.mark.parametrize("first_grant", [1, 30])
def test_a_grant_that_cannot_be_raised_any_more(daemon: Daemon, first_grant: int) -> None:
    """Fail closed: an error, and what was generated is settled. Fail open: cut where it ends."""
    policy = Policy(first_grant=first_grant)
    with bursar.connect(daemon.target, timeout_s=1, attempts=2, when_away=OPEN) as client:
        with Generation(client, "acme", policy=policy) as generation:
            generation.on_prompt(10, max_new_tokens=5_000)
            generation.on_step()
            daemon.kill9()
            while generation.on_step() is not Verdict.STOP:
                pass
            assert generation.on_end("length") == BUDGET_EXHAUSTED
            cut = 10 + generation.used
        daemon.start()
        wait_for(lambda: told(client))
        assert balance(client, "acme") == (0, cut, LIMIT - cut)
    with bursar.connect(daemon.target, timeout_s=1, attempts=2) as client:
        generation = Generation(client, "acme", policy=policy)
        with pytest.raises(bursar.SidecarUnavailable):
            generate_for_ever(generation, daemon)
        daemon.start()
        wait_for(lambda: told(client))
        cut += 10 + generation.used
        assert balance(client, "acme") == (0, cut, LIMIT - cut)


@POLICIES
def test_a_generation_on_an_event_loop(daemon: Daemon, when_away: FailOpen | None) -> None:
    async def run() -> None:
        async with bursar.connect_async(
            daemon.target, timeout_s=1, attempts=2, when_away=when_away
        ) as client:
            async with AsyncGeneration(client, "acme") as generation:
                await generation.on_prompt(10, max_new_tokens=50)
                daemon.kill9()
                for _ in range(50):
                    assert await generation.on_step() is not Verdict.STOP
                assert await generation.on_end("length") == "length"
            spent = 60
            after = AsyncGeneration(client, "acme")
            if when_away is None:
                with pytest.raises(bursar.SidecarUnavailable, match="fail_closed"):
                    await after.on_prompt(10, max_new_tokens=50)
            else:
                async with after:
                    assert await after.on_prompt(10, max_new_tokens=500) == 290
                    while await after.on_step() is not Verdict.STOP:
                        pass
                    assert await after.on_end("length") == BUDGET_EXHAUSTED
                spent = 360
            await asyncio.to_thread(daemon.start)
            await wait_until_told(client)
            [window] = (await client.get_account("acme")).balances
            assert (window.held, window.spent) == (0, spent)

    asyncio.run(run())


@POLICIES
def test_llama_cpp_goes_on_within_its_grant(
    daemon: Daemon, llama: Any, when_away: FailOpen | None
) -> None:
    from bursar.middleware.xllamacpp import BudgetedServer

    with bursar.connect(daemon.target, timeout_s=1, attempts=2, when_away=when_away) as client:
        server = BudgetedServer(llama, client=client, account="acme")
        chunks: list[dict[str, Any]] = []

        def take(chunk: dict[str, Any]) -> None:
            chunks.append(chunk)
            if len(chunks) == 3:
                daemon.kill9()

        asked = {
            "messages": [{"role": "user", "content": "hello"}],
            "stream": True,
            "ignore_eos": True,
            "max_tokens": 50,
            "stream_options": {"include_usage": True},
        }
        server.handle_chat_completions(asked, take)
        usage = chunks[-1]["usage"]
        assert usage["completion_tokens"] == 50
        spent = usage["total_tokens"]
        more: list[dict[str, Any]] = []
        if when_away is None:
            with pytest.raises(bursar.SidecarUnavailable, match="fail_closed"):
                server.handle_chat_completions(asked, more.append)
            assert more == []
        else:
            server.handle_chat_completions(asked | {"max_tokens": 900}, more.append)
            assert more[-2]["choices"][0]["finish_reason"] == BUDGET_EXHAUSTED
            assert more[-1]["usage"]["total_tokens"] == 300
            spent += 300
        daemon.start()
        wait_for(lambda: told(client))
        assert balance(client, "acme") == (0, spent, LIMIT - spent)
