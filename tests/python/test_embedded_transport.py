"""The embedded transport's own part, against an engine of our own making."""

import itertools
import json
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest

import bursar
from bursar.daemon.config import Config, StoreSection
from bursar.v1 import account_pb2, ledger_pb2


class FakeCoreError(Exception):
    """Carries what the extension's error carries."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code, self.reason, self.message, self.metadata = code, reason, "m", {"account": "a"}


class FakeEngine:
    """Answers from a function, and keeps what it was made and asked with."""

    answer: Callable[[str, bytes], bytes]

    def __init__(self, config_json: str) -> None:
        self.config = json.loads(config_json)
        self.closed = 0
        engines.append(self)

    def call(self, method: str, request: bytes) -> bytes:
        return type(self).answer(method, request)

    def close(self) -> None:
        self.closed += 1


engines: list[FakeEngine] = []


@pytest.fixture(autouse=True)
def fake_core(monkeypatch: pytest.MonkeyPatch) -> None:
    engines.clear()
    core = types.ModuleType("bursar._core")
    vars(core).update(Engine=FakeEngine, CoreError=FakeCoreError)
    monkeypatch.setitem(sys.modules, "bursar._core", core)
    monkeypatch.setattr(bursar, "_core", core, raising=False)


def answers(monkeypatch: pytest.MonkeyPatch, function: Callable[[str, bytes], bytes]) -> None:
    monkeypatch.setattr(FakeEngine, "answer", staticmethod(function), raising=False)


def test_open_without_anything_is_in_memory_and_takes_any_account() -> None:
    with bursar.open():
        pass
    [engine] = engines
    assert engine.config["store"] == {
        "path": None,
        "durability": "memory",
        "entry_retention_s": 2_592_000,
        "sync_interval_ms": 10,
        "min_free_bytes": 256 * 2**20,
    }
    assert engine.config["accounts"] == [{"path": "**", "budgets": []}]
    assert "listen" not in engine.config
    assert engine.closed == 1


def test_open_with_a_path_keeps_the_ledger_there(tmp_path: Path) -> None:
    client = bursar.open(tmp_path / "ledger.db")
    client.close()
    client.close()
    [engine] = engines
    assert engine.config["store"]["path"] == str(tmp_path / "ledger.db")
    assert engine.config["store"]["durability"] == "process"
    assert engine.closed == 1


def test_open_with_a_file_uses_its_configuration(tmp_path: Path) -> None:
    file = tmp_path / "bursar.toml"
    file.write_text('[[accounts]]\npath = "acme/*"\n[limits]\nmax_accounts = 7', encoding="utf-8")
    bursar.open(tmp_path / "ledger.db", config=file).close()
    assert engines[0].config["limits"]["max_accounts"] == 7
    assert engines[0].config["accounts"][0]["path"] == "acme/*"


@pytest.mark.parametrize(
    ("store", "kept_at"),
    [
        ("", None),
        ('[store]\nsync_interval = "20ms"', None),
        ('[store]\npath = ""', None),
        ('[store]\npath = "mine.db"', "mine.db"),
    ],
)
def test_open_without_a_path_keeps_the_ledger_only_where_the_configuration_names(
    tmp_path: Path, store: str, kept_at: str | None
) -> None:
    file = tmp_path / "bursar.toml"
    file.write_text(store, encoding="utf-8")
    bursar.open(config=file).close()
    path = engines[0].config["store"]["path"]
    assert path == (None if kept_at is None else str(tmp_path / kept_at))


def test_open_with_a_configuration_of_ones_own_does_not_take_the_daemons_store() -> None:
    bursar.open(config=Config()).close()
    bursar.open(config=Config(store=StoreSection(durability="power"))).close()
    assert [engine.config["store"]["path"] for engine in engines] == [None, None]


def test_a_call_goes_through_as_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(method: str, request: bytes) -> bytes:
        assert method == "LedgerService/CountTokens"
        assert ledger_pb2.CountTokensRequest.FromString(request).text == "hello"
        return ledger_pb2.CountTokensResponse(token_count=1, encoding="e").SerializeToString()

    answers(monkeypatch, answer)
    with bursar.open() as client:
        assert client.count_tokens("m", text="hello") == bursar.TokenCount(1, "e")
    with pytest.raises(bursar.SidecarUnavailable, match="the client is closed"):
        client.count_tokens("m", text="hello")


def test_an_error_of_the_core_becomes_the_same_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(_method: str, _request: bytes) -> bytes:
        raise FakeCoreError("NOT_FOUND", "ACCOUNT_NOT_FOUND")

    answers(monkeypatch, answer)
    with bursar.open() as client, pytest.raises(bursar.AccountNotFound) as caught:
        client.get_account("a")
    assert (caught.value.code, caught.value.account) == ("NOT_FOUND", "a")


def test_a_watch_tells_what_the_engine_saw_and_ends_with_the_client(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Goal: silence is not a message, and a closed client is no loop without an end."""
    looks = iter(
        [
            account_pb2.WatchAccountsResponse(accounts=[account_pb2.Account(path="a")]),
            None,
            account_pb2.WatchAccountsResponse(retired=["b"]),
        ]
    )

    def look(_engine: FakeEngine, watch: str) -> bytes | None:
        assert watch == "acme"
        seen = next(looks)
        return None if seen is None else seen.SerializeToString()

    monkeypatch.setattr(FakeEngine, "look", look, raising=False)
    monkeypatch.setattr(sys.modules["bursar._core"], "Watch", str, raising=False)
    with bursar.open() as client:
        watch = client.watch_accounts("acme", min_interval_s=0.05)
        first, second = itertools.islice(watch, 2)
    assert [one.path for one in first.accounts] == ["a"]
    assert (second.accounts, second.retired) == ((), ("b",))
    with pytest.raises(bursar.SidecarUnavailable, match="the client is closed"):
        next(watch)
