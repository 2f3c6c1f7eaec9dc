"""The lease socket, spoken to as `rust/lease/src/layout.rs` says, with nothing of ours between."""

import array
import socket
import struct
from pathlib import Path
from typing import Final, NamedTuple, Protocol, Self

MAGIC: Final = 0x4C535242
REQUEST: Final = struct.Struct("<IHHQQqqqqqqBB6x64s")
ANSWER: Final = struct.Struct("<IHHQQQQH6x208s")
ATTACH, DETACH = 1, 2
NOT_THE_OWNER, LEASE_LIMIT_REACHED = 20, 21


class Listening(Protocol):
    """A daemon, as far as it is needed here."""

    socket_path: Path


class Answer(NamedTuple):
    """What it says."""

    status: int
    used: int
    granted: int
    lease: int
    message: str
    fds: list[int]


class Desk:
    """One connection."""

    def __init__(self, daemon: Listening) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(10)
        self.socket.connect(str(daemon.socket_path) + ".lease")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def attach(self, reservation: str, *, unit: int = 0, claim: int = 0, ahead: int = 0) -> Answer:
        """Asks for a lease."""
        name = reservation.encode()
        return self.ask(
            REQUEST.pack(MAGIC, 1, ATTACH, 7, claim, ahead, 0, 0, 0, 0, 0, unit, len(name), name)
        )

    def ask(self, frame: bytes) -> Answer:
        """Sends a frame and takes the answer."""
        self.socket.send(frame)
        data, beside, _, _ = self.socket.recvmsg(ANSWER.size, socket.CMSG_SPACE(8))
        fds = array.array("i")
        for _, _, content in beside:
            fds.frombytes(content)
        magic, version, status, tag, used, granted, lease, length, text = ANSWER.unpack(data)
        assert (magic, version, tag) == (MAGIC, 1, 7)
        return Answer(status, used, granted, lease, text[:length].decode(), list(fds))
