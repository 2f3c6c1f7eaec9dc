"""Burn rates and forecasts: the formula as it is documented, and what resets do to it."""

import math
from datetime import UTC, datetime, timedelta
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bursar import Balance
from bursar.forecast import (
    HORIZON_S,
    OBSERVED_S_MIN,
    TIME_CONSTANT_S,
    Burn,
    exhausted_in_s,
    resets_in_s,
)

Stretch = tuple[float, int]
"""So long, in seconds, and what was spent meanwhile."""

STRETCHES: Final = st.lists(
    st.tuples(st.floats(0.05, 600), st.integers(0, 10**15)), min_size=1, max_size=40
)


def seen(stretches: list[Stretch], *, first_s: float = 1_000.0, spent: int = 7) -> Burn:
    burn = Burn()
    burn.see(first_s, spent)
    for passed_s, more in stretches:
        first_s, spent = first_s + passed_s, spent + more
        burn.see(first_s, spent)
    return burn


def by_the_formula(stretches: list[Stretch]) -> float:
    """The sum as the module's documentation writes it."""
    rates = weights = age_s = 0.0
    for passed_s, more in reversed(stretches):
        weight = -math.expm1(-passed_s / TIME_CONSTANT_S) * math.exp(-age_s / TIME_CONSTANT_S)
        rates, weights, age_s = rates + weight * more / passed_s, weights + weight, age_s + passed_s
    return rates / weights


def long_enough(stretches: list[Stretch]) -> list[Stretch]:
    return [(OBSERVED_S_MIN + 1, 0), *stretches]


@given(STRETCHES)
def test_the_rate_is_the_documented_mean(stretches: list[Stretch]) -> None:
    stretches = long_enough(stretches)
    end_s = 1_000 + sum(passed_s for passed_s, _ in stretches)
    rate = seen(stretches).rate_per_s(end_s)
    assert rate is not None
    assert rate == pytest.approx(by_the_formula(stretches), rel=1e-6, abs=1e-9)
    speeds = [more / passed_s for passed_s, more in stretches]
    assert min(speeds) * (1 - 1e-6) <= rate <= max(speeds) * (1 + 1e-6)


@given(STRETCHES, st.floats(0.01, 3_600))
def test_silence_is_a_sample_in_which_nothing_was_spent(
    stretches: list[Stretch], idle_s: float
) -> None:
    stretches = long_enough(stretches)
    end_s = 1_000 + sum(passed_s for passed_s, _ in stretches) + idle_s
    silent, told = seen(stretches), seen([*stretches, (idle_s, 0)])
    expected = pytest.approx(told.rate_per_s(end_s), rel=1e-6, abs=1e-9)
    assert silent.rate_per_s(end_s) == expected


@given(st.integers(1, 10**9), st.lists(st.integers(1, 200), min_size=1, max_size=50))
def test_an_even_speed_is_its_own_rate_however_it_is_sampled(
    speed: int, stretches: list[int]
) -> None:
    burn = seen([(passed_s, speed * passed_s) for passed_s in [6, *stretches]])
    assert burn.rate_per_s(1_006 + sum(stretches)) == pytest.approx(speed)


@given(STRETCHES, st.integers(0, 10**6), st.integers(0, 10**6))
def test_a_reset_makes_no_rate_negative_and_counts_what_the_new_window_holds(
    stretches: list[Stretch], before: int, after: int
) -> None:
    end_s = 1_000 + sum(passed_s for passed_s, _ in stretches)
    anew, reference = seen(stretches), seen(stretches)
    spent = 7 + sum(more for _, more in stretches)
    anew.see(end_s + 10, after, start="the next window")
    reference.see(end_s + 10, spent + after)
    assert anew.rate_per_s(end_s + 10) == reference.rate_per_s(end_s + 10)
    fallen = seen(stretches)
    fallen.see(end_s + 10, spent - before)
    assert (fallen.rate_per_s(end_s + 10) or 0) >= 0


def test_a_ledger_that_has_lost_all_goes_on_from_what_it_says() -> None:
    burn = seen([(10, 1_000)])
    burn.see(1_020, 0)
    burn.see(1_030, 1_000)
    expected = by_the_formula([(10, 1_000), (10, 0), (10, 1_000)])
    assert burn.rate_per_s(1_030) == pytest.approx(expected)


def test_a_rate_fades_with_its_time_constant() -> None:
    burn = seen([(10 * TIME_CONSTANT_S, 600_000)])
    end_s = 1_000 + 10 * TIME_CONSTANT_S
    before, after = burn.rate_per_s(end_s), burn.rate_per_s(end_s + TIME_CONSTANT_S)
    assert (before, after) == pytest.approx((1_000, 1_000 / math.e), rel=1e-3)


def test_no_rate_is_told_before_there_is_enough_to_see() -> None:
    burn = Burn()
    assert burn.rate_per_s(10) is None
    burn.see(10, 0)
    burn.see(11, 1_000_000)
    assert burn.rate_per_s(10 + OBSERVED_S_MIN - 0.1) is None
    assert burn.rate_per_s(10 + OBSERVED_S_MIN) is not None


def test_samples_out_of_order_change_nothing_and_lose_nothing() -> None:
    burn = seen([(10, 100)])
    burn.see(1_010, 150)
    burn.see(900, 40)
    burn.see(1_020, 207)
    assert burn.rate_per_s(1_020) == pytest.approx(10)


@pytest.mark.parametrize(
    ("left", "rate", "resets_in_s", "expected"),
    [
        (100, 10.0, None, 10.0),
        (100, 10.0, 60.0, 10.0),
        (100, 10.0, 10.0, None),  # it is anew before
        (100, 0.0, None, None),
        (100, None, None, None),
        (0, 10.0, 60.0, 0.0),
        (-5, None, 60.0, 0.0),
        (100, 99 / HORIZON_S, None, None),
        (2**63 - 1, 5e-324, None, None),
    ],
)
def test_a_forecast_is_what_is_left_by_the_rate(
    left: int, rate: float | None, resets_in_s: float | None, expected: float | None
) -> None:
    assert exhausted_in_s(left=left, rate_per_s=rate, resets_in_s=resets_in_s) == expected


def test_a_window_is_anew_at_its_reset_and_a_rolling_one_after_its_length() -> None:
    now = datetime(2026, 5, 1, 12, tzinfo=UTC)

    def resets(period: str, reset_time: datetime | None = None) -> float | None:
        balance = Balance("acme", "tokens", period, 10, 0, 0, 10, reset_time=reset_time)
        return resets_in_s(balance, now=now)

    assert resets("hour", now + timedelta(minutes=2)) == 120
    assert resets("hour", now - timedelta(minutes=2)) == 0
    assert resets("rolling:3600s") == 3_600
    assert resets("total") is None
