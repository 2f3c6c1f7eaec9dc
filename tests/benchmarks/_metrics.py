"""What is measured and what with: pairs of a series of the sidecar's and its floor.

The floor is the empty server, or a peer. Goals for peers say no more than "not worse".
"""

from dataclasses import dataclass
from typing import Any

import _peers

CONCURRENCIES = (1, 8, 64)
DURABILITY = {  # of the sidecar, by the setting
    "process": "kill -9 loses nothing; a power cut about 10 ms",
    "power": "neither kill -9 nor a power cut loses anything",
    "memory": "kill -9 loses what is not yet imported",
}
WINDOW = 16  # calls under way of a caller whose transport can have several
NOT_WORSE = {"rate": ">= 1", "p99_ns": "<= 1"}


@dataclass(frozen=True)
class Series:
    """What is measured once a round."""

    server: str  # a durability of the sidecar's, with `_tcp` or `_proxy`; a floor; or a peer
    mode: str
    concurrency: int
    window: int = 1  # calls under way at a time, by each of the concurrent

    @property
    def is_pinned(self) -> bool:
        """Whether client and server share one CPU."""
        return self.concurrency == 1

    @property
    def durability(self) -> str:
        """What its server loses."""
        if self.server in _peers.peers():
            return _peers.peers()[self.server].durability
        return DURABILITY[self.setting]

    @property
    def setting(self) -> str:
        """Of a sidecar: its durability's."""
        return self.server.partition("_")[0]


@dataclass(frozen=True)
class Metric:
    """A figure and its floor: the same field of two series."""

    name: str
    field: str
    ours: Series
    floor: Series
    goal: str | None = None
    factor: int = 1  # calls per timed call

    @property
    def unit(self) -> str:
        """What is counted."""
        if self.field != "rate":
            return "us"
        return "pairs/s" if self.ours.mode == "pair" else "calls/s"

    @property
    def is_against_a_peer(self) -> bool:
        """Whether the floor is a server that does something itself."""
        return self.floor.server not in {"echo", "passthrough"}

    def of(self, measured: dict[str, Any], factor: int = 1) -> float:
        """The figure in its unit."""
        value = float(measured[self.field]) * factor
        return value if self.field == "rate" else value / 1000


def metrics() -> list[Metric]:
    """All that is measured over the wire; the goals first."""
    return against_echo() + against_unary() + against_redis() + against_limiters()


def against_unary() -> list[Metric]:
    """What a Meter stream saves: the same debits, several under way."""
    found = []
    for c in CONCURRENCIES[:2]:
        meter, unary = Series("process", "meter", c, WINDOW), Series("process", "debit", c)
        name = "meter_vs_unary_debit" if c == 1 else f"meter_c{c}_vs_unary_debit"
        found.append(Metric(name, "rate", meter, unary, ">= 5" if c == 1 else None))
    return found


def against_echo() -> list[Metric]:
    """What the ledger costs beyond an empty call."""
    reserve, commit, debit = (
        {c: Series("process", mode, c) for c in CONCURRENCIES}
        for mode in ("reserve", "commit", "debit")
    )
    power, memory = (
        {c: Series(durability, "reserve", c) for c in (1, 64)} for durability in ("power", "memory")
    )

    def metric(
        name: str, field: str, ours: Series, goal: str | None = None, factor: int = 1
    ) -> Metric:
        floor = Series("echo", "echo", ours.concurrency)
        return Metric(f"{name}_vs_echo", field, ours, floor, goal, factor)

    return [
        metric("reserve_p50_c1", "p50_ns", reserve[1], "<= 1.2"),
        metric("reserve_rate_c64", "rate", reserve[64], ">= 0.8"),
        metric("reserve_p99_c64", "p99_ns", reserve[64], "<= 1.5"),
        metric("reserve_p50_c8", "p50_ns", reserve[8]),
        metric("reserve_rate_c8", "rate", reserve[8]),
        metric("commit_p50_c1", "p50_ns", commit[1]),
        metric("commit_p99_c64", "p99_ns", commit[64]),
        metric("reserve_and_commit_rate_c64", "rate", commit[64], factor=2),
        metric("debit_p50_c1", "p50_ns", debit[1]),
        metric("debit_rate_c64", "rate", debit[64]),
        metric("power_reserve_p50_c1", "p50_ns", power[1]),
        metric("power_reserve_rate_c64", "rate", power[64]),
        metric("memory_reserve_p50_c1", "p50_ns", memory[1]),
        metric("memory_reserve_rate_c64", "rate", memory[64]),
    ]


def against_redis() -> list[Metric]:
    """Reserve and Commit, and Debit, against what a Lua script does."""
    found = []
    for c in CONCURRENCIES:
        pair, power = Series("process", "pair", c), Series("power", "pair", c)
        debit, spending = Series("process", "debit", c), Series("redis", "redis-debit", c)
        redis, everysec, always = (
            Series(name, "redis-pair", c)
            for name in ("redis", "redis_aof_everysec", "redis_aof_always")
        )
        found += [
            peer_metric("pair_rate", "rate", pair, redis),
            peer_metric("pair_p99", "p99_ns", pair, redis),
            peer_metric("pair_rate", "rate", pair, everysec),
            peer_metric("power_pair_rate", "rate", power, always),
            peer_metric("debit_rate", "rate", debit, spending),
        ]
    for c in CONCURRENCIES[:2]:
        meter = Series("process", "meter", c, WINDOW)
        found.append(peer_metric("meter_rate", "rate", meter, pipelined(c)))
    return found


def pipelined(concurrency: int) -> Series:
    """Redis's debits, several under way on a connection."""
    return Series("redis", "redis-debit", concurrency, WINDOW)


def against_limiters() -> list[Metric]:
    """Reserve against one check and addition, over the same transport."""
    found = []
    for name in ("limitador", "envoy_ratelimit", "gubernator"):
        peer = _peers.peers()[name]
        server = "process_tcp" if peer.transport == "TCP" else "process"
        for c in CONCURRENCIES:
            ours, theirs = Series(server, "reserve", c), Series(name, peer.mode, c)
            found += [
                peer_metric("reserve_rate", "rate", ours, theirs),
                peer_metric("reserve_p99", "p99_ns", ours, theirs),
            ]
    return found


def peer_metric(figure: str, field: str, ours: Series, theirs: Series) -> Metric:
    """One figure against a peer."""
    name = f"{figure}_c{ours.concurrency}_vs_{theirs.server}"
    return Metric(name, field, ours, theirs, NOT_WORSE[field])
