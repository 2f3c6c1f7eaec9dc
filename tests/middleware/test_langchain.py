"""LangChain's real agents and models over a real engine: refused, metered, cut, made cheaper."""

import asyncio
from typing import Any

import pytest
from support import llama as engine
from support.daemon import balance

import bursar
from bursar import Advice, BudgetExceeded, GenerationTerminated, Threshold, Verdict
from bursar.middleware import BUDGET_EXHAUSTED, Capability, Policy

pytest.importorskip("langchain", reason="the extra langchain is not installed")
pytest.importorskip("langchain_openai", reason="langchain-openai talks to the test's engine")

from langchain.agents import create_agent
from langchain_openai import ChatOpenAI

from bursar.middleware.langchain import BudgetCallback, BudgetMiddleware

HELLO: Any = {"messages": [{"role": "user", "content": "hello"}]}


def chat_model(server: Any, name: str = "big", **settings: Any) -> ChatOpenAI:
    """The official client of the engine; it never ends by itself."""
    chosen = {"max_tokens": 30, "extra_body": {"ignore_eos": True}} | settings
    url = f"{server.listening_address}/v1"
    return ChatOpenAI(model=name, base_url=url, api_key="none", max_retries=0, **chosen)


@pytest.mark.parametrize("is_async", [False, True])
def test_an_agents_call_is_settled_at_the_engines_usage(
    llama: Any, ledger: bursar.Client, *, is_async: bool
) -> None:
    ledger.set_budget("acme/chain", unit="usd_nanos", limit=1_000_000)
    guard = BudgetMiddleware(ledger, account="acme/chain")
    agent = create_agent(chat_model(llama), [], middleware=[guard])
    answer = asyncio.run(agent.ainvoke(HELLO)) if is_async else agent.invoke(HELLO)
    told = answer["messages"][-1].usage_metadata
    assert told["output_tokens"] == 30
    assert balance(ledger, "acme/chain")[:2] == (0, told["input_tokens"] * 10 + 30 * 20)


@pytest.mark.parametrize("is_async", [False, True])
def test_an_agent_is_cut_with_the_notice_and_then_refused(
    llama: Any, ledger: bursar.Client, *, is_async: bool
) -> None:
    ledger.set_budget("acme/chain", unit="usd_nanos", limit=500)
    guard = BudgetMiddleware(ledger, account="acme/chain")
    agent = create_agent(chat_model(llama), [], middleware=[guard])
    answer = asyncio.run(agent.ainvoke(HELLO)) if is_async else agent.invoke(HELLO)
    last = answer["messages"][-1]
    assert last.response_metadata["finish_reason"] == BUDGET_EXHAUSTED
    assert last.content.endswith("the compute budget of acme/chain is exhausted.]")
    ledger.set_budget("acme/chain", unit="usd_nanos", limit=1)
    before = engine.counter(llama, "tokens_predicted_total")
    with pytest.raises(BudgetExceeded):
        agent.invoke(HELLO)
    assert engine.counter(llama, "tokens_predicted_total") == before, "no compute"
    assert balance(ledger, "acme/chain")[0] == 0


def test_past_a_soft_limit_the_cheaper_model_is_asked(llama: Any, ledger: bursar.Client) -> None:
    advice = Advice(fallback_model="small", max_new_tokens=7, temperature=0.125)
    soft = Threshold(500, Verdict.DEGRADE, advice)
    ledger.set_budget("acme/chain", unit="usd_nanos", limit=100_000, thresholds=[soft])
    ledger.record("acme/chain", amounts={"usd_nanos": 60_000})
    small = chat_model(llama, "small")
    guard = BudgetMiddleware(ledger, account="acme/chain", fallbacks={"small": small})
    answer = create_agent(chat_model(llama), [], middleware=[guard]).invoke(HELLO)
    told = answer["messages"][-1].usage_metadata
    assert told["output_tokens"] == 7
    assert balance(ledger, "acme/chain")[1] == 60_000 + told["input_tokens"] * 1 + 7 * 2
    assert engine.slots(llama)[0]["params"]["temperature"] == 0.125


@pytest.mark.parametrize("is_able", [False, True])
def test_an_agent_with_tools_falls_back_only_to_a_model_that_takes_them(
    llama: Any, ledger: bursar.Client, *, is_able: bool
) -> None:
    def search(word: str) -> str:
        """Looks a word up."""
        return word

    soft = Threshold(500, Verdict.DEGRADE, Advice(fallback_model="small"))
    ledger.set_budget("acme/tools", unit="usd_nanos", limit=100_000, thresholds=[soft])
    ledger.record("acme/tools", amounts={"usd_nanos": 60_000})
    policy = Policy(capabilities={"small": Capability(tools=True)} if is_able else {})
    guard = BudgetMiddleware(
        ledger, account="acme/tools", fallbacks={"small": chat_model(llama, "small")}, policy=policy
    )
    answer = create_agent(chat_model(llama), [search], middleware=[guard]).invoke(HELLO)
    told = answer["messages"][-1].usage_metadata
    each = (1, 2) if is_able else (10, 20)
    spent = told["input_tokens"] * each[0] + told["output_tokens"] * each[1]
    assert balance(ledger, "acme/tools")[1] == 60_000 + spent


def test_a_bare_model_is_cut_by_the_callback(llama: Any, ledger: bursar.Client) -> None:
    ledger.set_budget("acme/bare", unit="tokens", limit=40)
    model = chat_model(llama, streaming=True, stream_usage=True, max_tokens=500)
    before = engine.counter(llama, "tokens_predicted_total")
    with pytest.raises(GenerationTerminated) as cut:
        model.invoke("hello", config={"callbacks": [BudgetCallback(ledger, account="acme/bare")]})
    assert cut.value.partial_text
    assert cut.value.reason == BUDGET_EXHAUSTED
    assert engine.counter(llama, "tokens_predicted_total") - before < 400, "upstream is cut too"
    assert balance(ledger, "acme/bare") == (0, 40, 0)
    with pytest.raises(BudgetExceeded):
        model.invoke("hello", config={"callbacks": [BudgetCallback(ledger, account="acme/bare")]})


def test_without_streaming_a_callback_settles_but_sees_no_token(
    llama: Any, ledger: bursar.Client
) -> None:
    ledger.set_budget("acme/bare", unit="tokens", limit=1000)
    model = chat_model(llama, max_tokens=20)
    callback = BudgetCallback(ledger, account="acme/bare")
    answer = model.invoke("hello", config={"callbacks": [callback]})
    assert answer.usage_metadata is not None
    assert balance(ledger, "acme/bare")[:2] == (0, answer.usage_metadata["total_tokens"])


def test_a_call_that_fails_costs_nothing(ledger: bursar.Client) -> None:
    ledger.set_budget("acme/bare", unit="tokens", limit=1000)
    model = ChatOpenAI(model="big", base_url="http://127.0.0.1:9/v1", api_key="x", max_retries=0)
    guard = BudgetMiddleware(ledger, account="acme/bare")
    with pytest.raises(Exception, match="onnect"):
        create_agent(model, [], middleware=[guard]).invoke(HELLO)
    with pytest.raises(Exception, match="onnect"):
        model.invoke("hi", config={"callbacks": [BudgetCallback(ledger, account="acme/bare")]})
    assert balance(ledger, "acme/bare")[:2] == (0, 0)
