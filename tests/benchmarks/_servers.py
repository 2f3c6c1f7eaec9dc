"""The programs of rust/bench: building, starting, stopping, and one run of the load."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import _machine

from bursar.daemon.config import Config

PROJECT = Path(__file__).resolve().parents[2]
LIMIT = 1 << 60  # nothing is ever refused
ACCOUNT = "acme/department-0/team-00/agent-00"
PROGRAMS = ("echo", "load", "passthrough", "sidecar", "upstream")
KEY_RETENTION_MS = 200  # a run leaves nothing behind for the next one to wade through


def build() -> dict[str, Path]:
    """Builds the programs and returns where they are, by name."""
    command = ["cargo", "build", "--release", "-p", "bursar-bench", "--message-format=json"]
    built = subprocess.run(command, cwd=PROJECT, stdout=subprocess.PIPE, check=True, text=True)
    messages = [json.loads(line) for line in built.stdout.splitlines() if line.startswith("{")]
    return {
        message["target"]["name"]: Path(message["executable"])
        for message in messages
        if message.get("executable")
    }


def built(folder: Path) -> dict[str, Path]:
    """The programs in a folder, by name."""
    return {name: folder / name for name in PROGRAMS}


def config(
    socket: Path, store: Path | None, durability: str, tcp: str | None = None, **sections: Any
) -> str:
    """A configuration with one daily budget of tokens on each of four levels, and huge limits.

    Of the rules for runaways one is off: the load leaves more reservations open than it allows.
    """
    threshold = {"percent": 90, "verdict": "warn"}
    budget = {"unit": "tokens", "period": "day", "limit": LIMIT, "thresholds": [threshold]}
    server: dict[str, Any] = {"socket": str(socket), "runtime_threads": 1}
    written = {
        "server": {**server, **({"tcp": tcp} if tcp else {})},
        "store": {"path": str(store) if store else "", "durability": durability},
        "limits": {"max_reservations": 20_000_000},
        "reservations": {"key_retention": f"{KEY_RETENTION_MS}ms"},
        "runaway": {"open_reservations": 0},
        "accounts": [
            {"path": "/".join(["*"] * depth), "budgets": [budget]} for depth in (1, 2, 3, 4)
        ],
        **sections,
    }
    return Config.from_dict(written).to_core_json()


@dataclass
class Server:
    """A server under load."""

    name: str
    address: Path | str  # of a Unix socket, or a host and a port
    process: subprocess.Popen[bytes]
    helpers: tuple[int, ...] = ()  # processes that do a part of its work

    @property
    def pids(self) -> list[int]:
        """Its processes."""
        return [self.process.pid, *self.helpers]


@contextmanager
def serving(name: str, address: Path | str, command: list[str | Path]) -> Iterator[Server]:
    """Starts a server that says when it serves, and ends when its standard input does."""
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        if not process.stdout or not process.stdout.readline():
            message = f"{name} did not start"
            raise RuntimeError(message)
        yield Server(name, address, process)
    finally:
        process.communicate()
        if isinstance(address, Path):
            address.unlink(missing_ok=True)
        if process.returncode != 0:
            sys.stderr.write(f"{name} ended with {process.returncode}\n")


def load(
    program: Path, server: Server, mode: str, *, on: list[int] | None = None, **arguments: object
) -> dict[str, Any]:
    """One run of the client; raises where an answer was not what it has to be."""
    at = "--socket" if isinstance(server.address, Path) else "--address"
    command = [str(program), at, str(server.address), "--mode", mode]
    for name, value in arguments.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    own = _machine.cpus()
    if on:
        os.sched_setaffinity(0, on)  # a child starts where its parent is
    try:
        ran = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    finally:
        os.sched_setaffinity(0, own)
    answer: dict[str, Any] = json.loads(ran.stdout)
    return answer
