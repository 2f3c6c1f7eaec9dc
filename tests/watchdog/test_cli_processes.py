"""`bursar gpu`, `kill` and `incidents` against a server of our own making."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import pytest
from click.testing import CliRunner, Result
from support.processes import GIB, LISTING, FakeWatchdog, at, incident, serving

from bursar.cli import _output, cli
from bursar.v1 import process_pb2 as pr

OBSERVE = "mode observe: of itself, it stops only jobs that are to be enforced"
ENFORCE = "mode enforce: jobs that pass a hard limit are stopped"
MARK = "\N{REPLACEMENT CHARACTER}"


@pytest.fixture
def fake() -> FakeWatchdog:
    fake = FakeWatchdog()
    fake.answers["ListProcesses"] = [LISTING]
    return fake


@pytest.fixture
def target(fake: FakeWatchdog, tmp_path: Path) -> Iterator[str]:
    with serving(fake, f"unix:{tmp_path}/s") as address:
        yield address


def run(target: str, *arguments: str) -> Result:
    return CliRunner().invoke(cli, [*arguments, "--target", target])


def rows_below(output: str, column: str) -> list[str]:
    """The lines of the table that has this first column."""
    lines = iter(output.splitlines())
    for line in lines:
        if line.split()[:1] == [column]:
            break
    return list(iter(lambda: next(lines, ""), ""))


def test_gpu_shows_devices_processes_and_jobs(target: str, fake: FakeWatchdog) -> None:
    result = run(target, "gpu", "acme")
    assert result.exit_code == 0
    assert fake.requests == [pr.ListProcessesRequest(account="acme")]
    assert result.stdout.splitlines()[0] == f"watching 2 GPUs (driver 580.82), {OBSERVE}"
    seen, lost = rows_below(result.stdout, "GPU")
    assert seen.split()[:4] == ["0", "Test", "GPU", "##........"]
    assert "20 GiB of 80 GiB" in seen
    assert seen.split()[-3:] == ["37%", "2", "GiB"]
    assert "??????????" in lost
    assert lost.endswith("fell off the bus")
    trainer, nobody, sleeper = rows_below(result.stdout, "PID")
    assert f"python train.py{MARK}[2J" in trainer
    assert "\x1b" not in result.stdout
    assert trainer.rstrip().endswith("term")
    assert "acme/x/j1 its cgroup 0 9.5 GiB 36%" in " ".join(trainer.split())
    assert "unattributed" in nobody
    assert nobody.split()[-2:] == ["unknown", "unknown"]
    assert sleeper.split() == ["100", "sleep", "acme/y", "registered", "none"]
    [job] = rows_below(result.stdout, "JOB")
    assert "vram_bytes 8 GiB" in job
    assert "at most 2 h" in job


@pytest.mark.parametrize(
    ("watchdog", "expected"),
    [
        (
            pr.Watchdog(state="STATE_NO_NVML", mode="enforce", detail="no libnvidia-ml.so.1"),
            [
                f"no NVIDIA driver here: jobs are enforced, GPUs are not watched, {ENFORCE}",
                "note: no libnvidia-ml.so.1",
            ],
        ),
        (
            pr.Watchdog(state="STATE_BLIND", mode="observe"),
            [f"BLIND: what the GPUs do is unknown, seen never, {OBSERVE}"],
        ),
        (
            pr.Watchdog(state="STATE_WATCHING", mode="enforce", held_back="3 stops in\x1b 60 s"),
            [
                f"watching 0 GPUs, {ENFORCE}",
                f"HELD BACK, nobody is signalled for now: 3 stops in{MARK} 60 s",
            ],
        ),
        (pr.Watchdog(), ["the watchdog's state is not known to this version of bursar"]),
    ],
)
def test_gpu_says_first_what_the_watchdog_sees_and_does(
    target: str, fake: FakeWatchdog, watchdog: pr.Watchdog, expected: list[str]
) -> None:
    fake.answers["ListProcesses"] = [pr.ListProcessesResponse(watchdog=watchdog)]
    lines = run(target, "gpu").stdout.splitlines()
    assert lines[0].startswith(expected[0])
    assert lines[1 : len(expected)] == expected[1:]
    assert lines[-5:] == ["no GPUs", "", "no processes", "", "no jobs; `bursar run` starts one"]


def test_gpu_says_how_old_the_last_sight_is(target: str, fake: FakeWatchdog) -> None:
    watchdog = pr.Watchdog(state="STATE_BLIND", mode="observe")
    watchdog.sample_time.FromDatetime(datetime.now(UTC))
    fake.answers["ListProcesses"] = [pr.ListProcessesResponse(watchdog=watchdog)]
    assert "unknown, seen last " in run(target, "gpu").stdout


def test_gpu_as_json_has_integers_and_nulls(target: str) -> None:
    shown = json.loads(run(target, "gpu", "--json").stdout)
    assert shown["watchdog"]["state"] == "watching"
    assert [one["vram_used_bytes"] for one in shown["devices"]] == [20 * GIB, None]
    assert shown["processes"][0]["state"] == "term"
    assert shown["processes"][1]["source"] is None
    assert shown["jobs"][0]["limits"] == {"vram_bytes": 8 * GIB}


def test_gpu_on_a_terminal_goes_on_until_it_is_interrupted(target: str, fake: FakeWatchdog) -> None:
    controller, terminal = pty.openpty()
    command = [sys.executable, "-m", "bursar", "gpu", "--target", target]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "200", "LINES": "50"}
    with subprocess.Popen(command, stdout=terminal, stderr=terminal, env=environment) as process:
        os.close(terminal)
        output = b""
        deadline = time.monotonic() + 30
        while len(fake.requests) < 2 and time.monotonic() < deadline:
            output += os.read(controller, 65_536)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    os.close(controller)
    text = output.decode()
    assert "watching 2 GPUs" in text
    assert "\N{FULL BLOCK}" * 2 + "\N{LIGHT SHADE}" in text
    assert "Traceback" not in text
    assert f"python train.py{MARK}[2J" in text


def test_gpu_without_a_watchdog_ends_with_4(target: str, fake: FakeWatchdog) -> None:
    fake.failure = (grpc.StatusCode.UNAVAILABLE, "WATCHDOG_UNAVAILABLE")
    result = run(target, "gpu")
    assert (result.exit_code, result.stderr) == (4, "bursar: what happened\n")


def kill(fake: FakeWatchdog, *story: pr.Incident) -> None:
    """Lets a kill become this story: its answer, then what each listing tells."""
    fake.answers["KillProcess"] = [pr.KillProcessResponse(incident=story[0])]
    fake.answers["ListIncidents"] = [
        pr.ListIncidentsResponse(incidents=[incident(id="i0"), one]) for one in story[1:]
    ]


def test_kill_tells_each_step_once_until_the_end(target: str, fake: FakeWatchdog) -> None:
    changes: dict[str, Any] = {"cause": "CAUSE_OPERATOR", "reason": "too\x1bloud"}
    kill(fake, *(incident(count, **changes) for count in (1, 1, 3, 4)))
    result = run(target, "kill", "j1", "--reason", "too loud")
    assert result.exit_code == 0
    assert fake.requests[0] == pr.KillProcessRequest(job="j1", reason="too loud")
    assert fake.requests[1] == pr.ListIncidentsRequest(job="j1", page_size=100)
    assert result.stdout.splitlines() == [
        f"stopping train of acme/x/j1 (job j1, incident i1): asked for: too{MARK}loud",
        "         +0 ms  breach          vram_bytes passed",
        "        +12 ms  term            SIGTERM to 1 process",
        f"       +800 ms  verify          ended{MARK}",
        "       +1.81 s  reclaimed       not listed twice",
        "stopped, and its VRAM is back (9.5 GiB of 9.5 GiB, 1.81 s)",
    ]


def test_a_number_is_a_pid(target: str, fake: FakeWatchdog) -> None:
    kill(fake, incident())
    assert run(target, "kill", "4321").exit_code == 0
    assert fake.requests == [pr.KillProcessRequest(pid=4321)]


@pytest.mark.parametrize(
    ("state", "changes", "code", "says"),
    [
        ("RECLAIMED", {"vram_bytes": 0}, 0, "stopped (1.81 s)"),
        ("UNVERIFIED", {"vram_bytes": 0}, 0, "stopped (1.81 s)"),
        ("UNVERIFIED", {}, 1, "stopped; whether its VRAM is back cannot be seen"),
        (
            "RECLAIM_FAILED",
            {"vram_returned_bytes": 8 * GIB, "vram_quarantined_bytes": 3 * GIB // 2},
            1,
            "stopped, but its VRAM is not back: 1.5 GiB are quarantined (8 GiB of 9.5 GiB, ",
        ),
        ("UNKILLABLE", {}, 1, "NOT stopped, it survives SIGKILL"),
        ("CANCELLED", {}, 1, "not stopped: it came back under its limit before"),
        ("OBSERVED", {"end_time": None}, 1, "NOT stopped: nothing was signalled"),
    ],
)
def test_kill_ends_with_0_only_when_nothing_is_left(
    target: str, fake: FakeWatchdog, state: str, *, changes: dict[str, Any], code: int, says: str
) -> None:
    kill(fake, incident(state=f"STATE_{state}", **changes))
    for wait in ("--wait", "--no-wait"):
        result = run(target, "kill", "j1", wait)
        assert result.exit_code == code
        assert result.stdout.splitlines()[-1].startswith(says)


def test_kill_without_waiting_says_where_to_look(target: str, fake: FakeWatchdog) -> None:
    kill(fake, incident(1))
    result = run(target, "kill", "j1", "--no-wait")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1] == "it goes on; see: bursar incidents -v --job j1"
    assert len(fake.requests) == 1


def test_an_interrupted_kill_says_that_it_goes_on(
    target: str, fake: FakeWatchdog, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_s: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("bursar.cli.kill.time.sleep", interrupted)
    kill(fake, incident(1))
    result = run(target, "kill", "j1")
    assert result.exit_code == 1
    assert result.stdout.splitlines()[-1] == "it goes on; see: bursar incidents -v --job j1"


def test_kill_as_json_is_the_last_incident_alone(target: str, fake: FakeWatchdog) -> None:
    kill(fake, incident(1), incident(4))
    result = run(target, "kill", "j1", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["state"] == "reclaimed"


@pytest.mark.parametrize(
    ("status", "reason", "code"),
    [
        (grpc.StatusCode.NOT_FOUND, "PROCESS_NOT_FOUND", 5),
        (grpc.StatusCode.FAILED_PRECONDITION, "PROCESS_PROTECTED", 1),
    ],
)
def test_a_kill_that_is_refused_ends_with_its_code(
    target: str, fake: FakeWatchdog, status: grpc.StatusCode, reason: str, code: int
) -> None:
    fake.failure = (status, reason)
    result = run(target, "kill", "nobody")
    assert (result.exit_code, result.stderr) == (code, "bursar: what happened\n")


def test_incidents_are_a_table_of_why_and_what_came_back(target: str, fake: FakeWatchdog) -> None:
    fake.answers["ListIncidents"] = [pr.ListIncidentsResponse(incidents=[incident(), incident(1)])]
    result = run(target, "incidents", "acme", "--job", "j1", "--limit", "5")
    assert result.exit_code == 0
    assert fake.requests == [pr.ListIncidentsRequest(account="acme", job="j1", page_size=5)]
    header, first, second = result.stdout.splitlines()
    assert header.split() == ["WHEN", "ACCOUNT", "JOB", "WHY", "STATE", "CAME", "BACK", "TOOK"]
    assert " ".join(first.split()) == (
        "2026-05-01 12:00:00 acme/x/j1 train vram_bytes 9.5 GiB of 8 GiB reclaimed "
        "9.5 GiB of 9.5 GiB 1.81 s"
    )
    assert " ".join(second.split()).endswith("breach 0 B of 9.5 GiB goes on")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"limit_account": "acme"}, "vram_bytes 9.5 GiB of 8 GiB in acme"),
        ({"used": 8 * GIB + 1}, "vram_bytes 8,589,934,593 B of 8,589,934,592 B"),
        ({"unit": "usd_nanos", "limit": 10**10, "used": 12 * 10**9}, "usd_nanos $12.00 of $10.00"),
        ({"unit": "gpu_ms", "limit": 60_000, "used": 65_500}, "gpu_ms 1 min 5 s of 1 min"),
        (
            {"cause": "CAUSE_WALL_TIME", "limit": 7_200_000, "used": 7_260_000},
            "ran 2 h 1 min of 2 h",
        ),
        ({"cause": "CAUSE_OPERATOR", "reason": ""}, "asked for"),
        ({"cause": "CAUSE_UNSPECIFIED", "reason": "a guess"}, "a guess"),
    ],
)
def test_why_is_told_in_words(
    target: str, fake: FakeWatchdog, changes: dict[str, Any], why: str
) -> None:
    fake.answers["ListIncidents"] = [pr.ListIncidentsResponse(incidents=[incident(**changes)])]
    assert f"  {why}  " in run(target, "incidents").stdout


def test_a_verbose_incident_shows_each_step_since_the_breach(
    target: str, fake: FakeWatchdog
) -> None:
    fake.answers["ListIncidents"] = [pr.ListIncidentsResponse(incidents=[incident()])]
    assert run(target, "incidents", "-v").stdout.splitlines() == [
        "2026-05-01 12:00:00  acme/x/j1  train  vram_bytes 9.5 GiB of 8 GiB",
        "  incident i1, job j1",
        "  reason: over the limit",
        "  victim: pid 4321, 9.5 GiB, python train.py",
        "  outcome: reclaimed, 9.5 GiB of 9.5 GiB, 1.81 s",
        "         +0 ms  breach          vram_bytes passed",
        "        +12 ms  term            SIGTERM to 1 process",
        f"       +800 ms  verify          ended{MARK}",
        "       +1.81 s  reclaimed       not listed twice",
    ]


def test_incidents_stop_at_the_limit_and_zero_means_all(target: str, fake: FakeWatchdog) -> None:
    def pages() -> list[pr.ListIncidentsResponse]:
        first = pr.ListIncidentsResponse(incidents=[incident(), incident()], next_page_token="t")  # noqa: S106 -- no password
        return [first, pr.ListIncidentsResponse(incidents=[incident(id="i9")])]

    fake.answers["ListIncidents"] = pages()
    assert len(json.loads(run(target, "incidents", "--limit", "1", "--json").stdout)) == 1
    fake.answers["ListIncidents"] = pages()
    told = json.loads(run(target, "incidents", "--limit", "0", "--json").stdout)
    assert [one["id"] for one in told] == ["i1", "i1", "i9"]
    assert told[0]["victims"][0]["vram_bytes"] == 19 * GIB // 2


def test_bytes_that_nobody_told_are_unknown_and_not_zero() -> None:
    assert [_output.show_bytes(one) for one in (None, 0)] == ["unknown", "0 B"]


def test_the_time_of_a_step_before_the_breach_is_no_negative_number(
    target: str, fake: FakeWatchdog
) -> None:
    fake.answers["ListIncidents"] = [
        pr.ListIncidentsResponse(incidents=[incident(create_time=at(100))])
    ]
    assert "+0 ms  term" in run(target, "incidents", "-v").stdout
