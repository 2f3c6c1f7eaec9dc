"""Reads the GPUs through NVML, by the real pynvml. In the sampler's process only: a call may hang.

The process lists are read here, not by pynvml's wrappers, because the size of their records has
changed between drivers without notice (16, 24 and 32 bytes), and a wrong size turns memory sizes
into pids: the first list that has entries is measured, checked against `_v2`, whose size never
changed, and every pid is checked again at each read. What cannot be trusted is None, never zero.

Symbols and record layouts: nvml.h of the CUDA toolkit, as nvidia-ml-py binds them.
"""

import ctypes
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Final, TypeAlias, cast

from bursar.watchdog.samples import DeviceSample, GpuProcess

__all__ = ["DriverGone", "Nvml", "NvmlMissing"]

_LISTS: Final = (("Compute", "C"), ("Graphics", "G"), ("MPSCompute", "M"))
_ENTRY: Final = {
    16: struct.Struct("<IxxxxQ"),
    24: struct.Struct("<IxxxxQ8x"),
    32: struct.Struct("<IxxxxQ16x"),
}
_V2_BYTES: Final = 24
_FILL: Final = 0xAA
_UNKNOWN_BYTES: Final = 2**64 - 1
_ENTRIES_MAX: Final = 8192
_UTILISATION: Final = {
    "nvmlDeviceGetProcessesUtilizationInfo": struct.Struct("<QII24x"),
    "nvmlDeviceGetProcessUtilization": struct.Struct("<IxxxxQI12x"),
}
_UTILISATION_LIST_VERSION: Final = 0x01000018
_PER_CENT_MAX: Final = 100

# Return codes of nvml.h.
_SUCCESS: Final = 0
_NOT_SUPPORTED: Final = 3
_NOT_FOUND: Final = 6
_INSUFFICIENT_SIZE: Final = 7
_DRIVER_NOT_LOADED: Final = 9
_LIBRARY_NOT_FOUND: Final = 12
_GPU_IS_LOST: Final = 15


Handle: TypeAlias = Any
"""What pynvml takes and gives: opaque pointers, structures, plain values."""


class NvmlMissing(Exception):
    """There is no library or no driver: not a fault, it may come."""


class DriverGone(Exception):
    """NVML answers nothing that can be used any more: begin anew with another process."""


class _Utilisation(ctypes.Structure):
    _fields_ = (
        ("version", ctypes.c_uint),
        ("count", ctypes.c_uint),
        ("last_seen_us", ctypes.c_ulonglong),
        ("entries", ctypes.c_void_p),
    )


class Nvml:
    """One initialised NVML. Never shut down: others may be inside it when the process ends.

    Raises:
        NvmlMissing: There is no library or no driver.
        DriverGone: The driver and the library do not fit, or do not start.
    """

    def __init__(self) -> None:
        self._pynvml = pynvml = _import_pynvml()
        try:
            pynvml.nvmlInitWithFlags(pynvml.NVML_INIT_FLAG_NO_GPUS)
        except pynvml.NVMLError as error:
            if error.value in (_LIBRARY_NOT_FOUND, _DRIVER_NOT_LOADED):
                raise NvmlMissing(str(error)) from None
            raise DriverGone(f"NVML does not start: {error}") from None
        self.driver_version = self._try(pynvml.nvmlSystemGetDriverVersion) or ""
        self._entry_bytes: int | None = None
        self._buffer = ctypes.create_string_buffer(64 * 32)
        self._last_seen_us: dict[str, int] = {}
        self._power: dict[str, tuple[int, int]] = {}
        self._pid_max = int(Path("/proc/sys/kernel/pid_max").read_text(encoding="ascii"))
        self.distrusted = ""

    def devices(self) -> Iterator[DeviceSample]:
        """Reads every GPU without MIG, and the instances of the others."""
        pynvml = self._pynvml
        self.distrusted = ""
        try:
            count = pynvml.nvmlDeviceGetCount()
        except pynvml.NVMLError as error:
            raise DriverGone(f"NVML does not count its GPUs: {error}") from None
        for index in range(count):
            try:
                handle = pynvml.nvmlDeviceGetHandleByIndex(index)
                uuid = pynvml.nvmlDeviceGetUUID(handle)
                yield from self._gpu(handle, uuid, index)
            except pynvml.NVMLError as error:
                yield DeviceSample(uuid=self._uuid_of(index), index=index, error=str(error))

    def _uuid_of(self, index: int) -> str:
        try:
            handle = self._pynvml.nvmlDeviceGetHandleByIndex(index)
            return str(self._pynvml.nvmlDeviceGetUUID(handle))
        except self._pynvml.NVMLError:
            return ""

    def _gpu(self, handle: Handle, uuid: str, index: int) -> Iterator[DeviceSample]:
        pynvml = self._pynvml
        energy_mj, estimated = self._energy(handle, uuid)
        mode = self._try(pynvml.nvmlDeviceGetMigMode, handle)
        if mode is not None and mode[0] == pynvml.NVML_DEVICE_MIG_ENABLE:
            slices = pynvml.nvmlDeviceGetMaxMigDeviceCount(handle)
            for slot in range(slices):
                instance = self._try(pynvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, slot)
                if instance is not None:
                    yield self._read(
                        instance,
                        pynvml.nvmlDeviceGetUUID(instance),
                        index,
                        parent_uuid=uuid,
                        weight_permille=self._weight(instance, slices),
                        energy_mj=energy_mj,
                        energy_estimated=estimated,
                    )
            return
        rates = self._try(pynvml.nvmlDeviceGetUtilizationRates, handle)
        yield self._read(
            handle,
            uuid,
            index,
            busy_permille=None if rates is None else min(rates.gpu, _PER_CENT_MAX) * 10,
            energy_mj=energy_mj,
            energy_estimated=estimated,
        )

    def _read(self, handle: Handle, uuid: str, index: int, **known: Handle) -> DeviceSample:
        pynvml = self._pynvml
        memory = self._memory(handle)
        return DeviceSample(
            uuid=uuid,
            index=index,
            name=self._try(pynvml.nvmlDeviceGetName, handle) or "",
            vram_total_bytes=memory and memory.total,
            vram_used_bytes=memory and memory.used,
            processes=self._processes(handle, uuid),
            **known,
        )

    def _weight(self, instance: Handle, slices: int) -> int:
        """An instance's share of its GPU: its slices out of all, in thousandths."""
        attributes = self._try(self._pynvml.nvmlDeviceGetAttributes_v2, instance)
        own = attributes.gpuInstanceSliceCount if attributes is not None else 1
        return min(1000, own * 1000 // max(slices, 1))

    def _memory(self, handle: Handle) -> Handle:
        pynvml = self._pynvml
        try:
            return pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2)
        except pynvml.NVMLError as error:
            if error.value in (_NOT_SUPPORTED, _GPU_IS_LOST):  # unified memory has no total
                if error.value == _NOT_SUPPORTED:
                    return None
                raise
        # Before driver 510 there is only this one, which includes what the driver reserves.
        return self._try(pynvml.nvmlDeviceGetMemoryInfo, handle)

    def _energy(self, handle: Handle, uuid: str) -> tuple[int | None, bool]:
        """Millijoules so far, and whether they were summed up here from power readings."""
        counter = self._try(self._pynvml.nvmlDeviceGetTotalEnergyConsumption, handle)
        if counter is not None:
            return int(counter), False
        power_mw = self._try(self._pynvml.nvmlDeviceGetPowerUsage, handle)
        if power_mw is None:
            return None, False
        now_ns = time.monotonic_ns()
        total_uj_ns, last_ns = self._power.get(uuid, (0, now_ns))
        total_uj_ns += power_mw * (now_ns - last_ns)
        self._power[uuid] = total_uj_ns, now_ns
        return total_uj_ns // 10**9, True

    def _try(self, call: Callable[..., Any], *arguments: Handle) -> Any:  # noqa: ANN401 -- what it answers
        """The answer of a call; None when it is not offered here."""
        pynvml = self._pynvml
        try:
            return call(*arguments)
        except pynvml.NVMLError as error:
            if error.value == _GPU_IS_LOST:
                raise
            return None
        except pynvml.NVMLLibraryMismatchError:
            return None

    def _processes(self, handle: Handle, uuid: str) -> tuple[GpuProcess, ...] | None:
        merged: dict[int, tuple[str, int | None]] = {}
        for kind, letter in _LISTS:
            entries = self._list(handle, kind)
            if entries is None:
                # Only compute lists are everywhere; without them nothing is known.
                if letter == "C":
                    return None
                continue
            for pid, size in entries:
                contexts, known = merged.get(pid, ("", None))
                given = None if size == _UNKNOWN_BYTES else size
                most = given if known is None else known if given is None else max(known, given)
                merged[pid] = contexts + letter, most
        busy = self._busy(handle, uuid)
        return tuple(
            GpuProcess(pid, contexts, size, None if busy is None else busy.get(pid, 0))
            for pid, (contexts, size) in merged.items()
        )

    def _list(self, handle: Handle, kind: str) -> list[tuple[int, int]] | None:
        name = f"nvmlDeviceGet{kind}RunningProcesses"
        measured = self._call_list(f"{name}_v3", handle)
        if measured is not None:
            count, written = measured
            if count == 0:
                return []
            entry_bytes = self._entry_bytes or written // count
            if entry_bytes in _ENTRY and written == count * entry_bytes:
                entries = self._decode(count, entry_bytes)
                if self._plausible(entries) and (
                    self._entry_bytes or self._agrees(name, handle, entries)
                ):
                    self._entry_bytes = entry_bytes
                    return entries
        return self._list_v2(name, handle)

    def _list_v2(self, name: str, handle: Handle) -> list[tuple[int, int]] | None:
        measured = self._call_list(f"{name}_v2", handle)
        if measured is None:
            self.distrusted = f"{name}: neither _v3 nor _v2 gives a list that can be trusted"
            return None
        is_whole = measured[1] == measured[0] * _V2_BYTES
        entries = self._decode(measured[0], _V2_BYTES) if is_whole else []
        if not is_whole or not self._plausible(entries):
            self.distrusted = f"{name}_v2 gives pids that cannot be"
            return None
        return entries

    def _agrees(self, name: str, handle: Handle, entries: list[tuple[int, int]]) -> bool:
        """Whether `_v2`, where there is one, lists all of these processes, too."""
        measured = self._call_list(f"{name}_v2", handle)
        if measured is None or measured[1] != measured[0] * _V2_BYTES:
            return True
        others = {pid for pid, _ in self._decode(measured[0], _V2_BYTES)}
        return not others or others.issuperset(pid for pid, _ in entries)

    def _decode(self, count: int, entry_bytes: int) -> list[tuple[int, int]]:
        view = memoryview(self._buffer)[: count * entry_bytes]
        return list(_ENTRY[entry_bytes].iter_unpack(view))

    def _plausible(self, entries: list[tuple[int, int]]) -> bool:
        pid_max = self._pid_max
        return all(2 < pid <= pid_max for pid, _ in entries)  # noqa: PLR2004 -- 1 is init, 2 the kernel's

    def _call_list(self, symbol: str, handle: Handle) -> tuple[int, int] | None:
        """Fills the buffer; answers the entries and the bytes that were written, or None."""
        pynvml = self._pynvml
        try:
            function = pynvml._nvmlGetFunctionPointer(symbol)  # noqa: SLF001 -- where pynvml's own wrappers get it
        except (pynvml.NVMLError, pynvml.NVMLLibraryMismatchError):
            return None
        while True:
            size = len(self._buffer)
            ctypes.memset(self._buffer, _FILL, size)
            # A driver with larger records than we asked room for must not write past the end.
            count = ctypes.c_uint(size // max(_ENTRY))
            code = function(handle, ctypes.byref(count), self._buffer)
            if code == _INSUFFICIENT_SIZE and size < _ENTRIES_MAX * max(_ENTRY):
                entries = max(2 * size // max(_ENTRY), count.value + 16)
                room = min(_ENTRIES_MAX, entries) * max(_ENTRY)
                self._buffer = ctypes.create_string_buffer(room)
                continue
            if code == _GPU_IS_LOST:
                raise pynvml.NVMLError(code)
            if code != _SUCCESS:
                return None
            written = len(self._buffer.raw.rstrip(bytes([_FILL])))
            return count.value, written

    def _busy(self, handle: Handle, uuid: str) -> dict[int, int] | None:
        """How busy each process kept the device since the last call, in thousandths."""
        last_us = self._last_seen_us.get(uuid)
        for symbol, entry in _UTILISATION.items():
            samples = self._call_utilisation(symbol, entry, handle, last_us or 0)
            if samples is not None:
                break
        else:
            return None
        stamps = [stamp for stamp, _, _ in samples if stamp > (last_us or 0)]
        if stamps:
            self._last_seen_us[uuid] = max(stamps)
        elif last_us is None:
            self._last_seen_us[uuid] = 0
        if last_us is None:  # the whole buffer of the past, from before we looked
            return None
        sums: dict[int, tuple[int, int]] = {}
        for stamp, pid, sm in samples:
            if stamp > last_us:
                total, count = sums.get(pid, (0, 0))
                sums[pid] = total + min(sm, _PER_CENT_MAX) * 10, count + 1
        return {pid: total // count for pid, (total, count) in sums.items()}

    def _call_utilisation(
        self,
        symbol: str,
        entry: struct.Struct,
        handle: Handle,
        last_us: int,
    ) -> list[tuple[int, int, int]] | None:
        """Samples as (timestamp in microseconds, pid, SM per cent); None: not offered."""
        pynvml = self._pynvml
        try:
            function = pynvml._nvmlGetFunctionPointer(symbol)  # noqa: SLF001 -- as above
        except (pynvml.NVMLError, pynvml.NVMLLibraryMismatchError):
            return None
        room = 256
        while True:
            buffer = ctypes.create_string_buffer(room * entry.size)
            if symbol == "nvmlDeviceGetProcessUtilization":
                count = ctypes.c_uint(room)
                since = ctypes.c_ulonglong(last_us)
                code = function(handle, buffer, ctypes.byref(count), since)
                found = count.value
            else:
                address = ctypes.cast(buffer, ctypes.c_void_p)
                asked = _Utilisation(_UTILISATION_LIST_VERSION, room, last_us, address)
                code = function(handle, ctypes.byref(asked))
                found = asked.count
            if code == _INSUFFICIENT_SIZE and room < _ENTRIES_MAX:
                room = min(_ENTRIES_MAX, max(2 * room, found + 16))
                continue
            if code == _GPU_IS_LOST:
                raise pynvml.NVMLError(code)
            if code == _NOT_FOUND:
                return []
            if code != _SUCCESS:
                return None
            rows = entry.iter_unpack(memoryview(buffer)[: found * entry.size])
            if symbol == "nvmlDeviceGetProcessUtilization":
                return [(stamp, pid, sm) for pid, stamp, sm in rows]
            return list(rows)


def _import_pynvml() -> ModuleType:
    try:
        import pynvml
    except ImportError:
        raise NvmlMissing('pynvml is not installed: pip install "bursar-sidecar[gpu]"') from None
    if not hasattr(pynvml, "_nvmlGetFunctionPointer") or hasattr(pynvml, "__path__"):
        message = "another package named pynvml hides nvidia-ml-py: uninstall pynvml, py3nvml"
        raise NvmlMissing(message)
    return cast("ModuleType", pynvml)
