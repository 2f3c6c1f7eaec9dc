"""The client against real ledgers, embedded and in a sidecar: the same tests, the same answers."""

import contextlib
import threading
from datetime import UTC, datetime, timedelta

import pytest

import bursar
from bursar import Debiting, EntryKind, ReservationState, Verdict

ACCOUNT = "acme/research/agent-7"


@pytest.fixture
def funded(client: bursar.Client) -> bursar.Client:
    client.set_budget("acme", unit="tokens", limit=1_000)
    return client


def remaining(client: bursar.Client, account: str = "acme") -> int:
    [balance] = client.get_account(account).balances
    return balance.remaining


def test_reserve_debit_commit_returns_the_rest(funded: bursar.Client) -> None:
    with funded.reserve(ACCOUNT, tokens=600) as reservation:
        assert dict(reservation.granted) == {"tokens": 600}
        assert reservation.verdict is Verdict.OK
        assert remaining(funded) == 400
        result = reservation.debit(tokens=100)
        assert (result.verdict, result.remaining) == (Verdict.OK, {"tokens": 500})
        committed = reservation.commit(tokens=250)
    assert (committed.spent, committed.returned) == ({"tokens": 250}, {"tokens": 350})
    assert not any(committed.overdraft.values())
    assert remaining(funded) == 750
    info = funded.get_reservation(reservation.id)
    assert (info.state, info.spent) == (ReservationState.COMMITTED, {"tokens": 250})


def test_leaving_without_a_commit_releases_at_what_was_debited(funded: bursar.Client) -> None:
    reservation = funded.reserve(ACCOUNT, tokens=600)
    reservation.debit(tokens=7)
    with pytest.raises(ZeroDivisionError), reservation:
        _ = 1 // 0
    assert remaining(funded) == 993
    assert funded.get_reservation(reservation.id).state is ReservationState.RELEASED


def test_what_is_open_is_listed_with_how_it_is_debited(funded: bursar.Client) -> None:
    first, second, third = (
        funded.reserve(account, tokens=10) for account in (ACCOUNT, "acme/x", "acme/x/y")
    )
    second.debit(tokens=4)
    listed = funded.list_reservations()
    assert [one.reservation.id for one in listed] == [third.id, second.id, first.id]
    assert [one.reservation.used for one in listed] == [{}, {"tokens": 4}, {}]
    assert {one.debiting for one in listed} == {Debiting.CALLS}
    second.release()
    assert [one.reservation.id for one in funded.list_reservations("acme/x")] == [third.id]
    assert funded.list_reservations("acme/nobody") == ()
    first.release()
    third.release()


def test_a_refusal_holds_nothing_and_explains(funded: bursar.Client) -> None:
    with pytest.raises(bursar.BudgetExceeded) as caught:
        funded.reserve(ACCOUNT, tokens=1_001)
    error = caught.value
    assert (error.account, error.unit, error.reason) == ("acme", "tokens", "BUDGET_EXHAUSTED")
    assert (error.limit, error.spent, error.shortfall, error.requested) == (1_000, 0, 1, 1_001)
    assert error.reset_time is None
    assert error.hint
    assert remaining(funded) == 1_000


def test_check_says_what_reserve_would(funded: bursar.Client) -> None:
    assert funded.check(ACCOUNT, tokens=1_000).verdict is Verdict.OK
    refused = funded.check(ACCOUNT, tokens=1_001)
    assert refused.verdict is Verdict.STOP
    assert refused.refusal is not None
    assert refused.refusal.shortfall == 1
    assert remaining(funded) == 1_000


def test_a_partial_grant_takes_what_is_left(funded: bursar.Client) -> None:
    reservation = funded.reserve(ACCOUNT, tokens=5_000, min_acceptable={"tokens": 10})
    assert dict(reservation.granted) == {"tokens": 1_000}


def test_a_repeat_with_the_same_key_is_the_same_reservation(funded: bursar.Client) -> None:
    first = funded.reserve(ACCOUNT, tokens=100, idempotency_key="k")
    again = funded.reserve(ACCOUNT, tokens=100, idempotency_key="k")
    assert again.id == first.id
    assert remaining(funded) == 900
    with pytest.raises(bursar.IdempotencyMismatch):
        funded.reserve(ACCOUNT, tokens=101, idempotency_key="k")


def test_a_debit_beyond_the_hold_says_stop_and_does_not_raise(funded: bursar.Client) -> None:
    reservation = funded.reserve(ACCOUNT, tokens=10)
    result = reservation.debit(tokens=11)
    assert result.verdict is Verdict.STOP
    assert result.refusal is not None
    assert result.refusal.reason == "HOLD_EXHAUSTED"
    assert reservation.verdict is Verdict.STOP


def test_extend_raises_the_hold_or_refuses(funded: bursar.Client) -> None:
    reservation = funded.reserve(ACCOUNT, tokens=10)
    assert reservation.extend(tokens=50, ttl_s=30).reservation.granted == {"tokens": 50}
    assert dict(reservation.granted) == {"tokens": 50}
    with pytest.raises(bursar.BudgetExceeded):
        reservation.extend(tokens=5_000)
    assert funded.get_reservation(reservation.id).granted == {"tokens": 50}


def test_a_commit_beyond_the_limit_is_overdraft(funded: bursar.Client) -> None:
    reservation = funded.reserve(ACCOUNT, tokens=1_000)
    result = reservation.commit(tokens=1_200)
    assert (result.spent, result.overdraft) == ({"tokens": 1_200}, {"tokens": 200})
    assert result.verdict is Verdict.STOP
    assert remaining(funded) == -200
    with pytest.raises(bursar.BudgetExceeded):
        funded.reserve(ACCOUNT, tokens=1)


def test_a_nested_reservation_carves_from_its_parent(funded: bursar.Client) -> None:
    parent = funded.reserve(ACCOUNT, tokens=1_000)
    child = funded.reserve(f"{ACCOUNT}/run-1", tokens=400, parent=parent.id)
    assert child.info.parent_reservation == parent.id
    with pytest.raises(bursar.BudgetExceeded) as caught:
        funded.reserve(f"{ACCOUNT}/run-1", tokens=601, parent=parent.id)
    assert caught.value.reason == "PARENT_HOLD_EXHAUSTED"


def test_a_frozen_account_refuses_and_stops(funded: bursar.Client) -> None:
    reservation = funded.reserve(ACCOUNT, tokens=10)
    assert funded.freeze("acme", reason="audit").frozen
    with pytest.raises(bursar.AccountFrozen) as caught:
        funded.reserve(ACCOUNT, tokens=1)
    assert caught.value.account == "acme"
    assert reservation.debit(tokens=1).verdict is Verdict.STOP
    assert not funded.unfreeze("acme").stopped
    assert reservation.debit(tokens=2).verdict is Verdict.OK


def test_an_account_retires_with_its_budget_once_nobody_uses_it(funded: bursar.Client) -> None:
    job = f"{ACCOUNT}/job"
    funded.set_budget(job, unit="tokens", limit=10)
    reservation = funded.reserve(job, tokens=10)
    with pytest.raises(bursar.AccountInUse, match="pending reservations") as caught:
        funded.retire_account(job)
    assert caught.value.account == job
    with pytest.raises(bursar.AccountInUse, match="accounts below"):
        funded.retire_account(ACCOUNT)
    reservation.commit(tokens=4)
    funded.retire_account(job)
    funded.retire_account(job)
    with pytest.raises(bursar.AccountNotFound):
        funded.get_account(job)
    assert remaining(funded) == 996
    assert funded.reserve(job, tokens=20).granted == {"tokens": 20}


def test_memory_over_time_is_spent_like_any_consumable(client: bursar.Client) -> None:
    client.set_budget("acme", unit="vram_mib_s", limit=100, period="day")
    client.record(ACCOUNT, amounts={"vram_mib_s": 30})
    [balance] = client.get_account("acme").balances
    assert (balance.spent, balance.remaining) == (30, 70)


def test_record_spends_without_a_reservation(funded: bursar.Client) -> None:
    assert funded.record(ACCOUNT, tokens=30, idempotency_key="k").spent == {"tokens": 30}
    funded.record(ACCOUNT, tokens=30, idempotency_key="k")
    assert remaining(funded) == 970


def test_a_usage_is_priced_and_bounds_the_output(client: bursar.Client) -> None:
    client.set_budget("acme", unit="usd_nanos", limit=300)
    estimate = bursar.UsageEstimate(
        "tiny", input_tokens=100, max_output_tokens=1_000, min_output_tokens=1
    )
    with client.reserve(ACCOUNT, usage=estimate) as reservation:
        assert reservation.max_output_tokens == 100
        assert reservation.granted["usd_nanos"] == 300
        assert reservation.debit(output_tokens=40).verdict is Verdict.OK
        assert reservation.commit(output_tokens=40).spent["usd_nanos"] == 180
    with pytest.raises(bursar.UnpricedModel):
        client.reserve(ACCOUNT, usage=bursar.UsageEstimate("no-such-model", input_tokens=1))


def test_thresholds_warn_with_advice(client: bursar.Client) -> None:
    advice = bursar.Advice(max_new_tokens=64, temperature=0.5, fallback_model="small")
    thresholds = [bursar.Threshold(900, Verdict.DEGRADE, advice)]
    client.set_budget("acme", unit="tokens", limit=100, period="day", thresholds=thresholds)
    client.record(ACCOUNT, tokens=90)
    result = client.check(ACCOUNT, tokens=1)
    assert (result.verdict, result.advice) == (Verdict.DEGRADE, advice)
    [budget] = client.get_account("acme").budgets
    assert (budget.limit, str(budget.period)) == (100, "day")
    assert [threshold.permille for threshold in budget.thresholds] == [900]


def test_accounts_are_listed_page_by_page(client: bursar.Client) -> None:
    for number in range(5):
        client.set_budget(f"acme/a{number}", unit="tokens", limit=1)
    paths = [account.path for account in client.list_accounts("acme", page_size=2)]
    assert paths == ["acme", *(f"acme/a{number}" for number in range(5))]
    with pytest.raises(bursar.AccountNotFound):
        client.get_account("nobody")


def test_entries_tell_what_happened(funded: bursar.Client) -> None:
    with funded.reserve(ACCOUNT, tokens=100) as reservation:
        reservation.commit(tokens=60)
    entries = list(funded.list_entries("acme", reservation=reservation.id, page_size=2))
    assert [entry.sequence for entry in entries] == sorted(entry.sequence for entry in entries)
    spent = [entry.amount for entry in entries if entry.kind is EntryKind.SPEND]
    assert set(spent) == {60}
    held = funded.list_entries("acme", reservation=reservation.id, kinds=["hold"])
    assert {entry.amount for entry in held} == {100}
    later = datetime.now(UTC) + timedelta(hours=1)
    assert list(funded.list_entries("acme", start_time=later)) == []
    with pytest.raises(bursar.InvalidRequest, match="one of hold"):
        funded.list_entries(kinds=["nonsense"])


def test_a_watch_begins_with_everything_and_goes_on_with_changes(funded: bursar.Client) -> None:
    watch = funded.watch_accounts("acme", min_interval_s=0.05)
    assert "acme" in {account.path for account in next(watch).accounts}
    funded.freeze("acme")
    frozen = next(account for changes in watch for account in changes.accounts if account.frozen)
    assert frozen.path == "acme"


def test_tokens_are_counted_exactly(client: bursar.Client) -> None:
    count = client.count_tokens("o200k_base", text="hello world")
    assert (count.token_count, count.encoding) == (2, "o200k_base")
    with pytest.raises(bursar.InvalidRequest) as caught:
        client.count_tokens("no-such-model", text="hello")
    assert caught.value.reason == "UNKNOWN_TOKENIZER"


@pytest.mark.parametrize(
    ("account", "amounts", "reason"),
    [
        ("", {"tokens": 1}, "INVALID_ACCOUNT"),
        ("a//b", {"tokens": 1}, "INVALID_ACCOUNT"),
        ("acme", {"parsecs": 1}, "UNKNOWN_UNIT"),
    ],
)
def test_wrong_requests_are_told_by_reason(
    client: bursar.Client, account: str, amounts: dict[str, int], reason: str
) -> None:
    with pytest.raises(bursar.InvalidRequest) as caught:
        client.reserve(account, amounts=amounts)
    assert caught.value.reason == reason


def test_a_client_is_shared_by_threads_and_never_over_admits(funded: bursar.Client) -> None:
    """R2 through the whole stack: 16 threads, each 100 times one token, on a limit of 1,000."""
    admitted: list[str] = []

    def spend() -> None:
        for _ in range(100):
            with contextlib.suppress(bursar.BudgetExceeded):
                admitted.append(funded.reserve(ACCOUNT, tokens=1).id)

    threads = [threading.Thread(target=spend) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(admitted)) == len(admitted) == 1_000
    assert remaining(funded) == 0
