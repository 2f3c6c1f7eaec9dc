"""Process lists of any layout, from a driver of our own making: a pid that it did not list is none.

The driver writes records of some size into the buffer, as real ones of several ages do, and worse:
with fields left untouched, with counts that are wrong, with bytes that are nothing at all.
"""

import ctypes
import random
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from support.daemon import LONG, new_seed

from bursar.watchdog.nvml import Nvml

TRIES: Final = 20_000 if LONG else 2_000
PID_MAX: Final = 32_768
MIB: Final = 2**20
NOT_THERE: Final = 2**64 - 1
UNTOUCHED: Final = 0xAA


class NVMLError(Exception):
    """As pynvml's."""


@dataclass
class Driver:
    """Stands in for pynvml: has the calls for process lists.

    Attributes:
        lists: What each call writes: how many records it says, and the bytes.
    """

    lists: dict[str, tuple[int, bytes]]
    NVMLError = NVMLError
    NVMLLibraryMismatchError = NVMLError

    def _nvmlGetFunctionPointer(self, symbol: str) -> Callable[..., int]:  # noqa: N802 -- as pynvml's
        if symbol not in self.lists:
            raise NVMLError(symbol)
        count, written = self.lists[symbol]

        def call(_: object, asked: Any, buffer: Any) -> int:
            room = asked._obj.value
            asked._obj.value = count
            if min(count, 8192) > room:
                return 7
            assert len(written) <= len(buffer), "the test writes no further than it may"
            ctypes.memmove(buffer, written, len(written))
            return 0

        return call


def reader(driver: Driver) -> Any:
    """A reader of lists that asks this driver."""
    nvml: Any = Nvml.__new__(Nvml)
    nvml._pynvml = driver
    nvml._entry_bytes = None
    nvml._buffer = ctypes.create_string_buffer(64 * 32)
    nvml._pid_max = PID_MAX
    nvml.distrusted = ""
    return nvml


def record(rng: random.Random, size: int, pid: int, memory: int) -> bytes:
    """One record: the pid, the memory, and whatever that driver has behind them."""
    head = struct.pack("<IxxxxQ", pid, memory)
    if size == 24:
        instance = rng.choice([0, 1, 7, 0xFFFFFFFF])
        return head + struct.pack("<II", instance, instance)
    tail = b"".join(
        struct.pack("<Q", rng.choice([0, 1, 4096, rng.randrange(PID_MAX), 2**32 - 1, NOT_THERE]))
        for _ in range(16)
    )
    return (head + tail)[:size].ljust(size, b"\0")


def memory_of(rng: random.Random) -> int:
    """Sizes, of which some look like pids."""
    return rng.choice([0, 5, 4096, 300, 31_000, MIB, 80 * 2**30, 2**32 + 77, NOT_THERE])


def listed(
    rng: random.Random, size: int, pids: list[int], *, whole: bool = False
) -> tuple[int, bytes]:
    """What a driver with records of this size writes: all of them, or what it knows."""
    found = bytearray(b"".join(record(rng, size, pid, memory_of(rng)) for pid in pids))
    if (
        not whole and size > 16 and found and rng.random() < 0.2
    ):  # what it does not know, it leaves as it was
        for start in range(0, len(found), size):
            found[start + 16 : start + size] = bytes([UNTOUCHED]) * (size - 16)
    return len(pids), bytes(found)


def test_no_layout_gives_a_pid_that_was_not_listed() -> None:
    seed = new_seed()
    counts: Counter[str] = Counter()
    for number in range(TRIES):
        rng = random.Random(f"{seed}.{number}")
        pids = rng.sample(range(3, PID_MAX + 1), rng.choice([0, 1, 2, 3, 8, 40]))
        size = rng.choice([8, 12, 16, 20, 24, 24, 28, 32, 40, 48])
        lists = {"nvmlDeviceGetComputeRunningProcesses_v3": listed(rng, size, pids)}
        if rng.random() < 0.6:
            lists["nvmlDeviceGetComputeRunningProcesses_v2"] = listed(rng, 24, pids, whole=True)
        if len(lists) > 1 and rng.random() < 0.1:  # without another list, no count can be checked
            count, written = lists["nvmlDeviceGetComputeRunningProcesses_v3"]
            count = rng.choice([0, count + 1, count * 2, 2**31, 2**32 - 1])
            lists["nvmlDeviceGetComputeRunningProcesses_v3"] = count, written
        nvml = reader(Driver(lists))
        for _ in range(2):
            entries = nvml._list(None, "Compute")
            found = None if entries is None else {pid for pid, _ in entries}
            assert found is None or found <= set(pids), f"seed {seed}, try {number}: {size} bytes"
            assert found is not None or nvml.distrusted
        counts[f"{size} bytes: {'none' if found is None else 'read'}"] += 1
    print(f"seed {seed}: {TRIES} tries, {dict(sorted(counts.items()))}")
    assert not counts["24 bytes: none"] > counts["24 bytes: read"]


def test_random_bytes_beside_a_list_that_is_right_give_no_other_pid() -> None:
    seed = new_seed()
    read = 0
    for number in range(TRIES):
        rng = random.Random(f"{seed}.{number}")
        pids = rng.sample(range(3, PID_MAX + 1), rng.choice([1, 3, 8]))
        noise = rng.randbytes(rng.choice([0, 7, 24, 48, 72, 16 * 9, 24 * 8, 32 * 8]))
        if rng.random() < 0.5:  # small numbers, as pids are
            words = (rng.choice([0, rng.randrange(3, PID_MAX)]) for _ in range(len(noise) // 4))
            noise = b"".join(word.to_bytes(4, "little") for word in words)
        lists = {
            "nvmlDeviceGetComputeRunningProcesses_v3": (rng.choice([1, 2, 3, 8, 9]), noise),
            "nvmlDeviceGetComputeRunningProcesses_v2": listed(rng, 24, pids, whole=True),
        }
        entries = reader(Driver(lists))._list(None, "Compute")
        if entries is not None:
            read += 1
            assert {pid for pid, _ in entries} <= set(pids), f"seed {seed}, try {number}"
    print(f"seed {seed}: {TRIES} tries, {read} read")
    assert read > TRIES // 2


def test_bytes_that_are_nothing_at_all_are_borne() -> None:
    seed = new_seed()
    for number in range(TRIES):
        rng = random.Random(f"{seed}.{number}")
        lists = {
            f"nvmlDeviceGetComputeRunningProcesses_v{age}": (
                rng.choice([0, 1, 3, 64, 65, 85, 86, 1000, 2**31, 2**32 - 1]),
                rng.randbytes(rng.randrange(2048)),
            )
            for age in (2, 3)
        }
        entries = reader(Driver(lists))._list(None, "Compute")
        assert all(2 < pid <= PID_MAX for pid, _ in entries or ())
    print(f"seed {seed}: {TRIES} tries")
