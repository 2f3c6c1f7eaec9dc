"""What a page counts is what happened, to the last call."""

import re
import resource
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import httpx
import pytest
from support.receivers import Hook, Reply, Request, until, webhook
from support.scraped import TEXT, Page, Scraped

import bursar
from bursar.v1 import ledger_pb2 as lg

RUNAWAY = {"action": "stop", "open_reservations": 3}


@pytest.fixture
def daemon() -> Iterator[Scraped]:
    with Scraped(runaway=RUNAWAY) as daemon:
        yield daemon


@pytest.fixture
def client(daemon: Scraped) -> Iterator[bursar.Client]:
    with daemon.client(attempts=1) as client:
        client.set_budget("acme", unit="tokens", limit=1_000)
        yield client


def refused(call: Callable[[], object]) -> None:
    with pytest.raises(bursar.BudgetError):
        call()


def calls(page: Page, method: str, code: str = "OK") -> float | None:
    return page.value("bursar_calls_total", method=method, code=code)


def test_calls_reserves_and_refusals_are_counted_exactly(
    daemon: Scraped, client: bursar.Client
) -> None:
    before = daemon.scrape()
    for number in range(7):
        client.reserve("acme/a", tokens=10, idempotency_key=f"k{number}").commit(tokens=number)
    client.reserve("acme/a", tokens=10, idempotency_key="k3")  # told again
    for _ in range(2):
        refused(lambda: client.reserve("acme/a", tokens=5_000))
    client.freeze("acme/b", reason="test")
    refused(lambda: client.reserve("acme/b", tokens=1))
    with pytest.raises(bursar.ReservationNotFound):
        client.get_reservation("no-such-reservation")
    after = daemon.scrape()

    assert calls(before, "LedgerService/Reserve") == 0
    assert calls(after, "LedgerService/Reserve") == 7 + 1 + 2 + 1
    assert calls(after, "LedgerService/Commit") == 7
    assert calls(after, "AccountService/Freeze") == 1
    assert calls(after, "LedgerService/GetReservation") == 0
    failed = {
        labels: value
        for (name, labels), value in after.samples().items()
        if name == "bursar_calls_total" and ("code", "OK") not in labels
    }
    assert [dict(one)["method"] for one in failed] == ["LedgerService/GetReservation"]
    assert list(failed.values()) == [1]

    assert after.value("bursar_reserves_granted_total", answer="admitted") == 7
    assert after.value("bursar_reserves_granted_total", answer="repeated") == 1
    reasons = {
        dict(labels)["reason"]: value
        for (name, labels), value in after.samples().items()
        if name == "bursar_reserves_refused_total"
    }
    assert reasons == {
        "BUDGET_EXHAUSTED": 2,
        "ACCOUNT_FROZEN": 1,
        "PARENT_HOLD_EXHAUSTED": 0,
        "HOLD_EXHAUSTED": 0,
        "RUNAWAY": 0,
    }


def test_a_histogram_has_each_call_once_and_their_time_in_all(
    daemon: Scraped, client: bursar.Client
) -> None:
    began = time.monotonic()
    for _ in range(50):
        client.record("acme/a", tokens=1)
    took_s = time.monotonic() - began
    samples = daemon.scrape().samples()
    method = ("method", "LedgerService/Record")
    buckets = [
        (float(dict(labels)["le"]), value)
        for (name, labels), value in samples.items()
        if name == "bursar_call_seconds_bucket" and method in labels
    ]
    counts = [count for _, count in sorted(buckets)]
    assert counts == sorted(counts)
    assert counts[-1] == 50
    assert samples["bursar_call_seconds_count", frozenset([method])] == 50
    total_s = samples["bursar_call_seconds_sum", frozenset([method])]
    assert 0 < total_s < took_s
    # No call took longer than all, and the sum is within what the buckets say.
    least_s = sum(
        (high - low) * bound
        for low, high, bound in zip(
            counts, counts[1:], [bound for bound, _ in sorted(buckets)], strict=False
        )
    )
    assert total_s >= least_s


def test_a_budget_says_what_get_account_says(daemon: Scraped, client: bursar.Client) -> None:
    client.set_budget("acme/a", unit="usd_nanos", period="day@Europe/Berlin", limit=10**12)
    wish = {"tokens": 100, "usd_nanos": 10**9}
    client.reserve("acme/a", amounts=wish).commit(actual={"tokens": 30, "usd_nanos": 10**8})
    held = client.reserve("acme/a", tokens=55)
    page = daemon.scrape()
    for path in ("acme", "acme/a"):
        for one in client.get_account(path).balances:
            labels = {"account": path, "unit": one.unit, "period": str(one.period)}
            for word in ("limit", "spent", "held", "remaining"):
                assert page.value(f"bursar_budget_{word}", **labels) == getattr(one, word)
    labels = {"account": "acme", "unit": "tokens", "period": "total"}
    assert page.value("bursar_budget_held", **labels) == 55
    assert page.value("bursar_reservations_pending") == 1
    assert page.value("bursar_accounts") == 2
    held.release()
    assert daemon.scrape().value("bursar_budget_held", **labels) == 0


def test_a_window_that_is_over_is_empty_and_looking_opens_none(daemon: Scraped) -> None:
    with daemon.client() as client:
        client.set_budget("acme", unit="tokens", period="rolling:1s", limit=100)
        client.record("acme", tokens=40)
        labels = {"account": "acme", "unit": "tokens", "period": "rolling:1s"}
        assert daemon.scrape().value("bursar_budget_spent", **labels) == 40
        deadline = time.monotonic() + 10
        while daemon.scrape().value("bursar_budget_spent", **labels) != 0:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        # Long after the last call nothing is written for those who look.
        wrote = daemon.scrape().value("bursar_store_written_bytes_total")
        assert daemon.scrape().value("bursar_store_written_bytes_total") == wrote


@pytest.mark.parametrize("most", [0, 5, 10_000])
def test_accounts_beyond_the_bound_are_counted_and_have_no_series(most: int) -> None:
    with (
        Scraped(metrics={"max_accounts": most}, in_memory=True) as daemon,
        daemon.client() as client,
    ):
        for name in ("b", "a"):
            client.set_budget(f"{name}", unit="tokens", limit=10)
            client.set_budget(f"{name}", unit="calls", limit=10)
            for number in range(4):
                client.set_budget(f"{name}/{number}/deep", unit="tokens", limit=10)
        client.reserve("a/without", tokens=1)
        page = daemon.scrape()
        shown = {
            dict(labels)["account"]
            for name, labels in page.samples()
            if name == "bursar_budget_limit"
        }
        nearest = ["a", "b", *(f"{name}/{number}/deep" for name in "ab" for number in range(4))]
        assert shown == set(nearest[:most])
        assert page.value("bursar_accounts_left_out") == len(nearest) - len(shown)
        assert page.value("bursar_accounts") == 2 + 8 + 8 + 1


def test_a_runaway_is_found_once_and_its_calls_are_refused(
    daemon: Scraped, client: bursar.Client
) -> None:
    for _ in range(3):
        client.reserve("acme/a", tokens=1)
    for _ in range(3):
        refused(lambda: client.reserve("acme/a", tokens=1))
    page = daemon.scrape()
    assert page.value("bursar_findings_total", rule="open_reservations") == 1
    assert page.value("bursar_findings_total", rule="depth") == 0
    assert page.value("bursar_reserves_refused_total", reason="RUNAWAY") == 3


def test_leases_and_connections_come_and_go(daemon: Scraped, client: bursar.Client) -> None:
    held = client.reserve("acme/a", tokens=100)
    lease = held.lease(top_up=False)
    lease.debit(10)
    page = daemon.scrape()
    assert page.value("bursar_leases") == 1
    assert page.value("bursar_connections", listener="lease") == 1
    assert page.value("bursar_connections", listener="grpc") == 1
    assert page.value("bursar_connections", listener="metrics") == 1
    deadline = time.monotonic() + 10
    while not daemon.scrape().value("bursar_pump_lag_seconds_count"):
        assert time.monotonic() < deadline
    held.commit()
    while daemon.scrape().value("bursar_leases"):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_call_that_is_given_up_is_counted_as_cancelled(daemon: Scraped) -> None:
    """Until one is met while it counts: how long a text takes is the machine's."""
    request = lg.CountTokensRequest(model="o200k_base", text="a b" * 10**6).SerializeToString()
    method = "LedgerService/CountTokens"
    with grpc.insecure_channel(
        daemon.target, options=[("grpc.default_authority", "localhost")]
    ) as channel:
        count: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
            f"/bursar.v1.{method}"
        )
        cancelled, asked, deadline = 0.0, 0, time.monotonic() + 30
        while not cancelled:
            assert time.monotonic() < deadline
            call = count.future(request)
            time.sleep(0.03)
            call.cancel()
            asked += 1
            time.sleep(0.3)
            cancelled = calls(daemon.scrape(), method, "CANCELLED") or 0
    assert cancelled == 1
    assert cancelled + (calls(daemon.scrape(), method) or 0) <= asked


def fill(client: bursar.Client) -> None:
    for _ in range(100_000):
        client.record("acme/a", tokens=1, labels={"action": "x" * 250})


def test_a_store_that_fails_is_told_and_what_waits_for_sqlite_goes_down() -> None:
    with Scraped() as daemon, daemon.client(timeout_s=30) as client:
        client.set_budget("acme", unit="tokens", limit=10**9)
        page = daemon.scrape()
        assert page.value("bursar_read_only") == 0
        assert (page.value("bursar_store_written_bytes_total") or 0) > 0
        deadline = time.monotonic() + 10
        while daemon.scrape().value("bursar_store_backlog_records") != 0:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        synced = daemon.scrape()
        assert (synced.value("bursar_store_sync_seconds_count") or 0) >= 1
        assert (synced.value("bursar_store_sync_seconds_sum") or 0) > 0
        resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE, (100_000, 100_000))
        with pytest.raises(bursar.StoreUnavailable):
            fill(client)
        page = daemon.scrape(TEXT)
        assert page.value("bursar_read_only") == 1
        failed = calls(page, "LedgerService/Record", "UNAVAILABLE")
        assert (failed or 0) >= 1


def test_what_an_upstream_answers_is_counted_by_its_status(tmp_path: Path) -> None:
    with (
        Hook(lambda request: Reply(503 if b"fail" in request.body else 404)) as upstream,
        Scraped(
            proxy={
                "listen": "127.0.0.1:0",
                "default_account": "acme",
                "upstreams": [
                    {"name": "up", "url": upstream.url.removesuffix("/hook"), "models": ["m"]},
                    {"name": "off", "url": "http://127.0.0.1:1", "models": ["n"]},
                ],
            },
            rates={"allow_unpriced": True},
        ) as daemon,
    ):
        url = str(re.findall(r"proxy on (\S+)", daemon.log)[-1])
        for model, text in (("m", "fail"), ("m", "x"), ("m", "x"), ("n", "x")):
            body = {"model": model, "messages": [{"role": "user", "content": text}]}
            assert httpx.post(f"{url}/chat/completions", json=body).status_code >= 400
        page = daemon.scrape()

    def count(upstream: str, status: str) -> float | None:
        labels = {"upstream": upstream, "status": status}
        return page.value("bursar_upstream_requests_total", **labels)

    assert [count("up", status) for status in ("2xx", "4xx", "5xx", "none")] == [0, 2, 1, 0]
    assert (count("off", "5xx"), count("off", "none")) == (0, 1)
    assert page.value("bursar_upstream_seconds_count", upstream="up") == 3


def test_receivers_that_fail_and_lose_events_are_on_the_page(tmp_path: Path) -> None:
    with (
        Hook(Reply(500)) as hook,
        Scraped(
            notify={"max_backlog": 10, "webhooks": [webhook(tmp_path, hook, "pager")]},
            log={"format": "json"},
        ) as daemon,
        daemon.client() as client,
    ):

        def told(word: str) -> float:
            return daemon.scrape().value(f"bursar_receiver_{word}", receiver="pager") or 0

        until(lambda: "bursar_receiver_waiting" in daemon.scrape().text, "it is taken in")
        for _ in range(10):
            client.freeze("acme")
            client.unfreeze("acme")
        until(lambda: told("failures") and told("lost_total") == 10, "it fails and loses")
        assert (told("waiting"), told("told_total"), told("gone")) == (10, 0, 0)
        lost = [one for one in daemon.events() if "oldest are lost" in one["message"]]
        assert [(one["level"], one["receiver"]) for one in lost] == [("error", "pager")]
        hook.reply = Reply(410)
        until(lambda: told("gone"), "it wants nothing more")
        assert told("lost_total") == 20
        [end] = [one for one in daemon.events() if "told nothing more" in one["message"]]
        assert (end["level"], "10 events that waited are lost" in end["message"]) == ("error", True)


def test_what_was_lost_is_no_less_after_a_restart(tmp_path: Path) -> None:
    """Goal: Prometheus sees no reset of a counter that kept its count. Method: the event that is
    being told is let go with nine more, and is taken in the end; then the daemon starts anew."""
    told = threading.Event()

    def reply(_: Request) -> Reply:
        told.wait(20)
        return Reply()

    hook = Hook(reply)
    notify = {"max_backlog": 10, "webhooks": [webhook(tmp_path, hook, "pager")]}
    with hook, Scraped(notify=notify) as daemon:

        def figure(word: str) -> float:
            name = f"bursar_receiver_{word}"
            until(lambda: name in daemon.scrape().text, f"{name} is there")
            return daemon.scrape().value(name, receiver="pager") or 0

        figure("waiting")
        with daemon.client() as client:
            client.freeze("acme")
            until(lambda: hook.requests, "the first is being told")
            client.unfreeze("acme")
            for _ in range(9):
                client.freeze("acme")
                client.unfreeze("acme")
        until(lambda: figure("lost_total") == 10, "ten are let go")
        told.set()
        until(lambda: figure("told_total") == 12, "one of them, the loss, and ten more are told")
        assert figure("lost_total") == 10
        daemon.restart()
        assert figure("lost_total") == 10
    [lost] = [one for one in hook.unique if one["type"] == "bursar.backlog.lost"]
    assert lost["data"]["count"] == "9"


def test_shards_of_several_threads_are_added_up() -> None:
    with Scraped(server={"runtime_threads": 3}, in_memory=True) as daemon:
        for _ in range(6):
            with daemon.client() as client:
                client.record("acme", tokens=1)
        page = daemon.scrape()
        assert calls(page, "LedgerService/Record") == 6
        assert page.value("bursar_store_written_bytes_total") is None  # there is no store
