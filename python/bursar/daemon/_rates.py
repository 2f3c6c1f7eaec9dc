"""The rate card as configuration: `[[models]]` of the rates file, `[[rates.models]]` over it.

Prices are integers in billionths of a US dollar. What a price multiplies is the core's business.
"""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Final, TypeAlias

from pydantic import AfterValidator, Field, ValidationError, field_validator

from bursar.daemon._explain import ConfigError, Problem, explain
from bursar.daemon._model import Section, right
from bursar.units import INT64_MAX

LIST_PRICES: Final = Path(__file__).parent.parent / "rates" / "rates.toml"
"""The card that comes with Bursar."""

TIERS_MAX: Final = 8
ALIASES_MAX: Final = 64
_PRICE: Final = right("write an integer of billionths of a US dollar (nanos), 0 or more")


class Prices(Section):
    """Prices per million tokens; an absent cache price is that of uncached input."""

    input_nanos_per_million: int = Field(
        default=0,
        ge=0,
        le=INT64_MAX,
        description="the price of a million input tokens",
        json_schema_extra=_PRICE,
    )
    cached_input_nanos_per_million: int | None = Field(
        default=None,
        ge=0,
        le=INT64_MAX,
        description="the price of a million input tokens read from the provider's cache",
        json_schema_extra=_PRICE,
    )
    cache_write_nanos_per_million: int | None = Field(
        default=None,
        ge=0,
        le=INT64_MAX,
        description="the price of a million input tokens written to the provider's cache",
        json_schema_extra=_PRICE,
    )
    output_nanos_per_million: int = Field(
        default=0,
        ge=0,
        le=INT64_MAX,
        description="the price of a million output tokens",
        json_schema_extra=_PRICE,
    )

    def prices_to_core(self) -> dict[str, int]:
        """Writes the core's form, with the cache prices filled in."""
        plain = self.input_nanos_per_million
        cached, write = self.cached_input_nanos_per_million, self.cache_write_nanos_per_million
        return {
            "input_nanos_per_million": plain,
            "cached_input_nanos_per_million": plain if cached is None else cached,
            "cache_write_nanos_per_million": plain if write is None else write,
            "output_nanos_per_million": self.output_nanos_per_million,
        }


class RateTier(Prices):
    """Prices of the whole call once its input passes a size."""

    above_input_tokens: int = Field(
        ge=1,
        le=INT64_MAX,
        description="the tier holds for calls with more input tokens than this",
        json_schema_extra=right("write an integer such as 200_000"),
    )


class RateModel(Prices):
    """What one model costs."""

    name: str = Field(
        min_length=1,
        max_length=256,
        description="the model's name",
        json_schema_extra=right('write a name such as "gpt-4o"'),
    )
    aliases: tuple[str, ...] = Field(
        default=(),
        max_length=ALIASES_MAX,
        strict=False,
        description="other names of the same model",
        json_schema_extra=right('write a list such as ["gpt-4o-2024-08-06"]'),
    )
    tokenizer: str | None = Field(
        default=None,
        min_length=1,
        description="the encoding that counts its tokens",
        json_schema_extra=right('write an encoding such as "o200k_base", or leave it out'),
    )
    call_nanos: int = Field(
        default=0,
        ge=0,
        le=INT64_MAX,
        description="the price of one call",
        json_schema_extra=_PRICE,
    )
    gpu_second_nanos: int = Field(
        default=0,
        ge=0,
        le=INT64_MAX,
        description="the price of one second of GPU time",
        json_schema_extra=_PRICE,
    )
    tiers: tuple[RateTier, ...] = Field(
        default=(),
        max_length=TIERS_MAX,
        strict=False,
        description="prices for long inputs",
        json_schema_extra=right("write tables with above_input_tokens, in ascending order"),
    )

    @field_validator("tiers")
    @classmethod
    def _ascending(cls, value: tuple[RateTier, ...]) -> tuple[RateTier, ...]:
        sizes = [tier.above_input_tokens for tier in value]
        if sizes != sorted(set(sizes)):
            raise ValueError("they are not in ascending order of above_input_tokens")
        return value

    def to_core(self) -> dict[str, Any]:
        """Writes the core's form."""
        return {
            "model": self.name,
            "aliases": list(self.aliases),
            "tokenizer": self.tokenizer,
            **self.prices_to_core(),
            "call_nanos": self.call_nanos,
            "gpu_second_nanos": self.gpu_second_nanos,
            "tiers": [
                {"above_input_tokens": tier.above_input_tokens, **tier.prices_to_core()}
                for tier in self.tiers
            ],
        }


def _distinct(models: tuple[RateModel, ...]) -> tuple[RateModel, ...]:
    names = Counter(name for model in models for name in (model.name, *model.aliases))
    for name, count in names.items():
        if count > 1:
            raise ValueError(f"{name!r} names a model more than once; write each name once")
    return models


RateModels: TypeAlias = Annotated[
    tuple[RateModel, ...], Field(strict=False), AfterValidator(_distinct)
]
"""Models whose names and aliases are all different."""


class RatesFile(Section):
    """A rates file: nothing but `[[models]]` tables."""

    models: RateModels = Field(
        default=(),
        description="the models and their prices",
        json_schema_extra=right("write [[models]] tables"),
    )


def read_rates(file: Path) -> tuple[RateModel, ...]:
    """Reads a rates file; raises ConfigError, naming the file, where something is wrong."""
    from bursar.daemon.config import read_toml

    try:
        return RatesFile.model_validate(read_toml(file)).models
    except ValidationError as error:
        problems = explain(RatesFile, error)
        raise ConfigError(
            [Problem(f"{file}: {problem.key}", problem.text) for problem in problems]
        ) from None


def merge_rates(file: Iterable[RateModel], overrides: Iterable[RateModel]) -> tuple[RateModel, ...]:
    """Puts overrides before the file's models and takes the names they use away from those."""
    first = tuple(overrides)
    taken = {name for model in first for name in (model.name, *model.aliases)}
    kept = []
    for model in file:
        if model.name not in taken:
            aliases = tuple(alias for alias in model.aliases if alias not in taken)
            kept.append(model.model_copy(update={"aliases": aliases}))
    return (*first, *kept)
