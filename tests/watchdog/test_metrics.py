"""`bursar gpu --metrics` is OpenMetrics as Prometheus's own parser reads it."""

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
from click.testing import CliRunner, Result
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from support.processes import BREACH_TIME, GIB, LISTING, FakeWatchdog, incident, serving
from support.watched import Watched

from bursar import _process_convert
from bursar.cli import cli
from bursar.processes import Incident, Processes
from bursar.v1 import process_pb2 as pr
from bursar.watchdog import figures

Found = dict[tuple[str, frozenset[tuple[str, str]]], float]


def read(text: str) -> Found:
    """Every sample by name and labels, as the parser sees it."""
    found: Found = {}
    for family in text_string_to_metric_families(text):  # type: ignore[no-untyped-call]
        for sample in family.samples:
            key = sample.name, frozenset(sample.labels.items())
            assert key not in found
            found[key] = sample.value
    return found


def told(found: Processes, *incidents: Incident, after_s: float = 2.5) -> Found:
    now = BREACH_TIME + timedelta(seconds=after_s)
    return read(figures.exposition(found, incidents, now=now))


def one(found: Found, name: str, /, **labels: str) -> float | None:
    """The value of one sample, without `bursar_gpu_`."""
    return found.get((f"bursar_gpu_{name}", frozenset(labels.items())))


def listing(**changes: object) -> Processes:
    return replace(_process_convert.listing(LISTING), **changes)  # type: ignore[arg-type]


def run(target: str, *arguments: str) -> Result:
    return CliRunner().invoke(cli, ["gpu", *arguments, "--target", target])


@pytest.fixture
def fake() -> FakeWatchdog:
    fake = FakeWatchdog()
    fake.answers["ListProcesses"] = [LISTING]
    fake.answers["ListIncidents"] = [pr.ListIncidentsResponse(incidents=[incident()])]
    return fake


@pytest.fixture
def target(fake: FakeWatchdog, tmp_path: Path) -> Iterator[str]:
    with serving(fake, f"unix:{tmp_path}/s") as address:
        yield address


def test_the_command_writes_what_the_parser_reads(target: str, fake: FakeWatchdog) -> None:
    result = run(target, "acme", "--metrics")
    assert result.exit_code == 0
    assert result.stdout.endswith("\n# EOF\n")
    assert one(read(result.stdout), "jobs") == 1
    assert {type(request).__name__: request.account for request in fake.requests} == {
        "ListIncidentsRequest": "acme",
        "ListProcessesRequest": "acme",
    }


def test_metrics_and_json_exclude_each_other(target: str) -> None:
    assert run(target, "--metrics", "--json").exit_code == 2


def test_without_a_watchdog_nothing_is_written(target: str, fake: FakeWatchdog) -> None:
    fake.failure = (grpc.StatusCode.UNAVAILABLE, "WATCHDOG_UNAVAILABLE")
    result = run(target, "--metrics")
    assert (result.exit_code, result.stdout) == (4, "")


def test_json_has_the_meters(target: str, fake: FakeWatchdog) -> None:
    metered = {"account": "acme", "amounts": [{"unit": "energy_mj", "value": 5}]}
    fake.answers["ListProcesses"] = [pr.ListProcessesResponse(metered=[metered])]
    assert json.loads(run(target, "--json").stdout)["metered"] == {"acme": {"energy_mj": 5}}


def test_a_device_has_its_figures_and_what_is_unknown_is_absent() -> None:
    found = listing()
    seen, lost = found.devices
    figures = told(found)
    labels = {"uuid": seen.uuid, "index": "0", "name": seen.name}
    assert one(figures, "device_vram_total_bytes", **labels) == 80 * GIB
    assert one(figures, "device_vram_used_bytes", **labels) == 20 * GIB
    assert one(figures, "device_vram_quarantined_bytes", **labels) == 2 * GIB
    assert one(figures, "device_busy_ratio", **labels) == 0.37
    assert one(figures, "device_seen", **labels) == 1
    labels = {"uuid": lost.uuid, "index": str(lost.index), "name": lost.name}
    assert one(figures, "device_seen", **labels) == 0
    assert one(figures, "device_vram_used_bytes", **labels) is None
    assert one(figures, "device_busy_ratio", **labels) is None


def test_an_account_has_its_memory_and_its_meters() -> None:
    meters = {
        "gpu_alloc_ms": 1, "gpu_busy_ms": 2, "gpu_estimated_ms": 3, "vram_mib_s": 4, "energy_mj": 5,
    }  # fmt: skip
    figures = told(listing(metered={"acme/x": meters, "": {"host_idle_mj": 6}}))
    assert one(figures, "vram_bytes", account="acme/x/j1") == 19 * GIB // 2
    names = ("alloc_ms", "busy_ms", "estimated_ms", "vram_mib_s", "energy_mj")
    seen = [one(figures, f"{name}_total", account="acme/x") for name in names]
    assert seen == [1, 2, 3, 4, 5]
    assert one(figures, "host_idle_mj_total", account="…unattributed") == 6


def test_accounts_beyond_the_bound_are_summed() -> None:
    """The many that used least go together, and nothing is lost in the sum."""
    count = figures.ACCOUNTS_MAX + 5
    metered = {f"a/{n}": {"gpu_alloc_ms": n, "energy_mj": 1} for n in range(1, count + 1)}
    found = told(listing(processes=(), metered=metered | {"": {"gpu_alloc_ms": 0}}))
    alloc = {key: value for key, value in found.items() if key[0] == "bursar_gpu_alloc_ms_total"}
    assert len(alloc) == figures.ACCOUNTS_MAX + 2
    assert sum(alloc.values()) == sum(range(1, count + 1))
    assert one(found, "alloc_ms_total", account="…other") == 1 + 2 + 3 + 4 + 5
    assert one(found, "energy_mj_total", account="…other") == 5
    assert one(found, "alloc_ms_total", account=f"a/{count}") == count


@pytest.mark.parametrize("name", ['a"b', "a\\b", "a\nb", "a\\nb", '\\"', "a{b}=1,", "naïve\x1b[2J"])
def test_a_name_comes_out_as_it_went_in(name: str) -> None:
    found = listing()
    device = replace(found.devices[0], name=name)
    figures = told(replace(found, devices=(device,)))
    assert one(figures, "device_seen", uuid=device.uuid, index="0", name=name) == 1


def test_incidents_are_counted_while_something_is_still_to_come() -> None:
    states = ["TERM", "TERM", "RECLAIM_FAILED", "RECLAIMED", "OBSERVED", "CANCELLED"]
    wires = [incident(state=f"STATE_{state}") for state in states]
    figures = told(listing(), *map(_process_convert.incident, wires))
    counts = {dict(key[1])["state"]: value for key, value in figures.items()
              if key[0] == "bursar_gpu_incidents_open"}  # fmt: skip
    assert counts == {
        "breach": 0, "term": 2, "kill": 0, "verify": 0, "unverified": 0, "reclaim_failed": 1,
        "unkillable": 0,
    }  # fmt: skip


def test_the_watchdog_tells_its_state_and_the_age_of_its_sample() -> None:
    found = listing()
    figures = told(found)
    assert one(figures, "watchdog_state", state="watching") == 1
    assert one(figures, "watchdog_state", state="blind") == 0
    assert one(figures, "watchdog_enforces") == 0
    assert one(figures, "watchdog_held_back") == 0
    assert one(figures, "sample_age_seconds") == 2.5
    assert one(told(found, after_s=-1), "sample_age_seconds") == 0
    watchdog = replace(found.watchdog, sample_time=None, mode="enforce", held_back="why")
    figures = told(replace(found, watchdog=watchdog))
    assert one(figures, "sample_age_seconds") is None
    assert one(figures, "watchdog_enforces") == 1
    assert one(figures, "watchdog_held_back") == 1


def test_a_real_daemon_is_scraped_with_its_gpu_and_its_meters() -> None:
    with Watched() as watched:
        watched.register("acme/x", vram_bytes=3 * GIB)
        deadline = time.monotonic() + 20
        figures: Found = {}
        while not one(figures, "alloc_ms_total", account="acme/x"):
            assert time.monotonic() < deadline
            time.sleep(0.1)
            figures = read(run(watched.daemon.target, "--metrics").stdout)
    assert one(figures, "vram_bytes", account="acme/x") == 3 * GIB
    assert one(figures, "watchdog_state", state="watching") == 1
    assert one(figures, "watchdog_enforces") == 1
    assert one(figures, "jobs") == 1
