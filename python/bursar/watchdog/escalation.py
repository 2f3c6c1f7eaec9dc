"""What to do about a job that is over a limit: a pure state machine.

`step` takes where an incident stands, what is true now and the time, and answers where it stands
then and what has to be done. It reads no clock, signals nobody and is called as often as one likes:
a repeat in the same state asks for nothing new. `loop` carries out what it asks for, and writes the
new state to the journal before it does.

    BREACH ──▶ TERM ──▶ KILL ──▶ VERIFY ──▶ RECLAIMED
      │          │        │         ├─────▶ UNVERIFIED ────▶ RECLAIMED
      ▼          ▼        ▼         └─────▶ RECLAIM_FAILED ─▶ RECLAIMED (late)
   OBSERVED  CANCELLED  UNKILLABLE ─────────────────────────▶ RECLAIMED (late)

Times are milliseconds of one clock that does not stop while the host sleeps (CLOCK_BOOTTIME), so
that an incident goes on after a restart of the daemon.
"""

from dataclasses import dataclass, replace
from enum import Enum
from typing import Final

__all__ = ["Action", "Guard", "Look", "Patience", "Phase", "Standing", "open_standing", "step"]


class Phase(Enum):
    """Where an incident stands; the numbers are those of Incident.State."""

    BREACH = 1
    TERM = 2
    KILL = 3
    VERIFY = 4
    RECLAIMED = 5
    UNVERIFIED = 6
    RECLAIM_FAILED = 7
    UNKILLABLE = 8
    CANCELLED = 9
    OBSERVED = 10

    @property
    def is_over(self) -> bool:
        """Whether nothing more is done to the processes."""
        return self not in _ACTIVE

    @property
    def is_stuck(self) -> bool:
        """Whether what has not come back is quarantined."""
        return self.is_over and not self.is_final

    @property
    def is_final(self) -> bool:
        """Whether it never changes again."""
        return self in _FINAL


_ACTIVE: Final = frozenset({Phase.BREACH, Phase.TERM, Phase.KILL, Phase.VERIFY})
_FINAL: Final = frozenset({Phase.RECLAIMED, Phase.CANCELLED, Phase.OBSERVED})


class Action(Enum):
    """What the caller has to do."""

    SIGTERM = "sigterm"
    SIGKILL = "sigkill"


@dataclass(frozen=True, slots=True)
class Patience:
    """How long each state may last, in milliseconds.

    Attributes:
        term_grace_ms: From SIGTERM to SIGKILL; 10 s as `docker stop`.
        unkillable_ms: From SIGKILL to giving up; 60 s as Slurm's UnkillableStepTimeout.
        verify_ms: From the end of the processes to the last look at NVML.
    """

    term_grace_ms: int = 10_000
    unkillable_ms: int = 60_000
    verify_ms: int = 30_000


@dataclass(frozen=True, slots=True)
class Look:
    """What is true now.

    Attributes:
        over: Whether the limit is still passed.
        alive: How many processes of the job have not ended.
        unsignalled: How many of those SIGKILL was not sent to.
        listed: How many of its processes NVML lists; None: it cannot be asked.
        forbidden: Why nobody may be signalled; empty: they may.
    """

    over: bool
    alive: int
    unsignalled: int
    listed: int | None
    forbidden: str = ""


@dataclass(frozen=True, slots=True)
class Standing:
    """Where an incident stands.

    Attributes:
        phase: The state.
        since_ms: When it was reached.
        detail: What led to it, for a person to read.
    """

    phase: Phase
    since_ms: int
    detail: str = ""


Step = tuple[Standing, tuple[Action, ...]]


def open_standing(now_ms: int, detail: str) -> Standing:
    """A new incident: the limit is passed, nothing is signalled yet."""
    return Standing(Phase.BREACH, now_ms, detail)


def step(standing: Standing, look: Look, now_ms: int, patience: Patience) -> Step:
    """Says where an incident stands now and what has to be done."""
    return _RULES[standing.phase](standing, look, now_ms, patience)


def _to(phase: Phase, now_ms: int, detail: str, *actions: Action) -> Step:
    return Standing(phase, now_ms, detail), actions


def _breach(_: Standing, look: Look, now_ms: int, __: Patience) -> Step:
    if look.alive == 0:
        return _to(Phase.VERIFY, now_ms, "the job has ended by itself")
    if not look.over:
        return _to(Phase.CANCELLED, now_ms, "back under the limit before anything was signalled")
    if look.forbidden:
        return _to(Phase.OBSERVED, now_ms, f"nothing is signalled: {look.forbidden}")
    return _to(Phase.TERM, now_ms, f"SIGTERM to {_processes(look.alive)}", Action.SIGTERM)


def _term(standing: Standing, look: Look, now_ms: int, patience: Patience) -> Step:
    if look.alive == 0:
        return _to(Phase.VERIFY, now_ms, "ended after SIGTERM")
    if not look.over:
        return _to(Phase.CANCELLED, now_ms, "back under the limit within the grace period")
    if now_ms - standing.since_ms < patience.term_grace_ms:
        return standing, ()
    if look.forbidden:
        return _to(Phase.OBSERVED, now_ms, f"SIGKILL is not sent: {look.forbidden}")
    detail = f"{_processes(look.alive)} outlived the grace period: SIGKILL"
    return _to(Phase.KILL, now_ms, detail, Action.SIGKILL)


def _kill(standing: Standing, look: Look, now_ms: int, patience: Patience) -> Step:
    if look.alive == 0:
        return _to(Phase.VERIFY, now_ms, "ended after SIGKILL")
    if look.forbidden:
        return _to(Phase.OBSERVED, now_ms, f"SIGKILL is not sent again: {look.forbidden}")
    if now_ms - standing.since_ms >= patience.unkillable_ms:
        detail = f"{_processes(look.alive)} survived SIGKILL: stuck in the kernel"
        return _to(Phase.UNKILLABLE, now_ms, detail)
    # Only who has not had it: a repeat does nothing for a process that hangs in the kernel.
    return standing, (Action.SIGKILL,) if look.unsignalled else ()


def _verify(standing: Standing, look: Look, now_ms: int, patience: Patience) -> Step:
    if look.alive and look.over and not look.forbidden:
        detail = f"{_processes(look.alive)} came up again: SIGKILL"
        return _to(Phase.KILL, now_ms, detail, Action.SIGKILL)
    if look.listed == 0:
        return _to(Phase.RECLAIMED, now_ms, "NVML lists none of its processes any more")
    if look.listed is None:
        detail = "NVML cannot be asked whether the memory is back; it will be"
        return _to(Phase.UNVERIFIED, now_ms, detail)
    if now_ms - standing.since_ms < patience.verify_ms:
        return standing, ()
    detail = f"NVML still lists {_processes(look.listed)} that have ended"
    return _to(Phase.RECLAIM_FAILED, now_ms, detail)


def _stuck(standing: Standing, look: Look, now_ms: int, _: Patience) -> Step:
    """Waits for the memory, however long: the bytes are quarantined until then."""
    # Who came up since was not to be stopped for this: it waits for those that SIGKILL was sent to.
    if look.alive == look.unsignalled and look.listed == 0:
        detail = "the memory is back, late: the quarantine is lifted"
        return _to(Phase.RECLAIMED, now_ms, detail)
    return standing, ()


def _final(standing: Standing, _: Look, __: int, ___: Patience) -> Step:
    return standing, ()


_RULES: Final = {
    Phase.BREACH: _breach,
    Phase.TERM: _term,
    Phase.KILL: _kill,
    Phase.VERIFY: _verify,
    Phase.RECLAIMED: _final,
    Phase.UNVERIFIED: _stuck,
    Phase.RECLAIM_FAILED: _stuck,
    Phase.UNKILLABLE: _stuck,
    Phase.CANCELLED: _final,
    Phase.OBSERVED: _final,
}


def _processes(count: int) -> str:
    return "1 process" if count == 1 else f"{count} processes"


@dataclass(frozen=True, slots=True)
class Guard:
    """Decides when being over a limit is a breach: OK, SOFT at a share of it, BREACH.

    What is used up cannot come back, so it is a breach at once. Memory can, and a starting process
    may pass its limit for a moment: it has to be over for a number of samples and a time.

    Attributes:
        over_count: For how many samples in a row it has been over.
        over_since_ms: Since when.
        soft_permille: The highest share that was told of, in thousandths.
    """

    over_count: int = 0
    over_since_ms: int = 0
    soft_permille: int = 0

    SAMPLES = 3
    SOFT_PERMILLE = (800, 900, 950)

    def measure(self, *, over: bool, now_ms: int) -> "Guard":
        """The guard after one more sample."""
        if not over:
            return replace(self, over_count=0, over_since_ms=0)
        since = self.over_since_ms if self.over_count else now_ms
        return replace(self, over_count=self.over_count + 1, over_since_ms=since)

    def is_breach(self, now_ms: int, patience_ms: int) -> bool:
        """Whether memory has been over for long enough."""
        if patience_ms == 0:
            return self.over_count > 0
        return self.over_count >= self.SAMPLES and now_ms - self.over_since_ms >= patience_ms

    def warn(self, permille: int) -> tuple["Guard", int]:
        """The guard after a share of the limit was seen, and the share to tell of; 0: none.

        A share that falls below the lowest step is told of again when it is passed again.
        """
        reached = max((one for one in self.SOFT_PERMILLE if permille >= one), default=0)
        if reached == 0:
            return replace(self, soft_permille=0), 0
        if reached <= self.soft_permille:
            return self, 0
        return replace(self, soft_permille=reached), reached
