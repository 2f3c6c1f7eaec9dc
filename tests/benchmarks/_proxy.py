"""What the proxy costs: beside a pass-through that does nothing, and beside LiteLLM's.

All three stand before one upstream that answers at once, so that nothing hides behind a model. A
stream of one event tells what a call costs until its first byte, one of many what an event costs.
What a proxy adds is what it takes beyond the upstream itself.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import _peers
import _results
import _servers
from _metrics import Metric, Series, peer_metric

CONCURRENCIES = (1, 16, 64)
EVENTS = 500
SHORT, LONG = "stream-1", f"stream-{EVENTS}"
OURS, FLOOR, UPSTREAM, PEER = "process_proxy", "passthrough", "upstream", "litellm"
WITHIN, LESS = "<= 1.3", ">= 10"
LEAST_US = 0.1  # less is noise


def metrics() -> list[Metric]:
    """What is measured against the floor and the peer."""
    found = []
    for c in CONCURRENCIES:
        short, long = Series(OURS, SHORT, c), Series(OURS, LONG, c)
        found += [
            Metric(f"proxy_ttfb_c{c}_vs_passthrough", "first_p50_ns", short, floor(short), WITHIN),
            Metric(
                f"proxy_{EVENTS}_events_c{c}_vs_passthrough", "p50_ns", long, floor(long), WITHIN
            ),
            peer_metric("proxy_rate", "rate", short, Series(PEER, SHORT, c)),
        ]
    # Beyond one caller at a time its answers of many events take longer than a measurement.
    long = Series(OURS, LONG, 1)
    found.append(peer_metric("proxy_events_rate", "rate", long, Series(PEER, LONG, 1)))
    return found


def floor(ours: Series) -> Series:
    """The same through the pass-through."""
    return Series(FLOOR, ours.mode, ours.concurrency)


def direct(wanted: list[Metric]) -> list[Series]:
    """The upstream itself, wherever a proxy is measured."""
    of_proxy = [each.ours for each in wanted if each.ours.server == OURS]
    return [Series(UPSTREAM, each.mode, each.concurrency) for each in dict.fromkeys(of_proxy)]


def start(programs: dict[str, Path], stack: ExitStack) -> Iterator[_servers.Server]:
    """The upstream and the pass-through."""
    upstream, listen = _peers.upstream(), f"127.0.0.1:{_peers.free_port()}"
    command: list[str | Path] = [programs[UPSTREAM], "--listen", upstream]
    yield stack.enter_context(_servers.serving(UPSTREAM, upstream, command))
    command = [programs[FLOOR], "--listen", listen, "--upstream", upstream]
    yield stack.enter_context(_servers.serving(FLOOR, listen, command))


def overheads(found: _results.Found) -> dict[str, object]:
    """What LiteLLM's proxy adds beside ours: until the first byte, and for each event of many."""
    entries = {}
    for c in CONCURRENCIES:
        name = "proxy_overhead" if c == 1 else f"proxy_overhead_c{c}"
        entries[name] = added(found, Series(OURS, SHORT, c), "first_p50_ns", 1)
    entries["proxy_event_overhead"] = added(found, Series(OURS, LONG, 1), "p50_ns", EVENTS)
    return {
        f"{name}_litellm_vs_ours": _results.entry(pairs, "us", LESS)
        for name, pairs in entries.items()
        if pairs
    }


def added(
    found: _results.Found, ours: Series, field: str, events: int
) -> list[tuple[float, float]]:
    """Microseconds that either adds, the peer's first, once a round."""
    pairs = []
    for round_ in found.rounds:
        three = [Series(server, ours.mode, ours.concurrency) for server in (PEER, OURS, UPSTREAM)]
        if all(one in round_ for one in three):
            theirs, own, bare = (round_[one][field] / 1000 / events for one in three)
            pairs.append((max(theirs - bare, LEAST_US), max(own - bare, LEAST_US)))
    return pairs
