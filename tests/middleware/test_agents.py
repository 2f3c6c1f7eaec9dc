"""The OpenAI Agents SDK and Pydantic AI over a real engine: refused, settled, cut, made cheaper."""

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest
from support import llama as engine
from support.daemon import balance
from support.upstreams import RawUpstream, wait

import bursar
from bursar import Advice, BudgetExceeded, Threshold, Verdict
from bursar.middleware import BUDGET_EXHAUSTED, Capability, Policy
from bursar.testing import Sidecar

UPSTREAMS: list[Any] = []
"""The clients of the engine that a test has opened; closed on the test's own loop."""
NOTICE = "the compute budget of acme/{} is exhausted.]"


def run(sidecar: Sidecar, body: Callable[[bursar.AsyncClient], Awaitable[Any]]) -> Any:
    async def main() -> Any:
        try:
            async with sidecar.client_async() as client:
                return await body(client)
        finally:
            while UPSTREAMS:
                await UPSTREAMS.pop().close()

    return asyncio.run(main())


def settled(sidecar: Sidecar, account: str) -> int:
    with sidecar.client() as client:
        held, spent, _ = balance(client, account)
    assert held == 0
    return spent


def open_upstream(llama: Any) -> Any:
    from openai import AsyncOpenAI

    url = f"{llama.listening_address}/v1"
    UPSTREAMS.append(AsyncOpenAI(base_url=url, api_key="none", max_retries=0))
    return UPSTREAMS[-1]


def sdk_agent(llama: Any, kind: str, client: bursar.AsyncClient, account: str, **more: Any) -> Any:
    """An agent of the Agents SDK whose model never ends by itself."""
    agents = pytest.importorskip("agents", reason="the extra openai-agents is not installed")

    from bursar.middleware.openai_agents import BudgetedModel

    agents.set_tracing_disabled(True)
    upstream = open_upstream(llama)
    model = getattr(agents, kind)(model="big", openai_client=upstream)
    budgeted = BudgetedModel(model, client=client, account=account, name="big", **more)
    settings = agents.ModelSettings(max_tokens=40, extra_body={"ignore_eos": True})
    return agents.Agent(name="helper", model=budgeted, model_settings=settings)


KINDS = ["OpenAIChatCompletionsModel", "OpenAIResponsesModel"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("streams", [False, True])
def test_a_run_of_the_agents_sdk_is_settled_at_the_engines_usage(
    llama: Any, sidecar: Sidecar, kind: str, *, streams: bool
) -> None:
    account = f"acme/sdk-{kind[6:10]}-{streams}"

    async def body(client: bursar.AsyncClient) -> Any:
        from agents import Runner

        await client.set_budget(account, unit="usd_nanos", limit=1_000_000)
        agent = sdk_agent(llama, kind, client, account)
        if not streams:
            return await Runner.run(agent, "hello")
        streaming = Runner.run_streamed(agent, "hello")
        async for _ in streaming.stream_events():
            pass
        return streaming

    used = run(sidecar, body).raw_responses[0].usage
    assert used.output_tokens == 40
    new = used.input_tokens - used.input_tokens_details.cached_tokens
    assert settled(sidecar, account) == (new + used.input_tokens_details.cached_tokens) * 10 + 800


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("streams", [False, True])
def test_a_run_of_the_agents_sdk_is_cut_and_then_refused(
    llama: Any, sidecar: Sidecar, kind: str, *, streams: bool
) -> None:
    name = f"cut-{kind[6:10]}-{streams}"
    account = f"acme/{name}"

    async def body(client: bursar.AsyncClient) -> Any:
        from agents import Runner

        await client.set_budget(account, unit="usd_nanos", limit=500)
        agent = sdk_agent(llama, kind, client, account)
        result: Any
        if streams:
            result = Runner.run_streamed(agent, "hello")
            async for _ in result.stream_events():
                pass
        else:
            result = await Runner.run(agent, "hello")
        await client.set_budget(account, unit="usd_nanos", limit=1)
        with pytest.raises(BudgetExceeded):
            await Runner.run(agent, "hello")
        return result

    result = run(sidecar, body)
    assert result.final_output.endswith(NOTICE.format(name))
    settled(sidecar, account)


def test_the_agents_sdk_goes_on_with_the_cheaper_model(llama: Any, sidecar: Sidecar) -> None:
    account = "acme/sdk-soft"

    async def body(client: bursar.AsyncClient) -> Any:
        from agents import Runner

        advice = Advice(fallback_model="small", max_new_tokens=7, temperature=0.125)
        soft = Threshold(500, Verdict.DEGRADE, advice)
        await client.set_budget(account, unit="usd_nanos", limit=100_000, thresholds=[soft])
        await client.record(account, amounts={"usd_nanos": 60_000})
        small = sdk_agent(llama, KINDS[0], client, account).model._model
        agent = sdk_agent(llama, KINDS[0], client, account, fallbacks={"small": small})
        return await Runner.run(agent, "hello")

    used = run(sidecar, body).raw_responses[0].usage
    assert used.output_tokens == 7
    assert settled(sidecar, account) == 60_000 + used.input_tokens + 14
    assert engine.slots(llama)[0]["params"]["temperature"] == 0.125


@pytest.mark.parametrize("needs", ["tools", "handoffs"])
@pytest.mark.parametrize("is_able", [False, True])
def test_the_agents_sdk_falls_back_only_to_a_model_that_takes_tools(
    llama: Any, sidecar: Sidecar, needs: str, *, is_able: bool
) -> None:
    account = f"acme/sdk-{needs}-{is_able}"

    async def body(client: bursar.AsyncClient) -> Any:
        import agents

        @agents.function_tool
        def search(word: str) -> str:
            """Looks a word up."""
            return word

        await soften(client, account)
        small = sdk_agent(llama, KINDS[0], client, account).model._model
        policy = Policy(capabilities={"small": Capability(tools=True)} if is_able else {})
        more = {"fallbacks": {"small": small}, "policy": policy}
        agent = sdk_agent(llama, KINDS[0], client, account, **more)
        other = sdk_agent(llama, KINDS[0], client, account)
        agent = agent.clone(**{needs: [search if needs == "tools" else other]})
        return await agents.Runner.run(agent, "hello")

    used = run(sidecar, body).raw_responses[0].usage
    each = (1, 2) if is_able else (10, 20)
    spent = used.input_tokens * each[0] + used.output_tokens * each[1]
    assert settled(sidecar, account) == 60_000 + spent


@pytest.mark.parametrize("is_able", [False, True])
def test_pydantic_ai_falls_back_only_to_a_model_that_takes_tools(
    llama: Any, sidecar: Sidecar, *, is_able: bool
) -> None:
    account = f"acme/pydantic-tools-{is_able}"

    async def body(client: bursar.AsyncClient) -> Any:
        await soften(client, account)
        small = pydantic_agent(llama, client, account).model
        policy = Policy(capabilities={"small": Capability(tools=True)} if is_able else {})
        agent = pydantic_agent(llama, client, account, fallbacks={"small": small}, policy=policy)

        @agent.tool_plain  # type: ignore[untyped-decorator, unused-ignore]
        def search(word: str) -> str:
            """Looks a word up."""
            return word

        return await ask(agent, streams=False)

    _, message = run(sidecar, body)
    each = (1, 2) if is_able else (10, 20)
    spent = message.usage.input_tokens * each[0] + message.usage.output_tokens * each[1]
    assert settled(sidecar, account) == 60_000 + spent


async def soften(client: bursar.AsyncClient, account: str) -> None:
    """Has a budget past its soft limit, which asks for the cheaper model."""
    soft = Threshold(500, Verdict.DEGRADE, Advice(fallback_model="small"))
    await client.set_budget(account, unit="usd_nanos", limit=100_000, thresholds=[soft])
    await client.record(account, amounts={"usd_nanos": 60_000})


def pydantic_agent(llama: Any, client: bursar.AsyncClient, account: str, **more: Any) -> Any:
    pydantic_ai = pytest.importorskip(
        "pydantic_ai", reason="the extra pydantic-ai is not installed"
    )
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    from bursar.middleware.pydantic_ai import BudgetCapability

    provider = OpenAIProvider(openai_client=open_upstream(llama))
    model = OpenAIChatModel("big", provider=provider)
    settings = {"max_tokens": 40, "extra_body": {"ignore_eos": True}}
    capability = BudgetCapability(client, account=account, **more)
    return pydantic_ai.Agent(model, capabilities=[capability], model_settings=settings)


async def ask(agent: Any, *, streams: bool) -> tuple[str, Any]:
    """The text and the last message of one run."""
    if not streams:
        result = await agent.run("hello")
        return result.output, result.all_messages()[-1]
    async with agent.run_stream("hello") as result:
        text = ""
        async for piece in result.stream_text(delta=True, debounce_by=None):
            text += piece
        return text, result.all_messages()[-1]


@pytest.mark.parametrize("streams", [False, True])
def test_a_run_of_pydantic_ai_is_settled_at_the_engines_usage(
    llama: Any, sidecar: Sidecar, *, streams: bool
) -> None:
    account = f"acme/pydantic-{streams}"

    async def body(client: bursar.AsyncClient) -> Any:
        await client.set_budget(account, unit="usd_nanos", limit=1_000_000)
        return await ask(pydantic_agent(llama, client, account), streams=streams)

    _, message = run(sidecar, body)
    assert message.usage.output_tokens == 40
    assert settled(sidecar, account) == message.usage.input_tokens * 10 + 800


@pytest.mark.parametrize("streams", [False, True])
def test_a_run_of_pydantic_ai_is_cut_and_then_refused(
    llama: Any, sidecar: Sidecar, *, streams: bool
) -> None:
    name = f"pydantic-cut-{streams}"

    async def body(client: bursar.AsyncClient) -> Any:
        await client.set_budget(f"acme/{name}", unit="usd_nanos", limit=500)
        agent = pydantic_agent(llama, client, f"acme/{name}")
        answer = await ask(agent, streams=streams)
        await client.set_budget(f"acme/{name}", unit="usd_nanos", limit=1)
        with pytest.raises(BudgetExceeded):
            await agent.run("hello")
        return answer

    text, message = run(sidecar, body)
    assert text.endswith(NOTICE.format(name))
    assert message.provider_details["finish_reason"] == BUDGET_EXHAUSTED
    settled(sidecar, f"acme/{name}")


def test_a_freeze_cuts_pydantic_ai_in_mid_stream(llama: Any, sidecar: Sidecar) -> None:
    account = "acme/pydantic-frozen"

    async def body(client: bursar.AsyncClient) -> str:
        await client.set_budget(account, unit="tokens", limit=1_000_000)
        policy = Policy(max_new_tokens=100_000)
        agent = pydantic_agent(llama, client, account, policy=policy)
        settings = {"max_tokens": 3000}
        text, pieces = "", 0
        async with agent.run_stream("hello", model_settings=settings) as result:
            async for piece in result.stream_text(delta=True, debounce_by=None):
                text += piece
                pieces += 1
                if pieces == 3:
                    await client.freeze(account, reason="a test")
        return text

    assert run(sidecar, body).endswith(NOTICE.format("pydantic-frozen"))
    assert settled(sidecar, account) < 3000


@pytest.mark.parametrize("kind", ["sdk", "pydantic", "langchain"])
def test_who_cancels_a_call_that_was_sent_pays_for_its_prompt(sidecar: Sidecar, kind: str) -> None:
    account = f"acme/{kind}-cancelled"

    async def body(client: bursar.AsyncClient) -> None:
        await client.set_budget(account, unit="usd_nanos", limit=100_000)
        with RawUpstream(lambda connection, _h, _b: wait(connection)) as silent:
            held = SimpleNamespace(listening_address=silent.url)
            if kind == "sdk":
                agents = pytest.importorskip("agents")
                call = agents.Runner.run(sdk_agent(held, KINDS[0], client, account), "hello")
            elif kind == "pydantic":
                call = pydantic_agent(held, client, account).run("hello")
            else:
                call = langchain_agent(sidecar, silent.url, account).ainvoke({"messages": "hello"})
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(call, 1)
            assert silent.requests
        for _ in range(500):  # its settlement outlives it
            if not (await client.get_account(account)).balances[0].held:
                break
            await asyncio.sleep(0.01)

    run(sidecar, body)
    # The big model costs 10 for a token of the prompt, and 20 for one that it makes.
    assert 0 < settled(sidecar, account) < 40 * 20


def langchain_agent(sidecar: Sidecar, url: str, account: str) -> Any:
    agents = pytest.importorskip("langchain.agents", reason="the extra langchain is not installed")
    openai = pytest.importorskip("langchain_openai", reason="langchain_openai is not installed")

    from bursar.middleware.langchain import BudgetMiddleware

    model = openai.ChatOpenAI(
        model="big", base_url=f"{url}/v1", api_key="none", max_tokens=40, max_retries=0
    )
    guard = BudgetMiddleware(sidecar.client(), account=account)
    return agents.create_agent(model, [], middleware=[guard])


def test_tool_calls_of_an_mcp_server_are_charged_and_refused(sidecar: Sidecar) -> None:
    mcp = pytest.importorskip("mcp", reason="the extra mcp is not installed")
    from mcp.server import MCPServer

    from bursar.middleware.mcp import BUDGET_ERROR, BudgetedTools

    ran: list[str] = []

    async def body(client: bursar.AsyncClient) -> None:
        await client.set_budget("acme/tools", unit="usd_nanos", limit=3_000)
        tools = BudgetedTools(
            client,
            account="acme/tools",
            price={"usd_nanos": 1_000},
            prices={"free": {}},
            repeats_max=5,
        )
        server = MCPServer("tools", middleware=[tools])

        @server.tool()
        def search(word: str) -> str:
            ran.append(word)
            if word == "fail":
                raise ValueError(word)
            return word

        @server.tool()
        def free() -> str:
            return "free"

        async with mcp.Client(server) as session:
            await session.list_tools()
            failed = await session.call_tool("search", {"word": "fail"})
            assert failed.is_error
            for number in range(3):
                await session.call_tool("search", {"word": str(number)})
            with pytest.raises(mcp.MCPError, match="short of") as refused:
                await session.call_tool("search", {"word": "4"})
            assert refused.value.error.code == BUDGET_ERROR
            for _ in range(5):
                await session.call_tool("free", {})
            with pytest.raises(mcp.MCPError, match="called 6 times with the same arguments"):
                await session.call_tool("free", {})

    run(sidecar, body)
    assert ran == ["fail", "0", "1", "2"]
    assert settled(sidecar, "acme/tools") == 3_000
