"""The watchdog's books on a real ledger: what was measured is spent to the unit, memory follows."""

import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from google.protobuf.message import Message
from support.daemon import LONG, new_seed

from bursar import _core
from bursar._errors import from_reason
from bursar.daemon.config import Config
from bursar.v1 import account_pb2 as ac
from bursar.v1 import ledger_pb2 as lg
from bursar.watchdog import books
from bursar.watchdog.books import Books
from bursar.watchdog.journal import Journal

GIB: Final = 2**30
MIB: Final = 2**20
TRIES: Final = 400 if LONG else 25
STEPS: Final = 60
ACCOUNTS: Final = ("acme", "acme/a", "acme/a/x", "acme/b")
UNITS: Final = ("gpu_ms", "vram_mib_s", "energy_mj")


class Ledger:
    """An embedded ledger, and books on it that can be lost."""

    def __init__(self, journal: Path | None = None) -> None:
        config = {"store": {"path": ""}, "accounts": [{"path": "acme/**"}]}
        self._engine = _core.Engine(Config.from_dict(config).to_core_json(listen=False))
        self._path = journal
        self.failing = 0
        self.open()

    def open(self) -> None:
        """Begins anew from the journal, as after a crash."""
        self.journal = Journal(self._path)
        self.books = Books(self.call, self.journal)

    def close(self) -> None:
        self.journal.close()
        self._engine.close()

    def call(self, method: str, request: Message, answer: type[Message]) -> Any:
        if self.failing:
            self.failing -= 1
            raise from_reason("UNAVAILABLE", "the store failed", reason="STORE_UNAVAILABLE")
        try:
            return answer.FromString(self._engine.call(method, request.SerializeToString()))
        except _core.CoreError as error:
            raise from_reason(
                error.code, error.message, reason=error.reason, metadata=error.metadata
            ) from None

    def limit(self, account: str, unit: str, limit: int, kind: Any = ac.Period.KIND_TOTAL) -> None:
        budget = ac.Budget(account=account, unit=unit, limit=limit, period=ac.Period(kind=kind))
        self.call(
            "AccountService/SetBudget", ac.SetBudgetRequest(budget=budget), ac.SetBudgetResponse
        )

    def freeze(self, account: str) -> None:
        request = ac.FreezeRequest(account=account, reason="test")
        self.call("AccountService/Freeze", request, ac.FreezeResponse)

    def unfreeze(self, account: str) -> None:
        request = ac.UnfreezeRequest(account=account)
        self.call("AccountService/Unfreeze", request, ac.UnfreezeResponse)

    def balance(self, account: str, unit: str) -> lg.Balance:
        [found] = [one for one in self.books.windows([account]) if one.unit == unit]
        return found

    def end_all(self) -> None:
        """Somebody ends every hold of the watchdog."""
        for hold in self.journal.holds():
            request = lg.ReleaseRequest(reservation=hold.reservation)
            self.call("LedgerService/Release", request, lg.ReleaseResponse)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    made = Ledger(tmp_path / "journal")
    yield made
    made.close()


def _trouble(ledger: Ledger, account: str, rng: random.Random) -> None:
    """Every other time, something that others do to an account or to the watchdog's holds."""
    match rng.randrange(12):
        case 0:
            ledger.freeze(account)
        case 1:
            ledger.unfreeze(account)
        case 2:
            ledger.end_all()
        case 3:
            ledger.books.settle(account)
        case 4:
            ledger.limit(account, rng.choice(UNITS), rng.choice([0, 1000, 10**12]))
        case 5:
            ledger.failing = rng.choice([1, 2])


def _spend_at_random(ledger: Ledger, rng: random.Random) -> Counter[tuple[str, str]]:
    """Spends, while everything happens that may; returns what it was in truth."""
    truth: Counter[tuple[str, str]] = Counter()
    now_ms = 0
    for account in ACCOUNTS:
        for unit in UNITS:
            ledger.limit(account, unit, rng.choice([0, 50, 5000, 10**12]))
    for _ in range(STEPS):
        now_ms += rng.choice([100, 1000, 30_000, 61_000])
        account = rng.choice(ACCOUNTS)
        amounts = {unit: rng.choice([0, 1, 7, 1000]) for unit in rng.sample(UNITS, 2)}
        _trouble(ledger, account, rng)
        ledger.books.spend(account, amounts, now_ms)
        ledger.failing = 0
        for unit, amount in amounts.items():
            truth[account, unit] += amount
    for account in ACCOUNTS:
        for _ in range(3):  # what is owed since a failure, too
            ledger.books.spend(account, {}, now_ms)
        ledger.books.settle(account)
    return truth


def test_what_was_measured_is_spent_to_the_unit_whatever_happens() -> None:
    seed = new_seed()
    print(f"seed {seed}: {TRIES} tries of {STEPS} steps")
    for number in range(TRIES):
        ledger = Ledger()
        truth = _spend_at_random(ledger, random.Random(f"{seed}.{number}"))
        for account in ACCOUNTS:
            below = [one for one in ACCOUNTS if f"{one}/".startswith(f"{account}/")]
            for unit in UNITS:
                balance = ledger.balance(account, unit)
                assert balance.spent == sum(truth[one, unit] for one in below), f"try {number}"
                assert balance.held == 0
        assert ledger.journal.holds() == []
        ledger.close()


def test_what_passes_the_limit_is_overdraft_and_counts(ledger: Ledger) -> None:
    ledger.limit("acme", "gpu_ms", 1000)
    for second in range(30):
        ledger.books.spend("acme/a", {"gpu_ms": 100}, second * 1000)
    ledger.books.settle("acme/a")
    balance = ledger.balance("acme", "gpu_ms")
    assert (balance.spent, balance.held, balance.remaining) == (3000, 0, -2000)


def test_a_minutes_worth_is_committed_in_the_window_that_it_fell_into(ledger: Ledger) -> None:
    ledger.limit("acme", "gpu_ms", 10**9)
    for second in range(125):
        ledger.books.spend("acme", {"gpu_ms": 1000}, second * 1000)
        assert len(ledger.journal.holds()) <= 1
    assert ledger.balance("acme", "gpu_ms").spent >= 120_000


def test_nobodys_account_is_told_of_and_owes(ledger: Ledger) -> None:
    ledger.books.spend("nobody", {"gpu_ms": 5}, 0)
    ledger.books.occupy("nobody", GIB, 0)
    assert ledger.books.unknown == {"nobody": None}
    assert ledger.journal.holds() == []
    ledger.limit("nobody", "gpu_ms", 100)
    ledger.books.spend("nobody", {"gpu_ms": 1}, 1000)
    ledger.books.settle("nobody")
    assert ledger.books.unknown == {}
    assert ledger.balance("nobody", "gpu_ms").spent == 6


@pytest.mark.parametrize("account", ["pods/none/", "a//b", "x" * 200, "{pod}", ""])
def test_an_account_that_is_none_is_borne(account: str, ledger: Ledger) -> None:
    assert ledger.books.occupy(account, GIB, 0) is None
    ledger.books.spend(account, {"gpu_ms": 1}, 0)
    ledger.books.settle(account)
    assert ledger.books.windows([account]) == []


def test_memory_follows_up_and_down(ledger: Ledger) -> None:
    seed = new_seed()
    print(f"seed {seed}")
    rng = random.Random(seed)
    ledger.limit("acme", "vram_bytes", 80 * GIB)
    size, now_ms = GIB, 0
    for _ in range(500):
        now_ms += rng.choice([100, 1000, 31_000])
        size = max(0, min(80 * GIB, size + rng.randrange(-300 * MIB, 320 * MIB)))
        assert ledger.books.occupy("acme/a", size, now_ms) is None
        held = ledger.books.held_bytes("acme/a")
        assert size <= held <= size + 64 * MIB
        assert ledger.balance("acme", "vram_bytes").held == held
        assert len(ledger.journal.holds()) == bool(held)
    assert ledger.books.occupy("acme/a", 0, now_ms) is None
    assert ledger.balance("acme", "vram_bytes").held == 0


def test_a_hold_that_is_raised_hundreds_of_times_is_held_once(ledger: Ledger) -> None:
    """Each new budget is a new slice of a hold, and a hold takes so many only."""
    units = ["gpu_ms", "tokens", "usd_nanos", "energy_mj", "calls", "vram_mib_s", "concurrency"]
    ledger.limit("acme", "vram_bytes", 400 * MIB)
    for number in range(1, 400):
        if number % 20 == 0 and number // 20 <= 2 * len(units):
            account = "acme" if number % 40 else "acme/a"
            ledger.limit(account, units[number // 20 % len(units)], 10**12)
        assert ledger.books.occupy("acme/a", number * MIB, number * 1000) is None
        assert ledger.balance("acme", "vram_bytes").held == number * MIB
    assert len(ledger.journal.holds()) == 1


def test_the_limit_that_is_passed_is_named_also_an_ancestors(ledger: Ledger) -> None:
    ledger.limit("acme", "vram_bytes", 10 * GIB)
    ledger.limit("acme/a", "vram_bytes", 8 * GIB)
    assert ledger.books.occupy("acme/b", 6 * GIB, 0) is None
    over = ledger.books.occupy("acme/a", 5 * GIB, 0)
    assert over is not None
    assert (over.account, over.limit, over.used) == ("acme", 10 * GIB, 11 * GIB)
    assert ledger.books.held_bytes("acme/a") == 4 * GIB
    assert ledger.books.occupy("acme/b", 0, 1) is None
    over = ledger.books.occupy("acme/a", 9 * GIB, 2)
    assert over is not None
    assert (over.account, over.limit, over.used) == ("acme/a", 8 * GIB, 9 * GIB)
    assert ledger.books.occupy("acme/a", 7 * GIB, 3) is None
    assert ledger.balance("acme", "vram_bytes").held == 7 * GIB


def test_a_freeze_does_not_hide_that_memory_is_over_nor_makes_it_so(ledger: Ledger) -> None:
    ledger.limit("acme", "vram_bytes", 4 * GIB)
    assert ledger.books.occupy("acme", 2 * GIB, 0) is None
    ledger.freeze("acme")
    assert ledger.books.occupy("acme", 3 * GIB, 1) is None
    over = ledger.books.occupy("acme", 5 * GIB, 2)
    assert over is not None
    assert over.used == 5 * GIB
    assert ledger.books.occupy("acme", GIB, 3) is None
    assert ledger.balance("acme", "vram_bytes").held == 2 * GIB


def test_a_budget_that_is_none_any_more_is_not_spent_and_one_that_cannot_be_asked_for_is(
    ledger: Ledger,
) -> None:
    ledger.limit("acme/a", "tokens", 5)
    assert not ledger.books.is_spent("acme/a", "tokens")
    assert not ledger.books.is_spent("acme/a", "usd_nanos")
    assert not ledger.books.is_spent("acme/gone", "tokens")
    ledger.failing = 1
    assert ledger.books.is_spent("acme/a", "tokens")
    record = lg.RecordRequest(account="acme/a", amounts=[lg.Amount(unit="tokens", value=5)])
    ledger.call("LedgerService/Record", record, lg.RecordResponse)
    assert ledger.books.is_spent("acme/a", "tokens")


def test_what_somebody_has_ended_is_held_anew(ledger: Ledger) -> None:
    ledger.limit("acme", "vram_bytes", 4 * GIB)
    ledger.books.occupy("acme", GIB, 0)
    ledger.end_all()
    ledger.books.occupy("acme", 2 * GIB, 1000)
    ledger.books.occupy("acme", 2 * GIB, 2000)
    assert ledger.balance("acme", "vram_bytes").held == 2 * GIB
    ledger.end_all()
    ledger.books.renew(40_000)
    assert ledger.journal.holds() == []
    ledger.books.occupy("acme", 2 * GIB, 41_000)
    assert ledger.balance("acme", "vram_bytes").held == 2 * GIB


def test_what_was_held_before_is_no_growth_where_it_cannot_be_held_anew(ledger: Ledger) -> None:
    ledger.limit("acme", "vram_bytes", 4 * GIB)
    assert ledger.books.occupy("acme/a", 3 * GIB, 0) is None
    ledger.end_all()
    assert ledger.books.occupy("acme/b", 2 * GIB, 0) is None
    ledger.books.renew(40_000)
    assert ledger.books.occupy("acme/a", 3 * GIB, 41_000) is None
    assert ledger.books.held_bytes("acme/a") == 2 * GIB
    over = ledger.books.occupy("acme/a", 3 * GIB + 1, 42_000)
    assert over is not None
    assert (over.account, over.used) == ("acme", 5 * GIB + 1)
    assert ledger.books.occupied == {"acme/a", "acme/b"}
    for account in ledger.books.occupied:
        assert ledger.books.occupy(account, 0, 43_000) is None
    assert ledger.books.occupied == set()


@pytest.mark.parametrize("size", [0, 2 * GIB, 7 * GIB])
@pytest.mark.parametrize("failures", range(1, 6))
def test_what_is_held_while_the_store_fails_is_not_held_twice(
    ledger: Ledger, failures: int, size: int
) -> None:
    ledger.limit("acme", "vram_bytes", 10 * GIB)
    assert ledger.books.occupy("acme/a", 6 * GIB, 0) is None
    ledger.failing = failures
    for now_ms in range(1000, 7000, 1000):
        assert ledger.books.occupy("acme/a", size, now_ms) is None
    assert ledger.balance("acme", "vram_bytes").held == size
    assert len(ledger.journal.holds()) == bool(size)


def test_memory_that_could_not_be_given_back_is_given_back_later(
    ledger: Ledger,
) -> None:
    ledger.limit("acme", "vram_bytes", 10 * GIB)
    assert ledger.books.occupy("acme/a", 6 * GIB, 0) is None
    ledger.failing = 1
    ledger.books.settle("acme/a")
    assert ledger.balance("acme", "vram_bytes").held == 6 * GIB
    ledger.books.settle("acme/a")
    assert ledger.balance("acme", "vram_bytes").held == 0
    assert ledger.books.occupied == set()


@pytest.mark.parametrize("first", ["acme/a", "acme/b"])
def test_a_budget_that_is_set_on_what_is_in_use_counts_all_of_it(
    ledger: Ledger, first: str
) -> None:
    sizes = {"acme/a": 3 * GIB, "acme/b": 6 * GIB}
    order = sorted(sizes, key=lambda one: one != first)
    for account in order:
        assert ledger.books.occupy(account, sizes[account], 0) is None
    ledger.limit("acme", "vram_bytes", 20 * GIB)
    for now_ms in (3000, 6000, 9000):
        ledger.books.look_anew()
        for account in order:
            assert ledger.books.occupy(account, sizes[account], now_ms) is None
            ledger.books.look_anew()
    assert ledger.balance("acme", "vram_bytes").held == 9 * GIB


def test_after_a_crash_memory_is_held_once_and_what_was_metered_counts(ledger: Ledger) -> None:
    ledger.limit("acme", "vram_bytes", 4 * GIB)
    ledger.limit("acme", "gpu_ms", 10**6)
    ledger.books.occupy("acme", 3 * GIB, 0)
    ledger.books.spend("acme", {"gpu_ms": 100}, 0)
    ledger.books.spend("acme", {"gpu_ms": 11}, 1000)
    for _ in range(3):
        ledger.journal.close()
        ledger.open()
        ledger.books.recover(2000)
        assert ledger.books.occupied == {"acme"}
        assert ledger.books.occupy("acme", 3 * GIB, 2000) is None
        assert ledger.balance("acme", "vram_bytes").held == 3 * GIB
        balance = ledger.balance("acme", "gpu_ms")
        assert (balance.spent, balance.held) == (111, 0)
        assert [one.unit for one in ledger.journal.holds()] == ["vram_bytes"]


def test_after_a_crash_what_has_ended_is_forgotten(ledger: Ledger) -> None:
    ledger.limit("acme", "vram_bytes", 4 * GIB)
    ledger.books.occupy("acme", 3 * GIB, 0)
    ledger.end_all()
    ledger.open()
    ledger.books.recover(0)
    assert ledger.books.occupied == set()
    assert ledger.journal.holds() == []


def test_nothing_is_kept_of_an_account_that_owes_nothing(ledger: Ledger) -> None:
    for number in range(50):
        ledger.books.spend(f"acme/{number}", {"gpu_ms": 5}, 0)
        ledger.books.spend(f"acme/{number}", {}, 0)
    assert ledger.books._owed == {}


def test_what_cannot_be_charged_is_kept_for_so_many_accounts(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(books, "OWED_MAX", 10)
    for number in range(30):
        ledger.books.spend(f"nobody/{number}", {"gpu_ms": 5}, 0)
        ledger.books.occupy(f"nobody/{number}", GIB, 0)
    kept = [f"nobody/{number}" for number in range(20, 30)]
    assert list(ledger.books._owed) == list(ledger.books.unknown) == kept
