"""How one device was used between two readings of it, by account. Integers only; pure.

The first half of metering: `metering` says what the amounts mean, adds them up and rounds them.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple

from bursar.watchdog.samples import DeviceSample

__all__ = ["UNATTRIBUTED", "Picture", "Use", "busy_fs", "holdings", "split"]

UNATTRIBUTED: Final = ""
"""The account of processes that are nobody's."""

_FULL: Final = 1000  # permille


class Use(NamedTuple):
    """How a device was used between two pictures, by account: what energy is divided by."""

    alloc: dict[str, int]
    busy: dict[str, int]
    byte_ns: dict[str, int]

    def active(self) -> dict[str, int]:
        """What energy beyond the idle part is divided by; empty: nobody was there."""
        for shares in (self.busy, self.byte_ns):
            if any(shares.values()):
                return shares
        return {account: 1 for account, held in self.alloc.items() if held}


class Group:
    """The processes of one account on one device.

    The bytes and the number are of those that live; what others have held since the picture is
    apart.
    """

    __slots__ = (
        "account",
        "busy",
        "ended_at_ns",
        "ended_byte_ns",
        "live",
        "size",
        "unmeasured",
        "unmeasured_size",
    )

    def __init__(self, account: str) -> None:
        self.account = account
        self.live = 0
        self.size = 0
        self.busy = 0
        self.unmeasured = 0
        self.unmeasured_size = 0
        self.ended_at_ns = 0
        self.ended_byte_ns = 0


class Picture(NamedTuple):
    """Who held one device when it was read, and who of them has ended since.

    Attributes:
        at_ns: When it was read.
        held: By pid: the group and the bytes.
        groups: By account.
        ended: By pid: when it ended.
        unsized: The accounts with processes whose bytes the driver does not tell. Such processes
            share equally what the device has in use beyond the others.
    """

    at_ns: int
    held: dict[int, tuple[Group, int]]
    groups: dict[str, Group]
    ended: dict[int, int]
    unsized: frozenset[str]

    @classmethod
    def of(cls, seen: DeviceSample, owners: Mapping[int, str], at_ns: int) -> "Picture":
        """Groups the processes by account; this loop is what a step costs."""
        held: dict[int, tuple[Group, int]] = {}
        groups: dict[str, Group] = {}
        unsized = []
        known = 0
        owner_of = owners.get
        for process in seen.processes or ():
            pid, size, busy = process.pid, process.vram_bytes, process.busy_permille
            account = owner_of(pid, UNATTRIBUTED)
            group = groups.get(account)
            if group is None:
                group = groups[account] = Group(account)
            group.live += 1
            if size is None:
                size = 0
                unsized.append(process)
            known += size
            group.size += size
            if busy is None:
                group.unmeasured += 1
                group.unmeasured_size += size
            else:
                group.busy += busy if 0 <= busy <= _FULL else min(max(busy, 0), _FULL)
            held[pid] = group, size
        if unsized and seen.vram_used_bytes is not None:
            each = max(0, seen.vram_used_bytes - known) // len(unsized)
            for process in unsized:
                group = held[process.pid][0]
                group.size += each
                group.unmeasured_size += each if process.busy_permille is None else 0
                held[process.pid] = group, each
        guessed = frozenset(held[process.pid][0].account for process in unsized)
        return cls(at_ns, held, groups, {}, guessed)

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


def holdings(
    before: Picture, picture: Picture, started: Mapping[int, int], limit_ns: int
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


def busy_fs(
    seen: DeviceSample, groups: Mapping[str, Group], alloc: Mapping[str, int], span: int
) -> tuple[dict[str, int], dict[str, int]]:
    """How long each account kept the device busy, measured and estimated, in femtoseconds."""
    per_permille = span * seen.weight_permille
    told = seen.busy_permille
    room = _FULL if told is None else min(max(told, 0), _FULL)
    sums = {account: group.busy for account, group in groups.items() if group.busy}
    total = sum(sums.values())
    if total > room:
        measured = split(room * per_permille, sums)
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
    return measured, split(max(0, room - total) * per_permille, shares)


def split(pool: int, shares: Mapping[str, int]) -> dict[str, int]:
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
