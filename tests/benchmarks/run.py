"""Measures the sidecar against an empty server, in one run, and writes what it found.

Both are called by the same client over Unix sockets. At concurrency 1 client and server share one
CPU: a sleeping CPU takes longer to wake than a call takes. Measurements of the two alternate,
ratios are taken within a round, and their median counts. A measurement during which others used
much of the CPUs is repeated, and the least disturbed attempt counts. Nothing here passes or fails
on a time.
"""

import argparse
import contextlib
import datetime as dt
import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import _inproc
import _machine
import _servers
import _startup

RESULTS = Path(__file__).parent / "results" / "latest.json"
ATTEMPTS = 3
WARM_UP_S = 0.2


@dataclass(frozen=True)
class Series:
    """What is measured once a round."""

    server: str
    mode: str
    concurrency: int

    @property
    def is_pinned(self) -> bool:
        """Whether client and server share one CPU."""
        return self.concurrency == 1


@dataclass(frozen=True)
class Metric:
    """A figure and its floor: the same field of two series."""

    name: str
    field: str
    ours: Series
    goal: str | None = None
    factor: int = 1  # calls per timed call

    @property
    def floor(self) -> Series:
        """The empty server under the same load."""
        return Series("echo", "echo", self.ours.concurrency)

    @property
    def unit(self) -> str:
        """What is counted."""
        return "calls/s" if self.field == "rate" else "us"

    def of(self, measured: dict[str, Any], factor: int = 1) -> float:
        """The figure in its unit."""
        value = float(measured[self.field]) * factor
        return value if self.field == "rate" else value / 1000


def metrics() -> list[Metric]:
    """All that is measured over the wire; the goals first."""
    reserve, commit, debit = (
        {c: Series("process", mode, c) for c in (1, 8, 64)}
        for mode in ("reserve", "commit", "debit")
    )
    power, memory = (
        {c: Series(durability, "reserve", c) for c in (1, 64)} for durability in ("power", "memory")
    )
    return [
        Metric("reserve_p50_c1_vs_echo", "p50_ns", reserve[1], "<= 1.2"),
        Metric("reserve_rate_c64_vs_echo", "rate", reserve[64], ">= 0.8"),
        Metric("reserve_p99_c64_vs_echo", "p99_ns", reserve[64], "<= 1.5"),
        Metric("reserve_p50_c8_vs_echo", "p50_ns", reserve[8]),
        Metric("reserve_rate_c8_vs_echo", "rate", reserve[8]),
        Metric("commit_p50_c1_vs_echo", "p50_ns", commit[1]),
        Metric("commit_p99_c64_vs_echo", "p99_ns", commit[64]),
        Metric("reserve_and_commit_rate_c64_vs_echo", "rate", commit[64], factor=2),
        Metric("debit_p50_c1_vs_echo", "p50_ns", debit[1]),
        Metric("debit_rate_c64_vs_echo", "rate", debit[64]),
        Metric("power_reserve_p50_c1_vs_echo", "p50_ns", power[1]),
        Metric("power_reserve_rate_c64_vs_echo", "rate", power[64]),
        Metric("memory_reserve_p50_c1_vs_echo", "p50_ns", memory[1]),
        Metric("memory_reserve_rate_c64_vs_echo", "rate", memory[64]),
    ]


class Bench:
    """The servers of one run, and how they are measured."""

    def __init__(self, load: Path, servers: dict[str, _servers.Server], seconds: float) -> None:
        self.load, self.servers, self.seconds = load, servers, seconds
        self.request_bytes = 0
        self.foreign_max = 0.0
        self.settled_s = 0.0

    def pids(self) -> list[int]:
        """Our servers' processes."""
        return [server.pid for server in self.servers.values()]

    def measure(self, series: Series) -> dict[str, Any]:
        """One measurement: the least disturbed of a few attempts."""
        server = self.servers[series.server]
        on = _machine.cpus()[:1] if series.is_pinned else _machine.cpus()
        _machine.pin(server.pid, on)
        attempts: list[tuple[float, dict[str, Any]]] = []
        for _ in range(ATTEMPTS):
            _machine.wait_until_quiet(on, self.pids())
            foreign = _machine.Foreign(on, self.pids())
            measured = _servers.load(
                self.load,
                server,
                series.mode,
                on=on,
                concurrency=series.concurrency,
                seconds=self.seconds,
                warm_up=WARM_UP_S,
                request_bytes=self.request_bytes or 100,
            )
            attempts.append((foreign.share(), measured))
            self.settled_s = max(self.settled_s, _machine.settle([server.pid]))
            if attempts[-1][0] <= _machine.QUIET_SHARE:
                break
        share, measured = min(attempts, key=lambda attempt: attempt[0])
        self.foreign_max = max(self.foreign_max, share)
        return measured


def over_the_wire(
    programs: dict[str, Path],
    folders: tuple[Path, Path],
    wanted: list[Metric],
    *,
    rounds: int,
    seconds: float,
) -> dict[str, Any]:
    """Starts the servers and measures everything once a round."""
    folder, sockets = folders
    series = list(dict.fromkeys(each for metric in wanted for each in (metric.floor, metric.ours)))
    series.sort(key=lambda each: each.concurrency)
    with contextlib.ExitStack() as stack:
        servers = {}
        for durability in dict.fromkeys(["process", *(metric.ours.server for metric in wanted)]):
            socket = sockets / f"{durability}.sock"
            store = folder / durability / "ledger.db"
            store.parent.mkdir()
            path = folder / f"{durability}.json"
            path.write_text(json.dumps(_servers.config(socket, store, durability)))
            command: list[str | Path] = [programs["sidecar"], "--serve", path]
            servers[durability] = stack.enter_context(_servers.serving(durability, socket, command))
        bench = Bench(programs["load"], servers, seconds)
        probe = bench.measure(Series("process", "reserve", 64))
        bench.request_bytes = probe["request_bytes"]
        socket, length = sockets / "echo.sock", str(probe["response_bytes"])
        command = [programs["echo"], "--socket", socket, "--response-bytes", length]
        servers["echo"] = stack.enter_context(_servers.serving("echo", socket, command))
        say(f"request {probe['request_bytes']} bytes, response {length} bytes")
        measured = []
        for number in range(rounds):
            measured.append({each: bench.measure(each) for each in series})
            say(f"round {number + 1} of {rounds}")
        say(
            f"others used at most {bench.foreign_max:.0%} of the CPUs; the longest work left behind"
            f" in the background took {bench.settled_s:.1f} s"
        )
    results = {}
    for metric in wanted:
        pairs = [
            (metric.of(round_[metric.ours], metric.factor), metric.of(round_[metric.floor]))
            for round_ in measured
        ]
        results[metric.name] = result(pairs, metric.unit, metric.goal)
    return results


def result(pairs: list[tuple[float, float]], unit: str, goal: str | None) -> dict[str, Any]:
    """The round whose ratio is the median of all rounds."""
    ratios = [ours / floor for ours, floor in pairs]
    ours, floor = pairs[ratios.index(statistics.median_low(ratios))]
    return {
        "ours": significant(ours),
        "floor": significant(floor),
        "ratio": significant(ours / floor),
        "rounds": [significant(ratio) for ratio in ratios],
        "machine": _machine.describe(),
        "unit": unit,
        "goal": goal,
    }


def significant(value: float) -> float:
    """Four digits: more would be noise."""
    return float(f"{value:.4g}")


def table(results: dict[str, Any]) -> str:
    """All results, for people."""
    rows = [("", "ours", "floor", "unit", "ratio", "min", "max", "goal")]
    rows += [
        (
            name,
            f"{each['ours']:g}",
            f"{each['floor']:g}",
            each["unit"],
            f"{each['ratio']:.3g}",
            f"{min(each['rounds']):.3g}",
            f"{max(each['rounds']):.3g}",
            each["goal"] or "",
        )
        for name, each in results.items()
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(width) if column in {0, 3, 7} else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join(lines)


def say(line: str) -> None:
    """Tells whoever waits."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> None:
    """Builds, measures, writes, prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="how often everything is measured")
    parser.add_argument("--seconds", type=float, default=1.0, help="how long each measurement is")
    parser.add_argument("--quick", action="store_true", help="only show that it works")
    parser.add_argument("--output", type=Path, default=RESULTS, help="where the results go")
    parser.add_argument("--only", default="", help="figures with this in their name; none written")
    parser.add_argument("--programs", type=Path, help="where they are, instead of building them")
    options = parser.parse_args()
    rounds, seconds = (1, 0.1) if options.quick else (options.rounds, options.seconds)
    say(f"{_machine.describe()}, {dt.datetime.now(dt.UTC):%Y-%m-%d %H:%M} UTC")
    programs = _servers.built(options.programs) if options.programs else _servers.build()
    target = _servers.PROJECT / "target"
    target.mkdir(exist_ok=True)
    wanted = [metric for metric in metrics() if options.only in metric.name]
    results: dict[str, Any] = {}
    with (
        tempfile.TemporaryDirectory(prefix="bench-", dir=target) as disk,
        tempfile.TemporaryDirectory(prefix="bench-") as short,  # a socket's path has to be
    ):
        folder, sockets = Path(disk), Path(short)
        if wanted:
            results |= over_the_wire(
                programs, (folder, sockets), wanted, rounds=rounds, seconds=seconds
            )
            say(table(results))
        if options.only in _startup.NAME:
            say("start-up")
            scale = 100 if options.quick else 1
            opened = _startup.measure(programs, folder, sockets, rounds, scale)
            results[_startup.NAME] = result(opened, "s", "<= 1")
    if options.only in "in_process":
        say("in process")
        for name, pairs in _inproc.measure(quick=options.quick).items():
            results[name] = result(pairs, "ns", None)
    say(table(results))
    if not options.only:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        sys.exit(str(error))
