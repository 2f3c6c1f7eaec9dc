"""The shipped rate card against the prices that it was made from."""

import itertools
import re
import tomllib
from datetime import UTC, date, datetime, time
from decimal import ROUND_CEILING, Decimal
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

genai_prices = pytest.importorskip("genai_prices", reason="the package genai-prices is missing")

CARD = Path(__file__).parents[2] / "sidecar" / "rates.toml"
TEXT = CARD.read_text(encoding="utf-8")
MODELS: list[dict[str, Any]] = tomllib.loads(TEXT)["models"]
BYTES_MAX = 400_000


def header(key: str) -> str:
    found = re.search(rf"^# {key}: (?:genai-prices )?([\w.-]+)", TEXT, re.MULTILINE)
    assert found is not None
    return found[1]


DAY = date.fromisoformat(header("date"))
HALF_HOURS = [
    datetime.combine(DAY, time(hour, minute), UTC) for hour in range(24) for minute in (0, 30)
]


@pytest.fixture(scope="module", autouse=True)
def _same_version() -> None:
    if version("genai-prices") != header("source"):
        pytest.skip(f"genai-prices is {version('genai-prices')}, the card is {header('source')}")


def prices_for(model: dict[str, Any], input_tokens: int) -> tuple[int, int, int, int]:
    held = model
    for tier in model.get("tiers", []):  # ascending
        if input_tokens > tier["above_input_tokens"]:
            held = tier
    plain = held["input_nanos_per_million"]
    return (
        plain,
        held.get("cached_input_nanos_per_million", plain),
        held.get("cache_write_nanos_per_million", plain),
        held.get("output_nanos_per_million", 0),
    )


def cost_nanos(model: dict[str, Any], usage: tuple[int, int, int, int]) -> int:
    tokens, cached, written, output = usage
    plain, cached_price, write_price, output_price = prices_for(model, tokens)
    millionths = (
        (tokens - cached - written) * plain
        + cached * cached_price
        + written * write_price
        + output * output_price
        + model.get("call_nanos", 0) * 1_000_000
    )
    return int(-(-millionths // 1_000_000))


def their_nanos(name: str, usage: tuple[int, int, int, int], at: datetime) -> int:
    provider, _, ref = name.partition("/")
    tokens, cached, written, output = usage
    price = genai_prices.calc_price(
        genai_prices.Usage(
            input_tokens=tokens,
            cache_read_tokens=cached,
            cache_write_tokens=written,
            output_tokens=output,
        ),
        ref,
        provider_id=provider,
        genai_request_timestamp=at,
    )
    nanos: Decimal = price.total_price * 10**9
    return int(nanos.to_integral_value(rounding=ROUND_CEILING))


def qualified(model: dict[str, Any]) -> str:
    """The name ``provider/name`` of the card's section that the model stands in."""
    before = TEXT[: TEXT.index(f'\nname = "{model["name"]}"\n')]
    provider = re.findall(r"^# ---- .+ \(([\w-]+)\) ----$", before, re.MULTILINE)[-1]
    names = (f"{provider}/{model['name']}", model["name"])
    return str(next(name for name in names if name in (model["name"], *model["aliases"])))


def edges(model: dict[str, Any]) -> list[int]:
    lengths = [tier["above_input_tokens"] for tier in model.get("tiers", [])]
    return [0, 1, 999, 123_457, *(n + d for n in lengths for d in (-1, 0, 1))]


def usages(model: dict[str, Any]) -> list[tuple[int, int, int, int]]:
    return [
        (tokens, cached, written, output)
        for tokens, output in itertools.product(edges(model), (0, 1, 4_099))
        for cached, written in ((0, 0), (tokens // 3, 0), (tokens // 2, tokens // 7), (tokens, 0))
    ]


def test_every_model_costs_what_the_source_says_rounded_up_once() -> None:
    """The dearest of the day where the price depends on the time, else the same nano-USD."""
    checked = 0
    for model in MODELS:
        name = qualified(model)
        noted = by_time_of_day(model)
        apart = reasoning_priced_apart(name)
        times = HALF_HOURS if noted else HALF_HOURS[24:25]
        for usage in usages(model):
            theirs = max(their_nanos(name, usage, at) for at in times)
            ours = cost_nanos(model, usage)
            assert ours == theirs or (apart and ours > theirs), (name, usage)
            checked += 1
    assert len(MODELS) > 500
    assert checked > 20_000


def by_time_of_day(model: dict[str, Any]) -> bool:
    before = TEXT[: TEXT.index(f'\nname = "{model["name"]}"\n')]
    return "# The price depends on the time" in before[before.rindex("[[models]]") :]


def reasoning_priced_apart(name: str) -> bool:
    provider, _, ref = name.partition("/")
    snapshot = genai_prices.data_snapshot.get_snapshot()
    _, model = snapshot.find_provider_model(ref, None, provider, None)
    prices = model.get_prices(HALF_HOURS[24])
    return bool(prices.output_reasoning_mtok or prices.output_citation_mtok)


def test_a_bare_name_means_the_model_that_the_source_means() -> None:
    snapshot = genai_prices.data_snapshot.get_snapshot()
    for model in MODELS:
        provider, _, ref = qualified(model).partition("/")
        _, own = snapshot.find_provider_model(ref, None, provider, None)
        for name in (model["name"], *model["aliases"]):
            if "/" in name:
                continue
            try:
                _, found = snapshot.find_provider_model(name, None, None, None)
            except LookupError:
                continue  # a host's own name: no other provider has it
            assert found is own, name


def test_every_name_is_there_once() -> None:
    names = [name for model in MODELS for name in (model["name"], *model["aliases"])]
    assert len(names) == len(set(names))


def test_the_card_has_the_models_people_ask_for() -> None:
    by_name = {name: model for model in MODELS for name in (model["name"], *model["aliases"])}
    assert by_name["gpt-4o"]["input_nanos_per_million"] == 2_500_000_000
    assert by_name["gpt-4o-2024-08-06"] is by_name["openai/gpt-4o"] is by_name["gpt-4o"]
    assert by_name["gpt-4o-mini"]["tokenizer"] == "o200k_base"
    assert by_name["gpt-4"]["tokenizer"] == by_name["gpt-3.5-turbo"]["tokenizer"] == "cl100k_base"
    assert by_name["text-embedding-3-small"]["tokenizer"] == "cl100k_base"
    assert "tokenizer" not in by_name["claude-sonnet-4-5-20250929"]
    assert by_name["gemini-2.5-pro"]["tiers"][0]["above_input_tokens"] == 200_000
    assert by_name["sonar-pro"]["call_nanos"] == 14_000_000


def test_the_card_is_small_and_says_where_it_comes_from() -> None:
    assert len(TEXT.encode()) < BYTES_MAX
    assert f"models: {len(MODELS)} of 19 providers" in TEXT


def test_generating_it_again_gives_the_same_bytes() -> None:
    from bursar.rates._toml import write_card

    assert write_card(DAY) == TEXT
