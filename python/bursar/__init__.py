"""Bursar: hard compute budgets for AI agents.

```python
import bursar

with bursar.connect() as client, client.reserve("acme/research/agent-7", tokens=500) as hold:
    ...
    hold.commit(tokens=321)
```

`connect` and `connect_async` talk to the sidecar of this host, `open` runs the ledger in this
process. A refusal raises `BudgetExceeded`; every other failure is a `BursarError` too.
"""

from bursar._open import connect, connect_async, open  # noqa: A004 -- always used as bursar.open
from bursar._version import __version__
from bursar.aio import AsyncClient, AsyncLease, AsyncReservation
from bursar.client import Client
from bursar.exceptions import (
    AccountFrozen,
    AccountInUse,
    AccountNotFound,
    BudgetError,
    BudgetExceeded,
    BursarError,
    GenerationTerminated,
    IdempotencyMismatch,
    InvalidRequest,
    LimitReached,
    ReservationEnded,
    ReservationError,
    ReservationExpired,
    ReservationLeased,
    ReservationNotFound,
    SidecarError,
    SidecarTimeout,
    SidecarUnavailable,
    StoreUnavailable,
    UnpricedModel,
)
from bursar.lease import Lease
from bursar.models import (
    Account,
    AccountChanges,
    Advice,
    Amounts,
    Balance,
    Budget,
    CheckResult,
    CommitResult,
    DebitResult,
    Entry,
    EntryKind,
    ExtendResult,
    Period,
    PeriodKind,
    RecordResult,
    Refusal,
    ReleaseResult,
    ReservationInfo,
    ReservationState,
    Threshold,
    TokenCount,
    Usage,
    UsageEstimate,
    Verdict,
)
from bursar.reservation import Reservation

__all__ = [
    "Account",
    "AccountChanges",
    "AccountFrozen",
    "AccountInUse",
    "AccountNotFound",
    "Advice",
    "Amounts",
    "AsyncClient",
    "AsyncLease",
    "AsyncReservation",
    "Balance",
    "Budget",
    "BudgetError",
    "BudgetExceeded",
    "BursarError",
    "CheckResult",
    "Client",
    "CommitResult",
    "DebitResult",
    "Entry",
    "EntryKind",
    "ExtendResult",
    "GenerationTerminated",
    "IdempotencyMismatch",
    "InvalidRequest",
    "Lease",
    "LimitReached",
    "Period",
    "PeriodKind",
    "RecordResult",
    "Refusal",
    "ReleaseResult",
    "Reservation",
    "ReservationEnded",
    "ReservationError",
    "ReservationExpired",
    "ReservationInfo",
    "ReservationLeased",
    "ReservationNotFound",
    "ReservationState",
    "SidecarError",
    "SidecarTimeout",
    "SidecarUnavailable",
    "StoreUnavailable",
    "Threshold",
    "TokenCount",
    "UnpricedModel",
    "Usage",
    "UsageEstimate",
    "Verdict",
    "__version__",
    "connect",
    "connect_async",
    "open",
]
