"""A service manager of a few lines: it listens, hands its sockets over, and hears what it is told.

It speaks the protocols of sd_listen_fds(3) and sd_notify(3), as systemd does.
"""

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Self

import bursar
from bursar.testing import to_toml

PATIENCE_S: Final = 30.0
# Moves the sockets to 3 and behind, and names the process that it becomes.
_HAND_OVER: Final = """
import os, sys
for at, number in enumerate(sys.argv[1].split()):
    os.dup2(int(number), 3 + at)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.argv[2], sys.argv[2:])
"""


class Manager:
    """Has a folder with a configuration, its listening sockets, and at most one daemon at a time.

    Args:
        folder: Where everything goes; its path has to be short, for the sockets'.
        sections: Sections of the configuration.
    """

    def __init__(self, folder: Path, **sections: Any) -> None:
        self.folder = folder
        self.socket_path = folder / "bursar.sock"
        self.listening: list[socket.socket] = []
        self._notified = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notified.bind(str(folder / "notify"))
        self._notified.settimeout(PATIENCE_S)
        config = {
            "server": {"socket": str(self.socket_path)},
            "store": {"path": str(folder / "ledger.db")},
            "watchdog": {"mode": "off"},
            "accounts": [{"path": "**"}],
        }
        text = to_toml(config | sections)
        (folder / "bursar.toml").write_text(text, encoding="utf-8")

    def listen(self, path: Path, kind: socket.SocketKind) -> None:
        """Listens on a path, for whichever daemon comes."""
        listening = socket.socket(socket.AF_UNIX, kind)
        listening.bind(str(path))
        listening.listen(16)
        self.listening.append(listening)

    def listen_for_both(self) -> Self:
        """Listens on the daemon's two sockets."""
        self.listen(self.socket_path, socket.SOCK_STREAM)
        self.listen(self.lease_path, socket.SOCK_SEQPACKET)
        return self

    @property
    def lease_path(self) -> Path:
        """Where leases are to be had."""
        return self.socket_path.with_name("bursar.sock.lease")

    @property
    def serve(self) -> list[str]:
        """What runs the daemon."""
        config = str(self.folder / "bursar.toml")
        return [sys.executable, "-m", "bursar", "serve", "--config", config]

    @contextlib.contextmanager
    def started(self, **environment: str) -> Iterator["subprocess.Popen[str]"]:
        """The daemon while the context lasts; it is killed if it has not ended by then."""
        numbers = [one.fileno() for one in self.listening]
        assert all(one > 3 + len(numbers) for one in numbers), "they would be moved onto each other"
        told = {
            "LISTEN_FDS": str(len(numbers)),
            "NOTIFY_SOCKET": str(self.folder / "notify"),
            **environment,
        }
        with subprocess.Popen(
            [sys.executable, "-c", _HAND_OVER, " ".join(map(str, numbers)), *self.serve],
            pass_fds=numbers,
            env=os.environ | told,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    def hear(self, line: str) -> None:
        """Waits until it is told a line."""
        while self._notified.recv(4096).decode() != line:
            pass

    def hears_within(self, seconds: float) -> list[str]:
        """What it is told in that time."""
        heard = []
        self._notified.settimeout(seconds)
        with contextlib.suppress(TimeoutError):
            while True:
                heard.append(self._notified.recv(4096).decode())
        self._notified.settimeout(PATIENCE_S)
        return heard

    def client(self) -> bursar.Client:
        """A client that asks once, and has patience."""
        return bursar.connect(f"unix:{self.socket_path}", timeout_s=PATIENCE_S, attempts=1)

    def close(self) -> None:
        """Closes the sockets."""
        for one in (*self.listening, self._notified):
            one.close()
