"""R10, R12 and R15 through the real socket: limits that move under load, huge amounts, bounds."""

import random
import threading
import time
from collections.abc import Iterator

import pytest
from support.bare import Bare, amounts, budget
from support.daemon import LONG, Daemon, balance, new_seed, picture
from support.wire import Call, Wire, call

import bursar
from bursar import Verdict
from bursar.v1 import account_pb2 as ac
from bursar.v1 import ledger_pb2 as lg

MOST = 2**63 - 1
LOAD_S = 30.0 if LONG else 3.0


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


class Load(threading.Thread):
    """Reserves, debits and commits on leaves below one root until it is stopped."""

    def __init__(self, daemon: Daemon, root: str, seed: int) -> None:
        super().__init__()
        self.stopping = threading.Event()
        self.calls = self.spent = 0
        self._daemon, self._root, self._dice = daemon, root, random.Random(seed)

    def run(self) -> None:
        with Wire(self._daemon.socket_path, connections=8) as wire:
            self.calls = wire.keep_busy(self._next, self._reserves(), in_flight=64)

    def _reserves(self) -> Iterator[Call]:
        while not self.stopping.is_set():
            account = f"{self._root}/{self._dice.choice('abc')}/x"
            wish = amounts(tokens=self._dice.randint(1, 20))
            yield call("LedgerService/Reserve", lg.ReserveRequest(account=account, amounts=wish))

    def _next(self, method: str, _: bytes, answer: bytes | None) -> Iterator[Call]:
        assert answer is not None, f"{method} failed"
        if method == "LedgerService/Commit":
            self.spent += lg.CommitResponse.FromString(answer).spent[0].value
        if method != "LedgerService/Reserve":
            return
        reserved = lg.ReserveResponse.FromString(answer)
        if reserved.HasField("reservation"):
            used = amounts(tokens=self._dice.randint(1, 25))
            commit = lg.CommitRequest(reservation=reserved.reservation.id, actual=used)
            yield call("LedgerService/Commit", commit)


@pytest.mark.timeout(120)
def test_limits_move_under_load_and_nothing_underflows(
    daemon: Daemon, client: bursar.Client
) -> None:
    """R10. Method: an operator lowers, raises and freezes at random while 64 calls are under way;
    every look at the root adds up, and a lowered, raised or frozen root acts at once."""
    seed = new_seed()
    print(f"seed {seed}")
    dice = random.Random(seed)
    client.set_budget("busy", unit="tokens", limit=1_000)
    load = Load(daemon, "busy", seed)
    load.start()
    limit, until = 1_000, time.monotonic() + LOAD_S
    try:
        while time.monotonic() < until:
            kind = dice.choice(("below", "zero", "raise", "freeze", "look"))
            [now] = client.get_account("busy").balances
            if kind == "raise":
                limit = now.spent + now.held + dice.randint(1, 5_000)
            elif kind in ("below", "zero"):
                limit = 0 if kind == "zero" else now.spent // 2
            elif kind == "freeze":
                client.freeze("busy")
                with pytest.raises(bursar.AccountFrozen):
                    client.reserve("busy/a/x", tokens=1)
                client.unfreeze("busy")
            set_to = client.set_budget("busy", unit="tokens", limit=limit)
            assert (set_to.limit, set_to.spent >= 0, set_to.held >= 0) == (limit, True, True)
            if kind in ("below", "zero") and set_to.remaining <= 0:
                with pytest.raises(bursar.BudgetExceeded) as caught:
                    client.reserve("busy/a/x", tokens=1)
                assert caught.value.account == "busy"
            balance(client, "busy")
    finally:
        load.stopping.set()
        load.join(30)
    print(f"{load.calls} calls under the operator's hands")
    assert load.calls > 100
    assert balance(client, "busy") == (0, load.spent, limit - load.spent)


def test_a_limit_below_the_holds_keeps_them_and_refuses_top_ups(client: bursar.Client) -> None:
    client.set_budget("low", unit="tokens", limit=100)
    kept = client.reserve("low/a", tokens=60)
    kept.debit(tokens=30)
    assert client.set_budget("low", unit="tokens", limit=50).remaining == -10
    assert balance(client, "low") == (30, 30, -10)
    with pytest.raises(bursar.BudgetExceeded):
        client.extend(kept.id, tokens=61)
    assert kept.debit(tokens=40).verdict is not Verdict.STOP
    assert client.set_budget("low", unit="tokens", limit=10).remaining == -50
    assert kept.debit(tokens=41).verdict is Verdict.STOP
    assert kept.commit(tokens=45).verdict is Verdict.STOP
    assert balance(client, "low") == (0, 45, -35)
    client.set_budget("low", unit="tokens", limit=46)
    assert client.reserve("low/a", tokens=1).granted == {"tokens": 1}


def test_a_raised_limit_never_ends_a_freeze(client: bursar.Client) -> None:
    client.set_budget("cold", unit="tokens", limit=1)
    client.freeze("cold", reason="audit")
    client.set_budget("cold", unit="tokens", limit=1_000)
    with pytest.raises(bursar.AccountFrozen):
        client.reserve("cold/a", tokens=1)
    account = client.get_account("cold/a")
    assert (account.frozen, account.stopped) == (False, True)
    client.unfreeze("cold")
    client.reserve("cold/a", tokens=1)


def test_amounts_up_to_the_last_one_are_counted_exactly(client: bursar.Client, bare: Bare) -> None:
    """R12 at the edge: 2^63 - 1 can be a limit, a hold and a spend; one more is an error."""
    client.set_budget("huge", unit="tokens", limit=MOST)
    whole = client.reserve("huge/a", tokens=MOST)
    assert balance(client, "huge") == (MOST, 0, 0)
    with pytest.raises(bursar.BudgetExceeded) as caught:
        client.reserve("huge/a", tokens=1)
    assert caught.value.shortfall == 1
    with pytest.raises(bursar.BudgetExceeded) as caught:
        client.reserve("huge/a", tokens=MOST)
    assert caught.value.shortfall == MOST
    assert whole.debit(tokens=MOST).verdict is not Verdict.STOP
    assert whole.commit(tokens=MOST).spent == {"tokens": MOST}
    assert balance(client, "huge") == (0, MOST, 0)
    before = picture(client, "huge")
    over = bare.fails(
        "LedgerService/Record", lg.RecordRequest(account="huge/a", amounts=amounts(tokens=1))
    )
    assert (over.code, over.reason) == ("OUT_OF_RANGE", "AMOUNT_OVERFLOW")
    assert picture(client, "huge") == before
    assert client.set_budget("huge", unit="tokens", limit=0).remaining == -MOST
    assert client.set_budget("huge", unit="tokens", limit=MOST).remaining == 0


def test_a_sum_past_the_range_is_an_error_that_changes_nothing(
    client: bursar.Client, bare: Bare
) -> None:
    client.set_budget("sums", unit="tokens", limit=10)
    client.set_budget("sums/a", unit="tokens", limit=MOST)
    client.record("sums/a", tokens=MOST - 5)
    held = client.reserve("sums/a/x", tokens=0, idempotency_key="zero")
    before = picture(client, "sums")
    for method, request in (
        ("Record", lg.RecordRequest(account="sums/a", amounts=amounts(tokens=6))),
        ("Record", lg.RecordRequest(account="sums", amounts=amounts(tokens=MOST))),
        ("Commit", lg.CommitRequest(reservation=held.id, actual=amounts(tokens=MOST))),
    ):
        failed = bare.fails(f"LedgerService/{method}", request)
        assert (failed.code, failed.reason) == ("OUT_OF_RANGE", "AMOUNT_OVERFLOW"), method
        assert picture(client, "sums") == before
    assert held.commit(tokens=5).spent == {"tokens": 5}
    assert balance(client, "sums")[1:] == (MOST, 10 - MOST)


def test_an_account_without_a_budget_takes_any_amount_any_number_of_times(
    client: bursar.Client,
) -> None:
    for _ in range(3):
        client.reserve("free/a", tokens=MOST).commit(tokens=MOST)
        client.record("free/a", tokens=MOST)
    assert client.get_account("free/a").balances == ()


def test_halves_of_the_range_at_once_are_not_refused_for_one_another(
    daemon: Daemon, client: bursar.Client
) -> None:
    """R2 and R3 where sums of tentative charges would pass the range: exactly one of 64 fits."""
    half = 2**62
    with Wire(daemon.socket_path, connections=16) as wire:
        for run in range(20):
            client.set_budget(f"half{run}", unit="tokens", limit=half)
            client.set_budget(f"half{run}/a", unit="tokens", limit=MOST)
            request = lg.ReserveRequest(account=f"half{run}/a", amounts=amounts(tokens=half))
            calls = [call("LedgerService/Reserve", request)] * 64
            answered = wire.all_at_once(calls, held=daemon.stopped())
            parsed = [lg.ReserveResponse.FromString(one or b"") for one in answered]
            assert sum(one.HasField("reservation") for one in parsed) == 1
            assert balance(client, f"half{run}") == (half, 0, 0)


def test_at_the_maximum_of_accounts_new_ones_are_refused_by_name_and_old_ones_work() -> None:
    limits = {"max_accounts": 20, "max_children": 8, "account_idle": "1s"}
    with Daemon(limits=limits) as daemon, daemon.client() as client, Bare(daemon.target) as bare:
        client.set_budget("acme", unit="tokens", limit=1_000)
        for number in range(8):
            client.reserve(f"acme/{number}", tokens=1).commit(tokens=1)
        crowded = bare.fails(
            "LedgerService/Reserve",
            lg.ReserveRequest(account="acme/9", amounts=amounts(tokens=1)),
        )
        assert (crowded.code, crowded.reason) == ("RESOURCE_EXHAUSTED", "ACCOUNT_LIMIT_REACHED")
        assert crowded.metadata["max"] == "8"
        for number in range(11):
            client.set_budget(f"org{number}", unit="tokens", limit=1)
        before = picture(client)
        assert len(before) == 20
        full = bare.fails("AccountService/SetBudget", budget("one-more", 1))
        assert (full.code, full.reason) == ("RESOURCE_EXHAUSTED", "ACCOUNT_LIMIT_REACHED")
        assert full.metadata["max"] == "20"
        deep = bare.fails("AccountService/SetBudget", budget("acme/0/x/y/z", 1))
        assert deep.reason == "ACCOUNT_LIMIT_REACHED"
        assert picture(client) == before
        client.reserve("acme/0", tokens=1).commit(tokens=1)
        # Idle accounts without a budget of their own retire, and make room.
        deadline = time.monotonic() + 20
        while "acme/7" in picture(client):
            assert time.monotonic() < deadline, "nothing retired"
            time.sleep(0.2)
        client.reserve("acme/9", tokens=1).commit(tokens=1)
        assert balance(client, "acme") == (0, 10, 990)


def test_at_the_maximum_of_reservations_new_ones_are_refused_by_name_until_room_is_made() -> None:
    settings = {"key_retention": "1s"}
    with (
        Daemon(limits={"max_reservations": 50}, reservations=settings) as daemon,
        daemon.client() as client,
        Bare(daemon.target) as bare,
    ):
        client.set_budget("acme", unit="tokens", limit=1_000)
        held = [client.reserve("acme", tokens=1, ttl_s=600) for _ in range(50)]
        before = picture(client)
        one_more = lg.ReserveRequest(account="acme", amounts=amounts(tokens=1))
        record = lg.RecordRequest(account="acme", amounts=amounts(tokens=1))
        for method, request in (("Reserve", one_more), ("Record", record)):
            full = bare.fails(f"LedgerService/{method}", request)
            assert (full.code, full.reason) == ("RESOURCE_EXHAUSTED", "RESERVATION_LIMIT_REACHED")
            assert full.metadata["max"] == "50"
        assert picture(client) == before
        assert client.get_reservation(held[0].id).granted == {"tokens": 1}
        for one in held[:5]:
            one.commit(tokens=1)
        deadline = time.monotonic() + 20
        made = 0
        while made < 5:
            assert time.monotonic() < deadline, "ended reservations are not forgotten"
            try:
                bare("LedgerService/Reserve", one_more)
                made += 1
            except Exception:  # noqa: BLE001 -- the assertion above bounds it
                time.sleep(0.1)
        assert balance(client, "acme") == (50, 5, 945)


def test_keys_that_are_remembered_count_against_the_maximum_and_none_is_evicted() -> None:
    """R15: ended reservations wait for their retention; a new call never makes them forgotten."""
    with (
        Daemon(limits={"max_reservations": 30}, reservations={"key_retention": "1h"}) as daemon,
        daemon.client() as client,
        Bare(daemon.target) as bare,
    ):
        client.set_budget("acme", unit="tokens", limit=1_000)
        for number in range(20):
            client.reserve("acme", tokens=2, idempotency_key=f"k{number}").commit(tokens=1)
        for number in range(10):
            client.record("acme", tokens=1, idempotency_key=f"r{number}")
        before = picture(client)
        reserve = lg.ReserveRequest(
            account="acme", idempotency_key="new", amounts=amounts(tokens=1)
        )
        record = lg.RecordRequest(account="acme", amounts=amounts(tokens=1))
        for method, request in (("Reserve", reserve), ("Record", record)):
            full = bare.fails(f"LedgerService/{method}", request)
            assert (full.code, full.reason) == ("RESOURCE_EXHAUSTED", "RESERVATION_LIMIT_REACHED")
        for number in range(20):
            again = client.reserve("acme", tokens=2, idempotency_key=f"k{number}")
            assert client.get_reservation(again.id).state is bursar.ReservationState.COMMITTED
        for number in range(10):
            client.record("acme", tokens=1, idempotency_key=f"r{number}")
        assert picture(client) == before
        assert balance(client, "acme") == (0, 30, 970)


def test_a_daemon_with_more_accounts_configured_than_it_may_hold_says_so_and_ends() -> None:
    accounts = [{"path": f"org{number}"} for number in range(5)]
    broken = Daemon(limits={"max_accounts": 3}, accounts=accounts)
    with pytest.raises(bursar.SidecarUnavailable, match="maximum of 3"), broken:
        pass


def test_a_reservation_is_topped_up_and_carved_a_bounded_number_of_times_by_name(
    client: bursar.Client, bare: Bare
) -> None:
    """Top-ups in one period share a slice; a thousand of them are no more than one."""
    client.set_budget("top", unit="tokens", limit=10_000)
    one = client.reserve("top/a", tokens=1)
    for total in range(2, 1_000):
        bare("LedgerService/Extend", lg.ExtendRequest(
            reservation=one.id, granted=amounts(tokens=total)
        ))  # fmt: skip
    assert balance(client, "top") == (999, 0, 9_001)
    children = [client.reserve("top/a/x", tokens=1, parent=one.id) for _ in range(100)]
    for child in children:
        child.commit(tokens=1)
    assert one.commit(tokens=0).returned == {"tokens": 899}
    assert balance(client, "top") == (0, 100, 9_900)


def test_watching_and_listing_go_on_while_accounts_come_and_go(
    daemon: Daemon, client: bursar.Client
) -> None:
    with daemon.client() as watcher:
        watch = watcher.watch_accounts("watched", min_interval_s=0.05)
        next(watch)
        for number in range(50):
            client.set_budget(f"watched/{number}", unit="tokens", limit=number)
        seen: set[str] = set()
        while len(seen) < 51:
            seen |= {account.path for account in next(watch).accounts}
    request = ac.ListAccountsRequest(account="watched", page_size=7)
    with Bare(daemon.target) as bare:
        paths: list[str] = []
        while True:
            page = bare("AccountService/ListAccounts", request)
            paths += [account.path for account in page.accounts]
            if not page.next_page_token:
                break
            request.page_token = page.next_page_token
    assert paths == sorted(seen)
