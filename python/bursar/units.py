"""Units and amounts: what is counted, how people write it, how it is shown.

Every amount is an integer in the base of its unit. Text such as ``"25.00 USD"`` is read with exact
decimal arithmetic; what does not come out as an integer is refused, never rounded. This module
knows no configuration, no wire format and no network.
"""

import re
from decimal import Decimal
from types import MappingProxyType
from typing import Final

__all__ = [
    "CAPACITY_UNITS",
    "INT64_MAX",
    "UNITS",
    "format_amount",
    "parse_amount",
    "parse_duration_ms",
    "show_amount",
    "show_duration",
    "show_over",
    "show_used",
]

INT64_MAX: Final = 2**63 - 1

CAPACITY_UNITS: Final = frozenset({"vram_bytes", "concurrency"})
"""Units that come back when the reservation ends; their budgets have the period "total"."""

_BYTES: Final = {
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}
_TIME_MS: Final = {"ms": 1, "s": 1000, "min": 60_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_ENERGY_MJ: Final = {
    "mJ": 1,
    "J": 10**3,
    "kJ": 10**6,
    "MJ": 10**9,
    "Wh": 3_600_000,
    "kWh": 3_600_000_000,
}
_VRAM_MIB_S: Final = {"MiBs": 1, "GiBs": 2**10, "GiBh": 2**10 * 3600}

UNITS: Final = MappingProxyType(
    {
        "tokens": {"tokens": 1},
        "usd_nanos": {"USD": 10**9},
        "gpu_ms": _TIME_MS,
        "vram_bytes": _BYTES,
        "energy_mj": _ENERGY_MJ,
        "calls": {"calls": 1},
        "concurrency": {},
        "vram_mib_s": _VRAM_MIB_S,
    },
)
"""Every unit, with the suffixes that its amounts may be written with and their factors."""

_EXAMPLES: Final = {
    "tokens": "2_000_000",
    "usd_nanos": '"25.00 USD"',
    "gpu_ms": '"15 min" or "2 h"',
    "vram_bytes": '"8 GiB"',
    "energy_mj": '"5 kJ" or "2 kWh"',
    "calls": "10_000",
    "concurrency": "4",
    "vram_mib_s": '"80 GiBh"',
}
_NUMBER: Final = re.compile(r"\s*(\$?)\s*(\d[\d_]*(?:\.\d+)?)\s*([A-Za-z]*)\s*")
_USD_DECIMALS: Final = 9
_SHOWN: Final = {
    "vram_bytes": ("B", "KiB", "MiB", "GiB", "TiB"),
    "energy_mj": ("mJ", "J", "kJ", "MJ"),
    "vram_mib_s": ("MiBs", "GiBs", "GiBh"),
}
"""Units that are shown in the largest of these suffixes of which there is a whole one."""

_NOUNS: Final = {
    "usd_nanos": "a spend",
    "gpu_ms": "GPU time",
    "vram_bytes": "VRAM",
    "energy_mj": "energy",
    "concurrency": "concurrency",
    "vram_mib_s": "VRAM over time",
}
"""How a sentence names a unit; what is not here is counted: "5 tokens"."""


def right_amount(unit: str) -> str:
    """Says how an amount of the unit is written: the sentence that ends every complaint."""
    example = _EXAMPLES[unit]
    if example.startswith('"'):
        return f"write an integer of {unit} or an amount such as {example}"
    return f"write an integer such as {example}"


def _integer(number: str, factor: int, right: str) -> int:
    exact = Decimal(number.replace("_", "")) * factor
    if exact != exact.to_integral_value():
        raise ValueError(f"{number} is finer than the unit can count; {right}")
    if exact > INT64_MAX:
        raise ValueError(f"{number} is beyond the largest amount, {INT64_MAX}; {right}")
    return int(exact)


def parse_amount(unit: str, text: int | str) -> int:
    """Reads an amount of `unit` as people write it.

    Args:
        unit: One of `UNITS`.
        text: An integer in the unit's base, or text with a suffix: ``"25.00 USD"``, ``"8 GiB"``.

    Returns:
        The amount in the unit's base.

    Raises:
        ValueError: The unit is unknown, or the text is not a whole amount of it from 0 to 2**63-1.
    """
    if unit not in UNITS:
        raise ValueError(f"no such unit: {unit}; write one of {', '.join(sorted(UNITS))}")
    right = right_amount(unit)
    if isinstance(text, bool) or not isinstance(text, int | str):
        raise ValueError(right)  # noqa: TRY004 -- bad input is a ValueError, whatever its type
    if isinstance(text, int):
        if not 0 <= text <= INT64_MAX:
            raise ValueError(f"{text} is not from 0 to {INT64_MAX}; {right}")
        return text
    match = _NUMBER.fullmatch(text)
    if match is None:
        raise ValueError(right)
    dollar, number, suffix = match.groups()
    if dollar:
        suffix = suffix or "USD"
        if unit != "usd_nanos":
            raise ValueError(right)
    factor = UNITS[unit].get(suffix) if suffix else 1
    if factor is None:
        raise ValueError(right)
    return _integer(number, factor, right)


def parse_duration_ms(text: str) -> int:
    """Reads a duration such as ``"500ms"``, ``"60s"``, ``"5m"``, ``"24h"`` or ``"30d"``.

    Returns:
        Milliseconds.

    Raises:
        ValueError: It is not a number with one of these suffixes.
    """
    right = 'write a duration such as "500ms", "60s", "5m", "24h" or "30d"'
    match = _NUMBER.fullmatch(text)
    if match is None or match[1] or match[3] not in _TIME_MS:
        raise ValueError(right)
    return _integer(match[2], _TIME_MS[match[3]], right)


def format_amount(unit: str, value: int) -> str:
    """Shows an amount to a person: exact dollars for money, grouped digits for the rest.

    >>> format_amount("usd_nanos", 12_345_678_901)
    '$12.345678901'
    >>> format_amount("tokens", 2_000_000)
    '2,000,000'
    """
    if unit != "usd_nanos":
        return f"{value:,}"
    whole, nanos = divmod(abs(value), 10**_USD_DECIMALS)
    decimals = f"{nanos:0{_USD_DECIMALS}d}".rstrip("0").ljust(2, "0")
    return f"{'-' if value < 0 else ''}${whole:,}.{decimals}"


def show_amount(unit: str, value: int) -> str:
    """Shows an amount as a person reads it at a glance; `format_amount` is exact.

    >>> show_amount("vram_bytes", 19 * 2**29)
    '9.5 GiB'
    >>> show_amount("gpu_ms", 125_000)
    '2 min 5 s'
    >>> show_amount("usd_nanos", 2_500_000_000)
    '$2.50'
    """
    if unit == "gpu_ms":
        return show_duration(value)
    if unit not in _SHOWN:
        return format_amount(unit, value)
    suffix, *larger = _SHOWN[unit]
    for one in larger:
        # By what would be shown, so that there is no "1024 MiB".
        if round(value / UNITS[unit][suffix], 1) < UNITS[unit][one] / UNITS[unit][suffix]:
            break
        suffix = one
    return f"{_short(value / UNITS[unit][suffix], 1)} {suffix}"


def show_duration(value: int) -> str:
    """Shows milliseconds, rounded down: ``812 ms``, ``12.34 s``, ``2 min 5 s``, ``3 h 20 min``."""
    seconds = value // 1000
    if seconds == 0:
        return f"{value} ms"
    if seconds < 60:  # noqa: PLR2004 -- a minute
        return f"{_short(value // 10 / 100, 2)} s"
    minutes, seconds = divmod(seconds, 60)
    if minutes < 60:  # noqa: PLR2004 -- an hour
        return f"{minutes} min {seconds} s" if seconds else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes} min" if minutes else f"{hours:,} h"


def show_used(unit: str, used: int, limit: int) -> tuple[str, str]:
    """Shows what was used and what was allowed; exactly, where rounding would make them one.

    >>> show_used("vram_bytes", 6 * 2**30, 4 * 2**30)
    ('6 GiB', '4 GiB')
    >>> show_used("vram_bytes", 2**30 + 1, 2**30)
    ('1,073,741,825 B', '1,073,741,824 B')
    """
    shown, allowed = show_amount(unit, used), show_amount(unit, limit)
    if shown != allowed or used == limit:
        return shown, allowed
    base = "ms" if unit == "gpu_ms" else _SHOWN[unit][0]
    return f"{used:,} {base}", f"{limit:,} {base}"


def show_over(unit: str, used: int, limit: int) -> str:
    """Says in words that a limit is reached or passed.

    >>> show_over("vram_bytes", 6 * 2**30, 4 * 2**30)
    'VRAM of 6 GiB passed the limit of 4 GiB'
    >>> show_over("tokens", 5_000, 5_000)
    '5,000 tokens reached the limit of 5,000'
    """
    shown, allowed = show_used(unit, used, limit)
    subject = f"{_NOUNS[unit]} of {shown}" if unit in _NOUNS else f"{shown} {unit}"
    return f"{subject} {'passed' if used > limit else 'reached'} the limit of {allowed}"


def _short(number: float, decimals: int) -> str:
    return f"{number:,.{decimals}f}".rstrip("0").rstrip(".")
