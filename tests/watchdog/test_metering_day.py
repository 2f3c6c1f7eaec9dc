"""A day of churn: what was handed out equals what the script says each process had, to the unit.

The truth is not stepped. Each process has a life and a size; what it had is their product, less
what gaps above three periods hide. The script starts and ends processes at any nanosecond and tells
most of it, blinds one device or all of them, leaves out samples, loads the driver anew, and uses
pids again. Two hours of it; a day with BURSAR_LONG=1.
"""

import random
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from support.daemon import LONG, new_seed

from bursar.watchdog.metering import CARRIED_MAX, Gap, Meter, Metered
from bursar.watchdog.samples import DeviceSample, GpuProcess, Health, Sample

S = 10**9
LIMIT = 3 * S
SAMPLES = 86_400 if LONG else 7_200
ACCOUNTS = ("", "team/a", "team/b", "team/c", "other")
PER_DEVICE_MAX = 8

Span = tuple[int, int]


@dataclass
class Life:
    """A process on one device."""

    pid: int
    account: str
    size: int
    sized: bool
    start: int
    end: int
    tells_start: bool
    tells_end: bool
    told_end: bool = False

    def span(self, readings: list[int]) -> Span | None:
        """From when to when it is charged; None: no reading of the device has it."""
        first = bisect_left(readings, self.start)
        after = bisect_left(readings, self.end)
        if first == after:
            return None
        start = max(self.start, readings[0]) if self.tells_start else readings[first]
        if after == len(readings):
            return start, readings[-1]
        return start, self.end if self.tells_end else readings[after]


@dataclass
class Gpu:
    """A device, who has ever been on it, and when it was read."""

    uuid: str
    weight: int = 1000
    parent: str = ""
    blind_until: int = 0
    lives: list[Life] = field(default_factory=list)
    alive: list[Life] = field(default_factory=list)
    readings: list[int] = field(default_factory=list)

    @property
    def whole(self) -> str:
        return self.parent or self.uuid

    def gaps(self) -> list[Span]:
        return [(a, b) for a, b in pairwise(self.readings) if b - a > LIMIT]


class Day:
    """The script, and what has to come of it."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now = self.random.randrange(10**15)
        self.gpus = [
            Gpu("GPU-1"),
            Gpu("GPU-2"),
            Gpu("MIG-1", 500, "GPU-3"),
            Gpu("MIG-2", 142, "GPU-3"),
        ]
        self.blind_until = 0
        self.counters = dict.fromkeys(("GPU-1", "GPU-2", "GPU-3"), 10**9)
        self.read_counters: dict[str, int] = {}
        self.drawn_mj = 0
        self.busy_fs: defaultdict[str, int] = defaultdict(int)
        self.pids_used = 1000
        self.free_pids: list[int] = []
        self.jobs = 0

    def happens(self, probability: float) -> bool:
        return self.random.random() < probability

    def play(self, meter: Meter, samples: int) -> Iterator[Metered]:
        for _ in range(samples):
            before = self.now
            jitter = self.random.randrange(-S // 50, S // 50)
            missing = self.random.randrange(20 * S) if self.happens(0.003) else 0
            self.now += S + jitter + missing
            ended = self.churn(before)
            sample = self.sample()
            alive = [life for gpu in self.gpus for life in gpu.alive]
            owners = {life.pid: life.account for life in alive}
            started = {life.pid: life.start for life in alive if life.tells_start}
            yield meter.step(sample, owners, started=started, ended=ended)

    def churn(self, before: int) -> dict[int, int]:
        """Who comes and goes between two samples; when those ended that tell."""
        ended = {}
        freed = []
        for gpu in self.gpus:
            for life in list(gpu.alive):
                over = life.end <= self.now
                early = life.end - self.now < S // 2 and self.happens(0.2)
                if life.tells_end and not life.told_end and (over or early):
                    life.told_end = True
                    ended[life.pid] = life.end
                if over:
                    gpu.alive.remove(life)
                    freed += [life.pid] if life.tells_end else []
            if len(gpu.alive) < PER_DEVICE_MAX and self.happens(0.06):
                self.start(gpu, self.random.randrange(before + 1, self.now + 1))
        self.free_pids += freed  # used again at once, from the next step on
        return ended

    def start(self, gpu: Gpu, at: int) -> None:
        account = self.random.choice(ACCOUNTS)
        if self.happens(0.5):
            self.jobs += 1
            account = f"team/a/job-{self.jobs}"
        if not self.free_pids:
            self.pids_used += 1
            self.free_pids.append(self.pids_used)
        life = Life(
            pid=self.free_pids.pop(),
            account=account,
            size=self.random.choice((0, 1, self.random.randrange(2**36))),
            sized=self.happens(0.8) or not all(life.sized for life in gpu.alive),
            start=at,
            end=at + self.random.randrange(1, self.random.choice((S, 30 * S, 120 * S, 600 * S))),
            tells_start=self.happens(0.8),
            tells_end=self.happens(0.8),
        )
        gpu.lives.append(life)
        if life.end > self.now:
            gpu.alive.append(life)

    def sample(self) -> Sample:
        for name in self.counters:
            self.counters[name] += self.random.randrange(60_000, 400_000)
            if self.happens(0.0005):  # the driver is loaded anew
                self.counters[name] = self.random.randrange(1000)
        if self.happens(0.001):
            self.blind_until = self.now + self.random.randrange(60 * S)
        if self.now < self.blind_until:
            return Sample(time_ns=self.now, health=Health.BLIND)
        told = {name: None if self.happens(0.002) else mj for name, mj in self.counters.items()}
        devices = [seen for gpu in self.gpus for seen in self.device(gpu, told[gpu.whole])]
        read = {gpu.whole for gpu in self.gpus if gpu.readings and gpu.readings[-1] == self.now}
        for name, mj in told.items():
            if mj is not None and name in read:
                self.drawn_mj += max(0, mj - self.read_counters.get(name, mj))
                self.read_counters[name] = mj
        return Sample(time_ns=self.now, health=Health.WATCHING, devices=tuple(devices))

    def device(self, gpu: Gpu, energy_mj: int | None) -> list[DeviceSample]:
        """The device as it is seen, if it is."""
        if self.happens(0.001):
            gpu.blind_until = self.now + self.random.randrange(20 * S)
        seen = DeviceSample(
            uuid=gpu.uuid, index=0, parent_uuid=gpu.parent, weight_permille=gpu.weight
        )
        if self.now < gpu.blind_until:
            return self.random.choice(([], [seen]))
        span = min(self.now - gpu.readings[-1], LIMIT) if gpu.readings else 0
        gpu.readings.append(self.now)
        processes = []
        for life in gpu.alive:
            busy = self.random.randrange(1000 // PER_DEVICE_MAX)
            self.busy_fs[life.account] += busy * span * gpu.weight
            size = life.size if life.sized else None
            processes.append(GpuProcess(life.pid, "C", vram_bytes=size, busy_permille=busy))
        return [
            DeviceSample(
                uuid=gpu.uuid,
                index=0,
                parent_uuid=gpu.parent,
                weight_permille=gpu.weight,
                processes=tuple(processes),
                vram_used_bytes=sum(life.size for life in gpu.alive),
                busy_permille=self.random.choice((None, 1000)),
                energy_mj=energy_mj,
            )
        ]

    def truth(self) -> dict[str, dict[str, int]]:
        """By meter and account: whole units."""
        alloc_fs: defaultdict[str, int] = defaultdict(int)
        byte_ns: defaultdict[str, int] = defaultdict(int)
        for gpu in self.gpus:
            gaps = gpu.gaps()
            spans: defaultdict[str, list[Span]] = defaultdict(list)
            for life in gpu.lives:
                span = life.span(gpu.readings)
                if span is not None:
                    spans[life.account].append(span)
                    byte_ns[life.account] += life.size * charged([span], gaps)
            for account, ones in spans.items():
                alloc_fs[account] += charged(union(ones), gaps) * gpu.weight * 1000
        units = {
            "gpu_alloc_ms": (alloc_fs, 10**12),
            "gpu_busy_ms": (self.busy_fs, 10**12),
            "vram_mib_s": (byte_ns, 2**20 * S),
        }
        return {
            meter: {account: n // unit for account, n in by.items() if n >= unit}
            for meter, (by, unit) in units.items()
        }


def union(spans: Iterable[Span]) -> list[Span]:
    """The same time in spans that do not overlap."""
    joined: list[Span] = []
    for start, end in sorted(spans):
        if joined and start <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(end, joined[-1][1])
        else:
            joined.append((start, end))
    return joined


def charged(spans: list[Span], gaps: list[Span]) -> int:
    """The length of spans, of which each gap leaves three periods at most."""
    total = sum(end - start for start, end in spans)
    for gap_start, gap_end in gaps:
        inside = sum(max(0, min(end, gap_end) - max(start, gap_start)) for start, end in spans)
        total -= max(0, inside - LIMIT)
    return total


def check_bounds(meter: Meter, day: Day) -> None:
    alive_max = PER_DEVICE_MAX * len(day.gpus)
    assert len(meter._pictures) <= len(day.gpus)
    assert len(meter._counters) <= len(day.counters)
    assert all(len(one.held) <= PER_DEVICE_MAX for one in meter._pictures.values())
    assert all(len(one.ended) <= PER_DEVICE_MAX for one in meter._pictures.values())
    assert len(meter._early) <= alive_max
    assert len(meter._peaks) <= alive_max
    assert len(meter._gone) <= CARRIED_MAX
    assert all(len(by) <= CARRIED_MAX + alive_max for by in meter._carried.values())


@pytest.mark.timeout(900 if LONG else 60)
def test_a_day_of_churn_adds_up_to_the_unit() -> None:
    """Goal: no unit is lost or made up, however long it runs. Method: the module's docstring."""
    seed = new_seed()
    print(f"BURSAR_SEED={seed}")
    day, meter = Day(seed), Meter(period_ns=S)
    sums: defaultdict[str, defaultdict[str, int]] = defaultdict(lambda: defaultdict(int))
    host_idle_mj = 0
    gaps: list[Gap] = []
    for metered in day.play(meter, SAMPLES):
        for account, amounts in ({"": metered.unattributed} | metered.amounts).items():
            for name, amount in amounts.items():
                assert type(amount) is int
                sums[name][account] += amount
        host_idle_mj += metered.host_idle_mj
        gaps += metered.gaps
        check_bounds(meter, day)
    print(f"{len(gaps)} gaps, {day.jobs} jobs, {day.pids_used - 1000} pids")
    energy = sums.pop("energy_mj")
    assert sum(energy.values()) + host_idle_mj == day.drawn_mj
    assert sums == day.truth()
    expected = {(gpu.uuid, *span, LIMIT) for gpu in day.gpus for span in gpu.gaps()}
    assert {(one.uuid, one.since_ns, one.until_ns, one.charged_ns) for one in gaps} == expected
