"""What the service manager is told, where one started this process: sd_notify(3).

It is told when calls are answered, that the drain has begun, and while all is well, for as long as
it asks to be (`WatchdogSec=`). Without a manager nothing happens.
"""

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

__all__ = ["Manager"]


@dataclass(frozen=True, slots=True)
class Manager:
    """The service manager, if there is one.

    Attributes:
        address: Where it listens; empty: nowhere.
        wants_signs_of_life: Whether it ends a process that it hears nothing of.
    """

    address: str = ""
    wants_signs_of_life: bool = False

    @classmethod
    def of_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """Reads what the manager has put into the environment of this process."""
        address = environment.get("NOTIFY_SOCKET", "")
        if not address.startswith(
            ("/", "@")
        ):  # as sd_notify: others, such as vsock, are not spoken
            return cls()
        is_for_us = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        return cls(address, is_for_us and bool(environment.get("WATCHDOG_USEC")))

    def ready(self) -> None:
        """Calls are answered."""
        self._tell("READY=1")

    def alive(self) -> None:
        """All is well; to be said every second."""
        if self.wants_signs_of_life:
            self._tell("WATCHDOG=1")

    def status(self, line: str) -> None:
        """Says in a line how it stands, for `systemctl status`."""
        self._tell(f"STATUS={line}")

    def stopping(self) -> None:
        """The drain has begun."""
        self._tell("STOPPING=1")

    def _tell(self, line: str) -> None:
        if not self.address:
            return
        # A leading "@" stands for the zero byte of an abstract address.
        address = self.address.replace("@", "\0", 1) if self.address[0] == "@" else self.address
        flags = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        try:
            with socket.socket(socket.AF_UNIX, flags) as out:
                out.sendto(line.encode(), address)
        except OSError:  # a manager that is gone or overrun is no reason to stop
            return
