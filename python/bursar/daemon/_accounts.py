"""`[[accounts]]`: patterns of paths and the budgets of the accounts that match them."""

import re
from typing import Any, Final, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from bursar.daemon._advice import AdviceConfig
from bursar.daemon._model import Section, right
from bursar.daemon._runaway import RunawaySection
from bursar.models import PERIOD_RIGHT, Period, PeriodKind
from bursar.units import CAPACITY_UNITS, UNITS, parse_amount

PATH_NAMES_MAX: Final = 16
THRESHOLDS_MAX: Final = 4
BUDGETS_MAX: Final = 16
PERMILLE_MAX: Final = 1000
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def split_path(path: str) -> list[str]:
    """The names of an account's path; raises ValueError when they are too many."""
    names = path.split("/")
    if len(names) > PATH_NAMES_MAX:
        raise ValueError(f"it has {len(names)} names; at most {PATH_NAMES_MAX} are allowed")
    return names


def check_name(name: str) -> None:
    """Raises ValueError for what is not one name of an account's path."""
    if _NAME.fullmatch(name) is None:
        raise ValueError(
            f"{name!r} is not a name: 1 to 64 letters, digits and ._- that begin with a "
            "letter or digit",
        )


def check_pattern(value: str) -> None:
    """Raises ValueError for what is not a pattern of paths."""
    names = split_path(value)
    for index, name in enumerate(names):
        if name == "*" or (name == "**" and index == len(names) - 1):
            continue
        if name == "**":
            raise ValueError("** may only be the last name")
        check_name(name)


class ThresholdConfig(Section):
    """A share of the limit that, once spent, changes the verdict."""

    percent: float = Field(
        description="the share of the limit, once spent, in per cent",
        json_schema_extra=right("write a number from 0.1 to 100 with at most one decimal"),
    )
    verdict: Literal["warn", "degrade"] = Field(
        description="what callers are told from then on",
        json_schema_extra=right('write "warn" or "degrade"'),
    )
    advice: AdviceConfig = Field(
        default_factory=AdviceConfig,
        description="what callers should change then",
        json_schema_extra=right("write a table such as { max_new_tokens = 64 }"),
    )

    @field_validator("percent", mode="before")
    @classmethod
    def _percent(cls, value: object) -> object:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError("that is not a number")  # noqa: TRY004 -- pydantic reads ValueErrors
        permille = round(value * 10)
        if not 1 <= permille <= PERMILLE_MAX or abs(value * 10 - permille) > 1e-6:  # noqa: PLR2004 -- the error of a decimal fraction in binary
            raise ValueError("that is not a share in thousandths")
        return value

    @property
    def permille(self) -> int:
        """The share in thousandths."""
        return round(self.percent * 10)

    def to_core(self) -> dict[str, Any]:
        """Writes the core's form."""
        return {
            "permille": self.permille,
            "verdict": self.verdict,
            "advice": self.advice.model_dump(),
        }


class BudgetConfig(Section):
    """A hard limit and thresholds for one unit and period."""

    unit: str = Field(
        description="what the budget counts",
        json_schema_extra=right(f"write one of {', '.join(sorted(UNITS))}"),
    )
    period: str = Field(
        default="total",
        description="how long a window lasts and when it starts anew",
        json_schema_extra=right(PERIOD_RIGHT),
    )
    limit: int = Field(
        description="the hard limit of the budget",
        json_schema_extra=right("write an integer in the base of the unit"),
    )
    thresholds: tuple[ThresholdConfig, ...] = Field(
        default=(),
        max_length=THRESHOLDS_MAX,
        strict=False,
        description="shares of the limit that change the verdict",
        json_schema_extra=right('write at most 4, such as [{ percent = 90, verdict = "degrade" }]'),
    )

    @field_validator("unit")
    @classmethod
    def _unit(cls, value: str) -> str:
        if value not in UNITS:
            raise ValueError("there is no such unit")
        return value

    @field_validator("period")
    @classmethod
    def _period(cls, value: str, info: ValidationInfo) -> str:
        period = Period.parse(value)
        if info.data.get("unit") in CAPACITY_UNITS and period.kind is not PeriodKind.TOTAL:
            raise ValueError(
                f"{info.data['unit']} comes back when a reservation ends, so its budget has no "
                'windows; write "total"',
            )
        if not _zone_exists(period.time_zone):
            raise ValueError(f"there is no time zone {period.time_zone}; write an IANA name")
        return value

    @field_validator("limit", mode="before")
    @classmethod
    def _limit(cls, value: object, info: ValidationInfo) -> object:
        unit = info.data.get("unit")
        if unit is None:  # the unit is wrong, which is told once, there
            return 0
        return parse_amount(unit, value)  # type: ignore[arg-type]  # it refuses other types itself

    @field_validator("thresholds")
    @classmethod
    def _ascending(cls, value: tuple[ThresholdConfig, ...]) -> tuple[ThresholdConfig, ...]:
        shares = [threshold.permille for threshold in value]
        if shares != sorted(set(shares)):
            raise ValueError("they are not in ascending order of percent")
        return value

    @property
    def parsed_period(self) -> Period:
        """The period, read."""
        return Period.parse(self.period)

    def to_core(self) -> dict[str, Any]:
        """Writes the core's form."""
        period = self.parsed_period
        return {
            "unit": self.unit,
            "period": {
                "kind": period.kind.value,
                "time_zone": period.time_zone,
                "length_ms": period.length_ms,
            },
            "limit": self.limit,
            "thresholds": [threshold.to_core() for threshold in self.thresholds],
        }


class AccountPattern(Section):
    """Accounts that exist once they are named, and the budgets that each of them has."""

    path: str = Field(
        description="a path of names; * stands for one name, ** at the end for any further ones",
        json_schema_extra=right('write a path such as "acme/research/*"'),
    )
    budgets: tuple[BudgetConfig, ...] = Field(
        default=(),
        max_length=BUDGETS_MAX,
        strict=False,
        description="the budgets of each account that matches",
        json_schema_extra=right("write at most 16 [[accounts.budgets]] tables"),
    )
    runaway: RunawaySection | None = Field(
        default=None,
        description="what is a runaway here; keys that are left out are as in [runaway]",
        json_schema_extra=right('write a table such as { action = "stop", depth = 4 }'),
    )

    @field_validator("path")
    @classmethod
    def _path(cls, value: str) -> str:
        check_pattern(value)
        return value

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        seen: set[tuple[str, str]] = set()
        for budget in self.budgets:
            key = (budget.unit, str(budget.parsed_period))
            if key in seen:
                raise ValueError(f"two budgets count {key[0]} per {key[1]}; keep one")
            seen.add(key)
        return self

    def to_core(self, runaway: RunawaySection) -> dict[str, Any]:
        """Writes the core's form; `runaway` is what holds where nothing else is said."""
        core = {"path": self.path, "budgets": [budget.to_core() for budget in self.budgets]}
        if self.runaway is None:
            return core
        return {**core, "runaway": runaway.overridden(self.runaway).to_core()}


def _zone_exists(name: str) -> bool:
    if name == "UTC":
        return True
    from bursar import _core

    return _core.check_time_zone(name)
