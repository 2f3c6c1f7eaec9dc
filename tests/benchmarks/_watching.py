"""What it costs to be watched: Reserve with nobody looking, and with a crowd that looks.

One sidecar with a dashboard and metrics; measurements alternate. The crowd is a process of its own
on the same CPUs: it keeps live pictures open, reads them as they come, and asks for the metrics
once a second. What it uses of the CPUs itself is a part of the cost that is measured.
"""

import contextlib
import http.client
import json
import selectors
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import _machine
import _peers
import _servers

NAME = "reserve_rate_c64_watched_vs_unwatched"
GOAL = ">= 0.95"
WATCHERS = 100
REQUEST = "GET /api/live HTTP/1.1\r\nHost: {host}\r\nAccept-Encoding: gzip\r\n\r\n"
"""As browsers ask; what unpacks it is not on this host."""
SCRAPE_S = 1.0
BEGIN_S = 1.0  # until the live picture and the first scrape have been made
TIMEOUT_S = 10.0


def measure(
    programs: dict[str, Path], folder: Path, sockets: Path, rounds: int, seconds: float
) -> list[tuple[float, float]]:
    """Calls a second, watched and unwatched, once a round."""
    unix, store = sockets / "watched.sock", folder / "watched" / "ledger.db"
    store.parent.mkdir()
    metrics, dashboard = (f"127.0.0.1:{_peers.free_port()}" for _ in range(2))
    path = folder / "watched.json"
    sections = {
        "metrics": {"listen": metrics},
        "dashboard": {"listen": dashboard, "max_connections": 2 * WATCHERS},
    }
    path.write_text(_servers.config(unix, store, "process", **sections), encoding="utf-8")
    command: list[str | Path] = [programs["sidecar"], "--serve", path]
    pairs = []
    with _servers.serving("watched", unix, command) as server:
        for _ in range(rounds):
            unwatched = rate(programs["load"], server, seconds)
            with crowd(dashboard, metrics):
                pairs.append((rate(programs["load"], server, seconds), unwatched))
    return pairs


def rate(load: Path, server: _servers.Server, seconds: float) -> float:
    """Reserves a second, by 64 callers."""
    _machine.settle(server.pids)
    answer = _servers.load(load, server, "reserve", concurrency=64, seconds=seconds, warm_up=0.2)
    return float(answer["rate"])


@contextlib.contextmanager
def crowd(dashboard: str, metrics: str) -> Iterator[None]:
    """Has them look meanwhile; raises where one of them was sent away or saw nothing."""
    command = [sys.executable, __file__, dashboard, metrics]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        if not process.stdout or not process.stdout.readline():
            message = "the watchers did not start"
            raise RuntimeError(message)
        time.sleep(BEGIN_S)
        yield
    finally:
        said, _ = process.communicate()
    seen = json.loads(said)
    sys.stdout.write(f"{WATCHERS} watchers: {seen}\n")
    if seen["watching"] < WATCHERS or not seen["scrapes"]:
        message = f"not everybody watched: {seen}"
        raise RuntimeError(message)


def look(dashboard: str, metrics: str) -> dict[str, int]:
    """Looks until the standard input ends; what was seen."""
    seen = {"watching": 0, "bytes": 0, "scrapes": 0, "scraped_bytes": 0}
    host, _, port = dashboard.rpartition(":")
    with contextlib.ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        for _ in range(WATCHERS):
            one = stack.enter_context(socket.create_connection((host, int(port)), TIMEOUT_S))
            one.sendall(REQUEST.format(host=dashboard).encode())
            if not one.recv(65536).startswith(b"HTTP/1.1 200 "):
                continue
            seen["watching"] += 1
            one.setblocking(False)
            selector.register(one, selectors.EVENT_READ)
        selector.register(sys.stdin, selectors.EVENT_READ)
        sys.stdout.write("looking\n")
        sys.stdout.flush()
        due = time.monotonic()
        while True:
            for key, _ in selector.select(max(0.0, due - time.monotonic())):
                if key.fileobj is sys.stdin:
                    return seen
                data = key.fileobj.recv(1 << 20) if isinstance(key.fileobj, socket.socket) else b""
                seen["bytes"] += len(data)
                if not data:
                    seen["watching"] -= 1
                    selector.unregister(key.fileobj)
            if time.monotonic() >= due:
                due += SCRAPE_S
                seen["scraped_bytes"] += scrape(metrics)
                seen["scrapes"] += 1


def scrape(metrics: str) -> int:
    """Asks for the page once; its size."""
    connection = http.client.HTTPConnection(metrics, timeout=TIMEOUT_S)
    with contextlib.closing(connection):
        connection.request("GET", "/metrics")
        answer = connection.getresponse()
        page = answer.read()
        if answer.status != http.client.OK:
            message = f"the metrics answered {answer.status}"
            raise RuntimeError(message)
        return len(page)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(look(*sys.argv[1:])) + "\n")
