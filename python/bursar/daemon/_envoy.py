"""`[envoy]`: the rate limit service of Envoy, and which accounts its descriptors are charged to."""

import re
from typing import Final, Literal, Self

from pydantic import Field, model_validator

from bursar.daemon._accounts import check_name, split_path
from bursar.daemon._model import Section, right

_RULES_MAX: Final = 1_000
_HITS_MAX: Final = 1_000_000_000
_HITS: Final = right("write an integer from 1 to 1_000_000_000")
_PLACEHOLDER: Final = re.compile(r"\{([^{}]*)\}")


class EnvoyRule(Section):
    """A rule: descriptors of Envoy's, and what they are charged to."""

    domain: str = Field(
        default="*",
        min_length=1,
        max_length=256,
        description="the domain of the filter; it may end in *",
        json_schema_extra=right('write a domain such as "edge"'),
    )
    entries: tuple[str, ...] = Field(
        min_length=1,
        max_length=32,
        strict=False,
        description="the entries of the descriptor, all of them in order; each may end in *",
        json_schema_extra=right('write keys, with values or without: ["team=core", "agent"]'),
    )
    account: str = Field(
        min_length=1,
        max_length=1024,
        description="the account; {key} stands for the value of that entry, one name",
        json_schema_extra=right('write a path such as "acme/{team}/{agent}"'),
    )
    unit: Literal["tokens", "usd_nanos", "gpu_ms", "energy_mj", "calls", "vram_mib_s"] = Field(
        default="tokens",
        description="what a hit counts",
        json_schema_extra=right("write a unit that is spent, such as tokens or calls"),
    )
    over: Literal["refuse", "record"] = Field(
        default="refuse",
        description="what becomes of a charge that does not fit: OVER_LIMIT, or it counts in full",
        json_schema_extra=right('write "refuse", or "record" where it has been used already'),
    )
    default_hits: int = Field(
        default=1,
        ge=0,
        le=_HITS_MAX,
        description="the hits where a request names none; 0 asks whether anything is left",
        json_schema_extra=right("write an integer from 0 to 1_000_000_000"),
    )
    per_hit: int = Field(
        default=1,
        ge=1,
        le=_HITS_MAX,
        description="how much of the unit one hit is",
        json_schema_extra=_HITS,
    )
    min_left: int = Field(
        default=1,
        ge=1,
        le=_HITS_MAX,
        description="how many hits have to be left where 0 are asked for",
        json_schema_extra=_HITS,
    )

    @model_validator(mode="after")
    def _names_entries(self) -> Self:
        keys = [entry.partition("=")[0] for entry in self.entries]
        for key in _PLACEHOLDER.findall(self.account):
            if keys.count(key) != 1 or key.endswith("*"):
                raise ValueError(f"{{{key}}} in account is not the key of exactly one entry")
        for name in split_path(_PLACEHOLDER.sub("x", self.account)):
            check_name(name)
        return self


class EnvoySection(Section):
    """`[envoy]`: Envoy and what is built on it ask the sidecar, on its own listeners."""

    unmatched: Literal["refuse", "allow"] = Field(
        default="refuse",
        description="what becomes of descriptors that no rule fits: OVER_LIMIT, or OK",
        json_schema_extra=right('write "refuse" or "allow"'),
    )
    rules: tuple[EnvoyRule, ...] = Field(
        default=(),
        max_length=_RULES_MAX,
        strict=False,
        description="the rules; the first that fits counts, without any the service is off",
        json_schema_extra=right("write at most 1_000 [[envoy.rules]] tables"),
    )
