"""A real Envoy with the example's configuration, in front of a model's server.

Goal: what `sidecar/examples/envoy` says is what happens. Method: Envoy's own binary asks a real
daemon; the server answers like a model's, with the usage that the test chooses.
"""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.ratelimits import envoy, model_server

import bursar
from bursar.daemon.config import load_config
from bursar.testing import Sidecar

yaml = pytest.importorskip("yaml")


class Behind:
    """The example, served: an HTTP client of Envoy and a client of the sidecar."""

    def __init__(self, sidecar: Sidecar, edge: httpx.Client, client: bursar.Client) -> None:
        self.sidecar = sidecar
        self.client = client
        self._edge = edge

    def post(self, agent: str, use: int, *, team: str = "core") -> httpx.Response:
        """A request of an agent, whose answer says that it used so much."""
        headers = {"x-team": team, "x-agent": agent, "x-use": str(use)}
        return self._edge.post("/v1/chat/completions", json={"model": "m"}, headers=headers)

    def bare(self) -> httpx.Response:
        """A request that does not say whose it is."""
        return self._edge.post("/v1/chat/completions", json={})

    def tokens(self, account: str) -> int:
        """What is spent of an account's tokens."""
        balances = self.client.get_account(account).balances
        return next(one.spent for one in balances if one.unit == "tokens")

    def settled(self, account: str, spent: int) -> None:
        """Waits until so many tokens are spent: Envoy charges them after the answer."""
        deadline = time.monotonic() + 20
        while (seen := self.tokens(account)) != spent:
            assert time.monotonic() < deadline, f"{seen} tokens are spent, not {spent}"
            time.sleep(0.02)


@pytest.fixture(scope="module")
def example(project: Path) -> Path:
    return project / "sidecar/examples/envoy"


@pytest.fixture
def behind(example: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Behind]:
    """The example; a parameter is the format of the hits at the end of an answer."""
    text = (example / "bursar.toml").read_text(encoding="utf-8")
    config: dict[str, Any] = yaml.safe_load((example / "envoy.yaml").read_text(encoding="utf-8"))
    if hasattr(request, "param"):
        at_the_end(config)["hits_addend"]["format"] = request.param
    with Sidecar(text) as sidecar, model_server() as port, sidecar.client() as client:
        for cluster in config["static_resources"]["clusters"]:
            [endpoint] = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]
            address = endpoint["endpoint"]["address"]
            if "pipe" in address:
                address["pipe"]["path"] = str(sidecar.socket_path)
            else:
                address["socket_address"]["port_value"] = port
        with envoy(config, tmp_path) as edge:
            yield Behind(sidecar, edge, client)


def at_the_end(config: dict[str, Any]) -> dict[str, Any]:
    """The example's last rate limit."""
    [chain] = config["static_resources"]["listeners"][0]["filter_chains"]
    [host] = chain["filters"][0]["typed_config"]["route_config"]["virtual_hosts"]
    per_filter = host["routes"][0]["typed_per_filter_config"]
    limit: dict[str, Any] = per_filter["envoy.filters.http.ratelimit"]["rate_limits"][-1]
    assert limit["apply_on_stream_done"]
    return limit


def test_the_example_is_valid(example: Path) -> None:
    config = load_config(example / "bursar.toml")
    assert [rule.over for rule in config.envoy.rules] == ["record", "refuse"]


def test_a_request_is_let_through_and_charged_what_its_answer_says(behind: Behind) -> None:
    answer = behind.post("a1", 321)
    assert answer.status_code == 200
    assert answer.headers["x-ratelimit-limit"].startswith("600, 100000;w=3600")
    assert answer.headers["x-ratelimit-remaining"] == "599"
    behind.settled("acme/core/a1", 321)
    assert behind.tokens("acme/core") == 321
    behind.post("a1", 1_000)
    behind.settled("acme/core/a1", 1_321)


@pytest.mark.parametrize("behind", ["%RESP(x-total-tokens)%"], indirect=True)
def test_a_header_of_the_answer_may_say_what_it_used(behind: Behind) -> None:
    assert behind.post("a1", 77).status_code == 200
    behind.settled("acme/core/a1", 77)


def test_an_answer_may_pass_the_limit_in_full_and_the_next_request_is_refused(
    behind: Behind,
) -> None:
    behind.client.set_budget("acme/core/a2", unit="tokens", limit=500, period="hour")
    assert behind.post("a2", 499).status_code == 200
    behind.settled("acme/core/a2", 499)
    assert behind.post("a2", 2_000).status_code == 200, "one token is left"
    behind.settled("acme/core/a2", 2_499)
    refused = behind.post("a2", 1)
    assert refused.status_code == 429
    assert refused.headers["x-budget-account"] == "acme/core/a2"
    assert refused.headers["x-should-retry"] == "false"
    assert refused.headers["content-type"] == "application/json"
    assert refused.json()["error"]["code"] == "budget_exceeded"
    assert behind.post("a3", 1).status_code == 200, "another agent goes on"
    behind.settled("acme/core", 2_500)


def test_a_refused_request_costs_no_call_and_calls_are_counted_before_they_go_on(
    behind: Behind,
) -> None:
    behind.client.set_budget("acme/small", unit="calls", limit=2)
    behind.client.set_budget("acme/small/broke", unit="tokens", limit=0)
    assert behind.post("broke", 1, team="small").status_code == 429
    assert behind.post("a", 1, team="small").status_code == 200
    assert behind.post("a", 1, team="small").status_code == 200
    refused = behind.post("a", 1, team="small")
    assert (refused.status_code, refused.headers["x-budget-unit"]) == (429, "calls")
    behind.settled("acme/small", 2)


def test_who_says_nothing_or_makes_up_a_name_is_not_let_through(behind: Behind) -> None:
    assert behind.bare().status_code == 400
    for name in ("../rival", "a/b", "a b", "x" * 65):
        assert behind.post(name, 1).status_code == 429, name
    assert list(behind.client.list_accounts("acme/rival")) == []


def test_a_frozen_account_is_refused_at_once(behind: Behind) -> None:
    assert behind.post("a4", 1).status_code == 200
    behind.client.freeze("acme/core", reason="runaway")
    refused = behind.post("a4", 1)
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "account_frozen")
    behind.client.unfreeze("acme/core")
    assert behind.post("a4", 1).status_code == 200


def test_an_answer_that_does_not_say_what_it_used_is_not_charged(behind: Behind) -> None:
    """Envoy sends nothing then; the example says so."""
    assert behind.post("a5", -1).status_code == 200
    assert behind.post("a5", 7).status_code == 200
    behind.settled("acme/core/a5", 7)


def test_without_a_sidecar_nothing_is_let_through(behind: Behind) -> None:
    assert behind.post("a6", 5).status_code == 200
    behind.settled("acme/core/a6", 5)
    behind.sidecar.kill9()
    assert behind.post("a6", 5).status_code == 500
    behind.sidecar.start()
    deadline = time.monotonic() + 20
    while behind.post("a6", 5).status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    behind.settled("acme/core/a6", 10)


def test_many_requests_are_all_charged(behind: Behind) -> None:
    behind.client.set_budget("acme/busy", unit="calls", limit=200)
    behind.client.set_budget("acme/busy", unit="tokens", limit=10**9)
    with ThreadPoolExecutor(8) as pool:
        posts = pool.map(lambda _: behind.post("b", 11, team="busy").status_code, range(250))
        answers = list(posts)
    assert (answers.count(200), answers.count(429)) == (200, 50)
    behind.settled("acme/busy", 200 * 11)
    assert balance_of_calls(behind.client) == 0


def balance_of_calls(client: bursar.Client) -> int:
    """What is left of the calls."""
    balances = client.get_account("acme/busy").balances
    return min(one.remaining for one in balances if one.unit == "calls" and one.limit == 200)
