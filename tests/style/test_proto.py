"""The proto is the manual: every call says what a repeat does, and what it answers when broke."""

import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "proto/bursar/v1"
RPC = re.compile(r"((?:  //.*\n)*)  rpc (\w+)\(")
COMMENTS = {
    name: " ".join(line.strip("/ ") for line in comment.splitlines())
    for file in sorted(FOLDER.glob("*.proto"))
    for comment, name in RPC.findall(file.read_text(encoding="utf-8"))
}
REPEAT = re.compile(r"\b[Rr]epeat|[Cc]hanges nothing|answers alike")
BUDGET = re.compile(r"\bbudget\b|answers STOP")


def test_the_calls_are_those_that_the_folder_lists() -> None:
    listed = (FOLDER.parents[1] / "README.md").read_text(encoding="utf-8")
    assert len(COMMENTS) >= 16
    assert [name for name in COMMENTS if name not in listed] == []


@pytest.mark.parametrize("name", COMMENTS)
def test_a_call_says_whether_a_repeat_is_safe(name: str) -> None:
    assert REPEAT.search(COMMENTS[name]), COMMENTS[name]


@pytest.mark.parametrize("name", COMMENTS)
def test_a_call_says_what_it_answers_when_the_budget_is_gone(name: str) -> None:
    assert BUDGET.search(COMMENTS[name]), COMMENTS[name]


def test_every_message_field_and_value_has_a_comment() -> None:
    """As buf's COMMENTS rules ask, where buf is not at hand."""
    bare = []
    for file in sorted(FOLDER.glob("*.proto")):
        lines = file.read_text(encoding="utf-8").splitlines()
        for number, line in enumerate(lines):
            declares = re.match(r"\s*(?:(?:message|enum|service|rpc) \w|[\w.<>, ]+ = \d+;)", line)
            if declares and not re.match(r"\s*//", lines[number - 1]):
                bare.append(f"{file.name}:{number + 1}: {line.strip()}")
    assert bare == []
