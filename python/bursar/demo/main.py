"""`bursar demo`: a sidecar and three agents as real processes, and a proof that the books balance.

One agent finishes, one passes its soft limit and becomes cheaper, one loops and is stopped at the
exact token.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import tomllib
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.live import Live

from bursar.client import Client
from bursar.demo._board import Board, LiveBoard, PlainBoard
from bursar.demo._proof import EXPECTED, Evidence, Proof, prove, stored_spends
from bursar.exceptions import BursarError
from bursar.testing import Sidecar

ROOT: Final = "acme"
TIMEOUT_S: Final = 60.0
_MIDNIGHT_S: Final = 120
_DAY_S: Final = 86_400
_SHOWN_CHARS: Final = 120


def run(*, plain: bool) -> int:
    """Runs the demonstration and reports.

    Args:
        plain: Lines instead of a live table.

    Returns:
        0 when all three agents ended as they should and everything that was counted agrees, else 1.
    """
    console = Console(highlight=False)
    evidence = gather(console, plain=plain)
    proof = prove(evidence)
    _print(console, evidence, proof)
    return 0 if proof.holds else 1


def gather(console: Console, *, plain: bool) -> Evidence:
    """Runs the sidecar and the agents to their end and collects what each of them knows."""
    text = config_text(datetime.now(UTC))
    config = tomllib.loads(text)
    with tempfile.TemporaryDirectory(prefix="bursar-demo-") as folder:
        reports = Path(folder)
        with Sidecar(text) as sidecar, sidecar.client() as client:
            console.print("A sidecar listens; three agents share its budgets.")
            for account in config["accounts"]:
                client.get_account(account["path"])  # opens it, so that the table has it at once
            _watch_agents(console, sidecar, reports, plain=plain)
            accounts = {one.path: one for one in client.list_accounts(ROOT)}
            entries = tuple(client.list_entries(ROOT))
            sidecar.terminate()
            stored = stored_spends(sidecar.store_path)
        return Evidence(config, _read(reports), accounts, entries, stored)


def config_text(now: datetime) -> str:
    """The sample configuration; within two minutes of midnight (UTC), days end elsewhere."""
    text = resources.files("bursar.demo").joinpath("config.toml").read_text("utf-8")
    if now.timestamp() % _DAY_S > _DAY_S - _MIDNIGHT_S:
        text = text.replace('period = "day"', 'period = "day@Asia/Tokyo"')
    return text


def _watch_agents(console: Console, sidecar: Sidecar, reports: Path, *, plain: bool) -> None:
    """Runs the agents to their end and shows what they do."""
    with contextlib.ExitStack() as stack:
        watcher = stack.enter_context(sidecar.client())
        board: Board
        if plain:
            board = PlainBoard(console)
        else:
            board = LiveBoard()
            stack.enter_context(Live(board, console=console, refresh_per_second=12))
        threading.Thread(target=_follow_accounts, args=(watcher, board), daemon=True).start()
        agents = [_Agent(name, sidecar.target, reports, board) for name in EXPECTED]
        for agent in agents:
            stack.callback(agent.kill)
        for agent in agents:
            agent.join()
        board.accounts(watcher.list_accounts(ROOT))


def _follow_accounts(client: Client, board: Board) -> None:
    # The client is closed under the stream at the end, which the stream reports as an error.
    with contextlib.suppress(BursarError, ValueError):
        for changes in client.watch_accounts(ROOT, min_interval_s=0.1):
            board.accounts(changes.accounts)


class _Agent:
    """An agent's process, and the thread that reads what it says."""

    def __init__(self, name: str, target: str, reports: Path, board: Board) -> None:
        self._name = name
        self._board = board
        self._process = subprocess.Popen(  # noqa: S603 -- ourselves
            [
                *(sys.executable, "-m", "bursar.demo.agent", name),
                *("--report", str(reports / f"{name}.json")),
            ],
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env={**os.environ, "BURSAR_TARGET": target},
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for event in self._events():
            self._board.event(self._name, event)

    def _events(self) -> Iterator[dict[str, Any]]:
        if self._process.stdout is not None:
            yield from map(json.loads, self._process.stdout)

    def join(self) -> None:
        """Waits until it has ended and everything it said was shown; ends one that hangs."""
        try:
            code = self._process.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        self._reader.join(TIMEOUT_S)
        self._board.event(self._name, {"kind": "exit", "code": code})

    def kill(self) -> None:
        """Ends it if it runs still."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


def _read(reports: Path) -> dict[str, dict[str, Any]]:
    return {
        file.stem: json.loads(file.read_text(encoding="utf-8"))
        for file in sorted(reports.glob("*.json"))
    }


def _print(console: Console, evidence: Evidence, proof: Proof) -> None:
    console.print()
    for name, report in sorted(evidence.reports.items()):
        last = str(report["output"]).strip().splitlines()[-1:]
        console.print(f"{name} wrote … {''.join(last)[-_SHOWN_CHARS:]}", markup=False)
    console.print()
    console.print(proof.table)
    for true, statement in proof.statements:
        mark = "[green]✓[/]" if true else "[bold red]✗[/]"
        console.print(mark, statement)


if __name__ == "__main__":
    sys.exit(run(plain="--plain" in sys.argv))
