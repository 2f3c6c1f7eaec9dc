"""The benchmark runs, and what it wrote last is well formed. No figure is judged."""

import contextlib
import importlib
import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

RUN = Path(__file__).parent / "run.py"
LATEST = Path(__file__).parent / "results" / "latest.json"
FIELDS = {"ours", "floor", "ratio", "rounds", "machine", "unit", "goal"}
PEERS = {
    "redis",
    "redis_aof_everysec",
    "redis_aof_always",
    "envoy_ratelimit",
    "gubernator",
    "limitador",
    "litellm",
}


def check(results: dict[str, dict[str, Any]]) -> None:
    assert {"reserve_p50_c1_vs_echo", "reserve_rate_c64_vs_echo"} <= set(results)
    for name, result in results.items():
        tells_durability = name.partition("_vs_")[2] in {*PEERS, "unary_debit"}
        assert set(result) == FIELDS | ({"durability"} if tells_durability else set()), name
        assert result["ours"] > 0, name
        assert result["floor"] > 0, name
        assert math.isclose(result["ratio"], result["ours"] / result["floor"], rel_tol=1e-2), name
        assert math.isclose(result["ratio"], statistics.median_low(result["rounds"])), name
        assert isinstance(result["machine"], str), name
        assert isinstance(result["unit"], str), name
        assert result["goal"] is None or result["goal"][:2] in {"<=", ">="}, name
        assert all(result.get("durability", {"ours": "-", "floor": "-"}).values()), name


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module that runs it, imported as it imports its own."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(RUN.parent)
    yield importlib.import_module("run")
    for name in set(sys.modules) - before:
        if name == "run" or getattr(sys.modules[name], "__file__", "") in own():
            del sys.modules[name]


def own() -> set[str]:
    return {str(path) for path in RUN.parent.glob("*.py")}


@pytest.mark.skipif(not LATEST.exists(), reason="`make bench` has not written its results yet")
def test_the_last_results_are_well_formed() -> None:
    check(json.loads(LATEST.read_text(encoding="utf-8")))


@pytest.mark.skipif(
    os.environ.get("BURSAR_LONG") != "1", reason="builds and measures; BURSAR_LONG=1"
)
@pytest.mark.timeout(1500)
def test_a_quick_run_measures_everything_and_skips_by_name_what_is_missing(tmp_path: Path) -> None:
    output = tmp_path / "results.json"
    command = [sys.executable, str(RUN), "--quick", "--output", str(output)]
    ran = subprocess.run(command, check=True, capture_output=True, text=True)
    results = json.loads(output.read_text(encoding="utf-8"))
    check(results)
    assert all(name in ran.stdout for name in results)
    report = (tmp_path / "report.md").read_text(encoding="utf-8")
    for peer in PEERS:
        is_there = any(name.endswith(f"_vs_{peer}") for name in results)
        assert is_there != (f"skipped {peer}: " in ran.stdout), peer
        assert is_there == (f"## Against {peer}\n" in report), peer


def test_peers_that_are_not_installed_are_skipped_by_name(
    bench: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("BURSAR_PEERS", str(tmp_path))
    found = bench._results.Found()
    with contextlib.ExitStack() as stack:
        servers = bench.start_peers(PEERS, (tmp_path, tmp_path), found, stack)
    assert servers == {}
    assert set(found.skipped) == PEERS
    said = capsys.readouterr().out
    assert all(f"skipped {name}: no " in said for name in PEERS)


FAKE_REDIS = """\
#!{python}
import signal, socket, sys
{prelude}
unix = socket.socket(socket.AF_UNIX)
unix.bind(sys.argv[sys.argv.index("--unixsocket") + 1])
unix.listen()
while True:
    unix.accept()
"""


@pytest.mark.parametrize("prelude", ["", "signal.signal(signal.SIGTERM, signal.SIG_IGN)"])
def test_a_peer_is_ended_even_if_it_does_not_want_to(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, prelude: str
) -> None:
    program = tmp_path / "redis-server"
    program.write_text(FAKE_REDIS.format(python=sys.executable, prelude=prelude))
    program.chmod(0o700)
    monkeypatch.setenv("BURSAR_PEERS", str(tmp_path))
    monkeypatch.setattr(bench._peers, "STOP_WAIT_S", 0.5)
    peer = bench._peers.peers()["redis"]
    with bench._peers.running(peer, tmp_path, tmp_path) as server:
        assert Path(f"/proc/{server.process.pid}").exists()
    assert server.process.poll() is not None


def test_a_peer_that_does_not_start_says_why(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "redis-server"
    program.write_text("#!/bin/sh\necho no such option\nexit 1\n")
    program.chmod(0o700)
    monkeypatch.setenv("BURSAR_PEERS", str(tmp_path))
    peer = bench._peers.peers()["redis"]
    with (
        pytest.raises(bench._peers.NotThereError, match="no such option"),
        bench._peers.running(peer, tmp_path, tmp_path),
    ):
        pass


def test_the_report_has_every_figure_and_what_both_sides_lose(
    bench: ModuleType, tmp_path: Path
) -> None:
    """Made-up measurements of all series go through the same writing as real ones."""
    wanted = [*bench._metrics.metrics(), *bench._proxy.metrics()]
    names = ("p50_ns", "p99_ns", "reserve_p50_ns", "reserve_p99_ns", "commit_p50_ns")
    halves = ("commit_p99_ns", "first_p50_ns", "first_p99_ns", "rest_p50_ns", "rest_p99_ns")
    one: dict[str, float] = dict.fromkeys((*names, *halves), 5000.0)
    series = {each for metric in wanted for each in (metric.ours, metric.floor)}
    rates = (900.0, 1000.0, 2000.0)
    rounds = [{each: {**one, "rate": rate} for each in series} for rate in rates]
    found = bench._results.Found(rounds=rounds, skipped={"another": "no program"})
    results = bench._results.entries(wanted, found)
    check(results)
    background = {
        "command": "a command",
        "when": "a day",
        "machine": "a machine",
        "skipped": found.skipped,
        "versions": {},
        "series": bench._results.series(found),
    }
    said = bench._report.write(tmp_path, results, background)
    report = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "900 / 1000 / 2000" in report
    assert "`another` was skipped: no program" in report
    for name, result in results.items():
        (line,) = [line for line in report.splitlines() if line.startswith(f"| {name} |")]
        assert all(told in line for told in result.get("durability", {}).values())
    assert ("no plots" in said) == (not list(tmp_path.glob("*.svg")))
