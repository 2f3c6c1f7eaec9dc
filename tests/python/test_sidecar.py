"""A real sidecar process: it starts, drains, survives kill -9, and the CLI speaks to it."""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator

import grpc
import pytest

import bursar
from bursar.testing import Sidecar
from bursar.v1 import ledger_pb2


@pytest.fixture
def sidecar() -> Iterator[Sidecar]:
    with Sidecar() as running:
        yield running


def cli(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "bursar", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_what_was_answered_survives_kill_9(sidecar: Sidecar) -> None:
    with sidecar.client() as client:
        client.set_budget("acme", unit="tokens", limit=100)
        kept = client.reserve("acme/a", tokens=30, ttl_s=600)
        with client.reserve("acme/a", tokens=30) as reservation:
            reservation.commit(tokens=20)
        sidecar.kill9()
        sidecar.start()
        [balance] = client.get_account("acme").balances
        assert (balance.limit, balance.held, balance.spent) == (100, 30, 20)
        assert client.commit(kept.id, tokens=5).spent == {"tokens": 5}


def test_a_client_waits_out_a_restart(sidecar: Sidecar) -> None:
    with sidecar.client() as client:
        client.set_budget("acme", unit="tokens", limit=100)
        sidecar.restart()
        assert client.reserve("acme/a", tokens=30).granted == {"tokens": 30}


def test_sigterm_drains_keeps_holds_and_says_so(sidecar: Sidecar) -> None:
    with sidecar.client() as client:
        client.set_budget("acme", unit="tokens", limit=100)
        client.reserve("acme/a", tokens=30, ttl_s=600)
    assert sidecar.terminate() == 0
    assert f"listening on {sidecar.target}" in sidecar.log
    assert "SIGTERM: draining" in sidecar.log
    assert "drained after" in sidecar.log
    assert not sidecar.socket_path.exists()
    sidecar.start()
    with sidecar.client() as client:
        [balance] = client.get_account("acme").balances
        assert balance.held == 30


def test_a_sidecar_that_cannot_start_says_why() -> None:
    broken = Sidecar("[server]\nsoket = 1\n")
    with pytest.raises(bursar.SidecarUnavailable, match="did you mean socket"), broken:
        pass
    assert not broken.folder.exists()


def test_the_socket_has_its_mode(sidecar: Sidecar) -> None:
    assert sidecar.socket_path.stat().st_mode & 0o777 == 0o660


def eventually(sidecar: Sidecar) -> Iterator[str]:
    """The lines of the log, and those that come within five seconds."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        yield from sidecar.log.splitlines()
        time.sleep(0.02)


def test_tcp_on_loopback_serves_too() -> None:
    config = {"server": {"tcp": "127.0.0.1:0"}, "accounts": [{"path": "**"}]}
    with Sidecar(config) as sidecar:
        line = next(one for one in eventually(sidecar) if "listening" in one)
        target = line.rpartition(", ")[2]
        with bursar.connect(target) as client:
            assert client.set_budget("acme", unit="tokens", limit=5).remaining == 5


def test_bare_stubs_are_served_with_the_right_authority(sidecar: Sidecar) -> None:
    options = [("grpc.default_authority", "localhost")]
    with grpc.insecure_channel(sidecar.target, options=options) as channel:
        count = channel.unary_unary(
            "/bursar.v1.LedgerService/CountTokens",
            request_serializer=ledger_pb2.CountTokensRequest.SerializeToString,
            response_deserializer=ledger_pb2.CountTokensResponse.FromString,
        )
        request = ledger_pb2.CountTokensRequest(model="o200k_base", text="hello world")
        assert count(request, timeout=10).token_count == 2


def test_the_async_client_reserves_concurrently(sidecar: Sidecar) -> None:
    async def one(client: bursar.AsyncClient) -> bool:
        try:
            await client.reserve("acme/a", tokens=1)
        except bursar.BudgetExceeded:
            return False
        return True

    async def run() -> int:
        async with sidecar.client_async(timeout_s=30) as client:
            await client.set_budget("acme", unit="tokens", limit=100)
            return sum(await asyncio.gather(*(one(client) for _ in range(500))))

    assert asyncio.run(run()) == 100


def test_the_command_line_sets_shows_and_freezes(sidecar: Sidecar) -> None:
    """Goal: the operator's day. Method: every account command, as a process, on one sidecar."""
    target = ("--target", sidecar.target)
    made = cli(
        "account", "set", "acme", "--unit", "usd_nanos", "--period", "day", "--limit", "25.00 USD",
        "--warn-at", "80", *target,
    )  # fmt: skip
    assert (made.returncode, made.stderr) == (0, "")
    assert "$25.00" in made.stdout
    shown = json.loads(cli("account", "show", "acme", "--json", *target).stdout)
    assert shown["balances"][0]["limit"] == 25_000_000_000
    assert shown["budgets"][0]["thresholds"][0]["permille"] == 800
    assert cli("account", "freeze", "acme", "--reason", "audit", *target).returncode == 0
    assert "frozen (audit)" in cli("account", "show", "acme", *target).stdout
    assert cli("account", "unfreeze", "acme", *target).returncode == 0
    listed = json.loads(cli("account", "list", "--json", *target).stdout)
    assert [account["path"] for account in listed] == ["acme"]
    retired = cli("account", "retire", "acme", *target)
    assert (retired.returncode, retired.stdout) == (0, "acme has retired\n")
    assert json.loads(cli("account", "list", "--json", *target).stdout) == []
    missing = cli("account", "show", "nobody", *target)
    assert missing.returncode == 5
    assert missing.stderr.startswith("bursar: ")


def test_the_log_is_read_from_the_sidecar_and_from_the_store_at_rest(sidecar: Sidecar) -> None:
    with sidecar.client() as client:
        client.set_budget("acme", unit="tokens", limit=100)
        with client.reserve("acme/a", tokens=30) as reservation:
            reservation.commit(tokens=20)
    online = cli("log", "acme", "--json", "--limit", "0", "--target", sidecar.target)
    kinds = [entry["kind"] for entry in json.loads(online.stdout)]
    assert {"limit", "hold", "spend", "return"} <= set(kinds)
    busy = cli("log", "--store", str(sidecar.store_path))
    assert busy.returncode != 0, "two processes must not have one store open"
    sidecar.terminate()
    offline = cli("log", "acme", "--json", "--limit", "0", "--store", str(sidecar.store_path))
    assert offline.stdout == online.stdout


def test_doctor_finds_a_store_at_rest_whole(sidecar: Sidecar) -> None:
    with sidecar.client() as client:
        client.set_budget("acme", unit="tokens", limit=100)
    sidecar.kill9()
    told = cli("doctor", str(sidecar.store_path))
    assert told.returncode == 0, told.stderr
    assert "whole" in told.stdout
    assert json.loads(cli("doctor", "--json", str(sidecar.store_path)).stdout)["ok"] is True


def test_a_limit_that_an_operator_set_stays_and_the_start_says_so() -> None:
    budget = {"unit": "tokens", "period": "hour", "limit": 100}
    with Sidecar({"accounts": [{"path": "acme", "budgets": [budget]}]}) as sidecar:
        with sidecar.client() as client:
            client.set_budget("acme", unit="tokens", period="hour", limit=300)
        changed = sidecar.config_path.read_text(encoding="utf-8").replace("100", "200")
        sidecar.config_path.write_text(changed, encoding="utf-8")
        sidecar.restart()
        said = (
            "acme: the limit of 300 tokens, period hour, was set by an operator and stays; the "
            "configuration's 200 does not count: `bursar account set` changes it"
        )
        assert said in sidecar.log
        with sidecar.client() as client:
            assert client.get_account("acme").balances[0].limit == 300


def test_a_second_sidecar_does_not_take_the_store(sidecar: Sidecar) -> None:
    second = Sidecar()
    second.store_path = sidecar.store_path
    with pytest.raises(bursar.SidecarUnavailable), second:
        pass
    with sidecar.client() as client:
        assert list(client.list_accounts()) == []
