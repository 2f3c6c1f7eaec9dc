"""Prices as genai-prices has them, turned into integers of nano-USD.

Owns which price holds on a day, and the rounding of prices. Knows nothing of names or of TOML.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from datetime import UTC, date, datetime, time, timedelta
from decimal import ROUND_CEILING, Decimal
from typing import Final

from genai_prices.types import ModelInfo, ModelPrice, TieredPrices, TimeOfDateConstraint

NANOS_PER_USD: Final = 10**9
_CALLS_PER_PRICE: Final = 1000  # calls are priced by the thousand

# Parts of the output that some models price apart. They are counted as output, so the output's
# price is the dearest of them.
_OUTPUT_KEYS: Final = ("output_mtok", "output_reasoning_mtok", "output_citation_mtok")
_OTHER_OUTPUT: Final = ("output_audio_mtok", "output_image_mtok", "output_video_mtok")


@dataclass(frozen=True, slots=True)
class TokenPrices:
    """Nano-USD per million tokens, for calls with more than so many input tokens."""

    above_input_tokens: int
    input: int
    cached_input: int
    cache_write: int
    output: int


@dataclass(frozen=True, slots=True)
class Prices:
    """What a model costs on a day.

    Attributes:
        base: The token prices below every tier.
        tiers: The token prices of longer inputs, ascending.
        call_nanos: The price of one call.
        rounded: Whether a price was no whole number of nano-USD and was rounded up.
        by_time_of_day: Whether it is the dearest of several times of day.
    """

    base: TokenPrices
    tiers: tuple[TokenPrices, ...]
    call_nanos: int
    rounded: bool
    by_time_of_day: bool


def prices_on(model: ModelInfo, day: date) -> Prices | None:
    """The prices of a model on a day; None where it has no price for text tokens.

    Where the price depends on the time of day, each price is taken at its dearest.
    """
    found = [flat for one in _valid(model, day) if (flat := _flatten(one)) is not None]
    if not found:
        return None
    dearest = found[0]
    for other in found[1:]:
        dearest = _dearest(dearest, other)
    return replace(dearest, by_time_of_day=any(one != found[0] for one in found))


def _valid(model: ModelInfo, day: date) -> Iterator[ModelPrice]:
    """The prices that hold on the day, once for each time at which they may change."""
    times = {time(tzinfo=UTC)}
    if not isinstance(model.prices, ModelPrice):
        for one in model.prices:
            if isinstance(one.constraint, TimeOfDateConstraint):
                times |= {one.constraint.start_time, one.constraint.end_time}
    for at in sorted(times, key=str):
        aware = at if at.tzinfo is not None else at.replace(tzinfo=UTC)
        moment = datetime.combine(day, aware).astimezone(UTC)
        # A time in another zone may fall on the day before or after: its time of day counts.
        yield model.get_prices(moment + timedelta(days=(day - moment.date()).days))


def _flatten(prices: ModelPrice) -> Prices | None:
    if prices.input_mtok is None or any(getattr(prices, key) is not None for key in _OTHER_OUTPUT):
        return None
    exact = _Rounding()
    starts = sorted({tier.start for price in _tiered(prices) for tier in price.tiers})
    base, *tiers = [_at(prices, start, exact) for start in (None, *starts)]
    requests = prices.requests_kcount
    if isinstance(requests, TieredPrices):
        return None  # no call price depends on the length of the input today
    call = exact.nanos(requests or Decimal(0), _CALLS_PER_PRICE)
    return Prices(base, tuple(tiers), call, exact.rounded, by_time_of_day=False)


def _tiered(prices: ModelPrice) -> Iterator[TieredPrices]:
    for key in ("input_mtok", "cache_read_mtok", "cache_write_mtok", *_OUTPUT_KEYS):
        value = getattr(prices, key)
        if isinstance(value, TieredPrices):
            yield value


class _Rounding:
    """Turns USD into nano-USD and remembers whether anything had to be rounded."""

    def __init__(self) -> None:
        self.rounded = False

    def nanos(self, usd: Decimal, divisor: int = 1) -> int:
        exact = usd * NANOS_PER_USD / divisor
        whole = exact.to_integral_value(rounding=ROUND_CEILING)
        self.rounded |= whole != exact
        return int(whole)


def _at(prices: ModelPrice, start: int | None, exact: _Rounding) -> TokenPrices:
    """The token prices just above a tier's start; None: below every tier."""

    def price(key: str) -> int | None:
        value = getattr(prices, key)
        if value is None:
            return None
        if isinstance(value, TieredPrices):
            passed = [
                tier.price for tier in value.tiers if start is not None and start >= tier.start
            ]
            value = passed[-1] if passed else value.base
        return exact.nanos(value)

    plain = price("input_mtok") or 0
    cached, write = price("cache_read_mtok"), price("cache_write_mtok")
    return TokenPrices(
        above_input_tokens=start or 0,
        input=plain,
        cached_input=plain if cached is None else cached,
        cache_write=plain if write is None else write,
        output=max(price(key) or 0 for key in _OUTPUT_KEYS),
    )


def _dearest(left: Prices, right: Prices) -> Prices:
    starts = sorted({tier.above_input_tokens for tier in (*left.tiers, *right.tiers)})
    base, *tiers = [_max(_held(left, start), _held(right, start)) for start in (0, *starts)]
    return Prices(
        base,
        tuple(replace(tier, above_input_tokens=at) for at, tier in zip(starts, tiers, strict=True)),
        max(left.call_nanos, right.call_nanos),
        left.rounded or right.rounded,
        by_time_of_day=True,
    )


def _held(prices: Prices, start: int) -> TokenPrices:
    passed: Iterable[TokenPrices] = [
        tier for tier in prices.tiers if start >= tier.above_input_tokens and start > 0
    ]
    return [prices.base, *passed][-1]


def _max(left: TokenPrices, right: TokenPrices) -> TokenPrices:
    names = [field.name for field in fields(TokenPrices)]
    return TokenPrices(*(max(getattr(left, name), getattr(right, name)) for name in names))
