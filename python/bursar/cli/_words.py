"""An incident in one sentence, for the person whose command it ended."""

from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Final

from bursar.cli._output import show_bytes
from bursar.processes import Incident, IncidentCause, IncidentState
from bursar.units import show_duration, show_over

_SIGNALS: Final = MappingProxyType({IncidentState.TERM: "SIGTERM", IncidentState.KILL: "SIGKILL"})
_VERBS: Final = MappingProxyType(
    {
        IncidentState.CANCELLED: "was about to stop",
        IncidentState.OBSERVED: "would have stopped",
    }
)


def in_words(incident: Incident) -> str:
    """Says what was stopped, why, how, and what came back.

    Such as ``stopped acme/x/train-1: VRAM of 9.5 GiB passed the limit of 8 GiB; SIGTERM
    after 300 ms, SIGKILL after 10.3 s; 9.5 GiB came back after 10.8 s``.
    """
    verb = _VERBS.get(incident.state, "stopped" if incident.ended else "is stopping")
    signals = ", ".join(
        f"{_SIGNALS[step.state]}{_after(incident, step.time)}"
        for step in incident.steps
        if step.state in _SIGNALS
    )
    clauses = (f"{verb} {incident.account}: {_cause(incident)}", signals, _outcome(incident))
    return "; ".join(filter(None, clauses))


def _cause(incident: Incident) -> str:
    if incident.cause is IncidentCause.BUDGET:
        of = "" if incident.limit_account in {"", incident.account} else incident.limit_account
        words = show_over(incident.unit, incident.used, incident.limit)
        return words + (f" of {of}" if of else "")
    if incident.cause is IncidentCause.WALL_TIME:
        ran, may = show_duration(incident.used), show_duration(incident.limit)
        return f"it ran for {ran} and may run for {may}"
    if incident.cause is IncidentCause.OPERATOR:
        return "somebody asked for it" + (f": {incident.reason}" if incident.reason else "")
    return incident.reason or "the reason is not known"


def _outcome(incident: Incident) -> str:
    after = _after(incident, incident.end_time)
    back, kept = incident.vram_returned_bytes, incident.vram_quarantined_bytes
    by_state = {
        IncidentState.RECLAIMED: f"{show_bytes(back)} came back{after}" if back else f"over{after}",
        IncidentState.UNVERIFIED: f"over{after}; NVML cannot tell whether its VRAM came back",
        IncidentState.RECLAIM_FAILED: f"{show_bytes(kept)} did not come back and are quarantined",
        IncidentState.UNKILLABLE: "a process survives SIGKILL"
        + (f"; {show_bytes(kept)} are quarantined" if kept else ""),
        IncidentState.CANCELLED: f"it came back under the limit{after}",
        IncidentState.OBSERVED: f"nothing was signalled: {incident.reason}"
        if incident.reason
        else "",
    }
    return by_state.get(incident.state, "" if incident.ended else "that is not over yet")


def _after(incident: Incident, moment: datetime | None) -> str:
    if moment is None or incident.create_time is None:
        return ""
    age_ms = (moment - incident.create_time) // timedelta(milliseconds=1)
    return f" after {show_duration(max(0, age_ms))}"
