"""The page of errors has every reason there is, once, with what the code says of it."""

import re

import pytest
from support.pages import DOCS, ROOT, rows

from bursar import models
from bursar._errors import _BY_CODE, refused
from bursar.cli._shared import EXIT_CODES_HELP
from bursar.exceptions import ERRORS
from bursar.v1 import errors_pb2, ledger_pb2

PAGE = DOCS / "errors.md"
AGAIN = {row[0] for row in rows(PAGE, "Errors: what they mean, and what to do")}
REASON = re.compile(r"((?:  // .*\n)+)  ERROR_REASON_(\w+) = ")


def plain(cell: str) -> str:
    return cell.strip("`")


def test_every_reason_is_there_once_in_the_order_of_the_proto() -> None:
    reasons = [name.removeprefix("ERROR_REASON_") for name in errors_pb2.ErrorReason.keys()]  # noqa: SIM118 -- an enum wrapper
    assert [plain(row[0]) for row in rows(PAGE, "Reasons")] == reasons[1:]


def test_codes_exceptions_and_meanings_are_those_of_the_code() -> None:
    proto = (ROOT / "proto/bursar/v1/errors.proto").read_text(encoding="utf-8")
    means = {
        name: " ".join(text.replace("//", " ").split()) for text, name in REASON.findall(proto)
    }
    for reason, code, exception, meaning, _, _ in rows(PAGE, "Reasons"):
        row = ERRORS[plain(reason)]
        assert (code, plain(exception)) == (row.code, row.exception.__name__), reason
        said = means[plain(reason)].partition(": ")[2]
        assert meaning == said[:1].upper() + said[1:], reason


@pytest.mark.parametrize(
    "heading", ["Refusals", "Reasons", "Without a reason", "Through the proxy"]
)
def test_each_row_says_what_to_do_and_whether_to_try_again(heading: str) -> None:
    assert {"no", "later", "same key"} == AGAIN
    for row in rows(PAGE, heading):
        assert row[-1] in AGAIN, row
        assert all(row), row


def test_every_refusal_is_there_with_its_exception() -> None:
    names = [one.removeprefix("REASON_") for one in ledger_pb2.Refusal.Reason.keys()][1:]  # noqa: SIM118 -- as above
    *of_the_ledger, away, journal = rows(PAGE, "Refusals")
    assert [plain(row[0]) for row in of_the_ledger] == names
    for reason, exception, *_ in of_the_ledger:
        refusal = models.Refusal(plain(reason), "acme", "tokens", 1, None, "")
        assert type(refused(refusal)).__name__ == plain(exception)
    sources = {"AWAY_GRANT_EXHAUSTED": "_local.py", "JOURNAL_FULL": "_journal.py"}
    for row in (away, journal):
        source = ROOT / "python/bursar" / sources[plain(row[0])]
        assert f'"{plain(row[0])}"' in source.read_text(encoding="utf-8")
        assert f"{plain(row[1])}(" in source.read_text(encoding="utf-8")


def test_what_comes_without_a_reason_is_what_the_client_makes_of_it() -> None:
    told = {row[0]: plain(row[1]) for row in rows(PAGE, "Without a reason")}
    assert told == {code: kind.__name__ for code, kind in _BY_CODE.items()}


def test_statuses_and_codes_of_the_proxy_are_its_own() -> None:
    source = (ROOT / "rust/server/src/proxy/failure.rs").read_text(encoding="utf-8")
    for status, codes, *_ in rows(PAGE, "Through the proxy"):
        assert 400 <= int(status) < 600
        for code in re.findall(r"`([a-z_]+)`", codes):
            assert f'"{code}"' in source or code.upper() in ERRORS, code


def test_exit_codes_are_those_that_the_commands_tell() -> None:
    told = re.findall(r"^  (\d+)  (.*)$", EXIT_CODES_HELP, re.MULTILINE)
    assert [tuple(row) for row in rows(PAGE, "On the command line")] == told
