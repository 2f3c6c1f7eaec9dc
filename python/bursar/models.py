"""What calls take and answer: frozen dataclasses, free of wire types.

Amounts are plain mappings from unit to integer, in the base of each unit. Times are aware
datetimes in UTC. Nothing here calls anything.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import IntEnum, StrEnum
from typing import Final, Self, TypeAlias

from bursar.units import parse_duration_ms

__all__ = [
    "Account",
    "AccountChanges",
    "Advice",
    "Amounts",
    "Balance",
    "Budget",
    "CheckResult",
    "CommitResult",
    "DebitResult",
    "Entry",
    "EntryKind",
    "ExtendResult",
    "Finding",
    "Period",
    "PeriodKind",
    "RecordResult",
    "Refusal",
    "ReleaseResult",
    "ReservationInfo",
    "ReservationState",
    "Threshold",
    "TokenCount",
    "Usage",
    "UsageEstimate",
    "Verdict",
]

Amounts: TypeAlias = Mapping[str, int]
"""Unit → amount in the unit's base: ``{"tokens": 500, "usd_nanos": 2_000_000}``."""


class Verdict(IntEnum):
    """The one answer to every spending call; the larger, the worse."""

    OK = 1
    """Go on."""
    WARN = 2
    """Go on and follow the advice: a warning threshold is passed."""
    DEGRADE = 3
    """Go on more cheaply, as advised: a soft limit is passed."""
    STOP = 4
    """Stop now: refused, exhausted, frozen or overdrawn."""


class PeriodKind(StrEnum):
    """How a budget's windows follow each other."""

    TOTAL = "total"
    HOUR = "hour"
    DAY = "day"
    WEEK = "week"
    MONTH = "month"
    ROLLING = "rolling"


class ReservationState(StrEnum):
    """Where a reservation is in its life."""

    PENDING = "pending"
    COMMITTED = "committed"
    RELEASED = "released"
    EXPIRED = "expired"


class Debiting(StrEnum):
    """How an open reservation is debited."""

    CALLS = "calls"
    STREAM = "stream"
    LEASE = "lease"


class EntryKind(StrEnum):
    """What an entry says moved."""

    HOLD = "hold"
    RETURN = "return"
    SPEND = "spend"
    OVERDRAFT = "overdraft"
    LIMIT = "limit"
    FREEZE = "freeze"
    UNFREEZE = "unfreeze"
    CROSSING = "crossing"
    CARVE = "carve"
    RUNAWAY = "runaway"
    SUCCESS = "success"
    FAILURE = "failure"
    OPERATED = "operated"


_KINDS: Final = frozenset(kind.value for kind in PeriodKind)
_ROLLING_MS_MIN: Final = 1_000
_ROLLING_MS_MAX: Final = 366 * 86_400_000
_ZONED: Final = frozenset({PeriodKind.HOUR, PeriodKind.DAY, PeriodKind.WEEK, PeriodKind.MONTH})
PERIOD_RIGHT: Final = (
    'write "total", "hour", "day", "week" or "month", those four with a time zone as in '
    '"day@Europe/Berlin", or "rolling:3600s"'
)


@dataclass(frozen=True, slots=True)
class Period:
    """How long a window lasts and when it starts anew.

    Attributes:
        kind: The kind of period.
        time_zone: The IANA zone whose midnight counts, for hour, day, week and month.
        length_ms: The length of a rolling period in milliseconds; 0 for the others.
    """

    kind: PeriodKind
    time_zone: str = "UTC"
    length_ms: int = 0

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads a period as the configuration writes it: ``"day@Europe/Berlin"``.

        Raises:
            ValueError: It is not a period. Whether the time zone exists is not looked at.
        """
        match = re.fullmatch(r"([a-z]+)(?:@([A-Za-z0-9_+/-]{1,64})|:(.+))?", text)
        if match is None or match[1] not in _KINDS:
            raise ValueError(PERIOD_RIGHT)
        kind, zone, length = PeriodKind(match[1]), match[2], match[3]
        if (zone and kind not in _ZONED) or bool(length) != (kind is PeriodKind.ROLLING):
            raise ValueError(PERIOD_RIGHT)
        length_ms = parse_duration_ms(length) if length else 0
        if length and not _ROLLING_MS_MIN <= length_ms <= _ROLLING_MS_MAX:
            raise ValueError("a rolling period lasts from 1 second to 366 days")
        return cls(kind, zone or "UTC", length_ms)

    def __str__(self) -> str:
        if self.kind is PeriodKind.ROLLING:
            seconds, rest = divmod(self.length_ms, 1000)
            return f"rolling:{self.length_ms}ms" if rest else f"rolling:{seconds}s"
        return self.kind.value if self.time_zone == "UTC" else f"{self.kind.value}@{self.time_zone}"


@dataclass(frozen=True, slots=True)
class Advice:
    """What to change about the generation on WARN or DEGRADE; None: leave it as it is."""

    max_new_tokens: int | None = None
    temperature: float | None = None
    repetition_penalty: float | None = None
    fallback_model: str | None = None
    notice: str | None = None


@dataclass(frozen=True, slots=True)
class Threshold:
    """A share of the limit in thousandths (900 is 90 %) that, once spent, changes the verdict."""

    permille: int
    verdict: Verdict
    advice: Advice | None = None


@dataclass(frozen=True, slots=True)
class Budget:
    """A hard limit and thresholds for one account, unit and period."""

    account: str
    unit: str
    period: Period
    limit: int
    thresholds: tuple[Threshold, ...] = ()


@dataclass(frozen=True, slots=True)
class UsageEstimate:
    """What a model call will use at most; the rate card turns it into amounts.

    Attributes:
        model: The model's name as the rate card knows it.
        input_tokens: All prompt tokens, those read from or written to a cache included.
        cached_input_tokens: The prompt tokens that are read from the provider's cache.
        cache_write_tokens: The prompt tokens that are written to the provider's cache.
        max_output_tokens: The most tokens that the call may generate.
        min_output_tokens: The fewest worth starting for; None: all of them or nothing.
        gpu_ms: GPU time in milliseconds.
    """

    model: str
    input_tokens: int = 0
    cached_input_tokens: int = 0
    cache_write_tokens: int = 0
    max_output_tokens: int = 0
    min_output_tokens: int | None = None
    gpu_ms: int = 0


@dataclass(frozen=True, slots=True)
class Usage:
    """What a model call has used; fields as in `UsageEstimate`.

    An empty `model` means the one that the reservation was made for.
    """

    model: str = ""
    input_tokens: int = 0
    cached_input_tokens: int = 0
    cache_write_tokens: int = 0
    output_tokens: int = 0
    gpu_ms: int = 0


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a call may not spend, and what to do about it.

    Attributes:
        reason: BUDGET_EXHAUSTED, ACCOUNT_FROZEN, PARENT_HOLD_EXHAUSTED, HOLD_EXHAUSTED or RUNAWAY.
        account: The account that limits: the caller's own or an ancestor.
        unit: The unit that is short; empty when frozen.
        shortfall: By how much the request passes what is left.
        reset_time: When the limiting window starts anew; None when it never does.
        hint: What to do, for a person to read.
    """

    reason: str
    account: str
    unit: str
    shortfall: int
    reset_time: datetime | None
    hint: str


@dataclass(frozen=True, slots=True)
class Balance:
    """One budget in one period: ``remaining = limit - spent - held``."""

    account: str
    unit: str
    period: str
    limit: int
    held: int
    spent: int
    remaining: int
    start_time: datetime | None = None
    reset_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class Account:
    """An account as it was when it was read.

    Attributes:
        path: Its path, from the organisation down.
        frozen: Whether it was frozen itself.
        stopped: Whether it or an ancestor is frozen.
        freeze_reason: Why it was frozen.
        verdict: The verdict of its own windows and its ancestors'.
        balances: Its own budgets' windows.
        open_reservation_count: How many pending reservations hold on it or below.
        create_time: When it was created.
        budgets: Its own budgets; filled by `get_account` only.
    """

    path: str
    frozen: bool
    stopped: bool
    freeze_reason: str
    verdict: Verdict
    balances: tuple[Balance, ...]
    open_reservation_count: int
    create_time: datetime | None
    budgets: tuple[Budget, ...] = ()


@dataclass(frozen=True, slots=True)
class Finding:
    """A runaway.

    Attributes:
        time: When it was found.
        account: The account's path.
        rule: velocity, depth, repeats, children, open_reservations or no_progress.
        figure: What there was.
        allowed: The most that is no finding.
        unit: The unit of both; empty but for velocity.
        action: What followed: warn, degrade, stop or freeze.
    """

    time: datetime | None
    account: str
    rule: str
    figure: int
    allowed: int
    unit: str
    action: str


@dataclass(frozen=True, slots=True)
class AccountChanges:
    """What `watch_accounts` saw change.

    Attributes:
        accounts: New or changed ones, as they are now.
        retired: The paths of those that retired.
        findings: Runaways since the last changes.
    """

    accounts: tuple[Account, ...]
    retired: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True, slots=True)
class ReservationInfo:
    """A reservation as it was when it was read.

    Attributes:
        id: An opaque name.
        state: Where it is in its life.
        account: The account it holds on.
        granted: What it holds in all, the spent part included.
        used: What was debited so far.
        spent: What was spent in the end; empty while pending.
        max_output_tokens: For one made from a usage: the output tokens that were granted.
        create_time: When it was made.
        expire_time: When it expires unless extended.
        ttl_ms: The interval after which it expires unless extended, in milliseconds.
        parent_reservation: The reservation that this one was carved from, or empty.
        model: The model that it was made for, or empty.
    """

    id: str
    state: ReservationState
    account: str
    granted: dict[str, int]
    used: dict[str, int]
    spent: dict[str, int]
    max_output_tokens: int
    create_time: datetime | None
    expire_time: datetime | None
    ttl_ms: int
    parent_reservation: str
    model: str


@dataclass(frozen=True, slots=True)
class OpenReservation:
    """A reservation that was pending when it was listed.

    Attributes:
        reservation: The reservation.
        debiting: How it is debited.
    """

    reservation: ReservationInfo
    debiting: Debiting


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What Reserve would say; `refusal` is None when it would admit."""

    verdict: Verdict
    granted: dict[str, int]
    max_output_tokens: int
    advice: Advice | None
    refusal: Refusal | None
    balances: tuple[Balance, ...]


@dataclass(frozen=True, slots=True)
class DebitResult:
    """Whether to go on, and what is left of the hold; `refusal` is None unless STOP."""

    verdict: Verdict
    remaining: dict[str, int]
    advice: Advice | None = None
    refusal: Refusal | None = None


@dataclass(frozen=True, slots=True)
class ExtendResult:
    """The hold after it was renewed or raised."""

    verdict: Verdict
    reservation: ReservationInfo
    advice: Advice | None = None


@dataclass(frozen=True, slots=True)
class CommitResult:
    """What a reservation came to; STOP when a window is overdrawn now.

    `answered` is False where a client that fails open will tell the sidecar later.
    """

    verdict: Verdict
    spent: dict[str, int]
    returned: dict[str, int]
    overdraft: dict[str, int] = field(default_factory=dict)
    advice: Advice | None = None
    answered: bool = True


@dataclass(frozen=True, slots=True)
class ReleaseResult:
    """What a reservation came to: RELEASED, or COMMITTED when it was committed before.

    `answered` as in `CommitResult`.
    """

    state: ReservationState
    spent: dict[str, int]
    returned: dict[str, int]
    answered: bool = True


@dataclass(frozen=True, slots=True)
class RecordResult:
    """What was recorded; STOP when a window is overdrawn now.

    `answered` as in `CommitResult`.
    """

    verdict: Verdict
    spent: dict[str, int]
    overdraft: dict[str, int]
    advice: Advice | None = None
    answered: bool = True


@dataclass(frozen=True, slots=True)
class TokenCount:
    """An exact count, and the encoding that counted."""

    token_count: int
    encoding: str


@dataclass(frozen=True, slots=True)
class Entry:
    """One movement.

    Attributes:
        sequence: Rises with every movement; several rows of one operation share it.
        time: When it happened.
        account: The account's path.
        reservation: The reservation's id, or empty.
        unit: The unit; empty for freeze, unfreeze, success and failure.
        kind: What moved.
        amount: How much, in the unit's base; for a crossing its share in thousandths.
        admit_time: When the window that it counts in was charged.
        model: The model, or empty.
        detail: Of a runaway: what followed, the rule, and what it allows; else empty.
    """

    sequence: int
    time: datetime | None
    account: str
    reservation: str
    unit: str
    kind: EntryKind
    amount: int
    admit_time: datetime | None
    model: str
    detail: str = ""
