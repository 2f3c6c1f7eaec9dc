"""`advice = {…}`: what callers are told to change, at a threshold or when they run away."""

from typing import Final

from pydantic import Field, field_validator

from bursar.daemon._model import Section, right

TEXT_BYTES_MAX: Final = 256


class AdviceConfig(Section):
    """What to change about a generation."""

    max_new_tokens: int | None = Field(
        default=None,
        ge=1,
        description="generate no more than so many further tokens",
        json_schema_extra=right("write an integer from 1"),
    )
    temperature: float | None = Field(
        default=None,
        ge=0,
        le=10,
        description="sample at this temperature",
        json_schema_extra=right("write a number from 0 to 10"),
    )
    repetition_penalty: float | None = Field(
        default=None,
        gt=0,
        le=10,
        description="sample with this repetition penalty",
        json_schema_extra=right("write a number above 0, up to 10"),
    )
    fallback_model: str | None = Field(
        default=None,
        min_length=1,
        max_length=256,
        description="the model for new calls",
        json_schema_extra=right('write a model\'s name, such as "gpt-4o-mini"'),
    )
    notice: str | None = Field(
        default=None,
        min_length=1,
        max_length=256,
        description="what is said at the end of an output that is cut off",
        json_schema_extra=right(
            'write a sentence of at most 256 bytes, such as "The budget for today is used up."'
        ),
    )

    @field_validator("notice", "fallback_model")
    @classmethod
    def _bytes(cls, value: str | None) -> str | None:
        if value is not None and len(value.encode()) > TEXT_BYTES_MAX:
            raise ValueError(f"it has {len(value.encode())} bytes")
        return value
