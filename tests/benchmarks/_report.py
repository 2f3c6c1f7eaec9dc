"""The report for people, from what a run has written: a page of tables, and plots beside it.

`python tests/benchmarks/_report.py [FOLDER]` writes both again from latest.json and series.json.
"""

import json
import statistics
import sys
from pathlib import Path
from typing import Any

import _metrics
import _peers
import _proxy
from _metrics import Metric, Series

SERIES = "series.json"
REPORT = "report.md"
HEAD = """\
# Measured

{machine}, {when}. Made by

    {command}

Closed loop, one client thread, at most eight connections; `c` callers, each with one call under way
or as many as its window says. At c = 1 client and server share one CPU, else they share all.
Figures are min / median / max over the rounds; a ratio is taken within a round, ours to theirs.
Latencies are the client's, so they include its queue. Ours is a ledger four levels deep that
answers with balances, each Reserve with a fresh idempotency key.
"""
OWN = {
    "process": "## Against our own unary calls\n\nThe same debits, without a stream.\n",
    "passthrough": "## Against a proxy that only passes on\n\nhyper's server and client, TCP.\n",
    "echo": "## Against an empty server\n\nThe same server without a ledger, Unix socket.\n",
}
NO_PLOTS = "no plots: matplotlib is missing (`pip install 'bursar-sidecar[bench]'`)"


def write(folder: Path, results: dict[str, Any], background: dict[str, Any]) -> str:
    """Writes the page and the plots; what was written, in a line."""
    measured = {
        Series(each["server"], each["mode"], each["concurrency"], each["window"]): each
        for each in background["series"]
    }
    try:
        import _plots
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        plots, told = [], NO_PLOTS
    else:
        plots = _plots.draw(folder, measured)
        told = f"plots: {', '.join(plots) or 'none, for want of peers'}"
    parts = [HEAD.format(**background), *skipped(background["skipped"])]
    parts += [f"![{name}]({name}.svg)\n" for name in plots]
    parts += sections(results, measured, background["versions"])
    (folder / REPORT).write_text("\n".join(parts), encoding="utf-8")
    return f"wrote {REPORT}; {told}"


def skipped(peers: dict[str, str]) -> list[str]:
    """The peers that are not in the report."""
    lines = [f"- `{name}` was skipped: {why}" for name, why in peers.items()]
    return ["\n".join(lines) + "\n"] if lines else []


def sections(
    results: dict[str, Any], measured: dict[Series, dict[str, Any]], versions: dict[str, str]
) -> list[str]:
    """A table for each floor, peers first, and one for what has no series."""
    every = [*_metrics.metrics(), *_proxy.metrics()]
    metrics = {each.name: each for each in every if each.name in results}
    parts = []
    for name, peer in _peers.peers().items():
        against = [each for each in metrics.values() if each.floor.server == name]
        if against:
            told = versions.get(name) or "not told by its program"
            parts += [f"## Against {name}\n\n{peer.does}. {peer.transport}. Version: {told}.\n"]
            parts += [table([row(each, results[each.name], measured) for each in against])]
    for floor, title in OWN.items():
        against = [each for each in metrics.values() if each.floor.server == floor]
        if against:
            parts += [title]
            parts += [table([row(each, results[each.name], measured) for each in against])]
    parts += ["## Every series\n", all_series(measured)]
    others = [name for name in results if name not in metrics]
    if others:
        parts += ["## Without a wire\n"]
        parts += [table([short_row(name, results[name]) for name in others])]
    return parts


def all_series(measured: dict[Series, dict[str, Any]]) -> str:
    """What the figures are taken from; latencies in microseconds, of pairs also of their halves."""
    fields = ("rate", "p50_us", "p99_us")
    halves = ("reserve_p50_us", "reserve_p99_us", "commit_p50_us", "commit_p99_us")
    rows = [["server", "mode", "c", "window", *fields, *halves]]
    rows += [["---", "---", *["---:"] * 9]]
    for each, found in measured.items():
        cells = [spread(found[name]) if name in found else "" for name in (*fields, *halves)]
        rows += [[each.server, each.mode, str(each.concurrency), str(each.window), *cells]]
    return markdown(rows)


def row(metric: Metric, entry: dict[str, Any], measured: dict[Series, dict[str, Any]]) -> list[str]:
    """One figure, with what either side may lose."""
    durability = entry.get("durability", {"ours": metric.ours.durability, "floor": "keeps nothing"})
    return [
        metric.name,
        spread(figures(metric, measured[metric.ours], metric.factor)),
        spread(figures(metric, measured[metric.floor])),
        entry["unit"],
        spread(entry["rounds"]),
        entry["goal"] or "",
        durability["ours"],
        durability["floor"],
    ]


def short_row(name: str, entry: dict[str, Any]) -> list[str]:
    """One figure of which only the round that counts was kept."""
    ours, floor = f"{entry['ours']:g}", f"{entry['floor']:g}"
    return [name, ours, floor, entry["unit"], spread(entry["rounds"]), entry["goal"] or "", "", ""]


def figures(metric: Metric, series: dict[str, Any], factor: int = 1) -> list[float]:
    """A series' figures in the metric's unit."""
    values: list[float] = series[metric.field.replace("_ns", "_us")]
    return [value * factor for value in values]


def spread(values: list[float]) -> str:
    """Least, median and most."""
    three = (min(values), statistics.median_low(values), max(values))
    return " / ".join(f"{value:.0f}" if value >= 1000 else f"{value:.3g}" for value in three)


def table(rows: list[list[str]]) -> str:
    """Figures and their floors."""
    head = ["", "ours", "theirs", "unit", "ratio", "goal", "we lose", "they lose"]
    return markdown([head, ["---", *["---:"] * 2, "---", "---:", "---", "---", "---"], *rows])


def markdown(rows: list[list[str]]) -> str:
    """Rows of cells, the head and its rule among them."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows) + "\n"


def main() -> None:
    """Writes the page again."""
    default = Path(__file__).parent / "results"
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else default
    results, background = (
        json.loads((folder / name).read_text(encoding="utf-8")) for name in ("latest.json", SERIES)
    )
    sys.stdout.write(write(folder, results, background) + "\n")


if __name__ == "__main__":
    main()
