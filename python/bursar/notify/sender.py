"""One receiver's thread: takes the oldest event, tells it, and goes on once it is taken.

So a receiver hears of each account's events in their order, and one that is slow or away holds up
nobody else. An attempt that fails is repeated with a growing pause, for as long as it takes.
"""

import random
import threading
from datetime import UTC, datetime
from typing import Final

from bursar._log import Level, Say
from bursar.notify.events import LOST, Event, Waiting
from bursar.notify.outcomes import Answer, Outcome, Receiver, Step, after
from bursar.notify.spool import Spool, Standing

__all__ = ["Sender"]

_LOOK_S: Final = 60.0  # whoever puts something into the spool wakes it; this is for what failed
_BROKEN_S: Final = 5.0


class Sender:
    """Tells one receiver.

    Args:
        receiver: Whom.
        spool: What waits, and for whom.
        say: Takes each line for the daemon's log.
    """

    def __init__(self, receiver: Receiver, spool: Spool, say: Say) -> None:
        self._receiver, self._spool, self._say = receiver, spool, say
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._failures = 0
        self._refused = ("", 0)  # the id of the event that was refused last, and how often
        name = f"notify-{receiver.name}"[:15]
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def wake(self) -> None:
        """Says that there may be something to be told."""
        self._wake.set()

    def stop(self) -> None:
        """Asks the thread to end; what is not answered by then is told again later."""
        self._stop.set()
        self._wake.set()

    def join(self, timeout_s: float) -> None:
        """Waits for the end of the thread, at most so long."""
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while not self._stop.is_set():
            self._wake.clear()
            try:
                pause_s = self._turn()
            except Exception as error:  # noqa: BLE001 -- whatever it was, the others go on
                if self._stop.is_set():
                    return
                self._tell(f"cannot be told now: {error!r}", level="error")
                pause_s = _BROKEN_S
            if pause_s is None:
                self._wake.wait(_LOOK_S)
            else:
                self._stop.wait(pause_s)

    def _tell(self, text: str, level: Level = "warning") -> None:
        """One line for the daemon's log."""
        kind, name = self._receiver.kind, self._receiver.name
        self._say(f"{kind} {name}: {text}", level=level, event="notify", receiver=name)

    def _turn(self) -> float | None:
        """Tells of one event; for how long to pause, None: nothing waits."""
        name = self._receiver.name
        standing, waiting = self._spool.standing(name), self._spool.next(name)
        if standing is None or standing.is_gone:
            return None
        if standing.lost > standing.lost_told:
            waiting = self._spool.waiting(self._loss(standing))
        elif waiting is None:
            return None
        outcome = self._receiver.deliver(waiting, self._stop)
        step, pause_s = self._step(waiting, outcome)
        if step is Step.AGAIN and self._stop.is_set():
            return 0.0
        if step in {Step.GO_ON, Step.LOSE} and not waiting.number:
            self._spool.knows_of_lost(name, standing.lost)
        if step is not Step.GO_ON:
            return self._fail(waiting, step, outcome, pause_s)
        if self._failures > 1:
            self._tell(f"is told again, after {self._failures - 1} failures", level="info")
        self._failures = 0
        self._spool.told(name, waiting.number)
        return 0.0

    def _step(self, waiting: Waiting, outcome: Outcome) -> tuple[Step, float]:
        """What follows an attempt, and for how long to pause."""
        self._failures += 1
        known, refusals = self._refused
        if outcome.answer is Answer.REFUSED:
            refusals = refusals + 1 if known == waiting.id else 1
            self._refused = waiting.id, refusals
        return after(outcome, self._failures, refusals, random.random())  # noqa: S311 -- spreads pauses

    def _loss(self, standing: Standing) -> Event:
        """Says how many events this receiver never hears of."""
        return Event(
            key=f"lost-{standing.name}-{standing.lost}",
            name=LOST,
            time=datetime.now(UTC),
            data={"receiver": standing.name, "count": str(standing.lost - standing.lost_told)},
        )

    def _fail(self, waiting: Waiting, step: Step, outcome: Outcome, pause_s: float) -> float:
        name, detail = self._receiver.name, outcome.detail
        if step is Step.END:
            self._spool.failed(name, detail)
            lost = self._spool.end(name)
            text = f"{detail}: it is told nothing more, until its address changes"
            text += f"; {lost} events that waited are lost" if lost else ""
            self._tell(text, level="error" if lost else "warning")
        elif step is Step.LOSE:
            self._tell(f"{waiting.id} is given up: {detail}")
            self._spool.failed(name, detail, lose=waiting.number)
            self._failures = 0
        else:
            # Of one that stays away it is said once, and again when the pause has grown long.
            if self._failures in {1, 10} or self._failures % 100 == 0:
                times = f" ({self._failures} times in a row)" if self._failures > 1 else ""
                self._tell(f"{detail}{times}; next in {pause_s:.0f} s")
            self._spool.failed(name, detail)
        return pause_s
