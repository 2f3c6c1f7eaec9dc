"""The process around the Rust server: start, wait for a signal, drain.

The server runs on its own threads and never takes the GIL; this thread only sleeps.
"""

import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from bursar._errors import from_reason
from bursar.daemon.config import Config
from bursar.exceptions import BursarError

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
_CHECK_S: Final = 1.0  # how late it is noticed that the server stopped by itself


def run(config: Config, *, say: Callable[[str], None]) -> None:
    """Serves until SIGTERM or SIGINT, then drains. Call it from the main thread.

    Args:
        config: The configuration.
        say: Takes each line of what happened.

    Raises:
        BursarError: The store cannot be opened, an address cannot be bound, or the server stopped
            by itself.
    """
    from bursar import _core

    with _signals() as wakeup:
        try:
            server = _core.Server(config.to_core_json())
        except _core.CoreError as raised:
            raise from_reason(
                raised.code, raised.message, reason=raised.reason, metadata=raised.metadata
            ) from None
        except OSError as raised:
            raise BursarError(f"cannot listen: {raised}") from None
        say(server.recovery)
        say(f"listening on {', '.join(server.addresses)}")
        stopped = False
        while not stopped:
            if select.select([wakeup], [], [], _CHECK_S)[0]:
                break
            stopped = server.wait(0)
        if stopped:
            raise BursarError("the server stopped by itself; the lines above say why")
        name = signal.Signals(os.read(wakeup, 1)[0]).name
        say(f"{name}: draining for at most {config.server.drain_timeout / 1000:g} s")
        started = time.monotonic()
        server.shutdown()
        server.wait(None)
        say(f"drained after {time.monotonic() - started:.2f} s; holds are kept")


@contextmanager
def _signals() -> Iterator[int]:
    """Yields a file descriptor that becomes readable when one of the signals arrives."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    old_wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    # The handlers do nothing: the byte in the pipe, the signal's number, says it all.
    old = {one: signal.signal(one, lambda *_: None) for one in _SIGNALS}
    try:
        yield reader
    finally:
        for one, handler in old.items():
            signal.signal(one, handler)
        signal.set_wakeup_fd(old_wakeup)
        os.close(reader)
        os.close(writer)
