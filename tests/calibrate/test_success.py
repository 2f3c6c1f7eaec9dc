"""Whether work succeeded, from the Commit to what calibration says of truncation."""

import asyncio
import json
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest
from click.testing import CliRunner
from support.bare import Bare, Failed, amounts
from support.calibration import Entries
from support.daemon import Daemon

import bursar
from bursar.calibrate.replay import Replay
from bursar.calibrate.runs import By, read_runs
from bursar.cli import cli
from bursar.models import EntryKind
from bursar.v1 import ledger_pb2 as lg

JUDGED = (EntryKind.SUCCESS, EntryKind.FAILURE)


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    with Daemon() as running:
        yield running


def judged(client: bursar.Client, account: str = "") -> list[tuple[str, str]]:
    """What Commits said, by reservation."""
    return [(one.reservation, one.kind) for one in client.list_entries(account, kinds=JUDGED)]


def test_a_commit_says_it_once_and_nothing_else_says_it(client: bursar.Client) -> None:
    good, bad, silent, released = (client.reserve("acme/a", tokens=10) for _ in range(4))
    for _ in range(2):
        client.commit(good.id, tokens=4, success=True)
        bad.commit(tokens=4, success=False)
    silent.commit(tokens=4)
    released.release()
    client.record("acme/a", tokens=1)
    assert judged(client, "acme") == [(good.id, "success"), (bad.id, "failure")]
    [said] = client.list_entries(reservation=good.id, kinds=[EntryKind.SUCCESS])
    assert (said.account, said.unit, said.amount, said.detail) == ("acme/a", "", 0, "")
    [spent] = client.list_entries(reservation=good.id, kinds=[EntryKind.SPEND])
    assert (said.sequence, said.time) == (spent.sequence, spent.time)


def test_r06_a_commit_that_says_otherwise_is_another_one(client: bursar.Client) -> None:
    for first, second in product((True, False, None), repeat=2):
        hold = client.reserve("acme/a", tokens=10)
        answer = client.commit(hold.id, tokens=4, success=first)
        before = judged(client)
        if first is second:
            assert client.commit(hold.id, tokens=4, success=second) == answer
        else:
            with pytest.raises(bursar.IdempotencyMismatch):
                client.commit(hold.id, tokens=4, success=second)
        assert judged(client) == before


def test_a_commit_after_the_release_says_it_as_well(client: bursar.Client) -> None:
    hold = client.reserve("acme/a", tokens=10)
    client.release(hold.id)
    client.commit(hold.id, tokens=4, success=False)
    assert judged(client) == [(hold.id, "failure")]


def test_the_commit_at_the_end_of_a_lease_says_it(daemon: Daemon) -> None:
    async def second() -> str:
        async with (
            bursar.connect_async(daemon.target) as aio,
            await aio.reserve("acme/a", tokens=10) as hold,
        ):
            lease = await hold.lease()
            await lease.debit(3)
            await hold.commit(success=False)
            return hold.id

    with daemon.client() as client:
        with client.reserve("acme/a", tokens=10) as first, first.lease() as lease:
            lease.debit(3)
            assert first.commit(success=True).spent["tokens"] == 3
        other = asyncio.run(second())
        assert judged(client) == [(first.id, "success"), (other, "failure")]


def test_what_was_said_outlives_the_daemon(daemon: Daemon) -> None:
    with daemon.client() as client:
        hold = client.reserve("acme/a", tokens=10)
        client.commit(hold.id, tokens=4, success=True)
    daemon.kill9()
    daemon.start()
    with daemon.client() as client:
        client.commit(hold.id, tokens=4, success=True)
        with pytest.raises(bursar.IdempotencyMismatch):
            client.commit(hold.id, tokens=4, success=False)
        assert judged(client) == [(hold.id, "success")]


def varint(field: int, value: bytes) -> bytes:
    return bytes([field << 3]) + value


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (b"\x01", ["success"]),
        (b"\x00", ["failure"]),
        (b"\x02", ["success"]),
        (b"\xff" * 9 + b"\x01", ["success"]),
        (b"\x00\x20\x01", ["success"]),  # twice: the last one counts
    ],
)
def test_odd_booleans_are_the_plain_ones(daemon: Daemon, value: bytes, says: list[str]) -> None:
    with daemon.client() as client, Bare(daemon.target) as bare:
        hold = client.reserve("acme/a", tokens=10)
        request = lg.CommitRequest(reservation=hold.id, actual=amounts(tokens=4))
        bare("LedgerService/Commit", request.SerializeToString() + varint(4, value))
        assert [kind for _, kind in judged(client)] == says
        client.commit(hold.id, tokens=4, success=says == ["success"])
        assert [kind for _, kind in judged(client)] == says


@pytest.mark.parametrize("tail", [b"\x22\x04true", b"\x20", b"\x20" + b"\xff" * 11])
def test_what_is_no_boolean_ends_nothing(daemon: Daemon, tail: bytes) -> None:
    with daemon.client() as client, Bare(daemon.target) as bare:
        hold = client.reserve("acme/a", tokens=10)
        request = lg.CommitRequest(reservation=hold.id, actual=amounts(tokens=4))
        with pytest.raises(Failed):
            bare("LedgerService/Commit", request.SerializeToString() + tail)
        assert client.get_reservation(hold.id).state is bursar.ReservationState.PENDING
        assert judged(client) == []


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Ten agents with 20 runs each, that spent 1 to 200 tokens; of ten runs one is not judged, and
    of the others every third one failed. `runs.csv` says the same."""
    path = tmp_path / "ledger.db"
    lines = ["reservation,success"]
    with bursar.open(path) as client:
        for spent in range(1, 201):
            success = None if spent % 10 == 0 else spent % 3 != 0
            hold = client.reserve(
                f"acme/agent-{spent % 10}", amounts={"tokens": 300, "usd_nanos": 300}
            )
            hold.commit(actual={"tokens": spent, "usd_nanos": spent}, success=success)
            if success is not None:
                lines.append(f"{hold.id},{success}")
    (tmp_path / "runs.csv").write_text("\n".join(lines), encoding="utf-8")
    return path


def told(store: Path, *options: str) -> str:
    command = ["calibrate", "acme", "--store", str(store), "--quantile", "90", *options]
    result = CliRunner().invoke(cli, command)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.parametrize("options", [[], ["--json"], ["--unit", "usd_nanos"]])
def test_commits_say_of_quality_what_a_file_says(store: Path, options: list[str]) -> None:
    labels = str(store.with_name("runs.csv"))
    assert told(store, *options) == told(store, *options, "--labels", labels)


def test_what_a_limit_costs_in_quality_is_told(store: Path) -> None:
    [tokens] = json.loads(told(store, "--unit", "tokens", "--json"))["units"]
    assert (tokens["runs"], tokens["labelled"]) == (200, 180)
    [outcome] = tokens["outcomes"]
    # Above 180: 12 that succeeded, 6 that failed (by 3, 6, … 18), and 2 that nobody judged.
    quality = outcome["quality"]
    assert (outcome["limit"], outcome["cut"]) == (180, 20)
    assert (quality["succeeded"], quality["cut_succeeded"], quality["cut_failed"]) == (120, 12, 6)
    assert quality["success_before"] == pytest.approx(120 / 180, abs=1e-6)
    assert quality["success_after"] == pytest.approx(108 / 180, abs=1e-6)
    assert quality["saved_on_failed"] == 3 + 6 + 9 + 12 + 15 + 18
    text = told(store, "--unit", "tokens")
    assert "180 are labelled" in text
    assert ["180", "66.7%", ">", "60%", "12", "6", "63"] in [
        line.split() for line in text.splitlines()
    ]


def test_a_file_outranks_what_commits_said(store: Path) -> None:
    with bursar.open(store) as client:
        worst = judged(client)[-1]
    assert worst[1] == "success"
    labels = store.with_name("one.csv")
    labels.write_text(f"reservation,success\n{worst[0]},false\n", encoding="utf-8")
    one = json.loads(told(store, "--unit", "tokens", "--json", "--labels", str(labels)))["units"][0]
    assert one["labelled"] == 180
    assert one["outcomes"][0]["quality"]["succeeded"] == 119


def test_the_last_commit_that_says_it_speaks_for_an_account() -> None:
    entries = Entries()
    for name, kinds in (
        ("a", ["success", "failure", ""]),
        ("b", ["failure", "success"]),
        ("c", []),
    ):
        for number, kind in enumerate(kinds or [""]):
            key, account = f"{name}{number}", f"acme/{name}"
            entries.tell("hold", 10, key, account=account).tell("spend", 10, key, account=account)
            if kind:
                entries.tell(kind, 0, key, account=account)
    runs = read_runs(entries, "acme", by=By.ACCOUNT).runs["tokens"]
    assert [(run.key, run.success) for run in runs] == [
        ("acme/a", False),
        ("acme/b", True),
        ("acme/c", None),
    ]
    assert Replay(runs).labelled == 2


def test_what_is_said_of_calls_that_are_not_replayed_counts_nothing() -> None:
    entries = Entries().tell("hold", 10, "open").tell("success", 0, "gone")
    history = read_runs(entries)
    assert (history.runs, history.open_calls) == ({}, 1)


def test_the_log_shows_it(store: Path) -> None:
    command = ["log", "acme/agent-1", "--store", str(store), "--limit", "0"]
    table = CliRunner().invoke(cli, [*command, "--kind", "success", "--kind", "failure"])
    assert table.exit_code == 0, table.output
    rows = [line.split() for line in table.stdout.splitlines()]
    assert sum("success" in row for row in rows) == 14
    assert sum("failure" in row for row in rows) == 6
    found = json.loads(CliRunner().invoke(cli, [*command, "--json"]).stdout)
    assert sum(one["kind"] in JUDGED for one in found) == 20
