"""The Lua scripts that stand for Redis keep a budget: it is worth being compared with.

Skipped where Redis is not installed.
"""

import importlib
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
SCRIPTS = HERE.parents[1] / "rust" / "bench" / "lua"
KEYS = ["3", "budget", "holds", "ends"]
Script = Callable[..., Any]


def reply(lines: Any) -> Any:
    """One reply: an integer, a string or a list; an error raises."""
    kind, value = (line := lines.readline().decode().rstrip())[:1], line[1:]
    if kind == "-":
        raise RuntimeError(value)
    if kind == "*":
        return [reply(lines) for _ in range(int(value))]
    if kind == "$":
        return None if value == "-1" else lines.read(int(value) + 2)[:-2].decode()
    return int(value) if kind == ":" else value


@pytest.fixture
def redis(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Script]:
    """Sends a command and returns its reply."""
    monkeypatch.syspath_prepend(HERE)
    peers = importlib.import_module("_peers")
    peer = peers.peers()["redis"]
    try:
        peers.find(peer)
    except peers.NotThereError as error:
        pytest.skip(str(error))
    with peers.running(peer, tmp_path, tmp_path) as server, socket.socket(socket.AF_UNIX) as unix:
        unix.connect(str(server.address))
        lines = unix.makefile("rb")

        def send(*parts: object) -> Any:
            texts = [str(part).encode() for part in parts]
            body = b"".join(b"$%d\r\n%s\r\n" % (len(text), text) for text in texts)
            unix.sendall(b"*%d\r\n%s" % (len(texts), body))
            return reply(lines)

        send("HSET", "budget", "limit", 10, "held", 0, "spent", 0)
        with lines:
            yield send


def source(name: str) -> str:
    return (SCRIPTS / f"{name}.lua").read_text(encoding="utf-8")


def state(redis: Script) -> tuple[int, int]:
    """Held and spent."""
    held, spent = redis("HMGET", "budget", "held", "spent")
    return int(held), int(spent)


def test_a_debit_that_fits_is_spent_and_one_that_does_not_is_refused(redis: Script) -> None:
    assert redis("EVAL", source("debit"), "1", "budget", 7) == 3
    assert redis("EVAL", source("debit"), "1", "budget", 4) == -1
    assert state(redis) == (0, 7)


def test_a_hold_becomes_what_was_spent_once(redis: Script) -> None:
    assert redis("EVAL", source("reserve"), *KEYS, "a", 6, 60_000) == [1, 4]
    assert redis("EVAL", source("reserve"), *KEYS, "a", 6, 60_000) == [1, 4], "a repeat"
    assert redis("EVAL", source("reserve"), *KEYS, "b", 5, 60_000) == [0, 4], "does not fit"
    assert state(redis) == (6, 0)
    assert redis("EVAL", source("commit"), *KEYS, "a", 2) == [1, 6]
    assert redis("EVAL", source("commit"), *KEYS, "a", 2) == [0, 0], "a second Commit"
    assert state(redis) == (0, 2)


def test_a_hold_ends_by_itself(redis: Script) -> None:
    assert redis("EVAL", source("reserve"), *KEYS, "a", 6, 1) == [1, 4]
    time.sleep(0.01)
    assert redis("EVAL", source("reserve"), *KEYS, "b", 10, 60_000) == [1, 0]
    assert state(redis) == (10, 0)
    assert redis("EVAL", source("commit"), *KEYS, "a", 6) == [0, 0]
