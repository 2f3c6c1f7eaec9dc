"""A folder over a network, as far as the kernel sees one: a FUSE mount, named as sshfs names its.

What answers is a thread of the test, for an empty folder; it needs no network and no sshfs.
"""

import ctypes
import errno
import os
import stat
import struct
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import pytest

# linux/fuse.h
_REQUEST: Final = struct.Struct("<IIQQIIIHH")
_ANSWER: Final = struct.Struct("<IiQ")
_INIT: Final = struct.Struct("<IIIIHHIIHHI7I")
_ATTRIBUTES: Final = struct.Struct("<QII6Q10I")
_SIZES: Final = struct.Struct("<5Q4I6I")
_LOOKUP, _GETATTR, _STATFS, _INITIALISE = 1, 3, 17, 26
_UNANSWERED: Final = {2, 36, 42}  # FORGET, INTERRUPT, BATCH_FORGET

_MOST_BYTES: Final = 1 << 17
_BLOCK_BYTES: Final = 4096
_BLOCKS: Final = 1 << 20


@contextmanager
def remote_folder(path: Path) -> Iterator[Path]:
    """Mounts one at a new folder, empty and for ever so."""
    path.mkdir()
    try:
        device = os.open("/dev/fuse", os.O_RDWR)
    except OSError as error:
        pytest.skip(f"there is no FUSE here: {error}")
    try:
        options = f"fd={device},rootmode=40700,user_id=0,group_id=0".encode()
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mount(b"host:/stores", os.fsencode(path), b"fuse.sshfs", 0, options):
            pytest.skip(f"FUSE cannot be mounted here: {os.strerror(ctypes.get_errno())}")
        server = threading.Thread(target=_serve, args=(device,), daemon=True)
        server.start()
        try:
            yield path
        finally:
            command = ["umount", "--lazy", str(path)]
            subprocess.run(command, check=True, capture_output=True)
            server.join(10)
    finally:
        os.close(device)


def _serve(device: int) -> None:
    """Answers until it is unmounted."""
    while True:
        try:
            request = os.read(device, _MOST_BYTES)
        except OSError as error:
            if error.errno == errno.ENODEV:
                return
            continue
        _, call, unique, *_ = _REQUEST.unpack_from(request)
        if call not in _UNANSWERED:
            code, body = _answer(call)
            with suppress(OSError):  # who asked may be gone
                os.write(device, _ANSWER.pack(_ANSWER.size + len(body), -code, unique) + body)


def _answer(call: int) -> tuple[int, bytes]:
    if call == _INITIALISE:
        return 0, _INIT.pack(7, 31, 0, 0, 16, 12, _BLOCK_BYTES, 1, 0, 0, 0, *[0] * 7)
    if call == _GETATTR:
        times = [0] * 6
        owned = [stat.S_IFDIR | 0o700, 2, os.getuid(), os.getgid(), 0, _BLOCK_BYTES, 0]
        return 0, _ATTRIBUTES.pack(60, 0, 0, 1, 0, 0, *times, *owned)
    if call == _STATFS:
        of_blocks = [_BLOCKS] * 3
        return 0, _SIZES.pack(*of_blocks, 1000, 1000, _BLOCK_BYTES, 255, _BLOCK_BYTES, *[0] * 7)
    return errno.ENOENT if call == _LOOKUP else errno.ENOSYS, b""
