"""Meter on a real daemon: many reservations on one stream, and news that nobody asked for."""

import random
import time
from collections.abc import Iterator

import pytest
from support.bare import Bare, amounts
from support.daemon import Daemon, balance
from support.meter import Meter, debit

import bursar
from bursar.v1 import ledger_pb2 as lg
from bursar.v1.errors_pb2 import ErrorReason

OK, WARN, DEGRADE, STOP = (
    lg.VERDICT_OK, lg.VERDICT_WARN, lg.VERDICT_DEGRADE, lg.VERDICT_STOP,
)  # fmt: skip
LIMIT = 10**9
PUSHED_WITHIN_S = 1.0  # a few milliseconds, with room for a loaded machine


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    # Two threads: a stream and those who change what it tells need not share one.
    with Daemon(server={"runtime_threads": 2}, rates={"allow_unpriced": True}) as running:
        yield running


@pytest.fixture
def client(daemon: Daemon) -> Iterator[bursar.Client]:
    with daemon.client(timeout_s=30) as one:
        yield one


@pytest.fixture
def root(request: pytest.FixtureRequest, client: bursar.Client) -> str:
    name: str = request.node.name.partition("[")[0][:60]
    client.set_budget(name, unit="tokens", limit=LIMIT)
    return name


def left(answer: lg.MeterAnswer) -> dict[str, int]:
    return {one.unit: one.value for one in answer.remaining}


def reason(answer: lg.MeterAnswer) -> str:
    assert answer.verdict == STOP
    return str(ErrorReason.Name(answer.error.reason)).removeprefix("ERROR_REASON_")


def test_many_reservations_share_one_stream(
    daemon: Daemon, client: bursar.Client, root: str
) -> None:
    ids = [client.reserve(f"{root}/a{n % 7}", tokens=100).id for n in range(50)]
    with Meter(daemon.target) as meter:
        for used in range(1, 21):
            answers = meter(*(debit(one, tokens=used) for one in ids))
            assert [answer.reservation for answer in answers] == ids
            assert all(answer.verdict == OK for answer in answers)
            assert all(left(answer) == {"tokens": 100 - used} for answer in answers)
        assert meter() == []
        assert balance(client, root) == (50 * 80, 50 * 20, LIMIT - 50 * 100)
        meter.end()
        assert meter.news == []
    for one in ids:
        client.get_reservation(one)
    assert balance(client, root) == (50 * 80, 50 * 20, LIMIT - 50 * 100)


def test_repeats_and_reorderings_change_nothing(
    daemon: Daemon, client: bursar.Client, root: str
) -> None:
    """Random counts, windowed, in any order: what counts in the end is the highest of each."""
    seed = random.randrange(2**31)
    print(f"seed {seed}")
    dice = random.Random(seed)
    ids = [client.reserve(root, tokens=1_000).id for _ in range(5)]
    sent = [(one, count) for one in ids for count in range(1, 200)] * 2
    dice.shuffle(sent)
    highest = dict.fromkeys(ids, 0)
    with Meter(daemon.target) as meter:
        for one, count in sent:
            meter.send(debit(one, tokens=count))
        for one, count in sent:
            [answer] = meter.answers()
            highest[one] = max(highest[one], count)
            assert answer.reservation == one
            assert left(answer) == {"tokens": 1_000 - highest[one]}
    assert balance(client, root)[1] == 5 * 199


def test_usage_is_priced_as_in_debit(daemon: Daemon, client: bursar.Client, root: str) -> None:
    with Bare(daemon.target) as bare:
        held = bare(
            "LedgerService/Reserve",
            lg.ReserveRequest(
                account=root,
                usage=lg.UsageEstimate(model="gpt-4o", input_tokens=100, max_output_tokens=100),
            ),
        ).reservation.id
    usage = lg.Usage(input_tokens=100, output_tokens=7)
    with Meter(daemon.target) as meter:
        [answer] = meter(lg.MeterDebit(reservation=held, usage=usage))
        assert answer.verdict == OK
        assert left(answer)["tokens"] == 93
        both = lg.MeterDebit(reservation=held, usage=usage, used=amounts(tokens=1))
        [refused] = meter(both)
        assert reason(refused) == "INVALID_FIELD"
        assert refused.error.metadata["field"] == "used"


def test_a_freeze_and_its_end_are_told_unasked(
    daemon: Daemon, client: bursar.Client, root: str
) -> None:
    frozen, beside = client.reserve(f"{root}/a/b", tokens=9), client.reserve(root, tokens=9)
    with Meter(daemon.target) as meter:
        meter(debit(frozen.id, tokens=1), debit(beside.id, tokens=1))
        for _ in range(3):
            begun = time.monotonic()
            client.freeze(f"{root}/a")
            [told] = meter.told()
            assert time.monotonic() - begun < PUSHED_WITHIN_S
            assert (told.reservation, told.verdict) == (frozen.id, STOP)
            assert told.refusal.reason == lg.Refusal.REASON_ACCOUNT_FROZEN
            assert told.refusal.account == f"{root}/a"
            client.unfreeze(f"{root}/a")
            [told] = meter.told()
            assert (told.reservation, told.verdict) == (frozen.id, OK)
            assert not told.HasField("refusal")
        # What was told is not told again.
        client.freeze(f"{root}/elsewhere")
        [answer] = meter(debit(frozen.id, tokens=2))
        assert (answer.verdict, meter.news) == (OK, [])


def test_a_threshold_that_another_client_crosses_is_told_unasked(
    daemon: Daemon, client: bursar.Client, root: str
) -> None:
    """WARN, other advice at the same verdict, DEGRADE, a higher limit, a limit below the spent."""
    steps = [
        bursar.Threshold(500, bursar.Verdict.WARN, bursar.Advice(max_new_tokens=50)),
        bursar.Threshold(700, bursar.Verdict.WARN, bursar.Advice(max_new_tokens=30)),
        bursar.Threshold(900, bursar.Verdict.DEGRADE, bursar.Advice(fallback_model="small")),
    ]
    client.set_budget(root, unit="tokens", limit=1_000, thresholds=steps)
    mine, other = client.reserve(f"{root}/a", tokens=10), client.reserve(f"{root}/b", tokens=990)
    with Meter(daemon.target) as meter:
        assert meter(debit(mine.id, tokens=1))[0].verdict == OK
        told = []
        for used in (499, 600, 699, 899):
            other.debit(tokens=used)
            if used != 600:
                told += meter.told()
        assert [one.verdict for one in told] == [WARN, WARN, DEGRADE]
        assert [one.advice.max_new_tokens for one in told[:2]] == [50, 30]
        assert told[2].advice.fallback_model == "small"
        assert {one.reservation for one in told} == {mine.id}
        client.set_budget(root, unit="tokens", limit=10_000, thresholds=steps)
        assert meter.told()[0].verdict == OK
        client.set_budget(root, unit="tokens", limit=100, thresholds=steps)
        [stop] = meter.told()
        assert stop.refusal.reason == lg.Refusal.REASON_BUDGET_EXHAUSTED
        assert meter.news == []


def test_time_alone_takes_a_warning_back_in_a_rolling_window(
    daemon: Daemon, client: bursar.Client, root: str
) -> None:
    step = [bursar.Threshold(500, bursar.Verdict.WARN, bursar.Advice(max_new_tokens=1))]
    account = f"{root}/rolling"
    client.set_budget(account, unit="calls", limit=10, period="rolling:1s", thresholds=step)
    held = client.reserve(account, amounts={"calls": 6})
    with Meter(daemon.target) as meter:
        assert meter(debit(held.id, calls=6))[0].verdict == WARN
        assert meter.told()[0].verdict == OK


def test_the_end_of_a_reservation_is_told_unasked(
    daemon: Daemon, client: bursar.Client, root: str
) -> None:
    committed, released = (client.reserve(root, tokens=9) for _ in range(2))
    expiring = client.reserve(root, tokens=9, ttl_s=0.5)
    with Meter(daemon.target) as meter:
        meter(*(debit(one.id, tokens=4) for one in (committed, released, expiring)))
        committed.commit(tokens=6)
        released.release()
        told = {one.reservation: reason(one) for one in meter.told(3)}
        assert told == {
            committed.id: "RESERVATION_ENDED",
            released.id: "RESERVATION_ENDED",
            expiring.id: "RESERVATION_EXPIRED",
        }
        answers = meter(*(debit(one, tokens=5) for one in told))
        assert {one.reservation: reason(one) for one in answers} == told
        assert meter.news == []
    assert balance(client, root) == (0, 6 + 4 + 4, LIMIT - 14)


def test_a_used_up_hold_stays_so_until_it_is_raised(
    daemon: Daemon, client: bursar.Client, root: str
) -> None:
    held = client.reserve(root, tokens=10)
    with Meter(daemon.target) as meter:
        [answer] = meter(debit(held.id, tokens=12))
        assert answer.refusal.reason == lg.Refusal.REASON_HOLD_EXHAUSTED
        assert (answer.refusal.shortfall, left(answer)) == (2, {"tokens": 0})
        # Looking again for another's sake tells nothing new.
        client.freeze(f"{root}/elsewhere")
        held.extend(tokens=20)
        [answer] = meter(debit(held.id, tokens=12))
        assert (answer.verdict, left(answer)) == (OK, {"tokens": 8})


def test_what_fails_for_one_reservation_does_not_end_the_stream(
    daemon: Daemon, client: bursar.Client, root: str
) -> None:
    held, ended = client.reserve(root, tokens=10), client.reserve(root, tokens=10)
    ended.commit(tokens=1)
    with Meter(daemon.target) as meter:
        answers = meter(
            debit("nonsense", tokens=1),
            debit(ended.id, tokens=1),
            debit(held.id, tokens=-1),
            debit(held.id, inches=1),
            debit(held.id, vram_bytes=1),
            lg.MeterDebit(),
            debit(held.id, tokens=3),
        )
        assert [reason(answer) for answer in answers[:6]] == [
            "RESERVATION_NOT_FOUND", "RESERVATION_ENDED", "INVALID_AMOUNT", "UNKNOWN_UNIT",
            "INVALID_AMOUNT", "RESERVATION_NOT_FOUND",
        ]  # fmt: skip
        assert answers[3].error.metadata["unit"] == "inches"
        assert left(answers[6]) == {"tokens": 7}
    assert balance(client, root)[1] == 1 + 3


def test_r6_one_channel_at_a_time(daemon: Daemon, client: bursar.Client, root: str) -> None:
    held = client.reserve(root, tokens=10)
    held.debit(tokens=1)
    with Meter(daemon.target) as first, Meter(daemon.target) as second:
        assert left(first(debit(held.id, tokens=2))[0]) == {"tokens": 8}
        assert reason(second(debit(held.id, tokens=3))[0]) == "RESERVATION_LEASED"
        with pytest.raises(bursar.ReservationLeased):
            held.debit(tokens=3)
        assert left(first(debit(held.id, tokens=4))[0]) == {"tokens": 6}
        first.end()
        assert left(second(debit(held.id, tokens=3))[0]) == {"tokens": 6}
        second.end()
        assert held.debit(tokens=5).remaining == {"tokens": 5}
    with Meter(daemon.target) as third:
        third(debit(held.id, tokens=6))
        assert held.commit(tokens=9).spent == {"tokens": 9}


def test_tickets_of_crossings_are_awaited_in_every_durability() -> None:
    step = [bursar.Threshold(500, bursar.Verdict.WARN, bursar.Advice(max_new_tokens=1))]
    for durability in ("process", "power", "memory"):
        with Daemon(store={"durability": durability}) as daemon, daemon.client() as client:
            client.set_budget("acme", unit="tokens", limit=100, thresholds=step)
            held = client.reserve("acme/a", tokens=100, ttl_s=600)
            with Meter(daemon.target) as meter:
                for used in range(1, 101):
                    meter.send(debit(held.id, tokens=used))
                verdicts = [meter.answers()[0].verdict for _ in range(100)]
                assert verdicts == [OK] * 49 + [WARN] * 51
                daemon.kill9()
            daemon.start()
            kinds = [one.kind for one in client.list_entries("acme")]
            assert durability == "memory" or kinds.count(bursar.EntryKind.CROSSING) == 2
