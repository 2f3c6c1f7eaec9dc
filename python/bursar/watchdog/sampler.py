"""The process that talks to NVML: one sample for each line on stdin, as a line of JSON on stdout.

It is a process of its own because an NVML call can hang for ever, and nothing but the end of the
process gets out of it. It ends with its parent, and keeps no state that matters.
"""

import contextlib
import json
import sys
import threading
import time
from itertools import starmap
from typing import Any, Final

from bursar.watchdog.nvml import DriverGone, Nvml, NvmlMissing
from bursar.watchdog.samples import DeviceSample, GpuProcess, Health, Sample

__all__ = ["from_json", "to_json"]

_XIDS_MAX: Final = 256
_WAIT_MS: Final = 1000

_DEVICE_FIELDS: Final = (
    "uuid",
    "index",
    "name",
    "vram_total_bytes",
    "vram_used_bytes",
    "busy_permille",
    "energy_mj",
    "energy_estimated",
    "weight_permille",
    "parent_uuid",
    "error",
)


def to_json(sample: Sample) -> str:
    """Writes a sample as one line."""
    devices = [
        (
            [getattr(device, name) for name in _DEVICE_FIELDS],
            None
            if device.processes is None
            else [(p.pid, p.contexts, p.vram_bytes, p.busy_permille) for p in device.processes],
        )
        for device in sample.devices
    ]
    body = {
        "time_ns": sample.time_ns,
        "health": sample.health.value,
        "devices": devices,
        "detail": sample.detail,
        "driver_version": sample.driver_version,
        "xids": sample.xids,
    }
    return json.dumps(body, separators=(",", ":"))


def from_json(line: bytes) -> Sample:
    """Reads a sample; raises ValueError, KeyError or TypeError where it is none."""
    body = json.loads(line)
    devices = (
        DeviceSample(
            **dict(zip(_DEVICE_FIELDS, fields, strict=True)),
            processes=None if found is None else tuple(starmap(GpuProcess, found)),
        )
        for fields, found in body["devices"]
    )
    return Sample(
        time_ns=body["time_ns"],
        health=Health(body["health"]),
        devices=tuple(devices),
        detail=body["detail"],
        driver_version=body["driver_version"],
        xids=tuple((uuid, number) for uuid, number in body["xids"]),
    )


def _take(nvml: Nvml, faults: "Faults") -> Sample:
    devices = tuple(nvml.devices())
    return Sample(
        time_ns=time.monotonic_ns(),
        health=Health.WATCHING,
        devices=devices,
        detail=nvml.distrusted,
        driver_version=nvml.driver_version,
        xids=faults.take(),
    )


class Faults:
    """Collects XID events on a thread of its own, since waiting for them blocks."""

    def __init__(self) -> None:
        self._found: list[tuple[str, int]] = []
        self._lock = threading.Lock()

    def start(self) -> None:
        """Listens, where the driver offers it."""
        threading.Thread(target=self._listen, name="xid", daemon=True).start()

    def take(self) -> tuple[tuple[str, int], ...]:
        """What came since the last call."""
        with self._lock:
            found, self._found = tuple(self._found), []
        return found

    def _listen(self) -> None:
        import pynvml

        errors = (pynvml.NVMLError, pynvml.NVMLLibraryMismatchError)
        with contextlib.suppress(*errors):
            events = pynvml.nvmlEventSetCreate()
            for index in range(pynvml.nvmlDeviceGetCount()):
                with contextlib.suppress(*errors):
                    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
                    kind = pynvml.nvmlEventTypeXidCriticalError
                    pynvml.nvmlDeviceRegisterEvents(handle, kind, events)
            while True:
                self._wait(events)

    def _wait(self, events: Any) -> None:  # noqa: ANN401 -- an opaque pointer of pynvml
        import pynvml

        try:
            event = pynvml.nvmlEventSetWait_v2(events, _WAIT_MS)
            uuid = pynvml.nvmlDeviceGetUUID(event.device)
        except pynvml.NVMLError as error:
            if error.value != pynvml.NVML_ERROR_TIMEOUT:
                time.sleep(_WAIT_MS / 1000)
            return
        with self._lock:
            if len(self._found) < _XIDS_MAX:
                self._found.append((uuid, int(event.eventData)))


def main() -> None:
    """Answers until stdin ends, or NVML can no longer be used."""
    faults = Faults()
    nvml: Nvml | None = None
    for _ in sys.stdin:
        try:
            if nvml is None:
                nvml = Nvml()
                faults.start()
            sample = _take(nvml, faults)
        except NvmlMissing as missing:
            sample = Sample(time.monotonic_ns(), Health.NO_NVML, detail=str(missing))
        except DriverGone as gone:
            sample = Sample(time.monotonic_ns(), Health.BLIND, detail=str(gone))
        sys.stdout.write(to_json(sample) + "\n")
        sys.stdout.flush()
        if sample.health is not Health.WATCHING:
            return  # NVML is initialised once in a process: the next try has another one


if __name__ == "__main__":
    main()
