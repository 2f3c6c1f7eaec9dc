"""The real llama.cpp server: exact counts, exact cuts, an empty cache, and the next call works."""

import random
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from support import llama as engine
from support.daemon import balance, new_seed
from support.receivers import until

import bursar
from bursar import Advice, BudgetExceeded, Threshold, Verdict
from bursar.middleware import BUDGET_EXHAUSTED, Policy
from bursar.middleware.xllamacpp import BudgetedServer
from bursar.testing import Sidecar

HELLO = [{"role": "user", "content": "hello"}]


def chat(server: Any, **body: Any) -> list[dict[str, Any]]:
    """The chunks of one streamed call."""
    chunks: list[dict[str, Any]] = []
    asked = {"messages": HELLO, "stream": True, "ignore_eos": True, "max_tokens": 50} | body
    server.handle_chat_completions(asked, chunks.append)
    return chunks


def text_of(chunks: list[dict[str, Any]]) -> str:
    choices = [chunk["choices"][0] for chunk in chunks if chunk["choices"]]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


def test_a_hundred_prompts_are_debited_to_the_engines_own_count(
    llama: Any, sidecar: Sidecar
) -> None:
    seed = new_seed()
    print(f"BURSAR_SEED={seed}")
    chance = random.Random(seed)
    with sidecar.client() as client:
        server = BudgetedServer(llama, client=client, account="acme/exact")
        client.set_budget("acme/exact", unit="tokens", limit=1_000_000)
        prompts = ("prompt_tokens_total", "prompt_tokens_cached_total")
        before = engine.counter(llama, "tokens_predicted_total")
        read = sum(engine.counter(llama, name) for name in prompts)
        for _ in range(100):
            words = "".join(chance.choice("abc é世 the") for _ in range(chance.randrange(1, 40)))
            body: dict[str, Any] = {
                "max_tokens": chance.randrange(1, 40),
                "ignore_eos": chance.random() < 0.5,
                "stream": chance.random() < 0.5,
            }
            if chance.random() < 0.5:
                messages = [{"role": "user", "content": words}]
                server.handle_chat_completions(body | {"messages": messages}, lambda _: None)
            else:
                server.handle_completions(body | {"prompt": words}, lambda _: None)
        made = engine.counter(llama, "tokens_predicted_total") - before
        read = sum(engine.counter(llama, name) for name in prompts) - read
        assert balance(client, "acme/exact")[:2] == (0, made + read)


@pytest.mark.parametrize("name", ["n", "n_cmpl"])
def test_one_choice_is_made_at_a_time(llama: Any, ledger: bursar.Client, name: str) -> None:
    server = BudgetedServer(llama, client=ledger, account="acme/one")
    with pytest.raises(bursar.InvalidRequest, match="one choice"):
        chat(server, **{name: 2})


@pytest.mark.parametrize("k", [1, 2, 17, 64])
def test_at_a_limit_of_k_the_output_has_k_tokens_and_the_notice(
    llama: Any, ledger: bursar.Client, k: int
) -> None:
    prompt_tokens = 24
    ledger.set_budget("acme/cut", unit="tokens", limit=prompt_tokens + k)
    server = BudgetedServer(llama, client=ledger, account="acme/cut", policy=Policy(language="de"))
    before = engine.counter(llama, "tokens_predicted_total")
    chunks = chat(server, max_tokens=500, stream_options={"include_usage": True})
    assert engine.counter(llama, "tokens_predicted_total") - before == k
    assert text_of(chunks).endswith("Das Rechenbudget von acme/cut ist erschöpft.]")
    assert chunks[-2]["choices"][0]["finish_reason"] == BUDGET_EXHAUSTED
    assert chunks[-1]["usage"]["completion_tokens"] == k
    assert balance(ledger, "acme/cut") == (0, prompt_tokens + k, 0)
    [slot] = engine.slots(llama)
    assert (slot["is_processing"], slot["n_prompt_tokens"]) == (False, 0), "the cache is erased"
    with pytest.raises(BudgetExceeded):
        chat(server)
    ledger.set_budget("acme/cut", unit="tokens", limit=1000)
    assert chat(server, max_tokens=5)[-1]["choices"][0]["finish_reason"] == "length"


def test_an_answer_in_one_piece_is_cut_alike(llama: Any, ledger: bursar.Client) -> None:
    ledger.set_budget("acme/whole", unit="tokens", limit=50)
    server = BudgetedServer(llama, client=ledger, account="acme/whole")
    [answer] = chat(server, stream=False)
    [choice] = answer["choices"]
    assert choice["finish_reason"] == BUDGET_EXHAUSTED
    assert choice["message"]["content"].endswith("the compute budget of acme/whole is exhausted.]")
    assert answer["usage"] == {"prompt_tokens": 24, "completion_tokens": 26, "total_tokens": 50}


def test_a_freeze_cuts_a_generation_that_runs(llama: Any, sidecar: Sidecar) -> None:
    with sidecar.client() as client:
        client.set_budget("acme/frozen", unit="tokens", limit=1_000_000)
        server = BudgetedServer(llama, client=client, account="acme/frozen")
        chunks: list[dict[str, Any]] = []

        def take(chunk: dict[str, Any]) -> None:
            chunks.append(chunk)
            if len(chunks) == 10:
                client.freeze("acme/frozen", reason="a test")
                time.sleep(0.1)  # the verdict is on its way to the page

        body = {"messages": HELLO, "stream": True, "ignore_eos": True, "max_tokens": 2000}
        server.handle_chat_completions(body, take)
        assert chunks[-1]["choices"][0]["finish_reason"] == BUDGET_EXHAUSTED
        assert len(chunks) < 20
        assert engine.slots(llama)[0]["n_prompt_tokens"] == 0


def test_advice_changes_a_generation_that_runs(llama: Any, ledger: bursar.Client) -> None:
    advice = Advice(temperature=0.25, repetition_penalty=1.5, max_new_tokens=200)
    soft = Threshold(permille=500, verdict=Verdict.DEGRADE, advice=advice)
    ledger.set_budget("acme/soft", unit="tokens", limit=400, thresholds=[soft])
    server = BudgetedServer(llama, client=ledger, account="acme/soft")
    seen: list[float] = []

    def take(chunk: dict[str, Any]) -> None:
        [slot] = engine.slots(llama)
        seen.append(round(slot["params"]["temperature"], 3))

    body = {"messages": HELLO, "stream": True, "ignore_eos": True, "max_tokens": 1000}
    server.handle_chat_completions(body | {"temperature": 0.9}, take)
    assert (seen[0], seen[-1]) == (0.9, 0.25)
    assert [slot["params"]["repeat_penalty"] for slot in engine.slots(llama)] == [1.5]
    _, spent, _ = balance(ledger, "acme/soft")
    assert 200 <= spent - 24 <= 204, "a character may take 4 tokens"


def test_a_fallback_runs_on_the_cheaper_server(
    llama: Any, ledger: bursar.Client, tmp_path: Path
) -> None:
    soft = Threshold(500, Verdict.DEGRADE, Advice(fallback_model="small"))
    ledger.set_budget("acme/two", unit="usd_nanos", limit=100_000, thresholds=[soft])
    other = engine.start(tmp_path, seed=1)
    small = BudgetedServer(other, client=ledger, account="acme/two", model="small")
    server = BudgetedServer(
        llama, client=ledger, account="acme/two", model="big", fallbacks={"small": small}
    )
    chat(server, max_tokens=10)
    assert engine.counter(other, "tokens_predicted_total") == 0
    ledger.record("acme/two", amounts={"usd_nanos": 60_000})
    chat(server, max_tokens=10)
    assert engine.counter(other, "tokens_predicted_total") == 10
    assert balance(ledger, "acme/two")[1] == 24 * 11 + 10 * 22 + 60_000


def test_a_callbacks_exception_is_not_swallowed(llama: Any, ledger: bursar.Client) -> None:
    ledger.set_budget("acme/raises", unit="tokens", limit=1000)
    server = BudgetedServer(llama, client=ledger, account="acme/raises")

    def take(chunk: dict[str, Any]) -> None:
        raise RuntimeError("the caller's own")

    with pytest.raises(RuntimeError, match="the caller's own"):
        server.handle_chat_completions({"messages": HELLO, "stream": True}, take)
    held, spent, _ = balance(ledger, "acme/raises")
    assert held == 0
    assert 24 <= spent <= 30


def test_what_the_engine_refuses_costs_nothing(llama: Any, ledger: bursar.Client) -> None:
    ledger.set_budget("acme/long", unit="tokens", limit=100_000)
    server = BudgetedServer(llama, client=ledger, account="acme/long")
    with pytest.raises(bursar.BursarError, match="exceeds the available context"):
        server.handle_completions({"prompt": "a " * 5000}, lambda _: None)
    assert balance(ledger, "acme/long")[:2] == (0, 0)


def test_threads_share_the_slots_and_the_budget(ledger: bursar.Client, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp", reason="the extra xllamacpp is not installed")
    ledger.set_budget("acme/many", unit="tokens", limit=500)
    two = engine.start(tmp_path, slots=2)
    server = BudgetedServer(two, client=ledger, account="acme/many")

    def agent() -> None:
        try:
            while True:
                chat(server, max_tokens=30)
        except BudgetExceeded:
            pass

    threads = [threading.Thread(target=agent) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    held, spent, _ = balance(ledger, "acme/many")
    assert held == 0
    assert 475 < spent <= 500


def test_an_engine_that_cannot_erase_is_refused(ledger: bursar.Client, tmp_path: Path) -> None:
    xllamacpp = pytest.importorskip("xllamacpp", reason="the extra xllamacpp is not installed")
    from support.tiny_model import write_tiny_model

    params = xllamacpp.CommonParams()
    params.model.path = str(write_tiny_model(tmp_path / "tiny.gguf"))
    params.warmup, params.verbosity, params.n_ctx = False, -1, 256
    server = xllamacpp.Server(params)

    def listens() -> str:
        with suppress(OSError):
            return engine.get(server, "/health")
        return ""

    # One that is dropped before it listens waits for ever.
    until(listens, "it listens")
    with pytest.raises(bursar.InvalidRequest, match="erases no slot"):
        BudgetedServer(server, client=ledger, account="acme/x")
