"""Receivers, what an attempt to tell one came to, and what follows from it. Pure."""

import threading
from dataclasses import dataclass
from enum import Enum
from typing import Final, Protocol

from bursar.notify.events import Waiting

__all__ = ["Answer", "Outcome", "Receiver", "Step", "after"]

FIRST_S: Final = 1.0
LONGEST_S: Final = 600.0
"""The pause behind the first failure, and the longest; it doubles in between."""
RETRY_AFTER_S_MAX: Final = 3_600.0
"""The longest pause that a receiver may ask for."""
REFUSALS_MAX: Final = 8
"""So often an event is refused by itself, over some two minutes, before it is given up."""


class Answer(Enum):
    """What a receiver makes of an event."""

    TAKEN = "taken"
    """It has it."""
    AWAY = "away"
    """It does not answer, or not as one that has it: a later attempt may do."""
    REFUSED = "refused"
    """It takes others, maybe, but not this one."""
    GONE = "gone"
    """It wants nothing any more."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an attempt came to.

    Attributes:
        answer: What the receiver makes of it.
        detail: What it said, or what went wrong; for a person to read, without secrets.
        retry_after_s: How long it wants to be left alone.
    """

    answer: Answer
    detail: str
    retry_after_s: float = 0.0


class Receiver(Protocol):
    """A webhook or a command."""

    @property
    def name(self) -> str:
        """What messages call it."""

    @property
    def kind(self) -> str:
        """What it is, in a word."""

    @property
    def address(self) -> str:
        """A hash of where it is."""

    def wants(self, name: str, account: str) -> bool:
        """Whether it is told of an event."""

    def deliver(self, waiting: Waiting, stop: threading.Event) -> Outcome:
        """Tells it of an event, once; never raises for what the receiver does."""


class Step(Enum):
    """What is done next."""

    GO_ON = "go on"
    AGAIN = "again"
    LOSE = "lose"
    END = "end"


def after(outcome: Outcome, failures: int, refusals: int, chance: float) -> tuple[Step, float]:
    """What follows an attempt, and how long it waits.

    Args:
        outcome: What it came to.
        failures: How many attempts have failed in a row, this one included.
        refusals: How many times this event was refused, this time included.
        chance: From 0 to 1: pauses are spread over their upper half, lest many come back at once.
    """
    if outcome.answer is Answer.TAKEN:
        return Step.GO_ON, 0.0
    if outcome.answer is Answer.GONE:
        return Step.END, 0.0
    if outcome.answer is Answer.REFUSED and refusals >= REFUSALS_MAX:
        return Step.LOSE, 0.0
    # The exponent is bounded before the power is taken: floats end at 2**1024.
    pause_s = min(FIRST_S * 2.0 ** min(failures - 1, 30), LONGEST_S) * (1 + chance) / 2
    asked_s = min(max(outcome.retry_after_s, 0.0), RETRY_AFTER_S_MAX)
    return Step.AGAIN, max(pause_s, asked_s)
