"""How a process says to the NVML stand-in what memory it holds: a file with a line for each GPU.

The stand-in counts it while the process lives. Light enough to be imported by every worker.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

NEVER: Final = -1
"""Memory that is not freed when its process dies."""


@dataclass(frozen=True)
class Claim:
    """What one process holds on one GPU or MIG instance.

    Attributes:
        gpu: The device's uuid.
        vram_bytes: What it holds.
        contexts: The lists that it is in: C, G and M for MPS; "" for none, as a phantom sample is.
        busy_percent: How busy it keeps the device; 0: it has no samples.
        free_after_ms: How long after its death the memory is freed, or NEVER.
        tells_bytes: Whether the lists say how much it holds.
    """

    gpu: str
    vram_bytes: int = 0
    contexts: str = "C"
    busy_percent: int = 0
    free_after_ms: int = 0
    tells_bytes: bool = True

    def line(self, pid: int, start: int) -> str:
        """As it stands in the file."""
        return fields(
            "claim",
            pid=pid,
            start=start,
            gpu=self.gpu,
            bytes=self.vram_bytes,
            contexts=self.contexts,
            busy_percent=self.busy_percent,
            free_after_ms=self.free_after_ms,
            tells_bytes=self.tells_bytes,
        )


def fields(kind: str, **values: object) -> str:
    """A line as the stand-in reads it: tabs between fields, True as 1."""
    shown = (
        (key, int(value) if isinstance(value, bool) else value) for key, value in values.items()
    )
    return "\t".join([kind, *(f"{key}={value}" for key, value in shown)]) + "\n"


def start_time(pid: int) -> int:
    """When a process started, in ticks since the boot."""
    stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    return int(stat.rpartition(")")[2].split()[19])


def put(path: Path, text: str) -> None:
    """Writes a file in one step, without a name that a reader of its folder would see."""
    folder = path.parent.parent if path.parent.name == "processes" else path.parent
    beside = folder / f".{path.name}.{os.getpid()}"
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)


def claim(folder: Path, pid: int, *claims: Claim, start: int | None = None) -> None:
    """Says what a process holds from now on, all of it.

    Args:
        folder: The stand-in's.
        pid: The process.
        claims: One for each device.
        start: Its start time; 0 where no process has to live for it.
    """
    since = start_time(pid) if start is None else start
    put(folder / "processes" / str(pid), "".join(one.line(pid, since) for one in claims))
