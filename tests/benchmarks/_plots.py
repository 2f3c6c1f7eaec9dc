"""The plots of a run: one column for each concurrency, rates above, 99th percentiles below.

Bars and dots are medians over the rounds, lines go from the least to the most. Needs matplotlib,
which the extra `bench` brings.
"""

import statistics
from pathlib import Path
from typing import Any

import matplotlib as mpl
from _metrics import CONCURRENCIES, Series
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

OURS, THEIRS = "#1f6f8b", "#b0b7bd"
# Figure → its title, what to know beside it, and its rows from the top: (label, server, mode).
FIGURES = {
    "pairs": (
        "Reserve and Commit: pairs a second, and the 99th percentile of a pair",
        "kill -9: Redis without AOF loses all; power cut: Bursar default 10 ms, everysec 1 s",
        [
            ("Bursar, default", "process", "pair"),
            ("Redis, no AOF", "redis", "redis-pair"),
            ("Redis, AOF everysec", "redis_aof_everysec", "redis-pair"),
            ("Bursar, power", "power", "pair"),
            ("Redis, AOF always", "redis_aof_always", "redis-pair"),
        ],
    ),
    "limiters": (
        "Reserve against one check and addition: calls a second, and their 99th percentile",
        "kill -9: Bursar loses nothing, the others all they know; they have no holds and one level",
        [
            ("Bursar, Unix", "process", "reserve"),
            ("Envoy ratelimit, Unix", "envoy_ratelimit", "rate-limit"),
            ("Bursar, TCP", "process_tcp", "reserve"),
            ("Limitador, TCP", "limitador", "rate-limit"),
            ("Gubernator, TCP", "gubernator", "hits"),
        ],
    ),
}


def draw(folder: Path, measured: dict[Series, dict[str, Any]]) -> list[str]:
    """Writes those whose peers were measured; their names."""
    # The same figures give the same file, and text stays text.
    mpl.rcParams.update({"svg.hashsalt": "bursar", "svg.fonttype": "none", "font.size": 9})
    drawn = []
    for name, (title, note, shown) in FIGURES.items():
        there = [each for each in shown if Series(each[1], each[2], 1) in measured]
        if len(there) > 1:
            figure = plot((title, note), there, measured)
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
            drawn.append(name)
    return drawn


def plot(
    texts: tuple[str, str],
    shown: list[tuple[str, str, str]],
    measured: dict[Series, dict[str, Any]],
) -> Figure:
    """One figure."""
    figure = Figure(figsize=(11, 1.8 + 0.62 * len(shown)), layout="constrained")
    figure.suptitle(texts[0], fontsize=11)
    figure.supxlabel(texts[1], fontsize=8, color="#444444")
    rows = figure.subplots(2, len(CONCURRENCIES), sharey=True)
    for rates, latencies, concurrency in zip(*rows, CONCURRENCIES, strict=True):
        series = [measured[Series(server, mode, concurrency)] for _, server, mode in shown]
        colours = [OURS if label.startswith("Bursar") else THEIRS for label, _, _ in shown]
        bars(rates, [each["rate"] for each in series], colours)
        rates.set_title(f"c = {concurrency}")
        dots(latencies, [each["p99_us"] for each in series], colours)
        for axes in (rates, latencies):
            axes.set_yticks(range(len(shown)), [label for label, _, _ in shown])
            axes.spines[["top", "right"]].set_visible(False)
            axes.set_ylim(len(shown) - 0.5, -0.5)
    rows[0][0].set_ylabel("rate, 1/s")
    rows[1][0].set_ylabel("p99, µs")
    return figure


def bars(axes: Axes, rounds: list[list[float]], colours: list[str]) -> None:
    """Medians from zero, each with its figure."""
    for at, (values, colour) in enumerate(zip(rounds, colours, strict=True)):
        median = statistics.median_low(values)
        axes.barh(at, median, color=colour, height=0.62)
        axes.hlines(at, min(values), max(values), color="black", linewidth=1)
        axes.annotate(
            f"{median:,.0f}",
            (max(values), at),
            xytext=(4, 0),
            textcoords="offset points",
            verticalalignment="center",
        )
    axes.set_xlim(0, 1.28 * max(max(values) for values in rounds))
    axes.xaxis.set_major_formatter(short)


def short(value: float, _position: object = None) -> str:
    """A tick's label: 500, 20k."""
    return f"{value / 1000:g}k" if value >= 1000 else f"{value:g}"


def dots(axes: Axes, rounds: list[list[float]], colours: list[str]) -> None:
    """Medians on a logarithmic scale, each with its figure."""
    for at, (values, colour) in enumerate(zip(rounds, colours, strict=True)):
        median = statistics.median_low(values)
        axes.hlines(at, min(values), max(values), color="black", linewidth=1)
        axes.plot(median, at, "o", color=colour, markeredgecolor="black", markeredgewidth=0.5)
        axes.annotate(
            f"{median:,.0f}",
            (max(values), at),
            xytext=(5, 0),
            textcoords="offset points",
            verticalalignment="center",
        )
    axes.set_xscale("log")
    least, most = min(map(min, rounds)), max(map(max, rounds))
    axes.set_xlim(least / 1.6, most * 3)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(short)
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="x", color="#e3e6e8", linewidth=0.6)
    axes.set_axisbelow(True)
