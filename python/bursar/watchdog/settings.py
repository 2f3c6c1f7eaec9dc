"""How the watchdog behaves, as plain values; `daemon.config` reads them from `[watchdog]`."""

from dataclasses import dataclass
from typing import Literal

from bursar.watchdog.attribution import ContainerRule

__all__ = ["Settings"]


@dataclass(frozen=True, slots=True)
class Settings:
    """How the watchdog behaves.

    Attributes:
        enforce: Whether jobs are stopped that were not registered to be.
        period_ms: From one sample to the next.
        term_grace_ms: From SIGTERM to SIGKILL, where a job does not say.
        vram_patience_ms: How long memory has to be over before that is a breach; unless it is 0,
            three samples, too.
        verify_ms: How long NVML may go on listing processes that have ended.
        unkillable_ms: How long a process may survive SIGKILL.
        settle_ms: How long after the start nobody is stopped for what they use of GPUs.
        gpu_time: What is charged as gpu_ms: the time a context is held, or the time it is busy.
        protect: Patterns of programs that are never signalled, beyond the built-in ones.
        other_users: Whether a process may be signalled that runs as another user than its job.
        signal_containers: Whether processes of containers are signalled.
        containers: What maps containers to accounts.
        incidents_per_account: How many incidents of one account are acted on in ten minutes.
        incidents_per_host: How many of all accounts together.
    """

    enforce: bool = False
    period_ms: int = 1000
    term_grace_ms: int = 10_000
    vram_patience_ms: int = 3000
    verify_ms: int = 30_000
    unkillable_ms: int = 60_000
    settle_ms: int = 30_000
    gpu_time: Literal["allocated", "busy"] = "allocated"
    protect: tuple[str, ...] = ()
    other_users: bool = False
    signal_containers: bool = False
    containers: tuple[ContainerRule, ...] = ()
    incidents_per_account: int = 3
    incidents_per_host: int = 10
