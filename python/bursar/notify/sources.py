"""Where events come from, each read from a place on: the ledger's entries, the incidents.

A place is what was read so far; it is plain JSON, and the spool keeps it. Reading changes nothing,
so who reads from the same place finds the same events, by the same keys.
"""

import contextlib
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Protocol, TypeAlias, cast

from google.protobuf.message import DecodeError, Message

from bursar._convert import budget, moment
from bursar.exceptions import BursarError
from bursar.models import Verdict
from bursar.notify.events import Event
from bursar.v1 import account_pb2 as ac
from bursar.v1 import process_pb2 as pb

__all__ = ["Entries", "Incidents", "Place", "Source"]

Place: TypeAlias = dict[str, Any]
Call: TypeAlias = Callable[[str, Message, type[Message]], Message]

PAGE: Final = 1_000
"""How many entries or incidents are read at a time."""

_KINDS: Final = (
    ac.Entry.KIND_CROSSING,
    ac.Entry.KIND_OVERDRAFT,
    ac.Entry.KIND_FREEZE,
    ac.Entry.KIND_UNFREEZE,
    ac.Entry.KIND_RUNAWAY,
)
_PERMILLE_ALL: Final = 1000
_LAST_ROW: Final = 0xFFFF  # of one sequence: a token with it goes on behind the whole operation
_BUSY_S: Final = 0.25


class Source(Protocol):
    """What events are read from."""

    def start(self, place: Place | None) -> Place:
        """Where to go on; without a place, behind all that there is."""

    def read(self, place: Place) -> tuple[list[Event], Place, bool]:
        """The events behind a place, where to go on, and whether there are more."""


class Entries:
    """The ledger's entries.

    A place is the sequence that was read last, and the time of its entry: they do not belong
    together where the ledger is another one than it was, restored or begun anew.

    Args:
        call: Runs one call on the ledger in this process.
    """

    def __init__(self, call: Call) -> None:
        self._call = call

    def start(self, place: Place | None) -> Place:
        """Where to go on; without a place, behind all that there is."""
        if place is None:
            return self._head({"sequence": 0, "time_ms": 0})
        if not place["sequence"] or self._behind(place["sequence"] - 1) == place:
            return place
        # Either retention has deleted that entry, or it never was: what is as old is not older.
        since = ac.ListEntriesRequest(page_size=1)
        since.start_time.FromMilliseconds(place["time_ms"])
        for entry in self._list(since).entries:
            return {**place, "sequence": entry.sequence - 1}
        return self._head({"sequence": 0, "time_ms": 0})

    def read(self, place: Place) -> tuple[list[Event], Place, bool]:
        """The events behind a place, where to go on, and whether there are more."""
        first = self._behind(place["sequence"])
        if first is None:
            return [], place, False
        head = self._head(first)  # looked up first: what is read now reaches it, or there is more
        request = ac.ListEntriesRequest(kinds=_KINDS, page_size=PAGE)
        page = self._list(request, behind=place["sequence"])
        entries, has_more = list(page.entries), bool(page.next_page_token)
        if has_more:  # the last operation may go on: it is left to the next page, whole
            last = entries[-1].sequence
            entries = [one for one in entries if one.sequence != last] or entries
        ends = [_place(entries[-1])] if entries else []
        ends += [] if has_more else [head]
        return list(self._events(entries)), max(ends, key=lambda one: one["sequence"]), has_more

    def _head(self, known: Place) -> Place:
        """The last entry that there is, found by doubling the stride and halving it again."""
        stride = 0
        while (found := self._behind(known["sequence"] + stride)) is not None:
            known, stride = found, 2 * stride + 1
        end = known["sequence"] + stride
        while known["sequence"] < end:
            middle = (known["sequence"] + end) // 2
            found = self._behind(middle)
            known, end = (known, middle) if found is None else (found, end)
        return known

    def _behind(self, sequence: int) -> Place | None:
        """The first entry of a later sequence."""
        page = self._list(ac.ListEntriesRequest(page_size=1), behind=sequence)
        return _place(page.entries[0]) if page.entries else None

    def _list(
        self, request: ac.ListEntriesRequest, *, behind: int | None = None
    ) -> ac.ListEntriesResponse:
        if behind is not None:
            request.page_token = f"{behind:x}-{_LAST_ROW:x}"
        answer = self._call("AccountService/ListEntries", request, ac.ListEntriesResponse)
        return cast("ac.ListEntriesResponse", answer)

    def _events(self, entries: list[ac.Entry]) -> Iterator[Event]:
        """An event for each entry; the overdrafts of an account in one page are one, summed."""
        overdrafts: dict[tuple[str, str], list[int]] = {}
        for one in entries:
            if one.kind == ac.Entry.KIND_OVERDRAFT:
                overdrafts.setdefault((one.account, one.unit), []).append(one.amount)
        index = sequence = 0
        for entry in entries:
            index = index + 1 if entry.sequence == sequence else 0
            sequence = entry.sequence
            amounts = [entry.amount]
            if entry.kind == ac.Entry.KIND_OVERDRAFT:
                amounts = overdrafts.pop((entry.account, entry.unit), [])
            if amounts:
                name, data = self._told(entry, amounts)
                yield Event(
                    key=f"e{sequence}-{index}-{entry.time.ToMilliseconds()}",
                    name=name,
                    time=entry.time.ToDatetime(UTC),
                    account=entry.account,
                    data={"sequence": str(sequence), **data},
                )

    def _told(self, entry: ac.Entry, amounts: Sequence[int]) -> tuple[str, dict[str, Any]]:
        """The name of an entry's event, and what it says; what is read of accounts is as of now."""
        if entry.kind == ac.Entry.KIND_FREEZE:
            return "freeze", {"reason": entry.detail or None}
        if entry.kind == ac.Entry.KIND_UNFREEZE:
            return "unfreeze", {}
        if entry.kind == ac.Entry.KIND_RUNAWAY:
            action, _, finding = entry.detail.partition(": ")
            figure = {"figure": str(entry.amount), "unit": entry.unit}
            return "runaway", {"action": action, "finding": finding, **figure}
        account = self._account(entry.account)
        balances = _balances(account, entry.unit)
        if entry.kind == ac.Entry.KIND_CROSSING:
            about = {"unit": entry.unit, "permille": entry.amount, "balances": balances}
            return f"crossing.{_verdict(account, entry)}", about
        names = entry.account.split("/")
        for end in range(len(names) - 1, 0, -1):  # the limit that was passed may be an ancestor's
            balances += _balances(self._account("/".join(names[:end])), entry.unit)
        summed = {"amount": str(sum(amounts)), "count": str(len(amounts))}
        about = {"unit": entry.unit, "reservation": entry.reservation, "balances": balances}
        return "overdraft", {**summed, **about}

    def _account(self, path: str) -> ac.GetAccountResponse:
        request = ac.GetAccountRequest(account=path)
        try:
            answer = self._call("AccountService/GetAccount", request, ac.GetAccountResponse)
        except BursarError:  # it has retired since
            return ac.GetAccountResponse()
        return cast("ac.GetAccountResponse", answer)


def _balances(account: ac.GetAccountResponse, unit: str) -> list[dict[str, str | None]]:
    return [
        {
            "account": one.account,
            "period": one.period,
            "limit": str(one.limit),
            "spent": str(one.spent),
            "held": str(one.held),
            "remaining": str(one.remaining),
            "reset_time": _iso(moment(one, "reset_time")),
        }
        for one in account.account.balances
        if one.unit == unit
    ]


def _verdict(account: ac.GetAccountResponse, entry: ac.Entry) -> str:
    """What a threshold says that was crossed; where it is gone since, the least."""
    if entry.amount >= _PERMILLE_ALL:
        return "stop"
    found = [
        threshold.verdict
        for one in map(budget, account.budgets)
        for threshold in one.thresholds
        if (one.unit, threshold.permille) == (entry.unit, entry.amount)
    ]
    return "degrade" if Verdict.DEGRADE in found else "warn"


def _place(entry: ac.Entry) -> Place:
    return {"sequence": entry.sequence, "time_ms": entry.time.ToMilliseconds()}


def _iso(when: datetime | None) -> str | None:
    return None if when is None else when.isoformat(timespec="milliseconds")


class Incidents:
    """The watchdog's incidents, out of its journal: one event for each step.

    A place is the highest number that was read, and how many steps of those that may go on.

    Args:
        path: The journal.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def start(self, place: Place | None) -> Place:
        """Where to go on; without a place, behind all that there is."""
        with self._open() as journal:
            last: int = 0
            if journal is not None:
                last = journal.execute("SELECT max(number) FROM incidents").fetchone()[0] or 0
            if place is not None and last >= place["number"]:
                return place
            nothing: Place = {"number": 0, "open": {}}
            if journal is None:
                return nothing
            rows = journal.execute("SELECT number, body FROM incidents WHERE final = 0")
            told = {str(number): _steps(body) for number, body in rows}
            return {"number": last, "open": told}

    def read(self, place: Place) -> tuple[list[Event], Place, bool]:
        """The events behind a place, where to go on, and whether there are more."""
        events: list[Event] = []
        number, told = place["number"], dict(place["open"])
        with self._open() as journal:
            if journal is None:
                return events, place, False
            query = "SELECT number, final, body FROM incidents WHERE "
            one_row = f"{query} number = ?"
            rows = [row for one in told for row in journal.execute(one_row, (int(one),))]
            query += "number > ? ORDER BY number LIMIT ?"
            fresh = journal.execute(query, (number, PAGE)).fetchall()
        for row_number, final, body in (*rows, *fresh):
            known = told.pop(str(row_number), 0)
            events += _steps_of(body, known)
            if not final:
                told[str(row_number)] = max(known, _steps(body))
            number = max(number, row_number)
        return events, {"number": number, "open": told}, len(fresh) == PAGE

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection | None]:
        """A connection that only reads; None: there is no journal yet."""
        if not self._path.exists():
            yield None
            return
        read_only = f"{self._path.absolute().as_uri()}?mode=ro"
        with contextlib.closing(sqlite3.connect(read_only, uri=True, timeout=_BUSY_S)) as journal:
            yield journal


def _incident(body: bytes) -> pb.Incident:
    try:
        return pb.Incident.FromString(body)
    except DecodeError:  # the watchdog tells of it
        return pb.Incident()


def _steps(body: bytes) -> int:
    return len(_incident(body).steps)


def _steps_of(body: bytes, known: int) -> Iterator[Event]:
    """The steps of an incident behind those that are known."""
    incident = _incident(body)
    begun_ms = incident.create_time.ToMilliseconds()
    for index, step in enumerate(incident.steps[known:], start=known):
        state = pb.Incident.State.Name(step.state).removeprefix("STATE_").lower()
        data = {
            "incident": incident.id,
            "job": incident.job,
            "job_name": incident.job_name,
            "cause": pb.Incident.Cause.Name(incident.cause).removeprefix("CAUSE_").lower(),
            "reason": incident.reason,
            "detail": step.detail,
            "limit_account": incident.limit_account,
            "unit": incident.unit,
            "limit": str(incident.limit),
            "used": str(incident.used),
            "vram_bytes": str(incident.vram_bytes),
            "vram_returned_bytes": str(incident.vram_returned_bytes),
            "vram_quarantined_bytes": str(incident.vram_quarantined_bytes),
        }
        yield Event(
            key=f"{incident.id}-{index}-{begun_ms}",
            name=f"incident.{state}",
            time=step.time.ToDatetime(UTC),
            account=incident.account,
            data=data,
        )
