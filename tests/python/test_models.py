"""Models are frozen, ordered where order matters, and go over the wire and back unchanged."""

import dataclasses
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bursar import _convert as convert
from bursar import models
from bursar.exceptions import InvalidRequest
from bursar.models import Advice, Budget, Period, PeriodKind, Threshold, Verdict
from bursar.v1 import account_pb2, ledger_pb2


def test_verdicts_are_ordered_by_severity() -> None:
    assert Verdict.OK < Verdict.WARN < Verdict.DEGRADE < Verdict.STOP


def test_every_model_is_frozen_and_slotted() -> None:
    for name in models.__all__:
        model = getattr(models, name)
        if dataclasses.is_dataclass(model):
            assert vars(model)["__dataclass_params__"].frozen, name
            assert "__slots__" in vars(model), name


@pytest.mark.parametrize(
    ("ours", "wire", "prefix"),
    [
        (models.Verdict, ledger_pb2.Verdict, "VERDICT_"),
        (models.PeriodKind, account_pb2.Period.Kind, "KIND_"),
        (models.EntryKind, account_pb2.Entry.Kind, "KIND_"),
        (models.ReservationState, ledger_pb2.Reservation.State, "STATE_"),
    ],
)
def test_enums_have_every_value_of_the_proto(ours: type, wire: object, prefix: str) -> None:
    names = {name.removeprefix(prefix) for name in wire.keys()}  # type: ignore[attr-defined]  # noqa: SIM118 -- an enum wrapper
    assert {one.name for one in ours} == names - {"UNSPECIFIED"}  # type: ignore[attr-defined]


def test_verdicts_have_the_numbers_of_the_proto() -> None:
    for verdict in Verdict:
        assert ledger_pb2.Verdict.Value(f"VERDICT_{verdict.name}") == verdict


def test_a_verdict_that_is_unknown_is_stop() -> None:
    assert convert.verdict(99) is Verdict.STOP
    assert convert.verdict(0) is Verdict.STOP


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("total", Period(PeriodKind.TOTAL)),
        ("hour", Period(PeriodKind.HOUR)),
        ("week", Period(PeriodKind.WEEK)),
        ("day@Europe/Berlin", Period(PeriodKind.DAY, "Europe/Berlin")),
        (
            "month@America/Argentina/Buenos_Aires",
            Period(PeriodKind.MONTH, "America/Argentina/Buenos_Aires"),
        ),
        ("rolling:3600s", Period(PeriodKind.ROLLING, length_ms=3_600_000)),
        ("rolling:1500ms", Period(PeriodKind.ROLLING, length_ms=1_500)),
    ],
)
def test_a_period_is_read_and_written_alike(text: str, expected: Period) -> None:
    assert Period.parse(text) == expected
    assert str(expected) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Day",
        "fortnight",
        "total@UTC",
        "rolling",
        "rolling:0s",
        "rolling:400d",
        "day:1h",
        "day@",
        "rolling@UTC:5s",
        "day@Europe/Berlin\n",
    ],
)
def test_what_is_not_a_period_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"write|lasts"):
        Period.parse(text)


PERIODS = st.one_of(
    st.sampled_from([Period(kind) for kind in PeriodKind if kind is not PeriodKind.ROLLING]),
    st.just(Period(PeriodKind.DAY, "Europe/Berlin")),
    st.integers(1_000, 366 * 86_400_000).map(
        lambda length: Period(PeriodKind.ROLLING, length_ms=length)
    ),
)
ADVICE = st.builds(
    Advice,
    max_new_tokens=st.none() | st.integers(0, 2**40),
    temperature=st.none() | st.floats(0, 2),
    repetition_penalty=st.none() | st.floats(0, 2),
    fallback_model=st.none() | st.text(max_size=20),
)
BUDGETS = st.builds(
    Budget,
    account=st.just("acme/research"),
    unit=st.sampled_from(["tokens", "usd_nanos"]),
    period=PERIODS,
    limit=st.integers(0, 2**63 - 1),
    thresholds=st.lists(
        st.builds(
            Threshold,
            permille=st.integers(1, 1000),
            verdict=st.sampled_from(Verdict),
            advice=st.none() | ADVICE.filter(lambda advice: advice != Advice()),
        ),
        max_size=4,
    ).map(tuple),
)


@given(BUDGETS)
def test_a_budget_goes_over_the_wire_and_back_unchanged(budget: Budget) -> None:
    wire = account_pb2.Budget.FromString(convert.budget_to_wire(budget).SerializeToString())
    assert convert.budget(wire) == budget


@given(PERIODS)
def test_every_period_is_read_back_from_its_text(period: Period) -> None:
    assert Period.parse(str(period)) == period


@pytest.mark.parametrize("value", [-1, 2**63, True, 1.0, "5", None])
def test_an_amount_that_is_no_int64_is_refused_before_it_is_sent(value: object) -> None:
    with pytest.raises(InvalidRequest, match="amounts are integers") as caught:
        convert.amounts_to_wire({"tokens": value}, field="amounts")  # type: ignore[dict-item]
    assert (caught.value.reason, caught.value.field) == ("INVALID_AMOUNT", "amounts")


def test_a_time_without_a_zone_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="no time zone"):
        convert.timestamp(datetime(2026, 5, 1), field="start_time")  # noqa: DTZ001 -- the point


def test_a_time_of_any_zone_comes_back_in_utc() -> None:
    berlin = datetime(2026, 5, 1, 2, tzinfo=timezone(timedelta(hours=2)))
    wire = convert.timestamp(berlin, field="start_time")
    entry = account_pb2.Entry(time=wire)
    assert convert.moment(entry, "time") == datetime(2026, 5, 1, tzinfo=UTC)
    assert convert.moment(entry, "admit_time") is None


@pytest.mark.parametrize("seconds", [0, -1, 0.0001])
def test_a_time_to_live_under_a_millisecond_is_refused(seconds: float) -> None:
    with pytest.raises(InvalidRequest, match="at least a millisecond"):
        convert.duration(seconds, field="ttl_s")
