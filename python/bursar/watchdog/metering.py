"""Metering: two samples of the GPUs make amounts, by account and meter. Integers only; pure.

It owns what accounts have used of the GPUs and has not been handed out yet. It never reads a clock,
NVML or the ledger: `loop` steps it with each sample and takes the amounts to `books`. What happened
on one device between two samples is worked out in `usage`.

The meters are named apart and never mixed:

- ``gpu_alloc_ms``: wall time that an account has a context on a device. It counts once for each
  (device, account), however many processes the account has there.
- ``gpu_busy_ms``: how long the account's processes kept the device busy, as measured for each.
- ``gpu_estimated_ms``: the same for processes without a figure: what the device was busy beyond the
  measured, by bytes of VRAM, else equally; where the device has no figure either, the allocation.
- ``vram_mib_s``: bytes over time. ``energy_mj``: what the device's counter says, divided.

GPU time is that of whole GPUs: on a MIG instance, each meter of time is multiplied by its weight.

What a process holds is known at samples. From one to the next it is charged with the owner and the
bytes of the first (a left step), up to the next or to its `ended`. A process new at the next counts
from its `started`; without one, not yet. So what comes or goes untold is wrong by less than a
period. Busy time is what the later sample says of the time between, for the owner then. Before a
device is first read there is nothing to charge from.

Nobody is charged more than three periods at a time. A device that cannot be read is left as it is:
nothing is charged, nothing becomes zero, and the time is made up for, up to three periods, once it
is read again. The rest is a `Gap`, and its energy is unattributed: nobody saw who used it.

Time and bytes add up in femtoseconds and byte-nanoseconds; whole units are handed out and the rest
is carried, so nothing is lost in days of rounding. Energy is divided in whole millijoules by
largest remainder: accounts, unattributed and host idle add up to what the counters rose by, at
every step. The idle part goes by allocation; the rest by busy time, else VRAM, else equally.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from bursar.watchdog.samples import DeviceSample, Health, Sample
from bursar.watchdog.usage import UNATTRIBUTED, Picture, Use, busy_fs, holdings, split

__all__ = ["Gap", "Meter", "Metered"]

CARRIED_MAX: Final = 4096
"""Accounts without a process whose remainders are kept. Beyond that, the one gone longest loses its
own: less than a unit of each meter, in its favour."""
FORGET_NS: Final = 600 * 10**9
"""How long a device may be missing among devices that are seen, before it is taken for gone."""

_PERIODS_MAX: Final = 3
_MS_FS: Final = 10**12  # ns * permille busy * permille of a GPU are femtoseconds
_MIB_S: Final = 2**20 * 10**9
_UNITS: Final = {
    "gpu_alloc_ms": _MS_FS,
    "gpu_busy_ms": _MS_FS,
    "gpu_estimated_ms": _MS_FS,
    "vram_mib_s": _MIB_S,
}
_NOBODY: Final[Mapping[int, int]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Gap:
    """Time in which a device was not read and that is not charged in full.

    Attributes:
        uuid: The device.
        since_ns: When it was last read.
        until_ns: When it was read again, or taken for gone.
        charged_ns: How much of that was charged; 0: it is gone.
    """

    uuid: str
    since_ns: int
    until_ns: int
    charged_ns: int


@dataclass(frozen=True, slots=True)
class Metered:
    """What one step came to.

    Attributes:
        amounts: By account, then meter; what is zero is left out.
        unattributed: By meter: what was used by processes that are nobody's.
        host_idle_mj: The energy of devices, or parts of them, that nobody used.
        vram_bytes: By account with a process: its bytes on all devices. A device that cannot be
            read counts as it was, less what has ended.
        vram_peak_bytes: The most of that since the account has had a process.
        unseen: The accounts some of whose bytes are as they were, on a device that was not read.
        divided: The accounts some of whose bytes are no figure of the driver's, but an equal share
            of what several accounts have there.
        gaps: Where less was charged than time has passed.
        estimated: The accounts for which any of this is estimated; "": the unattributed.
    """

    amounts: dict[str, dict[str, int]]
    unattributed: dict[str, int]
    host_idle_mj: int
    vram_bytes: dict[str, int]
    vram_peak_bytes: dict[str, int]
    unseen: frozenset[str]
    divided: frozenset[str]
    gaps: tuple[Gap, ...]
    estimated: frozenset[str]


class Meter:
    """Turns samples into amounts.

    Args:
        period_ns: How far apart samples are meant to be.
        idle_window_ns: An idle GPU is taken to draw the least power seen in this window and the one
            before it.
        idle_mw: What an idle GPU draws in milliwatts, where that is configured.
    """

    def __init__(
        self, *, period_ns: int, idle_window_ns: int = 3600 * 10**9, idle_mw: int | None = None
    ) -> None:
        if period_ns <= 0 or idle_window_ns <= 0:
            raise ValueError(f"a period and a window are positive: {period_ns}, {idle_window_ns}")
        self._limit_ns = _PERIODS_MAX * period_ns
        self._idle_window_ns = idle_window_ns
        self._idle_mw = idle_mw
        self._last_ns = -1
        self._pictures: dict[str, Picture] = {}  # each device as it was when last read
        self._counters: dict[str, _Counter] = {}  # by whole GPU
        self._carried: dict[str, dict[str, int]] = {meter: {} for meter in _UNITS}
        self._peaks: dict[str, int] = {}  # of every account that has a process
        self._gone: dict[str, None] = {}  # accounts without one, gone longest first
        self._early: dict[int, int] = {}  # ends later than the latest sample

    @property
    def pids(self) -> set[int]:
        """The processes that are charged with the next step."""
        return {pid for picture in self._pictures.values() for pid in picture.held}

    @property
    def accounts(self) -> set[str]:
        """Whose those are."""
        return {account for picture in self._pictures.values() for account in picture.groups}

    def step(
        self,
        sample: Sample,
        owners: Mapping[int, str],
        *,
        started: Mapping[int, int] = _NOBODY,
        ended: Mapping[int, int] = _NOBODY,
    ) -> Metered:
        """What was used since the step before.

        Args:
            sample: A later sample than the one before.
            owners: By pid: the account; missing or empty: nobody knows.
            started: By pid: when it started or was registered, by the sample's clock. It counts for
                processes that are new on a device; others may be named.
            ended: By pid: when it ended. Told once; later than the sample is as good.

        Raises:
            ValueError: The sample is not later than the one before.
        """
        now = sample.time_ns
        if now <= self._last_ns:
            raise ValueError(
                f"samples come in the order of their time: {now} ns after {self._last_ns} ns"
            )
        self._last_ns = now
        self._end({**self._early, **ended}, now)
        step = _Step()
        uses: dict[str, Use] = {}  # by device that could be read
        gpus: defaultdict[str, list[DeviceSample]] = defaultdict(list)
        for seen in sample.devices:
            gpus[seen.parent_uuid or seen.uuid].append(seen)
            if seen.processes is not None and not seen.error:
                picture = Picture.of(seen, owners, now)
                before = self._pictures.get(seen.uuid)
                self._pictures[seen.uuid] = picture
                step.estimated |= picture.unsized
                uses[seen.uuid] = (
                    Use({}, {}, {})
                    if before is None
                    else self._charge(seen, before, picture, started, step)
                )
        for uuid, members in gpus.items():
            self._charge_energy(uuid, members, uses, now, step)
        if sample.health is Health.WATCHING:
            self._forget({seen.uuid for seen in sample.devices}, gpus, now, step)
        return self._hand_out(step)

    def _end(self, ends: dict[int, int], now: int) -> None:
        """Ends processes in the pictures; who ended after the sample was taken, at the next."""
        self._early = {pid: at for pid, at in ends.items() if at > now}
        for pid, at in ends.items():
            if at <= now:
                for picture in self._pictures.values():
                    picture.end(pid, at, self._limit_ns)

    def _charge(
        self,
        seen: DeviceSample,
        before: Picture,
        picture: Picture,
        started: Mapping[int, int],
        step: "_Step",
    ) -> Use:
        """Charges time and memory on one device from its picture before to the one now."""
        since, now = before.at_ns, picture.at_ns
        span = min(now - since, self._limit_ns)
        if span < now - since:
            step.gaps.append(Gap(seen.uuid, since, now, span))
        held_ns, byte_ns = holdings(before, picture, started, self._limit_ns)
        per_ns = 1000 * seen.weight_permille
        alloc = {account: ns * per_ns for account, ns in held_ns.items()}
        measured, guessed = busy_fs(seen, picture.groups, alloc, span)
        step.add("gpu_alloc_ms", alloc)
        step.add("gpu_busy_ms", measured)
        step.add("gpu_estimated_ms", guessed)
        step.add("vram_mib_s", byte_ns)
        step.estimated.update(guessed, before.unsized)
        for account, busy in guessed.items():
            measured[account] = measured.get(account, 0) + busy
        return Use(alloc, measured, byte_ns)

    def _charge_energy(
        self,
        uuid: str,
        members: list[DeviceSample],
        uses: dict[str, Use],
        now: int,
        step: "_Step",
    ) -> None:
        """Divides what one whole GPU has drawn: by weight among its instances, then by account."""
        reading = next((seen.energy_mj for seen in members if seen.energy_mj is not None), None)
        if reading is None or not any(seen.uuid in uses for seen in members):
            return
        counter = self._counters.get(uuid)
        if counter is None:
            self._counters[uuid] = _Counter(reading, now)
            return
        wide, drawn = now - counter.at_ns, reading - counter.reading
        counter.reading, counter.at_ns = reading, now
        if drawn <= 0:  # below 0: the driver was loaded anew
            return
        charged = drawn * min(wide, self._limit_ns) // wide
        step.energy[UNATTRIBUTED] += drawn - charged
        idle_mw = self._idle_mw
        if idle_mw is None:
            idle_mw = counter.least_mw(drawn * 10**9 // wide, now, self._idle_window_ns)
        idle = min(charged, idle_mw * min(wide, self._limit_ns) // 10**9)
        weights = {seen.uuid: seen.weight_permille for seen in members}
        weights[""] = max(0, 1000 - sum(weights.values()))  # what no instance was cut from
        nobody = Use({}, {}, {})
        unread = Use({UNATTRIBUTED: 1}, {}, {})
        used: set[str] = set()
        for pool, resting in ((idle, True), (charged - idle, False)):
            for part, mj in split(pool, weights).items():
                use = uses.get(part, unread) if part else nobody
                shares = use.alloc if resting and any(use.alloc.values()) else use.active()
                if not shares:
                    step.host_idle_mj += mj
                    continue
                for account, share in split(mj, shares).items():
                    step.energy[account] += share
                used.update(shares)
        if any(seen.energy_estimated for seen in members):
            step.estimated |= used

    def _forget(
        self, listed: set[str], gpus: Mapping[str, object], now: int, step: "_Step"
    ) -> None:
        """Drops what has not been listed for long, though other devices were."""
        for uuid in self._pictures.keys() - listed:
            since = self._pictures[uuid].at_ns
            if now - since > FORGET_NS:
                del self._pictures[uuid]
                step.gaps.append(Gap(uuid, since, now, 0))
        for uuid in self._counters.keys() - set(gpus):
            if now - self._counters[uuid].at_ns > FORGET_NS:
                del self._counters[uuid]

    def _hand_out(self, step: "_Step") -> Metered:
        """Hands out whole units and carries the rest."""
        amounts: defaultdict[str, dict[str, int]] = defaultdict(dict)
        for meter, unit in _UNITS.items():
            carried = self._carried[meter]
            for account, more in step.raw[meter].items():
                amount, carried[account] = divmod(carried.get(account, 0) + more, unit)
                if amount:
                    amounts[account][meter] = amount
        for account, mj in step.energy.items():
            if mj:
                amounts[account]["energy_mj"] = mj
        now_bytes: defaultdict[str, int] = defaultdict(int)
        unseen: set[str] = set()
        divided: set[str] = set()
        for picture in self._pictures.values():
            for account, group in picture.groups.items():
                now_bytes[account] += group.size
            if picture.at_ns != self._last_ns:
                unseen |= {account for account, group in picture.groups.items() if group.live}
            if len(picture.unsized) > 1:
                divided |= picture.unsized
        now_bytes.pop(UNATTRIBUTED, None)
        unattributed = amounts.pop(UNATTRIBUTED, {})
        self._note_accounts(now_bytes)
        return Metered(
            amounts=dict(amounts),
            unattributed=unattributed,
            host_idle_mj=step.host_idle_mj,
            vram_bytes=dict(now_bytes),
            vram_peak_bytes=self._peaks.copy(),
            unseen=frozenset(unseen - {UNATTRIBUTED}),
            divided=frozenset(divided - {UNATTRIBUTED}),
            gaps=tuple(step.gaps),
            estimated=frozenset(step.estimated),
        )

    def _note_accounts(self, now_bytes: Mapping[str, int]) -> None:
        """Keeps peaks, and the remainders of a bounded number of accounts that are gone."""
        peaks, gone = self._peaks, self._gone
        for account in peaks.keys() - now_bytes.keys():
            del peaks[account]
            gone[account] = None
        for account in gone.keys() & now_bytes.keys():
            del gone[account]
        while len(gone) > CARRIED_MAX:
            oldest = next(iter(gone))
            del gone[oldest]
            for carried in self._carried.values():
                carried.pop(oldest, None)
        for account, size in now_bytes.items():
            if size >= peaks.get(account, 0):
                peaks[account] = size


@dataclass(slots=True)
class _Step:
    """What one step has come to so far, in the smallest units."""

    raw: dict[str, dict[str, int]] = field(default_factory=lambda: {meter: {} for meter in _UNITS})
    energy: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    host_idle_mj: int = 0
    gaps: list[Gap] = field(default_factory=list)
    estimated: set[str] = field(default_factory=set)

    def add(self, meter: str, amounts: Mapping[str, int]) -> None:
        """Adds amounts by account."""
        raw = self.raw[meter]
        for account, amount in amounts.items():
            raw[account] = raw.get(account, 0) + amount


class _Counter:
    """The energy counter of one whole GPU, and the least power that it has drawn."""

    __slots__ = ("_before_mw", "_window_from_ns", "_window_mw", "at_ns", "reading")

    def __init__(self, reading: int, at_ns: int) -> None:
        self.reading = reading
        self.at_ns = at_ns
        self._window_from_ns = at_ns
        self._window_mw: int | None = None
        self._before_mw: int | None = None

    def least_mw(self, power_mw: int, at_ns: int, window_ns: int) -> int:
        """The least power in this window and the one before, which are all that is kept."""
        if at_ns - self._window_from_ns >= window_ns:
            self._window_from_ns = at_ns
            self._before_mw, self._window_mw = self._window_mw, None
        least = power_mw if self._window_mw is None else min(power_mw, self._window_mw)
        self._window_mw = least
        return least if self._before_mw is None else min(least, self._before_mw)
