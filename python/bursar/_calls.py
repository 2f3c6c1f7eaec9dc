"""One function per call of the interface: arguments in, a `Call` out.

A `Call` holds the request and knows how to read the answer. The sync and the async client both run
these, so what a method means is written once, here. Nothing in this module does I/O.
"""

import functools
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, ParamSpec, TypeVar

from google.protobuf.message import Message

from bursar import _convert as convert
from bursar import models
from bursar._errors import refused
from bursar.units import parse_amount
from bursar.v1 import account_pb2 as ac
from bursar.v1 import ledger_pb2 as lg

T = TypeVar("T")
P = ParamSpec("P")

Spending = models.Usage | models.UsageEstimate
ACCOUNTS_PAGE_MAX: Final = 1_000
RESERVATIONS_MAX: Final = 1_000


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """A call that is ready to be sent.

    Attributes:
        method: Service and method, as in ``LedgerService/Reserve``.
        request: The message to send.
        response: The type of the answer.
        read: Turns the answer into what the method returns, or raises what it says.
        unanswered: What the method returns where nobody answers and the call is kept to be told
            later; None: such a call is not kept.
        is_repeatable: Whether the caller has a key by which it may repeat the call itself.
    """

    method: str
    request: Message
    response: type[Message]
    read: Callable[[Any], T]
    unanswered: T | None = None
    is_repeatable: bool = True


@dataclass(frozen=True, slots=True)
class Admission:
    """An admitted Reserve: what a `Reservation` handle is made of."""

    info: models.ReservationInfo
    verdict: models.Verdict
    advice: models.Advice | None
    balances: tuple[models.Balance, ...]
    estimate: models.UsageEstimate | None


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """A page of a listing; `next_token` is empty at the end."""

    items: tuple[T, ...]
    next_token: str


def _sendable(build: "Callable[P, Call[T]]") -> "Callable[P, Call[T]]":
    """Turns text that has no UTF-8 form (a lone surrogate) into an error of ours."""

    @functools.wraps(build)
    def checked(*args: P.args, **kwargs: P.kwargs) -> Call[T]:
        try:
            return build(*args, **kwargs)
        except UnicodeEncodeError as error:
            near = error.object[max(0, error.start - 20) : error.end]
            raise convert.invalid(f"text that is not Unicode cannot be sent: {near!r}") from None

    return checked


def one_of(
    tokens: int | None,
    amounts: models.Amounts | None,
    usage: Spending | None,
    *,
    field: str = "amounts",
    required: bool = True,
) -> models.Amounts | None:
    """Folds the shorthand `tokens` into amounts; refuses more than one way to say how much."""
    given = [one for one in (tokens, amounts, usage) if one is not None]
    if len(given) > 1 or (required and not given):
        raise convert.invalid(
            f"give exactly one of tokens, {field} and usage, not {len(given)}",
            reason="INVALID_AMOUNT",
            field=field,
        )
    return {"tokens": tokens} if tokens is not None else amounts


def _key(key: str | None) -> str:
    return uuid.uuid4().hex if key is None else key


@_sendable
def reserve(
    account: str,
    *,
    tokens: int | None,
    amounts: models.Amounts | None,
    usage: models.UsageEstimate | None,
    min_acceptable: models.Amounts | None,
    ttl_s: float | None,
    parent: str | None,
    labels: Mapping[str, str] | None,
    idempotency_key: str | None,
) -> Call[Admission]:
    """LedgerService/Reserve; raises on a refusal."""
    wanted = one_of(tokens, amounts, usage)

    def read(answer: lg.ReserveResponse) -> Admission:
        balances = convert.balances(answer.balances)
        if (refusal := convert.refusal(answer)) is not None:
            raise refused(refusal, balances=balances, requested=wanted)
        return Admission(
            info=convert.reservation(answer.reservation),
            verdict=convert.verdict(answer.verdict),
            advice=convert.advice(answer),
            balances=balances,
            estimate=usage,
        )

    request = lg.ReserveRequest(
        account=account,
        idempotency_key=_key(idempotency_key),
        amounts=convert.amounts_to_wire(wanted or {}, field="amounts"),
        usage=convert.estimate_to_wire(usage) if usage else None,
        min_acceptable=convert.amounts_to_wire(min_acceptable or {}, field="min_acceptable"),
        ttl=convert.duration(ttl_s, field="ttl_s"),
        parent_reservation=parent or "",
        labels=labels,
    )
    repeatable = idempotency_key is not None
    return Call("LedgerService/Reserve", request, lg.ReserveResponse, read, None, repeatable)


@_sendable
def debit(
    reservation: str,
    *,
    tokens: int | None,
    used: models.Amounts | None,
    usage: models.Usage | None,
) -> Call[models.DebitResult]:
    """LedgerService/Debit; STOP is an answer."""
    amounts = one_of(tokens, used, usage, field="used")

    def read(answer: lg.DebitResponse) -> models.DebitResult:
        return models.DebitResult(
            verdict=convert.verdict(answer.verdict),
            remaining=convert.amounts(answer.remaining),
            advice=convert.advice(answer),
            refusal=convert.refusal(answer),
        )

    request = lg.DebitRequest(
        reservation=reservation,
        used=convert.amounts_to_wire(amounts or {}, field="used"),
        usage=convert.usage_to_wire(usage) if usage else None,
    )
    return Call("LedgerService/Debit", request, lg.DebitResponse, read)


@_sendable
def extend(
    reservation: str,
    *,
    tokens: int | None,
    granted: models.Amounts | None,
    min_acceptable: models.Amounts | None,
    ttl_s: float | None,
    usage: models.UsageEstimate | None = None,
    top_up: bool = False,
) -> Call[models.ExtendResult]:
    """LedgerService/Extend; raises on a refusal."""
    totals = one_of(tokens, granted, usage, field="granted", required=False)

    def read(answer: lg.ExtendResponse) -> models.ExtendResult:
        if (refusal := convert.refusal(answer)) is not None:
            raise refused(refusal, requested=totals)
        return models.ExtendResult(
            verdict=convert.verdict(answer.verdict),
            reservation=convert.reservation(answer.reservation),
            advice=convert.advice(answer),
        )

    request = lg.ExtendRequest(
        reservation=reservation,
        granted=convert.amounts_to_wire(totals or {}, field="granted"),
        usage=convert.estimate_to_wire(usage) if usage else None,
        top_up=top_up,
        min_acceptable=convert.amounts_to_wire(min_acceptable or {}, field="min_acceptable"),
        ttl=convert.duration(ttl_s, field="ttl_s"),
    )
    return Call("LedgerService/Extend", request, lg.ExtendResponse, read)


@_sendable
def commit(
    reservation: str,
    *,
    tokens: int | None,
    actual: models.Amounts | None,
    usage: models.Usage | None,
    success: bool | None,
) -> Call[models.CommitResult]:
    """LedgerService/Commit; with nothing given, what was debited."""
    amounts = one_of(tokens, actual, usage, field="actual", required=False)

    def read(answer: lg.CommitResponse) -> models.CommitResult:
        return models.CommitResult(
            verdict=convert.verdict(answer.verdict),
            spent=convert.amounts(answer.spent),
            returned=convert.amounts(answer.returned),
            overdraft=convert.amounts(answer.overdraft),
            advice=convert.advice(answer),
        )

    request = lg.CommitRequest(
        reservation=reservation,
        actual=convert.amounts_to_wire(amounts or {}, field="actual"),
        usage=convert.usage_to_wire(usage) if usage else None,
        success=success,
    )
    result = models.CommitResult(models.Verdict.WARN, dict(amounts or {}), {}, answered=False)
    return Call("LedgerService/Commit", request, lg.CommitResponse, read, result)


@_sendable
def release(reservation: str) -> Call[models.ReleaseResult]:
    """LedgerService/Release."""

    def read(answer: lg.ReleaseResponse) -> models.ReleaseResult:
        return models.ReleaseResult(
            state=convert.state(answer.state),
            spent=convert.amounts(answer.spent),
            returned=convert.amounts(answer.returned),
        )

    request = lg.ReleaseRequest(reservation=reservation)
    result = models.ReleaseResult(models.ReservationState.RELEASED, {}, {}, answered=False)
    return Call("LedgerService/Release", request, lg.ReleaseResponse, read, result)


@_sendable
def record(
    account: str,
    *,
    tokens: int | None,
    amounts: models.Amounts | None,
    usage: models.Usage | None,
    labels: Mapping[str, str] | None,
    idempotency_key: str | None,
) -> Call[models.RecordResult]:
    """LedgerService/Record."""
    spent = one_of(tokens, amounts, usage)

    def read(answer: lg.RecordResponse) -> models.RecordResult:
        return models.RecordResult(
            verdict=convert.verdict(answer.verdict),
            spent=convert.amounts(answer.spent),
            overdraft=convert.amounts(answer.overdraft),
            advice=convert.advice(answer),
        )

    request = lg.RecordRequest(
        account=account,
        idempotency_key=_key(idempotency_key),
        amounts=convert.amounts_to_wire(spent or {}, field="amounts"),
        usage=convert.usage_to_wire(usage) if usage else None,
        labels=labels,
    )
    later = models.RecordResult(models.Verdict.WARN, dict(spent or {}), {}, answered=False)
    result = later if request.idempotency_key else None  # without a key a repeat is charged again
    return Call("LedgerService/Record", request, lg.RecordResponse, read, result)


@_sendable
def check(
    account: str,
    *,
    tokens: int | None,
    amounts: models.Amounts | None,
    usage: models.UsageEstimate | None,
    min_acceptable: models.Amounts | None,
) -> Call[models.CheckResult]:
    """LedgerService/Check; a refusal is part of the answer."""
    wanted = one_of(tokens, amounts, usage)

    def read(answer: lg.CheckResponse) -> models.CheckResult:
        return models.CheckResult(
            verdict=convert.verdict(answer.verdict),
            granted=convert.amounts(answer.granted),
            max_output_tokens=answer.max_output_tokens,
            advice=convert.advice(answer),
            refusal=convert.refusal(answer),
            balances=convert.balances(answer.balances),
        )

    request = lg.CheckRequest(
        account=account,
        amounts=convert.amounts_to_wire(wanted or {}, field="amounts"),
        usage=convert.estimate_to_wire(usage) if usage else None,
        min_acceptable=convert.amounts_to_wire(min_acceptable or {}, field="min_acceptable"),
    )
    return Call("LedgerService/Check", request, lg.CheckResponse, read)


@_sendable
def get_reservation(reservation: str) -> Call[models.ReservationInfo]:
    """LedgerService/GetReservation."""
    return Call(
        "LedgerService/GetReservation",
        lg.GetReservationRequest(reservation=reservation),
        lg.GetReservationResponse,
        lambda answer: convert.reservation(answer.reservation),
    )


@_sendable
def list_reservations(account: str) -> Call[tuple[models.OpenReservation, ...]]:
    """LedgerService/ListReservations."""
    return Call(
        "LedgerService/ListReservations",
        lg.ListReservationsRequest(account=account, page_size=RESERVATIONS_MAX),
        lg.ListReservationsResponse,
        lambda answer: tuple(convert.open_reservation(one) for one in answer.reservations),
    )


@_sendable
def count_tokens(model: str, *, text: str) -> Call[models.TokenCount]:
    """LedgerService/CountTokens."""
    return Call(
        "LedgerService/CountTokens",
        lg.CountTokensRequest(model=model, text=text),
        lg.CountTokensResponse,
        lambda answer: models.TokenCount(answer.token_count, answer.encoding),
    )


@_sendable
def set_budget(
    account: str,
    *,
    unit: str,
    limit: int | str,
    period: models.Period | str,
    thresholds: Sequence[models.Threshold],
) -> Call[models.Balance]:
    """AccountService/SetBudget."""
    try:
        parsed = models.Period.parse(period) if isinstance(period, str) else period
        # An integer goes as it is, so that the sidecar judges units that this client does not know.
        base = parse_amount(unit, limit) if isinstance(limit, str) else limit
    except ValueError as error:
        raise convert.invalid(str(error)) from error
    budget = models.Budget(account, unit, parsed, base, tuple(thresholds))
    return Call(
        "AccountService/SetBudget",
        ac.SetBudgetRequest(budget=convert.budget_to_wire(budget)),
        ac.SetBudgetResponse,
        lambda answer: convert.balance(answer.balance),
    )


@_sendable
def get_account(account: str) -> Call[models.Account]:
    """AccountService/GetAccount."""
    return Call(
        "AccountService/GetAccount",
        ac.GetAccountRequest(account=account),
        ac.GetAccountResponse,
        lambda answer: convert.account(answer.account, answer.budgets),
    )


@_sendable
def list_accounts(
    account: str, *, page_size: int, page_token: str = ""
) -> Call[Page[models.Account]]:
    """AccountService/ListAccounts, one page."""
    return Call(
        "AccountService/ListAccounts",
        ac.ListAccountsRequest(account=account, page_size=page_size, page_token=page_token),
        ac.ListAccountsResponse,
        lambda answer: Page(
            tuple(convert.account(one) for one in answer.accounts), answer.next_page_token
        ),
    )


@_sendable
def freeze(account: str, *, reason: str) -> Call[models.Account]:
    """AccountService/Freeze."""
    return Call(
        "AccountService/Freeze",
        ac.FreezeRequest(account=account, reason=reason),
        ac.FreezeResponse,
        lambda answer: convert.account(answer.account),
    )


@_sendable
def unfreeze(account: str) -> Call[models.Account]:
    """AccountService/Unfreeze."""
    return Call(
        "AccountService/Unfreeze",
        ac.UnfreezeRequest(account=account),
        ac.UnfreezeResponse,
        lambda answer: convert.account(answer.account),
    )


@_sendable
def retire_account(account: str) -> Call[None]:
    """AccountService/RetireAccount."""
    return Call(
        "AccountService/RetireAccount",
        ac.RetireAccountRequest(account=account),
        ac.RetireAccountResponse,
        lambda _: None,
    )


@_sendable
def watch_accounts(account: str, *, min_interval_s: float | None) -> Call[models.AccountChanges]:
    """AccountService/WatchAccounts; `read` turns each message into changes."""
    request = ac.WatchAccountsRequest(
        account=account,
        min_interval=convert.duration(min_interval_s, field="min_interval_s"),
    )
    return Call(
        "AccountService/WatchAccounts",
        request,
        ac.WatchAccountsResponse,
        lambda answer: models.AccountChanges(
            tuple(convert.account(one) for one in answer.accounts),
            tuple(answer.retired),
            tuple(convert.finding(one) for one in answer.findings),
        ),
    )
