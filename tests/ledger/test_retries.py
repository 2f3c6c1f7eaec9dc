"""R6 through the real socket: repeating and reordering calls gives the ledger of calling once."""

import itertools
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.bare import Bare, Failed, amounts
from support.daemon import LONG, Daemon, balance, new_seed, picture
from support.wire import Call, Wire, call

import bursar
from bursar.v1 import account_pb2 as ac
from bursar.v1 import ledger_pb2 as lg

ENDED = {"RESERVATION_ENDED", "RESERVATION_EXPIRED"}
ORDERS = 50 if LONG else 8


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with Daemon(server={"runtime_threads": 4}) as running:
        yield running


@pytest.fixture
def client(daemon: Daemon) -> Iterator[bursar.Client]:
    with daemon.client(timeout_s=30) as one:
        yield one


@pytest.fixture
def bare(daemon: Daemon) -> Iterator[Bare]:
    with Bare(daemon.target) as one:
        yield one


def reserve(account: str, key: str, tokens: int) -> lg.ReserveRequest:
    return lg.ReserveRequest(account=account, idempotency_key=key, amounts=amounts(tokens=tokens))


def stages(root: str, ids: dict[str, str]) -> Iterator[list[tuple[str, Any]]]:
    """A day of calls in stages: those of one stage may come in any order, and more than once.

    `ids` is filled by the caller between the stages: a reservation by its key.
    """
    budget = ac.Budget(
        account=root, unit="tokens", limit=1_000, period=ac.Period(kind=ac.Period.KIND_TOTAL)
    )
    yield [("AccountService/SetBudget", ac.SetBudgetRequest(budget=budget))]
    reserves = [
        ("LedgerService/Reserve", reserve(f"{root}/{name}", name, size))
        for name, size in (("a", 100), ("b", 50), ("c", 200))
    ]
    yield reserves
    debits: list[tuple[str, Any]] = [
        ("LedgerService/Debit", lg.DebitRequest(reservation=ids[name], used=amounts(tokens=used)))
        for name, used in (("a", 10), ("a", 60), ("b", 7), ("b", 50), ("c", 1))
    ]
    extends: list[tuple[str, Any]] = [
        (
            "LedgerService/Extend",
            lg.ExtendRequest(reservation=ids["c"], granted=amounts(tokens=total)),
        )
        for total in (210, 300, 250)
    ]
    records: list[tuple[str, Any]] = [
        (
            "LedgerService/Record",
            lg.RecordRequest(account=f"{root}/d", idempotency_key=k, amounts=amounts(tokens=n)),
        )
        for k, n in (("one", 5), ("two", 6))
    ]
    asking = reads(root, ids)
    yield reserves + debits + extends + records + asking
    commit = lg.CommitRequest(reservation=ids["a"], actual=amounts(tokens=130))
    ends: list[tuple[str, Any]] = [
        ("LedgerService/Commit", commit),
        ("LedgerService/Release", lg.ReleaseRequest(reservation=ids["b"])),
        ("LedgerService/Release", lg.ReleaseRequest(reservation=ids["a"])),
        ("AccountService/Freeze", ac.FreezeRequest(account=f"{root}/d", reason="audit")),
    ]
    # What is repeated after the end changes nothing either.
    yield ends + asking
    yield reserves + debits + extends + records + ends + asking
    yield [("AccountService/Unfreeze", ac.UnfreezeRequest(account=f"{root}/d")), *asking]
    yield [("AccountService/RetireAccount", ac.RetireAccountRequest(account=f"{root}/d")), *asking]


def reads(root: str, ids: dict[str, str]) -> list[tuple[str, Any]]:
    """Calls that change nothing, however often and whenever they are made."""
    return [
        (
            "LedgerService/Check",
            lg.CheckRequest(account=f"{root}/a", amounts=amounts(tokens=900)),
        ),
        ("LedgerService/GetReservation", lg.GetReservationRequest(reservation=ids["a"])),
        ("LedgerService/ListReservations", lg.ListReservationsRequest(account=root)),
        ("LedgerService/CountTokens", lg.CountTokensRequest(model="o200k_base", text="a b")),
        ("AccountService/GetAccount", ac.GetAccountRequest(account=f"{root}/a")),
        ("AccountService/ListAccounts", ac.ListAccountsRequest(account=root)),
        ("AccountService/ListEntries", ac.ListEntriesRequest(account=root)),
    ]


def test_the_stages_make_every_call_there_is() -> None:
    """Streams apart: they are not repeated, they are dialled again."""
    services = [
        module.DESCRIPTOR.services_by_name[name]
        for module, name in ((lg, "LedgerService"), (ac, "AccountService"))
    ]
    unary = {
        f"{service.name}/{method.name}"
        for service in services
        for method in service.methods
        if not (method.client_streaming or method.server_streaming)
    }
    made = {method for calls in stages("r", dict.fromkeys("abc", "")) for method, _ in calls}
    assert made == unary


def play(
    root: str,
    run: Callable[[list[tuple[str, Any]]], list[tuple[str, Any, Any]]],
) -> None:
    """Runs the stages; checks that each key stays with its first reservation."""
    ids: dict[str, str] = {}
    for calls in stages(root, ids):
        for method, request, answer in run(calls):
            if isinstance(answer, Failed):
                assert answer.reason in ENDED, (method, answer)
            elif method == "LedgerService/Reserve":
                first = ids.setdefault(request.idempotency_key, answer.reservation.id)
                assert answer.reservation.id == first


def shape(client: bursar.Client, root: str) -> Any:
    """What the ledger of one root came to, whatever the root is called."""
    accounts = {path.removeprefix(root): account for path, account in picture(client, root).items()}
    sums: dict[tuple[str, str], int] = {}
    for entry in client.list_entries(root):
        if entry.kind.value in ("hold", "spend", "overdraft", "freeze"):
            where = (entry.account.removeprefix(root), str(entry.kind))
            sums[where] = sums.get(where, 0) + entry.amount
    return accounts, sums


def asked(bare: Bare, method: str, request: Any) -> tuple[str, Any, Any]:
    try:
        return method, request, bare(method, request)
    except Failed as error:
        return method, request, error


def test_every_call_repeated_and_reordered_gives_the_ledger_of_calling_once(
    client: bursar.Client, bare: Bare
) -> None:
    """Method: one root where every call of the day is made once, in order; others where the calls
    of each stage are made three times each, in a random order. Balances and entries agree."""
    play("once", lambda calls: [asked(bare, *one) for one in calls])
    expected = shape(client, "once")
    assert balance(client, "once") == (300 - 1, 130 + 50 + 11 + 1, 1_000 - 491)
    for number in range(ORDERS):
        seed = new_seed()
        print(f"order {number}: seed {seed}")
        dice = random.Random(seed)

        def thrice(
            calls: list[tuple[str, Any]], dice: random.Random = dice
        ) -> list[tuple[str, Any, Any]]:
            mixed = calls * 3
            dice.shuffle(mixed)
            return [asked(bare, *one) for one in mixed]

        play(f"order{number}", thrice)
        assert shape(client, f"order{number}") == expected


def test_every_call_sent_many_times_at_once_gives_the_ledger_of_calling_once(
    daemon: Daemon, client: bursar.Client, bare: Bare
) -> None:
    """The same with 8 duplicates of each call in the socket at the same time, on 32 connections."""
    play("single", lambda calls: [asked(bare, *one) for one in calls])
    expected = shape(client, "single")
    with Wire(daemon.socket_path, connections=32) as wire:
        for number in range(ORDERS):
            seed = new_seed()
            print(f"round {number}: seed {seed}")
            dice = random.Random(seed)

            def eightfold(
                calls: list[tuple[str, Any]], dice: random.Random = dice
            ) -> list[tuple[str, Any, Any]]:
                mixed = calls * 8
                dice.shuffle(mixed)
                sent: list[Call] = [call(*one) for one in mixed]
                answered = wire.all_at_once(sent, held=daemon.stopped())
                return [
                    (method, request, read(method, message))
                    for (method, request), message in zip(mixed, answered, strict=True)
                ]

            play(f"round{number}", eightfold)
            assert shape(client, f"round{number}") == expected


def read(method: str, message: bytes | None) -> Any:
    if message is None:
        return Failed("", "RESERVATION_ENDED", "", {})  # raw bytes do not tell; see the test above
    return lg.ReserveResponse.FromString(message) if method.endswith("/Reserve") else None


@pytest.mark.parametrize("late", ["before", "after"])
def test_the_ends_of_a_reservation_in_every_order_come_to_the_same(
    client: bursar.Client, bare: Bare, late: str
) -> None:
    """All 120 orders of two debits, an extension, a release and a commit, each made twice: the
    commit says what was spent, and nothing is held."""
    root = f"orders-{late}"
    client.set_budget(root, unit="tokens", limit=10_000)
    for number, order in enumerate(itertools.permutations(range(5))):
        one = bare("LedgerService/Reserve", reserve(f"{root}/x", str(number), 50)).reservation.id
        calls: list[tuple[str, Any]] = [
            ("LedgerService/Debit", lg.DebitRequest(reservation=one, used=amounts(tokens=5))),
            ("LedgerService/Debit", lg.DebitRequest(reservation=one, used=amounts(tokens=20))),
            ("LedgerService/Extend", lg.ExtendRequest(reservation=one, granted=amounts(tokens=70))),
            ("LedgerService/Release", lg.ReleaseRequest(reservation=one)),
            ("LedgerService/Commit", lg.CommitRequest(reservation=one, actual=amounts(tokens=7))),
        ]
        in_order = [calls[index] for index in order]
        twice = in_order * 2 if late == "after" else [x for x in in_order for _ in "12"]
        for method, _, answer in (asked(bare, *each) for each in twice):
            failed = isinstance(answer, Failed)
            assert not failed or answer.reason in ENDED, (order, method, answer)
        assert balance(client, root) == (0, 7 * (number + 1), 10_000 - 7 * (number + 1)), order
        found = bare("LedgerService/GetReservation", lg.GetReservationRequest(reservation=one))
        assert found.reservation.state == lg.Reservation.STATE_COMMITTED


def test_a_key_with_another_payload_is_refused_and_changes_nothing(
    client: bursar.Client, bare: Bare
) -> None:
    client.set_budget("keys", unit="tokens", limit=100)
    client.record("keys/a", tokens=3, idempotency_key="k")
    first = client.reserve("keys/a", tokens=10, idempotency_key="k")
    ended = client.reserve("keys/a", tokens=10, idempotency_key="e")
    ended.commit(tokens=4)
    before = picture(client, "keys")
    others = [
        ("LedgerService/Reserve", reserve("keys/a", "k", 11)),
        ("LedgerService/Reserve", reserve("keys/a", "e", 9)),
        (
            "LedgerService/Reserve",
            lg.ReserveRequest(
                account="keys/a", idempotency_key="k", amounts=amounts(tokens=10),
                labels={"action": "x"},
            ),
        ),
        (
            "LedgerService/Record",
            lg.RecordRequest(account="keys/a", idempotency_key="k", amounts=amounts(tokens=4)),
        ),
        (
            "LedgerService/Commit",
            lg.CommitRequest(reservation=ended.id, actual=amounts(tokens=5)),
        ),
    ]  # fmt: skip
    for method, request in others:
        failed = bare.fails(method, request)
        assert (failed.code, failed.reason) == ("ALREADY_EXISTS", "IDEMPOTENCY_MISMATCH")
    assert picture(client, "keys") == before
    # The same key on another account, or in another kind of call, is another key.
    assert client.reserve("keys/b", tokens=11, idempotency_key="k").id != first.id


def test_an_empty_key_is_never_a_repeat_and_the_longest_one_is(
    client: bursar.Client, bare: Bare
) -> None:
    client.set_budget("empty", unit="tokens", limit=1_000)
    for key, distinct in (("", 3), ("k" * 256, 1), ("é" * 128, 1), ("\0", 1)):
        held = {
            bare("LedgerService/Reserve", reserve("empty/a", key, 10)).reservation.id
            for _ in range(3)
        }
        assert len(held) == distinct, key
    for key, times in (("", 3), ("r", 1)):
        before = balance(client, "empty")[1]
        record = lg.RecordRequest(account="empty/a", idempotency_key=key, amounts=amounts(tokens=1))
        for _ in range(3):
            bare("LedgerService/Record", record)
        assert balance(client, "empty")[1] - before == times


def test_a_key_is_forgotten_after_its_retention_and_not_before() -> None:
    with (
        Daemon(reservations={"key_retention": "1s"}) as daemon,
        daemon.client() as client,
    ):
        first = client.reserve("acme", tokens=5, idempotency_key="k")
        first.commit(tokens=2)
        assert client.reserve("acme", tokens=5, idempotency_key="k").id == first.id
        again = first.id
        for _ in range(60):
            again = client.reserve("acme", tokens=5, idempotency_key="k").id
            if again != first.id:
                break
            time.sleep(0.1)
        assert again != first.id


def test_a_refusal_is_not_remembered(client: bursar.Client) -> None:
    client.set_budget("poor", unit="tokens", limit=5)
    with pytest.raises(bursar.BudgetExceeded):
        client.reserve("poor", tokens=10, idempotency_key="k")
    client.set_budget("poor", unit="tokens", limit=10)
    assert client.reserve("poor", tokens=10, idempotency_key="k").granted == {"tokens": 10}
