"""Requests that are wrong in one place: each has a code, a reason and a message that says what.

After every one of them the ledger is as it was before, and the daemon answers the next call.
"""

import random
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from support.bare import Bare, Failed, amounts, answer_type, budget, failed, request_type
from support.daemon import LONG, Daemon, new_seed, picture

import bursar
from bursar.v1 import account_pb2 as ac
from bursar.v1 import ledger_pb2 as lg

CONFIG: dict[str, Any] = {
    "accounts": [{"path": "acme"}, {"path": "acme/**"}],
    "reservations": {"default_ttl": "1h", "max_ttl": "2h"},
    "rates": {"models": [{"name": "tiny", "output_nanos_per_million": 2_000_000}]},
}
DEEP = "acme" + "/x" * 1_000
ACCOUNTS = [
    "", "/", "acme/", "/acme", "acme//a", "acme/../root", "acme/a b", "acme/ä", "acme/\0", "acme\n",
    "acme/*", "acme/**", ".acme", "acme/" + "x" * 65, "acme" + "/x" * 16, DEEP, "x" * 1_000_000,
    "acme/%2e", "acme\\a", "ACME:1",
]  # fmt: skip
IDS = [
    "", "-", "--", "garbage", "00000000-1-0", "deadbeef-1-0", "ffffffff-ffffffffffffffff-ffffffff",
    "1-2-3-4", "-1--1--1", "0x1-0x1-0x1", "00000000-1-0\0", "é-1-2", "0" * 100_000,
    "1-99999999999999999999-1",
]  # fmt: skip
WITH_ACCOUNT: dict[str, Callable[[str], Message]] = {
    "LedgerService/Reserve": lambda a: lg.ReserveRequest(account=a, amounts=amounts(tokens=1)),
    "LedgerService/Check": lambda a: lg.CheckRequest(account=a, amounts=amounts(tokens=1)),
    "LedgerService/Record": lambda a: lg.RecordRequest(account=a, amounts=amounts(tokens=1)),
    "AccountService/SetBudget": lambda a: budget(a, 5),
    "AccountService/GetAccount": lambda a: ac.GetAccountRequest(account=a),
    "AccountService/Freeze": lambda a: ac.FreezeRequest(account=a),
    "AccountService/Unfreeze": lambda a: ac.UnfreezeRequest(account=a),
}
WITH_FILTER: dict[str, Callable[[str], Message]] = {
    "AccountService/ListAccounts": lambda a: ac.ListAccountsRequest(account=a),
    "AccountService/ListEntries": lambda a: ac.ListEntriesRequest(account=a),
}
WITH_ID: dict[str, Callable[[str], Message]] = {
    "LedgerService/Debit": lambda i: lg.DebitRequest(reservation=i, used=amounts(tokens=1)),
    "LedgerService/Extend": lambda i: lg.ExtendRequest(reservation=i, granted=amounts(tokens=1)),
    "LedgerService/Commit": lambda i: lg.CommitRequest(reservation=i, actual=amounts(tokens=1)),
    "LedgerService/Release": lambda i: lg.ReleaseRequest(reservation=i),
    "LedgerService/GetReservation": lambda i: lg.GetReservationRequest(reservation=i),
    "LedgerService/Reserve": lambda i: lg.ReserveRequest(
        account="acme/a", amounts=amounts(tokens=1), parent_reservation=i
    ),
}


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with Daemon(**CONFIG) as running, running.client() as client:
        client.set_budget("acme", unit="tokens", limit=1_000)
        client.set_budget("acme", unit="vram_bytes", limit=1_000)
        client.reserve("acme/a", tokens=10, idempotency_key="held").debit(tokens=4)
        yield running


@pytest.fixture
def bare(daemon: Daemon) -> Iterator[Bare]:
    """Calls; at the end the ledger is as it was at the start."""
    with daemon.client() as client, Bare(daemon.target) as one:
        before, entries = picture(client), len(list(client.list_entries()))
        yield one
        assert picture(client) == before
        assert len(list(client.list_entries())) == entries


@pytest.fixture
def held(daemon: Daemon) -> str:
    with daemon.client() as client:
        return client.reserve("acme/a", tokens=10, idempotency_key="held").id


def refused(bare: Bare, method: str, request: Any, reason: str, *says: str) -> None:
    """The call fails for this reason, and its message is short and says these things."""
    failed = bare.fails(method, request)
    assert failed.reason == reason, failed
    assert failed.code == bursar.exceptions.ERRORS[reason].code, failed
    assert len(failed.message) < 500, failed
    assert sum(len(value) for value in failed.metadata.values()) < 500, failed
    for text in says:
        assert text in failed.message, failed


@pytest.mark.parametrize("method", [*WITH_ACCOUNT, *WITH_FILTER])
def test_malformed_accounts_are_told_what_a_path_is(bare: Bare, method: str) -> None:
    make = (WITH_ACCOUNT | WITH_FILTER)[method]
    for account in ACCOUNTS:
        if account or method not in WITH_FILTER:  # there, empty means all
            refused(bare, method, make(account), "INVALID_ACCOUNT", "1 to 16 names")


@pytest.mark.parametrize("method", [name for name in WITH_ACCOUNT if "SetBudget" not in name])
def test_accounts_that_no_pattern_allows_are_not_found(bare: Bare, method: str) -> None:
    request = WITH_ACCOUNT[method]("elsewhere/a")
    refused(bare, method, request, "ACCOUNT_NOT_FOUND", "elsewhere/a", "[[accounts]]")


@pytest.mark.parametrize("method", WITH_ID)
def test_ids_that_are_no_reservations_are_not_found(bare: Bare, held: str, method: str) -> None:
    store, _, _ = held.split("-")
    unborn = [f"{store}-ffff-0", f"{store}-ffff-ffffffff", f"{store}-{'0' * 9_999}ffff-0"]
    for name in [*IDS, *unborn]:
        if name or method != "LedgerService/Reserve":  # there, empty means none
            refused(bare, method, WITH_ID[method](name), "RESERVATION_NOT_FOUND")
    failed = bare.fails(method, WITH_ID[method](unborn[0]))
    assert "never existed" in failed.message


@pytest.mark.parametrize(
    "unit", ["", "parsecs", "TOKENS", "tokens ", "tökens", "\0", "x" * 100_000]
)
def test_unknown_units_are_told_which_there_are(bare: Bare, held: str, unit: str) -> None:
    wrong = [lg.Amount(unit=unit, value=1)]
    for method, request in (
        ("LedgerService/Reserve", lg.ReserveRequest(account="acme/a", amounts=wrong)),
        ("LedgerService/Check", lg.CheckRequest(account="acme/a", amounts=wrong)),
        ("LedgerService/Record", lg.RecordRequest(account="acme/a", amounts=wrong)),
        ("LedgerService/Debit", lg.DebitRequest(reservation=held, used=wrong)),
        ("LedgerService/Extend", lg.ExtendRequest(reservation=held, granted=wrong)),
        ("LedgerService/Commit", lg.CommitRequest(reservation=held, actual=wrong)),
        ("AccountService/SetBudget", budget("acme", 5, unit=unit)),
    ):
        refused(bare, method, request, "UNKNOWN_UNIT", "usd_nanos", "tokens")


@pytest.mark.parametrize("value", [-1, -(2**63)])
def test_negative_amounts_are_refused_everywhere(bare: Bare, held: str, value: int) -> None:
    wrong = amounts(tokens=value)
    for method, request in (
        ("LedgerService/Reserve", lg.ReserveRequest(account="acme/a", amounts=wrong)),
        ("LedgerService/Check", lg.CheckRequest(account="acme/a", amounts=wrong)),
        ("LedgerService/Record", lg.RecordRequest(account="acme/a", amounts=wrong)),
        ("LedgerService/Debit", lg.DebitRequest(reservation=held, used=wrong)),
        ("LedgerService/Extend", lg.ExtendRequest(reservation=held, granted=wrong)),
        ("LedgerService/Commit", lg.CommitRequest(reservation=held, actual=wrong)),
        ("AccountService/SetBudget", budget("acme", value)),
    ):
        refused(bare, method, request, "INVALID_AMOUNT", str(value), "never negative")


def reserve(**fields: Any) -> tuple[str, Any]:
    return "LedgerService/Reserve", lg.ReserveRequest(**{"account": "acme/a", **fields})


def usage(**fields: Any) -> tuple[str, Any]:
    return reserve(usage=lg.UsageEstimate(**{"model": "tiny", **fields}))


ONE = amounts(tokens=1)


@pytest.mark.parametrize(
    ("call", "reason", "says"),
    [
        (reserve(amounts=[*ONE, *ONE]), "INVALID_AMOUNT", "once"),
        (reserve(), "INVALID_FIELD", "amounts"),
        (reserve(amounts=ONE, usage=lg.UsageEstimate(model="tiny")), "INVALID_FIELD", "usage"),
        (reserve(amounts=ONE, min_acceptable=amounts(tokens=2)), "INVALID_AMOUNT", "tokens"),
        (reserve(amounts=ONE, min_acceptable=amounts(calls=2)), "INVALID_AMOUNT", "calls"),
        (reserve(amounts=ONE, idempotency_key="k" * 257), "INVALID_KEY", "256"),
        (reserve(amounts=ONE, idempotency_key="k" * 1_000_000), "INVALID_KEY", "1000000"),
        (reserve(amounts=ONE, ttl=Duration()), "INVALID_FIELD", "ttl"),
        (reserve(amounts=ONE, ttl=Duration(seconds=-1)), "INVALID_FIELD", "ttl"),
        (reserve(amounts=ONE, ttl=Duration(seconds=7_201)), "INVALID_FIELD", "7200000 ms"),
        (reserve(amounts=ONE, ttl=Duration(seconds=2**63 - 1)), "INVALID_FIELD", "ttl"),
        (reserve(amounts=ONE, ttl=Duration(nanos=-(2**31))), "INVALID_FIELD", "ttl"),
        (reserve(amounts=ONE, ttl=Duration(nanos=999)), "INVALID_FIELD", "ttl"),
        (reserve(amounts=ONE, labels={str(n): "" for n in range(17)}), "INVALID_FIELD", "16"),
        (reserve(amounts=ONE, labels={"a": "x" * 257}), "INVALID_FIELD", "256"),
        (reserve(amounts=ONE, labels={"x" * 257: "a"}), "INVALID_FIELD", "256"),
        (reserve(amounts=ONE, labels={"bursar.owner": "1"}), "INVALID_FIELD", "reserved"),
        (usage(model="unknown"), "UNPRICED_MODEL", "unknown"),
        (usage(model="x" * 100_000), "UNPRICED_MODEL", "rate card"),
        (usage(input_tokens=-1), "INVALID_FIELD", "input_tokens"),
        (usage(input_tokens=1, cached_input_tokens=2), "INVALID_FIELD", "cached"),
        (usage(max_output_tokens=-5), "INVALID_FIELD", "output_tokens"),
        (usage(max_output_tokens=1, min_output_tokens=2), "INVALID_FIELD", "min_output_tokens"),
        (usage(input_tokens=2**63 - 1, max_output_tokens=1), "AMOUNT_OVERFLOW", "2^63"),
        (usage(gpu_ms=-1), "INVALID_FIELD", "gpu_ms"),
    ],
)  # fmt: skip
def test_a_wrong_reserve_is_told_what_is_wrong(
    bare: Bare, call: tuple[str, Any], reason: str, says: str
) -> None:
    refused(bare, *call, reason, says)


def test_a_key_of_ten_megabytes_is_refused_before_it_is_read(bare: Bare) -> None:
    failed = bare.fails(*reserve(amounts=ONE, idempotency_key="k" * 10_000_000))
    assert failed.code == "OUT_OF_RANGE"
    assert "limit is: 4259840 bytes" in failed.message


def test_capacity_is_not_spent(bare: Bare, held: str) -> None:
    wrong = amounts(vram_bytes=1)
    for method, request in (
        ("Debit", lg.DebitRequest(reservation=held, used=wrong)),
        ("Commit", lg.CommitRequest(reservation=held, actual=wrong)),
        ("Record", lg.RecordRequest(account="acme/a", amounts=wrong)),
    ):
        refused(bare, f"LedgerService/{method}", request, "INVALID_AMOUNT", "capacity")


def test_a_parent_that_is_elsewhere_or_over_is_refused(daemon: Daemon) -> None:
    with daemon.client() as client, Bare(daemon.target) as bare:
        elsewhere = client.reserve("acme/a", tokens=1)
        before = picture(client)
        request = reserve(account="acme/b", amounts=ONE, parent_reservation=elsewhere.id)
        refused(bare, *request, "INVALID_FIELD", "acme/a", "acme/b")
        assert picture(client)["acme"] == before["acme"]
        client.release(elsewhere.id)
        over = reserve(amounts=ONE, parent_reservation=elsewhere.id)
        refused(bare, *over, "RESERVATION_ENDED")
        assert picture(client)["acme"][2] == before["acme"][2] - 1


def period(**fields: Any) -> ac.SetBudgetRequest:
    one = budget("acme", 5)
    one.budget.period.CopyFrom(ac.Period(**fields))
    return one


def thresholds(*list_: ac.Threshold) -> ac.SetBudgetRequest:
    one = budget("acme", 5)
    one.budget.thresholds.extend(list_)
    return one


def threshold(permille: int, verdict: Any = lg.VERDICT_WARN, **advice: Any) -> ac.Threshold:
    return ac.Threshold(permille=permille, verdict=verdict, advice=lg.Advice(**advice))


NO_TOKEN, DASH = "x", "-"
NO_KINDS: Any = [99]
DAY = ac.Period.KIND_DAY
ROLLING = ac.Period.KIND_ROLLING


@pytest.mark.parametrize(
    ("request_", "reason", "says"),
    [
        (ac.SetBudgetRequest(), "INVALID_FIELD", "budget"),
        (period(), "INVALID_FIELD", "kind"),
        (period(kind=99), "INVALID_FIELD", "kind"),
        (period(kind=DAY, time_zone="Mars/Phobos"), "INVALID_FIELD", "Mars/Phobos"),
        (period(kind=DAY, time_zone="x" * 100_000), "INVALID_FIELD", "time zone"),
        (period(kind=DAY, time_zone="../../etc/passwd"), "INVALID_FIELD", "time zone"),
        (period(kind=ROLLING), "INVALID_FIELD", "length"),
        (period(kind=ROLLING, length=Duration(seconds=-5)), "INVALID_FIELD", "length"),
        (period(kind=ROLLING, length=Duration(nanos=1_000_000)), "INVALID_FIELD", "1"),
        (period(kind=ROLLING, length=Duration(seconds=400 * 86_400)), "INVALID_FIELD", "length"),
        (thresholds(*(threshold(n) for n in range(1, 6))), "INVALID_FIELD", "4"),
        (thresholds(threshold(900), threshold(800)), "INVALID_FIELD", "ascending"),
        (thresholds(threshold(0)), "INVALID_FIELD", "1000"),
        (thresholds(threshold(1_001)), "INVALID_FIELD", "1000"),
        (thresholds(threshold(-5)), "INVALID_FIELD", "1000"),
        (thresholds(threshold(500, lg.VERDICT_STOP)), "INVALID_FIELD", "WARN or DEGRADE"),
        (thresholds(threshold(5, 77)), "INVALID_FIELD", "WARN or DEGRADE"),
        (thresholds(threshold(5, fallback_model="x" * 257)), "INVALID_FIELD", "256"),
        (thresholds(threshold(5, temperature=float("nan"))), "INVALID_FIELD", "temperature"),
        (thresholds(threshold(5, temperature=float("inf"))), "INVALID_FIELD", "temperature"),
        (
            thresholds(threshold(5, repetition_penalty=-1.0)),
            "INVALID_FIELD",
            "repetition_penalty",
        ),
        (thresholds(threshold(5, max_new_tokens=-1)), "INVALID_FIELD", "max_new_tokens"),
    ],
)
def test_a_wrong_budget_is_told_what_is_wrong(
    bare: Bare, request_: Any, reason: str, says: str
) -> None:
    refused(bare, "AccountService/SetBudget", request_, reason, says)


def test_capacity_takes_no_period(bare: Bare) -> None:
    one = budget("acme", 5, unit="vram_bytes")
    one.budget.period.kind = DAY
    refused(bare, "AccountService/SetBudget", one, "INVALID_AMOUNT", "vram_bytes", "total")


@pytest.mark.parametrize(
    ("method", "request_", "reason", "says"),
    [
        ("ListAccounts", ac.ListAccountsRequest(page_size=-1), "INVALID_FIELD", "1000"),
        ("ListAccounts", ac.ListAccountsRequest(page_size=1_001), "INVALID_FIELD", "1000"),
        ("ListEntries", ac.ListEntriesRequest(page_size=10_001), "INVALID_FIELD", "10000"),
        ("ListEntries", ac.ListEntriesRequest(page_token=NO_TOKEN), "INVALID_FIELD", "page_token"),
        ("ListEntries", ac.ListEntriesRequest(page_token=DASH), "INVALID_FIELD", "page_token"),
        ("ListEntries", ac.ListEntriesRequest(page_token="f" * 99), "INVALID_FIELD", "page_token"),
        ("ListEntries", ac.ListEntriesRequest(unit="parsecs"), "UNKNOWN_UNIT", "parsecs"),
        ("ListEntries", ac.ListEntriesRequest(kinds=NO_KINDS), "INVALID_FIELD", "kinds"),
        ("ListEntries", ac.ListEntriesRequest(reservation="x"), "RESERVATION_NOT_FOUND", "x"),
        (
            "ListEntries",
            ac.ListEntriesRequest(start_time=Timestamp(seconds=2**63 - 1)),
            "INVALID_FIELD",
            "start_time",
        ),
        (
            "ListEntries",
            ac.ListEntriesRequest(end_time=Timestamp(nanos=-1)),
            "INVALID_FIELD",
            "end_time",
        ),
        ("Freeze", ac.FreezeRequest(account="acme", reason="x" * 257), "INVALID_FIELD", "256"),
    ],
)
def test_a_wrong_question_is_told_what_is_wrong(
    bare: Bare, method: str, request_: Any, reason: str, says: str
) -> None:
    refused(bare, f"AccountService/{method}", request_, reason, says)


def test_a_watch_with_a_wrong_interval_or_account_is_told_what_is_wrong(
    daemon: Daemon, bare: Bare
) -> None:
    watch = bare.channel.unary_stream(
        "/bursar.v1.AccountService/WatchAccounts",
        request_serializer=ac.WatchAccountsRequest.SerializeToString,
        response_deserializer=ac.WatchAccountsResponse.FromString,
    )
    for request, reason in (
        (ac.WatchAccountsRequest(min_interval=Duration(seconds=61)), "INVALID_FIELD"),
        (ac.WatchAccountsRequest(min_interval=Duration(seconds=-1)), "INVALID_FIELD"),
        (ac.WatchAccountsRequest(account="a//b"), "INVALID_ACCOUNT"),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            next(watch(request, timeout=10))
        assert failed(caught.value).reason == reason


def test_texts_to_count_are_bounded_and_models_known(bare: Bare) -> None:
    def count(model: str, text: str) -> tuple[str, Any]:
        return "LedgerService/CountTokens", lg.CountTokensRequest(model=model, text=text)

    refused(bare, *count("x" * 100_000, "hello"), "UNKNOWN_TOKENIZER", "o200k_base")
    refused(bare, *count("o200k_base", "x" * (4 * 2**20 + 1)), "INVALID_FIELD", "4194304")
    assert bare(*count("o200k_base", "")).token_count == 0
    assert bare(*count("o200k_base", "\0" * 1_000)).token_count > 0


NAMED = {"INTERNAL", "INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION"}
OTHERS = [
    "LedgerService/CountTokens",
    "AccessService/WhoAmI",
    "AccessService/CreateToken",
    "AccessService/ListTokens",
    "AccessService/RevokeToken",
    "ProcessService/ListProcesses",
    "ProcessService/ListIncidents",
]
"""Not those that could name a process of this machine by chance."""
ALL = [*WITH_ACCOUNT, *WITH_FILTER, *WITH_ID, *OTHERS]
WITHOUT_TEXT = {"AccountService/SetBudget", "AccessService/WhoAmI"}


@pytest.mark.parametrize("method", sorted(set(ALL)))
def test_strings_that_are_not_utf_8_are_refused(bare: Bare, method: str) -> None:
    """Invalid bytes in every field of the request that is a string, one after the other."""
    of_request = request_type(method).DESCRIPTOR.fields
    fields = [one for one in of_request if one.type == one.TYPE_STRING]
    for field in fields:
        failed = bare.fails(method, bytes([field.number << 3 | 2, 2, 0xFF, 0xFE]))
        assert failed.code in ("INTERNAL", "INVALID_ARGUMENT")
        assert "UTF-8" in failed.message
    assert fields or method in WITHOUT_TEXT


@pytest.mark.parametrize("method", sorted(set(ALL)))
def test_random_bytes_are_answered_and_change_nothing(bare: Bare, method: str) -> None:
    seed = new_seed()
    print(f"seed {seed}")
    dice = random.Random(seed)
    good = WITH_ACCOUNT.get(method) or WITH_ID.get(method)
    base = good("/nothing").SerializeToString()[:-1] if good else b""  # never a valid path
    for _ in range(1_000 if LONG else 60):
        bytes_ = dice.randbytes(dice.randrange(200))
        if dice.random() < 0.5 and base:
            cut = dice.randrange(len(base))
            bytes_ = base[:cut] + dice.randbytes(3)
        try:
            answer = bare(method, bytes_)
        except Failed as error:
            assert error.code in NAMED, error
        else:
            assert isinstance(answer, answer_type(method))
