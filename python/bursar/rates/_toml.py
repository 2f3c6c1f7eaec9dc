"""The card as TOML: which models are on it, and how they are written."""

import re
from collections.abc import Iterator
from datetime import date
from importlib.metadata import version
from typing import Final

from genai_prices.data_snapshot import get_snapshot

from bursar.rates._names import Namer, Names, tokenizer_of
from bursar.rates._prices import Prices, TokenPrices, prices_on

# The makers and hosts whose own price lists are on the card; no resellers of others' services.
PROVIDERS: Final = (
    "anthropic",
    "aws",
    "azure",
    "cerebras",
    "cohere",
    "deepseek",
    "fireworks",
    "google",
    "groq",
    "meta",
    "minimax",
    "mistral",
    "moonshotai",
    "openai",
    "perplexity",
    "together",
    "voyageai",
    "x-ai",
    "zai",
)
# Models whose usage is mostly not text, so that text prices would undercharge.
_NOT_TEXT: Final = re.compile(r"audio|image|live|moderation|realtime|sonic|transcribe|tts|voice")
_PER_MILLION: Final = ("input", "cached_input", "cache_write", "output")

_HEADER: Final = """\
# The rate card: what a model call costs. Generated, do not edit: put your own prices into
# [[rates.models]] of the configuration, they come first.
#
#   python -m bursar.rates generate --date {day} --out sidecar/rates.toml
#
# source: genai-prices {version} (MIT licence, Pydantic)
# date: {day}
# models: {count} of {providers} providers
#
# Prices are integers in nano-USD (1e-9 US dollar): standard list prices of the day. Input includes
# cached tokens; a cache price that is absent is the input price. A tier holds for the whole call.
# Where the price depends on the time of day, the dearest is taken. Prices that are no whole number
# of nano-USD are rounded up. Both are noted at the model.
#
# Left out: {left_out} models without a price for text tokens, or that mostly read or write audio,
# images or video; prices of audio, image and video tokens, of searches and other tools, of storage;
# batch, flex and priority prices; cache writes that last longer than the shortest time; reasoning
# and citation tokens priced apart (they count as output, at the dearest of the prices).
"""


def write_card(day: date) -> str:
    """Writes the card of a day. The same package version and day give the same bytes."""
    snapshot = get_snapshot()
    providers = [one for one in snapshot.providers if one.id in PROVIDERS]
    namer = Namer(snapshot, providers)
    blocks: list[str] = []
    count = left_out = 0
    for provider in sorted(providers, key=lambda one: one.id):
        models: dict[str, str] = {}
        for model in provider.models:
            names = namer.names(provider, model)
            prices = None if _NOT_TEXT.search(model.id) else prices_on(model, day)
            if names is None or prices is None:
                left_out += 1
                continue
            lines = _model(names, tokenizer_of(provider, model), prices)
            models[names.name] = "\n".join(lines)
        blocks.append(f"# ---- {provider.name} ({provider.id}) ----")
        blocks += [models[name] for name in sorted(models)]
        count += len(models)
    header = _HEADER.format(
        day=day.isoformat(),
        version=version("genai-prices"),
        count=count,
        providers=len(providers),
        left_out=left_out,
    )
    return "\n\n".join([header.rstrip("\n"), *blocks]) + "\n"


def _model(names: Names, tokenizer: str | None, prices: Prices) -> Iterator[str]:
    yield "[[models]]"
    if prices.by_time_of_day:
        yield "# The price depends on the time of day; this is the dearest."
    if prices.rounded:
        yield "# Rounded up to whole nano-USD."
    yield f"name = {_quoted(names.name)}"
    yield f"aliases = [{', '.join(map(_quoted, names.aliases))}]"
    if tokenizer is not None:
        yield f"tokenizer = {_quoted(tokenizer)}"
    yield from _token_prices(prices.base)
    if prices.call_nanos:
        yield f"call_nanos = {prices.call_nanos:_}"
    if prices.tiers:
        yield "tiers = ["
        for tier in prices.tiers:
            inner = [f"above_input_tokens = {tier.above_input_tokens:_}", *_token_prices(tier)]
            yield f"  {{ {', '.join(inner)} }},"
        yield "]"


def _token_prices(prices: TokenPrices) -> Iterator[str]:
    for name in _PER_MILLION:
        value: int = getattr(prices, name)
        fallback = prices.input if name in {"cached_input", "cache_write"} else 0
        if value != fallback or name == "input":
            yield f"{name}_nanos_per_million = {value:_}"


def _quoted(text: str) -> str:
    if not re.fullmatch(r"[ -!#-\[\]-~]+", text):  # printable ASCII without quote and backslash
        raise ValueError(f"a name that needs escapes: {text!r}")
    return f'"{text}"'
