"""The process around the Rust server: start, wait for a signal, drain.

The server runs on its own threads and never takes the GIL; this thread only sleeps. The watchdog
and the notifier have threads of their own.
"""

import functools
import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from bursar._embedded import call_core
from bursar._errors import from_core
from bursar._log import Level, Say
from bursar.daemon._notify import Manager
from bursar.daemon.config import Config, ConfigError, Problem
from bursar.exceptions import BursarError

if TYPE_CHECKING:
    from bursar._core import Server
    from bursar.notify.notifier import Notifier
    from bursar.notify.outcomes import Receiver
    from bursar.watchdog.loop import Watchdog

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
_CHECK_S: Final = 1.0  # how late it is noticed that the server stopped by itself
_FULL: Final = "as many are open as server.max_connections and the descriptors allow"
_NO_ROOM: Final = (
    "the store is nearly full: nothing is held or recorded anew until its disk has "
    "store.min_free_bytes; free some, or keep entries for less long (store.entry_retention)"
)
_UNMATCHED: Final = "no rule of [envoy] fits them; the answers name domain and entries"
_OVERRULED_MAX: Final = 10  # how many are told one by one
_QUIET_S: Final = 60.0  # how often what goes on and on is told at most


def run(
    config: Config,
    *,
    say: Say,
    ready: "Callable[[Server], None] | None" = None,
) -> None:
    """Serves until SIGTERM or SIGINT, then drains. Call it from the main thread.

    Args:
        config: The configuration.
        say: Takes each event.
        ready: Called once, when calls are answered.

    Raises:
        BursarError: The store cannot be opened or closed, an address cannot be bound, or the server
            stopped by itself.
    """
    from bursar import _core

    # Whatever it was: the store, its log and the tokens are the sidecar's alone.
    os.umask(0o077)
    _core.tell_panics(lambda text: say(text, level="error", event="panicked"))
    receivers = _receivers(config)
    # With certificates to read again SIGHUP asks for that; without, it ends the process as ever.
    signals = (*_SIGNALS, signal.SIGHUP) if config.server.tls else _SIGNALS
    with _signals(signals) as wakeup:
        with _translated():
            server = _core.Server(config.to_core_json())
        say(server.recovery, event="recovered")
        _tell_overruled(server.overruled, say)
        try:
            with _translated():
                watchdog = _watch(config, server, say)
                notifier = _notify(config, receivers, server, watchdog, say)
        except BursarError:
            server.shutdown()
            raise
        _tell_listeners(config, server, say)
        manager = Manager.of_environment()
        manager.ready()
        if ready is not None:
            ready(server)
        name = _wait(server, wakeup, manager, say)
        manager.stopping()
        longest_s = config.server.drain_timeout / 1000
        say(f"{name}: draining for at most {longest_s:g} s", event="draining", signal=name)
        started = time.monotonic()
        if notifier is not None:
            notifier.stop()
        if watchdog is not None:
            watchdog.stop()
        with _translated():
            server.shutdown()
        server.wait(None)
        took_s = round(time.monotonic() - started, 2)
        say(f"drained after {took_s:.2f} s; holds are kept", event="drained", took_s=took_s)


def _tell_overruled(lines: list[str], say: Say) -> None:
    """Says which configured limits do not count, of many the first."""
    for line in lines[:_OVERRULED_MAX]:
        say(line, event="overruled")
    if len(lines) > _OVERRULED_MAX:
        more = len(lines) - _OVERRULED_MAX
        say(f"and {more} more limits that operators have set", event="overruled", more=more)


def _tell_listeners(config: Config, server: "Server", say: Say) -> None:
    """Says where callers may come; in the end the daemon's own addresses."""
    others = (
        ("proxy", server.proxy_address, config.proxy.tls, "/v1"),
        ("dashboard", server.dashboard_address, config.dashboard.tls, "/"),
        ("metrics", server.metrics_address, config.metrics.tls, "/metrics"),
    )
    for name, address, has_tls, path in others:
        if address is not None:
            url = f"{'https' if has_tls else 'http'}://{address}{path}"
            say(f"{name} on {url}", event="listening", listener=name, addresses=[url])
    addresses = server.addresses
    line = f"listening on {', '.join(addresses)}"
    say(line, event="listening", listener="grpc", addresses=addresses)


def _watch(config: Config, server: "Server", say: Say) -> "Watchdog | None":
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


def _receivers(config: Config) -> "list[Receiver]":
    """Those who are told of what happens."""
    if config.notify.receivers and config.store.path is None:
        text = "what happens is read from the store, and there is none: set store.path"
        raise ConfigError([Problem("notify", text)])
    return [one.to_receiver() for one in config.notify.receivers]


def _notify(
    config: Config,
    receivers: "list[Receiver]",
    server: "Server",
    watchdog: "Watchdog | None",
    say: Say,
) -> "Notifier | None":
    """Starts the notifier, if anybody is to be told."""
    from bursar.notify import notifier

    store = config.store.path
    if store is None:
        return None
    if not receivers:
        notifier.forget(store, say)
        return None

    def states() -> Iterator[notifier.State]:
        failure = server.failure
        names = ("store.read_only", "store.writable")
        yield notifier.State("store", failure is not None, names, failure or "")
        if watchdog is not None:
            is_blind, detail = watchdog.sight
            names = ("watchdog.blind", "watchdog.sees")
            yield notifier.State("watchdog", is_blind, names, detail)

    started = notifier.Notifier(
        store,
        receivers,
        call=functools.partial(call_core, server),
        states=states,
        show=server.set_receiver_figures,
        source=config.notify.named_source,
        most=config.notify.max_backlog,
        say=say,
    )
    started.start()
    return started


def _wait(server: "Server", wakeup: int, manager: Manager, say: Say) -> str:
    """Returns the name of the signal that ends it; says what else happens meanwhile.

    It takes over new certificates. That the store has failed is said once; that it is nearly full,
    when it becomes so and when it is over; that connections find no place and descriptors no rule,
    once a minute.
    """
    failure, was_full = None, False
    turned_away = _Rising("turned_away", "connections were closed at once", _FULL, say)
    unmatched = _Rising("unmatched", "descriptors were refused", _UNMATCHED, say)
    while True:
        if select.select([wakeup], [], [], _CHECK_S)[0]:
            number = os.read(wakeup, 1)[0]
            if number != signal.SIGHUP:
                return signal.Signals(number).name
        if server.wait(0):
            raise BursarError("the server stopped by itself; the lines above say why")
        if failure is None and (failure := server.failure) is not None:
            text = f"{failure}; until then only reads are answered"
            say(text, level="error", event="store_failed")
            manager.status(failure)
        if failure is None and (is_full := server.is_store_nearly_full) is not was_full:
            level: Level = "warning" if is_full else "info"
            text = _NO_ROOM if is_full else "the store has room again"
            say(text, level=level, event="store_nearly_full", is_full=is_full)
            was_full = is_full
        turned_away.see(server.turned_away)
        unmatched.see(server.unmatched_descriptors)
        if (news := server.refresh_tls()) is not None:
            say(news, event="tls")
        if failure is None:  # a restart is what helps, so the manager hears no more of it
            manager.alive()


class _Rising:
    """A count that should not rise: by how much it has is told, once a minute at most."""

    def __init__(self, event: str, what: str, why: str, say: Say) -> None:
        self._event, self._what, self._why, self._say = event, what, why, say
        self._told, self._quiet_until_s = 0, 0.0

    def see(self, count: int) -> None:
        """Takes the count as it is now."""
        more, now_s = count - self._told, time.monotonic()
        if more > 0 and now_s >= self._quiet_until_s:
            text = f"{more} {self._what}: {self._why}"
            self._say(text, level="warning", event=self._event, count=more)
            self._told, self._quiet_until_s = count, now_s + _QUIET_S


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
def _signals(numbers: tuple[signal.Signals, ...]) -> Iterator[int]:
    """Yields a file descriptor that becomes readable when one of the signals arrives."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    old_wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    # The handlers do nothing: the byte in the pipe, the signal's number, says it all.
    old = {one: signal.signal(one, lambda *_: None) for one in numbers}
    try:
        yield reader
    finally:
        for one, handler in old.items():
            signal.signal(one, handler)
        signal.set_wakeup_fd(old_wakeup)
        os.close(reader)
        os.close(writer)
