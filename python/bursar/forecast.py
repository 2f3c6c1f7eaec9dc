"""How fast a window is spent, and when it will be empty: from samples of what is spent.

Pure: no clock, no calls; times are arguments in seconds, on one clock that does not step. Rates and
forecasts are floats, for people to look at; no amount is computed from them.

**Rate.** The exponentially weighted moving average of what was spent per second, over the time
constant τ. A stretch of dt seconds in which ds was spent, that ended `age` seconds ago, has the
weight ``(1 - e^(-dt/τ)) e^(-age/τ)``; the rate is ``Σ weight ds/dt / Σ weight``. So

- it does not matter how often is sampled while the speed is even, and an even speed is its own rate
  from the first stretch on;
- half of the weight is on the last ``0.69 τ``, 95 % on the last ``3 τ``;
- where nothing changes there need be no samples: up to the time asked for, nothing was spent.

**Resets.** Where a window starts anew, what it holds was spent since the sample before: it counts,
and what went into the old one meanwhile is not known and does not. Where `spent` falls within one
window (it rolls, or the ledger has lost it), nothing is known to have been spent.

**Forecast.** ``left / rate``, unless the window starts anew before: then it lasts. A rolling window
is anew, in this sense, after its length: by then all that it holds now has left it. As what leaves
it before that is not foreseen, its forecast is the earliest time.
"""

import math
from datetime import datetime
from typing import Final

from bursar.models import Balance, Period, PeriodKind

__all__ = [
    "HORIZON_S",
    "OBSERVED_S_MIN",
    "TIME_CONSTANT_S",
    "Burn",
    "exhausted_in_s",
    "resets_in_s",
]

TIME_CONSTANT_S: Final = 60.0
"""The τ of a rate, unless another is given: what the last few minutes were like."""

OBSERVED_S_MIN: Final = 5.0
"""A rate is told from this much seen on: one commit in the first second is no speed."""

HORIZON_S: Final = 365 * 86_400.0
"""What would take longer is not forecast: no speed lasts that long."""


class Burn:
    """How fast one window is spent. Constant in size: four numbers, however many samples."""

    __slots__ = ("_first_s", "_last_s", "_rates", "_spent", "_start", "_time_constant_s")

    def __init__(self, *, time_constant_s: float = TIME_CONSTANT_S) -> None:
        self._time_constant_s = time_constant_s
        self._first_s: float | None = None
        self._last_s = 0.0
        self._spent = 0
        self._start: object = None
        self._rates = 0.0  # the sum of weight * rate, as of the last sample

    def see(self, time_s: float, spent: int, *, start: object = None) -> None:
        """Takes a sample.

        Args:
            time_s: When it was taken; one that is not later than the last changes nothing.
            spent: What the window says is spent.
            start: What tells one window of a budget from the next: its start.
        """
        if self._first_s is None:
            self._first_s = self._last_s = time_s
            self._spent, self._start = spent, start
            return
        passed_s = time_s - self._last_s
        if passed_s <= 0:
            return
        more = max(0, spent - self._spent if start == self._start else spent)
        kept = math.exp(-passed_s / self._time_constant_s)
        weight = -math.expm1(-passed_s / self._time_constant_s)
        self._rates = self._rates * kept + weight * (more / passed_s)
        self._last_s, self._spent, self._start = time_s, spent, start

    def rate_per_s(self, now_s: float) -> float | None:
        """The rate at a time not before the last sample; None: too little was seen of it."""
        if self._first_s is None or now_s - self._first_s < OBSERVED_S_MIN:
            return None
        idle_s = max(0.0, now_s - self._last_s)
        weights = -math.expm1(-(now_s - self._first_s) / self._time_constant_s)
        return self._rates * math.exp(-idle_s / self._time_constant_s) / weights


def exhausted_in_s(
    *, left: int, rate_per_s: float | None, resets_in_s: float | None = None
) -> float | None:
    """When nothing will be left at this rate, in seconds from now.

    Args:
        left: What may still be spent: the limit less what is spent.
        rate_per_s: What `Burn` says.
        resets_in_s: When the window starts anew; None: never. Of a rolling one: its length.

    Returns:
        0 where nothing is left; None where it lasts until the reset, or nothing is known.
    """
    if left <= 0:
        return 0.0
    if not rate_per_s or left > rate_per_s * HORIZON_S:
        return None
    seconds = left / rate_per_s
    return seconds if resets_in_s is None or seconds < resets_in_s else None


def resets_in_s(balance: Balance, *, now: datetime) -> float | None:
    """When a window starts anew, as `exhausted_in_s` takes it."""
    if balance.reset_time is not None:
        return max(0.0, (balance.reset_time - now).total_seconds())
    period = Period.parse(balance.period)
    return period.length_ms / 1000 if period.kind is PeriodKind.ROLLING else None
