"""The process around the Rust server: start, wait for a signal, drain.

The server runs on its own threads and never takes the GIL; this thread only sleeps. The watchdog
has a thread of its own.
"""

import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from bursar._errors import from_core
from bursar.daemon._notify import Manager
from bursar.daemon.config import Config
from bursar.exceptions import BursarError

if TYPE_CHECKING:
    from bursar._core import Server
    from bursar.watchdog.loop import Watchdog

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
_CHECK_S: Final = 1.0  # how late it is noticed that the server stopped by itself


def run(
    config: Config,
    *,
    say: Callable[[str], None],
    ready: "Callable[[Server], None] | None" = None,
) -> None:
    """Serves until SIGTERM or SIGINT, then drains. Call it from the main thread.

    Args:
        config: The configuration.
        say: Takes each line of what happened.
        ready: Called once, when calls are answered.

    Raises:
        BursarError: The store cannot be opened or closed, an address cannot be bound, or the server
            stopped by itself.
    """
    from bursar import _core

    with _signals() as wakeup:
        with _translated():
            server = _core.Server(config.to_core_json())
        say(server.recovery)
        try:
            with _translated():
                watchdog = _watch(config, server, say)
        except BursarError:
            server.shutdown()
            raise
        if server.proxy_address is not None:
            say(f"proxy on http://{server.proxy_address}/v1")
        say(f"listening on {', '.join(server.addresses)}")
        manager = Manager.of_environment()
        manager.ready()
        if ready is not None:
            ready(server)
        _wait(server, wakeup, manager, say)
        manager.stopping()
        name = signal.Signals(os.read(wakeup, 1)[0]).name
        say(f"{name}: draining for at most {config.server.drain_timeout / 1000:g} s")
        started = time.monotonic()
        if watchdog is not None:
            watchdog.stop()
        with _translated():
            server.shutdown()
        server.wait(None)
        say(f"drained after {time.monotonic() - started:.2f} s; holds are kept")


def _watch(config: Config, server: "Server", say: Callable[[str], None]) -> "Watchdog | None":
    """Starts the watchdog, unless it is switched off."""
    if config.watchdog.mode == "off":
        return None
    from bursar.watchdog.loop import Watchdog

    store = config.store.path
    watchdog = Watchdog(
        server,
        config.watchdog.to_settings(),
        journal_path=f"{store}.watchdog" if store else None,
        say=say,
    )
    watchdog.start()
    return watchdog


def _wait(server: "Server", wakeup: int, manager: Manager, say: Callable[[str], None]) -> None:
    """Returns when a signal has come; says once when the store has failed meanwhile."""
    failure = None
    while not select.select([wakeup], [], [], _CHECK_S)[0]:
        if server.wait(0):
            raise BursarError("the server stopped by itself; the lines above say why")
        if failure is None and (failure := server.failure) is not None:
            say(f"{failure}; until then only reads are answered")
            manager.status(failure)
        if failure is None:  # a restart is what helps, so the manager hears no more of it
            manager.alive()


@contextmanager
def _translated() -> Iterator[None]:
    """Turns what the core raises into what Bursar raises."""
    from bursar import _core

    try:
        yield
    except _core.CoreError as raised:
        raise from_core(raised) from None
    except OSError as raised:
        raise BursarError(raised.strerror or str(raised)) from None


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
