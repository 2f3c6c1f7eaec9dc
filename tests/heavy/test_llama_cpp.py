"""llama-cpp-python on the tiny model, with the traps of its interface: `make test-heavy`."""

import os
import random
from pathlib import Path
from typing import Any

import pytest
from support.daemon import balance, new_seed
from support.tiny_model import write_tiny_model

import bursar
from bursar import Advice, BudgetExceeded, Threshold, Verdict
from bursar.middleware import BUDGET_EXHAUSTED

if os.environ.get("BURSAR_HEAVY") != "1":
    pytest.skip("runs by `make test-heavy`", allow_module_level=True)
pytest.importorskip("llama_cpp", reason="the extra llama-cpp is not installed")
pytestmark = [pytest.mark.timeout(180), pytest.mark.filterwarnings("default")]
EXTRAS: dict[str, Any] = {"n_ctx": 1024, "n_threads": 1, "verbose": False, "logits_all": False}
HELLO: Any = [{"role": "user", "content": "hello"}]


@pytest.fixture
def client(tmp_path: Path) -> Any:
    with bursar.open(tmp_path / "ledger.db") as one:
        one.set_budget("acme/l", unit="tokens", limit=1_000_000)
        yield one


@pytest.fixture
def llm(client: Any, tmp_path: Path) -> Any:
    from bursar.middleware.llama_cpp import BudgetedLlama

    path = write_tiny_model(tmp_path / "tiny.gguf")
    return BudgetedLlama(model_path=str(path), client=client, account="acme/l", **EXTRAS)


def never_ends(llm: Any) -> dict[str, Any]:
    """Of the two, only the bias is a trap: the package drops a processor beside it."""
    return {"logit_bias": {llm.token_eos(): -100.0}}


def test_a_hundred_prompts_are_debited_to_the_engines_count(llm: Any, client: Any) -> None:
    seed = new_seed()
    print(f"BURSAR_SEED={seed}")
    chance = random.Random(seed)
    expected = 0
    for _ in range(100):
        words = "".join(chance.choice("abc é世 the") for _ in range(chance.randrange(1, 30)))
        most = chance.randrange(1, 30)
        usage = llm.create_completion(words, max_tokens=most, seed=chance.randrange(2**31))["usage"]
        assert usage["completion_tokens"] <= most, "the package itself may pass its limit"
        assert llm._last.used == usage["completion_tokens"]
        expected += usage["prompt_tokens"] + usage["completion_tokens"]
    assert balance(client, "acme/l")[:2] == (0, expected)


@pytest.mark.parametrize("k", [1, 5, 33])
@pytest.mark.parametrize("streams", [False, True])
def test_at_a_limit_of_k_there_are_k_tokens_the_notice_and_no_cache(
    llm: Any, client: Any, k: int, *, streams: bool
) -> None:
    prompt = len(llm.tokenize(b"the cat"))
    client.set_budget("acme/l", unit="tokens", limit=prompt + k)
    asked = {"max_tokens": 500, "stream": streams, **never_ends(llm)}
    made = llm.create_completion("the cat", **asked)
    chunks = list(made) if streams else [made]
    text = "".join(chunk["choices"][0]["text"] for chunk in chunks)
    assert text.endswith("the compute budget of acme/l is exhausted.]")
    assert chunks[-1]["choices"][0]["finish_reason"] == BUDGET_EXHAUSTED
    assert (llm._last.used, llm.n_tokens, llm.input_ids.any()) == (k, 0, False)
    assert balance(client, "acme/l") == (0, prompt + k, 0)
    with pytest.raises(BudgetExceeded):
        llm.create_completion("the cat")
    client.set_budget("acme/l", unit="tokens", limit=1000)
    assert llm.create_completion("the cat", max_tokens=3)["usage"]["completion_tokens"] <= 3


@pytest.mark.parametrize("streams", [False, True])
def test_a_chat_is_cut_alike(llm: Any, client: Any, *, streams: bool) -> None:
    client.set_budget("acme/l", unit="tokens", limit=60)
    made = llm.create_chat_completion(HELLO, max_tokens=500, stream=streams, **never_ends(llm))
    chunks = list(made) if streams else [made]
    part = "delta" if streams else "message"
    text = "".join(chunk["choices"][0][part].get("content") or "" for chunk in chunks)
    assert text.endswith("the compute budget of acme/l is exhausted.]")
    assert chunks[-1]["choices"][0]["finish_reason"] == BUDGET_EXHAUSTED
    assert balance(client, "acme/l") == (0, 60, 0)


def test_a_stream_that_is_dropped_settles_what_it_has_had(llm: Any, client: Any) -> None:
    # With another seed the package may hold all 200 back, for want of a whole character.
    asked = {"max_tokens": 200, "stream": True, "seed": 0, **never_ends(llm)}
    stream = llm.create_completion("the cat", **asked)
    for _ in range(5):
        next(stream)
    stream.close()
    del stream
    prompt = len(llm.tokenize(b"the cat"))
    assert balance(client, "acme/l")[:2] == (0, prompt + 5)


def test_advice_begins_anew_from_the_cache(llm: Any, client: Any, monkeypatch: Any) -> None:
    from llama_cpp import Llama

    began: list[tuple[int, float]] = []
    real = Llama.generate

    def spy(self: Any, tokens: Any, *args: Any, **settings: Any) -> Any:
        began.append((len(tokens), settings["temp"]))
        return real(self, tokens, *args, **settings)

    monkeypatch.setattr(Llama, "generate", spy)
    soft = Threshold(500, Verdict.WARN, Advice(temperature=0.125, repetition_penalty=1.5))
    client.set_budget("acme/l", unit="tokens", limit=100, thresholds=[soft])
    asked = {"max_tokens": 70, "temperature": 0.9, **never_ends(llm)}
    usage = llm.create_completion("the cat", **asked)["usage"]
    assert usage["completion_tokens"] == 70
    assert [temp for _, temp in began] == [0.9, 0.125]
    assert began[1][0] == 50, "where half of the budget was spent"
