"""The crowd of a soak: each kind of client in a process of its own, which tells what it has spent.

A kind is a function that works until it is told to stop, and returns what its account has spent by
then, as far as it was told. None of them gives up by itself: what goes wrong is raised. They take
every core that is left, and give way to the daemon: what is measured is it, and not which process
has its turn.
"""

import asyncio
import http.client
import itertools
import json
import multiprocessing
import os
import random
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Final

import bursar
from bursar.care import backup
from bursar.v1 import ledger_pb2 as lg
from support.bare import amounts
from support.dashboard import Asker
from support.ratelimits import OK, RateLimits
from support.wire import Call, Wire, call

PATIENCE_S: Final = 120.0
PROBES: Final = "probes"
_COMMITTED: Final = 7
_WATCHERS: Final = 10
_TASKS: Final = 8
_SLICE_S: Final = 60.0


@dataclass(frozen=True)
class Place:
    """Where the daemon is, what its clients by TCP and by the proxy show and trust, and where those
    who look at it find its page and its metrics."""

    target: str
    socket: Path
    store: Path
    tcp: str
    ca: Path
    proxy: str
    token: str
    page: str
    metrics: str
    observer: str


def _lives(account: Callable[[int], str], stop: Event) -> Iterator[Call]:
    wish = amounts(tokens=10)
    for number in itertools.count():
        if stop.is_set():
            return
        key = f"{number:x}-{time.monotonic_ns():x}"
        request = lg.ReserveRequest(account=account(number), amounts=wish, idempotency_key=key)
        yield call("LedgerService/Reserve", request)


def pound(place: Place, stop: Event, _pipe: Connection) -> int:
    """Reservations as fast as one client can make them, 64 under way."""
    commits = 0

    def follow(method: str, _: bytes, answer: bytes | None) -> Iterator[Call]:
        nonlocal commits
        assert answer is not None, f"{method} failed"
        if method == "LedgerService/Reserve":
            held = lg.ReserveResponse.FromString(answer).reservation.id
            assert held, "a reservation was refused"
            yield call(
                "LedgerService/Debit", lg.DebitRequest(reservation=held, used=amounts(tokens=5))
            )
            actual = amounts(tokens=_COMMITTED)
            yield call("LedgerService/Commit", lg.CommitRequest(reservation=held, actual=actual))
        elif method == "LedgerService/Commit":
            commits += 1

    with Wire(place.socket, connections=4) as wire:
        account = "acme/pound/team{}/agent{}"
        lives = _lives(lambda number: account.format(number % 7, number % 100), stop)
        wire.keep_busy(follow, lives, in_flight=64)
    return commits * _COMMITTED


def probe(place: Place, stop: Event, pipe: Connection) -> int:
    """One call after the other, 100 a second; sends how long they took, in us, minute by minute."""
    commits, slice_end = 0, time.monotonic() + _SLICE_S
    took_us: list[int] = []
    with Wire(place.socket, connections=1) as wire:
        for reserve in _lives(lambda _: "acme/probe", stop):
            [answer] = _timed(wire, reserve, took_us)
            held = lg.ReserveResponse.FromString(answer).reservation.id
            commit = lg.CommitRequest(reservation=held, actual=amounts(tokens=_COMMITTED))
            _timed(wire, call("LedgerService/Commit", commit), took_us)
            commits += 1
            if time.monotonic() >= slice_end:
                pipe.send((PROBES, took_us))
                took_us, slice_end = [], slice_end + _SLICE_S
            time.sleep(0.02)
    pipe.send((PROBES, took_us))
    return commits * _COMMITTED


def _timed(wire: Wire, one: Call, took_us: list[int]) -> list[bytes]:
    begun = time.perf_counter_ns()
    [answer] = wire.all_at_once([one])
    took_us.append((time.perf_counter_ns() - begun) // 1_000)
    assert answer is not None, f"{one[0]} failed"
    return [answer]


def lease(place: Place, stop: Event, _pipe: Connection) -> int:
    """Leases on shared memory, one after the other, with top-ups."""
    with bursar.connect(place.target, timeout_s=PATIENCE_S) as client:
        return _leases(client, "acme/lease/agent", stop)


def meter(place: Place, stop: Event, _pipe: Connection) -> int:
    """The same by TLS, with a token."""
    tls = bursar.Tls(ca=place.ca)
    with bursar.connect(place.tcp, tls=tls, token=place.token, timeout_s=PATIENCE_S) as client:
        return _leases(client, "acme/meter/agent", stop)


def _leases(client: bursar.Client, account: str, stop: Event) -> int:
    dice, spent = random.Random(0), 0
    while not stop.is_set():
        with client.reserve(account, tokens=100) as reservation:
            step = reservation.lease()
            for _ in range(dice.randrange(2_000)):
                assert step.debit(dice.randrange(5)) is not bursar.Verdict.STOP, "a lease ended"
                if dice.random() < 0.05:
                    time.sleep(0.001)
            spent += reservation.commit().spent.get("tokens", 0)
    return spent


def nest(place: Place, stop: Event, _pipe: Connection) -> int:
    """Tasks of one event loop, which reserve within their reservations."""

    async def task(client: bursar.AsyncClient, number: int) -> int:
        spent = 0
        while not stop.is_set():
            async with await client.reserve(f"acme/nest/task{number}", tokens=500) as outer:
                for _ in range(5):
                    async with await client.reserve(
                        f"acme/nest/task{number}", tokens=50, parent=outer.id
                    ) as inner:
                        result = await inner.commit(tokens=number + 1)
                        spent += result.spent["tokens"]
                result = await outer.commit(tokens=3)
                spent += result.spent["tokens"]
            await asyncio.sleep(0.01)
        return spent

    async def all_tasks() -> int:
        async with bursar.connect_async(place.target, timeout_s=PATIENCE_S) as client:
            return sum(await asyncio.gather(*(task(client, number) for number in range(_TASKS))))

    return asyncio.run(all_tasks())


def run(place: Place, stop: Event, _pipe: Connection) -> int:
    """An account for each run, which retires when nobody comes again."""
    spent = 0
    with bursar.connect(place.target, timeout_s=PATIENCE_S) as client:
        while not stop.is_set():
            client.record(f"acme/run/r{time.monotonic_ns():x}", tokens=3)
            spent += 3
            time.sleep(0.05)
    return spent


def watch(place: Place, stop: Event, _pipe: Connection) -> int:
    """Watchers, and a reader who pages through what there is."""

    def follow(client: bursar.Client) -> None:
        with suppress(bursar.BursarError):  # the client is closed in the end
            for _ in client.watch_accounts("acme", min_interval_s=0.1):
                pass

    with bursar.connect(place.target, timeout_s=PATIENCE_S) as client:
        threads = [threading.Thread(target=follow, args=(client,)) for _ in range(_WATCHERS)]
        for thread in threads:
            thread.start()
        while not stop.is_set():
            entries = itertools.islice(client.list_entries("acme", page_size=500), 2_000)
            assert sum(1 for _ in entries), "there are no entries"
            assert sum(1 for _ in client.list_accounts("acme")), "there are no accounts"
            assert client.check("acme/probe", tokens=1).refusal is None
            assert all(thread.is_alive() for thread in threads), "a watcher heard the end"
            time.sleep(0.5)
    return 0


def operate(place: Place, stop: Event, _pipe: Connection) -> int:
    """An operator who is never done: limits, freezes, tokens."""
    with bursar.connect(place.target, timeout_s=PATIENCE_S) as client:
        for number in itertools.count():
            if stop.is_set():
                return 0
            client.set_budget("acme/pound", unit="tokens", limit=10**14 + number % 1_000)
            client.set_budget("acme/odd", unit="tokens", limit=1, period="rolling:5s")
            client.freeze("acme/odd", reason="for a moment")
            client.unfreeze("acme/odd")
            role = bursar.Role.OBSERVER
            made = client.tokens.create("moment", role=role, account="acme/odd", ttl_s=60)
            client.tokens.revoke(made.token.id)
            time.sleep(0.2)
    raise AssertionError


def ask(place: Place, stop: Event, _pipe: Connection) -> int:
    """Streams through the proxy; spends what the upstream says that it used."""
    host, _, port = place.proxy.removeprefix("http://").partition(":")
    message = {"role": "user", "content": "hello " * 50}
    body = {"model": "m", "messages": [message], "max_tokens": 50, "stream": True}
    head = {"authorization": f"Bearer {place.token}", "content-type": "application/json"}
    spent = 0
    while not stop.is_set():
        connection = http.client.HTTPConnection(host, int(port), timeout=PATIENCE_S)
        connection.request("POST", "/a/acme/ask/agent/v1/chat/completions", json.dumps(body), head)
        answer = connection.getresponse()
        told = answer.read()
        assert answer.status == 200, told[:500]
        assert b"[DONE]" in told, told[-500:]
        spent += ASKED_TOKENS
        connection.close()
        time.sleep(0.02)
    return spent


def keep(place: Place, stop: Event, _pipe: Connection) -> int:
    """Backups, each of them verified, one in ten minutes."""
    with tempfile.TemporaryDirectory(dir=place.store.parent) as folder:
        while True:
            backup.make(place.store, Path(folder) / "backup")
            shutil.rmtree(Path(folder) / "backup")
            if stop.wait(10 * _SLICE_S):
                return 0


def limit(place: Place, stop: Event, _pipe: Connection) -> int:
    """An Envoy that asks for each request; every token of its hits is spent."""
    spent = 0
    with RateLimits(Path(__file__).parents[2], place.target) as envoy:
        while not stop.is_set():
            assert envoy({"team": "limit"}, hits=2).overall_code == OK
            spent += 2
            time.sleep(0.01)
    return spent


def look(place: Place, stop: Event, _pipe: Connection) -> int:
    """A browser that watches, and a Prometheus that scrapes every five seconds."""
    page = Asker(place.page).signed_in(place.observer)
    metrics = Asker(place.metrics, {"authorization": f"Bearer {place.observer}"})
    with page.watching() as watcher:
        while not stop.is_set():
            begun = time.monotonic()
            assert b"bursar_accounts" in metrics.get("/metrics").body
            while time.monotonic() < begun + 5 and not stop.is_set():
                assert watcher.read(), "the picture ended"
    return 0


ASKED_TOKENS: Final = 70
"""What the upstream says of each call."""

KINDS: Final = (pound, probe, lease, meter, nest, run, watch, operate, ask, limit, look, keep)


class Crowd:
    """Starts one of each kind, and collects what they tell; the last of it when they have ended."""

    def __init__(self, place: Place) -> None:
        context = multiprocessing.get_context("spawn")
        self._stop = context.Event()
        self._members = []
        self.spent: dict[str, int] = {}
        self.probes_us: list[list[int]] = []
        for kind in KINDS:
            mine, theirs = context.Pipe()
            arguments = (kind.__name__, place, self._stop, theirs)
            process = context.Process(target=_work, args=arguments, daemon=True)
            process.start()
            theirs.close()
            self._members.append((kind.__name__, process, mine))

    def listen(self) -> None:
        """Takes in what was told since; raises what a member failed with."""
        for name, process, pipe in self._members:
            while pipe.poll():
                try:
                    what, told = pipe.recv()
                except EOFError:
                    assert name in self.spent, f"{name} died with {process.exitcode}"
                    break
                assert what != "failed", f"{name}: {told}"
                if what == PROBES:
                    self.probes_us.append(told)
                else:
                    self.spent[f"acme/{name}"] = told

    def end(self) -> None:
        """Has all of them end."""
        self._stop.set()
        deadline = time.monotonic() + PATIENCE_S
        while len(self.spent) < len(self._members):
            assert time.monotonic() < deadline, f"only {sorted(self.spent)} have ended"
            self.listen()
            time.sleep(0.05)
        self.kill()

    def kill(self) -> None:
        """Has nobody left."""
        for _, process, pipe in self._members:
            process.kill()
            process.join()
            pipe.close()


def _work(name: str, place: Place, stop: Event, pipe: Connection) -> None:
    kind = next(one for one in KINDS if one.__name__ == name)
    if kind not in (probe, keep):
        os.nice(10)
    try:
        pipe.send(("spent", kind(place, stop, pipe)))
    except BaseException as error:  # noqa: BLE001 -- told to the test, which raises it
        pipe.send(("failed", repr(error)))
    stop.wait()
    pipe.recv()  # threads of ours may still be waiting: it ends by being killed
