"""The worker of the GPU tests calls the CUDA driver as cuda.h declares it, and says why it cannot.

By a tiny driver, compiled here, that refuses any argument that is not as it should be.
"""

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from support.cuda import Driver, NoGpu, Orders, Worker, why_none
from support.gpu import StandIn

SIZE = 5 * 2**32 + 7  # it does not fit into 32 bits
SOURCE = r"""
#include <stdint.h>
#include <stdlib.h>
#include <stddef.h>
#define DEVICE 3
#define CONTEXT ((void *)0x7f12345678901230)
#define ADDRESS 0x7fabcdef00000000u
static int inited, current;
int cuInit(unsigned flags) {
    const char *code = getenv("CUDA_FAILS");
    inited = 1;
    return flags ? 1 : code ? atoi(code) : 0;
}
int cuDeviceGetCount(int *count) {
    *count = getenv("CUDA_COUNT") ? atoi(getenv("CUDA_COUNT")) : 1;
    return !inited;
}
int cuDeviceGet(int *device, int index) { *device = DEVICE; return index ? 101 : 0; }
int cuDevicePrimaryCtxRetain(void **context, int device) {
    *context = CONTEXT;
    return device == DEVICE ? 0 : 101;
}
int cuCtxSetCurrent(void *context) { current = context == CONTEXT; return current ? 0 : 201; }
int cuMemAlloc_v2(uint64_t *address, size_t size) {
    *address = ADDRESS;
    return !current ? 201 : size == SIZE ? 0 : 2;
}
int cuMemsetD8_v2(uint64_t address, unsigned char value, size_t size) {
    return address == ADDRESS && value == 1 && size == SIZE ? 0 : 1;
}
int cuCtxSynchronize(void) { return current ? 0 : 201; }
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The driver."""
    folder = tmp_path_factory.mktemp("cuda")
    source, made = folder / "cuda.c", folder / "libcuda.so.1"
    source.write_text(SOURCE, encoding="ascii")
    compiler = shutil.which("cc") or shutil.which("gcc")
    assert compiler is not None, "the tests need a C compiler, as cc or gcc"
    flags = ["-shared", "-fPIC", f"-DSIZE={SIZE}u", "-Wl,-soname,libcuda.so.1"]
    subprocess.run([compiler, *flags, "-o", made, source], check=True)
    return made


def path(*folders: Path) -> str:
    return ":".join([*map(str, folders), os.environ.get("LD_LIBRARY_PATH", "")]).rstrip(":")


def test_memory_is_held_and_used_by_the_documented_calls(library: Path) -> None:
    driver = Driver(str(library))
    driver.hold(SIZE)
    driver.step()
    with pytest.raises(NoGpu, match="cuMemAlloc_v2 fails with CUresult 2"):
        driver.hold(SIZE + 1)


def test_a_worker_counts_its_steps_beside_its_children(
    library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", path(library.parent))
    orders = Orders(size=SIZE, children=1, step_ms=5, steps=str(tmp_path / "steps"), life_s=20)
    with Worker(orders) as worker:
        deadline = time.monotonic() + 20
        while worker.steps() < 3:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        worker.process.terminate()
        assert worker.process.wait(10) == -15


@pytest.mark.parametrize(
    ("environment", "why"),
    [
        ({}, ""),
        ({"CUDA_FAILS": "100"}, "cuInit fails with CUresult 100"),
        ({"CUDA_COUNT": "0"}, "CUDA counts no devices"),
    ],
)
def test_the_reason_of_a_skip_is_what_the_driver_says(
    library: Path, environment: dict[str, str], why: str
) -> None:
    with StandIn() as stand_in:
        folders = (library.parent, stand_in.library_path.parent)
        known = {"LD_LIBRARY_PATH": path(*folders), "NVML_STAND_IN": str(stand_in.folder)}
        assert why_none(**known | environment) == "NVML counts no GPUs"
        stand_in.add_gpu()
        assert why_none(**known | environment) == why


def test_without_a_driver_the_reason_names_what_is_missing() -> None:
    with pytest.raises(NoGpu, match=r"no CUDA driver: libcuda-of-nobody\.so\.1"):
        Driver("libcuda-of-nobody.so.1")
