"""Where wire errors, core errors and refusals become exceptions. The table is in `exceptions`."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final

from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

from bursar import models
from bursar.exceptions import (
    ERRORS,
    AccountFrozen,
    BudgetExceeded,
    BursarError,
    InvalidRequest,
    RunawayStopped,
    SidecarError,
    SidecarTimeout,
    SidecarUnavailable,
)
from bursar.units import UNITS, format_amount

if TYPE_CHECKING:
    from bursar._core import CoreError

DOMAIN: Final = "bursar"
DETAILS_KEY: Final = "grpc-status-details-bin"

_BY_CODE: Final[Mapping[str, type[BursarError]]] = {
    "UNAVAILABLE": SidecarUnavailable,
    "DEADLINE_EXCEEDED": SidecarTimeout,
    "INVALID_ARGUMENT": InvalidRequest,
    "OUT_OF_RANGE": InvalidRequest,  # a message that is larger than the sidecar reads
}
"""What an error without a reason of ours becomes: it came from gRPC itself, not from the ledger."""


def from_reason(
    code: str, message: str, *, reason: str = "", metadata: Mapping[str, str] | None = None
) -> BursarError:
    """Builds the exception for a failed call from what either transport knows about it."""
    row = ERRORS.get(reason)
    exception = row.exception if row else _BY_CODE.get(code, SidecarError)
    return exception(message or code, reason=reason, code=code, metadata=metadata)


def from_core(raised: "CoreError") -> BursarError:
    """Builds the exception for what the extension raised."""
    return from_reason(raised.code, raised.message, reason=raised.reason, metadata=raised.metadata)


def from_status(
    code: str, message: str, trailers: Iterable[tuple[str, str | bytes]] | None
) -> BursarError:
    """Builds the exception for a failed RPC, with the ErrorInfo in its trailing metadata."""
    for key, value in trailers or ():
        if key == DETAILS_KEY and isinstance(value, bytes):
            for detail in Status.FromString(value).details:
                info = ErrorInfo()
                if detail.Unpack(info) and info.domain == DOMAIN:
                    return from_reason(
                        code, message, reason=info.reason, metadata=dict(info.metadata)
                    )
    return from_reason(code, message)


def refused(
    refusal: models.Refusal,
    *,
    balances: Iterable[models.Balance] = (),
    requested: models.Amounts | None = None,
) -> BursarError:
    """Builds the exception for a refusal: BudgetExceeded, where its reason has none of its own."""
    if refusal.reason == "ACCOUNT_FROZEN":
        return AccountFrozen(
            "; ".join(filter(None, (f"{refusal.account} is frozen", refusal.hint))),
            reason=refusal.reason,
            metadata={"account": refusal.account},
        )
    if refusal.reason == "RUNAWAY":
        return RunawayStopped(
            _explain_runaway(refusal),
            account=refusal.account,
            rule=refusal.hint.partition(":")[0],
            reset_time=refusal.reset_time,
        )
    window = next(
        (one for one in balances if (one.account, one.unit) == (refusal.account, refusal.unit)),
        None,
    )
    return BudgetExceeded(
        _explain(refusal, window),
        account=refusal.account,
        unit=refusal.unit,
        shortfall=refusal.shortfall,
        limit=window.limit if window else None,
        spent=window.spent if window else None,
        requested=(requested or {}).get(refusal.unit),
        reset_time=refusal.reset_time,
        hint=refusal.hint,
        reason=refusal.reason,
    )


def _shown(unit: str, value: int) -> str:
    text = format_amount(unit, value)
    return text if unit == "usd_nanos" else f"{text} {unit}"


def _explain_runaway(refusal: models.Refusal) -> str:
    parts = [f"{refusal.account} is stopped as a runaway"]
    if refusal.reset_time:
        parts.append(f"until {refusal.reset_time.isoformat()}")
    return "; ".join([*parts, refusal.hint])


def _explain(refusal: models.Refusal, window: models.Balance | None) -> str:
    unit = refusal.unit if refusal.unit in UNITS else (refusal.unit or "units")
    parts = [f"{refusal.account} is short of {_shown(unit, refusal.shortfall)}"]
    if window:
        amounts = (("limit", window.limit), ("spent", window.spent), ("held", window.held))
        parts.append(", ".join(f"{name} {_shown(unit, value)}" for name, value in amounts))
    if refusal.reset_time:
        parts.append(f"resets at {refusal.reset_time.isoformat()}")
    return "; ".join([*parts, refusal.hint] if refusal.hint else parts)
