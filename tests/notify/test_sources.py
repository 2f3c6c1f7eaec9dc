"""Reading by cursor: each entry once, however the pages fall and whatever else is in between."""

import dataclasses
import functools
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from bursar import _core
from bursar._embedded import call_core
from bursar.daemon.config import Config
from bursar.notify import sources
from bursar.notify.events import NAMES, Event, Selection, expand
from bursar.notify.outcomes import (
    LONGEST_S,
    REFUSALS_MAX,
    RETRY_AFTER_S_MAX,
    Answer,
    Outcome,
    Step,
    after,
)
from bursar.notify.sources import Entries, Incidents, Place
from bursar.v1 import account_pb2 as ac
from bursar.v1 import ledger_pb2 as lg
from bursar.v1 import process_pb2 as pb
from bursar.watchdog.escalation import Phase, open_standing
from bursar.watchdog.journal import Case, Journal


class Ledger:
    """A real ledger in this process."""

    def __init__(self, path: Path) -> None:
        config = Config.from_dict({"store": {"path": str(path)}, "accounts": [{"path": "**"}]})
        self.engine = _core.Engine(config.to_core_json(listen=False))
        self.call = functools.partial(call_core, self.engine)
        self.entries = Entries(self.call)

    def freeze(self, account: str, reason: str = "") -> None:
        request = ac.FreezeRequest(account=account, reason=reason)
        self.call("AccountService/Freeze", request, ac.FreezeResponse)

    def unfreeze(self, account: str) -> None:
        request = ac.UnfreezeRequest(account=account)
        self.call("AccountService/Unfreeze", request, ac.UnfreezeResponse)

    def spend(self, account: str, times: int = 1) -> None:
        for _ in range(times):
            request = lg.RecordRequest(account=account)
            request.amounts.append(lg.Amount(unit="tokens", value=1))
            self.call("LedgerService/Record", request, lg.RecordResponse)

    def read(self, place: Place) -> tuple[list[str], Place]:
        found: list[Event] = []
        more = True
        while more:
            events, place, more = self.entries.read(place)
            found += events
        assert len({one.key for one in found}) == len(found)
        return [one.account for one in found], place


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    made = Ledger(tmp_path / "ledger.db")
    yield made
    made.engine.close()


def test_without_a_place_it_begins_behind_all_that_there_is(ledger: Ledger) -> None:
    assert ledger.entries.start(None) == {"sequence": 0, "time_ms": 0}
    ledger.freeze("before")
    ledger.spend("before", 20)
    place = ledger.entries.start(None)
    assert ledger.read(place) == ([], place)
    ledger.freeze("after")
    assert ledger.read(place)[0] == ["after"]


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 5)), max_size=12),
    st.sampled_from([1, 2, 1000]),
)
def test_each_entry_is_read_once_wherever_pages_end(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[bool, int]], page: int
) -> None:
    ledger = Ledger(tmp_path_factory.mktemp("store") / "ledger.db")
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sources, "PAGE", page)
            place, expected, found = ledger.entries.start(None), [], []
            for number, (look, spent) in enumerate(steps):
                ledger.freeze(f"a/{number}")
                expected.append(f"a/{number}")
                ledger.spend("other", spent)
                if look:
                    read, place = ledger.read(place)
                    found += read
            read, place = ledger.read(place)
            assert found + read == expected
            assert ledger.entries.start(place) == place
            assert ledger.read(place) == ([], place)
    finally:
        ledger.engine.close()


def test_what_is_read_passes_what_is_of_no_interest(ledger: Ledger) -> None:
    place = ledger.entries.start(None)
    ledger.spend("a", 50)
    _, after_spending = ledger.read(place)
    calls: list[str] = []

    def call(method: str, request: Message, response: type[Message]) -> Message:
        calls.append(method)
        return ledger.call(method, request, response)

    Entries(call).read(after_spending)
    assert calls == ["AccountService/ListEntries"], "what was passed is not looked at again"


def test_overdrafts_of_one_page_are_one_event_with_their_sum(ledger: Ledger) -> None:
    request = ac.SetBudgetRequest()
    request.budget.account, request.budget.unit, request.budget.limit = "a", "tokens", 1
    request.budget.period.kind = ac.Period.KIND_TOTAL
    ledger.call("AccountService/SetBudget", request, ac.SetBudgetResponse)
    place = ledger.entries.start(None)
    ledger.spend("a/b", 4)
    [spent, event], _, _ = ledger.entries.read(place)
    assert (spent.name, spent.account) == ("crossing.stop", "a")
    assert (event.name, event.account) == ("overdraft", "a/b")
    assert (event.data["amount"], event.data["count"]) == ("3", "3")
    [passed] = event.data["balances"]
    assert (passed["account"], passed["limit"], passed["remaining"]) == ("a", "1", "-3")


def test_a_freeze_has_its_reason_though_it_has_ended(ledger: Ledger) -> None:
    place = ledger.entries.start(None)
    ledger.freeze("a", "looks odd")
    ledger.unfreeze("a")
    ledger.freeze("b")
    events, _, _ = ledger.entries.read(place)
    told = [(one.name, dict(one.data).get("reason", "-")) for one in events]
    assert told == [("freeze", "looks odd"), ("unfreeze", "-"), ("freeze", None)]


def test_in_another_ledger_it_goes_on_by_time(tmp_path: Path) -> None:
    """Goal: a store that was restored, or begun anew, has its events told. Method: a place of a
    longer ledger is gone on from in one that is shorter."""
    first = Ledger(tmp_path / "first.db")
    first.freeze("old")
    first.spend("old", 30)
    place = first.entries.start(None)
    first.engine.close()
    second = Ledger(tmp_path / "second.db")
    assert second.entries.start(place) == {"sequence": 0, "time_ms": 0}, "nothing is there yet"
    for number in range(3):
        second.freeze(f"new/{number}")
    begun = second.entries.start(place)
    assert second.read(begun)[0] == ["new/0", "new/1", "new/2"]
    assert second.entries.start(begun) == begun
    second.engine.close()


def case(journal: Journal, account: str, *phases: Phase) -> Case:
    made = Case(pb.Incident(account=account, used=2**60), open_standing(0, ""), "boot")
    made.incident.create_time.GetCurrentTime()
    for phase in phases:
        advance(journal, made, phase)
    return made


def advance(journal: Journal, made: Case, phase: Phase) -> None:
    made.standing = dataclasses.replace(made.standing, phase=phase)
    step = pb.Incident.Step(state=phase.value, detail="x")  # type: ignore[arg-type]
    step.time.GetCurrentTime()
    made.incident.steps.append(step)
    journal.save_case(made)


def test_each_step_of_an_incident_is_told_once_and_old_ones_are_not(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    assert Incidents(path).start(None) == {"number": 0, "open": {}}
    journal = Journal(path)
    ended = case(journal, "ended", Phase.BREACH, Phase.TERM, Phase.RECLAIMED)
    stands = case(journal, "stands", Phase.BREACH)
    incidents = Incidents(path)
    place = incidents.start(None)
    assert incidents.read(place) == ([], place, False)
    advance(journal, stands, Phase.TERM)
    fresh = case(journal, "fresh", Phase.BREACH, Phase.KILL, Phase.RECLAIMED)
    events, later, _ = incidents.read(place)
    told = [(one.account, one.name) for one in events]
    assert told == [
        ("stands", "incident.term"),
        ("fresh", "incident.breach"),
        ("fresh", "incident.kill"),
        ("fresh", "incident.reclaimed"),
    ]
    assert events[0].data["used"] == str(2**60)
    assert later == {"number": fresh.number, "open": {str(stands.number): 2}}
    again, _, _ = incidents.read(place)
    assert [one.key for one in again] == [one.key for one in events]
    advance(journal, stands, Phase.RECLAIMED)
    assert [one.name for one in incidents.read(later)[0]] == ["incident.reclaimed"]
    assert ended.number < stands.number
    journal.close()
    with sqlite3.connect(path) as db:
        db.execute("DELETE FROM incidents")
    db.close()
    assert incidents.start(later) == {"number": 0, "open": {}}, "a journal that was begun anew"


@pytest.mark.parametrize(
    ("patterns", "wanted", "unwanted"),
    [
        (["**"], ["a", "a/b/c", ""], []),
        (["a"], ["a"], ["a/b", "b", "", "aa"]),
        (["a/*"], ["a/b"], ["a", "a/b/c", "b/b"]),
        (["a/**"], ["a/b", "a/b/c"], ["a", "ab/c", ""]),
        (["a", "*/x/**"], ["a", "b/x/y"], ["b/x", "b/y/z"]),
    ],
)
def test_patterns_mean_what_they_mean_for_accounts(
    patterns: list[str], wanted: list[str], unwanted: list[str]
) -> None:
    selection = Selection(expand(["freeze"]), tuple(patterns))
    assert all(selection.wants("freeze", one) for one in wanted)
    assert not any(selection.wants("freeze", one) for one in unwanted)
    assert not selection.wants("unfreeze", "a")


def test_names_and_groups_of_events() -> None:
    assert expand(["*"]) == NAMES.keys()
    assert expand(["store.*", "freeze"]) == {"store.read_only", "store.writable", "freeze"}
    for wrong in ("frieze", "store", "store*", "free*", ""):
        with pytest.raises(ValueError, match="there is no event"):
            expand([wrong])


@given(st.integers(1, 10_000), st.floats(0, 1), st.floats(-1e9, 1e12))
def test_pauses_grow_to_a_bound_and_nobody_is_pressed(
    failures: int, chance: float, asked_s: float
) -> None:
    step, pause_s = after(Outcome(Answer.AWAY, "", asked_s), failures, 0, chance)
    assert step is Step.AGAIN
    assert min(2.0 ** min(failures - 1, 30), LONGEST_S) / 2 <= max(pause_s, asked_s)
    assert pause_s <= max(LONGEST_S, min(asked_s, RETRY_AFTER_S_MAX))
    assert pause_s >= min(asked_s, RETRY_AFTER_S_MAX)


def test_what_follows_each_answer() -> None:
    assert after(Outcome(Answer.TAKEN, ""), 1, 0, 0)[0] is Step.GO_ON
    assert after(Outcome(Answer.GONE, ""), 1, 0, 0)[0] is Step.END
    times = range(1, REFUSALS_MAX + 1)
    refused = [after(Outcome(Answer.REFUSED, ""), 1_000, one, 0)[0] for one in times]
    assert refused == [Step.AGAIN] * (REFUSALS_MAX - 1) + [Step.LOSE]
