"""What there is to be told: the names of events, who wants which, and their form on the wire.

An event is a CloudEvent 1.0 in JSON. Amounts in it are strings of digits, as JSON's readers lose
integers beyond 2**53. Its id is the same whenever it is told: who remembers ids tells repeats.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

__all__ = ["NAMES", "Event", "Selection", "Waiting", "expand"]

NAMES: Final[Mapping[str, str]] = {
    "crossing.warn": "a threshold with the verdict WARN was crossed",
    "crossing.degrade": "a threshold with the verdict DEGRADE was crossed",
    "crossing.stop": "all of a limit is spent, whatever its thresholds: Reserve is refused",
    "overdraft": "a commit or record spent more than was left of the limit",
    "freeze": "an account was frozen",
    "unfreeze": "a freeze was ended",
    "runaway": "an account was found to have run away",
    "incident.breach": "a job has passed a hard limit",
    "incident.term": "it was sent SIGTERM",
    "incident.kill": "it was sent SIGKILL",
    "incident.verify": "its processes have ended; its memory is not seen to be back yet",
    "incident.reclaimed": "it has ended, and its memory is back",
    "incident.unverified": "it has ended; nobody can say whether its memory is back",
    "incident.reclaim_failed": "it has ended, and its memory has not come back",
    "incident.unkillable": "a process of it survives SIGKILL",
    "incident.cancelled": "it came back under the limit before it was killed",
    "incident.observed": "it would have been stopped, but nobody is to be signalled",
    "watchdog.blind": "the watchdog cannot see the GPUs: nobody is stopped for what they use",
    "watchdog.sees": "it is blind no longer",
    "store.read_only": "the store has failed: nothing is granted until the sidecar is restarted",
    "store.writable": "it is written again",
}
"""What can be asked for, and what each means."""

LOST: Final = "backlog.lost"
TEST: Final = "test"
"""What nobody can ask for: events were lost to this receiver; a person tries whether it works."""


def expand(patterns: Iterable[str]) -> frozenset[str]:
    """The names that are meant by names, by groups as in ``incident.*``, and by ``*``.

    Raises:
        ValueError: A pattern means none.
    """
    found: set[str] = set()
    for pattern in patterns:
        stem = pattern.removesuffix("*")
        is_group = pattern == "*" or (stem != pattern and stem.endswith("."))
        meant = {name for name in NAMES if (is_group and name.startswith(stem)) or name == pattern}
        if not meant:
            raise ValueError(f"there is no event {pattern!r}; write some of {', '.join(NAMES)}")
        found |= meant
    return frozenset(found)


@dataclass(frozen=True, slots=True)
class Selection:
    """What a receiver wants to be told.

    Attributes:
        names: The events.
        accounts: Patterns as in `[[accounts]]`: ``*`` is one name, ``**`` at the end any further.
    """

    names: frozenset[str]
    accounts: tuple[str, ...]

    def wants(self, name: str, account: str) -> bool:
        """Whether an event is wanted; one of no account is by those who want every account."""
        if name not in self.names:
            return False
        if not account:
            return "**" in self.accounts
        return any(_matches(pattern, account) for pattern in self.accounts)


def _matches(pattern: str, account: str) -> bool:
    parts, names = pattern.split("/"), account.split("/")
    if parts[-1] == "**":
        parts.pop()
        if len(names) <= len(parts):
            return False
        names = names[: len(parts)]
    pairs = zip(parts, names, strict=False)
    return len(parts) == len(names) and all(part in {"*", name} for part, name in pairs)


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened.

    Attributes:
        key: What makes it this event and no other, in this spool.
        name: One of `NAMES`, or `LOST` or `TEST`.
        time: When, in UTC.
        account: Whose it is; empty: the whole sidecar's.
        data: What else there is to say.
    """

    key: str
    name: str
    time: datetime
    account: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)

    def body(self, event_id: str, source: str) -> bytes:
        """The CloudEvent, as it is sent and signed."""
        content = {
            "specversion": "1.0",
            "id": event_id,
            "source": source,
            "type": f"bursar.{self.name}",
            **({"subject": self.account} if self.account else {}),
            "time": self.time.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "datacontenttype": "application/json",
            "data": dict(self.data),
        }
        return json.dumps(content, separators=(",", ":")).encode()


@dataclass(frozen=True, slots=True)
class Waiting:
    """An event as one receiver is told of it.

    Attributes:
        number: Its place in the spool, which rises; 0: it is not in there.
        id: Tells repeats by.
        name: The event's name.
        account: Whose it is; empty: the whole sidecar's.
        body: The CloudEvent.
    """

    number: int
    id: str
    name: str
    account: str
    body: bytes
