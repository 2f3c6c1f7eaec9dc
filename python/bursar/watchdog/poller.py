"""The parent's side of the sampler: asks it for samples, with a deadline, and replaces it.

A sampler that does not answer in time is ended and another one is started, later each time. Until
one answers, the sample is BLIND: nobody knows what the GPUs do, and that is said; it is never zero.
"""

import contextlib
import os
import select
import subprocess
import sys
import time
from dataclasses import replace
from typing import IO, Final

from bursar.watchdog.sampler import from_json
from bursar.watchdog.samples import Health, Sample

__all__ = ["Poller"]

DEADLINE_S: Final = 3.0
"""How long a sample may take."""

_RETRY_MISSING_S: Final = 30.0
_RETRY_FIRST_S: Final = 0.5
_RETRY_MAX_S: Final = 30.0
_LINE_BYTES_MAX: Final = 16 << 20


class Poller:
    """Keeps one sampler. Not safe to share between threads.

    Args:
        deadline_s: How long a sample may take.
        retry_missing_s: How long to wait for NVML to appear before looking again.
    """

    def __init__(
        self, *, deadline_s: float = DEADLINE_S, retry_missing_s: float = _RETRY_MISSING_S
    ) -> None:
        self._deadline_s = deadline_s
        self._retry_missing_s = retry_missing_s
        self._process: subprocess.Popen[bytes] | None = None
        self._answer = bytearray()
        self._asked_s: float | None = None
        self._unasked: Sample | None = None
        self._retry_s = 0.0
        self._failures = 0
        self._uuids: dict[int, str] = {}  # of each whole GPU as last told, by index

    @property
    def pid(self) -> int | None:
        """The sampler's process id, while there is one."""
        return self._process.pid if self._process else None

    @property
    def is_waiting(self) -> bool:
        """Whether a sample was asked for and has not come."""
        return self._asked_s is not None

    def ask(self) -> None:
        """Asks for a sample, unless one is on its way or the sampler rests after a failure."""
        now_s = time.monotonic()
        if self.is_waiting or now_s < self._retry_s:
            return
        try:
            process = self._process or self._start()
        except OSError as error:  # a runaway has taken all processes or descriptors that there are
            self._unasked = self._fail(f"NVML cannot be read: no process can be started: {error}")
            return
        with contextlib.suppress(OSError):  # it has ended: that shows when the answer is read
            os.write(_descriptor(process.stdin), b"\n")
        self._asked_s = now_s

    def take(self) -> Sample | None:
        """The sample that was asked for, when it has come or is overdue; None: not yet."""
        if self._unasked is not None:
            sample, self._unasked = self._unasked, None
            return sample
        if self._asked_s is None or self._process is None:
            return None
        descriptor = _descriptor(self._process.stdout)
        poll = select.poll()  # select(2) takes no descriptor from 1024 on
        poll.register(descriptor, select.POLLIN)
        while poll.poll(0):
            part = os.read(descriptor, 1 << 20)
            self._answer += part
            if not part or len(self._answer) > _LINE_BYTES_MAX:
                return self._fail("the process that reads NVML has ended")
            if self._answer.endswith(b"\n"):
                return self._read()
        if time.monotonic() - self._asked_s > self._deadline_s:
            return self._fail(f"NVML has not answered for {self._deadline_s:g} s")
        return None

    def close(self) -> None:
        """Ends the sampler."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        # A call that hangs in the kernel may outlive SIGKILL; nobody waits for that.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(1)

    def _start(self) -> "subprocess.Popen[bytes]":
        # stderr stays ours: what Python itself complains of belongs into the daemon's log.
        self._process = process = subprocess.Popen(
            [sys.executable, "-m", "bursar.watchdog.sampler"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            bufsize=0,
        )
        self._answer.clear()
        return process

    def _read(self) -> Sample:
        try:
            sample = self._named(from_json(bytes(self._answer)))
        except (ValueError, KeyError, TypeError) as error:
            return self._fail(f"the process that reads NVML answered nonsense: {error}")
        if sample.health is Health.NO_NVML and self._uuids:
            return self._fail(f"GPUs were seen, and NVML is there no longer: {sample.detail}")
        self._answer.clear()
        self._asked_s = None
        if sample.health is Health.WATCHING:
            self._failures = 0
        elif sample.health is Health.NO_NVML:
            self._rest(self._retry_missing_s)
        else:
            self._back_off()
        return sample

    def _named(self, sample: Sample) -> Sample:
        """Names GPUs that do not even say which they are: as who was last seen in their place."""
        told = {one.parent_uuid or one.uuid for one in sample.devices}
        devices = []
        for one in sample.devices:
            if one.uuid:
                self._uuids[one.index] = one.parent_uuid or one.uuid
                devices.append(one)
                continue
            known = self._uuids.get(one.index)
            uuid = known if known and known not in told else f"unreadable-{one.index}"
            devices.append(replace(one, uuid=uuid))
        return replace(sample, devices=tuple(devices))

    def _fail(self, why: str) -> Sample:
        self._back_off()
        self._asked_s = None
        return Sample(time.monotonic_ns(), Health.BLIND, detail=why)

    def _back_off(self) -> None:
        self._failures += 1
        self._rest(min(_RETRY_MAX_S, _RETRY_FIRST_S * 2 ** min(self._failures - 1, 10)))

    def _rest(self, seconds: float) -> None:
        self.close()
        self._retry_s = time.monotonic() + seconds


def _descriptor(pipe: IO[bytes] | None) -> int:
    if pipe is None:
        raise AssertionError("both pipes were asked for")
    return pipe.fileno()
