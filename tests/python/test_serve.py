"""The process around the server: it waits for a signal, drains, and says what happened."""

import os
import signal
import sys
import threading
import types
from collections.abc import Iterator

import pytest

import bursar
from bursar._log import Field, Level
from bursar.daemon.config import Config
from bursar.daemon.serve import run

CONFIG = Config.from_dict({"watchdog": {"mode": "off"}})  # which would need a real server


class FakeServer:
    """Does as the extension's server does, without serving."""

    addresses = ("unix:/run/x", "127.0.0.1:1")
    proxy_address: str | None = None
    dashboard_address: str | None = None
    metrics_address: str | None = None
    recovery = "recovered 3 reservations"
    overruled: tuple[str, ...] = ()
    stopped = False
    shut_down = 0
    failure: str | None = None
    turned_away = 0
    unmatched_descriptors = 0
    close_error: Exception | None = None

    def __init__(self, config_json: str) -> None:
        if self.error is not None:
            raise self.error

    error: Exception | None = None

    def wait(self, timeout_s: float | None) -> bool:
        return self.stopped

    def refresh_tls(self) -> str | None:
        return None

    def shutdown(self) -> None:
        type(self).shut_down += 1
        if self.close_error is not None:
            raise self.close_error


class FakeCoreError(Exception):
    code, reason, message, metadata = "UNAVAILABLE", "STORE_UNAVAILABLE", "damaged", {"a": "b"}


@pytest.fixture(autouse=True)
def umask() -> Iterator[None]:
    """What the process makes is the sidecar's alone, for good; here others come after it."""
    before = os.umask(0o022)
    os.umask(before)
    yield
    os.umask(before)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> type[FakeServer]:
    fresh = type("Fresh", (FakeServer,), {})
    core = types.ModuleType("bursar._core")
    vars(core).update(Server=fresh, CoreError=FakeCoreError, tell_panics=lambda _say: None)
    monkeypatch.setitem(sys.modules, "bursar._core", core)
    monkeypatch.setattr(bursar, "_core", core, raising=False)
    return fresh


def told_until(number: signal.Signals) -> list[str]:
    """Serves until this signal, sent once it listens; what it said."""
    lines: list[str] = []

    def say(line: str, /, *, level: Level = "info", **_: Field) -> None:
        lines.append(line)
        if line.startswith("listening"):
            threading.Timer(0.05, os.kill, (os.getpid(), number)).start()

    run(CONFIG, say=say)
    return lines


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_and_everything_is_told(
    server: type[FakeServer], number: signal.Signals
) -> None:
    before = signal.getsignal(number)
    lines = told_until(number)
    assert lines[:3] == [
        "recovered 3 reservations",
        "listening on unix:/run/x, 127.0.0.1:1",
        f"{number.name}: draining for at most 10 s",
    ]
    assert lines[3].startswith("drained after 0.")
    assert server.shut_down == 1
    assert signal.getsignal(number) is before


def test_of_many_limits_that_operators_have_set_the_first_are_told(
    server: type[FakeServer],
) -> None:
    server.overruled = tuple(f"a/{number}" for number in range(13))
    lines = told_until(signal.SIGTERM)
    told = [f"a/{number}" for number in range(10)] + ["and 3 more limits that operators have set"]
    assert lines[1:12] == told


def test_a_server_that_stops_by_itself_is_an_error(
    server: type[FakeServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bursar.daemon.serve._CHECK_S", 0.01)
    server.stopped = True
    with pytest.raises(bursar.BursarError, match="stopped by itself"):
        run(CONFIG, say=lambda *_, **__: None)


@pytest.mark.parametrize(
    ("error", "expected", "message"),
    [
        (FakeCoreError(), bursar.StoreUnavailable, "damaged"),
        (
            OSError(98, "cannot listen on x: in use"),
            bursar.BursarError,
            "^cannot listen on x: in use$",
        ),
    ],
)
def test_a_server_that_cannot_start_says_why(
    server: type[FakeServer], error: Exception, expected: type[Exception], message: str
) -> None:
    server.error = error
    with pytest.raises(expected, match=message):
        run(CONFIG, say=lambda *_, **__: None)


def test_a_store_that_failed_is_told_once_and_again_at_the_end(
    server: type[FakeServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk: the operator reads of it when it happens, and the end is no traceback."""
    monkeypatch.setattr("bursar.daemon.serve._CHECK_S", 0.01)
    server.failure, server.close_error = "the store failed: disk full", FakeCoreError()
    lines: list[str] = []

    def say(line: str, /, *, level: Level = "info", **_: Field) -> None:
        lines.append(line)
        if line.startswith("the store failed"):
            threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM)).start()

    with pytest.raises(bursar.StoreUnavailable, match="damaged"):
        run(CONFIG, say=say)
    failed = [line for line in lines if line.startswith("the store failed: disk full")]
    assert len(failed) == 1
    assert "only reads" in failed[0]
