"""A small real process that holds memory of a real NVIDIA GPU, by ctypes on the driver alone.

`python -m support.cuda ORDERS` with the orders as JSON holds it until it is told to end, or after
`life_s`; `python -m support.cuda` says why no GPU can be used here, or nothing. Both are processes
of their own, so that a test's process never has a context, nor another NVML than the stand-in.
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, Self

__all__ = ["Driver", "NoGpu", "Orders", "Worker", "why_none"]

LIBRARY: Final = "libcuda.so.1"
_TESTS: Final = Path(__file__).resolve().parent.parent
_PATIENCE_S: Final = 30
_POINTER: Final = ctypes.c_uint64  # CUdeviceptr is 64 bits wide wherever this runs
_SIGNATURES: Final[dict[str, tuple[Any, ...]]] = {
    "cuInit": (ctypes.c_uint,),
    "cuDeviceGetCount": (ctypes.POINTER(ctypes.c_int),),
    "cuDeviceGet": (ctypes.POINTER(ctypes.c_int), ctypes.c_int),
    "cuDevicePrimaryCtxRetain": (ctypes.POINTER(ctypes.c_void_p), ctypes.c_int),
    "cuCtxSetCurrent": (ctypes.c_void_p,),
    "cuMemAlloc_v2": (ctypes.POINTER(_POINTER), ctypes.c_size_t),
    "cuMemsetD8_v2": (_POINTER, ctypes.c_ubyte, ctypes.c_size_t),
    "cuCtxSynchronize": (),
}
"""As cuda.h of the CUDA toolkit declares them; each returns a CUresult, where 0 is success."""


class NoGpu(Exception):
    """There is no GPU that can be used; says why."""


class Driver:
    """The CUDA driver.

    Args:
        library: Its name.

    Raises:
        NoGpu: It cannot be loaded, does not start, or counts no device.
    """

    def __init__(self, library: str = LIBRARY) -> None:
        try:
            self._library = ctypes.CDLL(library)
            for name, types in _SIGNATURES.items():
                function = getattr(self._library, name)
                function.argtypes, function.restype = types, ctypes.c_int
        except (OSError, AttributeError) as error:
            raise NoGpu(f"no CUDA driver: {error}") from None
        self.call("cuInit", 0)
        count = ctypes.c_int()
        self.call("cuDeviceGetCount", ctypes.byref(count))
        if count.value == 0:
            raise NoGpu("CUDA counts no devices")
        self._address = _POINTER()
        self._size = 0

    def call(self, name: str, *arguments: Any) -> None:
        """Calls a function; raises NoGpu with its name and the CUresult where it fails."""
        if code := getattr(self._library, name)(*arguments):
            raise NoGpu(f"{name} fails with CUresult {code}")

    def hold(self, size: int, *, index: int = 0) -> None:
        """Makes a context on a device and allocates so many bytes there."""
        device, context = ctypes.c_int(), ctypes.c_void_p()
        self.call("cuDeviceGet", ctypes.byref(device), index)
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self.call("cuCtxSetCurrent", context)
        self.call("cuMemAlloc_v2", ctypes.byref(self._address), size)
        self._size = size

    def step(self) -> None:
        """Writes to all of it, and waits until that is done."""
        self.call("cuMemsetD8_v2", self._address, 1, self._size)
        self.call("cuCtxSynchronize")


@dataclass(frozen=True, kw_only=True)
class Orders:
    """What a worker does.

    Attributes:
        size: The bytes that it holds, and each of its children.
        on_term: What SIGTERM does.
        children: So many more hold the same, in sessions of their own.
        step_ms: Uses the GPU so often, and counts that in `steps`; 0: never.
        steps: The file.
        life_s: When it ends by itself, whatever happens.
    """

    size: int
    on_term: Literal["exit", "ignore"] = "exit"
    children: int = 0
    step_ms: int = 0
    steps: str = ""
    life_s: int = 60


def _work(orders: Orders) -> None:
    signal.alarm(orders.life_s)  # by the kernel, also where a call into the driver hangs
    for _ in range(orders.children):  # before there is a context, which must not be forked
        command = [sys.executable, "-m", "support.cuda", _text(replace(orders, children=0))]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
    if orders.on_term == "ignore":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    driver = Driver()
    driver.hold(orders.size)
    driver.step()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    if not orders.step_ms:
        signal.pause()
    steps = os.open(orders.steps, os.O_WRONLY | os.O_CREAT, 0o644)
    for count in range(1, 2**63):
        time.sleep(orders.step_ms / 1000)
        driver.step()
        os.pwrite(steps, count.to_bytes(8, "little"), 0)


def _text(orders: Orders) -> str:
    return json.dumps(asdict(orders))


class Worker:
    """A process that holds memory of a GPU; as a context manager it is ended.

    Args:
        orders: What it does.
        launcher: What starts it, such as `bursar run … --`.
    """

    def __init__(self, orders: Orders, launcher: Sequence[str] = ()) -> None:
        self._orders = orders
        self.process = subprocess.Popen(
            [*launcher, sys.executable, "-m", "support.cuda", _text(orders)],
            stdout=subprocess.PIPE,
            env=_environment(),
            cwd=_TESTS,
        )
        self.pid = self.process.pid

    def __enter__(self) -> Self:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"ready\n", "it holds nothing"
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait(_PATIENCE_S)
        if self.process.stdout is not None:
            self.process.stdout.close()

    def steps(self) -> int:
        """How often it has used the GPU."""
        try:
            return int.from_bytes(Path(self._orders.steps).read_bytes(), "little")
        except FileNotFoundError:
            return 0


def why_none(**environment: str) -> str:
    """Why no GPU can be used here, as a process of its own sees it; empty: one can."""
    asked = subprocess.run(
        [sys.executable, "-m", "support.cuda"],
        env=_environment() | environment,
        cwd=_TESTS,
        capture_output=True,
        text=True,
        timeout=_PATIENCE_S,
        check=False,
    )
    return asked.stdout.strip() or (f"asking fails: {asked.stderr}" if asked.returncode else "")


def _environment() -> dict[str, str]:
    """Device 0 is the same for CUDA as for NVML, and the stand-in is no GPU."""
    left_out = {"CUDA_VISIBLE_DEVICES", "NVML_STAND_IN"}
    kept = {name: value for name, value in os.environ.items() if name not in left_out}
    return kept | {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


def _why_none() -> str:
    import pynvml

    try:
        pynvml.nvmlInit()
        if pynvml.nvmlDeviceGetCount() == 0:
            return "NVML counts no GPUs"
        Driver()
    except (pynvml.NVMLError, NoGpu) as error:
        return str(error)
    return ""


if __name__ == "__main__":
    if sys.argv[1:]:
        _work(Orders(**json.loads(sys.argv[1])))
    else:
        sys.stdout.write(_why_none())
