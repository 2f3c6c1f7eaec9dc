"""One account and those below it, as they are and whenever they change, through absences.

`bursar watch` and `bursar top` read it. It only reads, and never prints.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import bursar
from bursar.exceptions import BursarError, SidecarTimeout, SidecarUnavailable
from bursar.models import AccountChanges

PAUSE_S_MIN: Final = 0.2
PAUSE_S_MAX: Final = 2.0
"""How often a sidecar that is away is tried again: at first, and in the end."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything as it is: whatever is not in it is gone."""

    changes: AccountChanges


@dataclass(frozen=True, slots=True)
class Away:
    """The sidecar does not answer; it is tried again.

    Attributes:
        error: What it came to.
        for_s: For how long that has been so.
    """

    error: BursarError
    for_s: float


def follow(
    client: bursar.Client,
    account: str,
    *,
    min_interval_s: float,
    every_error: bool = False,
    sleep: Callable[[float], object] = time.sleep,
) -> Iterator[Snapshot | AccountChanges | Away]:
    """Yields a snapshot, then changes; after each `Away` a snapshot again, or `Away` once more.

    Args:
        client: Who asks.
        account: Only this account and those below it; empty: all.
        min_interval_s: The least time between two messages.
        every_error: Take every error for an absence, not only that nobody answers.
        sleep: Pauses; whoever stops following makes it return early and leaves.
    """
    away_since_s: float | None = None
    pause_s = PAUSE_S_MIN
    while True:
        try:
            first = True
            for changes in client.watch_accounts(account, min_interval_s=min_interval_s):
                away_since_s, pause_s = None, PAUSE_S_MIN
                yield Snapshot(changes) if first else changes
                first = False
            error: BursarError = SidecarUnavailable("the sidecar has ended the stream")
        except BursarError as raised:
            if not every_error and not isinstance(raised, SidecarUnavailable | SidecarTimeout):
                raise
            error = raised
        now_s = time.monotonic()
        away_since_s = now_s if away_since_s is None else away_since_s
        yield Away(error, now_s - away_since_s)
        sleep(pause_s)
        pause_s = min(2 * pause_s, PAUSE_S_MAX)
