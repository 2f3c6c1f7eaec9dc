"""The demonstration runs as told, and its proof notices what does not add up."""

import dataclasses
import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import time

import pytest

pytest.importorskip("bursar._core", reason="the extension is not built")

from rich.console import Console

from bursar.demo._proof import Evidence, Proof, prove
from bursar.demo.main import gather
from bursar.models import EntryKind


@pytest.fixture(scope="module")
def evidence() -> Evidence:
    return gather(Console(file=io.StringIO()), plain=True)


def false_statements(proof: Proof) -> list[str]:
    return [statement for true, statement in proof.statements if not true]


def test_three_agents_end_as_they_should_and_all_counts_agree(evidence: Evidence) -> None:
    assert false_statements(prove(evidence)) == []


def test_the_looper_is_stopped_at_the_last_token_that_the_budget_covers(evidence: Evidence) -> None:
    support = evidence.accounts["acme/support"].balances[0]
    assert (support.spent, support.held, support.remaining) == (support.limit, 0, 0)
    assert "[terminated by Bursar after " in evidence.reports["looper"]["output"]


def test_a_nano_dollar_more_in_sqlite_is_noticed(evidence: Evidence) -> None:
    key = ("acme/research/reader", "usd_nanos")
    stored = {**evidence.stored, key: evidence.stored[key] + 1}
    proof = prove(dataclasses.replace(evidence, stored=stored))
    assert false_statements(proof) == ["agents, entries, SQLite and budgets agree to the last unit"]


def test_a_missing_entry_is_noticed(evidence: Evidence) -> None:
    spend = next(one for one in evidence.entries if one.kind is EntryKind.SPEND)
    entries = tuple(one for one in evidence.entries if one is not spend)
    assert not prove(dataclasses.replace(evidence, entries=entries)).holds


@pytest.mark.parametrize("name", ["reader", "analyst", "looper"])
def test_an_agent_without_a_report_is_noticed(evidence: Evidence, name: str) -> None:
    reports = {one: report for one, report in evidence.reports.items() if one != name}
    proof = prove(dataclasses.replace(evidence, reports=reports))
    assert f"{name}: no report" in false_statements(proof)


def on_a_terminal(columns: int, lines: int) -> tuple[int, str]:
    """Runs `bursar demo` on a terminal of this size; its exit code, and what it drew."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color"}
    for name in ("COLUMNS", "LINES", "NO_COLOR"):
        environment.pop(name, None)
    command = [sys.executable, "-m", "bursar", "demo"]
    with subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment
    ) as demo:
        os.close(theirs)
        drawn = bytearray()
        try:
            while piece := os.read(ours, 65_536):
                drawn += piece
        except OSError:
            pass  # how Linux says that the other end is closed
        os.close(ours)
        return demo.wait(60), drawn.decode()


@pytest.mark.timeout(120)
def test_a_terminal_sees_a_live_table_and_a_report_in_well_under_a_minute() -> None:
    begun = time.monotonic()
    code, drawn = on_a_terminal(columns=100, lines=40)
    assert time.monotonic() - begun < 60
    assert code == 0
    assert drawn.count("\x1b[2K") > 100, "it is drawn over and over in its place"
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", drawn)
    for column in ("account", "spent", "held", "remaining", "verdict"):
        assert column in text
    for verdict in ("OK", "WARN", "DEGRADE"):
        assert re.search(rf"\b{verdict}\b", text)
    assert "[terminated by Bursar after " in text
    assert "✓ agents, entries, SQLite and budgets agree to the last unit" in text
    assert "✗" not in text
    assert max(len(line) for line in text.replace("\r", "\n").splitlines()) <= 100
