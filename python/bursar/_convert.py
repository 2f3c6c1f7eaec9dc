"""Wire messages to models and back. Pure: no calls, no state.

Reading takes an unknown verdict for STOP; writing refuses what the wire cannot carry before
anything is sent.
"""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from bursar import models
from bursar.exceptions import InvalidRequest
from bursar.units import INT64_MAX
from bursar.v1 import account_pb2, ledger_pb2

DURATION_S_MAX = 315_576_000_000  # 10,000 years: the longest that protobuf has


def invalid(message: str, *, reason: str = "INVALID_FIELD", field: str = "") -> InvalidRequest:
    """Builds the exception for a call that is wrong before it is sent."""
    return InvalidRequest(
        message, reason=reason, code="INVALID_ARGUMENT", metadata={"field": field}
    )


def amounts_to_wire(amounts: models.Amounts, *, field: str) -> list[ledger_pb2.Amount]:
    """Writes amounts; refuses what is not an integer from 0 to 2**63-1."""
    for unit, value in amounts.items():
        if type(value) is not int or not 0 <= value <= INT64_MAX:  # a bool is no amount
            raise invalid(
                f"{field}[{unit!r}] is {value!r}; amounts are integers from 0 to {INT64_MAX}, "
                "in the base of their unit",
                reason="INVALID_AMOUNT",
                field=field,
            )
    return [ledger_pb2.Amount(unit=unit, value=value) for unit, value in amounts.items()]


def amounts(wire: Iterable[ledger_pb2.Amount]) -> dict[str, int]:
    """Reads amounts."""
    return {amount.unit: amount.value for amount in wire}


def duration(seconds: float | None, *, field: str, or_zero: bool = False) -> Duration | None:
    """Writes a duration given in seconds, to the millisecond."""
    if seconds is None:
        return None
    if or_zero and seconds == 0:
        return Duration()
    if not 0 < seconds <= DURATION_S_MAX or round(seconds * 1000) == 0:  # NaN is not between
        right = "it must be at least a millisecond and at most 10,000 years"
        raise invalid(f"{field} is {seconds!r}; {right}", field=field)
    milliseconds = round(seconds * 1000)
    wire = Duration()
    wire.FromMilliseconds(milliseconds)
    return wire


def timestamp(moment: datetime | None, *, field: str) -> Timestamp | None:
    """Writes an aware datetime."""
    if moment is None:
        return None
    if moment.tzinfo is None:
        raise invalid(f"{field} has no time zone; pass an aware datetime", field=field)
    wire = Timestamp()
    wire.FromDatetime(moment)
    return wire


def moment(parent: Message, name: str) -> datetime | None:
    """Reads the timestamp field `name` of a message; None where it is absent."""
    if not parent.HasField(name):
        return None
    wire: Timestamp = getattr(parent, name)
    return wire.ToDatetime(tzinfo=UTC)


def verdict(wire: int) -> models.Verdict:
    """Reads a verdict; what this client does not know is STOP, the only safe reading."""
    try:
        return models.Verdict(wire)
    except ValueError:
        return models.Verdict.STOP


def advice_to_wire(advice: models.Advice | None) -> ledger_pb2.Advice | None:
    """Writes advice."""
    if advice is None:
        return None
    return ledger_pb2.Advice(
        max_new_tokens=advice.max_new_tokens,
        temperature=advice.temperature,
        repetition_penalty=advice.repetition_penalty,
        fallback_model=advice.fallback_model,
        notice=advice.notice,
    )


def advice(parent: Message) -> models.Advice | None:
    """Reads the field `advice` of a message; None where it is absent or says nothing."""
    if not parent.HasField("advice"):
        return None
    wire: ledger_pb2.Advice = parent.advice  # type: ignore[attr-defined]
    if not wire.ListFields():
        return None
    return models.Advice(
        max_new_tokens=wire.max_new_tokens if wire.HasField("max_new_tokens") else None,
        temperature=wire.temperature if wire.HasField("temperature") else None,
        repetition_penalty=wire.repetition_penalty if wire.HasField("repetition_penalty") else None,
        fallback_model=wire.fallback_model if wire.HasField("fallback_model") else None,
        notice=wire.notice if wire.HasField("notice") else None,
    )


def refusal(parent: Message) -> models.Refusal | None:
    """Reads the field `refusal` of a message; None where it is absent."""
    if not parent.HasField("refusal"):
        return None
    wire: ledger_pb2.Refusal = parent.refusal  # type: ignore[attr-defined]
    return models.Refusal(
        reason=_name(ledger_pb2.Refusal.Reason.Name, wire.reason).removeprefix("REASON_"),
        account=wire.account,
        unit=wire.unit,
        shortfall=wire.shortfall,
        reset_time=moment(wire, "reset_time"),
        hint=wire.hint,
    )


def _name(name: object, value: int) -> str:
    try:
        return str(name(value))  # type: ignore[operator]
    except ValueError:
        return f"UNKNOWN_{value}"


def estimate_to_wire(usage: models.UsageEstimate) -> ledger_pb2.UsageEstimate:
    """Writes a usage estimate."""
    _check_counts(
        {
            "input_tokens": usage.input_tokens,
            "cached_input_tokens": usage.cached_input_tokens,
            "cache_write_tokens": usage.cache_write_tokens,
            "max_output_tokens": usage.max_output_tokens,
            "min_output_tokens": usage.min_output_tokens or 0,
            "gpu_ms": usage.gpu_ms,
        },
    )
    return ledger_pb2.UsageEstimate(
        model=usage.model,
        input_tokens=usage.input_tokens,
        cached_input_tokens=usage.cached_input_tokens,
        cache_write_tokens=usage.cache_write_tokens,
        max_output_tokens=usage.max_output_tokens,
        min_output_tokens=usage.min_output_tokens,
        gpu_ms=usage.gpu_ms,
    )


def usage_to_wire(usage: models.Usage) -> ledger_pb2.Usage:
    """Writes a usage."""
    _check_counts(
        {
            "input_tokens": usage.input_tokens,
            "cached_input_tokens": usage.cached_input_tokens,
            "cache_write_tokens": usage.cache_write_tokens,
            "output_tokens": usage.output_tokens,
            "gpu_ms": usage.gpu_ms,
        },
    )
    return ledger_pb2.Usage(
        model=usage.model,
        input_tokens=usage.input_tokens,
        cached_input_tokens=usage.cached_input_tokens,
        cache_write_tokens=usage.cache_write_tokens,
        output_tokens=usage.output_tokens,
        gpu_ms=usage.gpu_ms,
    )


def _check_counts(counts: Mapping[str, int]) -> None:
    amounts_to_wire(counts, field="usage")


def balance(wire: ledger_pb2.Balance) -> models.Balance:
    """Reads a balance."""
    return models.Balance(
        account=wire.account,
        unit=wire.unit,
        period=wire.period,
        limit=wire.limit,
        held=wire.held,
        spent=wire.spent,
        remaining=wire.remaining,
        start_time=moment(wire, "start_time"),
        reset_time=moment(wire, "reset_time"),
    )


def balances(wire: Iterable[ledger_pb2.Balance]) -> tuple[models.Balance, ...]:
    """Reads balances."""
    return tuple(balance(one) for one in wire)


def state(wire: int) -> models.ReservationState:
    """Reads a reservation's state."""
    name = ledger_pb2.Reservation.State.Name(wire)
    return models.ReservationState(name.removeprefix("STATE_").lower())


def reservation(wire: ledger_pb2.Reservation) -> models.ReservationInfo:
    """Reads a reservation."""
    return models.ReservationInfo(
        id=wire.id,
        state=state(wire.state),
        account=wire.account,
        granted=amounts(wire.granted),
        used=amounts(wire.used),
        spent=amounts(wire.spent),
        max_output_tokens=wire.max_output_tokens,
        create_time=moment(wire, "create_time"),
        expire_time=moment(wire, "expire_time"),
        ttl_ms=wire.ttl.ToMilliseconds(),
        parent_reservation=wire.parent_reservation,
        model=wire.model,
    )


def open_reservation(wire: ledger_pb2.OpenReservation) -> models.OpenReservation:
    """Reads an open reservation."""
    name = ledger_pb2.OpenReservation.Debiting.Name(wire.debiting)
    debiting = models.Debiting(name.removeprefix("DEBITING_").lower())
    return models.OpenReservation(reservation(wire.reservation), debiting)


def period_to_wire(period: models.Period) -> account_pb2.Period:
    """Writes a period."""
    rolling = period.kind is models.PeriodKind.ROLLING
    return account_pb2.Period(
        kind=f"KIND_{period.kind.name}",
        time_zone="" if period.time_zone == "UTC" else period.time_zone,
        length=duration(period.length_ms / 1000, field="period") if rolling else None,
    )


def budget_to_wire(budget: models.Budget) -> account_pb2.Budget:
    """Writes a budget."""
    amounts_to_wire({budget.unit: budget.limit}, field="limit")
    return account_pb2.Budget(
        account=budget.account,
        unit=budget.unit,
        period=period_to_wire(budget.period),
        limit=budget.limit,
        thresholds=[
            account_pb2.Threshold(
                permille=threshold.permille,
                verdict=int(threshold.verdict),  # type: ignore[arg-type]
                advice=advice_to_wire(threshold.advice),
            )
            for threshold in budget.thresholds
        ],
    )


def budget(wire: account_pb2.Budget) -> models.Budget:
    """Reads a budget."""
    kind = account_pb2.Period.Kind.Name(wire.period.kind).removeprefix("KIND_").lower()
    return models.Budget(
        account=wire.account,
        unit=wire.unit,
        period=models.Period(
            kind=models.PeriodKind(kind),
            time_zone=wire.period.time_zone or "UTC",
            length_ms=wire.period.length.ToMilliseconds(),
        ),
        limit=wire.limit,
        thresholds=tuple(
            models.Threshold(one.permille, verdict(one.verdict), advice(one))
            for one in wire.thresholds
        ),
    )


def account(
    wire: account_pb2.Account, budgets: Iterable[account_pb2.Budget] = ()
) -> models.Account:
    """Reads an account, and its budgets where the answer has them."""
    return models.Account(
        path=wire.path,
        frozen=wire.frozen,
        stopped=wire.stopped,
        freeze_reason=wire.freeze_reason,
        verdict=verdict(wire.verdict),
        balances=balances(wire.balances),
        open_reservation_count=wire.open_reservation_count,
        create_time=moment(wire, "create_time"),
        budgets=tuple(budget(one) for one in budgets),
    )


def entry(wire: account_pb2.Entry) -> models.Entry:
    """Reads an entry."""
    kind = account_pb2.Entry.Kind.Name(wire.kind).removeprefix("KIND_").lower()
    return models.Entry(
        sequence=wire.sequence,
        time=moment(wire, "time"),
        account=wire.account,
        reservation=wire.reservation,
        unit=wire.unit,
        kind=models.EntryKind(kind),
        amount=wire.amount,
        admit_time=moment(wire, "admit_time"),
        model=wire.model,
        detail=wire.detail,
    )


def finding(wire: account_pb2.Finding) -> models.Finding:
    """Reads a runaway."""
    return models.Finding(
        time=moment(wire, "time"),
        account=wire.account,
        rule=wire.rule,
        figure=wire.figure,
        allowed=wire.allowed,
        unit=wire.unit,
        action=wire.action,
    )
