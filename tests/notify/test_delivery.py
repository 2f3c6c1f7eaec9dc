"""Events of a real daemon at real receivers: all of them, in order, whatever ends or stays away."""

import random
import socket
import time
from collections import defaultdict
from pathlib import Path

import pytest
from support.daemon import LONG, new_seed
from support.receivers import Hook, Reply, Request, until, webhook
from support.told import CROSSINGS, Told

import bursar


def test_a_receiver_hears_of_all_that_happens_signed_and_in_order(tmp_path: Path) -> None:
    """Goal: each event of the ledger is told as a CloudEvent that the Standard Webhooks' own
    library verifies. Method: a budget is spent in steps and passed, an account is frozen and let
    go, an agent loops; then all that arrived is read."""
    with (
        Hook() as hook,
        Told(webhook(tmp_path, hook), source="bursar://test") as daemon,
        daemon.client() as client,
    ):
        client.record("acme", tokens=600)
        client.record("acme", tokens=450)
        client.freeze("acme", reason="looks odd")
        hook.saw(5)
        client.unfreeze("acme")
        for _ in range(3):
            client.reserve("loop", tokens=1, labels={"prompt_fingerprint": "x"}).release()
        with pytest.raises(bursar.RunawayStopped):
            client.reserve("loop", tokens=1, labels={"prompt_fingerprint": "x"})
        told = {one["id"]: one for one in (one.verified() for one in hook.requests)}
        hook.saw(8)
    names = hook.names
    assert names[:5] == [*CROSSINGS[:1], "overdraft", *CROSSINGS[1:], "freeze"]
    assert names[5:] == ["unfreeze", "runaway", "freeze"]
    events = [one.verified() for one in hook.requests]
    assert told.items() <= {one["id"]: one for one in events}.items()
    for one in events:
        assert (one["specversion"], one["source"]) == ("1.0", "bursar://test")
        assert one["subject"] in {"acme", "loop"}
    warn, over = events[0]["data"], events[1]["data"]
    assert (warn["unit"], warn["permille"]) == ("tokens", 500)
    assert [(one["limit"], one["period"]) for one in warn["balances"]] == [("1000", "total")]
    assert (over["amount"], over["count"], over["balances"][0]["spent"]) == ("50", "1", "1050")
    assert events[4]["data"]["reason"] == "looks odd"
    runaway = events[6]["data"]
    assert (runaway["action"], runaway["figure"]) == ("freeze", "4")
    assert "repeats" in runaway["finding"]


def test_a_spent_budget_is_told_whatever_its_thresholds(tmp_path: Path) -> None:
    with (
        Hook() as hook,
        Told(webhook(tmp_path, hook, events=["crossing.stop"])) as daemon,
        daemon.client() as client,
    ):
        warn = bursar.Threshold(500, bursar.Verdict.WARN)
        client.set_budget("acme/none", unit="calls", limit=10)
        client.set_budget("acme/warn", unit="calls", limit=10, thresholds=[warn])
        for account in ("acme/none", "acme/warn"):
            client.record(account, amounts={"calls": 9})
            client.record(account, amounts={"calls": 1})
        hook.saw(2)
    told = [(one["subject"], one["data"]["unit"], one["data"]["permille"]) for one in hook.events]
    assert told == [("acme/none", "calls", 1000), ("acme/warn", "calls", 1000)]


def test_who_selects_accounts_and_events_hears_of_nothing_else(tmp_path: Path) -> None:
    with Hook() as some, Hook() as every:
        chosen = webhook(tmp_path, some, "some", events=["crossing.*"], accounts=["acme/*"])
        with Told(chosen, webhook(tmp_path, every, "all")) as daemon, daemon.client() as client:
            client.freeze("acme/a")
            for account in ("acme/a", "acme", "acme/b/c", "acmes/a"):
                client.record(account, tokens=1_000)
            every.saw(1 + 6 * 3 + 1)
            until(lambda: not daemon.rows()["some"].waiting, "all is told")
    assert {(one["subject"], one["type"]) for one in some.events} == {
        (account, f"bursar.{name}") for account in ("acme/a", "acme/b") for name in CROSSINGS
    }


def test_after_a_kill_between_event_and_delivery_nothing_is_lost(tmp_path: Path) -> None:
    with (
        Hook(Reply(500)) as hook,
        Told(webhook(tmp_path, hook)) as daemon,
        daemon.client() as client,
    ):
        client.record("acme", tokens=1_000)
        until(lambda: hook.requests, "an attempt")
        client.freeze("acme")
        daemon.kill9()
        hook.reply = Reply()
        daemon.start()
        hook.saw(4)
    assert hook.names == [*CROSSINGS, "freeze"]
    assert len({one.headers["webhook-id"] for one in hook.requests}) == 4


@pytest.mark.timeout(600)
def test_kills_at_any_moment_lose_nothing_and_keep_each_accounts_order(tmp_path: Path) -> None:
    """Goal: at least once, in order, over kill -9. Method: accounts spend their budgets in steps
    while the receiver fails now and then, and the daemon is killed at random moments; in the end
    every answered step was told, and each account's events came in order, repeats left out."""
    seed = new_seed()
    print(f"seed {seed}")
    rng = random.Random(seed)
    expected: dict[str, list[str]] = {}
    with (
        Hook(lambda _: Reply(rng.choice([204] * 9 + [500]))) as hook,
        Told(webhook(tmp_path, hook, events=["crossing.*"], accounts=["acme/*"])) as daemon,
    ):
        for turn in range(40 if LONG else 6):
            with daemon.client() as client:
                for number in range(rng.randrange(1, 20)):
                    account = f"acme/{turn}-{number}"
                    for tokens in (500, 300, 200):
                        client.record(account, tokens=tokens)
                    expected[account] = CROSSINGS
            time.sleep(rng.random() * 1.5)
            daemon.kill9()
            daemon.start()
        hook.saw(3 * len(expected), f"seed {seed}", patience_s=300)
        until(lambda: not daemon.rows()["hook"].waiting, "nothing waits")
        assert daemon.rows()["hook"].lost == 0
    found = defaultdict(list)
    for one in hook.unique:
        found[one["subject"]].append(one["type"].removeprefix("bursar."))
    assert dict(found) == expected
    repeats = len(hook.requests) - len(hook.unique)
    print(f"{len(hook.unique)} events, {repeats} repeats")


def test_a_receiver_that_was_away_hears_of_all_when_it_is_back(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    url = f"http://127.0.0.1:{port}/hook"
    row = webhook(tmp_path, url, events=["crossing.*"], accounts=["acme/*"])
    with Told(row) as daemon, daemon.client() as client:
        for number in range(10):
            client.record(f"acme/{number}", tokens=500)
        until(lambda: daemon.rows()["hook"].failures >= 2, "it is tried again")
        row_now = daemon.rows()["hook"]
        assert row_now.waiting == 10
        assert "refused" in row_now.failure
        with Hook(port=port) as hook:
            hook.saw(10)
            until(lambda: not daemon.rows()["hook"].failures, "it is well again")
        log = daemon.log
    assert [one["subject"] for one in hook.unique] == [f"acme/{one}" for one in range(10)]
    assert "webhook hook: no answer: Connection refused; next in" in log
    assert "webhook hook: is told again, after" in log
    assert log.count("Connection refused") == 1, "it is said once, not each time"


def test_a_new_receiver_begins_at_now_and_an_old_one_where_it_was(tmp_path: Path) -> None:
    with Hook() as old, Hook() as new:
        first = webhook(tmp_path, old, "old")
        with Told(first) as daemon:
            with daemon.client() as client:
                client.freeze("before")
                old.saw(1)
                old.reply = Reply(500)
                client.freeze("between")
            daemon.kill9()
            daemon.configure(first, webhook(tmp_path, new, "new"))
            old.reply = Reply()
            daemon.start()
            with daemon.client() as client:
                client.freeze("after")
                new.saw(1)
                old.saw(3)
    assert [one["subject"] for one in old.unique] == ["before", "between", "after"]
    assert [one["subject"] for one in new.unique] == ["after"]


def test_who_was_taken_out_is_forgotten_and_begins_anew(tmp_path: Path) -> None:
    with Hook(Reply(500)) as hook:
        row = webhook(tmp_path, hook)
        with Told(row) as daemon:
            with daemon.client() as client:
                client.freeze("before")
            until(lambda: hook.requests, "an attempt")
            daemon.configure()
            daemon.restart()
            hook.requests.clear()
            hook.reply = Reply()
            daemon.configure(row)
            daemon.restart()
            with daemon.client() as client:
                client.freeze("after")
            hook.saw(1)
    assert [one["subject"] for one in hook.unique] == ["after"]


def test_one_slow_receiver_delays_neither_others_nor_the_daemon(tmp_path: Path) -> None:
    with Hook(Reply(after_s=5)) as slow, Hook() as quick:
        rows = webhook(tmp_path, slow, "slow", timeout="8s"), webhook(tmp_path, quick, "quick")
        with Told(*rows) as daemon, daemon.client() as client:
            client.record("first", tokens=500)
            until(lambda: slow.requests, "the slow one is at it")
            began_s = time.monotonic()
            client.record("acme", tokens=1_000)
            quick.saw(4)
            assert time.monotonic() - began_s < 4
            assert len(slow.requests) == 1
            began_s = time.monotonic()
            daemon.terminate()
            assert time.monotonic() - began_s < 6, "the drain does not wait for it"


def test_410_ends_a_receiver_until_its_address_is_another(tmp_path: Path) -> None:
    with Hook(Reply(410)) as gone, Hook() as other, Told(webhook(tmp_path, gone)) as daemon:
        with daemon.client() as client:
            client.record("acme", tokens=1_000)
            until(lambda: daemon.rows()["hook"].is_gone, "it is gone")
            client.freeze("acme")
        daemon.restart()
        with daemon.client() as client:
            client.unfreeze("acme")
        time.sleep(1.5)
        assert len(gone.requests) == 1
        assert "answered 410: it is told nothing more" in daemon.log
        assert daemon.rows()["hook"].failures == 1
        daemon.configure(webhook(tmp_path, other))
        daemon.restart()
        assert daemon.rows()["hook"].failures == 0, "the other address has not failed"
        with daemon.client() as client:
            client.freeze("again")
        other.saw(1)
    assert [one["subject"] for one in other.unique] == ["again"]


def test_of_a_backlog_that_is_full_the_oldest_goes_and_is_counted(tmp_path: Path) -> None:
    with (
        Hook(Reply(500)) as hook,
        Told(webhook(tmp_path, hook), max_backlog=10) as daemon,
        daemon.client() as client,
    ):
        for number in range(35):
            client.freeze(f"acme/{number}")
        until(lambda: daemon.rows()["hook"].lost == 25, "25 are lost")
        assert daemon.rows()["hook"].waiting == 10
        daemon.kill9()
        hook.requests.clear()
        hook.reply = Reply()
        daemon.start()
        hook.saw(11)
        row = daemon.rows()["hook"]
        until(lambda: daemon.rows()["hook"].lost_told == 25, "it knows")
    lost, *rest = hook.unique
    assert (lost["type"], lost["data"]["count"]) == ("bursar.backlog.lost", "25")
    assert [one["subject"] for one in rest] == [f"acme/{one}" for one in range(25, 35)]
    assert row.lost == 25


def test_retry_after_is_honoured(tmp_path: Path) -> None:
    def reply(_: Request) -> Reply:
        return Reply(503, {"retry-after": "3"}) if len(hook.requests) == 1 else Reply()

    with (
        Hook(reply) as hook,
        Told(webhook(tmp_path, hook)) as daemon,
        daemon.client() as client,
    ):
        client.freeze("acme")
        until(lambda: len(hook.requests) == 2, "it is tried again")
    first, second = hook.requests
    assert 3 <= second.time_s - first.time_s < 10
    assert first.headers["webhook-id"] == second.headers["webhook-id"]
    assert int(second.headers["webhook-timestamp"]) >= int(first.headers["webhook-timestamp"]) + 3


def test_what_a_receiver_will_never_take_holds_up_the_rest_for_eight_attempts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reply(request: Request) -> Reply:
        is_bad = request.event.get("subject") == "bad"
        return Reply(422) if is_bad else Reply()

    # A quarter of a second after the first failure, and never more than that.
    quick = "import bursar.notify.outcomes as o; o.FIRST_S = o.LONGEST_S = 0.25"
    (tmp_path / "sitecustomize.py").write_text(quick, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    with (
        Hook(reply) as hook,
        Told(webhook(tmp_path, hook)) as daemon,
        daemon.client() as client,
    ):
        client.freeze("bad")
        client.freeze("good")
        hook.saw(3)
        assert "is given up: answered 422" in daemon.log
    names = [one.event.get("subject", one.name) for one in hook.requests]
    assert names == ["bad"] * 8 + ["bursar.backlog.lost", "good"]
