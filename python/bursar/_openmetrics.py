"""Writes families of OpenMetrics text."""

from collections.abc import Iterable, Mapping
from typing import TypeAlias

__all__ = ["Samples", "family"]

Samples: TypeAlias = Iterable[tuple[Mapping[str, str], int | float | None]]
"""Labels and values; what is not known is None, and left out."""


def family(name: str, text: str, samples: Samples, *, unit: str = "", kind: str = "gauge") -> str:
    """One metric with its samples; the name ends in the unit."""
    lines = [f"# TYPE {name} {kind}", f"# HELP {name} {text}"]
    lines += [f"# UNIT {name} {unit}"] if unit else []
    suffix = "_total" if kind == "counter" else ""
    for labels, value in samples:
        if value is not None:
            pairs = ",".join(f'{key}="{_escaped(one)}"' for key, one in labels.items())
            lines.append(f"{name}{suffix}{f'{{{pairs}}}' if pairs else ''} {value}")
    return "\n".join(lines)


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
