"""Clients of the last release: what they were built on is there, and they are answered alike.

`wire/` holds the interface of that release, its settings, and a conversation with its daemon:
requests in bytes, answers as far as a client may rely on them (keep_wire.py). What differs breaks
agents that nobody can upgrade at once: take the change back, and leave the files.
"""

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import pytest
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
)
from support.daemon import Daemon
from support.released import Kept, breaks, facts, replay, settings, today

WIRE: Final = Path(__file__).parent / "wire"
UNASKED: Final = {"rpc bursar.v1.ProcessService.WatchProcesses"}  # silent until something happens


@pytest.fixture(scope="module")
def released() -> FileDescriptorSet:
    return FileDescriptorSet.FromString((WIRE / "bursar-v1.binpb").read_bytes())


@pytest.fixture(scope="module")
def conversation() -> dict[str, Any]:
    kept: dict[str, Any] = json.loads((WIRE / "conversation.json").read_text(encoding="utf-8"))
    return kept


def test_nothing_that_clients_were_built_on_has_gone(released: FileDescriptorSet) -> None:
    assert breaks(released, today()) == []


def test_the_kept_conversation_has_every_call(
    released: FileDescriptorSet, conversation: dict[str, Any]
) -> None:
    calls = {name for name in facts(released) if name.startswith("rpc ")}
    asked = {f"rpc bursar.v1.{one['method'].replace('/', '.')}" for one in conversation["said"]}
    assert calls - asked == UNASKED


def test_requests_of_the_last_release_are_answered_as_they_were(
    released: FileDescriptorSet, conversation: dict[str, Any]
) -> None:
    with Daemon(**conversation["config"]) as daemon, closing(Kept(released, daemon.target)) as kept:
        again = replay(kept, conversation["said"])
    for before, now in zip(conversation["said"], again, strict=True):
        assert now == before


def test_no_setting_has_gone_or_has_another_default() -> None:
    kept = json.loads((WIRE / "settings.json").read_text(encoding="utf-8"))
    now = settings()
    assert {name: now.get(name, "gone") for name in kept} == kept
    assert len(kept) > 50


def ledger(files: FileDescriptorSet) -> FileDescriptorProto:
    return next(file for file in files.file if file.name == "bursar/v1/ledger.proto")


def message(files: FileDescriptorSet, name: str) -> DescriptorProto:
    return next(one for one in ledger(files).message_type if one.name == name)


def limit(files: FileDescriptorSet) -> FieldDescriptorProto:
    return next(one for one in message(files, "Balance").field if one.name == "limit")


def retyped(files: FileDescriptorSet) -> None:
    limit(files).type = FieldDescriptorProto.TYPE_UINT64


def repeated(files: FileDescriptorSet) -> None:
    limit(files).label = FieldDescriptorProto.LABEL_REPEATED


def renumbered(files: FileDescriptorSet) -> None:
    limit(files).number = 99


def renamed(files: FileDescriptorSet) -> None:
    limit(files).json_name = "hardLimit"


def without_field(files: FileDescriptorSet) -> None:
    del message(files, "ReserveRequest").field[0]


def without_message(files: FileDescriptorSet) -> None:
    ledger(files).message_type.remove(message(files, "UsageEstimate"))


def without_presence(files: FileDescriptorSet) -> None:
    for one in message(files, "Advice").field:
        one.ClearField("oneof_index")


def without_value(files: FileDescriptorSet) -> None:
    del ledger(files).enum_type[0].value[2]


def without_nested_value(files: FileDescriptorSet) -> None:
    del message(files, "Refusal").enum_type[0].value[2]


def without_call(files: FileDescriptorSet) -> None:
    del ledger(files).service[0].method[0]


def no_stream(files: FileDescriptorSet) -> None:
    [meter] = [one for one in ledger(files).service[0].method if one.name == "Meter"]
    meter.client_streaming = False


def answered_by_another(files: FileDescriptorSet) -> None:
    ledger(files).service[0].method[0].output_type = ".bursar.v1.CheckResponse"


BREAKS: Final = (
    *(retyped, repeated, renumbered, renamed, without_field, without_message, without_presence),
    *(without_value, without_nested_value, without_call, no_stream, answered_by_another),
)


@pytest.mark.parametrize("change", BREAKS, ids=lambda change: change.__name__)
def test_a_change_that_breaks_clients_is_found(
    change: Callable[[FileDescriptorSet], None], released: FileDescriptorSet
) -> None:
    changed = FileDescriptorSet()
    changed.CopyFrom(released)
    change(changed)
    assert breaks(released, changed) != []


def test_what_is_added_breaks_nobody(released: FileDescriptorSet) -> None:
    more = FileDescriptorSet()
    more.CopyFrom(released)
    message(more, "Balance").field.add(name="new", number=99, type="TYPE_INT64")
    ledger(more).enum_type[0].value.add(name="VERDICT_NEW", number=99)
    ledger(more).service[0].method.add(name="New", input_type=".bursar.v1.CheckRequest")
    assert breaks(released, more) == []
