"""Amounts and durations are read exactly, or refused with what would be right."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bursar.units import (
    INT64_MAX,
    UNITS,
    format_amount,
    parse_amount,
    parse_duration_ms,
    show_amount,
    show_duration,
    show_over,
    show_used,
)

GIB = 2**30


@pytest.mark.parametrize(
    ("unit", "text", "expected"),
    [
        ("tokens", 500, 500),
        ("tokens", "2_000_000", 2_000_000),
        ("tokens", "500 tokens", 500),
        ("calls", "12 calls", 12),
        ("concurrency", 4, 4),
        ("usd_nanos", "25.00 USD", 25_000_000_000),
        ("usd_nanos", "$0.000000001", 1),
        ("usd_nanos", "1_000 USD", 10**12),
        ("usd_nanos", 7, 7),
        ("usd_nanos", INT64_MAX, INT64_MAX),
        ("gpu_ms", "15 min", 900_000),
        ("gpu_ms", "2 h", 7_200_000),
        ("gpu_ms", "0.5s", 500),
        ("vram_bytes", "8 GiB", 8 * 2**30),
        ("vram_bytes", "1.5 KiB", 1536),
        ("vram_bytes", "80 GB", 80 * 10**9),
        ("energy_mj", "2 kWh", 7_200_000_000),
        ("vram_mib_s", "7 MiBs", 7),
        ("vram_mib_s", "0.5 GiBs", 512),
        ("vram_mib_s", "80 GiBh", 80 * 1024 * 3600),
    ],
)
def test_an_amount_is_read_exactly(unit: str, text: int | str, expected: int) -> None:
    assert parse_amount(unit, text) == expected


@pytest.mark.parametrize(
    ("unit", "text", "complaint"),
    [
        ("tokens", "2M", "write an integer such as 2_000_000"),
        ("tokens", "2.5", "finer than the unit can count"),
        ("tokens", "$5", "write an integer"),
        ("tokens", -1, "not from 0"),
        ("tokens", True, "write an integer"),
        ("tokens", "", "write an integer"),
        ("usd_nanos", "ten USD", '"25.00 USD"'),
        ("usd_nanos", "0.0000000001 USD", "finer than the unit can count"),
        ("usd_nanos", "9223372037 USD", "beyond the largest amount"),
        ("usd_nanos", "25 EUR", '"25.00 USD"'),
        ("usd_nanos", 25.0, '"25.00 USD"'),
        ("usd_nanos", INT64_MAX + 1, "not from 0"),
        ("vram_bytes", "8 gib", '"8 GiB"'),
        ("gpu_ms", "2 weeks", '"15 min"'),
        ("vram_mib_s", "8 GiB", '"80 GiBh"'),
        ("parsecs", 1, "no such unit"),
    ],
)
def test_what_is_not_a_whole_amount_is_refused(unit: str, text: object, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint.replace("$", r"\$")):
        parse_amount(unit, text)  # type: ignore[arg-type]


@given(st.integers(min_value=0, max_value=INT64_MAX))
def test_money_that_is_shown_is_read_back_to_the_nano(nanos: int) -> None:
    shown = format_amount("usd_nanos", nanos)
    assert parse_amount("usd_nanos", shown.replace(",", "")) == nanos


@given(st.sampled_from(sorted(UNITS)), st.text(max_size=30))
def test_any_text_is_read_as_an_amount_or_refused(unit: str, text: str) -> None:
    try:
        amount = parse_amount(unit, text)
    except ValueError:
        return
    assert 0 <= amount <= INT64_MAX


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "$0.00"),
        (12_345_678_901, "$12.345678901"),
        (-1, "-$0.000000001"),
        (10**13, "$10,000.00"),
    ],
)
def test_money_is_shown_in_exact_dollars(value: int, shown: str) -> None:
    assert format_amount("usd_nanos", value) == shown


@pytest.mark.parametrize(
    ("text", "expected"),
    [("500ms", 500), ("60s", 60_000), ("5m", 300_000), ("24h", 86_400_000), ("30d", 2_592_000_000)],
)
def test_a_duration_is_read(text: str, expected: int) -> None:
    assert parse_duration_ms(text) == expected


@pytest.mark.parametrize("text", ["", "60", "1w", "-5s", "$5", "0.0001s", "5 GiB"])
def test_what_is_not_a_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="write a duration"):
        parse_duration_ms(text)


@pytest.mark.parametrize(
    ("unit", "value", "shown"),
    [
        ("vram_bytes", 0, "0 B"),
        ("vram_bytes", 1023, "1,023 B"),
        ("vram_bytes", 1024, "1 KiB"),
        ("vram_bytes", 19 * GIB // 2, "9.5 GiB"),
        ("vram_bytes", 80 * GIB, "80 GiB"),
        ("vram_bytes", GIB - 1, "1 GiB"),
        ("vram_bytes", 5000 * 1024 * GIB, "5,000 TiB"),
        ("energy_mj", 1_234_567, "1.2 kJ"),
        ("vram_mib_s", 80 * 1024 * 3600, "80 GiBh"),
        ("gpu_ms", 65_500, "1 min 5 s"),
        ("usd_nanos", 12 * 10**9, "$12.00"),
        ("tokens", 1_234, "1,234"),
    ],
)
def test_an_amount_is_shown_in_its_largest_unit_to_one_decimal(
    unit: str, value: int, shown: str
) -> None:
    assert show_amount(unit, value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0 ms"),
        (999, "999 ms"),
        (1000, "1 s"),
        (12_340, "12.34 s"),
        (59_999, "59.99 s"),
        (125_000, "2 min 5 s"),
        (3_600_000, "1 h"),
        (12_000_000, "3 h 20 min"),
    ],
)
def test_a_duration_is_shown_in_its_largest_units(value: int, shown: str) -> None:
    assert show_duration(value) == shown


@given(st.sampled_from(sorted(UNITS)), st.integers(0, INT64_MAX), st.integers(1, INT64_MAX))
def test_what_passed_a_limit_never_reads_as_if_it_had_not(unit: str, limit: int, more: int) -> None:
    """Read back, what is shown is in the same order; near misses of the limit are drawn, too."""
    for used in (limit, limit + 1, limit + more):
        shown, allowed = show_used(unit, used, limit)
        assert (shown == allowed) == (used == limit)
        assert ("passed" in show_over(unit, used, limit)) == (used > limit)
        assert _read(unit, shown) >= _read(unit, allowed)


def _read(unit: str, shown: str) -> float:
    """What a person takes from it, in the unit's base."""
    suffixes = {"": 1, "$": 10**9, **(UNITS[unit] or {})}
    total = 0.0
    for number, suffix in re.findall(r"([\d.]+) ?([A-Za-z]*)", shown.replace(",", "")):
        total += float(number) * suffixes[suffix or "$" * shown.startswith("$")]
    return total


@pytest.mark.parametrize(
    ("unit", "used", "limit", "words"),
    [
        ("vram_bytes", 6 * GIB, 4 * GIB, "VRAM of 6 GiB passed the limit of 4 GiB"),
        ("usd_nanos", 10**9, 10**9, "a spend of $1.00 reached the limit of $1.00"),
        ("gpu_ms", 60_001, 60_000, "GPU time of 60,001 ms passed the limit of 60,000 ms"),
        ("tokens", 6, 5, "6 tokens passed the limit of 5"),
        ("concurrency", 6, 5, "concurrency of 6 passed the limit of 5"),
    ],
)
def test_a_limit_that_is_passed_is_told_in_words(
    unit: str, used: int, limit: int, words: str
) -> None:
    assert show_over(unit, used, limit) == words
