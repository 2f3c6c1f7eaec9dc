"""Reads what has happened and hands it to the senders. One thread; started by `bursar serve`.

Entries and incidents are read by cursor. What is so or is not (whether the store can be written,
whether the watchdog can see) is compared with what was told last: it is told when it changes, and
over a restart as well.
"""

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from bursar._log import Say
from bursar.exceptions import BursarError
from bursar.notify.events import Event
from bursar.notify.figures import exposition
from bursar.notify.outcomes import Receiver
from bursar.notify.sender import Sender
from bursar.notify.sources import Call, Entries, Incidents, Source
from bursar.notify.spool import Spool

__all__ = ["Notifier", "State", "forget", "spool_path"]

_PERIOD_S: Final = 0.5
_SHOW_S: Final = 2.0
_JOIN_S: Final = 2.0
"""How long the end waits for answers that are under way; what is not answered is told again."""


@dataclass(frozen=True, slots=True)
class State:
    """What is so or is not.

    Attributes:
        source: What it is about: `store` or `watchdog`.
        is_bad: Whether it is as it should not be.
        events: The names of the events for when it is bad, and when it no longer is.
        detail: Why, for a person.
    """

    source: str
    is_bad: bool
    events: tuple[str, str]
    detail: str


class Notifier:
    """Owns the thread, the spool and the senders; raises OSError where the spool cannot be used.

    Args:
        store: The ledger's file; the spool and the watchdog's journal are beside it.
        receivers: Who is told.
        call: Runs one call on the ledger in this process.
        states: What is so now.
        show: Takes the figures of the receivers, as OpenMetrics.
        source: What events say that they come from.
        most: How many events may wait for one receiver.
        say: Takes each line for the daemon's log.
    """

    def __init__(
        self,
        store: str,
        receivers: Sequence[Receiver],
        *,
        call: Call,
        states: Callable[[], Iterator[State]],
        show: Callable[[str], None],
        source: str,
        most: int,
        say: Say,
    ) -> None:
        self._say = say
        self._states, self._show = states, show
        self._next_show_s = 0.0
        self._receivers = receivers
        self._sources: dict[str, Source] = {
            "entries": Entries(call),
            "incidents": Incidents(Path(f"{store}.watchdog")),
        }
        self._spool = Spool(spool_path(store), source=source, most=most, say=say)
        known = self._spool.known()
        self._old = [one for one in receivers if one.name in known]
        self._spool.receive(self._old)
        self._senders = [Sender(one, self._spool, say) for one in receivers]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="notify", daemon=True)

    def start(self) -> None:
        """Starts all threads."""
        for sender in self._senders:
            sender.start()
        self._thread.start()

    def stop(self) -> None:
        """Ends them; what is not answered by then is told by the next daemon."""
        self._stop.set()
        for sender in self._senders:
            sender.stop()
        end_s = time.monotonic() + _JOIN_S
        threads: list[Callable[[float], object]] = [self._thread.join]
        threads += [sender.join for sender in self._senders]
        for join in threads:
            join(max(end_s - time.monotonic(), 0.0))
        # One that still waits for an answer finds the spool closed, and ends.
        self._spool.close()

    def _run(self) -> None:
        begun, complained = False, ""
        while not self._stop.is_set():
            try:
                self._tell_states()
                self._show_figures()
                begun = begun or self._begin()
                while begun and self._read() and not self._stop.is_set():
                    pass
                complained = ""
            except Exception as error:  # noqa: BLE001 -- whatever it was, the daemon goes on
                text = str(error) if isinstance(error, BursarError) else repr(error)
                if text != complained and not self._stop.is_set():
                    line = f"what has happened cannot be read for notifications: {text}"
                    self._say(line, level="error", event="notify")
                complained = text
            self._stop.wait(_PERIOD_S)

    def _begin(self) -> bool:
        """Finds where to go on, and takes new receivers in, who are told what comes from now on."""
        places = self._spool.places() if self._old else {}
        started = {name: one.start(places.get(name)) for name, one in self._sources.items()}
        self._spool.add((), started)
        while self._old and self._read() and not self._stop.is_set():
            pass
        self._spool.receive(self._receivers)
        return True

    def _read(self) -> bool:
        """Reads what is new; whether there may be more."""
        places = self._spool.places()
        events: list[Event] = []
        read: dict[str, Any] = {}
        has_more, failure = False, None
        for name, source in self._sources.items():
            try:
                found, place, more = source.read(places[name])
            except (BursarError, sqlite3.Error) as error:  # the others are read all the same
                failure = error
                continue
            events += found
            has_more = has_more or more
            if place != places[name]:
                read[name] = place
        if read:
            self._keep(sorted(events, key=lambda one: one.time), read)
        if failure is not None:
            raise failure
        return has_more

    def _tell_states(self) -> None:
        """Tells what has become bad or good; what was told is remembered over restarts."""
        places = self._spool.places()
        for state in self._states():
            if state.is_bad != places.get(state.source, False):
                now = datetime.now(UTC)
                key = f"{state.source}-{state.is_bad:d}-{round(now.timestamp() * 1000)}"
                name = state.events[0] if state.is_bad else state.events[1]
                event = Event(key=key, name=name, time=now, data={"detail": state.detail})
                self._keep([event], {state.source: state.is_bad})

    def _show_figures(self) -> None:
        """Shows the figures now and then."""
        if time.monotonic() < self._next_show_s:
            return
        self._next_show_s = time.monotonic() + _SHOW_S
        self._show(exposition(self._spool.standings()))

    def _keep(self, events: list[Event], places: dict[str, Any]) -> None:
        self._spool.add(events, places)
        if events:
            for sender in self._senders:
                sender.wake()


def spool_path(store: str | Path) -> Path:
    """Where the spool of a store is."""
    return Path(f"{store}.notify")


def forget(store: str, say: Say) -> None:
    """Forgets all receivers: none is configured any more. Raises OSError."""
    if spool_path(store).exists():
        spool = Spool(spool_path(store), source="", most=0, say=say)
        spool.receive(())
        spool.close()
