"""Each framework's own calls over a real engine: one span, exact counts, upstream within it."""

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.trace import StatusCode
from support.traced import Traced, is_child, said, scope

import bursar
from bursar import BudgetExceeded
from bursar.middleware import BUDGET_EXHAUSTED
from bursar.testing import Sidecar

httpx2 = pytest.importorskip("httpx2", reason="OpenAI's client is built on it; not installed")
openai = pytest.importorskip("openai", reason="OpenAI's client asks the engine; not installed")

HELLO = [{"role": "user", "content": "hello"}]
ENOUGH, LITTLE = 1_000_000, 500
USED = "gen_ai.client.inference.usage"
LIMIT = {"max_tokens": 30, "extra_body": {"ignore_eos": True}}

Call = Callable[[str, bursar.AsyncClient, bursar.Client, "Upstream"], Awaitable[Any]]


class Upstream:
    """Clients of the engine that note within which span a request was sent."""

    def __init__(self, address: str) -> None:
        self.url = f"{address}/v1"
        self.within: list[int] = []
        self.sync = httpx2.Client(event_hooks={"request": [self.note]})
        self.made: list[Any] = []

    def note(self, _request: Any) -> None:
        self.within.append(trace.get_current_span().get_span_context().span_id)

    async def _note_async(self, request: Any) -> None:
        self.note(request)

    def asynchronous(self) -> Any:
        """One that belongs to the running loop."""
        self.made.append(httpx2.AsyncClient(event_hooks={"request": [self._note_async]}))
        return self.made[-1]

    def openai(self) -> Any:
        """OpenAI's own."""
        more = {"max_retries": 0, "http_client": self.asynchronous()}
        return openai.AsyncOpenAI(base_url=self.url, api_key="x", **more)

    def langchain(self, **more: Any) -> Any:
        """LangChain's, of OpenAI."""
        made = pytest.importorskip("langchain_openai", reason="the extra is not installed")
        clients = {"http_client": self.sync, "http_async_client": self.asynchronous()}
        settings = {"model": "big", "base_url": self.url, "api_key": "x", "max_retries": 0}
        return made.ChatOpenAI(**settings, **LIMIT, **clients, **more)


@pytest.fixture
def upstream(llama: Any) -> Iterator[Upstream]:
    one = Upstream(llama.listening_address)
    yield one
    one.sync.close()


async def langchain_agent(
    account: str, client: bursar.AsyncClient, plain: bursar.Client, upstream: Upstream
) -> None:
    agents = pytest.importorskip("langchain.agents", reason="the extra is not installed")
    from bursar.middleware.langchain import BudgetMiddleware

    guard = BudgetMiddleware(plain, account=account)
    agent = agents.create_agent(upstream.langchain(), [], middleware=[guard])
    await agent.ainvoke({"messages": HELLO})


async def langchain_agent_sync(
    account: str, client: bursar.AsyncClient, plain: bursar.Client, upstream: Upstream
) -> None:
    agents = pytest.importorskip("langchain.agents", reason="the extra is not installed")
    from bursar.middleware.langchain import BudgetMiddleware

    guard = BudgetMiddleware(plain, account=account)
    agents.create_agent(upstream.langchain(), [], middleware=[guard]).invoke({"messages": HELLO})


def sdk_agent(account: str, client: bursar.AsyncClient, upstream: Upstream, kind: str) -> Any:
    agents = pytest.importorskip("agents", reason="the extra is not installed")
    from bursar.middleware.openai_agents import BudgetedModel

    agents.set_tracing_disabled(True)
    model = getattr(agents, kind)(model="big", openai_client=upstream.openai())
    budgeted = BudgetedModel(model, client=client, account=account, name="big")
    settings = agents.ModelSettings(**LIMIT)
    return agents.Agent(name="helper", model=budgeted, model_settings=settings)


async def agents_sdk(
    account: str, client: bursar.AsyncClient, plain: bursar.Client, upstream: Upstream
) -> None:
    import agents

    agent = sdk_agent(account, client, upstream, "OpenAIResponsesModel")
    await agents.Runner.run(agent, "hello")


async def agents_sdk_streamed(
    account: str, client: bursar.AsyncClient, plain: bursar.Client, upstream: Upstream
) -> None:
    import agents

    agent = sdk_agent(account, client, upstream, "OpenAIChatCompletionsModel")
    async for _ in agents.Runner.run_streamed(agent, "hello").stream_events():
        pass


def pydantic_agent(account: str, client: bursar.AsyncClient, upstream: Upstream) -> Any:
    pydantic_ai = pytest.importorskip("pydantic_ai", reason="the extra is not installed")
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    from bursar.middleware.pydantic_ai import BudgetCapability

    model = OpenAIChatModel("big", provider=OpenAIProvider(openai_client=upstream.openai()))
    guard = BudgetCapability(client, account=account)
    return pydantic_ai.Agent(model, capabilities=[guard], model_settings=LIMIT)


async def pydantic(
    account: str, client: bursar.AsyncClient, plain: bursar.Client, upstream: Upstream
) -> None:
    await pydantic_agent(account, client, upstream).run("hello")


async def pydantic_streamed(
    account: str, client: bursar.AsyncClient, plain: bursar.Client, upstream: Upstream
) -> None:
    async with pydantic_agent(account, client, upstream).run_stream("hello") as result:
        async for _ in result.stream_text(delta=True, debounce_by=None):
            pass


CALLS: list[Call] = [
    langchain_agent,
    langchain_agent_sync,
    agents_sdk,
    agents_sdk_streamed,
    pydantic,
    pydantic_streamed,
]


STREAMED = (langchain_agent, langchain_agent_sync, agents_sdk_streamed, pydantic_streamed)


def run(
    call: Call, sidecar: Sidecar, traced: Traced, upstream: Upstream, *, limit: int = ENOUGH
) -> Any:
    """Has it called within a span of the application's, which comes back."""
    account = f"acme/{uuid.uuid4().hex}"

    async def main(plain: bursar.Client) -> Any:
        async with sidecar.client_async() as client:
            await client.set_budget(account, unit="usd_nanos", limit=limit)
            with traced.app.start_as_current_span("agent") as around:
                await call(account, client, plain, upstream)
            while upstream.made:
                await upstream.made.pop().aclose()
        return around

    with sidecar.client() as plain:
        return asyncio.run(main(plain))


@pytest.mark.parametrize("call", CALLS)
def test_a_frameworks_call_is_one_span_and_what_it_sends_is_within(
    llama: Any, sidecar: Sidecar, traced: Traced, upstream: Upstream, call: Call
) -> None:
    around = run(call, sidecar, traced, upstream)
    span = traced.only()
    found = said(span)
    assert (span.name, is_child(span, around)) == ("chat big", True)
    assert found["gen_ai.provider.name"] == "openai"
    assert found["gen_ai.usage.output_tokens"] == 30
    assert span.status.status_code is StatusCode.UNSET
    assert upstream.within == [span.get_span_context().span_id]  # type: ignore[union-attr]
    [read], [written] = (traced.points(f"{USED}.{kind}_tokens") for kind in ("input", "output"))
    assert (read.value, written.value) == (found["gen_ai.usage.input_tokens"], 30)
    assert read.value * 10 + 30 * 20 == found["bursar.spent.usd_nanos"]
    assert found.get("gen_ai.request.stream", False) is (call in STREAMED)
    assert "hello" not in traced.everything()


@pytest.mark.parametrize("call", CALLS)
def test_a_frameworks_call_that_is_cut_is_no_error(
    llama: Any, sidecar: Sidecar, traced: Traced, upstream: Upstream, call: Call
) -> None:
    run(call, sidecar, traced, upstream, limit=LITTLE)
    span = traced.only()
    assert said(span)["gen_ai.response.finish_reasons"] == (BUDGET_EXHAUSTED,)
    assert said(span)["bursar.stopped"] is True
    assert span.events[-1].name == "bursar.stop"
    assert span.status.status_code is StatusCode.UNSET


@pytest.mark.parametrize("call", CALLS)
def test_a_frameworks_call_that_fails_says_what_failed_and_no_more(
    llama: Any, sidecar: Sidecar, traced: Traced, upstream: Upstream, call: Call
) -> None:
    upstream.url = upstream.url.removesuffix("/v1") + "/nothing-is-here"
    with pytest.raises(Exception, match="404"):
        run(call, sidecar, traced, upstream)
    span = traced.only()
    assert span.status.status_code is StatusCode.ERROR
    assert "nothing-is-here" not in traced.everything()
    assert said(span)["error.type"].endswith("NotFoundError")
    assert [one.value for one in traced.points(f"{USED}.output_tokens")] == [0]


@pytest.mark.parametrize("call", CALLS)
def test_a_frameworks_call_that_is_refused_says_so(
    llama: Any, sidecar: Sidecar, traced: Traced, upstream: Upstream, call: Call
) -> None:
    with pytest.raises(BudgetExceeded):
        run(call, sidecar, traced, upstream, limit=1)
    assert said(traced.only())["error.type"] == "BUDGET_EXHAUSTED"
    assert upstream.within == []


def test_a_bare_model_of_langchain_is_a_span_too(
    llama: Any, sidecar: Sidecar, traced: Traced, upstream: Upstream
) -> None:
    pytest.importorskip("langchain_core", reason="the extra is not installed")
    from bursar.middleware.langchain import BudgetCallback

    async def call(
        account: str, client: bursar.AsyncClient, plain: bursar.Client, upstream: Upstream
    ) -> None:
        guard = BudgetCallback(plain, account=account)
        upstream.langchain().invoke("hello", config={"callbacks": [guard]})

    around = run(call, sidecar, traced, upstream)
    assert is_child(traced.only(), around)
    assert said(traced.only())["gen_ai.usage.output_tokens"] == 30


@pytest.mark.parametrize("call", ["run", "run_stream"])
def test_where_pydantic_ai_traces_the_call_it_is_counted_once(
    llama: Any, sidecar: Sidecar, traced: Traced, upstream: Upstream, call: str
) -> None:
    models = pytest.importorskip("pydantic_ai.models.instrumented", reason="no pydantic-ai")
    settings = models.InstrumentationSettings(
        tracer_provider=traced.tracers, meter_provider=traced.meters, include_content=False
    )

    async def instrumented(
        account: str, client: bursar.AsyncClient, plain: bursar.Client, upstream: Upstream
    ) -> None:
        agent = pydantic_agent(account, client, upstream)
        agent.instrument = settings
        if call == "run":
            await agent.run("hello")
            return
        async with agent.run_stream("hello") as result:
            await result.get_output()

    run(instrumented, sidecar, traced, upstream)
    span = traced.only()
    [theirs] = [one for one in traced.spans if one.name == "chat big"]
    assert (span.name, scope(theirs)) == ("bursar.generation", "pydantic-ai")
    assert is_child(span, theirs)
    assert said(theirs)["gen_ai.usage.output_tokens"] == 30
    assert said(span)["bursar.spent.tokens"] == said(theirs)["gen_ai.usage.input_tokens"] + 30
    assert traced.points(f"{USED}.output_tokens") == []


@pytest.mark.parametrize("path", ["chat", "text_completion"])
def test_llama_cpp_is_a_span_too(
    llama: Any, ledger: bursar.Client, traced: Traced, path: str
) -> None:
    from bursar.middleware.xllamacpp import BudgetedServer

    server = BudgetedServer(llama, client=ledger, account="acme/llama", model="big")
    asked = {"max_tokens": 7, "ignore_eos": True}
    if path == "chat":
        server.handle_chat_completions({**asked, "messages": HELLO}, lambda _: None)
    else:
        server.handle_completions({**asked, "prompt": "hello"}, lambda _: None)
    found = said(traced.only())
    assert traced.only().name == f"{path} big"
    assert found["gen_ai.provider.name"] == "llama.cpp"
    assert found["gen_ai.usage.output_tokens"] == found["bursar.tokens.debited"] == 7
