"""The wire as a release knew it: its types, what it asked, and what it was answered; its settings.

`breaks` compares two interfaces. `Kept` is a client that knows nothing but kept types: what a later
release adds, it does not see. Used by tests/packaging, which also writes what is kept.
"""

import json
import os
from collections.abc import Iterable, Iterator
from typing import Any, Final

import grpc
from google.protobuf import descriptor_pool, json_format, message_factory
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorSet,
)
from google.protobuf.message import Message

from bursar._grpc import channel_options
from bursar.daemon.config import Config
from bursar.v1 import access_pb2, account_pb2, errors_pb2, ledger_pb2, process_pb2

from .bare import failed

PACKAGE: Final = "bursar.v1"
TIMEOUT_S: Final = 10
VARIES: Final = {
    *("sequence", "secret"),
    *("hint", "detail", "message"),  # for people to read; they may be worded anew
    *("watchdog", "devices", "processes", "metered"),  # of this host
}
"""What no client may rely on, besides times."""

Kind = FieldDescriptorProto


def today() -> FileDescriptorSet:
    """The interface of this source tree."""
    modules = (access_pb2, account_pb2, errors_pb2, ledger_pb2, process_pb2)
    pool = descriptor_pool.Default()
    found = FileDescriptorSet()
    seen: set[str] = set()

    def add(name: str) -> None:
        if name not in seen:
            seen.add(name)
            file = pool.FindFileByName(name)
            for needed in file.dependencies:
                add(needed.name)
            copied = found.file.add()
            file.CopyToProto(copied)
            _name_fields(copied.message_type)

    for module in modules:
        add(module.DESCRIPTOR.name)
    return found


def settings() -> dict[str, Any]:
    """Every setting with its default, but for the two that depend on the user."""
    return {
        f"{name}.{key}": default
        for name, section in Config().model_dump(mode="json").items()
        if isinstance(section, dict)
        for key, default in section.items()
        if f"{name}.{key}" not in {"server.socket", "store.path"}
    }


def _name_fields(messages: Iterable[DescriptorProto]) -> None:
    """Their names in JSON, which generated code leaves out and `buf breaking` compares."""
    for message in messages:
        for one in message.field:
            first, *rest = one.name.split("_")
            one.json_name = first + "".join(word.capitalize() for word in rest)
        _name_fields(message.nested_type)


def facts(files: FileDescriptorSet) -> dict[str, object]:
    """All that a client may have been built on, by name."""
    found: dict[str, object] = {}
    for file in files.file:
        if file.package != PACKAGE:
            continue
        for enum in file.enum_type:
            found.update(_of_enum(PACKAGE, enum))
        for message in file.message_type:
            found.update(_of_message(PACKAGE, message))
        for service in file.service:
            for one in service.method:
                streams = (one.client_streaming, one.server_streaming)
                name = f"rpc {PACKAGE}.{service.name}.{one.name}"
                found[name] = (one.input_type, one.output_type, *streams)
    return found


def _of_enum(within: str, enum: EnumDescriptorProto) -> Iterator[tuple[str, object]]:
    for value in enum.value:
        yield f"value {within}.{enum.name} {value.number}", value.name
    for gone in enum.reserved_range:
        yield f"reserved {within}.{enum.name} {gone.start} to {gone.end}", True


def _of_message(within: str, message: DescriptorProto) -> Iterator[tuple[str, object]]:
    full = f"{within}.{message.name}"
    yield f"message {full}", message.options.map_entry
    for one in message.field:
        choice = message.oneof_decl[one.oneof_index].name if one.HasField("oneof_index") else ""
        kind, label = Kind.Type.Name(one.type), Kind.Label.Name(one.label)
        field = (one.name, one.json_name, kind, one.type_name, label, choice)
        yield f"field {full} {one.number}", field
    for gone in message.reserved_range:
        yield f"reserved {full} {gone.start} to {gone.end}", True
    for enum in message.enum_type:
        yield from _of_enum(full, enum)
    for nested in message.nested_type:
        yield from _of_message(full, nested)


def breaks(old: FileDescriptorSet, new: FileDescriptorSet) -> list[str]:
    """What a client of the old interface would miss in the new one, or read wrongly."""
    before, after = facts(old), facts(new)
    return [
        f"{name} was {fact}, and {f'is {after[name]}' if name in after else 'is gone'}"
        for name, fact in before.items()
        if after.get(name) != fact
    ]


class Kept:
    """The types of a kept set of descriptors, and one channel that speaks by them."""

    def __init__(self, files: FileDescriptorSet, target: str) -> None:
        self._pool = descriptor_pool.DescriptorPool()
        for file in files.file:
            self._pool.Add(file)
        self._channel: Any = grpc.insecure_channel(target, options=channel_options(target))

    def close(self) -> None:
        """Hangs up."""
        self._channel.close()

    def request(self, method: str, content: bytes) -> Message:
        """The request of "LedgerService/Reserve" out of its bytes."""
        return _of(self._method(method).input_type, content)

    def ask(self, method: str, request: bytes) -> dict[str, Any]:
        """The answer as far as a client may rely on it; of a stream, the first one."""
        found, path = self._method(method), f"/{PACKAGE}.{method}"
        patience = {"timeout": TIMEOUT_S}
        try:
            if found.client_streaming:
                answers = self._channel.stream_stream(path)(iter([request]), **patience)
                content = next(answers)
            elif found.server_streaming:
                answers = self._channel.unary_stream(path)(request, **patience)
                content = next(answers)
                answers.cancel()
            else:
                content = self._channel.unary_unary(path)(request, **patience)
        except grpc.RpcError as error:
            told = failed(error)
            return {"error": {"code": told.code, "reason": told.reason, **told.metadata}}
        answer = _of(found.output_type, content)
        plain: dict[str, Any] = _plain(json_format.MessageToDict(answer))
        return plain

    def _method(self, method: str) -> Any:
        service, _, name = method.partition("/")
        found = self._pool.FindServiceByName(f"{PACKAGE}.{service}")
        return found.methods_by_name[name]


def _of(kind: Any, content: bytes) -> Message:
    message: Message = message_factory.GetMessageClass(kind).FromString(content)
    return message


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: _plain(one)
            for key, one in value.items()
            if key not in VARIES and not key.endswith(("time", "Time"))
        }
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return "user UID" if value == f"user {os.getuid()}" else value


def replay(kept: Kept, conversation: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Asks all of it again; returns it with today's answers, and the old names of what has ids.

    A request goes out as the bytes that were kept, unless it names a reservation or a token: those
    have other ids today.
    """
    names: dict[str, str] = {}
    again = []
    for one in conversation:
        method, content = one["method"], bytes.fromhex(one["request"])
        request = kept.request(method, content)
        text = json_format.MessageToJson(request)
        if any(name in text for name in names):
            json_format.Parse(_renamed(text, names), request)
            content = request.SerializeToString()
        answer = kept.ask(method, content)
        names |= dict(zip(_ids(one["answer"]), _ids(answer), strict=False))
        back = {new: old for old, new in names.items()}
        said = json.loads(_renamed(json.dumps(answer), back))
        again.append({"method": method, "request": one["request"], "answer": said})
    return again


def _ids(answer: Any) -> Iterator[str]:
    """The ids in an answer, in its order: some are given out by it, the others are known."""
    if isinstance(answer, list):
        for one in answer:
            yield from _ids(one)
    elif isinstance(answer, dict):
        for key, one in answer.items():
            if key in {"id", "reservation"} and isinstance(one, str):
                yield one
            else:
                yield from _ids(one)


def _renamed(text: str, names: dict[str, str]) -> str:
    for old, new in names.items():
        text = text.replace(f'"{old}"', f'"{new}"')
    return text
