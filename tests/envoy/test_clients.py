"""Clients that Envoy's project publishes: its stubs in Go, and the client of its own service."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import toolchains
from support.daemon import Daemon, balance
from support.ratelimits import rule
from support.toolchains import Workshop

pytestmark = pytest.mark.timeout(400)  # the first test builds the programs


@pytest.fixture(scope="session")
def go(project: Path) -> Workshop:
    return toolchains.go_envoy(project)


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    rules = [rule(["team", "agent"], "acme/{team}/{agent}"), rule(["used"], "acme/{used}")]
    rules[1]["over"] = "record"
    budgets = [{"unit": "tokens", "period": "hour", "limit": 100}]
    accounts = [{"path": "acme/*/*", "budgets": budgets}, {"path": "acme/*"}]
    server = {"tcp": "127.0.0.1:0"}
    with Daemon(server=server, envoy={"rules": rules}, accounts=accounts) as daemon:
        yield daemon


def ran(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_client_on_envoys_stubs_reads_every_field(go: Workshop, daemon: Daemon) -> None:
    def ask(hits: int, *descriptors: str) -> dict[str, Any]:
        program = str(go.folder / "client")
        answer: dict[str, Any] = json.loads(
            ran(program, daemon.target, "edge", str(hits), *descriptors)
        )
        return answer

    answer = ask(60, "team=core,agent=go", "used=go#7")
    assert answer["overallCode"] == "OK"
    first, second = answer["statuses"]
    assert first["currentLimit"] == {
        "name": "acme/core/go tokens",
        "requestsPerUnit": 100,
        "unit": "HOUR",
    }
    assert first["limitRemaining"] == 40
    assert first["durationUntilReset"].endswith("s")
    assert second == {"code": "OK", "limitRemaining": 2**32 - 1}
    answer = ask(41, "team=core,agent=go", "used=go#0")
    assert answer["overallCode"] == "OVER_LIMIT"
    assert [status["code"] for status in answer["statuses"]] == ["OVER_LIMIT", "OK"]
    keys = {header["key"] for header in answer["responseHeadersToAdd"]}
    assert keys >= {"x-budget-account", "x-budget-unit", "x-budget-reset"}
    with daemon.client() as client:
        assert balance(client, "acme/core/go") == (0, 60, 40)


def test_the_client_of_envoys_own_service_is_answered(go: Workshop, daemon: Daemon) -> None:
    """Its hits are always one."""
    [listening] = [line for line in daemon.log.splitlines() if "listening on" in line]
    options = ["-dial_string", listening.rpartition(", ")[2], "-domain", "edge"]
    program = str(go.folder / "client_cmd")
    said = ran(program, *options, "-descriptors", "team=core,agent=cmd")
    assert "overall_code:OK" in said.replace(" ", "")
    with daemon.client() as client:
        assert balance(client, "acme/core/cmd") == (0, 1, 99)
        client.set_budget("acme/core/cmd", unit="tokens", period="hour", limit=1)
    said = ran(program, *options, "-descriptors", "team=core,agent=cmd")
    assert "overall_code:OVER_LIMIT" in said.replace(" ", "")


def test_the_program_is_formatted_and_vetted(go: Workshop) -> None:
    assert go.make("gofmt", "-l", "main.go") == ""
    go.make("go", "vet", ".")
