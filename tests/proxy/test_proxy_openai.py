"""OpenAI's own client against the proxy, in front of a real engine."""

import asyncio
import random
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from support.daemon import new_seed
from support.proxied import ACCOUNT, NOTICE, Proxied, settled, tokens

MESSAGES: Any = [{"role": "user", "content": "hello"}]
GO_ON = {"ignore_eos": True}
LIMIT = 100_000


@pytest.fixture(scope="module")
def ample(llama: str) -> Iterator[Proxied]:
    """A proxy with a budget that no test uses up."""
    settings = {"engine": "llama.cpp"}
    with Proxied(llama, budgets=tokens(10_000_000), upstream_settings=settings) as proxied:
        yield proxied


def direct(llama: str) -> openai.OpenAI:
    """A client of the engine itself."""
    return openai.OpenAI(base_url=f"{llama}/v1", api_key="x")


def prompt_tokens(llama: str) -> int:
    """What the engine itself counts for the prompt."""
    with direct(llama) as client:
        answer = client.chat.completions.create(model="m", messages=MESSAGES, max_tokens=1)
    assert answer.usage is not None
    return answer.usage.prompt_tokens


def stream_text(client: openai.OpenAI, **arguments: Any) -> tuple[str, list[Any]]:
    """The text of a streamed chat completion, and its chunks."""
    arguments = {"model": "m", "messages": MESSAGES, "extra_body": GO_ON, **arguments}
    chunks = list(client.chat.completions.create(stream=True, **arguments))
    parts = [one.choices[0].delta.content or "" for one in chunks if one.choices]
    return "".join(parts), chunks


def test_an_answer_is_charged_as_the_engine_counts_it(ample: Proxied) -> None:
    with ample.client() as client:
        before = settled(client)
        answer = ample.openai().chat.completions.create(
            model="m", messages=MESSAGES, max_tokens=7, extra_body=GO_ON
        )
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 7
        assert NOTICE not in (answer.choices[0].message.content or "")
        assert settled(client) - before == answer.usage.total_tokens


def test_a_stream_is_charged_as_the_engine_counts_it_and_looks_as_without_a_proxy(
    ample: Proxied, llama: str
) -> None:
    arguments = {"max_tokens": 9, "temperature": 0, "extra_body": {**GO_ON, "cache_prompt": False}}
    with direct(llama) as plainly:
        text, plain = stream_text(plainly, **arguments)
    with ample.client() as client:
        before = settled(client)
        same, chunks = stream_text(ample.openai(), **arguments)
        spent = settled(client) - before
    assert same == text
    # The engine tells its timings where the usage is, which the proxy asks for and keeps.
    members = [
        [sorted({*one.model_dump()} - {"timings"}) for one in two] for two in (chunks, plain)
    ]
    assert members[0] == members[1]
    assert all(one.usage is None for one in chunks)
    assert spent == prompt_tokens(llama) + 9


def test_the_usage_chunk_comes_only_to_those_who_ask(ample: Proxied) -> None:
    _, chunks = stream_text(ample.openai(), max_tokens=3, stream_options={"include_usage": True})
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 3


@pytest.mark.parametrize("k", [1, 2, 17])
def test_at_a_limit_a_stream_has_exactly_the_tokens_that_are_left_and_the_notice(
    llama: str, k: int
) -> None:
    limit = prompt_tokens(llama) + k
    settings = {"engine": "llama.cpp"}
    with Proxied(llama, budgets=tokens(limit), upstream_settings=settings) as proxied:
        _, chunks = stream_text(
            proxied.openai(), max_tokens=500, stream_options={"include_usage": True}
        )
        with proxied.client() as client:
            assert settled(client) == limit
    finish = [one.choices[0].finish_reason for one in chunks if one.choices]
    assert finish[-1] == "length"
    said = [one.choices[0].delta.content for one in chunks if one.choices]
    assert said[-2] == NOTICE
    assert chunks[-1].usage.completion_tokens == k


def test_at_a_limit_a_whole_answer_has_exactly_the_tokens_that_are_left_and_the_notice(
    llama: str,
) -> None:
    limit = prompt_tokens(llama) + 5
    settings = {"engine": "llama.cpp"}
    with Proxied(llama, budgets=tokens(limit), upstream_settings=settings) as proxied:
        answer = proxied.openai().chat.completions.create(
            model="m", messages=MESSAGES, extra_body=GO_ON
        )
        assert (answer.choices[0].message.content or "").endswith(NOTICE)
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 5
        with proxied.client() as client:
            assert settled(client) == limit


def test_a_denial_is_one_request_and_names_account_unit_and_reset(llama: str) -> None:
    budgets = [{"unit": "tokens", "limit": 3, "period": "day"}]
    with Proxied(llama, budgets=budgets) as proxied:
        client = proxied.openai(max_retries=4)
        started = time.monotonic()
        with pytest.raises(openai.APIStatusError) as raised:
            client.chat.completions.create(model="m", messages=MESSAGES)
        assert time.monotonic() - started < 0.4, "it was tried again"
    assert raised.value.status_code == 402
    assert raised.value.code == "budget_exceeded"
    assert raised.value.type == "insufficient_quota"
    for part in (ACCOUNT, "tokens", "T00:00:00Z"):
        assert part in raised.value.message
    assert raised.value.response.headers["x-should-retry"] == "false"
    assert raised.value.response.headers["x-budget-account"] == ACCOUNT


def test_a_frozen_account_is_denied_and_a_running_stream_stopped(llama: str) -> None:
    settings = {"engine": "llama.cpp"}
    with (
        Proxied(llama, budgets=tokens(LIMIT), upstream_settings=settings) as proxied,
        proxied.client() as client,
    ):
        stream = proxied.openai().chat.completions.create(
            model="m", messages=MESSAGES, stream=True, max_tokens=1900, extra_body=GO_ON
        )
        next(iter(stream))
        client.freeze(ACCOUNT, reason="a test")
        rest = [one for one in stream if one.choices]
        assert rest[-1].choices[0].finish_reason == "length"
        assert rest[-2].choices[0].delta.content == NOTICE
        assert settled(client) < prompt_tokens(llama) + 1900
        with pytest.raises(openai.APIStatusError) as raised:
            proxied.openai().chat.completions.create(model="m", messages=MESSAGES)
        assert (raised.value.status_code, raised.value.code) == (402, "account_frozen")


def test_an_account_that_is_not_configured_is_not_found(ample: Proxied) -> None:
    with pytest.raises(openai.NotFoundError, match="other"):
        ample.openai("other/agent").chat.completions.create(model="m", messages=MESSAGES)


def test_a_model_without_a_price_is_refused_in_words(llama: str) -> None:
    rates = {"models": [{"name": "priced", "output_nanos_per_million": 1}]}
    with Proxied(llama, rates=rates) as proxied:
        with pytest.raises(openai.BadRequestError, match="no price for model"):
            proxied.openai().chat.completions.create(model="m", messages=MESSAGES)
        assert (
            proxied.openai()
            .chat.completions.create(model="priced", messages=MESSAGES, max_tokens=2)
            .choices
        )


def test_tools_pass_through(ample: Proxied, llama: str) -> None:
    function = {"name": "f", "parameters": {"type": "object", "properties": {}}}
    arguments: Any = {
        "model": "m", "messages": MESSAGES, "max_tokens": 12, "temperature": 0,
        "tools": [{"type": "function", "function": function}], "tool_choice": "required",
    }  # fmt: skip

    def outcome(client: openai.OpenAI) -> Any:
        try:
            return client.chat.completions.create(**arguments).choices[0].message
        except openai.APIStatusError as error:
            return error.status_code, error.body

    with direct(llama) as plainly:
        assert outcome(ample.openai()) == outcome(plainly)


def test_completions_and_models_pass(ample: Proxied) -> None:
    client = ample.openai()
    with ample.client() as ledger:
        before = settled(ledger)
        done = client.completions.create(model="m", prompt="hello", max_tokens=4, extra_body=GO_ON)
        assert done.usage is not None
        assert settled(ledger) - before == done.usage.total_tokens
        before = settled(ledger)
        list(
            client.completions.create(
                model="m", prompt="hello", max_tokens=4, extra_body=GO_ON, stream=True
            )
        )
        assert settled(ledger) - before == done.usage.total_tokens
    assert client.models.list().data


def test_responses_stream_and_whole_are_charged(ample: Proxied) -> None:
    client = ample.openai()
    with ample.client() as ledger:
        before = settled(ledger)
        answer = client.responses.create(
            model="m", input="hello", max_output_tokens=4, extra_body=GO_ON
        )
        assert answer.usage is not None
        assert settled(ledger) - before == answer.usage.total_tokens
        before = settled(ledger)
        events = list(
            client.responses.create(
                model="m", input="hello", max_output_tokens=4, extra_body=GO_ON, stream=True
            )
        )
        assert events[-1].type == "response.completed"
        assert settled(ledger) - before == answer.usage.total_tokens


def test_a_cut_response_ends_incomplete_with_the_notice(llama: str) -> None:
    limit = prompt_tokens(llama) + 6
    settings = {"engine": "llama.cpp"}
    for stream in (False, True):
        with Proxied(llama, budgets=tokens(limit), upstream_settings=settings) as proxied:
            answer: Any = proxied.openai().responses.create(
                model="m", input="hello", extra_body=GO_ON, stream=stream
            )
            if stream:
                answer = list(answer)[-1].response
            assert answer.status == "incomplete"
            assert answer.output_text.endswith(NOTICE)
            with proxied.client() as client:
                assert settled(client) == limit


def test_who_hangs_up_pays_what_was_sent(ample: Proxied, llama: str) -> None:
    seed = new_seed()
    print(f"seed {seed}")
    chance = random.Random(seed)
    prompt = prompt_tokens(llama)
    with ample.client() as ledger:
        for _ in range(8):
            before, wanted = settled(ledger), chance.randrange(1, 60)
            stream = ample.openai().chat.completions.create(
                model="m", messages=MESSAGES, stream=True, max_tokens=1900, extra_body=GO_ON
            )
            seen = 0
            for one in stream:
                seen += bool(one.choices and one.choices[0].delta.content)
                if seen >= wanted:
                    break
            stream.close()
            spent = settled(ledger) - before
            assert prompt + wanted <= spent < prompt + 1900


async def received(client: openai.AsyncOpenAI) -> int:
    """The tokens that a stream told; 0 where it was refused for want of budget."""
    try:
        stream = await client.chat.completions.create(
            model="m", messages=MESSAGES, stream=True, max_tokens=40, extra_body=GO_ON,
            stream_options={"include_usage": True},
        )  # fmt: skip
    except openai.APIStatusError as error:
        assert error.status_code == 402
        return 0
    last = None
    async for chunk in stream:
        last = chunk
    assert last is not None
    assert last.usage is not None
    return last.usage.total_tokens


@pytest.mark.timeout(120)
def test_fifty_streams_on_one_budget_never_pass_it_and_pay_what_they_got(llama: str) -> None:
    """Goal: no overshoot, and spent = received.

    Method: 50 streams at once on a budget for about a third of what they want.
    """
    limit = 50 * prompt_tokens(llama) // 2 + 400
    settings = {"engine": "llama.cpp"}

    async def all_at_once() -> list[int]:
        async with proxied.openai_async() as client:
            return await asyncio.gather(*(received(client) for _ in range(50)))

    with Proxied(llama, budgets=tokens(limit), upstream_settings=settings) as proxied:
        got = asyncio.run(all_at_once())
        with proxied.client() as client:
            spent = settled(client)
    assert 0 < spent <= limit
    assert sum(got) == spent


@pytest.mark.timeout(180)
def test_64_agents_of_one_department_never_pass_its_budget(llama: str) -> None:
    """Goal: spent ≤ limit at any time, and what the agents received = spent.

    Method: 64 agents, each an account of its own below the department, ask until they are refused;
    meanwhile the department's balance is read.
    """
    limit = 64 * (prompt_tokens(llama) + 20)
    settings = {"engine": "llama.cpp"}

    async def agent(number: int) -> int:
        sum_received = 0
        async with proxied.openai_async(f"{ACCOUNT}/agent-{number}", max_retries=0) as client:
            while True:
                got = await received(client)
                sum_received += got
                if got == 0:
                    return sum_received

    async def watch(worst: list[int]) -> None:
        with proxied.client() as ledger:
            while True:
                [one] = ledger.get_account(ACCOUNT).balances
                worst.append(max(worst[-1], one.spent + one.held))
                await asyncio.sleep(0.02)

    async def all_at_once(worst: list[int]) -> list[int]:
        watching = asyncio.create_task(watch(worst))
        got = await asyncio.gather(*(agent(number) for number in range(64)))
        watching.cancel()
        return got

    with Proxied(llama, budgets=tokens(limit), upstream_settings=settings) as proxied:
        worst = [0]
        got = asyncio.run(all_at_once(worst))
        with proxied.client() as client:
            spent = settled(client)
    assert limit - prompt_tokens(llama) - 1 <= spent <= limit
    assert worst[-1] <= limit
    assert sum(got) == spent


def test_a_soft_limit_moves_calls_to_the_fallback_model_and_says_so(llama: str) -> None:
    threshold = {"percent": 1, "verdict": "degrade", "advice": {"fallback_model": "small"}}
    budgets = [{"unit": "usd_nanos", "limit": 1_000_000, "thresholds": [threshold]}]
    rates = {
        "models": [
            {"name": "large", "output_nanos_per_million": 2_000_000_000},
            {"name": "small", "output_nanos_per_million": 1_000_000_000},
        ]
    }
    context = {"small": 200}
    with (
        Proxied(llama, budgets=budgets, rates=rates, context_tokens=context) as proxied,
        proxied.client() as ledger,
    ):

        def ask(max_tokens: int = 10, **more: Any) -> tuple[str, str, int]:
            before = settled(ledger)
            raw = proxied.openai().chat.completions.with_raw_response.create(
                model="large", messages=MESSAGES, max_tokens=max_tokens, extra_body=GO_ON, **more
            )
            headers = raw.headers
            spent = settled(ledger) - before
            return headers["x-bursar-model"], headers["x-bursar-verdict"], spent

        assert ask() == ("large", "ok", 20_000)
        assert ask() == ("small", "degrade", 10_000)
        function = {"name": "f", "parameters": {"type": "object", "properties": {}}}
        with_tools = ask(tools=[{"type": "function", "function": function}])
        assert with_tools[0] == "large"
        assert ask(max_tokens=250)[0] == "large", "the fallback has no room for it"


def test_header_and_default_name_the_account_too(llama: str) -> None:
    with Proxied(llama, default_account="acme/default") as proxied, proxied.client() as client:
        with openai.OpenAI(base_url=f"{proxied.url}/v1", api_key="x") as unnamed:
            for headers in ({"x-bursar-account": "acme/named"}, {}):
                unnamed.chat.completions.create(
                    model="m", messages=MESSAGES, max_tokens=1, extra_headers=headers
                )
        paths = {one.account for one in client.list_entries()}
        assert {"acme/named", "acme/default"} <= paths
