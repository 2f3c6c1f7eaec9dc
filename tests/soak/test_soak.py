"""Hours at full load with everything on: memory and descriptors stay flat, and nothing is lost.

Short by default; BURSAR_LONG=1 makes it an hour, BURSAR_SOAK_S any time. It prints what it saw, and
with BURSAR_SOAK_FILE writes it there; how long calls took is told, not judged.
"""

import itertools
import json
import os
import re
import time
from pathlib import Path
from typing import Any, Final

import pytest
from support.certificates import Authority, Pair
from support.crowd import ASKED_TOKENS, Crowd, Place
from support.daemon import LONG
from support.lessee import Lessee
from support.ratelimits import rule
from support.receivers import Hook, webhook
from support.upstreams import RawUpstream, begin_stream, chunk, usage
from support.watched import GIB, Watched

import bursar

SOAK_S: Final = float(os.environ.get("BURSAR_SOAK_S", "3600" if LONG else "25"))
WARM_SHARE: Final = 0.25
SAMPLE_S: Final = 5.0
HOG_EVERY_S: Final = 10.0
GROWTH_BYTES_MAX: Final = (32 if SOAK_S >= 600 else 128) * 2**20
"""What memory may grow by from when it is warm: allocators keep some slack. A short run ends before
all of it is warm, on a busy host long before."""
DESCRIPTORS_MAX: Final = 16
"""The same of descriptors, and of threads: clients come and go."""
LIMIT: Final = 10**15
JOBS: Final = 1_000


def saying(connection: Any, _head: str, _body: bytes) -> None:
    """An upstream that streams some words and says what they cost."""
    begin_stream(connection)
    for _ in range(20):
        connection.sendall(chunk("word "))
    connection.sendall(chunk(finish="stop", usage=usage(ASKED_TOKENS - 20, 20)))
    connection.sendall(b"data: [DONE]\n\n")


def everything(upstream: str, pair: Pair, hook: dict[str, Any]) -> dict[str, Any]:
    """A configuration with all that there is."""
    local = [{"user": 40_001, "role": "agent", "account": "acme"}]
    upstreams = [{"name": "one", "api": "openai", "url": upstream}]
    tls = {"certificate": str(pair.certificate), "key": str(pair.key)}
    return {
        "server": {"tcp": "127.0.0.1:0", "tls": tls},
        "access": {"mode": "enforce", "local": local},
        "store": {"entry_retention": "5m"},
        "limits": {"account_idle": "20s"},
        "reservations": {"key_retention": "5s"},
        "rates": {"allow_unpriced": True},
        "proxy": {"listen": "127.0.0.1:0", "upstreams": upstreams},
        "dashboard": {"listen": "127.0.0.1:0"},
        "metrics": {"listen": "127.0.0.1:0"},
        "notify": {"webhooks": [hook]},
        "envoy": {"rules": [rule(["team"], "acme/{team}/agent")]},
        "watchdog": {"max_incidents": JOBS, "max_incidents_per_account": JOBS},
    }


def processes(root: int) -> list[int]:
    """A process and all that it has started."""
    found = [root]
    for pid in found:
        for task in Path(f"/proc/{pid}/task").glob("*/children"):
            found += [int(child) for child in task.read_text(encoding="ascii").split()]
    return found


def sample(watched: Watched) -> dict[str, Any]:
    """The daemon with its children at one moment."""
    pids = processes(watched.daemon.pid)
    statm = [Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1] for pid in pids]
    store = watched.daemon.store_path
    files = [*store.parent.glob(f"{store.name}*"), *store.parent.glob(f"{store.name}-log/*")]
    return {
        "at_s": round(time.monotonic(), 1),
        "rss_bytes": sum(map(int, statm)) * os.sysconf("SC_PAGE_SIZE"),
        "descriptors": sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in pids),
        "threads": sum(len(list(Path(f"/proc/{pid}/task").iterdir())) for pid in pids),
        "store_bytes": sum(one.stat().st_size for one in files if one.exists()),
    }


def percentile(values: list[int], share: float) -> int:
    """The value that so many are below or at."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


class Mayflies:
    """Agents on leases that are killed in the middle of a step, one after the other."""

    def __init__(self, target: str, folder: Path) -> None:
        self._target, self._journal = target, folder / "mayfly"
        self.least = self.most = self.count = 0

    def live_once(self) -> None:
        """One life; what it knows that it has debited, and that with its last step."""
        with Lessee(self._target, "acme/mayfly/agent", self._journal) as one:
            one.wait_for(200)
            one.kill9()
            done, about = one.debited()
        self.least, self.most, self.count = self.least + done, self.most + about, self.count + 1


def soak(watched: Watched, crowd: Crowd, mayflies: Mayflies) -> list[dict[str, Any]]:
    """Lets time pass; jobs and mayflies come and go; returns the samples."""
    begun = time.monotonic()
    samples, next_hog, hogs = [], begun, 0
    while time.monotonic() - begun < SOAK_S:
        if time.monotonic() >= next_hog:
            with watched.register("acme/hog/job", vram_bytes=2 * GIB):
                hogs += 1
                watched.ended("acme/hog", hogs)
            next_hog += HOG_EVERY_S
        mayflies.live_once()
        crowd.listen()
        samples.append(sample(watched))
        time.sleep(SAMPLE_S)
    print(f"{hogs} jobs were stopped, {mayflies.count} agents were killed")
    return samples


@pytest.mark.timeout(SOAK_S + 400)
def test_an_hour_of_everything_leaves_nothing_behind(tmp_path: Path) -> None:
    """Goal: no leak, no drift, no lost token, however long and whatever is mixed. Method: one
    daemon with every feature on and one client of each kind at once; the resident memory and the
    descriptors when it is warm are held against those at the end, balances against what the
    clients were told."""
    authority = Authority(tmp_path)
    pair = authority.issue("sidecar", addresses=["127.0.0.1"], server=True)
    with (
        RawUpstream(saying) as upstream,
        Hook() as hook,
        Watched(**everything(upstream.url, pair, webhook(tmp_path, hook))) as watched,
    ):
        client, daemon = watched.client, watched.daemon
        client.set_budget("acme", unit="tokens", limit=LIMIT)
        client.set_budget("acme", unit="tokens", limit=LIMIT, period="hour")
        client.set_budget("acme", unit="tokens", limit=LIMIT, period="rolling:10s")
        watched.limit_vram("acme/hog", GIB)
        token = client.tokens.create("soak", role=bursar.Role.AGENT, account="acme", ttl_s=86_400)
        observer = client.tokens.create("look", role=bursar.Role.OBSERVER, ttl_s=86_400)
        [tcp] = re.findall(r"(?<!/)127\.0\.0\.1:\d+", daemon.log)
        urls = dict(re.findall(r"(proxy|dashboard|metrics) on (http://[\d.:]+)/", daemon.log))
        place = Place(
            target=daemon.target,
            socket=daemon.socket_path,
            store=daemon.store_path,
            tcp=tcp,
            ca=authority.path,
            proxy=urls["proxy"],
            token=token.secret,
            page=urls["dashboard"],
            metrics=urls["metrics"],
            observer=observer.secret,
        )
        mayflies = Mayflies(place.target, tmp_path)
        crowd = Crowd(place)
        try:
            samples = soak(watched, crowd, mayflies)
            crowd.end()
        finally:
            crowd.kill()
        check_flat(samples, crowd.probes_us)
        check_books(client, crowd, mayflies)
        told = {name.partition(".")[0] for name in hook.names}
        assert told >= {"freeze", "unfreeze", "incident"}, told


def check_flat(samples: list[dict[str, Any]], probes_us: list[list[int]]) -> None:
    """Nothing has grown since it was warm; says how long calls took."""
    part = max(1, min(5, len(probes_us) // 3))
    slices = [one for one in probes_us if one]
    ends = [list(itertools.chain(*some)) for some in (slices[:part], slices[-part:])]
    p99_us = [percentile(one, 0.99) for one in ends]
    begun = samples[0]["at_s"]
    for one in samples:
        one["at_s"] = round(one["at_s"] - begun, 1)
    told = {
        "seconds": SOAK_S,
        "p99_us_first_and_last": p99_us,
        "p99_us_by_minute": [percentile(one, 0.99) for one in slices],
        "p99_ratio": round(p99_us[1] / p99_us[0], 3),
        "samples": samples[:: max(1, len(samples) // 60)],
    }
    print(json.dumps(told))
    if file := os.environ.get("BURSAR_SOAK_FILE"):
        Path(file).write_text(json.dumps(told, indent=1), encoding="utf-8")
    warm = samples[int(len(samples) * WARM_SHARE) :]
    third = len(warm) // 3 or 1
    bounds = {
        "rss_bytes": GROWTH_BYTES_MAX,
        "descriptors": DESCRIPTORS_MAX,
        "threads": DESCRIPTORS_MAX,
    }
    for what, most in bounds.items():
        before = max(one[what] for one in warm[:third])
        after = max(one[what] for one in warm[-third:])
        assert after - before <= most, f"{what}: {before} when warm, {after} at the end"


def check_books(client: bursar.Client, crowd: Crowd, mayflies: Mayflies) -> None:
    """What everybody was told that they spent is what was spent, and nothing is held."""
    told = sum(crowd.spent.values())
    deadline = time.monotonic() + 90
    while (whole := total_of(client)).held and time.monotonic() < deadline:
        time.sleep(0.2)
    assert whole.held == 0, whole
    known = (told + mayflies.least, told + mayflies.most)
    assert known[0] <= whole.spent <= known[1], (known, whole, crowd.spent)


def total_of(client: bursar.Client) -> bursar.Balance:
    """The budget of all tokens, for good."""
    balances = client.get_account("acme").balances
    return next(one for one in balances if one.unit == "tokens" and str(one.period) == "total")
