"""GPUs for tests: a stand-in for NVIDIA's library, compiled here, and what its devices do.

`StandIn` writes the folder that the library in `tests/support/nvml` reads. What counts as held is
decided there, by which processes really live; nothing here calls NVML.
"""

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
import time
import uuid as uuids
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, Self

from support.gpu_claims import NEVER, Claim, claim, fields, put
from support.gpu_worker import Orders, Worker

__all__ = [
    "GIB",
    "MIB",
    "NEVER",
    "Claim",
    "Gpu",
    "Instance",
    "Orders",
    "StandIn",
    "Worker",
    "build",
]

MIB: Final = 2**20
GIB: Final = 2**30
_SOURCES: Final = Path(__file__).resolve().parent / "nvml"
_BUILDS: Final = Path(__file__).resolve().parents[2] / "target" / "nvml"
_SONAME: Final = "libnvidia-ml.so.1"
_FLAGS: Final = ("-std=c11", "-O2", "-fPIC", "-shared", "-pthread", "-Wall", "-Wextra", "-Werror")
_EVENTS_MAX: Final = 64
_LOADED: list[Path] = []
"""The build that this process has loaded: the first one is found by its name for ever."""


def build(*, without: Iterable[str] = ()) -> Path:
    """Compiles the library, unless it is there already.

    Args:
        without: Functions that it does not export, as an older driver's.
    """
    missing = sorted(without)
    sources = sorted(_SOURCES.glob("*.c"))
    script = "{ global: nvml*; local: " + "".join(f"{name}; " for name in missing) + "*; };\n"
    digest = hashlib.sha256(script.encode() + " ".join(_FLAGS).encode())
    for source in sorted(_SOURCES.glob("*.[ch]")):
        digest.update(source.read_bytes())
    library = _BUILDS / digest.hexdigest()[:16] / _SONAME
    if library.exists():
        return library
    compiler = shutil.which("cc") or shutil.which("gcc")
    assert compiler is not None, "the NVML stand-in needs a C compiler, as cc or gcc"
    library.parent.mkdir(parents=True, exist_ok=True)
    exports = library.with_name(f"exports.{os.getpid()}.map")
    exports.write_text(script, encoding="utf-8")
    made = library.with_name(f"made.{os.getpid()}.so")
    linking = [f"-Wl,-soname,{_SONAME}", f"-Wl,--version-script={exports}"]
    subprocess.run([compiler, *_FLAGS, *linking, "-o", made, *sources], check=True)
    exports.unlink()
    made.replace(library)
    return library


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A device. None: a figure that it does not support.

    Attributes:
        total_bytes: All of its memory.
        reserved_bytes: What the driver keeps; `used` has it in the first version of the call only.
        base_bytes: What is in use without any process.
        tells_busy: Whether it says how busy it is.
        busy_percent: How busy; "sum": as its processes are together.
        power_mw: What it draws.
        energy_mj: Its counter.
        energy_runs: Whether the counter goes on with time, by the power.
        unified: Whether it has no memory of its own.
        lost: Whether it has fallen off the bus.
    """

    uuid: str
    name: str = "NVIDIA Stand-in 80GB"
    minor: int = 0
    total_bytes: int = 80 * GIB
    reserved_bytes: int = 512 * MIB
    base_bytes: int = 0
    tells_busy: bool = True
    busy_percent: int | Literal["sum"] = "sum"
    power_mw: int | None = 100_000
    energy_mj: int | None = 0
    energy_runs: bool = False
    unified: bool = False
    multiprocessors: int = 132
    lost: bool = False


@dataclass(frozen=True, kw_only=True)
class Instance:
    """A MIG instance, in the `slot` of its GPU."""

    uuid: str
    parent: str
    slot: int
    name: str = "NVIDIA Stand-in 80GB MIG 1g.10gb"
    gpu_instance: int
    compute_instance: int = 0
    total_bytes: int = 10 * GIB
    reserved_bytes: int = 0
    base_bytes: int = 0
    multiprocessors: int = 16
    slices: int = 1


class StandIn:
    """A machine with GPUs; as a context manager it ends with all of its workers.

    Args:
        without: Functions that the library does not export.
        driver: The driver's version.
    """

    def __init__(self, *, without: Iterable[str] = (), driver: str = "550.54.15") -> None:
        self.library_path = build(without=without)
        self.folder = Path(tempfile.mkdtemp(prefix="nvml-"))
        self.folder.chmod(0o755)
        for name in ("processes", "died", "members"):
            (self.folder / name).mkdir()
        (self.folder / "died").chmod(0o777)  # noted by whoever sees it first, as any user
        self._system: dict[str, Any] = {"driver": driver, "nvml": f"12.{driver}", "cuda": 12040}
        self._system |= {"layout": 24, "sample_ms": 100}
        self._gpus: dict[str, Gpu] = {}
        self._since_ns: dict[str, int] = {}
        self._instances: dict[str, Instance] = {}
        self._claims: dict[int, dict[str, Claim]] = {}
        self._rules: dict[int, dict[str, Any]] = {}
        self._events: list[tuple[int, str, int]] = []
        self._numbers = 0
        self._workers: list[Worker] = []
        self._write()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.end()
        if os.environ.get("NVML_STAND_IN") == str(self.folder):
            del os.environ["NVML_STAND_IN"]
        # From now on every call answers "unknown error", those that hang too.
        (self.folder / "state").unlink()
        shutil.rmtree(self.folder, ignore_errors=True)

    # Its library

    def env(self, **more: str) -> dict[str, str]:
        """The environment of a program that is to find these GPUs."""
        path = f"{self.library_path.parent}:{os.environ.get('LD_LIBRARY_PATH', '')}".rstrip(":")
        return os.environ | {"LD_LIBRARY_PATH": path, "NVML_STAND_IN": str(self.folder)} | more

    def load_into_this_process(self) -> None:
        """Makes the next `pynvml.nvmlInit` find these GPUs, and no others, here."""
        if not _LOADED:
            ctypes.CDLL(str(self.library_path))  # by its SONAME it is found from now on
            _LOADED.append(self.library_path)
        if _LOADED[0] != self.library_path:
            raise RuntimeError("this process has loaded another build of the library: use a child")
        os.environ["NVML_STAND_IN"] = str(self.folder)

    def system(self, **changes: Any) -> None:
        """Changes the versions `driver`, `nvml` and `cuda`, or `sample_ms`."""
        assert changes.keys() <= self._system.keys(), f"one of {sorted(self._system)}"
        self._system |= changes
        self._write()

    def layout(self, size: Literal[16, 24, 32]) -> None:
        """How long an entry of the `_v3` process lists is."""
        self.system(layout=size)

    # Devices

    def add_gpu(self, **about: Any) -> str:
        """Adds a GPU, described as `Gpu` is, and returns its uuid."""
        known: dict[str, Any] = {"uuid": f"GPU-{uuids.uuid4()}", "minor": len(self._gpus)}
        gpu = Gpu(**known | about)
        self._gpus[gpu.uuid] = gpu
        self._since_ns[gpu.uuid] = time.monotonic_ns()
        self._write()
        return gpu.uuid

    def add_instance(self, gpu: str, **about: Any) -> str:
        """Adds a MIG instance, described as `Instance` is, and returns its uuid."""
        slots = {one.slot for one in self._instances.values() if one.parent == gpu}
        slot = next(number for number in range(7) if number not in slots)
        known: dict[str, Any] = {"uuid": f"MIG-{uuids.uuid4()}", "slot": slot}
        known["gpu_instance"] = slot + 1
        instance = Instance(parent=gpu, **known | about)
        self._instances[instance.uuid] = instance
        self._write()
        return instance.uuid

    def update(self, uuid: str, **changes: Any) -> None:
        """Changes what a GPU or an instance says about itself; `energy_mj=0` resets its counter."""
        if uuid in self._instances:
            self._instances[uuid] = replace(self._instances[uuid], **changes)
        else:
            now_ns = time.monotonic_ns()
            self._gpus[uuid] = replace(self._so_far(uuid, now_ns), **changes)
            self._since_ns[uuid] = now_ns
        self._write()

    def _so_far(self, uuid: str, now_ns: int) -> Gpu:
        """A GPU with the energy that its counter has come to."""
        gpu = self._gpus[uuid]
        if not gpu.energy_runs or gpu.energy_mj is None or gpu.power_mw is None:
            return gpu
        more = gpu.power_mw * (now_ns - self._since_ns[uuid]) // 1_000_000_000
        return replace(gpu, energy_mj=gpu.energy_mj + more)

    def lose(self, gpu: str) -> None:
        """Takes a GPU off the bus: it is counted, and every call on it fails."""
        self.update(gpu, lost=True)

    def remove_gpu(self, gpu: str) -> None:
        """Takes a GPU out of the count; the index of those behind it moves."""
        del self._gpus[gpu]
        gone = [uuid for uuid, one in self._instances.items() if one.parent == gpu]
        for uuid in gone:
            del self._instances[uuid]
        self._write()

    # Processes

    def set_process(self, pid: int, gpu: str, *, real: bool = True, **about: Any) -> None:
        """Says what a process holds on a GPU, described as `Claim` is.

        Args:
            pid: It.
            gpu: The uuid of a GPU or an instance.
            real: Whether the process has to live for it; else it is held until it is removed.
            about: What is to be different from a small compute process.
        """
        claims = self._claims.setdefault(pid, {})
        claims[gpu] = Claim(gpu=gpu, **about)
        claim(self.folder, pid, *claims.values(), start=None if real else 0)

    def remove(self, pid: int) -> None:
        """Frees all that a process holds, whether it lives or not."""
        self._claims.pop(pid, None)
        (self.folder / "processes" / str(pid)).unlink(missing_ok=True)

    def worker(
        self,
        gpu: str,
        *,
        orders: Orders | None = None,
        launcher: Sequence[str] = (),
        **about: Any,
    ) -> Worker:
        """Starts a process that holds memory, described as `Claim` is; it ends with this."""
        worker = Worker(self.folder, Claim(gpu=gpu, **about), orders or Orders(), launcher)
        self._workers.append(worker)
        return worker

    # Trouble

    def fail(
        self, function: str, code: int, *, gpu: str | None = None, times: int | None = None
    ) -> None:
        """Makes a function answer with a code.

        Args:
            function: Its name in C, with its suffix; "*" for all.
            code: NVML's; 13 looks as if the driver did not have the function.
            gpu: The only device that it fails for.
            times: How often, for each process that calls; None: until `heal`.
        """
        self._rule("fail", function, value=code, gpu=gpu, times=times)

    def hang(self, function: str, *, gpu: str | None = None) -> None:
        """Makes a function answer nothing until `heal`."""
        self._rule("hang", function, gpu=gpu)

    def grow_list(self, function: str, by: int, *, times: int | None = None) -> None:
        """Makes a process list want room for more entries than the call before had said."""
        self._rule("grow", function, value=by, times=times)

    def no_memory_v2(self) -> None:
        """Makes the driver one that has only the first version of the memory call."""
        self.fail("nvmlDeviceGetMemoryInfo_v2", 13)

    def fail_init(self, code: int) -> None:
        """Makes the library refuse to start: 9 no driver, 18 another driver's, 12 no library."""
        self.fail("nvmlInit_v2", code)
        self.fail("nvmlInitWithFlags", code)

    def heal(self, function: str | None = None) -> None:
        """Ends what a function was made to do; None: all of them."""
        kept = {number: rule for number, rule in self._rules.items() if function is not None}
        self._rules = {n: rule for n, rule in kept.items() if rule["function"] != function}
        self._write()

    def xid(self, gpu: str, number: int) -> None:
        """Reports a fault to whoever waits for events."""
        self._numbers += 1
        self._events = [*self._events, (self._numbers, gpu, number)][-_EVENTS_MAX:]
        self._write()

    def _rule(self, does: str, function: str, **about: Any) -> None:
        exported = f"\0{function}\0".encode() in self.library_path.read_bytes()
        assert function == "*" or exported, f"no such function, by its name in C: {function}"
        self._numbers += 1
        self._rules[self._numbers] = {"does": does, "function": function} | about
        self._write()

    # What the library reads

    def _write(self) -> None:
        lines = [fields("system", **self._system)]
        migs = {one.parent for one in self._instances.values()}
        for index, gpu in enumerate(self._gpus.values()):
            since_ns = self._since_ns[gpu.uuid] if gpu.energy_runs else 0
            more = {"index": index, "mig": gpu.uuid in migs, "energy_since_ns": since_ns}
            lines.append(_device(asdict(gpu) | more))
        for instance in self._instances.values():
            untold = {"busy_percent": None, "power_mw": None, "energy_mj": None}
            lines.append(_device(asdict(instance) | {"index": instance.slot} | untold))
        for number, rule in self._rules.items():
            told = {key: value for key, value in rule.items() if value is not None}
            lines.append(fields("rule", id=number, **{"times": -1} | told))
        for number, gpu_uuid, xid in self._events:
            lines.append(fields("event", id=number, gpu=gpu_uuid, xid=xid))
        put(self.folder / "state", "".join(lines))


def _device(about: Mapping[str, Any]) -> str:
    told = {key.removesuffix("_bytes"): value for key, value in about.items()}
    told |= {key: -1 for key, value in told.items() if value in {None, "sum"}}
    return fields("device", **told)
