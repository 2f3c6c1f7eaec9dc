"""What every configuration section shares: strictness, and the readers of durations and sizes."""

from typing import Annotated, Any, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from bursar.units import parse_amount, parse_duration_ms


class Section(BaseModel):
    """A table of the configuration: frozen, typed strictly, without unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def right(text: str, *, secret: bool = False) -> dict[str, Any]:
    """Notes on a field how its value is written; complaints about the field end with it.

    Args:
        text: How it is written.
        secret: Whether what is given may be a secret, which no complaint shows.
    """
    return {"right": text, **({"secret": True} if secret else {})}


def _duration(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, str):
        sentence = 'write a duration such as "500ms", "60s", "5m", "24h" or "30d"'
        raise ValueError(sentence)  # noqa: TRY004 -- pydantic reads ValueErrors
    return parse_duration_ms(value)


def _size(value: object) -> object:
    if isinstance(value, str):
        return parse_amount("vram_bytes", value)
    return value


DurationMs: TypeAlias = Annotated[int, BeforeValidator(_duration), Field(strict=False)]
"""Milliseconds, written as ``"60s"``."""

Bytes: TypeAlias = Annotated[int, BeforeValidator(_size)]
"""Bytes, written as an integer or as ``"4 MiB"``."""
