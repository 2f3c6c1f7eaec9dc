"""Sidecars and stores as `bursar doctor` looks at them, and what it says by what it looked at."""

import contextlib
import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from click.testing import CliRunner

import bursar
from bursar.cli import cli
from support.daemon import Daemon

CONFIG: Final = """
[server]
socket = "bursar.sock"
socket_mode = "0600"
max_connections = 100
[store]
path = "ledger.db"
[[accounts]]
path = "**"
"""


@contextmanager
def sidecar() -> Iterator[Daemon]:
    """One with something of everything in its store, and `doctor.toml` to examine it by."""
    with Daemon(server={"socket_mode": "0600", "max_connections": 100}) as running:
        (running.folder / "doctor.toml").write_text(CONFIG, encoding="utf-8")
        with running.client() as client:
            client.set_budget("acme", unit="tokens", limit=1_000, period="day@Europe/Berlin")
            client.set_budget("acme", unit="usd_nanos", limit=10**9)
            client.commit(client.reserve("acme", tokens=50).id, tokens=20)
            client.reserve("acme", amounts={"tokens": 70, "usd_nanos": 5})
            client.tokens.create("ci", role=bursar.access.Role.OPERATOR, ttl_s=600)
            len(list(client.list_entries("")))  # they are in SQLite
        yield running


def findings(daemon: Daemon) -> dict[str, Any]:
    """What the doctor says of a sidecar, by what it looked at; its exit code as `exit`."""
    return examine("--config", daemon.folder / "doctor.toml")


def examine(*what: str | Path) -> dict[str, Any]:
    """The same of a store, or of whatever else is named as the command line does."""
    told = CliRunner().invoke(cli, ["doctor", *map(str, what), "--json"], catch_exceptions=False)
    assert told.exit_code in {0, 1}, told.output
    shown = json.loads(told.stdout)
    found = shown if isinstance(shown, list) else shown["findings"]
    return {one["what"]: one for one in found} | {"exit": told.exit_code}


def new_store(folder: Path) -> Path:
    """An empty store in a folder, closed."""
    store = folder / "ledger.db"
    bursar.open(store).close()
    return store


def edit(file: Path, *statements: str) -> None:
    """Changes an SQLite file with nothing of ours between."""
    with contextlib.closing(sqlite3.connect(file)) as db, db:
        for statement in statements:
            db.execute(statement)
