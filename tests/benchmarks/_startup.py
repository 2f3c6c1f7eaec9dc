"""How long the engine takes to open a store with a million entries and 100,000 open reservations.

The store is made through the sidecar itself, by the same client as everywhere.
"""

import contextlib
import json
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import _machine
import _servers

NAME = "startup_1m_entries_100k_open"
ENTRIES = 1_000_000
OPEN = 100_000
FLOOR_S = 2.0  # the goal: there is no empty program to compare with
FILL_S = 600.0
BATCH = 50_000


def measure(
    programs: dict[str, Path], folder: Path, sockets: Path, rounds: int, scale: int
) -> list[tuple[float, float]]:
    """Seconds to open and the goal, once a round; `scale` times smaller for a smoke run."""
    socket, store = sockets / "startup.sock", folder / "startup" / "ledger.db"
    store.parent.mkdir()
    path = folder / "startup.json"
    path.write_text(_servers.config(socket, store, "process"))
    command: list[str | Path] = [programs["sidecar"], "--serve", path]
    with _servers.serving("startup", socket, command) as server:
        fill(programs["load"], server, store, scale)
    pairs, answer = [], {"recovery": ""}
    for _ in range(rounds):
        _machine.wait_until_quiet(_machine.cpus(), [])
        opened = subprocess.run(
            [programs["sidecar"], "--open", path], stdout=subprocess.PIPE, check=True
        )
        answer = json.loads(opened.stdout)
        pairs.append((float(answer["seconds"]), FLOOR_S))
    sys.stdout.write(f"{answer['recovery']}\n")
    return pairs


def fill(load: Path, server: _servers.Server, store: Path, scale: int) -> None:
    """Makes the entries by committing, then leaves reservations open."""
    deadline = time.monotonic() + FILL_S
    arguments: dict[str, Any] = {"concurrency": 64, "warm_up": 0, "seconds": FILL_S}
    batch = BATCH // scale
    while count(store) < ENTRIES // scale and time.monotonic() < deadline:
        _servers.load(load, server, "commit", calls=batch, **arguments)
        _machine.settle(server.pids)
    _servers.load(load, server, "reserve", calls=OPEN // scale, keep="true", **arguments)
    _machine.settle(server.pids)


def count(store: Path) -> int:
    """How many entries are in the store."""
    with contextlib.closing(sqlite3.connect(f"file:{store}?mode=ro", uri=True)) as database:
        return int(database.execute("SELECT count(*) FROM entries").fetchone()[0])
