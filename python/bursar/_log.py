"""The daemon's log: each event is one line on stderr, as text or as a JSON object.

What an event is made of is given by whoever tells of it; others may have chosen it. As text it
has no control characters, as JSON they are escaped: an event is one line whatever is in it.
"""

import json
import sys
import threading
import traceback
from datetime import UTC, datetime
from types import TracebackType
from typing import Literal, Protocol, TypeAlias

__all__ = ["Field", "Level", "Say", "say_json", "tell_crashes"]

Level: TypeAlias = Literal["info", "warning", "error"]
Field: TypeAlias = str | int | float | list[str]


class Say(Protocol):
    """Takes an event: in words, and as fields for machines, `event` among them."""

    def __call__(self, line: str, /, *, level: Level = "info", **fields: Field) -> None:
        """Writes it."""


def say_json(line: str, /, *, level: Level = "info", **fields: Field) -> None:
    """Writes an event as JSON: the time in RFC 3339, the level, the words, then the fields."""
    time = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    event = {"time": time, "level": level, "message": line, **fields}
    # Escaped to ASCII: nothing in it ends a line, wherever that is read. One write, so that threads
    # do not write into each other's lines.
    sys.stderr.write(json.dumps(event) + "\n")
    sys.stderr.flush()


def tell_crashes(say: Say) -> None:
    """From now on, what Python would say of an exception that nobody caught is an event, too."""

    def told(
        kind: type[BaseException], error: BaseException | None, trace: TracebackType | None
    ) -> None:
        text = "".join(traceback.format_exception(kind, error, trace))
        say(f"{kind.__name__}: {error}", level="error", event="crash", traceback=text)

    sys.excepthook = told
    threading.excepthook = lambda args: told(args.exc_type, args.exc_value, args.exc_traceback)
