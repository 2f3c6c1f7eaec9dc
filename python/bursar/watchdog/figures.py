"""The GPUs and jobs as OpenMetrics text, for a scrape or node_exporter's textfile collector.

Pure: it asks nobody. A figure that is not known is left out and is never zero. Metrics have the
words of the wire interface and its integers, with the unit last. What is counted since the watchdog
started begins anew when that does, as counters may.
"""

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Final

from bursar._openmetrics import Samples, family
from bursar.processes import Device, Incident, IncidentState, Processes, WatchdogState

__all__ = ["ACCOUNTS_MAX", "exposition"]

ACCOUNTS_MAX: Final = 1000
"""How many accounts have series of their own; those that used less are summed as `OTHER`."""

OTHER: Final = "…other"
UNATTRIBUTED: Final = "…unattributed"
"""What cannot be the path of an account."""

_OPEN_STATES: Final = (
    IncidentState.BREACH,
    IncidentState.TERM,
    IncidentState.KILL,
    IncidentState.VERIFY,
    IncidentState.UNVERIFIED,
    IncidentState.RECLAIM_FAILED,
    IncidentState.UNKILLABLE,
)
_METERS: Final = MappingProxyType(
    {
        "gpu_alloc_ms": ("ms", "Time that contexts were held on GPUs."),
        "gpu_busy_ms": ("ms", "GPU time that was measured."),
        "gpu_estimated_ms": ("ms", "GPU time that was not measured, but divided."),
        "vram_mib_s": ("mib_s", "MiB of GPU memory times seconds."),
        "energy_mj": ("mj", "Energy that was used."),
        "host_idle_mj": ("mj", "Energy that nobody used."),
    }
)


def exposition(found: Processes, incidents: Iterable[Incident], *, now: datetime) -> str:
    """Writes everything as OpenMetrics text.

    Args:
        found: The GPUs, processes and jobs.
        incidents: The latest incidents, for those that are open.
        now: For the age of the sample.
    """
    parts = (_devices(found), _accounts(found), _counts(found, incidents), _watchdog(found, now))
    lines = [line for part in parts for line in part]
    return "\n".join([*lines, "# EOF", ""])


def _family(name: str, text: str, samples: Samples, *, unit: str = "", kind: str = "gauge") -> str:
    return family(f"bursar_gpu_{name}", text, samples, unit=unit, kind=kind)


def _devices(found: Processes) -> Iterator[str]:
    def each(value: str) -> Samples:
        return ((_labels(one), getattr(one, value)) for one in found.devices)

    yield _family(
        "device_seen",
        "Whether it can be read.",
        ((_labels(one), int(not one.error)) for one in found.devices),
    )
    yield _family(
        "device_vram_total_bytes", "Memory in all.", each("vram_total_bytes"), unit="bytes"
    )
    yield _family("device_vram_used_bytes", "Memory in use.", each("vram_used_bytes"), unit="bytes")
    yield _family(
        "device_vram_quarantined_bytes",
        "Memory that did not come back after a stop.",
        each("vram_quarantined_bytes"),
        unit="bytes",
    )
    busy = (
        (_labels(one), None if one.busy_percent is None else one.busy_percent / 100)
        for one in found.devices
    )
    yield _family("device_busy_ratio", "How busy it is, from 0 to 1.", busy, unit="ratio")


def _labels(device: Device) -> Mapping[str, str]:
    return {"uuid": device.uuid, "index": str(device.index), "name": device.name}


def _accounts(found: Processes) -> Iterator[str]:
    vram: dict[str, int] = {}
    for process in found.processes:
        if process.vram_bytes is not None:
            vram[process.account] = vram.get(process.account, 0) + process.vram_bytes
    # By what only grows, so that a series is not lost to `OTHER` when its account rests.
    ranked = sorted(
        vram.keys() | found.metered.keys(),
        key=lambda one: (
            -found.metered.get(one, {}).get("gpu_alloc_ms", 0),
            -vram.get(one, 0),
            one,
        ),
    )
    named = {*ranked[:ACCOUNTS_MAX], ""}
    yield _family(
        "vram_bytes", "Memory of an account's processes.", _by_account(vram, named), unit="bytes"
    )
    for meter, (unit, text) in _METERS.items():
        totals = {one: meters[meter] for one, meters in found.metered.items() if meter in meters}
        yield _family(
            meter.removeprefix("gpu_"), text, _by_account(totals, named), unit=unit, kind="counter"
        )


def _by_account(amounts: Mapping[str, int], named: set[str]) -> Samples:
    summed: dict[str, int] = {}
    for account, amount in amounts.items():
        label = (account or UNATTRIBUTED) if account in named else OTHER
        summed[label] = summed.get(label, 0) + amount
    return (({"account": label}, amount) for label, amount in sorted(summed.items()))


def _counts(found: Processes, incidents: Iterable[Incident]) -> Iterator[str]:
    yield _family("jobs", "Jobs that are registered.", [({}, len(found.jobs))])
    states = [one.state for one in incidents]
    yield _family(
        "incidents_open",
        "Incidents that are not over, or whose memory is not back.",
        [({"state": one.value}, states.count(one)) for one in _OPEN_STATES],
    )


def _watchdog(found: Processes, now: datetime) -> Iterator[str]:
    watchdog = found.watchdog
    yield _family(
        "watchdog_state",
        "Whether the GPUs can be seen: 1 for the state that it is in.",
        [({"state": one.value}, int(watchdog.state is one)) for one in WatchdogState],
    )
    yield _family(
        "watchdog_enforces",
        "Whether every job is stopped at a hard limit.",
        [({}, int(watchdog.mode == "enforce"))],
    )
    yield _family(
        "watchdog_held_back",
        "Whether nobody is signalled for now.",
        [({}, int(bool(watchdog.held_back)))],
    )
    taken = watchdog.sample_time
    age_s = None if taken is None else max(0.0, (now.astimezone(UTC) - taken).total_seconds())
    yield _family(
        "sample_age_seconds", "How old the last look at the GPUs is.", [({}, age_s)], unit="seconds"
    )
