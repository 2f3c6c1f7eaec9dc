"""From entries to runs: real ledgers through the embedded client, and rows made by hand."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from support.calibration import TIME, Entries

import bursar
from bursar.calibrate import runs as made
from bursar.calibrate.runs import KINDS, By, History, Run, TooMuchHistory, read_runs
from bursar.models import Period, ReservationState


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[bursar.Client]:
    with bursar.open(tmp_path / "ledger.db") as client:
        yield client


def read(client: bursar.Client, account: str = "", *, by: By = By.RESERVATION) -> History:
    def is_pending(reservation: str) -> bool:
        return client.get_reservation(reservation).state is ReservationState.PENDING

    entries = client.list_entries(account, kinds=KINDS)
    return read_runs(entries, account, by=by, is_pending=is_pending)


def test_a_reservation_is_what_it_spent_and_the_most_that_it_claimed(
    ledger: bursar.Client,
) -> None:
    with ledger.reserve("acme/a", amounts={"tokens": 100, "usd_nanos": 9, "concurrency": 1}) as one:
        one.debit(used={"tokens": 70})
        one.extend(granted={"tokens": 150})
        one.commit(actual={"tokens": 70, "usd_nanos": 9})
    found = read(ledger)
    assert found.runs == {
        "tokens": [Run(one.id, 70, 150, 0, exhausted=False, floors=(0,), totals=(0, 70))],
        "usd_nanos": [Run(one.id, 9, 9, 0, exhausted=True, floors=(0,), totals=(0, 9))],
    }
    assert (found.open_calls, found.calls_without_hold) == (0, 0)


def test_what_is_spent_beyond_the_hold_is_claimed_and_overdraft_is_counted(
    ledger: bursar.Client,
) -> None:
    ledger.set_budget("acme", unit="tokens", limit=100)
    one = ledger.reserve("acme/a", tokens=80)
    one.commit(tokens=130)
    [run] = read(ledger).runs["tokens"]
    assert (run.spent, run.claimed, run.overdraft, run.exhausted) == (130, 130, 30, True)


def test_runs_that_spend_nothing_are_runs(ledger: bursar.Client) -> None:
    ledger.reserve("acme/a", tokens=10).release()
    ledger.reserve("acme/a", tokens=20).commit(tokens=0)
    assert [(run.spent, run.claimed) for run in read(ledger).runs["tokens"]] == [(0, 10), (0, 20)]


@pytest.mark.parametrize("by", list(By))
def test_open_reservations_are_left_out_and_counted(ledger: bursar.Client, by: By) -> None:
    ledger.reserve("acme/a", tokens=10).commit(tokens=3)
    opened = ledger.reserve("acme/a", tokens=1_000)
    opened.debit(tokens=500)
    found = read(ledger, "acme", by=by)
    [run] = found.runs["tokens"]
    assert (run.spent, run.claimed, found.open_calls) == (3, 10, 1)


def test_recorded_spending_counts_for_an_account_but_is_no_run(ledger: bursar.Client) -> None:
    ledger.record("acme/a", tokens=7)
    one = ledger.reserve("acme/a", tokens=10)
    one.commit(tokens=4)
    by_reservation = read(ledger)
    assert [run.key for run in by_reservation.runs["tokens"]] == [one.id]
    assert by_reservation.calls_without_hold == 1
    [run] = read(ledger, "acme", by=By.ACCOUNT).runs["tokens"]
    assert (run.key, run.spent, run.claimed) == ("acme/a", 11, 17)
    assert (run.floors, run.totals) == ((0, 7), (0, 7, 11))


def test_a_lease_is_one_run(ledger: bursar.Client) -> None:
    with ledger.reserve("acme/a", tokens=8) as one:
        with one.lease() as lease:
            for _ in range(50):
                lease.debit(1)
        one.commit()
    [run] = read(ledger).runs["tokens"]
    assert run.spent == 50
    assert run.claimed > 50


def test_a_nested_reservation_is_a_run_and_its_parent_has_ended(ledger: bursar.Client) -> None:
    """A parent whose hold went into nested ones has rows that do not add up; it is asked for."""
    parent = ledger.reserve("acme/a", tokens=100)
    nested = ledger.reserve("acme/a/tool", tokens=40, parent=parent.id)
    nested.commit(tokens=25)
    idle = ledger.reserve("acme/a", tokens=100)
    ledger.reserve("acme/a/tool", tokens=30, parent=idle.id).commit(tokens=30)
    idle.release()
    parent.commit(tokens=60)
    found = read(ledger)
    spent = {run.key: (run.spent, run.claimed) for run in found.runs["tokens"]}
    assert spent[parent.id] == (60, 100)
    assert spent[nested.id] == (25, 40)
    assert spent[idle.id] == (0, 100)
    assert found.open_calls == 0
    [run] = read(ledger, "acme", by=By.ACCOUNT).runs["tokens"]
    assert run.spent == 60 + 25 + 30


def test_a_reservation_that_expired_is_what_was_measured(ledger: bursar.Client) -> None:
    one = ledger.reserve("acme/a", tokens=100, ttl_s=3)
    one.debit(tokens=42)
    deadline = datetime.now(UTC) + timedelta(seconds=20)
    while ledger.get_reservation(one.id).state is ReservationState.PENDING:
        assert datetime.now(UTC) < deadline
    assert [run.spent for run in read(ledger).runs["tokens"]] == [42]


def test_an_account_is_what_lies_directly_below(ledger: bursar.Client) -> None:
    for account in ("acme/x/1", "acme/x/2", "acme/y", "acme", "other/x"):
        ledger.reserve(account, tokens=10).commit(tokens=len(account))
    below = read(ledger, "acme", by=By.ACCOUNT).runs["tokens"]
    assert {run.key: run.spent for run in below} == {"acme/x": 16, "acme/y": 6, "acme": 4}
    top = read(ledger, by=By.ACCOUNT).runs["tokens"]
    assert {run.key: run.spent for run in top} == {"acme": 26, "other": 7}


def test_calls_at_the_same_time_claim_together_and_do_not_see_each_other(
    ledger: bursar.Client,
) -> None:
    first, second = (ledger.reserve("acme/a", tokens=100) for _ in range(2))
    first.commit(tokens=30)
    third = ledger.reserve("acme/a", tokens=100)
    second.commit(tokens=20)
    third.commit(tokens=50)
    [run] = read(ledger, "acme", by=By.ACCOUNT).runs["tokens"]
    assert (run.spent, run.claimed) == (100, 230)  # at the most: 30 spent, 100 and 100 held
    assert (run.floors, run.totals) == ((0, 0, 30), (0, 30, 50, 100))
    spent_at = [run.spent_if_checked_between_calls(limit) for limit in (0, 1, 30, 31, 100)]
    assert spent_at == [0, 50, 50, 100, 100]


def test_several_windows_of_a_budget_make_one_run_of_a_reservation() -> None:
    entries = Entries().tell("hold", 50, "r").tell("hold", 50, "r")
    entries.tell("spend", 50, "r").tell("spend", 20, "r").tell("return", 30, "r")
    [run] = read_runs(entries).runs["tokens"]
    assert (run.spent, run.claimed, run.exhausted) == (70, 100, False)


@pytest.mark.parametrize(
    ("period", "keys"),
    [
        ("total", ["acme/a"]),
        ("hour", ["acme/a@2026-05-01T23+0000", "acme/a@2026-05-02T00+0000"]),
        ("day", ["acme/a@2026-05-01", "acme/a@2026-05-02"]),
        ("day@Europe/Berlin", ["acme/a@2026-05-02"]),
        ("week", ["acme/a@2026-W18"]),
        ("month", ["acme/a@2026-05"]),
    ],
)
def test_each_window_of_a_period_is_a_run_by_when_its_calls_began(
    period: str, keys: list[str]
) -> None:
    entries = Entries()
    entries.time = datetime(2026, 5, 1, 23, 59, tzinfo=UTC)
    entries.tell("hold", 10, "r1")
    entries.time = datetime(2026, 5, 2, 0, 1, tzinfo=UTC)
    entries.tell("spend", 10, "r1").tell("hold", 5, "r2").tell("spend", 5, "r2")
    found = read_runs(entries, "acme", by=By.ACCOUNT, period=Period.parse(period))
    assert [run.key for run in found.runs["tokens"]] == keys
    assert sum(run.spent for run in found.runs["tokens"]) == 15


def test_a_rolling_period_is_refused() -> None:
    with pytest.raises(ValueError, match="rolling"):
        read_runs([], by=By.ACCOUNT, period=Period.parse("rolling:60s"))


def test_a_range_takes_whole_runs_by_when_they_began() -> None:
    entries = Entries().tell("hold", 10, "before")
    entries.time += timedelta(minutes=1)
    entries.tell("spend", 10, "before").tell("hold", 10, "inside")
    entries.time += timedelta(minutes=1)
    entries.tell("spend", 9, "inside").tell("return", 1, "inside")
    entries.tell("hold", 10, "after").tell("spend", 10, "after")
    minute = TIME + timedelta(minutes=1)
    found = read_runs(entries, since=minute, until=minute + timedelta(minutes=1))
    assert [(run.key, run.spent) for run in found.runs["tokens"]] == [("inside", 9)]


def test_slack_that_was_taken_back_from_a_lease_is_no_end() -> None:
    entries = Entries().tell("hold", 100, "lease").tell("return", 40, "lease")
    asked: list[str] = []

    def is_pending(reservation: str) -> bool:
        asked.append(reservation)
        return True

    found = read_runs(entries, is_pending=is_pending)
    assert (found.runs, found.open_calls, asked) == ({}, 1, ["lease"])


def test_no_entries_are_no_runs() -> None:
    assert read_runs([]) == History({}, 0, 0)


def test_too_many_entries_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(made, "ENTRIES_MAX", 2)
    entries = Entries().tell("hold", 1, "a").tell("spend", 1, "a")
    assert read_runs(entries).runs["tokens"][0].spent == 1
    with pytest.raises(TooMuchHistory, match="more than 2 entries"):
        read_runs(entries.tell("hold", 1, "b"))
