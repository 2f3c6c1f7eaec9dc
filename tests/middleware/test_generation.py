"""The contract: reserve, step, end; the same on every kind of ledger, sync and async."""

import asyncio
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

import bursar
from bursar import Advice, BudgetExceeded, Threshold, Usage, Verdict
from bursar.middleware import BUDGET_EXHAUSTED, AsyncGeneration, Capability, Generation, Policy
from bursar.testing import Sidecar


@pytest.fixture(params=["embedded", "shared memory", "metered"])
def client(
    request: pytest.FixtureRequest,
    ledger: bursar.Client,
    sidecar: Sidecar,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[bursar.Client]:
    """The same contract over each way that a lease is kept."""
    if request.param == "embedded":
        yield ledger
        return
    with sidecar.client() as remote:
        if request.param == "metered":
            monkeypatch.setattr(remote._transport, "lease_socket", None)
        yield remote


@pytest.fixture
def account() -> str:
    """An account of the test's own."""
    return f"acme/{uuid.uuid4().hex}"


def spent(client: bursar.Client, account: str) -> int:
    [one] = client.get_account(account).balances
    assert one.held == 0
    return one.spent


def run(generation: Generation) -> int:
    """An engine that would go on for ever; how many tokens it made."""
    made = 0
    while generation.remaining:
        made += 1
        if generation.on_step() is Verdict.STOP:
            break
    return made


@pytest.mark.parametrize("first_grant", [None, 1, 7])
def test_a_hard_limit_stops_at_the_exact_token(
    client: bursar.Client, account: str, first_grant: int | None
) -> None:
    client.set_budget(account, unit="tokens", limit=100)
    with Generation(client, account, policy=Policy(first_grant=first_grant)) as generation:
        most = generation.on_prompt(10, max_new_tokens=500)
        assert most == (90 if first_grant is None else 500)
        run(generation)
        assert generation.used == 90
        assert generation.on_end("length") == BUDGET_EXHAUSTED
    assert generation.notice.endswith(f"the compute budget of {account} is exhausted.]")
    assert spent(client, account) == 100


def test_a_priced_model_is_charged_prompt_and_output(client: bursar.Client, account: str) -> None:
    client.set_budget(account, unit="usd_nanos", limit=1_000_000)
    with Generation(client, account) as generation:
        assert generation.on_prompt(100, model="big", max_new_tokens=30) == 30
        run(generation)
        assert generation.on_end("length") == "length"
    assert spent(client, account) == 100 * 10 + 30 * 20


def test_nothing_is_computed_when_not_even_one_token_fits(
    client: bursar.Client, account: str
) -> None:
    client.set_budget(account, unit="tokens", limit=10)
    with Generation(client, account) as generation, pytest.raises(BudgetExceeded) as refused:
        generation.on_prompt(10, max_new_tokens=500)
    assert refused.value.shortfall == 1
    assert spent(client, account) == 0


def test_an_error_settles_what_was_counted(client: bursar.Client, account: str) -> None:
    client.set_budget(account, unit="tokens", limit=1000)
    generation = Generation(client, account)

    def die() -> None:
        with generation:
            generation.on_prompt(10, max_new_tokens=500)
            generation.on_step(5)
            raise RuntimeError("the engine died")

    with pytest.raises(RuntimeError, match="engine"):
        die()
    assert (generation.reason, spent(client, account)) == ("error", 15)


def test_what_never_began_is_given_back(client: bursar.Client, account: str) -> None:
    client.set_budget(account, unit="tokens", limit=1000)
    with Generation(client, account) as generation:
        generation.on_prompt(10, max_new_tokens=500)
        generation.abandon()
    assert spent(client, account) == 0


def test_the_providers_own_count_wins(client: bursar.Client, account: str) -> None:
    client.set_budget(account, unit="tokens", limit=1000)
    with Generation(client, account) as generation:
        generation.on_prompt(10, max_new_tokens=100)
        generation.on_step(5)
        generation.on_end("stop", usage=Usage(input_tokens=12, output_tokens=6))
        generation.on_end("stop")
    assert spent(client, account) == 18


def test_a_freeze_stops_at_the_next_step(client: bursar.Client, account: str) -> None:
    client.set_budget(account, unit="tokens", limit=1_000_000)
    with Generation(client, account) as generation:
        generation.on_prompt(10, max_new_tokens=900_000)
        assert generation.on_step() is Verdict.OK
        client.freeze(account, reason="runaway")
        for _ in range(200_000):
            if generation.on_step() is Verdict.STOP:
                break
        assert generation.remaining == 0
        assert generation.on_end("stop") == BUDGET_EXHAUSTED
    assert spent(client, account) == generation.used + 10


def test_past_a_soft_limit_a_call_is_priced_for_the_fallback(
    client: bursar.Client, account: str
) -> None:
    advice = Advice(fallback_model="small", max_new_tokens=20)
    soft = Threshold(permille=500, verdict=Verdict.DEGRADE, advice=advice)
    client.set_budget(account, unit="usd_nanos", limit=10_000, thresholds=[soft])
    client.record(account, amounts={"usd_nanos": 6_000})
    with Generation(client, account) as generation:
        assert generation.on_prompt(100, model="big", max_new_tokens=50) == 20
        assert generation.model == "small"
        run(generation)
    assert generation.used == 20
    assert spent(client, account) == 6_000 + 100 * 1 + 20 * 2
    with Generation(client, account, fallbacks=()) as generation:
        generation.on_prompt(1, model="big", max_new_tokens=50)
        assert generation.model == "big"


ABLE = Capability(tools=True, media=True, context_tokens=150)


@pytest.mark.parametrize(
    ("needs", "asked", "can", "lacking"),
    [
        (None, 50, None, ""),
        (Capability(tools=True), 50, ABLE, ""),
        (Capability(tools=True), 50, None, "it takes no tools"),
        (Capability(tools=True), 50, Capability(media=True), "it takes no tools"),
        (Capability(media=True), 50, ABLE, ""),
        (
            Capability(media=True),
            50,
            Capability(tools=True),
            "it takes no pictures, sounds or files",
        ),
        (None, 51, ABLE, "it holds 150 tokens of 151"),
    ],
)
def test_a_fallback_that_cannot_do_what_the_call_needs_is_not_taken_and_it_is_told(
    client: bursar.Client,
    account: str,
    caplog: pytest.LogCaptureFixture,
    *,
    needs: Capability | None,
    asked: int,
    can: Capability | None,
    lacking: str,
) -> None:
    soft = Threshold(500, Verdict.DEGRADE, Advice(fallback_model="small"))
    client.set_budget(account, unit="usd_nanos", limit=100_000, thresholds=[soft])
    client.record(account, amounts={"usd_nanos": 60_000})
    policy = Policy(capabilities={} if can is None else {"small": can})
    with Generation(client, account, policy=policy) as generation:
        generation.on_prompt(100, model="big", max_new_tokens=asked, needs=needs)
        assert generation.model == ("big" if lacking else "small")
        assert generation.passed_over == (f"small: {lacking}" if lacking else "")
        generation.on_step(1)
    assert spent(client, account) == 60_000 + (1_020 if lacking else 102)
    told = [f"{account} stays with big, for small: {lacking}"] if lacking else []
    assert [record.getMessage() for record in caplog.records] == told


def test_advice_reaches_a_generation_that_runs(client: bursar.Client, account: str) -> None:
    soft = Threshold(permille=500, verdict=Verdict.WARN, advice=Advice(max_new_tokens=60))
    client.set_budget(account, unit="tokens", limit=100_000, thresholds=[soft])
    with Generation(client, account) as generation:
        assert generation.on_prompt(10, max_new_tokens=1000) == 1000
        generation.on_step(50)
        assert generation.remaining == 950
        client.record(account, tokens=60_000)
        time.sleep(0.2)  # the advice is on its way to the page, or on the stream
        for _ in range(900):
            generation.on_step()
            if generation.remaining == 0:
                break
        assert generation.limit == 60
        assert generation.on_end("length") == "length"


@pytest.mark.parametrize("metered", [False, True])
def test_a_generation_on_an_event_loop(
    sidecar: Sidecar, monkeypatch: pytest.MonkeyPatch, *, metered: bool
) -> None:
    async def run_async(account: str) -> AsyncGeneration:
        async with sidecar.client_async() as client:
            if metered:
                monkeypatch.setattr(client._transport, "lease_socket", None)
            await client.set_budget(account, unit="tokens", limit=100)
            async with AsyncGeneration(client, account, policy=Policy(first_grant=3)) as generation:
                await generation.on_prompt(10, max_new_tokens=500)
                while await generation.on_step() is not Verdict.STOP:
                    pass
                assert await generation.on_end("length") == BUDGET_EXHAUSTED
            with pytest.raises(BudgetExceeded):
                await AsyncGeneration(client, account).on_prompt(1)
            return generation

    account = f"acme/async-{metered}"
    generation = asyncio.run(run_async(account))
    assert generation.used == 90
    with sidecar.client() as client:
        assert spent(client, account) == 100


def test_notices_speak_the_language_of_the_policy() -> None:
    assert "erschöpft" in Policy(language="de").notice("a/b")
    assert Policy(language="xx", notices={"xx": "<{account}>"}).notice("a/b") == "<a/b>"
    with pytest.raises(bursar.InvalidRequest, match="there are notices in de, en, es, fr"):
        Policy(language="xx")


def test_the_adapters_import_their_packages_only_when_used(project: Path) -> None:
    for path in (project / "python/bursar/middleware").glob("_*.py"):
        text = path.read_text(encoding="utf-8")
        assert "import langchain" not in text
        assert "import torch" not in text
