"""Every exception that Bursar raises, and the one table that says which error becomes which.

```
BursarError
├─ BudgetError
│  ├─ BudgetExceeded         the budget is gone: account, unit, limit, spent, shortfall, …
│  ├─ RunawayStopped         the account has run away: rule, and the figures in the message
│  ├─ AccountNotFound
│  ├─ AccountInUse           it cannot retire yet
│  ├─ AccountFrozen
│  └─ UnpricedModel
├─ ReservationError
│  ├─ ReservationNotFound
│  ├─ ReservationEnded
│  ├─ ReservationExpired
│  ├─ ReservationLeased      it is debited through another channel
│  └─ IdempotencyMismatch
├─ ProcessError
│  ├─ ProcessNotFound
│  └─ ProcessProtected       a rule forbids to signal it
├─ AccessError
│  ├─ Unauthenticated        no token, or one that is unknown, expired or revoked
│  ├─ NotAllowed             the caller's role or account does not allow it
│  └─ TokenNotFound
├─ NotTheOwner               it belongs to another process: a reservation, a process to register
├─ InvalidRequest            also a ValueError: the call itself is wrong
├─ GenerationTerminated      a hard limit in mid-stream, with the partial text
└─ SidecarError
   ├─ SidecarUnavailable
   ├─ SidecarTimeout
   ├─ StoreUnavailable
   ├─ WatchdogUnavailable
   └─ LimitReached           a configured maximum: accounts, reservations, leases, top-ups, jobs
```
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Any, Final, Self

__all__ = [
    "ERRORS",
    "AccessError",
    "AccountFrozen",
    "AccountInUse",
    "AccountNotFound",
    "BudgetError",
    "BudgetExceeded",
    "BursarError",
    "ErrorRow",
    "GenerationTerminated",
    "IdempotencyMismatch",
    "InvalidRequest",
    "LimitReached",
    "NotAllowed",
    "NotTheOwner",
    "ProcessError",
    "ProcessNotFound",
    "ProcessProtected",
    "ReservationEnded",
    "ReservationError",
    "ReservationExpired",
    "ReservationLeased",
    "ReservationNotFound",
    "RunawayStopped",
    "SidecarError",
    "SidecarTimeout",
    "SidecarUnavailable",
    "StoreUnavailable",
    "TokenNotFound",
    "Unauthenticated",
    "UnpricedModel",
    "WatchdogUnavailable",
]


class BursarError(Exception):
    """Anything that went wrong in Bursar.

    Attributes:
        message: What happened, for a person to read.
        reason: The name of an ErrorReason or of a Refusal.Reason without its prefix, or one of the
            client's own, AWAY_GRANT_EXHAUSTED and JOURNAL_FULL; may be empty.
        code: The name of the gRPC code, such as NOT_FOUND; empty when no call was made.
        metadata: What varies in the message, by name.
    """

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        code: str = "",
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason
        self.code = code
        self.metadata: dict[str, str] = dict(metadata or {})

    def __reduce__(self) -> tuple[Any, ...]:
        # The default calls the constructor with `args` alone and loses the keywords.
        return _restore, (type(self), self.message, self.__dict__)


def _restore(cls: type[BursarError], message: str, state: dict[str, Any]) -> BursarError:
    error = cls.__new__(cls, message)
    error.__dict__.update(state)
    return error


class BudgetError(BursarError):
    """An account may not spend.

    Attributes:
        account: The path of the account that limits: the caller's own or an ancestor; may be empty.
    """

    @property
    def account(self) -> str:
        """The path of the account that limits: the caller's own or an ancestor; may be empty."""
        return self.metadata.get("account", "")


class BudgetExceeded(BudgetError):
    """The budget is gone: nothing was held or raised by the call.

    All amounts are integers in the base of `unit`.

    Attributes:
        unit: The unit that is short.
        limit: The hard limit of the limiting window; None when it was not told.
        spent: What that window has spent for good; None when it was not told.
        shortfall: By how much the request passes what is left.
        requested: What was asked for in that unit; None when it was derived from a usage.
        reset_time: When the window starts anew; None when it never does.
        hint: What to do, for a person to read.
    """

    def __init__(
        self,
        message: str,
        *,
        account: str,
        unit: str,
        shortfall: int,
        limit: int | None = None,
        spent: int | None = None,
        requested: int | None = None,
        reset_time: datetime | None = None,
        hint: str = "",
        reason: str = "BUDGET_EXHAUSTED",
    ) -> None:
        super().__init__(message, reason=reason, metadata={"account": account, "unit": unit})
        self.unit = unit
        self.limit = limit
        self.spent = spent
        self.shortfall = shortfall
        self.requested = requested
        self.reset_time = reset_time
        self.hint = hint


class RunawayStopped(BudgetError):
    """The call looks like a runaway, and the account's policy stops those.

    Attributes:
        rule: velocity, depth, repeats, children, open_reservations or no_progress.
        reset_time: Until when such calls are stopped; None: another call may be admitted.
    """

    def __init__(
        self, message: str, *, account: str, rule: str, reset_time: datetime | None = None
    ) -> None:
        super().__init__(message, reason="RUNAWAY", metadata={"account": account, "rule": rule})
        self.reset_time = reset_time

    @property
    def rule(self) -> str:
        """By which rule it was found."""
        return self.metadata.get("rule", "")


class AccountNotFound(BudgetError):
    """No such account, and no configured pattern that would create it."""


class AccountInUse(BudgetError):
    """The account cannot retire: it has accounts below it, pending reservations or capacity."""


class AccountFrozen(BudgetError):
    """The account or one of its ancestors is frozen; `unfreeze` ends it."""


class UnpricedModel(BudgetError):
    """The rate card has no price for the model, so its cost cannot be bounded."""


class ReservationError(BursarError):
    """The reservation cannot do what was asked.

    Attributes:
        reservation: The reservation's id; may be empty.
    """

    @property
    def reservation(self) -> str:
        """The reservation's id; may be empty."""
        return self.metadata.get("reservation", "")


class ReservationNotFound(ReservationError):
    """No such reservation, or it is older than the retention."""


class ReservationEnded(ReservationError):
    """The reservation was committed or released."""


class ReservationExpired(ReservationError):
    """The reservation expired; a commit of what was truly used still works."""


class ReservationLeased(ReservationError):
    """The reservation is debited through another channel, or by the process that forked us."""


class IdempotencyMismatch(ReservationError):
    """The key, or the commit, was used before with another payload."""


class ProcessError(BursarError):
    """A process, or its job, cannot be stopped as was asked."""


class ProcessNotFound(ProcessError):
    """No such job, or the process is no job's."""


class ProcessProtected(ProcessError):
    """A rule forbids to signal the process; the message says which."""


class AccessError(BursarError):
    """The sidecar does not let the caller do this."""


class Unauthenticated(AccessError):
    """No token where one is needed, or one that is unknown, expired or revoked."""


class NotAllowed(AccessError):
    """The caller's role, or the account that it is bound to, does not allow it."""


class TokenNotFound(AccessError):
    """No such token."""


class NotTheOwner(BursarError):
    """What was named is another process's: a reservation to lease, a process to register."""


class InvalidRequest(BursarError, ValueError):
    """The call itself is wrong and would be at any time.

    Attributes:
        field: The field that is wrong; may be empty.
    """

    @property
    def field(self) -> str:
        """The field that is wrong; may be empty."""
        return self.metadata.get("field", "")


class GenerationTerminated(BursarError):
    """A hard limit stopped a generation in mid-stream.

    Attributes:
        partial_text: What was generated before the stop.
    """

    def __init__(self, message: str, *, partial_text: str = "", reason: str = "") -> None:
        super().__init__(message, reason=reason)
        self.partial_text = partial_text


class SidecarError(BursarError):
    """The sidecar could not answer, or answered what this client does not know.

    Attributes:
        decision: What was decided about the spending that was asked for: "fail_closed", it must not
            happen, or "fail_open", it goes on within what is granted.
        kept: Whether the call was a Commit, Release or Record that the client sends again until it
            is answered.
    """

    decision: str = "fail_closed"
    kept: bool = False

    def decided(self, what: str, *, decision: str = "fail_closed", kept: bool = False) -> Self:
        """The same error with what was decided, in words as well."""
        told = copy.copy(self)
        told.message = f"{self.message}; {what}"
        told.args = (told.message,)
        told.decision, told.kept = decision, kept
        return told


class SidecarUnavailable(SidecarError):
    """No sidecar answers at the target, or it is draining; see `decision` and `kept`."""


class SidecarTimeout(SidecarError):
    """No answer within the deadline. A repeat with the same idempotency key is safe."""


class StoreUnavailable(SidecarError):
    """The store failed, or is nearly full; repeat with the same key once it takes calls again."""


class WatchdogUnavailable(SidecarError):
    """The watchdog is off, or does not answer; an embedded ledger has none."""


class LimitReached(SidecarError):
    """A maximum is reached: of accounts, reservations, leases, slices, jobs, tokens."""


@dataclass(frozen=True, slots=True)
class ErrorRow:
    """One row of the error table: the gRPC code and the exception of one reason."""

    code: str
    exception: type[BursarError]


ERRORS: Final[Mapping[str, ErrorRow]] = MappingProxyType(
    {
        "INVALID_ACCOUNT": ErrorRow("INVALID_ARGUMENT", InvalidRequest),
        "INVALID_AMOUNT": ErrorRow("INVALID_ARGUMENT", InvalidRequest),
        "UNKNOWN_UNIT": ErrorRow("INVALID_ARGUMENT", InvalidRequest),
        "INVALID_KEY": ErrorRow("INVALID_ARGUMENT", InvalidRequest),
        "INVALID_FIELD": ErrorRow("INVALID_ARGUMENT", InvalidRequest),
        "ACCOUNT_NOT_FOUND": ErrorRow("NOT_FOUND", AccountNotFound),
        "RESERVATION_NOT_FOUND": ErrorRow("NOT_FOUND", ReservationNotFound),
        "RESERVATION_ENDED": ErrorRow("FAILED_PRECONDITION", ReservationEnded),
        "RESERVATION_EXPIRED": ErrorRow("FAILED_PRECONDITION", ReservationExpired),
        "IDEMPOTENCY_MISMATCH": ErrorRow("ALREADY_EXISTS", IdempotencyMismatch),
        "UNPRICED_MODEL": ErrorRow("FAILED_PRECONDITION", UnpricedModel),
        "UNKNOWN_TOKENIZER": ErrorRow("FAILED_PRECONDITION", InvalidRequest),
        "AMOUNT_OVERFLOW": ErrorRow("OUT_OF_RANGE", InvalidRequest),
        "ACCOUNT_LIMIT_REACHED": ErrorRow("RESOURCE_EXHAUSTED", LimitReached),
        "RESERVATION_LIMIT_REACHED": ErrorRow("RESOURCE_EXHAUSTED", LimitReached),
        "STORE_UNAVAILABLE": ErrorRow("UNAVAILABLE", StoreUnavailable),
        "SLICE_LIMIT_REACHED": ErrorRow("RESOURCE_EXHAUSTED", LimitReached),
        "SHUTTING_DOWN": ErrorRow("UNAVAILABLE", SidecarUnavailable),
        "ACCOUNT_IN_USE": ErrorRow("FAILED_PRECONDITION", AccountInUse),
        "RESERVATION_LEASED": ErrorRow("FAILED_PRECONDITION", ReservationLeased),
        "NOT_THE_OWNER": ErrorRow("PERMISSION_DENIED", NotTheOwner),
        "LEASE_LIMIT_REACHED": ErrorRow("RESOURCE_EXHAUSTED", LimitReached),
        "PROCESS_NOT_FOUND": ErrorRow("NOT_FOUND", ProcessNotFound),
        "PROCESS_PROTECTED": ErrorRow("FAILED_PRECONDITION", ProcessProtected),
        "WATCHDOG_UNAVAILABLE": ErrorRow("UNAVAILABLE", WatchdogUnavailable),
        "JOB_LIMIT_REACHED": ErrorRow("RESOURCE_EXHAUSTED", LimitReached),
        "UNAUTHENTICATED": ErrorRow("UNAUTHENTICATED", Unauthenticated),
        "NOT_ALLOWED": ErrorRow("PERMISSION_DENIED", NotAllowed),
        "TOKEN_NOT_FOUND": ErrorRow("NOT_FOUND", TokenNotFound),
        "TOKEN_LIMIT_REACHED": ErrorRow("RESOURCE_EXHAUSTED", LimitReached),
        "STORE_NEARLY_FULL": ErrorRow("RESOURCE_EXHAUSTED", StoreUnavailable),
    },
)
"""ErrorReason without its prefix → gRPC code and exception. A test compares it with the proto."""
