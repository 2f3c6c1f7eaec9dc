"""Measures the sidecar against an empty server and its peers, in one run, and writes what it found.

The same client calls all of them. At concurrency 1 client and server share one CPU: a sleeping CPU
takes longer to wake than a call takes. Measurements alternate, ratios are taken within a round, and
their median counts. A measurement during which others used much of the CPUs is repeated, and the
least disturbed attempt counts. Peers that are not installed are skipped by name; `BURSAR_PEERS` or
`--peers` name folders with their programs. Nothing here passes or fails on a time.
"""

import argparse
import contextlib
import datetime as dt
import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import _inproc
import _lease
import _llama
import _machine
import _metrics
import _peers
import _proxy
import _report
import _results
import _servers
import _startup
import _watching
from _metrics import Metric, Series

RESULTS = Path(__file__).parent / "results" / "latest.json"
ATTEMPTS = 3
WARM_UP_S = 0.2


class Bench:
    """The servers of one run, and how they are measured."""

    def __init__(self, load: Path, seconds: float) -> None:
        self.load, self.seconds = load, seconds
        self.servers: dict[str, _servers.Server] = {}
        self.request_bytes = 0
        self.foreign_max = 0.0
        self.settled_s = 0.0

    def pids(self) -> list[int]:
        """The processes of our servers."""
        return list({pid for server in self.servers.values() for pid in server.pids})

    def measure(self, series: Series) -> dict[str, Any]:
        """One measurement: the least disturbed of a few attempts."""
        server = self.servers[series.server]
        peer = _peers.peers().get(series.server)
        on = _machine.cpus()[:1] if series.is_pinned else _machine.cpus()
        for pid in server.pids:
            _machine.pin(pid, on)
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
                window=series.window,
                seconds=self.seconds * (peer.patience if peer else 1),
                warm_up=WARM_UP_S,
                request_bytes=self.request_bytes or 100,
            )
            attempts.append((foreign.share(), measured))
            self.settled_s = max(self.settled_s, _machine.settle(server.pids))
            if attempts[-1][0] <= _machine.QUIET_SHARE:
                break
        share, measured = min(attempts, key=lambda attempt: attempt[0])
        self.foreign_max = max(self.foreign_max, share)
        return measured


def start_ours(
    programs: dict[str, Path],
    folders: tuple[Path, Path],
    durability: str,
    stack: contextlib.ExitStack,
) -> dict[str, _servers.Server]:
    """The sidecar with that durability, by the names of its three listeners."""
    folder, sockets = folders
    socket = sockets / f"{durability}.sock"
    tcp, proxy = (f"127.0.0.1:{_peers.free_port()}" for _ in range(2))
    store = folder / durability / "ledger.db"
    store.parent.mkdir()
    path = folder / f"{durability}.json"
    path.write_text(
        _servers.config(
            socket,
            store,
            durability,
            tcp,
            rates={"allow_unpriced": True},
            proxy={
                "listen": proxy,
                "default_account": _servers.ACCOUNT,
                "upstreams": [{"name": "upstream", "url": f"http://{_peers.upstream()}"}],
            },
        )
    )
    command: list[str | Path] = [programs["sidecar"], "--serve", path]
    server = stack.enter_context(_servers.serving(durability, socket, command))
    over_tcp, over_http = (_servers.Server(server.name, at, server.process) for at in (tcp, proxy))
    return {durability: server, f"{durability}_tcp": over_tcp, f"{durability}_proxy": over_http}


def start_peers(
    names: set[str],
    folders: tuple[Path, Path],
    found: _results.Found,
    stack: contextlib.ExitStack,
) -> dict[str, _servers.Server]:
    """Those that are there; the others are noted as skipped, and said to be."""
    servers = {}
    for name, peer in _peers.peers().items():
        if name not in names:
            continue
        try:
            servers[name] = stack.enter_context(_peers.running(peer, *folders))
            found.versions[name] = _peers.told_version(peer)
        except _peers.NotThereError as error:
            found.skipped[name] = str(error)
            say(f"skipped {name}: {error}")
    return servers


def over_the_wire(
    programs: dict[str, Path],
    folders: tuple[Path, Path],
    wanted: list[Metric],
    *,
    rounds: int,
    seconds: float,
) -> tuple[list[Metric], _results.Found]:
    """Starts the servers and measures everything once a round; what could be measured, and it."""
    found = _results.Found()
    bench = Bench(programs["load"], seconds)
    with contextlib.ExitStack() as stack:
        names = {series.server for metric in wanted for series in (metric.ours, metric.floor)}
        bench.servers |= start_peers(names, folders, found, stack)
        wanted = [metric for metric in wanted if metric.floor.server not in found.skipped]
        bench.servers |= {each.name: each for each in _proxy.start(programs, stack)}
        ours = [metric.ours.setting for metric in wanted]
        for durability in dict.fromkeys(["process", *ours]):
            bench.servers |= start_ours(programs, folders, durability, stack)
        probe = bench.measure(Series("process", "reserve", 64))
        bench.request_bytes = probe["request_bytes"]
        socket, length = folders[1] / "echo.sock", str(probe["response_bytes"])
        command: list[str | Path] = [programs["echo"], "--socket", socket]
        command += ["--response-bytes", length]
        bench.servers["echo"] = stack.enter_context(_servers.serving("echo", socket, command))
        say(f"request {probe['request_bytes']} bytes, response {length} bytes")
        pairs = [each for one in wanted for each in (one.floor, one.ours)]
        series = list(dict.fromkeys([*pairs, *_proxy.direct(wanted)]))
        series.sort(key=lambda each: each.concurrency)
        for number in range(rounds):
            found.rounds.append({each: bench.measure(each) for each in series})
            say(f"round {number + 1} of {rounds}")
        say(
            f"others used at most {bench.foreign_max:.0%} of the CPUs; the longest work left behind"
            f" in the background took {bench.settled_s:.1f} s"
        )
    return wanted, found


def say(line: str) -> None:
    """Tells whoever waits."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def arguments() -> argparse.Namespace:
    """Those of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="how often everything is measured")
    parser.add_argument("--seconds", type=float, default=1.0, help="how long each measurement is")
    parser.add_argument("--quick", action="store_true", help="only show that it works")
    parser.add_argument(
        "--output", type=Path, default=RESULTS, help="where the results go; the report lies beside"
    )
    parser.add_argument("--only", default="", help="figures with this in their name; none written")
    parser.add_argument("--programs", type=Path, help="where they are, instead of building them")
    parser.add_argument("--peers", help="folders with the peers' programs, beside BURSAR_PEERS")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.seconds = 1, 0.1
    if options.peers:
        folders = [options.peers, os.environ.get("BURSAR_PEERS", "")]
        os.environ["BURSAR_PEERS"] = os.pathsep.join(filter(None, folders))
    return options


def repeat(options: argparse.Namespace) -> str:
    """The command that does this again, wherever the peers are then."""
    command = ["python", "tests/benchmarks/run.py", "--rounds", str(options.rounds)]
    command += ["--seconds", f"{options.seconds:g}"]
    return f"BURSAR_PEERS=… {shlex.join(command)}"


def measure(
    options: argparse.Namespace, programs: dict[str, Path]
) -> tuple[dict[str, Any], _results.Found]:
    """Everything that is wanted; the entries by name, and the series behind them."""
    target = _servers.PROJECT / "target"
    target.mkdir(exist_ok=True)
    every = [*_metrics.metrics(), *_proxy.metrics()]
    wanted = [metric for metric in every if options.only in metric.name]
    results: dict[str, Any] = {}
    found = _results.Found()
    with (
        tempfile.TemporaryDirectory(prefix="bench-", dir=target) as disk,
        tempfile.TemporaryDirectory(prefix="bench-") as short,  # a socket's path has to be
    ):
        folder, sockets = Path(disk), Path(short)
        if wanted:
            wanted, found = over_the_wire(
                programs,
                (folder, sockets),
                wanted,
                rounds=options.rounds,
                seconds=options.seconds,
            )
            results |= _results.entries(wanted, found) | _proxy.overheads(found)
            say(_results.table(results))
        if options.only in _startup.NAME:
            say("start-up")
            scale = 100 if options.quick else 1
            opened = _startup.measure(programs, folder, sockets, options.rounds, scale)
            results[_startup.NAME] = _results.entry(opened, "s", "<= 1")
        if options.only in _watching.NAME:
            say("watched and unwatched")
            rates = _watching.measure(programs, folder, sockets, options.rounds, options.seconds)
            results[_watching.NAME] = _results.entry(rates, "calls/s", _watching.GOAL)
    return results | without_servers(options, found), found


def without_servers(options: argparse.Namespace, found: _results.Found) -> dict[str, Any]:
    """What is measured in processes of its own."""
    results: dict[str, Any] = {}
    if options.only in "leases":
        say("leases")
        for name, each in _lease.measure(options.rounds, quick=options.quick).items():
            results[name] = _results.entry(each["pairs"], each["unit"], each["goal"])
            if name == "lease_debit_python_vs_empty_call":
                results |= _results.lease_against_redis(each["pairs"], found)
    if options.only in _llama.NAME:
        lacking = _llama.lacking()
        if lacking:
            found.skipped["llama.cpp"] = lacking
        else:
            say("llama.cpp with the adapter and without")
            rates = _llama.measure(options.rounds, quick=options.quick)
            results[_llama.NAME] = _results.entry(rates, "tokens/s", _llama.GOAL)
    if options.only in "in_process":
        say("in process")
        for name, pairs in _inproc.measure(quick=options.quick).items():
            results[name] = _results.entry(pairs, "ns", None)
    return results


def main() -> None:
    """Builds, measures, writes, prints."""
    options = arguments()
    when = f"{dt.datetime.now(dt.UTC):%Y-%m-%d %H:%M} UTC"
    say(f"{_machine.describe()}, {when}")
    programs = _servers.built(options.programs) if options.programs else _servers.build()
    results, found = measure(options, programs)
    say(_results.table(results))
    for name, why in found.skipped.items():
        say(f"skipped {name}: {why}")
    if options.only:
        return
    folder = options.output.parent
    folder.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    background = {
        "command": repeat(options),
        "when": when,
        "machine": _machine.describe(),
        "skipped": found.skipped,
        "versions": found.versions,
        "series": _results.series(found),
    }
    text = json.dumps(background, indent=2) + "\n"
    (folder / _report.SERIES).write_text(text, encoding="utf-8")
    say(_report.write(folder, results, background))


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        sys.exit(str(error))
