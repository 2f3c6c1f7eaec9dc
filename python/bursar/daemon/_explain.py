"""Turns what pydantic found into sentences: the key, what was given, its meaning, what is right."""

import difflib
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from bursar.exceptions import BursarError

_GIVEN_CHARACTERS_MAX: Final = 60


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: its dotted key, empty for the whole file, and a sentence."""

    key: str
    text: str

    def __str__(self) -> str:
        return f"{self.key}: {self.text}" if self.key else self.text


class ConfigError(BursarError):
    """A configuration that cannot be used; `problems` has everything that is wrong with it."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


def explain(root: type[BaseModel], error: ValidationError) -> list[Problem]:
    """Explains every error of a validation against `root`, in the order of the file."""
    return [_problem(root, one) for one in error.errors(include_url=False)]


def _problem(root: type[BaseModel], error: Any) -> Problem:  # noqa: ANN401 -- pydantic's ErrorDetails
    location: tuple[int | str, ...] = error["loc"]
    key = dotted(location)
    if error["type"] == "extra_forbidden":
        return Problem(key, _unknown(root, location))
    field = _field(root, location)
    sentences = [] if error["type"] == "missing" else [f"got {_shown(error['input'])}"]
    if error["type"] == "missing":
        sentences = ["missing"]
    elif isinstance(error["input"], dict) and error["type"] == "value_error":
        sentences = []  # a rule about a whole table: the message says it all
    elif field is not None and (field.json_schema_extra or {}).get("secret"):  # type: ignore[union-attr]
        sentences = []
    if field is not None and field.description:
        sentences.append(field.description)
    sentences += _advice(error, field)
    return Problem(key, "; ".join(sentences))


def _advice(error: Any, field: FieldInfo | None) -> list[str]:  # noqa: ANN401 -- as above
    message = str(error["msg"]).removeprefix("Value error, ")
    extra = field.json_schema_extra if field is not None else None
    known = str(extra["right"]) if isinstance(extra, dict) and "right" in extra else ""
    if error["type"] == "value_error":
        # Messages of our own validators may say what is right themselves.
        says_right = "write " in message or not known
        return [message] if says_right else [message, known]
    if known:
        return [known]
    if error["type"] in {"model_type", "missing"}:
        return ["write a table"]
    return [message[:1].lower() + message[1:]]


def dotted(location: Sequence[int | str]) -> str:
    """Writes a location as people would: ``accounts[2].budgets[0].limit``."""
    key = ""
    for part in location:
        key += f"[{part}]" if isinstance(part, int) else f".{part}" if key else part
    return key


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    text = repr(value)
    return text if len(text) <= _GIVEN_CHARACTERS_MAX else text[: _GIVEN_CHARACTERS_MAX - 1] + "…"


def _unknown(root: type[BaseModel], location: Sequence[int | str]) -> str:
    model = _model(root, location[:-1])
    names = list(model.model_fields) if model else []
    near = difflib.get_close_matches(str(location[-1]), names, n=1, cutoff=0.6)
    if near:
        return f"there is no such key; did you mean {near[0]}?"
    return f"there is no such key; here may stand {', '.join(names)}"


def _field(root: type[BaseModel], location: Sequence[int | str]) -> FieldInfo | None:
    """Finds the field that a location ends in or, for an item of a list, stands in."""
    model: type[BaseModel] | None = root
    found: FieldInfo | None = None
    for part in location:
        if isinstance(part, int):
            continue
        if model is None or part not in model.model_fields:
            return found
        found = model.model_fields[part]
        model = _section(found.annotation)
    ends_in_table = isinstance(location[-1], int) if location else True
    return None if ends_in_table and model is not None else found


def _model(root: type[BaseModel], location: Sequence[int | str]) -> type[BaseModel] | None:
    model: type[BaseModel] | None = root
    for part in location:
        if isinstance(part, str) and model is not None:
            field = model.model_fields.get(part)
            model = _section(field.annotation) if field is not None else None
    return model


def _section(annotation: Any) -> type[BaseModel] | None:  # noqa: ANN401 -- any type annotation
    """The section inside an annotation: itself, in a tuple, or beside None."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (tuple, types.UnionType, typing.Union):
        for argument in get_args(annotation):
            if (found := _section(argument)) is not None:
                return found
    return None
