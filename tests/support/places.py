"""Places with less than is needed: a small disk, a lossy network, a memory that ends.

Each is the kernel's own and gone at the end; where the kernel or the user does not allow it, the
test is skipped with the reason.
"""

import ctypes
import os
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import pytest

_CLONE_NEWNET: Final = 0x40000000
_CGROUPS: Final = Path("/sys/fs/cgroup")


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


class Disk:
    """A file system of its own, in memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._filling = path / "filling"

    def fill(self) -> None:
        """Leaves no byte. The kernel counts for each processor, so the first refusal is not it."""
        refusals = 0
        with self._filling.open("wb", buffering=0) as file:
            while refusals < 100:
                try:
                    file.write(bytes(4096))
                except OSError:
                    refusals += 1
                    time.sleep(0.002)

    def take(self, count: int) -> None:
        """Takes so many bytes."""
        with self._filling.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, count)

    def leave(self, count: int) -> None:
        """Takes all but so many bytes."""
        self._filling.unlink(missing_ok=True)
        found = os.statvfs(self.path)
        self.take(found.f_bavail * found.f_frsize - count)

    def empty(self) -> None:
        """Makes room again."""
        self._filling.unlink()


@contextmanager
def small_disk(path: Path, size: str) -> Iterator[Disk]:
    """Mounts one at a new folder; sizes are as in `mount`: "96m", or "96m,nr_inodes=50"."""
    with mounted(path, "tmpfs", f"size={size},mode=700"):
        yield Disk(path)


@contextmanager
def mounted(path: Path, kind: str, options: str, source: str = "none") -> Iterator[Path]:
    """Mounts a file system at a new folder."""
    path.mkdir()
    command = ["mount", "-t", kind, "-o", options, source, str(path)]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip(f"no {kind} can be mounted here")
    try:
        yield path
    finally:
        _run("umount", "--lazy", str(path))


class Network:
    """A network of its own that is nothing but `lo`; who is in it is started while it is entered.

    What is lost is lost as packets, below TCP. Delays come from netem where the kernel has it, else
    from a queue that lets through so little that packets wait for each other.
    """

    def __init__(self) -> None:
        self._name = f"bursar-{os.getpid()}"
        self._outside = -1

    def __enter__(self) -> Self:
        try:
            _run("ip", "netns", "add", self._name)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"no network namespace can be made here: {error}")
        self._outside = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        inside = os.open(f"/run/netns/{self._name}", os.O_RDONLY)
        self._enter(inside)
        os.close(inside)
        try:
            _run("ip", "link", "set", "lo", "mtu", "1500", "up")
            _run("tc", "qdisc", "add", "dev", "lo", "clsact")
            self.lose(0)
        except (OSError, subprocess.CalledProcessError) as error:
            self.__exit__(None, None, None)
            pytest.skip(f"no packet can be lost here: {error}")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._enter(self._outside)
        os.close(self._outside)
        _run("ip", "netns", "delete", self._name)

    def lose(self, percent: float) -> None:
        """Loses so many of the packets from now on; 100: the network is parted."""
        # Classic BPF: A = random; A > threshold: go on (-1), else drop (2).
        threshold = min(int(percent / 100 * 2**32), 2**32 - 1)
        program = f"4,32 0 0 4294963256,37 0 1 {threshold},6 0 0 4294967295,6 0 0 2"
        where = ("dev", "lo", "ingress", "pref", "1", "handle", "1", "bpf", "da")
        _run("tc", "filter", "replace", *where, "bytecode", program)

    def delay(self, milliseconds: int) -> None:
        """Delays packets by about so much, give or take half of it."""
        self.delay_no_more()
        root = ("tc", "qdisc", "add", "dev", "lo", "root")
        how = (f"{milliseconds}ms", f"{milliseconds // 2}ms")
        try:
            _run(*root, "netem", "delay", *how)
        except subprocess.CalledProcessError:
            # A packet of 250 bytes takes so long.
            rate = f"{2_000 // milliseconds}kbit"
            longest = f"{20 * milliseconds}ms"
            _run(*root, "tbf", "rate", rate, "burst", "1600", "latency", longest)

    def delay_no_more(self) -> int:
        """Ends the delay, and says how many packets it has delayed."""
        shown = ("tc", "-s", "qdisc", "show", "dev", "lo", "root")
        said = subprocess.run(shown, check=True, capture_output=True, text=True).stdout
        found = re.search(r"qdisc (netem|tbf).*? (\d+) pkt .*?overlimits (\d+)", said, re.DOTALL)
        if found is None:
            return 0
        _run("tc", "qdisc", "delete", "dev", "lo", "root")
        return int(found[2] if found[1] == "netem" else found[3])

    @staticmethod
    def _enter(namespace: int) -> None:
        if ctypes.CDLL(None, use_errno=True).setns(namespace, _CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "setns")


@contextmanager
def memory_group(name: str) -> Iterator[Path]:
    """A control group with a memory of its own, of either version of the interface."""
    for root in (_CGROUPS, _CGROUPS / "memory"):
        group = root / f"bursar-{name}-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            if limit_file(group).exists():
                yield group
                return
        finally:
            _remove(group)
    pytest.skip("no control group with a limit on memory can be made here")


def limit_file(group: Path) -> Path:
    """Where the limit of a memory group is set."""
    second = group / "memory.max"
    return second if second.exists() else group / "memory.limit_in_bytes"


def _remove(group: Path) -> None:
    deadline = time.monotonic() + 10
    while True:
        try:
            return group.rmdir()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
