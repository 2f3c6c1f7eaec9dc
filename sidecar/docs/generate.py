"""Writes configuration.md and api.md: `generate.py [FOLDER]`, by default into its own folder.

The one comes from the models of `bursar.daemon.config`, the other from the comments of the proto
files. Nothing is said here that is not said there. A test compares both with the committed pages.
"""

import json
import subprocess
import sys
import tempfile
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Literal, get_args, get_origin

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
)
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from bursar.daemon._accounts import BudgetConfig
from bursar.daemon._model import Bytes, DurationMs
from bursar.daemon.config import Config
from bursar.models import PERIOD_RIGHT
from bursar.units import CAPACITY_UNITS, INT64_MAX, UNITS

DOCS: Final = Path(__file__).resolve().parent
PROTO: Final = DOCS.parents[1] / "proto"
FIRST: Final = ("ledger", "account", "process", "access", "errors")

# --- configuration.md ---

HEAD: Final = """\
# Configuration
*Made by [`generate.py`](generate.py) from the models that read `bursar.toml`; change those.*

Every key is optional unless its default is *required*, and an unknown key is an error.
`bursar check bursar.toml` says everything that is wrong at once. Relative paths are relative to the
folder of the configuration. To begin with: [`config.example.toml`](../config.example.toml).

| type | how it is written |
|---|---|
| duration | text: `"500ms"`, `"60s"`, `"5m"`, `"24h"`, `"30d"` |
| size | an integer of bytes, or text: `"4 MiB"` |
| amount | an integer in the base of its unit, or text with a suffix of the second table |
| period | {period} |
| table, tables | a section of its own, linked |

| unit | suffixes | comes back when the reservation ends |
|---|---|---|
{units}
"""
ENVIRONMENT: Final = (
    (
        ("BURSAR_TARGET",),
        "clients, commands",
        "as `unix:/run/bursar/bursar.sock` or `host:7411`; `bursar run` sets it for its job",
    ),
    (
        ("BURSAR_TOKEN",),
        "clients, commands",
        "the token to show; `bursar run` hands on an agent's",
    ),
    (
        ("BURSAR_TLS_CA",),
        "clients, commands",
        "the file of the authorities that sidecars are trusted by, or `system`",
    ),
    (
        ("BURSAR_TLS_CERTIFICATE", "BURSAR_TLS_KEY"),
        "clients, commands",
        "the files of the client's own certificate and its key",
    ),
    (
        ("BURSAR_JOURNAL",),
        "clients",
        "the folder that keeps what the sidecar has not heard yet",
    ),
    (
        ("BURSAR_CONFIG",),
        "commands",
        "the configuration, where `--config` does not name it",
    ),
    (
        ("BURSAR_ACCOUNT",),
        "the adapter of vLLM",
        "the account that pays; `bursar run` sets it for its job",
    ),
    (
        ("BURSAR_ACCOUNT_HEADER", "BURSAR_FREE_PATHS", "BURSAR_PRICED"),
        "the adapter of vLLM",
        "see [the recipe](recipes.md#a-vllm-server)",
    ),
    (("BURSAR_JOB",), "jobs", "set by `bursar run`: the job's id"),
    (
        ("BURSAR_EVENT", "BURSAR_EVENT_ID"),
        "commands of `[[notify.commands]]`",
        "set for them: the event's name and id",
    ),
)
"""Variables, who reads them, and what they say."""
WITH_EXAMPLES: Final = {"text", "list of text", "number", "integer or text", "table"}
"""Types that do not say by themselves what is written."""
_SIZES: Final = ((" MiB", 2**20), (" KiB", 2**10), (" B", 1))
_TIMES_MS: Final = (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1))


def configuration() -> str:
    """The page of every key."""
    units = "\n".join(
        f"| `{unit}` | {', '.join(f'`{one}`' for one in suffixes) or '-'} "
        f"| {'yes' if unit in CAPACITY_UNITS else 'no'} |"
        for unit, suffixes in UNITS.items()
    )
    period = _code(PERIOD_RIGHT.removeprefix("write "))
    head = HEAD.format(period=period, units=units)
    seen: dict[type[BaseModel], str] = {}
    sections = _sections(Config, "", seen)
    rows = (
        f"| {', '.join(f'`{name}`' for name in names)} | {reader} | {says} |\n"
        for names, reader, says in ENVIRONMENT
    )
    foot = "\n## Environment\n| variable | who reads it | what it says |\n|---|---|---|\n"
    return head + "".join(sections) + foot + "".join(rows)


def _sections(model: type[BaseModel], path: str, seen: dict[type[BaseModel], str]) -> list[str]:
    """The sections below one, in the order of the file; what was there before is linked."""
    written = []
    for name, field in model.model_fields.items():
        inner = _section_of(field.annotation)
        if inner is None or inner in seen:
            continue
        at = f"{path}.{name}" if path else name
        title = f"[[{at}]]" if _is_many(field.annotation) else f"[{at}]"
        seen[inner] = title
        below = _sections(inner, at, seen)
        rows = "".join(_row(key, one, seen) for key, one in inner.model_fields.items())
        # What the docstring says of its own place is said by the title.
        told = (inner.__doc__ or "").strip().partition("\n")[0].split("`: ", 1)[-1]
        text = f"\n## `{title}`\n{told[:1].upper()}{told[1:]}\n\n"
        written.append(
            f"{text}| key | type | default | bounds | meaning |\n|---|---|---|---|---|\n{rows}"
        )
        written += below
    return written


def _row(name: str, field: FieldInfo, seen: dict[type[BaseModel], str]) -> str:
    inner = _section_of(field.annotation)
    many = _is_many(field.annotation)
    link = f"[{'tables' if many else 'table'}](#{_slug(seen[inner])})" if inner else ""
    kind = link or _kind(field)
    default = "none" if link else _value(field.default, kind)
    if field.is_required():
        default = "*required*"
    extra: Any = field.json_schema_extra
    meaning = field.description or ""
    if kind in WITH_EXAMPLES:
        meaning += f"; {_code(extra['right'])}"
    return f"| `{name}` | {kind} | {default} | {_bounds(field, kind)} | {_cell(meaning)} |\n"


def _kind(field: FieldInfo) -> str:
    """What is written for a key that is no section."""
    for alias, word in ((DurationMs, "duration"), (Bytes, "size")):
        if get_args(alias)[1] in field.metadata:
            return word
    for name, word in (("limit", "amount"), ("period", "period")):
        if field is BudgetConfig.model_fields[name]:
            return word
    first, *more = [one for one in _parts(field.annotation) if one is not type(None)]
    if get_origin(first) is Literal:
        return ", ".join(f'`"{one}"`' for one in get_args(first))
    words = {str: "text", int: "integer", float: "number", bool: "true or false"}
    words |= {tuple: "list of text", dict: "table"}
    return " or ".join(words[get_origin(one) or one] for one in (*more, first))


def _bounds(field: FieldInfo, kind: str) -> str:
    limits = {
        key: getattr(one, key)
        for one in field.metadata
        for key in ("ge", "gt", "le", "lt", "min_length", "max_length")
        if getattr(one, key, None) is not None
    }
    is_counted = kind.startswith("[") or kind in {"list of text", "table"}
    what = " items" if is_counted else " characters" if kind == "text" else ""
    low = limits.get("ge", limits.get("min_length"))
    high = limits.get("le", limits.get("max_length"))
    if high == INT64_MAX:
        high = None
    shown = [None if one is None else _value(one, kind) for one in (low, high)]
    if "gt" in limits:
        return f"above {limits['gt']}, to {shown[1]}"
    match shown:
        case [None, None]:
            return "-"
        case ["1", None] if what:
            return "not empty"
        case [low_shown, None]:
            return f"from {low_shown}{what}"
        case [None, high_shown]:
            return f"at most {high_shown}{what}"
        case [low_shown, high_shown]:
            return f"{low_shown} to {high_shown}{what}"
    raise AssertionError(shown)


def _value(value: Any, kind: str) -> str:  # noqa: ANN401 -- any default
    """A default or a bound as it is written in TOML."""
    if value is None or value is PydanticUndefined or value == ():
        return "none"
    if kind == "duration":
        return f'`"{_in_units(value, _TIMES_MS)}"`'
    if kind == "size":
        return f'`"{_in_units(value, _SIZES)}"`'
    match value:
        case bool():
            return f"`{str(value).lower()}`"
        case str() | tuple():
            return f"`{json.dumps(value)}`"
        case _:
            return f"{value:_}" if isinstance(value, int) else f"{value:g}"


def _in_units(value: int, units: tuple[tuple[str, int], ...]) -> str:
    """With the largest unit that is exact."""
    if value == 0:
        return "0s"
    unit, factor = next(one for one in units if value % one[1] == 0)
    return f"{value // factor}{unit}"


def _parts(annotation: Any) -> tuple[Any, ...]:  # noqa: ANN401 -- any type annotation
    is_union = get_origin(annotation) in (types.UnionType, typing.Union)
    return get_args(annotation) if is_union else (annotation,)


def _is_many(annotation: Any) -> bool:  # noqa: ANN401 -- as above
    return any(get_origin(one) is tuple for one in _parts(annotation))


def _section_of(annotation: Any) -> type[BaseModel] | None:  # noqa: ANN401 -- as above
    for one in _parts(annotation):
        inner = get_args(one)[0] if get_origin(one) is tuple else one
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            return inner
    return None


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _code(text: str) -> str:
    """Puts what stands in quotes into code."""
    parts = text.split('"')
    return "".join(f'`"{one}"`' if at % 2 else one for at, one in enumerate(parts))


def _slug(title: str) -> str:
    """The anchor that a heading gets."""
    kept = "".join(one for one in title.lower() if one.isalnum() or one in "_- ")
    return kept.replace(" ", "-")


# --- api.md ---

API_HEAD: Final = """\
# The interface
*Made by [`generate.py`](generate.py) from the comments of
[`proto/bursar/v1`](../../proto/README.md); change those.*

What the words mean is in [concepts](concepts.md#words), what to do about an error in
[errors](errors.md). gRPC's health and reflection services are served too.

| service | calls |
|---|---|
{services}
"""
_FILE_PATHS: Final = {"message": 4, "enum": 5, "service": 6}
_SCALARS: Final = FieldDescriptorProto.Type


def api() -> str:
    """The page of every call, message and enum."""
    files = {Path(one.name).stem: one for one in _descriptors().file if "bursar/v1" in one.name}
    files = {name: files[name] for name in FIRST} | files
    pages = [_File(file) for file in files.values()]
    services = "".join(
        f"| [{service.name}](#{_slug(service.name)}) | "
        + ", ".join(
            f"[{one.name}](#{_slug(f'{service.name}.{one.name}')})" for one in service.method
        )
        + " |\n"
        for page in pages
        for service in page.file.service
    )
    return API_HEAD.format(services=services.rstrip("\n")) + "".join(
        part for page in pages for part in page.parts()
    )


def _descriptors() -> FileDescriptorSet:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "all.binpb"
        command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTO}", "--include_source_info"]
        protos = sorted(map(str, PROTO.glob("bursar/v1/*.proto")))
        subprocess.run([*command, f"--descriptor_set_out={out}", *protos], check=True)  # noqa: S603 -- our own
        return FileDescriptorSet.FromString(out.read_bytes())


class _File:
    """One proto file with its comments, by the path of what they are about."""

    def __init__(self, file: FileDescriptorProto) -> None:
        self.file = file
        self.comments = {
            tuple(one.path): " ".join(one.leading_comments.split())
            for one in file.source_code_info.location
        }

    def parts(self) -> Iterator[str]:
        for at, service in enumerate(self.file.service):
            path = (_FILE_PATHS["service"], at)
            yield f"\n## {service.name}\n{self.comments[path]}\n"
            for number, method in enumerate(service.method):
                asks, answers = (
                    ("stream of " if streams else "") + _link(kind)
                    for streams, kind in (
                        (method.client_streaming, method.input_type),
                        (method.server_streaming, method.output_type),
                    )
                )
                yield f"\n### {service.name}.{method.name}\n{asks} → {answers}\n"
                yield f"\n{self.comments[(*path, 2, number)]}\n"
        for at, message in enumerate(self.file.message_type):
            yield from self.message(message, (_FILE_PATHS["message"], at), "")
        for at, enum in enumerate(self.file.enum_type):
            yield self.enum(enum, (_FILE_PATHS["enum"], at), "")

    def message(self, message: DescriptorProto, path: tuple[int, ...], outer: str) -> Iterator[str]:
        name = f"{outer}{message.name}"
        yield f"\n### {name}\n{self.comments[path]}\n"
        if message.field:
            yield "\n| field | type | meaning |\n|---|---|---|\n"
        for at, field in enumerate(message.field):
            one_of = ""
            if field.HasField("oneof_index") and not field.proto3_optional:
                one_of = f" (one of `{message.oneof_decl[field.oneof_index].name}`)"
            meaning = _cell(self.comments[(*path, 2, at)])
            yield f"| `{field.name}` | {self.type_of(field, message)}{one_of} | {meaning} |\n"
        for at, enum in enumerate(message.enum_type):
            yield self.enum(enum, (*path, 4, at), f"{name}.")
        for at, nested in enumerate(message.nested_type):
            if not nested.options.map_entry:
                yield from self.message(nested, (*path, 3, at), f"{name}.")

    def enum(self, enum: EnumDescriptorProto, path: tuple[int, ...], outer: str) -> str:
        rows = "".join(
            f"| `{value.name}` | {value.number} | {_cell(self.comments[(*path, 2, at)])} |\n"
            for at, value in enumerate(enum.value)
        )
        head = f"\n### {outer}{enum.name}\n{self.comments[path]}\n"
        return f"{head}\n| value | number | meaning |\n|---|---|---|\n{rows}"

    @staticmethod
    def type_of(field: FieldDescriptorProto, message: DescriptorProto) -> str:
        for nested in message.nested_type:
            if nested.options.map_entry and field.type_name.endswith(f".{nested.name}"):
                key, value = (_plain(one) for one in nested.field)
                return f"map of {key} to {value}"
        kind = _plain(field)
        if field.label == FieldDescriptorProto.LABEL_REPEATED:
            return f"repeated {kind}"
        return f"optional {kind}" if field.proto3_optional else kind


def _plain(field: FieldDescriptorProto) -> str:
    if field.type_name:
        return _link(field.type_name)
    return f"`{_SCALARS.Name(field.type).removeprefix('TYPE_').lower()}`"


def _link(type_name: str) -> str:
    name = type_name.removeprefix(".bursar.v1.")
    return f"`{name.removeprefix('.')}`" if name == type_name else f"[{name}](#{_slug(name)})"


if __name__ == "__main__":
    chosen = Path(sys.argv[1]) if len(sys.argv) > 1 else DOCS
    for page, write in (("configuration.md", configuration), ("api.md", api)):
        (chosen / page).write_text(write(), encoding="utf-8")
