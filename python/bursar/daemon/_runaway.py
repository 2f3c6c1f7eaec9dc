"""`[runaway]`: what shows that an agent has lost its way, and what follows.

The bounds lie well above what honest work shows and well below what a loop does in minutes; see the
example configuration for what each of them counts.
"""

from typing import Any, Final, Literal, Self

from pydantic import Field

from bursar.daemon._advice import AdviceConfig
from bursar.daemon._model import DurationMs, Section, right

RULES: Final = (
    "velocity",
    "depth",
    "repeats",
    "children",
    "open_reservations",
    "no_progress",
)
BOUND_MAX: Final = 1_000_000_000
_BOUND: Final = right("write an integer up to 1_000_000_000; 0 switches the rule off")


class RunawaySection(Section):
    """`[runaway]`: what shows that an agent has lost its way, and what follows."""

    action: Literal["off", "warn", "degrade", "stop", "freeze"] = Field(
        default="warn",
        description="what follows a finding besides its entry; off looks for nothing",
        json_schema_extra=right('write "off", "warn", "degrade", "stop" or "freeze"'),
    )
    interval: DurationMs = Field(
        default=300_000,
        ge=1_000,
        le=86_400_000,
        description="how long what happens is counted together",
        json_schema_extra=right('write from "1s" to "24h", such as "5m"'),
    )
    velocity: int = Field(
        default=10,
        ge=0,
        le=BOUND_MAX,
        description="how many times the pace of a budget one account may spend in an interval",
        json_schema_extra=_BOUND,
    )
    depth: int = Field(
        default=16,
        ge=0,
        le=BOUND_MAX,
        description="how deep reservations may be nested in each other",
        json_schema_extra=_BOUND,
    )
    repeats: int = Field(
        default=50,
        ge=0,
        le=BOUND_MAX,
        description="how often an account may ask for the same prompt in an interval",
        json_schema_extra=_BOUND,
    )
    children: int = Field(
        default=100,
        ge=0,
        le=BOUND_MAX,
        description="how many pending reservations may be nested in one",
        json_schema_extra=_BOUND,
    )
    open_reservations: int = Field(
        default=1_000,
        ge=0,
        le=BOUND_MAX,
        description="how many pending reservations one account may have",
        json_schema_extra=_BOUND,
    )
    no_progress: int = Field(
        default=100,
        ge=0,
        le=BOUND_MAX,
        description="how many reservations in a row may end in an interval with nothing spent",
        json_schema_extra=_BOUND,
    )
    advice: AdviceConfig = Field(
        default_factory=AdviceConfig,
        description="what callers are told to change when the action is to degrade",
        json_schema_extra=right("write a table such as { max_new_tokens = 64 }"),
    )

    def overridden(self, other: Self) -> Self:
        """The same, with the keys that are written in another one."""
        written = {name: getattr(other, name) for name in other.model_fields_set}
        return self.model_copy(update=written)

    def to_core(self) -> dict[str, Any]:
        """Writes the core's form."""
        return {
            "action": self.action,
            "interval_ms": self.interval,
            "most": {rule: getattr(self, rule) for rule in RULES},
            "advice": self.advice.model_dump(),
        }
