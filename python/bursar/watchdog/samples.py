"""What was seen of the GPUs at one moment. Plain values: no NVML, no clock, no /proc.

None means that the driver did not tell; it is never the same as zero.
"""

from dataclasses import dataclass
from enum import Enum

__all__ = ["DeviceSample", "GpuProcess", "Health", "Sample"]


class Health(Enum):
    """Whether the GPUs can be seen."""

    WATCHING = "watching"
    NO_NVML = "no_nvml"
    BLIND = "blind"


@dataclass(frozen=True, slots=True)
class GpuProcess:
    """A process on one device, once, however many contexts it has there.

    Attributes:
        pid: The process id in the host's namespace; always above 2.
        contexts: The kinds of contexts, C for compute, G for graphics, M for MPS: ``"CG"``.
        vram_bytes: Its memory on the device; the most that any list says.
        busy_permille: How busy it kept the device since the sample before.
    """

    pid: int
    contexts: str
    vram_bytes: int | None
    busy_permille: int | None = None


@dataclass(frozen=True, slots=True)
class DeviceSample:
    """One GPU, or one MIG instance.

    Attributes:
        uuid: What identifies it; the index may move. Empty from a driver that does not even say
            that: the poller names it.
        index: NVML's index; that of the parent for a MIG instance.
        name: The product.
        vram_total_bytes: Memory in all; None where the device has none of its own (unified memory).
        vram_used_bytes: Memory in use.
        busy_permille: How busy it is.
        energy_mj: The energy counter in millijoules; it starts anew when the driver is loaded. An
            instance has none and tells its parent's, as all instances of that do.
        energy_estimated: Whether `energy_mj` was summed from power readings.
        processes: Who uses it, by pid; None: the lists could not be read or trusted.
        weight_permille: Its share of the whole GPU; 1000 unless it is a MIG instance.
        parent_uuid: The GPU of a MIG instance; empty for a whole GPU.
        error: Why it could not be read, if so; then nothing else is known.
    """

    uuid: str
    index: int
    name: str = ""
    vram_total_bytes: int | None = None
    vram_used_bytes: int | None = None
    busy_permille: int | None = None
    energy_mj: int | None = None
    energy_estimated: bool = False
    processes: tuple[GpuProcess, ...] | None = None
    weight_permille: int = 1000
    parent_uuid: str = ""
    error: str = ""


@dataclass(frozen=True, slots=True)
class Sample:
    """All GPUs at one moment.

    Attributes:
        time_ns: When it was taken, by CLOCK_MONOTONIC, which is the same in all processes.
        health: Whether the GPUs can be seen; only WATCHING samples have devices.
        devices: Every GPU without MIG, and the instances of the others.
        detail: What is limited, or why nothing is seen; for a person to read.
        driver_version: The driver's version, where it is known.
        xids: Faults since the sample before: (device uuid, XID number).
    """

    time_ns: int
    health: Health
    devices: tuple[DeviceSample, ...] = ()
    detail: str = ""
    driver_version: str = ""
    xids: tuple[tuple[str, int], ...] = ()
