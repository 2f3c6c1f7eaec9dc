"""What is granted in this process while no sidecar answers: `FailOpen`, and its ledger.

The local ledger is the embedded one, so that a local hold behaves like any other and the bound is
exact, from any number of threads. It owns which holds are local and what each has spent; that the
sidecar is told is `_away`'s.
"""

import threading
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, TypeVar, cast

from google.protobuf.message import Message

from bursar import _convert as convert
from bursar._calls import Call
from bursar._courier import COMMIT, RECORD
from bursar._embedded import EmbeddedTransport, open_engine
from bursar._journal import Kept
from bursar.exceptions import BudgetExceeded
from bursar.models import Amounts, CommitResult, ReleaseResult
from bursar.units import CAPACITY_UNITS, format_amount, parse_amount
from bursar.v1 import account_pb2 as ac
from bursar.v1 import ledger_pb2 as lg

T = TypeVar("T")

EXHAUSTED: Final = "AWAY_GRANT_EXHAUSTED"
"""The reason of a refusal by the local grant: no sidecar was asked."""

LABEL: Final = ("bursar_away", "granted while the sidecar was away")
_ROOT: Final = "away"
_PREFIX: Final = "away-"
_LABELS_MAX: Final = 16


@dataclass(frozen=True, slots=True)
class FailOpen:
    """Goes on while no sidecar answers, within a grant of this process.

    ```python
    bursar.connect(when_away=bursar.FailOpen({"tokens": 50_000, "usd_nanos": "1.00 USD"}))
    ```

    What is spent and not yet told to the sidecar never passes the grant, in any unit. Units that it
    does not name are refused. A sidecar that answers is obeyed, whatever it answers.

    Attributes:
        grant: Unit → the most; an integer in the unit's base, or an amount such as "1.00 USD".
        for_s: For how many seconds after the sidecar went away anything is granted.
        rates: What models cost, as in the sidecar's own configuration: with money in the grant, a
            call that is reserved by its usage needs a price.
    """

    grant: Mapping[str, int | str]
    for_s: float = 300.0
    rates: str | Path | None = None

    def __post_init__(self) -> None:
        try:
            grant = {unit: parse_amount(unit, amount) for unit, amount in self.grant.items()}
        except ValueError as error:
            raise convert.invalid(f"grant: {error}", field="grant") from None
        if not grant or grant.keys() & CAPACITY_UNITS:
            right = "name units that are spent, such as tokens"
            raise convert.invalid(f"grant={grant}: {right}", field="grant")
        convert.duration(self.for_s, field="for_s")
        object.__setattr__(self, "grant", MappingProxyType(grant))

    @property
    def amounts(self) -> Amounts:
        """The grant, as integers in the base of each unit."""
        return cast("Amounts", self.grant)


@dataclass(slots=True)
class _Hold:
    """A local reservation: for whom, and what it has spent so far."""

    account: str
    model: str
    labels: dict[str, str]
    granted: dict[str, int]
    key: str = field(default_factory=lambda: uuid.uuid4().hex)
    used: dict[str, int] = field(default_factory=dict)
    usage: lg.Usage | None = None
    number: int | None = None
    """Of what is kept about it."""

    def debited(self, request: lg.DebitRequest) -> None:
        """Notes what a debit has said; cumulative, so the most counts."""
        for unit, value in convert.amounts(request.used).items():
            self.used[unit] = max(self.used.get(unit, 0), min(value, self.granted.get(unit, 0)))
        if request.HasField("usage"):
            before = -1 if self.usage is None else self.usage.output_tokens
            if request.usage.output_tokens > before:
                self.usage = request.usage

    def record(self, amounts: Amounts | None, usage: lg.Usage | None) -> lg.RecordRequest | None:
        """What the sidecar has to be told; None: nothing was spent."""
        if usage is not None:
            priced = lg.Usage()
            priced.CopyFrom(usage)
            priced.model = usage.model or self.model
            usage = priced
        elif not any((amounts or {}).values()):
            return None
        return lg.RecordRequest(
            account=self.account,
            idempotency_key=self.key,
            amounts=convert.amounts_to_wire(amounts or {}, field="amounts"),
            usage=usage,
            labels=self.labels,
        )


@dataclass(frozen=True, slots=True)
class Spent:
    """What is to be kept of a local reservation.

    Attributes:
        hold: Which one.
        kept: The Record that tells it; None: nothing was spent.
        amounts: What it has taken from the grant; None: it is pending.
    """

    hold: _Hold
    kept: Kept | None
    amounts: Amounts | None


def is_local(reservation: str) -> bool:
    """Whether a reservation was granted in this process."""
    return reservation.startswith(_PREFIX)


class LocalLedger:
    """A ledger in this process with the grant as its only limit."""

    def __init__(self, policy: FailOpen) -> None:
        from bursar.daemon.config import Config

        prices_matter = "usd_nanos" in policy.grant
        rates: dict[str, Any] = {"allow_unpriced": not prices_matter}
        if policy.rates is not None:
            rates["file"] = str(policy.rates)
        elif prices_matter:
            rates["list_prices"] = True
        data = {"store": {"path": ""}, "accounts": [{"path": "**"}], "rates": rates}
        config = Config.from_dict(data)
        self._grant = policy.amounts
        self._ledger = EmbeddedTransport(open_engine(config.to_core_json(listen=False)))
        self._holds: dict[str, _Hold] = {}
        self._told: dict[str, int] = dict.fromkeys(self._grant, 0)
        self._lock = threading.Lock()
        for unit in self._grant:
            self._limit(unit)

    def _limit(self, unit: str) -> None:
        budget = ac.Budget(
            account=_ROOT,
            unit=unit,
            period=ac.Period(kind="KIND_TOTAL"),
            limit=self._grant[unit] + self._told[unit],
        )
        request = ac.SetBudgetRequest(budget=budget)
        self._ledger.call("AccountService/SetBudget", request, ac.SetBudgetResponse)

    def told(self, spent: Amounts) -> None:
        """The sidecar knows of this now: so much may be granted anew."""
        with self._lock:
            for unit in spent.keys() & self._grant.keys():
                self._told[unit] += spent[unit]
                self._limit(unit)

    def reserve(self, call: Call[T]) -> T:
        """Admits a Reserve, or raises BudgetExceeded."""
        asked = cast("lg.ReserveRequest", call.request)
        self._check_units(asked)
        local = lg.ReserveRequest()
        local.CopyFrom(asked)
        local.account = f"{_ROOT}/{asked.account}"
        local.parent_reservation = asked.parent_reservation.removeprefix(_PREFIX)
        if local.parent_reservation == asked.parent_reservation:
            local.parent_reservation = ""  # the sidecar's: what it holds cannot be carved here
        answer = self._ledger.call(call.method, local, lg.ReserveResponse)
        answer = cast("lg.ReserveResponse", answer)
        if answer.HasField("reservation"):
            labels = dict(sorted(asked.labels.items())[: _LABELS_MAX - 1]) | dict([LABEL])
            self._name(answer.reservation)
            granted = convert.amounts(answer.reservation.granted)
            hold = _Hold(asked.account, answer.reservation.model, labels, granted)
            self._holds.setdefault(answer.reservation.id, hold)
        return self._read(call, answer, asked.account)

    def call(self, call: Call[T]) -> tuple[T, Spent | None]:
        """Runs a call about a local reservation, and says what is to be kept of it."""
        request = type(call.request)()
        request.CopyFrom(call.request)
        name: str = request.reservation  # type: ignore[attr-defined]
        request.reservation = name.removeprefix(_PREFIX)  # type: ignore[attr-defined]
        hold = self._holds.get(name)
        if isinstance(request, lg.ReleaseRequest) and hold is not None:
            answer: Message = self._release(request)
        else:
            answer = self._ledger.call(call.method, request, call.response)
        if hasattr(answer, "reservation"):
            self._name(answer.reservation)
        account = name if hold is None else hold.account
        result = self._read(call, answer, account)
        if isinstance(result, CommitResult | ReleaseResult):
            result = cast("T", replace(result, answered=False))  # the sidecar is told later
        return result, None if hold is None else self._spent(name, hold, request, answer)

    def _release(self, request: lg.ReleaseRequest) -> lg.ReleaseResponse:
        """Ends it for good: the sidecar is told once, so no late Commit may come."""
        commit = lg.CommitRequest(reservation=request.reservation)
        answer = cast("lg.CommitResponse", self._ledger.call(COMMIT, commit, lg.CommitResponse))
        return lg.ReleaseResponse(
            state="STATE_RELEASED", spent=answer.spent, returned=answer.returned
        )

    def _spent(self, name: str, hold: _Hold, request: Message, answer: Message) -> Spent | None:
        if isinstance(request, lg.DebitRequest):
            hold.debited(request)
            return self._to_tell(hold, hold.used, hold.usage, None)
        if isinstance(answer, lg.ExtendResponse) and answer.HasField("reservation"):
            hold.granted = convert.amounts(answer.reservation.granted)
        if not isinstance(answer, lg.CommitResponse | lg.ReleaseResponse):
            return None
        del self._holds[name]
        spent = convert.amounts(answer.spent)
        if isinstance(request, lg.CommitRequest) and (request.actual or request.HasField("usage")):
            usage = request.usage if request.HasField("usage") else None
            return self._to_tell(hold, convert.amounts(request.actual), usage, spent)
        return self._to_tell(hold, hold.used, hold.usage, spent)

    def _to_tell(
        self, hold: _Hold, used: Amounts, usage: lg.Usage | None, spent: Amounts | None
    ) -> Spent:
        request = hold.record(None if usage is not None else used, usage)
        kept = None if request is None else Kept(RECORD, request.SerializeToString())
        return Spent(hold, kept, spent)

    @staticmethod
    def _name(reservation: lg.Reservation) -> None:
        """Gives it the name and the account that callers know it by."""
        reservation.id = _PREFIX + reservation.id
        reservation.account = reservation.account.removeprefix(f"{_ROOT}/")
        if reservation.parent_reservation:
            reservation.parent_reservation = _PREFIX + reservation.parent_reservation

    def _check_units(self, asked: lg.ReserveRequest) -> None:
        wanted = convert.amounts(asked.amounts)
        if asked.usage.gpu_ms:
            wanted["gpu_ms"] = asked.usage.gpu_ms
        if asked.HasField("usage") and not self._grant.keys() & {"tokens", "usd_nanos"}:
            wanted["tokens"] = asked.usage.input_tokens + asked.usage.max_output_tokens
        for unit, value in wanted.items():
            if value and unit not in self._grant:
                raise _refusal(asked.account, unit, value, 0, 0)

    def _read(self, call: Call[T], answer: Message, account: str) -> T:
        """Reads an answer; a refusal for want of the grant gets a reason of its own."""
        try:
            return call.read(answer)
        except BudgetExceeded as error:
            if error.account != _ROOT:
                raise
            limit = self._grant.get(error.unit, 0)
            spent = (error.spent or 0) - self._told.get(error.unit, 0)
            raise _refusal(account, error.unit, error.shortfall, limit, spent) from None

    def close(self) -> None:
        """Ends it."""
        self._ledger.close()


def _refusal(account: str, unit: str, shortfall: int, limit: int, spent: int) -> BudgetExceeded:
    shown = f"{format_amount(unit, shortfall)} {unit} of {format_amount(unit, limit)}"
    return BudgetExceeded(
        f"{account}: the sidecar is away, and what may be spent without it is short of {shown}",
        account=account,
        unit=unit,
        shortfall=shortfall,
        limit=limit,
        spent=spent,
        hint="wait until the sidecar answers, or raise the grant of FailOpen",
        reason=EXHAUSTED,
    )


__all__ = ["FailOpen"]
