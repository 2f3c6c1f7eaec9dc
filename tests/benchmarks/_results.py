"""What a run has found: the entries of latest.json, the series behind them, a table for people."""

import dataclasses
import statistics
from dataclasses import dataclass, field
from typing import Any

import _machine
import _metrics
from _metrics import Metric, Series

LATENCIES = (  # those of the halves only where pairs were timed
    "p50_ns",
    "p99_ns",
    "reserve_p50_ns",
    "reserve_p99_ns",
    "commit_p50_ns",
    "commit_p99_ns",
    "first_p50_ns",
    "first_p99_ns",
    "rest_p50_ns",
    "rest_p99_ns",
)


@dataclass
class Found:
    """All measurements of one run."""

    rounds: list[dict[Series, dict[str, Any]]] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)  # peers, and why
    versions: dict[str, str] = field(default_factory=dict)  # of peers


def entry(pairs: list[tuple[float, float]], unit: str, goal: str | None) -> dict[str, Any]:
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


def entries(wanted: list[Metric], found: Found) -> dict[str, Any]:
    """Name → entry; where a peer is the floor, with what either side may lose."""
    results = {}
    for metric in wanted:
        pairs = [
            (metric.of(round_[metric.ours], metric.factor), metric.of(round_[metric.floor]))
            for round_ in found.rounds
        ]
        results[metric.name] = entry(pairs, metric.unit, metric.goal)
        if metric.is_against_a_peer:
            durability = {"ours": metric.ours.durability, "floor": metric.floor.durability}
            results[metric.name]["durability"] = durability
    return results


def lease_against_redis(ns: list[tuple[float, float]], found: Found) -> dict[str, Any]:
    """A lease's steps a second beside Redis's debits, pipelined; nothing where Redis is not."""
    redis = _metrics.pipelined(1)
    pairs = [
        (1e9 / step, round_[redis]["rate"])
        for (step, _), round_ in zip(ns, found.rounds, strict=False)
        if redis in round_
    ]
    name = "lease_debit_rate_vs_redis_pipelined"
    return {name: entry(pairs, "debits/s", ">= 1")} if pairs else {}


def series(found: Found) -> list[dict[str, Any]]:
    """Each series with its figures of every round: rates a second, latencies in microseconds."""
    every = []
    for each in found.rounds[0]:
        rounds = [round_[each] for round_ in found.rounds]
        figures = {
            name.replace("_ns", "_us"): [significant(one[name] / 1000) for one in rounds]
            for name in LATENCIES
            if name in rounds[0]
        }
        rates = [significant(one["rate"]) for one in rounds]
        every.append({**dataclasses.asdict(each), "rate": rates, **figures})
    return every


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
