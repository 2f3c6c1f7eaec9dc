"""Metering: two samples of the GPUs make amounts, by account and meter. Integers only; pure.

It owns what accounts have used of the GPUs and not been told yet, and nothing else: it reads no
clock, no NVML and no ledger. `loop` steps it with each sample and hands the amounts to `books`.

The meters are named apart and never mixed:

- ``gpu_alloc_ms``: wall time that an account has a context on a device. It counts once for each
  (device, account), however many processes the account has there.
- ``gpu_busy_ms``: how long the account's processes kept the device busy, as measured for each.
- ``gpu_estimated_ms``: the same for processes without a figure: what the device was busy beyond the
  measured, by bytes of VRAM, else equally; where the device has no figure either, the allocation.
- ``vram_mib_s``: bytes over time. ``energy_mj``: what the device's counter says, divided.

GPU time is that of whole GPUs: on a MIG instance, each meter of time is multiplied by its weight.

What a process holds is known at samples. From one to the next it is charged, with its owner and bytes
at the first (a left step), to the next or to its `ended`; a process new at the next one counts from
its `started` and not at all without. So memory that comes or goes unannounced is wrong by less than
a period. Busy time is what the later sample says of the time between, for its owner then.

Nobody is charged more than three periods at a time. A device that cannot be read is left as it is:
nothing is charged, nothing becomes zero, and the time is made up for, up to three periods, once it
is read again. The rest is a `Gap`; the energy of that rest is nobody's known and thus unattributed.

Time and bytes add up in femtoseconds and byte-nanoseconds; whole units are handed out and the rest
is carried, so nothing is lost in days of rounding. Energy is divided in whole millijoules by largest
remainder: accounts, unattributed and host idle add up to the counters' differences at every step.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, NamedTuple

from bursar.watchdog.samples import DeviceSample, Health, Sample

__all__ = ["Gap", "Meter", "Metered"]

CARRIED_MAX: Final = 4096
"""Accounts without a process whose remainders are kept. Beyond it the one gone longest loses its own:
less than a unit of each meter, in its favour."""
FORGET_NS: Final = 600 * 10**9
"""How long a device may be missing among devices that are seen, before it is taken for gone."""

_UNATTRIBUTED: Final = ""
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
        vram_bytes: By account with a process: its bytes on all devices. A device that cannot be read
            counts as it was.
        vram_peak_bytes: The most of that since the account has had a process.
        gaps: Where less was charged than time has passed.
        estimated: The accounts for which any of this is estimated; "": the unattributed.
    """

    amounts: dict[str, dict[str, int]]
    unattributed: dict[str, int]
    host_idle_mj: int
    vram_bytes: dict[str, int]
    vram_peak_bytes: dict[str, int]
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
        self._pictures: dict[str, _Picture] = {}  # each device as it was when last read
        self._counters: dict[str, _Counter] = {}  # by whole GPU
        self._carried: dict[str, dict[str, int]] = {meter: {} for meter in _UNITS}
        self._peaks: dict[str, int] = {}  # of every account that has a process
        self._gone: dict[str, None] = {}  # accounts without one, gone longest first
        self._early: dict[int, int] = {}  # ends later than the latest sample

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
            started: By pid: when it started or was registered, on the sample's clock. It matters for
                processes that are new on a device, and may name others.
            ended: By pid: when it ended; told once, in the next step.

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
        uses: dict[str, _Use] = {}
        gpus: defaultdict[str, list[DeviceSample]] = defaultdict(list)
        for seen in sample.devices:
            gpus[seen.parent_uuid or seen.uuid].append(seen)
            if seen.processes is not None and not seen.error:
                picture = _Picture.of(seen, owners, now)
                before = self._pictures.get(seen.uuid)
                self._pictures[seen.uuid] = picture
                uses[seen.uuid] = (
                    _Use({}, {}, {})
                    if before is None
                    else self._charge(seen, before, picture, started, step)
                )
        for uuid, members in gpus.items():
            self._charge_energy(uuid, members, uses, now, step)
        if sample.health is Health.WATCHING:
            self._forget({seen.uuid for seen in sample.devices}, gpus, now, step)
        return self._hand_out(step)

    def _end(self, ends: dict[int, int], now: int) -> None:
        """Ends processes in the pictures; what ended after the sample was taken waits for the next."""
        self._early = {pid: at for pid, at in ends.items() if at > now}
        for pid, at in ends.items():
            if at <= now:
                for picture in self._pictures.values():
                    picture.end(pid, at, self._limit_ns)

    def _charge(
        self,
        seen: DeviceSample,
        before: "_Picture",
        picture: "_Picture",
        started: Mapping[int, int],
        step: "_Step",
    ) -> "_Use":
        """Charges time and memory on one device from its picture before to the one now."""
        since, now = before.at_ns, picture.at_ns
        span = min(now - since, self._limit_ns)
        if span < now - since:
            step.gaps.append(Gap(seen.uuid, since, now, span))
        held_ns, byte_ns = _held(before, picture, started, self._limit_ns)
        per_ns = 1000 * seen.weight_permille
        alloc = {account: ns * per_ns for account, ns in held_ns.items()}
        measured, guessed = _busy(seen, picture.groups, alloc, span)
        step.add("gpu_alloc_ms", alloc)
        step.add("gpu_busy_ms", measured)
        step.add("gpu_estimated_ms", guessed)
        step.add("vram_mib_s", byte_ns)
        step.estimated.update(guessed)
        for groups in (before.groups, picture.groups):
            step.estimated.update(account for account, group in groups.items() if group.unsized)
        for account, busy in guessed.items():
            measured[account] = measured.get(account, 0) + busy
        return _Use(alloc, measured, byte_ns)

    def _charge_energy(
        self,
        uuid: str,
        members: list[DeviceSample],
        uses: dict[str, "_Use"],
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
        wide = now - counter.at_ns
        drawn = counter.advance(reading, now)
        charged = drawn * min(wide, self._limit_ns) // wide
        step.energy[_UNATTRIBUTED] += drawn - charged
        idle_mw = self._idle_mw
        if idle_mw is None:
            idle_mw = counter.least_mw(drawn * 10**9 // wide, now, self._idle_window_ns)
        idle = min(charged, idle_mw * min(wide, self._limit_ns) // 10**9)
        weights = {seen.uuid: seen.weight_permille for seen in members}
        weights[""] = max(0, 1000 - sum(weights.values()))  # what no instance was cut from
        nobody = _Use({}, {}, {})
        unread = _Use({_UNATTRIBUTED: 1}, {}, {})
        used: set[str] = set()
        for pool, resting in ((idle, True), (charged - idle, False)):
            for part, mj in _split(pool, weights).items():
                use = uses.get(part, unread) if part else nobody
                shares = use.alloc if resting and any(use.alloc.values()) else use.active()
                if not shares:
                    step.host_idle_mj += mj
                    continue
                for account, share in _split(mj, shares).items():
                    step.energy[account] += share
                used.update(shares)
        if any(seen.energy_estimated for seen in members):
            step.estimated |= used

    def _forget(self, listed: set[str], gpus: Iterable[str], now: int, step: "_Step") -> None:
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
        for picture in self._pictures.values():
            for account, group in picture.groups.items():
                now_bytes[account] += group.size
        now_bytes.pop(_UNATTRIBUTED, None)
        self._note_accounts(now_bytes)
        return Metered(
            amounts={account: by for account, by in amounts.items() if account},
            unattributed=amounts.get(_UNATTRIBUTED, {}),
            host_idle_mj=step.host_idle_mj,
            vram_bytes=dict(now_bytes),
            vram_peak_bytes=self._peaks.copy(),
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


class _Use(NamedTuple):
    """How a device was used between two pictures, by account."""

    alloc: dict[str, int]
    busy: dict[str, int]
    byte_ns: dict[str, int]

    def active(self) -> dict[str, int]:
        """What energy beyond the idle part is divided by; empty: nobody was there."""
        for shares in (self.busy, self.byte_ns):
            if any(shares.values()):
                return shares
        return {account: 1 for account, held in self.alloc.items() if held}


class _Group:
    """The processes of one account on one device: a class, as it is made for each at every step."""

    __slots__ = (
        "account",
        "busy",
        "ended_at_ns",
        "ended_byte_ns",
        "live",
        "size",
        "unmeasured",
        "unmeasured_size",
        "unsized",
    )

    def __init__(self, account: str) -> None:
        self.account = account
        self.live = 0
        self.size = 0
        self.unsized = 0
        self.busy = 0
        self.unmeasured = 0
        self.unmeasured_size = 0
        self.ended_at_ns = 0
        self.ended_byte_ns = 0


class _Picture(NamedTuple):
    """Who held one device when it was read, and who of them has ended since."""

    at_ns: int
    held: dict[int, tuple[_Group, int]]
    groups: dict[str, _Group]
    ended: dict[int, int]

    @classmethod
    def of(cls, seen: DeviceSample, owners: Mapping[int, str], at_ns: int) -> "_Picture":
        """Groups the processes by account; this loop is what a step costs."""
        held: dict[int, tuple[_Group, int]] = {}
        groups: dict[str, _Group] = {}
        unsized = []
        known = 0
        owner_of = owners.get
        for process in seen.processes or ():
            pid, size, busy = process.pid, process.vram_bytes, process.busy_permille
            account = owner_of(pid, _UNATTRIBUTED)
            group = groups.get(account)
            if group is None:
                group = groups[account] = _Group(account)
            group.live += 1
            if size is None:
                size = 0
                group.unsized += 1
                unsized.append(process)
            known += size
            group.size += size
            if busy is None:
                group.unmeasured += 1
                group.unmeasured_size += size
            else:
                group.busy += busy if 0 <= busy <= 1000 else 1000 * (busy > 0)  # noqa: PLR2004
            held[pid] = group, size
        if unsized and seen.vram_used_bytes is not None:
            each = max(0, seen.vram_used_bytes - known) // len(unsized)
            for process in unsized:
                group = held[process.pid][0]
                group.size += each
                group.unmeasured_size += each if process.busy_permille is None else 0
                held[process.pid] = group, each
        return cls(at_ns, held, groups, {})

    def end(self, pid: int, at_ns: int, limit_ns: int) -> None:
        """Takes a process out, and notes what it has held since the picture."""
        if pid not in self.held or pid in self.ended:
            return
        group, size = self.held[pid]
        self.ended[pid] = at_ns
        group.live -= 1
        group.size -= size
        group.ended_at_ns = max(group.ended_at_ns, at_ns)
        group.ended_byte_ns += size * min(max(0, at_ns - self.at_ns), limit_ns)


class _Counter:
    """The energy counter of one whole GPU, and the least power that it has drawn."""

    __slots__ = ("_before_mw", "_window_from_ns", "_window_mw", "at_ns", "reading")

    def __init__(self, reading: int, at_ns: int) -> None:
        self.reading = reading
        self.at_ns = at_ns
        self._window_from_ns = at_ns
        self._window_mw: int | None = None
        self._before_mw: int | None = None

    def advance(self, reading: int, at_ns: int) -> int:
        """What was drawn since the last reading; 0 where the driver was loaded anew."""
        drawn = max(0, reading - self.reading)
        self.reading, self.at_ns = reading, at_ns
        return drawn

    def least_mw(self, power_mw: int, at_ns: int, window_ns: int) -> int:
        """The least power in this window and the one before, which are all that is kept."""
        if at_ns - self._window_from_ns >= window_ns:
            self._window_from_ns = at_ns
            self._before_mw, self._window_mw = self._window_mw, None
        least = power_mw if self._window_mw is None else min(power_mw, self._window_mw)
        self._window_mw = least
        return least if self._before_mw is None else min(least, self._before_mw)


def _held(
    before: _Picture, picture: _Picture, started: Mapping[int, int], limit_ns: int
) -> tuple[dict[str, int], dict[str, int]]:
    """How long each account held the device, and its bytes over time, in nanoseconds."""
    since, now = before.at_ns, picture.at_ns
    span = min(now - since, limit_ns)
    held_ns: dict[str, int] = {}
    byte_ns: dict[str, int] = {}
    for account, group in before.groups.items():
        held_ns[account] = span if group.live else min(span, max(0, group.ended_at_ns - since))
        byte_ns[account] = group.size * span + group.ended_byte_ns
    fresh = picture.held.keys() - (before.held.keys() - before.ended.keys())
    firsts: dict[str, int] = {}
    for pid in fresh & started.keys():
        first = max(since, started[pid], before.ended.get(pid, 0))
        if first < now:
            group, size = picture.held[pid]
            account = group.account
            byte_ns[account] = byte_ns.get(account, 0) + size * min(now - first, limit_ns)
            firsts[account] = min(first, firsts.get(account, now))
    for account, first in firsts.items():
        left = before.groups.get(account)
        until = since if left is None else now if left.live else max(since, left.ended_at_ns)
        apart = max(0, first - until)  # between the end of the old and the start of the new
        held_ns[account] = min(now - since - apart, limit_ns)
    return held_ns, byte_ns


def _busy(
    seen: DeviceSample, groups: Mapping[str, _Group], alloc: Mapping[str, int], span: int
) -> tuple[dict[str, int], dict[str, int]]:
    """How long each account kept the device busy, measured and estimated, in femtoseconds."""
    per_permille = span * seen.weight_permille
    told = seen.busy_permille
    room = 1000 if told is None else min(max(told, 0), 1000)
    sums = {account: group.busy for account, group in groups.items() if group.busy}
    total = sum(sums.values())
    if total > room:
        measured = _split(room * per_permille, sums)
    else:
        measured = {account: busy * per_permille for account, busy in sums.items()}
    unmeasured = {account: group for account, group in groups.items() if group.unmeasured}
    if not unmeasured:
        return measured, {}
    if told is None:
        return measured, {account: alloc.get(account, 0) for account in unmeasured}
    shares = {account: group.unmeasured_size for account, group in unmeasured.items()}
    if not any(shares.values()):
        shares = {account: group.unmeasured for account, group in unmeasured.items()}
    return measured, _split(max(0, room - total) * per_permille, shares)


def _split(pool: int, shares: Mapping[str, int]) -> dict[str, int]:
    """Divides a pool to the last unit: floors, then one more for each largest remainder."""
    total = sum(shares.values())
    parts, rests = {}, {}
    for key, share in shares.items():
        parts[key], rests[key] = divmod(pool * share, total)
    short = pool - sum(parts.values())
    if short:
        for key in sorted(rests, key=rests.__getitem__, reverse=True)[:short]:
            parts[key] += 1
    return parts
