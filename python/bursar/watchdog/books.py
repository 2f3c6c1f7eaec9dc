"""Carries what was metered into the ledger, through ordinary reservations.

What is used up (GPU time, energy, memory over time) has one reservation an account, debited at each
sample and committed at what was measured about once a minute, so that windows own what fell into
them. Memory has one reservation an account, which follows what is in use; where it cannot follow,
the refusal says which limit was passed. The calls are those of any client, without a socket.
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar, cast

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from bursar.exceptions import (
    AccountNotFound,
    BursarError,
    LimitReached,
    ReservationError,
)
from bursar.v1 import account_pb2 as ac
from bursar.v1 import ledger_pb2 as lg
from bursar.watchdog.journal import Hold, Journal

__all__ = ["Books", "Over", "chain"]

_VRAM: Final = "vram_bytes"
_TTL_S: Final = 120
_ROLL_MS: Final = 60_000
_RENEW_MS: Final = 30_000
_LOOK_MS: Final = 2_000
_OURS: Final = "watchdog: "  # how the reason of a freeze begins that is ours
_AHEAD: Final = 10  # samples' worth that is held before it is used
OWED_MAX: Final = 4096
"""The most accounts that what the ledger does not take is kept for; what is owed longest goes."""
_SLACK_BYTES: Final = 64 << 20  # less is not given back: it would come and go all the time

A = TypeVar("A", bound=Message)
Call = Callable[[str, Message, type[Message]], Message]


@dataclass(frozen=True, slots=True)
class Over:
    """A limit that is passed.

    Attributes:
        account: Whose limit: the account itself, or an ancestor.
        unit: What it counts.
        limit: What is allowed.
        used: What is used.
        has_grown: Whether it is what the account took in addition that passes it; otherwise the
            limit was set or lowered below what was there.
        refusal: What the ledger said, if it was asked.
    """

    account: str
    unit: str
    limit: int
    used: int
    has_grown: bool = True
    refusal: lg.Refusal | None = None


@dataclass(slots=True)
class _Meter:
    reservation: str
    granted: dict[str, int]
    opened_ms: int
    used: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class _Memory:
    reservation: str
    granted_bytes: int
    renewed_ms: int
    looked_ms: int = 0


def chain(account: str) -> list[str]:
    """The account and its ancestors, from itself up."""
    names = account.split("/")
    return ["/".join(names[:count]) for count in range(len(names), 0, -1)]


class Books:
    """The watchdog's reservations. Not safe to share between threads.

    Args:
        call: Makes one call: method, request and the type of the answer; raises BursarError.
        journal: Remembers the reservations over a crash.
    """

    def __init__(self, call: Call, journal: Journal) -> None:
        self._call = call
        self._journal = journal
        self._meters: dict[str, _Meter] = {}
        self._memory: dict[str, _Memory] = {}
        self._cut: dict[str, int] = {}  # what was held before: to hold it anew is no growth
        self._below: Counter[str] | None = None
        self._owed: dict[str, dict[str, int]] = {}
        self._seen: dict[str, Sequence[lg.Balance]] = {}
        self.unknown: dict[str, None] = {}
        """Accounts that do not exist and that no pattern creates: what they owe is kept apart."""

    def recover(self, now_ms: int) -> None:
        """Takes over what a crash has left: memory stays held, what was metered is settled."""
        for hold in self._journal.holds():
            try:
                info = self._get_reservation(hold.reservation)
            except BursarError:
                self._journal.drop_hold(hold.reservation)
                continue
            granted = {one.unit: one.value for one in info.granted}
            if info.state != lg.Reservation.STATE_PENDING:
                self._journal.drop_hold(hold.reservation)
            elif hold.unit == _VRAM and hold.account not in self._memory:
                memory = _Memory(hold.reservation, granted.get(_VRAM, 0), now_ms - _RENEW_MS)
                self._memory[hold.account] = memory
            else:
                with contextlib.suppress(BursarError):
                    self._end(hold.reservation)
                    self._journal.drop_hold(hold.reservation)

    def spend(self, account: str, amounts: Mapping[str, int], now_ms: int) -> None:
        """Debits what an account has used since the last call.

        What the ledger cannot take now (its store has failed, the account does not exist) is owed
        and tried again with the next call.
        """
        owed = self._owed.get(account, {})
        owed = {unit: owed.get(unit, 0) + amounts.get(unit, 0) for unit in {**owed, **amounts}}
        if not any(owed.values()):
            return
        self._owed[account] = owed
        _bound(self._owed)
        try:
            self._settle(account, owed, now_ms)
        except AccountNotFound:
            self._note_unknown(account)
            return
        except ReservationError:
            # It has ended meanwhile, at what was debited; what is owed since then goes to another.
            self._journal.drop_hold(self._meters.pop(account).reservation)
            return
        except BursarError:
            return
        self.unknown.pop(account, None)
        del self._owed[account]

    def _note_unknown(self, account: str) -> None:
        self.unknown.setdefault(account)
        _bound(self.unknown)

    def _settle(self, account: str, owed: dict[str, int], now_ms: int) -> None:
        meter = self._meters.get(account)
        if meter is None:
            meter = self._open(account, owed, now_ms)
        if meter is None:
            record = lg.RecordRequest(account=account, amounts=_amounts(owed))
            self._ask("LedgerService/Record", record, lg.RecordResponse)
            return
        used, fits = meter.used.copy(), True
        for unit, amount in owed.items():
            used[unit] = used.get(unit, 0) + amount
            fits = fits and used[unit] <= meter.granted.get(unit, 0)
        if fits and now_ms - meter.opened_ms < _ROLL_MS:
            request = lg.DebitRequest(reservation=meter.reservation, used=_amounts(used))
            self._ask("LedgerService/Debit", request, lg.DebitResponse)
            meter.used = used
            return
        self._close(account, used)

    def _open(self, account: str, owed: Mapping[str, int], now_ms: int) -> _Meter | None:
        """Holds what is owed and some of what comes; None when the ledger grants nothing."""
        ahead = {unit: amount * (1 + _AHEAD) for unit, amount in owed.items() if amount}
        least = dict.fromkeys(ahead, 0)
        request = lg.ReserveRequest(
            account=account,
            amounts=_amounts(ahead),
            min_acceptable=_amounts(least),
            ttl=Duration(seconds=_TTL_S),
            labels={"action": "watchdog"},
        )
        answer = self._ask("LedgerService/Reserve", request, lg.ReserveResponse)
        if not answer.HasField("reservation"):
            return None
        granted = {one.unit: one.value for one in answer.reservation.granted}
        meter = _Meter(answer.reservation.id, granted, now_ms)
        self._meters[account] = meter
        self._journal.add_hold(Hold(meter.reservation, account, ""))
        return meter

    def _close(self, account: str, used: Mapping[str, int]) -> None:
        meter = self._meters[account]
        request = lg.CommitRequest(reservation=meter.reservation, actual=_amounts(used))
        self._ask("LedgerService/Commit", request, lg.CommitResponse)
        del self._meters[account]
        self._journal.drop_hold(meter.reservation)

    def occupy(self, account: str, size: int, now_ms: int) -> Over | None:
        """Makes the hold of an account's memory follow what is in use.

        Returns:
            The limit that is passed by what the account took in addition, where the hold cannot
            follow; the hold then stays as large as it may be. What was held before a limit was set
            or lowered passes none here: see `Booking`.
        """
        memory = self._memory.get(account)
        try:
            if size == 0:
                self._give_up(account)
                self._cut.pop(account, None)
                return None
            less = memory is not None and size < memory.granted_bytes - _SLACK_BYTES
            # What is frozen would not be granted again, and is in use all the same.
            if less and not self.check(account).HasField("refusal"):
                self._hold_anew(account, size, now_ms)
                return None
            if memory is None or size > memory.granted_bytes:
                over = self._follow(account, memory, size, now_ms)
                return over if size > self._cut.get(account, 0) else None
            self._cut.pop(account, None)
            self._look(account, memory, now_ms)
        except AccountNotFound:
            self._note_unknown(account)
        except ReservationError:  # ended by somebody: the next sample holds it anew
            self._forget(account)
        except BursarError:
            pass  # the store has failed: what is held stays so, and is not held a second time
        return None

    def renew(self, now_ms: int) -> None:
        """Keeps memory held, also while nobody can see whether it is still in use.

        What was metered for accounts that use nothing any more, such as a pod's, is committed.
        """
        for account, meter in list(self._meters.items()):
            if now_ms - meter.opened_ms >= _ROLL_MS + _RENEW_MS:
                self._commit(account)
        for account, memory in list(self._memory.items()):
            if now_ms - memory.renewed_ms >= _RENEW_MS:
                try:
                    self._extend(memory, 0, now_ms)
                except ReservationError:
                    self._forget(account)
                except BursarError:
                    continue

    def _take(self, account: str, size: int, now_ms: int) -> Over | None:
        answer = self._reserve_vram(account, size, size)
        refused = None
        if not answer.HasField("reservation"):
            refused = _over(self.windows(chain(account)), size, answer.refusal)
            answer = self._reserve_vram(account, size, 0)
        if answer.HasField("reservation"):
            granted = sum(one.value for one in answer.reservation.granted if one.unit == _VRAM)
            self._memory[account] = _Memory(answer.reservation.id, granted, now_ms)
            self._journal.add_hold(Hold(answer.reservation.id, account, _VRAM))
        return refused

    def _reserve_vram(self, account: str, size: int, least: int) -> lg.ReserveResponse:
        request = lg.ReserveRequest(
            account=account,
            amounts=[lg.Amount(unit=_VRAM, value=size)],
            min_acceptable=[lg.Amount(unit=_VRAM, value=least)],
            ttl=Duration(seconds=_TTL_S),
            labels={"action": "watchdog"},
        )
        return self._ask("LedgerService/Reserve", request, lg.ReserveResponse)

    def _follow(self, account: str, memory: _Memory | None, size: int, now_ms: int) -> Over | None:
        if memory is None:
            return self._take(account, size, now_ms)
        try:
            answer = self._extend(memory, size, now_ms)
        except LimitReached:  # a hold can be raised in so many windows only: begin another one
            self._give_up(account)
            return self._take(account, size, now_ms)
        if not answer.HasField("refusal"):
            memory.granted_bytes = size
            return None
        more = size - memory.granted_bytes
        return _over(self.windows(chain(account)), more, answer.refusal)

    def _look(self, account: str, memory: _Memory, now_ms: int) -> None:
        """Holds anew what a budget does not count that was set since: it counts what comes."""
        if now_ms - memory.looked_ms < _LOOK_MS:
            return
        memory.looked_ms = now_ms
        if self._below is None:
            self._below = Counter()
            for below, one in self._memory.items():
                self._below.update(dict.fromkeys(chain(below), one.granted_bytes))
        windows = (one for above in chain(account) for one in self.seen(above))
        is_counted = all(
            one.held >= self._below[one.account] for one in windows if one.unit == _VRAM
        )
        if not is_counted and not self.check(account).HasField("refusal"):
            self._hold_anew(account, memory.granted_bytes, now_ms)

    def _hold_anew(self, account: str, size: int, now_ms: int) -> None:
        self._give_up(account)
        self._cut[account] = size
        self._take(account, size, now_ms)

    def _extend(self, memory: _Memory, size: int, now_ms: int) -> lg.ExtendResponse:
        granted = [lg.Amount(unit=_VRAM, value=size)] if size else []
        request = lg.ExtendRequest(
            reservation=memory.reservation, granted=granted, ttl=Duration(seconds=_TTL_S)
        )
        answer = self._ask("LedgerService/Extend", request, lg.ExtendResponse)
        memory.renewed_ms = now_ms
        return answer

    @property
    def occupied(self) -> set[str]:
        """The accounts whose memory is held, or was and will be."""
        return self._memory.keys() | self._cut.keys()

    def held_bytes(self, account: str) -> int:
        """How much memory is held for an account."""
        memory = self._memory.get(account)
        return memory.granted_bytes if memory else 0

    def vram_of(self, reservation: str, account: str = "") -> int:
        """How much memory a client's own pending reservation holds; 0 when it holds none.

        Args:
            reservation: Its id.
            account: Only if it is this account's; empty: whosever it is.
        """
        try:
            info = self._get_reservation(reservation)
        except BursarError:
            return 0
        if info.state != lg.Reservation.STATE_PENDING or account not in {"", info.account}:
            return 0
        return sum(one.value for one in info.granted if one.unit == _VRAM)

    def windows(self, accounts: Iterable[str]) -> list[lg.Balance]:
        """The windows of these accounts alone, where they exist."""
        found: list[lg.Balance] = []
        for account in accounts:
            with contextlib.suppress(BursarError):
                found += self._windows(account)
        return found

    def look_anew(self) -> None:
        """Forgets what was `seen`."""
        self._seen, self._below = {}, None

    def seen(self, account: str) -> Sequence[lg.Balance]:
        """The windows of an account, as of the first time since `look_anew`."""
        found = self._seen.get(account)
        if found is None:
            found = self._seen[account] = self.windows([account])
        return found

    def _windows(self, account: str) -> Sequence[lg.Balance]:
        request = ac.GetAccountRequest(account=account)
        answer = self._ask("AccountService/GetAccount", request, ac.GetAccountResponse)
        return answer.account.balances

    def is_spent(self, account: str, unit: str) -> bool:
        """Whether a budget of an account is used up; also while the ledger cannot be asked."""
        try:
            windows = self._windows(account)
        except AccountNotFound:
            return False
        except BursarError:
            return True
        return any(one.unit == unit and one.spent >= one.limit for one in windows)

    def freeze(self, account: str, reason: str) -> None:
        """Refuses new holds, unless that is so already, or there is no such account."""
        try:
            request = ac.GetAccountRequest(account=account)
            found = self._ask("AccountService/GetAccount", request, ac.GetAccountResponse)
            if not found.account.frozen:
                freeze = ac.FreezeRequest(account=account, reason=f"{_OURS}{reason}"[:256])
                self._ask("AccountService/Freeze", freeze, ac.FreezeResponse)
        except BursarError:
            return

    def unfreeze(self, account: str) -> None:
        """Ends a freeze of our own: one that somebody put there since stays."""
        try:
            request = ac.GetAccountRequest(account=account)
            found = self._ask("AccountService/GetAccount", request, ac.GetAccountResponse)
            if found.account.frozen and found.account.freeze_reason.startswith(_OURS):
                thaw = ac.UnfreezeRequest(account=account)
                self._ask("AccountService/Unfreeze", thaw, ac.UnfreezeResponse)
        except BursarError:
            return

    def open_account(self, account: str, limits: Mapping[str, int]) -> None:
        """Makes a job's own account with its limits; raises BursarError."""
        for unit, limit in limits.items():
            budget = ac.Budget(
                account=account,
                unit=unit,
                limit=limit,
                period=ac.Period(kind=ac.Period.KIND_TOTAL),
            )
            request = ac.SetBudgetRequest(budget=budget)
            self._ask("AccountService/SetBudget", request, ac.SetBudgetResponse)

    def check(self, account: str) -> lg.CheckResponse:
        """Whether an account exists, or may, and takes anything at all; raises BursarError."""
        request = lg.CheckRequest(account=account, amounts=[lg.Amount(unit="calls", value=0)])
        return self._ask("LedgerService/Check", request, lg.CheckResponse)

    def settle(self, account: str) -> None:
        """Commits what an account has used and gives its memory back."""
        self._commit(account)
        with contextlib.suppress(BursarError):  # it is tried again with the next sample
            self._give_up(account)
            self._cut.pop(account, None)

    def _commit(self, account: str) -> None:
        """Ends the reservation of what was metered; what the ledger has debited is spent anyhow."""
        meter = self._meters.get(account)
        if meter is None:
            return
        try:
            self._close(account, meter.used)
        except BursarError:
            self._journal.drop_hold(meter.reservation)
            del self._meters[account]

    def retire(self, account: str) -> bool:
        """Takes a job's own account out of use; False while something of it is pending."""
        self.settle(account)
        request = ac.RetireAccountRequest(account=account)
        try:
            self._ask("AccountService/RetireAccount", request, ac.RetireAccountResponse)
        except BursarError:
            return False
        self._owed.pop(account, None)
        return True

    def close(self) -> None:
        """Commits what was metered. Memory stays held: the processes are still there."""
        for account, meter in list(self._meters.items()):
            try:
                self._close(account, meter.used)
            except BursarError:
                continue

    def _give_up(self, account: str) -> None:
        if account in self._memory:
            self._end(self._memory[account].reservation)
            self._forget(account)

    def _forget(self, account: str) -> None:
        """Forgets a hold of memory that has ended."""
        memory = self._memory.pop(account, None)
        if memory is not None:
            self._cut[account] = memory.granted_bytes
            self._journal.drop_hold(memory.reservation)

    def _end(self, reservation: str) -> None:
        """Releases a reservation, unless it has ended; raises BursarError where it is held on."""
        request = lg.ReleaseRequest(reservation=reservation)
        with contextlib.suppress(ReservationError):
            self._ask("LedgerService/Release", request, lg.ReleaseResponse)

    def _get_reservation(self, reservation: str) -> lg.Reservation:
        request = lg.GetReservationRequest(reservation=reservation)
        answer = self._ask("LedgerService/GetReservation", request, lg.GetReservationResponse)
        return answer.reservation

    def _ask(self, method: str, request: Message, response: type[A]) -> A:
        return cast("A", self._call(method, request, response))


def _over(
    windows: Iterable[lg.Balance], more: int, refusal: lg.Refusal | None = None
) -> Over | None:
    """The limit that so many further bytes pass. A freeze refuses them too, and hides it."""
    for balance in windows:
        short = more - balance.remaining
        if balance.unit == _VRAM and short > 0:
            used = balance.limit + short
            return Over(balance.account, _VRAM, balance.limit, used, refusal=refusal)
    return None


def _bound(rows: dict[str, Any]) -> None:
    if len(rows) > OWED_MAX:
        del rows[next(iter(rows))]


def _amounts(amounts: Mapping[str, int]) -> list[lg.Amount]:
    return [lg.Amount(unit=unit, value=value) for unit, value in amounts.items()]
