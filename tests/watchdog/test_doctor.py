"""`bursar doctor` without a store says what this host lets the watchdog do, and what to do."""

import errno
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from support.gpu import GIB, StandIn

from bursar.care import host
from bursar.care.findings import Finding, Outcome
from bursar.cli import cli
from bursar.watchdog import cgroups
from bursar.watchdog.samples import DeviceSample, Health, Sample


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    with StandIn() as stand_in:
        for name in ("LD_LIBRARY_PATH", "NVML_STAND_IN"):
            monkeypatch.setenv(name, stand_in.env()[name])
        yield stand_in


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["doctor", *arguments])


def found(what: str) -> Finding:
    [one] = [one for one in host.look() if one.what == what]
    return one


def gpus(sample: Sample) -> dict[str, Finding]:
    return {one.what: one for one in host._gpus(sample)}


def refuse(number: int) -> Callable[..., None]:
    def refused(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return refused


def test_everything_is_told_in_lines_and_as_json(machine: StandIn) -> None:
    machine.add_gpu()
    told = run()
    assert told.exit_code == 0
    assert "ok       NVML: answers, and counts 1 GPU or instance" in told.stdout
    assert "ok       driver: 550.54.15" in told.stdout
    shown = json.loads(run("--json").stdout)
    host = ["pid namespace", "cgroup v2", "CAP_KILL", "CAP_SYS_PTRACE", "pidfd"]
    assert [one["what"] for one in shown] == ["NVML", "driver", "process lists", *host]


def test_lists_with_a_process_have_a_layout_that_is_trusted(machine: StandIn) -> None:
    machine.set_process(os.getpid(), machine.add_gpu(), vram_bytes=GIB)
    told = found("process lists")
    assert (told.outcome, told.advice) == (Outcome.OK, "")
    assert "can be trusted" in told.detail


def test_lists_that_cannot_be_trusted_are_said_with_the_reason() -> None:
    device = DeviceSample(uuid="GPU-1", index=0)
    told = gpus(Sample(0, Health.WATCHING, (device,), detail="strange pids"))["process lists"]
    assert (told.outcome, told.detail) == (Outcome.WARN, "strange pids")
    told = gpus(Sample(0, Health.WATCHING, (device,)))["process lists"]
    assert (told.outcome, told.detail) == (Outcome.WARN, "not there on GPU-1")


def test_a_gpu_that_is_lost_is_named(machine: StandIn) -> None:
    machine.add_gpu()
    machine.lose(machine.add_gpu())
    told = found("GPUs")
    assert told.outcome is Outcome.WARN
    assert told.detail.startswith("GPU 1, ")


def test_without_nvml_it_says_what_to_install() -> None:
    told = gpus(Sample(0, Health.NO_NVML, detail="no library"))
    assert list(told) == ["NVML"]
    assert told["NVML"].outcome is Outcome.WARN
    assert "no library" in told["NVML"].detail
    assert "bursar-sidecar[gpu]" in told["NVML"].advice


def test_an_nvml_that_does_not_answer_is_told_apart_from_none() -> None:
    told = gpus(Sample(0, Health.BLIND, detail="NVML has not answered for 3 s"))
    assert told["NVML"].detail == "NVML has not answered for 3 s"
    assert "nvidia-smi" in told["NVML"].advice


@pytest.mark.parametrize("is_host", [True, False])
def test_another_pid_namespace_is_a_limit(
    monkeypatch: pytest.MonkeyPatch, *, is_host: bool
) -> None:
    monkeypatch.setattr(host, "in_host_pid_namespace", lambda: is_host)
    told = host._namespace()
    assert told.outcome is (Outcome.OK if is_host else Outcome.WARN)
    assert ("hostPID" in told.advice) is not is_host


def test_a_cgroup_that_was_made_to_see_is_gone_again(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    monkeypatch.setattr(cgroups, "make", lambda name: f"/a/{name}")
    monkeypatch.setattr(cgroups, "remove", steps.append)
    assert host._cgroup().outcome is Outcome.OK
    assert steps == ["/a/doctor"]


def test_where_no_cgroup_can_be_made_it_says_how_to_delegate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cgroups, "make", refuse(errno.EACCES))
    told = host._cgroup()
    assert told.outcome is Outcome.WARN
    assert "Permission denied" in told.detail
    assert "Delegate=yes" in told.advice


@pytest.mark.parametrize(
    ("effective", "outcome"), [("000001ffffffffff", Outcome.OK), ("0" * 16, Outcome.WARN)]
)
def test_without_cap_kill_only_own_jobs_can_be_stopped(
    monkeypatch: pytest.MonkeyPatch, effective: str, outcome: Outcome
) -> None:
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: f"Name:\tx\nCapEff:\t{effective}\n")
    assert host._programs().outcome is outcome
    told = host._cap_kill()
    assert told.outcome is outcome
    assert (f"user {os.getuid()}" in told.detail) is (outcome is Outcome.WARN)


def test_without_pidfds_nothing_can_be_stopped_and_it_ends_with_1(
    machine: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert found("pidfd").outcome is Outcome.OK
    monkeypatch.setattr(os, "pidfd_open", refuse(errno.ENOSYS))
    told = run()
    assert told.exit_code == 1
    assert "broken   pidfd: not supported" in told.stdout
