"""Metering against a plain model: fractions, process by process, nothing grouped or carried.

Time held and bytes over time agree to the unit. Busy time and energy are divided in whole
femtoseconds and millijoules, so each step may differ by the rounding of its divisions; what the
energy adds up to may not.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from math import floor

from hypothesis import given, settings
from hypothesis import strategies as st

from bursar.watchdog.metering import Meter, Metered
from bursar.watchdog.samples import DeviceSample, GpuProcess, Health, Sample

S = 10**9
LIMIT = 3 * S
MIB = 2**20

Totals = defaultdict[str, Fraction]
Span = tuple[int, int]


@dataclass
class Held:
    """A process on a device since the device was read."""

    account: str
    size: int
    ended: int | None = None


@dataclass
class Read:
    """A device when it was last read."""

    at: int
    held: dict[int, Held] = field(default_factory=dict)


def length(spans: Iterable[Span]) -> int:
    """The time that is in any of the spans."""
    covered, until = 0, -1
    for start, end in sorted(spans):
        covered += max(0, end - max(start, until))
        until = max(until, end)
    return covered


def share(pool: Fraction, by: Mapping[str, Fraction]) -> dict[str, Fraction]:
    """A pool in proportion; nothing for nobody."""
    total = sum(by.values())
    return {name: pool * part / total for name, part in by.items()} if total else {}


class Model:
    """What a meter has to hand out, in fractions of units."""

    def __init__(self) -> None:
        self.alloc, self.busy, self.estimated, self.vram, self.energy = (
            defaultdict[str, Fraction](Fraction) for _ in range(5)
        )
        self.host_idle = Fraction()
        self.drawn = 0
        self.read: dict[str, Read] = {}
        self.counters: dict[str, tuple[int, int]] = {}
        self.least: dict[str, Fraction] = {}
        self.later: dict[int, int] = {}

    def step(
        self,
        sample: Sample,
        owners: Mapping[int, str],
        started: Mapping[int, int],
        ended: Mapping[int, int],
    ) -> None:
        now = sample.time_ns
        ends = self.later | dict(ended)
        self.later = {pid: at for pid, at in ends.items() if at > now}
        for read in self.read.values():
            for pid, held in read.held.items():
                if held.ended is None and ends.get(pid, now + 1) <= now:
                    held.ended = ends[pid]
        uses = {}
        for seen in sample.devices:
            if seen.processes is not None:
                uses[seen.uuid] = self.device(seen, seen.processes, now, owners, started)
        for uuid in {seen.parent_uuid or seen.uuid for seen in sample.devices}:
            members = [seen for seen in sample.devices if uuid in (seen.uuid, seen.parent_uuid)]
            if any(seen.uuid in uses for seen in members):
                self.draw(uuid, members, uses, now)

    def bytes_now(self) -> dict[str, int]:
        sizes: defaultdict[str, int] = defaultdict(int)
        for read in self.read.values():
            for held in read.held.values():
                sizes[held.account] += held.size if held.ended is None else 0
        sizes.pop("", None)
        return sizes

    def device(
        self,
        seen: DeviceSample,
        processes: tuple[GpuProcess, ...],
        now: int,
        owners: Mapping[int, str],
        started: Mapping[int, int],
    ) -> tuple[Totals, Totals, Totals]:
        known = sum(one.vram_bytes or 0 for one in processes)
        untold = sum(one.vram_bytes is None for one in processes)
        each = max(0, (seen.vram_used_bytes or 0) - known) // untold if untold else 0
        read = Read(now)
        for one in processes:
            size = each if one.vram_bytes is None else one.vram_bytes
            read.held[one.pid] = Held(owners.get(one.pid, ""), size)
        before = self.read.get(seen.uuid)
        self.read[seen.uuid] = read
        alloc, busy, vram = (defaultdict[str, Fraction](Fraction) for _ in range(3))
        if before is None:
            return alloc, busy, vram
        spans: defaultdict[str, list[Span]] = defaultdict(list)
        for account, size, span in self.spans(before, read, started):
            spans[account].append(span)
            vram[account] += size * min(length([span]), LIMIT)
        weight = Fraction(seen.weight_permille, 1000)
        for account, ones in spans.items():
            alloc[account] = min(length(ones), LIMIT) * weight
        passed = min(now - before.at, LIMIT) * weight
        measured, guessed = self.busy_time(seen, processes, read, alloc, passed)
        for by, into in ((alloc, self.alloc), (vram, self.vram), (measured, self.busy)):
            for account, amount in by.items():
                into[account] += amount
        for account, amount in guessed.items():
            self.estimated[account] += amount
        for by in (measured, guessed):
            for account, amount in by.items():
                busy[account] += amount
        return alloc, busy, vram

    def spans(
        self, before: Read, read: Read, started: Mapping[int, int]
    ) -> Iterator[tuple[str, int, Span]]:
        for held in before.held.values():
            end = read.at if held.ended is None else max(held.ended, before.at)
            yield held.account, held.size, (before.at, end)
        for pid, held in read.held.items():
            old = before.held.get(pid)
            if pid in started and (old is None or old.ended is not None):
                least = before.at if old is None else max(before.at, old.ended or 0)
                yield held.account, held.size, (min(read.at, max(least, started[pid])), read.at)

    def busy_time(
        self,
        seen: DeviceSample,
        processes: tuple[GpuProcess, ...],
        read: Read,
        alloc: Totals,
        span: Fraction,
    ) -> tuple[Totals, Totals]:
        measured, guessed = (defaultdict[str, Fraction](Fraction) for _ in range(2))
        told = seen.busy_permille
        room = Fraction(1000 if told is None else min(1000, max(0, told)), 1000)
        figures = {
            one.pid: Fraction(min(1000, max(0, one.busy_permille)), 1000)
            for one in processes
            if one.busy_permille is not None
        }
        total = sum(figures.values(), Fraction())
        scale = min(Fraction(1), room / total) if total else Fraction(1)
        for pid, figure in figures.items():
            measured[read.held[pid].account] += figure * scale * span
        blank = [one.pid for one in processes if one.busy_permille is None]
        sizes = sum(read.held[pid].size for pid in blank)
        for pid in blank:
            account = read.held[pid].account
            if told is None:
                guessed[account] = alloc[account]
            else:
                part = Fraction(read.held[pid].size, sizes) if sizes else Fraction(1, len(blank))
                guessed[account] += max(Fraction(), room - total) * part * span
        return measured, guessed

    def draw(
        self,
        uuid: str,
        members: list[DeviceSample],
        uses: dict[str, tuple[Totals, Totals, Totals]],
        now: int,
    ) -> None:
        reading = next((one.energy_mj for one in members if one.energy_mj is not None), None)
        if reading is None:
            return
        base, at = self.counters.get(uuid, (reading, now))
        self.counters[uuid] = reading, now
        drawn = reading - base
        if drawn <= 0:
            return
        self.drawn += drawn
        power = Fraction(drawn, now - at)
        self.least[uuid] = min(power, self.least.get(uuid, power))
        seconds = min(now - at, LIMIT)
        self.energy[""] += drawn - power * seconds
        for seen in members:
            weight = Fraction(seen.weight_permille, 1000)
            idle = self.least[uuid] * seconds * weight
            work = power * seconds * weight - idle
            if seen.uuid not in uses:
                self.energy[""] += idle + work
                continue
            alloc, busy, vram = uses[seen.uuid]
            there = {name: Fraction(1) for name, held in alloc.items() if held}
            active = share(work, busy) or share(work, vram) or share(work, there)
            resting = share(idle, alloc) or share(idle, busy) or share(idle, vram)
            for parts, pool in ((active, work), (resting, idle)):
                self.host_idle += 0 if parts else pool
                for account, amount in parts.items():
                    self.energy[account] += amount
        rest = 1000 - sum(one.weight_permille for one in members)
        self.host_idle += power * seconds * Fraction(rest, 1000)


class Sums:
    """What a meter has handed out in all."""

    def __init__(self) -> None:
        self.by: defaultdict[tuple[str, str], int] = defaultdict(int)
        self.host_idle = 0

    def add(self, metered: Metered) -> None:
        for account, amounts in ({"": metered.unattributed} | metered.amounts).items():
            for meter, amount in amounts.items():
                assert isinstance(amount, int)
                assert amount > 0
                self.by[account, meter] += amount
        self.host_idle += metered.host_idle_mj

    def of(self, meter: str) -> dict[str, int]:
        return {account: amount for (account, name), amount in self.by.items() if name == meter}


def permille(most: int = 1100) -> st.SearchStrategy[int | None]:
    return st.none() | st.sampled_from([0, 0, 1, 333, 1000]) | st.integers(-5, most)


PIDS = st.integers(10, 15)
ACCOUNTS = st.sampled_from(["", "a", "b", "c"])
SIZES = st.none() | st.sampled_from([0, 1, MIB]) | st.integers(0, 2**37)
PROCESSES = st.lists(
    st.builds(
        GpuProcess, pid=PIDS, contexts=st.just("C"), vram_bytes=SIZES, busy_permille=permille()
    ),
    max_size=6,
    unique_by=lambda one: one.pid,
).map(tuple)


def devices(uuid: str, weight: int, parent: str = "") -> st.SearchStrategy[DeviceSample]:
    return st.builds(
        DeviceSample,
        uuid=st.just(uuid),
        index=st.just(0),
        parent_uuid=st.just(parent),
        weight_permille=st.just(weight),
        processes=PROCESSES | PROCESSES | PROCESSES | st.none(),
        vram_used_bytes=st.none() | st.integers(0, 2**38),
        busy_permille=permille(),
        energy_mj=st.none() | st.integers(0, 10**6),
    )


DEVICES = st.tuples(
    devices("GPU-1", 1000),
    devices("MIG-1", 500, "GPU-2"),
    devices("MIG-2", 142, "GPU-2"),
    st.sets(st.sampled_from([0, 1, 2]), max_size=1),
).map(lambda drawn: tuple(one for at, one in enumerate(drawn[:3]) if at not in drawn[3]))
TIMES = st.dictionaries(PIDS, st.integers(-5 * S, S // 2), max_size=4)
STEPS = st.lists(
    st.tuples(
        st.sampled_from([1, S // 2, S, S, LIMIT, LIMIT + 1]) | st.integers(1, 8 * S),
        DEVICES | DEVICES | DEVICES | st.just(()),
        st.dictionaries(PIDS, ACCOUNTS),
        TIMES,
        TIMES,
    ),
    max_size=25,
)


@settings(max_examples=300, deadline=None)
@given(STEPS)
def test_the_meter_agrees_with_the_model(
    steps: list[
        tuple[int, tuple[DeviceSample, ...], dict[int, str], dict[int, int], dict[int, int]]
    ],
) -> None:
    meter, model, sums = Meter(period_ns=S), Model(), Sums()
    now = 100 * S
    for done, (wait, seen, owners, starts, ends) in enumerate(steps, start=1):
        now += wait
        started = {pid: now + at for pid, at in starts.items()}
        ended = {pid: now + at for pid, at in ends.items()}
        health = Health.WATCHING if seen else Health.BLIND
        sample = Sample(time_ns=now, health=health, devices=seen)
        metered = meter.step(sample, owners, started=started, ended=ended)
        sums.add(metered)
        model.step(sample, owners, started, ended)
        assert metered.vram_bytes == model.bytes_now()
        compare(sums, model, done)


def compare(sums: Sums, model: Model, done: int) -> None:
    """Compares all that was handed out in so many steps."""
    for meter, exact, unit in (
        ("gpu_alloc_ms", model.alloc, 10**6),
        ("vram_mib_s", model.vram, MIB * S),
    ):
        floors = {account: floor(amount / unit) for account, amount in exact.items()}
        assert sums.of(meter) == {account: amount for account, amount in floors.items() if amount}
    rounding = Fraction(3 * done, 10**12)  # three devices, a femtosecond each
    for meter, exact in (("gpu_busy_ms", model.busy), ("gpu_estimated_ms", model.estimated)):
        for account, amount in exact.items():
            off = amount / 10**6 - sums.by[account, meter]
            assert -rounding <= off < 1 + rounding, (meter, account)
    energy = sums.of("energy_mj")
    assert sum(energy.values()) + sums.host_idle == model.drawn
    # At each step, for each part: its weight, the two halves, the idle power in whole milliwatts.
    for account in energy.keys() | model.energy.keys():
        assert abs(energy.get(account, 0) - model.energy[account]) < 20 * done, account
    assert abs(sums.host_idle - model.host_idle) < 20 * done
