"""The projects of sidecar/examples/clients: built as their READMEs say, and run.

Goal: what users copy works, on a Unix socket and by TLS with a token. Method: the three say the
same of the same budget, and the ledger agrees.
"""

import itertools
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any, Final, cast

import grpc
import pytest
from support.bare import Bare
from support.certificates import Authority
from support.daemon import Daemon, balance
from support.toolchains import RUN_S, Workshop

import bursar
from bursar import Advice, Role, Threshold, Verdict
from bursar.v1 import ledger_pb2_grpc

pytestmark = pytest.mark.timeout(400)  # the first test of a language builds its program

Agent = Callable[..., "subprocess.CompletedProcess[str]"]

SOURCES: Final = "sidecar/examples/clients"
NUMBERS: Final = itertools.count()
WARN: Final = Threshold(500, Verdict.WARN, Advice(temperature=0.25))
DEGRADE: Final = Threshold(900, Verdict.DEGRADE, Advice(max_new_tokens=5))


def go(project: Path) -> list[str]:
    shop = Workshop(project, "go", "go", sources=SOURCES)
    shop.fetch("go", "mod", "download")
    protoc = f"PROTOC={sys.executable} -m grpc_tools.protoc"
    shop.make("env", protoc, f"PROTO={shop.proto}", "./generate.sh")
    assert shop.make("gofmt", "-l", "main.go") == ""
    shop.make("go", "vet", ".")
    shop.make("go", "build", "-buildvcs=false", "-o", "agent", ".")
    return [str(shop.folder / "agent")]


def node(project: Path) -> list[str]:
    shop = Workshop(project, "node", "node", "npm", sources=SOURCES)
    shop.fetch("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--fetch-retries=1")
    shop.make("env", f"PROTO={shop.proto}", "npm", "run", "generate")
    return ["node", str(shop.folder / "agent.js")]


def java(project: Path) -> list[str]:
    shop = Workshop(project, "java", "java", "javac", "mvn", sources=SOURCES)
    maven = ("mvn", "--batch-mode", "--no-transfer-progress", "--quiet", f"-Dproto={shop.proto}")
    shop.fetch(*maven, "compile", "dependency:copy-dependencies")
    built = shop.folder / "target"
    return ["java", "-cp", f"{built / 'classes'}:{built / 'dependency'}/*", "Agent"]


@pytest.fixture(scope="module", params=[go, node, java], ids=lambda build: build.__name__)
def agent(request: pytest.FixtureRequest, project: Path) -> Agent:
    """Runs a program: `agent(target, account, tokens, BURSAR_TOKEN=…)`."""
    command = request.param(project)

    def run(
        target: str, *arguments: str | int, **environment: str
    ) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [*command, *map(str, arguments)],
            env=os.environ | {"BURSAR_TARGET": target} | environment,
            capture_output=True,
            text=True,
            timeout=RUN_S,
            check=False,
        )

    return run


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def daemon(authority: Authority) -> Iterator[Daemon]:
    pair = authority.issue("server", dns=["localhost"], addresses=["127.0.0.1"], server=True)
    tls = {"certificate": str(pair.certificate), "key": str(pair.key)}
    server = {"tcp": "127.0.0.1:0", "tls": tls}
    with Daemon(server=server, access={"mode": "enforce"}) as daemon:
        yield daemon


@pytest.fixture
def client(daemon: Daemon) -> Iterator[bursar.Client]:
    with daemon.client() as client:
        yield client


@pytest.fixture
def budget(client: bursar.Client) -> str:
    """An account with a budget of 100 tokens that warns at half of it."""
    path = f"budget-{next(NUMBERS)}"
    client.set_budget(path, unit="tokens", limit=100, thresholds=[WARN])
    return path


def test_an_agent_follows_the_advice_and_is_cut_off_at_the_limit(
    agent: Agent, daemon: Daemon, client: bursar.Client, budget: str
) -> None:
    ran = agent(daemon.target, f"{budget}/agent", 200)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines() == [
        "reserved 100 of 200 tokens",
        "50 tokens: VERDICT_WARN",
        "temperature 0.25",
        "100 tokens: VERDICT_STOP, REASON_HOLD_EXHAUSTED",
        "spent 100 tokens",
    ]
    assert balance(client, budget) == (0, 100, 0)
    again = agent(daemon.target, f"{budget}/agent", 200)
    assert (again.returncode, again.stdout) == (1, "")
    assert again.stderr.splitlines() == [f"refused by {budget}: REASON_BUDGET_EXHAUSTED"]


def test_an_agent_that_degrades_ends_before_it_is_stopped(
    agent: Agent, daemon: Daemon, client: bursar.Client, budget: str
) -> None:
    client.set_budget(budget, unit="tokens", limit=100, thresholds=[WARN, DEGRADE])
    ran = agent(daemon.target, f"{budget}/agent", 200)
    assert ran.returncode == 0, ran.stderr
    said = ["90 tokens: VERDICT_DEGRADE", "at most 95 tokens", "spent 95 tokens"]
    assert ran.stdout.splitlines()[-3:] == said
    assert balance(client, budget) == (0, 95, 5)


class Freezing(ledger_pb2_grpc.LedgerServiceServicer):
    """Passes calls on; freezes an account once something is reserved there."""

    def __init__(self, ledger: Bare, client: bursar.Client) -> None:
        self._ledger, self._client = ledger, client

    def Reserve(self, request: Any, _: Any) -> Any:  # noqa: N802 -- as the proto
        answer = self._ledger("LedgerService/Reserve", request)
        self._client.freeze(request.account)
        return answer

    def Debit(self, request: Any, _: Any) -> Any:  # noqa: N802 -- as the proto
        return self._ledger("LedgerService/Debit", request)

    def Commit(self, request: Any, _: Any) -> Any:  # noqa: N802 -- as the proto
        return self._ledger("LedgerService/Commit", request)


def test_an_agent_that_is_stopped_before_it_spends_anything_says_so(
    agent: Agent, daemon: Daemon, client: bursar.Client, budget: str, tmp_path: Path
) -> None:
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=1))
    add = cast("Callable[..., None]", ledger_pb2_grpc.add_LedgerServiceServicer_to_server)
    target = f"unix:{tmp_path}/s"
    with Bare(daemon.target) as ledger:
        add(Freezing(ledger, client), server)
        server.add_insecure_port(target)
        server.start()
        ran = agent(target, f"{budget}/agent", 30)
        server.stop(grace=None).wait()
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines() == [
        "reserved 30 of 30 tokens",
        "0 tokens: VERDICT_STOP, REASON_ACCOUNT_FROZEN",
        "spent 0 tokens",
    ]
    assert balance(client, budget) == (0, 0, 100)


def test_an_agent_on_another_host_shows_its_token_by_tls(
    agent: Agent, authority: Authority, daemon: Daemon, client: bursar.Client, budget: str
) -> None:
    [target] = set(re.findall(r"127\.0\.0\.1:\d+", daemon.log))
    trusted = {"BURSAR_TLS_CA": str(authority.path)}
    made = client.tokens.create("remote", role=Role.AGENT, account=budget, ttl_s=600)
    ran = agent(target, f"{budget}/agent", 30, **trusted, BURSAR_TOKEN=made.secret)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines() == ["reserved 30 of 30 tokens", "spent 30 tokens"]
    unknown = agent(target, f"{budget}/agent", 30, **trusted)
    assert unknown.returncode == 1
    assert "needs a token" in unknown.stderr
    assert balance(client, budget) == (0, 30, 70)


def test_an_agent_that_is_not_told_what_it_needs_says_what(agent: Agent) -> None:
    for ran in (agent("unix:/nowhere"), agent("", "acme/research/agent-7", 500)):
        assert (ran.returncode, ran.stdout) == (1, "")
        assert ran.stderr.startswith("usage: BURSAR_TARGET=")


def test_go_stubs_without_a_compiler_say_how_to_get_one(project: Path) -> None:
    script = project / SOURCES / "go/generate.sh"
    environment = os.environ | {"PROTOC": "no-such-compiler"}
    ran = subprocess.run([script], env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert "there is no no-such-compiler: install it" in ran.stderr


def test_lock_files_of_the_examples_name_no_registry(project: Path) -> None:
    folder = project / SOURCES
    assert '"resolved"' not in (folder / "node/package-lock.json").read_text(encoding="utf-8")
    assert "://" not in (folder / "go/go.sum").read_text(encoding="utf-8")
