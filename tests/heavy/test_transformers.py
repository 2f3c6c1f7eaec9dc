"""transformers on a tiny model with random weights: `make test-heavy`."""

import os
import random
from pathlib import Path
from typing import Any

import pytest
from support.daemon import balance, new_seed

import bursar
from bursar import Advice, BudgetExceeded, Threshold, Verdict
from bursar.middleware import BUDGET_EXHAUSTED, Policy

if os.environ.get("BURSAR_HEAVY") != "1":
    pytest.skip("runs by `make test-heavy`", allow_module_level=True)
torch = pytest.importorskip("torch", reason="the extra transformers is not installed")
pytest.importorskip("transformers", reason="the extra transformers is not installed")
pytestmark = [pytest.mark.timeout(180), pytest.mark.filterwarnings("default")]


@pytest.fixture(scope="module")
def model() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def client(tmp_path: Path) -> Any:
    with bursar.open(tmp_path / "ledger.db") as one:
        yield one


def prompt(length: int, rows: int = 1) -> Any:
    return torch.randint(3, 300, (rows, length))


def test_a_hundred_prompts_are_debited_to_the_forward_passes(model: Any, client: Any) -> None:
    from bursar.middleware.transformers import generate

    seed = new_seed()
    print(f"BURSAR_SEED={seed}")
    chance = random.Random(seed)
    client.set_budget("acme/t", unit="tokens", limit=1_000_000)
    expected = 0
    for _ in range(100):
        ids = prompt(chance.randrange(1, 30))
        made = generate(
            model,
            ids,
            client=client,
            account="acme/t",
            do_sample=True,
            max_new_tokens=chance.randrange(1, 20),
        )
        new = made.sequences.shape[1] - ids.shape[1]
        assert made.used == new
        assert made.cache.get_seq_length() == made.sequences.shape[1] - 1, "one pass a token"
        expected += ids.shape[1] + new
    assert balance(client, "acme/t")[:2] == (0, expected)


@pytest.mark.parametrize("k", [1, 7, 40])
@pytest.mark.parametrize("first_grant", [None, 3])
def test_at_a_limit_of_k_there_are_k_tokens_and_no_cache(
    model: Any, client: Any, k: int, first_grant: int | None
) -> None:
    from bursar.middleware.transformers import generate

    client.set_budget("acme/t", unit="tokens", limit=10 + k)
    ids = prompt(10)
    policy = Policy(first_grant=first_grant)
    settings = {"min_new_tokens": 500, "max_new_tokens": 500, "do_sample": False}
    made = generate(model, ids, client=client, account="acme/t", policy=policy, **settings)
    assert made.used == k
    assert made.reason == BUDGET_EXHAUSTED
    assert made.notice.endswith("the compute budget of acme/t is exhausted.]")
    assert made.cache.get_seq_length() == 0
    assert made.cache.layers[0].keys is None
    with pytest.raises(BudgetExceeded):
        generate(model, ids, client=client, account="acme/t")
    client.set_budget("acme/t", unit="tokens", limit=1000)
    assert generate(model, ids, client=client, account="acme/t", max_new_tokens=5).used <= 5
    assert balance(client, "acme/t")[0] == 0


def test_beams_are_billed_by_the_row(model: Any, client: Any) -> None:
    from bursar.middleware.transformers import generate

    client.set_budget("acme/t", unit="tokens", limit=1_000)
    settings = {"num_beams": 3, "max_new_tokens": 5, "min_new_tokens": 5}
    made = generate(model, prompt(10), client=client, account="acme/t", **settings)
    assert made.used == 15


def test_a_configuration_counts_as_if_it_were_said_in_the_call(model: Any, client: Any) -> None:
    from transformers import GenerationConfig

    from bursar.middleware.transformers import generate

    client.set_budget("acme/t", unit="tokens", limit=1_000)
    config = GenerationConfig(num_beams=3, max_new_tokens=5, min_new_tokens=5, eos_token_id=2)
    ids = prompt(10)
    made = generate(model, ids, client=client, account="acme/t", generation_config=config)
    assert made.sequences.shape[1] == 15
    assert made.used == 15
    assert balance(client, "acme/t")[:2] == (0, 25)


def test_advice_is_applied_to_what_is_still_sampled(model: Any, client: Any) -> None:
    from bursar.middleware.transformers import generate

    advice = Advice(temperature=0.0001, repetition_penalty=1.3, max_new_tokens=60)
    soft = Threshold(500, Verdict.DEGRADE, advice)
    client.set_budget("acme/t", unit="tokens", limit=100, thresholds=[soft])
    client.record("acme/t", tokens=50)
    ids = prompt(5)
    settings = {"do_sample": True, "temperature": 2.0, "max_new_tokens": 20, "min_new_tokens": 20}
    one = generate(model, ids, client=client, account="acme/t", **settings)
    client.set_budget("acme/t", unit="tokens", limit=150, thresholds=[soft])
    client.record("acme/t", tokens=10)
    two = generate(model, ids, client=client, account="acme/t", **settings)
    assert torch.equal(one.sequences, two.sequences), "as good as greedy now"
