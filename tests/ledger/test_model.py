"""The ledger against a plain model: random calls through the SDK, on a real daemon.

The model is sequential Python with dictionaries; it knows R1, R4, R5, R7, R8, R10 and R16's money,
and nothing of windows' words. After every step each account has to stand as the model says.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from support.daemon import LONG, Daemon

import bursar

UNITS = ("tokens", "calls")
LEAVES = ("", "/a", "/a/b", "/c")
AMOUNT = st.integers(0, 60) | st.sampled_from([2**62, 2**63 - 1])
SMALL = st.integers(0, 60)
ROOTS = (f"m{number}" for number in itertools.count())


@dataclass
class Window:
    """One budget: what is left is limit - spent - held."""

    limit: int
    spent: int = 0
    held: int = 0

    @property
    def remaining(self) -> int:
        return self.limit - self.spent - self.held


@dataclass
class Slice:
    """A part of a hold, and the windows that it counts in."""

    windows: dict[tuple[str, str], Window]
    held: dict[str, int]
    used: dict[str, int]


@dataclass
class Hold:
    """A reservation as the model knows it."""

    account: str
    slices: list[Slice]
    handle: Any
    state: str = "pending"
    granted: dict[str, int] = field(default_factory=dict)
    spent: dict[str, int] = field(default_factory=dict)


@dataclass
class Model:
    """The accounts of one root."""

    windows: dict[tuple[str, str], Window] = field(default_factory=dict)  # by account and unit
    frozen: set[str] = field(default_factory=set)
    open: dict[str, int] = field(default_factory=dict)

    def chain(self, account: str) -> dict[tuple[str, str], Window]:
        """The windows of an account and its ancestors."""
        return {
            key: window
            for key, window in self.windows.items()
            if (account + "/").startswith(key[0] + "/")
        }

    def stopped(self, account: str) -> bool:
        return any((account + "/").startswith(one + "/") for one in self.frozen)

    def fits(self, account: str, amounts: dict[str, int]) -> bool:
        return all(
            window.remaining >= amounts.get(unit, 0)
            for (_, unit), window in self.chain(account).items()
            if amounts.get(unit, 0) > 0
        )

    def charge(self, account: str, amounts: dict[str, int]) -> Slice:
        chain = self.chain(account)
        for (_, unit), window in chain.items():
            window.held += amounts.get(unit, 0)
        return Slice(chain, dict(amounts), {})

    def overflows(self, account: str, amounts: dict[str, int]) -> bool:
        return any(
            window.spent + window.held + amounts.get(unit, 0) > 2**63 - 1
            for (_, unit), window in self.chain(account).items()
        )

    def spend(self, account: str, amounts: dict[str, int]) -> None:
        for (_, unit), window in self.chain(account).items():
            window.spent += amounts.get(unit, 0)


def spend_slice(one: Slice, unit: str, amount: int) -> None:
    """Turns held into spent (negative: back)."""
    one.used[unit] = one.used.get(unit, 0) + amount
    for (_, counted), window in one.windows.items():
        if counted == unit:
            window.held -= amount
            window.spent += amount


def give_back(one: Slice, unit: str, amount: int) -> None:
    one.held[unit] -= amount
    for (_, counted), window in one.windows.items():
        if counted == unit:
            window.held -= amount


class LedgerMachine(RuleBasedStateMachine):
    """Calls, each made on the daemon and on the model."""

    client: bursar.Client
    holds = Bundle("holds")

    @initialize(limit=st.integers(0, 200))
    def begin(self, limit: int) -> None:
        self.root = next(ROOTS)
        self.model = Model()
        self.keys: dict[str, int] = {}
        self.set_budget("", "tokens", limit)

    @rule(leaf=st.sampled_from(LEAVES), unit=st.sampled_from(UNITS), limit=AMOUNT)
    def set_budget(self, leaf: str, unit: str, limit: int) -> None:
        account = self.root + leaf
        answer = self.client.set_budget(account, unit=unit, limit=limit)
        window = self.model.windows.setdefault((account, unit), Window(limit))
        window.limit = limit
        assert answer.remaining == window.remaining

    @rule(
        target=holds,
        leaf=st.sampled_from(LEAVES),
        tokens=AMOUNT,
        calls=st.none() | SMALL,
        least=st.none() | SMALL,
    )
    def reserve(self, leaf: str, tokens: int, calls: int | None, least: int | None) -> Any:
        account = self.root + leaf
        wish = {"tokens": tokens} | ({"calls": calls} if calls is not None else {})
        least = min(least, tokens) if least is not None else None
        need = wish | ({"tokens": least} if least is not None else {})
        try:
            handle = self.client.reserve(
                account,
                amounts=wish,
                min_acceptable={"tokens": least} if least is not None else None,
                ttl_s=3_600,
            )
        except bursar.AccountFrozen as error:
            assert self.model.stopped(account)
            assert error.account in self.model.frozen
            return multiple()
        except bursar.BudgetExceeded as error:
            assert not self.model.fits(account, need)
            window = self.model.chain(account)[error.account, error.unit]
            assert error.shortfall == min(need[error.unit] - window.remaining, 2**63 - 1) > 0
            return multiple()
        assert not self.model.stopped(account)
        assert self.model.fits(account, need)
        granted = dict(wish)
        if least is not None:
            left = [w.remaining for (_, u), w in self.model.chain(account).items() if u == "tokens"]
            granted["tokens"] = min([tokens, *(max(one, 0) for one in left)])
        assert handle.granted == {unit: value for unit, value in granted.items() if value}
        hold = Hold(account, [self.model.charge(account, granted)], handle, granted=granted)
        self.model.open[account] = self.model.open.get(account, 0) + 1
        return hold

    @rule(hold=holds, unit=st.sampled_from(UNITS), used=SMALL)
    def debit(self, hold: Hold, unit: str, used: int) -> None:
        try:
            answer = self.client.debit(hold.handle.id, used={unit: used})
        except bursar.ReservationEnded:
            assert hold.state != "pending"
            return
        assert hold.state == "pending"
        rest = used - sum(one.used.get(unit, 0) for one in hold.slices)
        for one in hold.slices:
            part = min(rest, one.held.get(unit, 0) - one.used.get(unit, 0))
            if part > 0:
                spend_slice(one, unit, part)
                rest -= part
        if rest > 0:
            assert answer.verdict is bursar.Verdict.STOP

    @rule(hold=holds, tokens=AMOUNT)
    def extend(self, hold: Hold, tokens: int) -> None:
        held = sum(one.held.get("tokens", 0) for one in hold.slices)
        more = max(tokens - held, 0)
        fits = self.model.fits(hold.account, {"tokens": more})
        stopped = self.model.stopped(hold.account)
        try:
            self.client.extend(hold.handle.id, tokens=tokens)
        except bursar.ReservationEnded:
            assert hold.state != "pending"
        except bursar.AccountFrozen:
            assert stopped
            assert more
        except bursar.BudgetExceeded:
            assert not fits
        except bursar.LimitReached:
            assert len(hold.slices) == 8
        else:
            assert hold.state == "pending"
            assert not more or (fits and not stopped)
            if more:
                self._add(hold, self.model.charge(hold.account, {"tokens": more}))

    def _add(self, hold: Hold, new: Slice) -> None:
        for one in hold.slices:
            if one.windows.keys() == new.windows.keys():
                one.held["tokens"] = one.held.get("tokens", 0) + new.held["tokens"]
                return
        hold.slices.append(new)

    @rule(hold=holds, tokens=AMOUNT)
    def commit(self, hold: Hold, tokens: int) -> None:
        try:
            answer = self.client.commit(hold.handle.id, tokens=tokens)
        except bursar.IdempotencyMismatch:
            assert hold.state == "committed"
            assert hold.spent["tokens"] != tokens
            return
        except bursar.InvalidRequest as error:
            assert error.reason == "AMOUNT_OVERFLOW"
            spent = hold.spent.get("tokens", 0) if hold.state == "released" else sum(
                one.held.get("tokens", 0) for one in hold.slices
            )  # fmt: skip
            assert self.model.overflows(hold.account, {"tokens": max(0, tokens - spent)})
            return
        if hold.state == "committed":
            assert answer.spent.get("tokens", 0) == hold.spent["tokens"] == tokens
            return
        if hold.state == "pending":
            held_calls = sum(one.held.get("calls", 0) for one in hold.slices)
            self._settle(hold, {"tokens": tokens, "calls": held_calls})
        else:
            self._correct(hold, tokens)
        hold.state = "committed"
        assert answer.spent.get("tokens", 0) == tokens

    def _correct(self, hold: Hold, tokens: int) -> None:
        """A commit after a release: the truth counts, where it was spent or now."""
        before = hold.spent.get("tokens", 0)
        if tokens > before:
            self.model.spend(hold.account, {"tokens": tokens - before})
        less = before - tokens
        for one in reversed(hold.slices):
            part = max(0, min(less, one.used.get("tokens", 0)))
            spend_slice(one, "tokens", -part)
            if part:
                give_back(one, "tokens", part)
            less -= part
        hold.spent["tokens"] = tokens
        calls = max(hold.granted.get("calls", 0), hold.spent.get("calls", 0))
        self.model.spend(hold.account, {"calls": calls - hold.spent.get("calls", 0)})
        hold.spent["calls"] = calls

    @rule(hold=holds)
    def release(self, hold: Hold) -> None:
        answer = self.client.release(hold.handle.id)
        if hold.state == "pending":
            used = {unit: sum(one.used.get(unit, 0) for one in hold.slices) for unit in UNITS}
            self._settle(hold, used)
            hold.state = "released"
        assert answer.state.name.lower() == hold.state

    def _settle(self, hold: Hold, spent: dict[str, int]) -> None:
        for unit in UNITS:
            rest = spent.get(unit, 0)
            for one in hold.slices:
                part = min(rest, one.held.get(unit, 0))
                spend_slice(one, unit, part - one.used.get(unit, 0))
                give_back(one, unit, one.held.get(unit, 0) - part) if unit in one.held else None
                rest -= part
            self.model.spend(hold.account, {unit: rest})
        hold.spent = dict(spent)
        self.model.open[hold.account] -= 1

    @rule(leaf=st.sampled_from(LEAVES), tokens=AMOUNT, key=st.sampled_from(["", "k"]))
    def record(self, leaf: str, tokens: int, key: str) -> None:
        account = self.root + leaf
        known = self.keys.get(account) if key else None
        try:
            self.client.record(account, tokens=tokens, idempotency_key=key)
        except bursar.IdempotencyMismatch:
            assert known is not None
            assert known != tokens
            return
        except bursar.InvalidRequest as error:
            assert error.reason == "AMOUNT_OVERFLOW"
            assert self.model.overflows(account, {"tokens": tokens})
            return
        if known is None:
            self.model.spend(account, {"tokens": tokens})
            if key:
                self.keys[account] = tokens
        else:
            assert known == tokens

    @rule(leaf=st.sampled_from(LEAVES))
    def freeze(self, leaf: str) -> None:
        assert self.client.freeze(self.root + leaf).stopped
        self.model.frozen.add(self.root + leaf)

    @rule(leaf=st.sampled_from(LEAVES))
    def unfreeze(self, leaf: str) -> None:
        self.client.unfreeze(self.root + leaf)
        self.model.frozen.discard(self.root + leaf)

    @rule(leaf=st.sampled_from(LEAVES), tokens=AMOUNT)
    def check(self, leaf: str, tokens: int) -> None:
        account = self.root + leaf
        answer = self.client.check(account, tokens=tokens)
        admits = self.model.fits(account, {"tokens": tokens}) and not self.model.stopped(account)
        assert (answer.refusal is None) == admits

    @invariant()
    def every_account_stands_as_the_model_says(self) -> None:
        if not hasattr(self, "root"):
            return
        seen: dict[tuple[str, str], tuple[int, int, int, int]] = {}
        opened: dict[str, int] = {}
        for account in self.client.list_accounts(self.root):
            opened[account.path] = account.open_reservation_count
            assert account.stopped == self.model.stopped(account.path)
            for one in account.balances:
                seen[account.path, one.unit] = (one.limit, one.held, one.spent, one.remaining)
        expected = {
            key: (one.limit, one.held, one.spent, max(one.remaining, -(2**63)))
            for key, one in self.model.windows.items()
        }
        assert seen == expected
        for path, count in opened.items():
            below = (n for a, n in self.model.open.items() if (a + "/").startswith(path + "/"))
            assert count == sum(below)


@pytest.fixture(scope="module")
def client() -> Iterator[bursar.Client]:
    with Daemon() as daemon, daemon.client(timeout_s=30) as one:
        yield one


@pytest.mark.timeout(3_000 if LONG else 240)
def test_any_sequence_of_calls_comes_to_what_a_plain_model_says(client: bursar.Client) -> None:
    """A failing sequence is shrunk and printed; hypothesis keeps it and tries it again first."""
    machine: Any = type("Machine", (LedgerMachine,), {"client": client})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=2_000 if LONG else 300,
            stateful_step_count=50 if LONG else 30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )
