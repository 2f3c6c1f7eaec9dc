"""R1 to R3 through the real socket: never over-admit, never refuse what fits, all or nothing.

Goal: the strongest interleavings that a daemon can meet. Method: it is stopped (SIGSTOP) while 64
connections put their calls into its socket, so that it wakes up to all of them at once, on four
threads.
"""

import random
from collections import Counter
from collections.abc import Iterator

import pytest
from support.bare import amounts
from support.daemon import LONG, Daemon, balance, new_seed
from support.wire import Call, Wire, call

import bursar
from bursar.v1 import ledger_pb2 as lg

RUNS = 500 if LONG else 50
CONNECTIONS = 64
THREADS = 4  # data-plane threads: with one, nothing would interleave


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with Daemon(server={"runtime_threads": THREADS}) as running:
        yield running


@pytest.fixture
def client(daemon: Daemon) -> Iterator[bursar.Client]:
    with daemon.client(timeout_s=30) as one:
        yield one


@pytest.fixture
def wire(daemon: Daemon) -> Iterator[Wire]:
    # They are taken when all threads wake up at once: one that is awake alone would take them all.
    with daemon.stopped():
        one = Wire(daemon.socket_path, connections=CONNECTIONS)
    with one:
        before = daemon.thread_work_ns()
        yield one
        # A thread that had no name yet had not worked.
        work = [ns - before.get(name, 0) for name, ns in daemon.thread_work_ns().items()]
    print(f"the threads worked for {[ns // 1_000_000 for ns in work]} ms")
    assert sum(ns > max(work) / 20 for ns in work) > 1, "one thread served everybody"


def reserve(account: str, tokens: int, **more: int) -> Call:
    request = lg.ReserveRequest(account=account, amounts=amounts(tokens=tokens, **more))
    return call("LedgerService/Reserve", request)


def answers(daemon: Daemon, wire: Wire, calls: list[Call]) -> list[lg.ReserveResponse]:
    """Sends the calls while the daemon stands still, and reads their answers in order."""
    answered = wire.all_at_once(calls, held=daemon.stopped())
    assert None not in answered, "a call failed"
    return [lg.ReserveResponse.FromString(message or b"") for message in answered]


@pytest.mark.timeout(300)
def test_two_thousand_reserves_at_once_on_a_limit_of_a_hundred_admit_a_hundred(
    daemon: Daemon, client: bursar.Client, wire: Wire
) -> None:
    """R2 at three levels of the tree at once, each with a limit of its own; RUNS times."""
    for run in range(RUNS):
        seed = new_seed()
        print(f"run {run}: seed {seed}")
        root, team, agent = f"r{run}", f"r{run}/team", f"r{run}/team/agent"
        for account, limit in ((root, 100), (team, 70), (agent, 50)):
            client.set_budget(account, unit="tokens", limit=limit)
        accounts = [(root, f"r{run}/other/x", team, agent)[i % 4] for i in range(2_000)]
        random.Random(seed).shuffle(accounts)
        answered = answers(daemon, wire, [reserve(account, 1) for account in accounts])
        ids = [one.reservation.id for one in answered if one.HasField("reservation")]
        assert len(ids) == len(set(ids)) == 100
        assert balance(client, root) == (100, 0, 0)
        admitted = Counter(one.reservation.account for one in answered)
        assert balance(client, team)[0] == admitted[team] + admitted[agent] <= 70
        assert balance(client, agent)[0] == admitted[agent] <= 50
        for account, one in zip(accounts, answered, strict=True):
            if not one.HasField("reservation"):
                assert one.verdict == lg.VERDICT_STOP
                assert one.refusal.shortfall == 1
                assert (account + "/").startswith(one.refusal.account + "/")
        for one_id in ids:
            client.release(one_id)
        assert balance(client, root) == (0, 0, 100)


@pytest.mark.timeout(300)
def test_what_fits_is_not_refused_for_the_sake_of_what_does_not(
    daemon: Daemon, client: bursar.Client, wire: Wire
) -> None:
    """R3: mixed sizes that fill a limit exactly are all admitted, while many more calls take from
    the same root first and fail 14 levels further down. Amounts are whole thousands, so that a
    doomed call often takes just what is left. The race itself lasts some 100 ns, which calls over
    a socket hardly ever meet: loom has all of it; this is the rule from end to end."""
    for run in range(RUNS):
        seed = new_seed()
        print(f"run {run}: seed {seed}")
        dice = random.Random(seed)
        root = f"f{run}"
        sizes = [1_000 * dice.choice((1, 1, 2, 3)) for _ in range(40)]
        client.set_budget(root, unit="tokens", limit=sum(sizes))
        deep = root
        for level in range(14):
            deep += f"/p{level}"
            client.set_budget(deep, unit="tokens", limit=10**9 if level < 13 else 0)
        fits = [
            (reserve(dice.choice((root, f"{root}/a", f"{root}/a/b")), size), True) for size in sizes
        ]
        doomed = [
            (reserve(f"{deep}/x", 1_000 * dice.randint(1, sum(sizes) // 1_000)), False)
            for _ in range(1_960)
        ]
        mixed = fits + doomed
        dice.shuffle(mixed)
        answered = answers(daemon, wire, [one for one, _ in mixed])
        admitted = [one.HasField("reservation") for one in answered]
        assert admitted == [fit for _, fit in mixed]
        for one in answered:
            if not one.HasField("reservation"):
                assert one.refusal.account in (root, deep)
        assert balance(client, root) == (sum(sizes), 0, 0)
        assert balance(client, deep) == (0, 0, 0)


@pytest.mark.timeout(300)
def test_a_reserve_in_two_units_holds_both_or_neither(
    daemon: Daemon, client: bursar.Client, wire: Wire
) -> None:
    """R1: tokens last for 60 calls and gpu_ms for 40; 40 are admitted and hold 40 of each."""
    for run in range(max(2, RUNS // 4)):
        root = f"u{run}"
        client.set_budget(root, unit="tokens", limit=60)
        client.set_budget(f"{root}/a", unit="gpu_ms", limit=40)
        calls = [reserve(f"{root}/a", 1, gpu_ms=1) for _ in range(500)]
        calls += [reserve(f"{root}/b", 1) for _ in range(20)]
        answered = answers(daemon, wire, calls)
        both = sum(one.HasField("reservation") for one in answered[:500])
        alone = sum(one.HasField("reservation") for one in answered[500:])
        assert (both, alone) == (40, 20)
        assert balance(client, root) == (60, 0, 0)
        assert balance(client, f"{root}/a") == (40, 0, 0)


@pytest.mark.timeout(300)
def test_partial_grants_share_out_what_is_left_to_the_last_token(
    daemon: Daemon, client: bursar.Client, wire: Wire
) -> None:
    """R5: wishes of 90 with at least 1 on a limit of 1,000 leave nothing and pass nothing."""
    for run in range(max(2, RUNS // 4)):
        root = f"p{run}"
        client.set_budget(root, unit="tokens", limit=1_000)
        request = lg.ReserveRequest(
            account=f"{root}/a", amounts=amounts(tokens=90), min_acceptable=amounts(tokens=1)
        )
        calls = [call("LedgerService/Reserve", request)] * 300
        granted = [
            one.reservation.granted[0].value
            for one in answers(daemon, wire, calls)
            if one.HasField("reservation")
        ]
        assert sum(granted) == 1_000
        assert all(1 <= one <= 90 for one in granted)
        assert balance(client, root) == (1_000, 0, 0)
