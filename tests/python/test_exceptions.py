"""The error table is total, agrees with the proto, and its exceptions carry what they promise."""

import copy
import inspect
import pickle
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

from bursar import exceptions, models
from bursar._errors import DETAILS_KEY, from_reason, from_status, refused
from bursar.exceptions import ERRORS, AccountFrozen, BudgetExceeded, BursarError, RunawayStopped
from bursar.v1 import errors_pb2, ledger_pb2

PREFIX = "ERROR_REASON_"


def test_every_error_reason_of_the_proto_is_in_the_table() -> None:
    reasons = {name.removeprefix(PREFIX) for name in errors_pb2.ErrorReason.keys()}  # noqa: SIM118 -- an enum wrapper
    assert set(ERRORS) == reasons - {"UNSPECIFIED"}


def test_the_codes_of_the_table_are_those_that_the_proto_documents(project: Path) -> None:
    text = (project / "proto/bursar/v1/errors.proto").read_text(encoding="utf-8")
    documented: dict[str, str] = {}
    comment: list[str] = []
    for line in text.splitlines():
        stripped = line.strip()
        if stripped.startswith("//"):
            comment.append(stripped.removeprefix("//").strip())
        elif match := re.match(rf"{PREFIX}(\w+) = ", stripped):
            documented[match[1]] = comment[0].partition(":")[0]
            comment = []
    documented.pop("UNSPECIFIED")
    assert {reason: row.code for reason, row in ERRORS.items()} == documented


@pytest.mark.parametrize("reason", sorted(ERRORS))
def test_a_reason_on_the_wire_becomes_its_exception(reason: str) -> None:
    row = ERRORS[reason]
    detail = AnyMessage()
    detail.Pack(ErrorInfo(reason=reason, domain="bursar", metadata={"account": "acme"}))
    status = Status(code=1, message="m", details=[detail]).SerializeToString()
    error = from_status(row.code, "what happened", [("x", "y"), (DETAILS_KEY, status)])
    assert type(error) is row.exception
    assert (error.reason, error.code, str(error)) == (reason, row.code, "what happened")
    assert error.metadata == {"account": "acme"}


def test_details_of_another_domain_are_not_ours() -> None:
    detail = AnyMessage()
    detail.Pack(ErrorInfo(reason="ACCOUNT_NOT_FOUND", domain="example.com"))
    status = Status(details=[detail]).SerializeToString()
    error = from_status("NOT_FOUND", "m", [(DETAILS_KEY, status)])
    assert type(error) is exceptions.SidecarError


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("UNAVAILABLE", exceptions.SidecarUnavailable),
        ("DEADLINE_EXCEEDED", exceptions.SidecarTimeout),
        ("INVALID_ARGUMENT", exceptions.InvalidRequest),
        ("UNIMPLEMENTED", exceptions.SidecarError),
        ("INTERNAL", exceptions.SidecarError),
    ],
)
def test_an_error_without_a_reason_is_told_by_its_code(
    code: str, expected: type[BursarError]
) -> None:
    assert type(from_reason(code, "")) is expected


def test_a_reason_of_a_newer_sidecar_is_kept() -> None:
    error = from_reason("FAILED_PRECONDITION", "m", reason="NOT_YET_INVENTED")
    assert type(error) is exceptions.SidecarError
    assert error.reason == "NOT_YET_INVENTED"


def test_every_exception_is_a_bursar_error() -> None:
    classes = [value for _, value in inspect.getmembers(exceptions, inspect.isclass)]
    errors = [one for one in classes if issubclass(one, BaseException)]
    assert all(issubclass(one, BursarError) for one in errors)
    assert {one.__name__ for one in errors} <= set(exceptions.__all__)


def _refusal(reason: str) -> models.Refusal:
    reset = datetime(2026, 5, 1, tzinfo=UTC)
    return models.Refusal(reason, "acme", "usd_nanos", 1_500_000_000, reset, "wait")


def test_a_refusal_becomes_budget_exceeded_with_all_that_is_known() -> None:
    windows = [
        models.Balance("acme/a", "usd_nanos", "day", 9, 9, 9, 9),
        models.Balance("acme", "usd_nanos", "day", 10**10, 5 * 10**8, 9 * 10**9, 5 * 10**8),
    ]
    error = refused(
        _refusal("BUDGET_EXHAUSTED"), balances=windows, requested={"usd_nanos": 2_500_000_000}
    )
    assert isinstance(error, BudgetExceeded)
    assert (error.account, error.unit, error.reason) == ("acme", "usd_nanos", "BUDGET_EXHAUSTED")
    assert (error.limit, error.spent, error.shortfall) == (10**10, 9 * 10**9, 1_500_000_000)
    assert error.requested == 2_500_000_000
    assert error.reset_time == datetime(2026, 5, 1, tzinfo=UTC)
    assert error.hint == "wait"
    assert str(error) == (
        "acme is short of $1.50; limit $10.00, spent $9.00, held $0.50; "
        "resets at 2026-05-01T00:00:00+00:00; wait"
    )


@pytest.mark.parametrize("reason", ledger_pb2.Refusal.Reason.keys()[1:])
def test_every_refusal_has_an_exception(reason: str) -> None:
    reason = reason.removeprefix("REASON_")
    error = refused(_refusal(reason))
    own = {"ACCOUNT_FROZEN": AccountFrozen, "RUNAWAY": RunawayStopped}
    assert type(error) is own.get(reason, BudgetExceeded)
    assert error.reason == reason
    assert str(error).startswith("acme is ")
    assert str(error).endswith("; wait")


def test_a_stopped_runaway_names_its_rule_and_until_when() -> None:
    reset = datetime(2026, 5, 1, tzinfo=UTC)
    hint = "repeats: 51 times the same prompt within an interval, 50 allowed"
    error = refused(models.Refusal("RUNAWAY", "acme/a", "", 1, reset, hint))
    assert isinstance(error, RunawayStopped)
    assert (error.account, error.rule, error.reset_time) == ("acme/a", "repeats", reset)
    assert str(error) == (
        f"acme/a is stopped as a runaway; until 2026-05-01T00:00:00+00:00; {hint}"
    )
    assert (copy.copy(error).rule, copy.copy(error).reset_time) == ("repeats", reset)


@pytest.mark.parametrize("clone", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))])  # noqa: S301 -- our own bytes
def test_exceptions_survive_copying_and_pickling(clone: object) -> None:
    error = refused(_refusal("BUDGET_EXHAUSTED"))
    again = clone(error)  # type: ignore[operator]
    assert type(again) is BudgetExceeded
    assert (str(again), vars(again)) == (str(error), vars(error))


def test_what_was_decided_is_told_by_a_copy_of_the_error() -> None:
    error = exceptions.SidecarUnavailable("gone", code="UNAVAILABLE")
    told = error.decided("go on", decision="fail_open", kept=True)
    assert (error.decision, error.kept, str(error)) == ("fail_closed", False, "gone")
    assert (told.decision, told.kept, told.code) == ("fail_open", True, "UNAVAILABLE")
    assert str(told) == told.message == "gone; go on"
    assert str(pickle.loads(pickle.dumps(told))) == "gone; go on"  # noqa: S301 -- our own bytes
