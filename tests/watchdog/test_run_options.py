"""The options of `bursar run`, and how an incident is told. Nothing is started here."""

from datetime import timedelta
from typing import Any

import pytest
from click.testing import CliRunner, Result
from support.processes import BREACH_TIME

from bursar.cli import _words, cli
from bursar.processes import Incident, IncidentCause, IncidentState, IncidentStep
from bursar.watchdog import launch

GIB = 2**30


@pytest.fixture
def orders(monkeypatch: pytest.MonkeyPatch) -> list[launch.Order]:
    seen: list[launch.Order] = []

    def run(order: launch.Order, **_: Any) -> int:
        seen.append(order)
        return 9

    monkeypatch.setattr(launch, "run", run)
    return seen


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["run", *arguments])


def test_what_follows_the_command_is_the_commands_own(orders: list[launch.Order]) -> None:
    command = ("python", "train.py", "--account", "theirs", "--lr", "1", "--", "x")
    assert invoke("--account", "a", *command).exit_code == 9
    assert invoke("--account", "a", "--", *command).exit_code == 9
    assert [one.command for one in orders] == [command, command]
    assert {one.account for one in orders} == {"a"}


def test_the_account_of_a_job_is_that_of_the_jobs_within(orders: list[launch.Order]) -> None:
    assert CliRunner().invoke(cli, ["run", "true"], env={"BURSAR_ACCOUNT": "a/j"}).exit_code == 9
    assert orders[0].account == "a/j"


@pytest.mark.parametrize(
    ("command", "name"),
    [("/usr/bin/python3.11", "python3.11"), ("./my job!", "my-job-"), ("x" * 99, "x" * 64)],
)
def test_the_name_is_made_of_the_command(
    orders: list[launch.Order], command: str, name: str
) -> None:
    invoke("--account", "a", command)
    assert orders[0].name == name


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("usd=0.000000001", ("usd_nanos", 1)),
        ("usd=12.50", ("usd_nanos", 12_500_000_000)),
        ("usd_nanos=7", ("usd_nanos", 7)),
        ("calls=3", ("calls", 3)),
        ("vram_bytes=8 GiB", ("vram_bytes", 8 * GIB)),
        ("energy_mj=2 kJ", ("energy_mj", 2_000_000)),
    ],
)
def test_a_limit_is_exact(orders: list[launch.Order], text: str, limit: tuple[str, int]) -> None:
    assert invoke("--account", "a", "--limit", text, "true").exit_code == 9
    assert orders[0].limits == dict([limit])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--limit", "usd=0.0000000001"], "write dollars such as usd=5"),
        (["--limit", "tokens"], "write an integer such as 2_000_000"),
        (["--limit", "coins=5"], "no such unit: coins"),
        (["--limit", "calls=1", "--limit", "calls=2"], "one is given twice"),
        (["--vram", "8GiB", "--limit", "vram_bytes=1"], "one is given twice"),
        (["--vram", "much"], "'much' is no amount"),
        (["--wall", "1"], "'1' is no duration"),
        (["--name", "a b"], "write 1 to 64 letters, digits and ._-"),
        (["--unknown"], "No such option"),
    ],
)
def test_what_is_wrong_is_said_before_anything_starts(
    orders: list[launch.Order], options: list[str], says: str
) -> None:
    result = invoke("--account", "a", *options, "true")
    assert result.exit_code == 2
    assert says in " ".join(result.stderr.replace("\u2502", " ").split())
    assert orders == []


def test_a_command_is_needed(orders: list[launch.Order]) -> None:
    assert invoke("--account", "a").exit_code == 2
    assert invoke("--account", "a", "--target", "nonsense", "true").exit_code == 2
    assert orders == []


def told(**changes: Any) -> str:
    values: dict[str, Any] = {
        "id": "i1",
        "state": IncidentState.RECLAIMED,
        "account": "acme/x/train-1",
        "job": "j1",
        "job_name": "train",
        "cause": IncidentCause.BUDGET,
        "limit_account": "acme/x/train-1",
        "unit": "vram_bytes",
        "limit": 8 * GIB,
        "used": 19 * GIB // 2,
        "reason": "",
        "steps": (
            IncidentStep(IncidentState.BREACH, BREACH_TIME, ""),
            IncidentStep(IncidentState.TERM, BREACH_TIME + timedelta(seconds=0.3), ""),
            IncidentStep(IncidentState.KILL, BREACH_TIME + timedelta(seconds=10.3), ""),
        ),
        "victims": (),
        "vram_bytes": 19 * GIB // 2,
        "vram_returned_bytes": 19 * GIB // 2,
        "vram_quarantined_bytes": 0,
        "create_time": BREACH_TIME,
        "end_time": BREACH_TIME + timedelta(seconds=10.8),
        **changes,
    }
    return _words.in_words(Incident(**values))


def test_an_incident_is_one_sentence() -> None:
    assert told() == (
        "stopped acme/x/train-1: VRAM of 9.5 GiB passed the limit of 8 GiB; "
        "SIGTERM after 300 ms, SIGKILL after 10.3 s; 9.5 GiB came back after 10.8 s"
    )


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"limit_account": "acme"}, "passed the limit of 8 GiB of acme;"),
        ({"used": 8 * GIB + 1}, "VRAM of 8,589,934,593 B passed the limit of 8,589,934,592 B;"),
        ({"unit": "tokens", "used": 5, "limit": 5}, "5 tokens reached the limit of 5;"),
        (
            {"cause": IncidentCause.WALL_TIME, "used": 61_000, "limit": 60_000},
            "train-1: it ran for 1 min 1 s and may run for 1 min;",
        ),
        ({"cause": IncidentCause.OPERATOR}, "train-1: somebody asked for it;"),
        ({"cause": IncidentCause.OPERATOR, "reason": "why"}, "somebody asked for it: why;"),
        ({"cause": IncidentCause.UNKNOWN}, "train-1: the reason is not known;"),
        ({"vram_returned_bytes": 0}, "10.3 s; over after 10.8 s"),
        ({"state": IncidentState.UNVERIFIED}, "NVML cannot tell whether its VRAM came back"),
        (
            {"state": IncidentState.RECLAIM_FAILED, "vram_quarantined_bytes": GIB},
            "; 1 GiB did not come back and are quarantined",
        ),
        ({"state": IncidentState.UNKILLABLE}, "; a process survives SIGKILL"),
        ({"state": IncidentState.OBSERVED}, "would have stopped acme/x/train-1: VRAM of"),
        ({"state": IncidentState.CANCELLED}, "was about to stop acme/x/train-1"),
        (
            {"state": IncidentState.OBSERVED, "reason": "mode observe", "steps": ()},
            "passed the limit of 8 GiB; nothing was signalled: mode observe",
        ),
        ({"state": IncidentState.KILL, "end_time": None}, "; that is not over yet"),
        ({"create_time": None}, "SIGTERM, SIGKILL; 9.5 GiB came back"),
    ],
)
def test_every_cause_and_outcome_has_words(changes: dict[str, Any], says: str) -> None:
    assert says in told(**changes)


def test_every_state_can_be_told() -> None:
    for state in IncidentState:
        assert "acme/x/train-1" in told(state=state)
