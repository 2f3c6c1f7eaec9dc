"""For tests: a real sidecar as a subprocess, on a Unix socket in a temporary folder.

```python
from bursar.testing import Sidecar

with Sidecar({"accounts": [{"path": "acme/**"}]}) as sidecar, sidecar.client() as client:
    client.set_budget("acme/research", unit="tokens", limit=1_000)
```
"""

import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from bursar._open import ATTEMPTS, TIMEOUT_S, connect, connect_async
from bursar.aio import AsyncClient
from bursar.client import Client
from bursar.exceptions import SidecarUnavailable

__all__ = ["Sidecar"]

START_TIMEOUT_S: Final = 20.0
STOP_TIMEOUT_S: Final = 20.0
_POLL_S: Final = 0.01


class Sidecar:
    """A `bursar serve` of its own; as a context manager it starts, and ends, and is cleaned up.

    Args:
        config: The configuration as a mapping or as TOML text; None: any account, no budgets. The
            socket and the store are always its own.
        folder: Where the configuration, the store and the log go; None: a temporary folder that is
            removed at the end. Keep its path short: a socket's path has at most 101 bytes.
    """

    def __init__(
        self, config: Mapping[str, Any] | str | None = None, *, folder: Path | None = None
    ) -> None:
        self._own_folder = folder is None
        self.folder = Path(tempfile.mkdtemp(prefix="bursar-")) if folder is None else folder
        self.config_path = self.folder / "bursar.toml"
        self.socket_path = self.folder / "bursar.sock"
        self.store_path = self.folder / "ledger.db"
        self._log_path = self.folder / "sidecar.log"
        self._process: subprocess.Popen[bytes] | None = None
        chosen = {"accounts": [{"path": "**"}]} if config is None else config
        text = chosen if isinstance(chosen, str) else to_toml(chosen)
        self.config_path.write_text(text, encoding="utf-8")

    @property
    def target(self) -> str:
        """What `bursar.connect` takes."""
        return f"unix:{self.socket_path}"

    @property
    def log(self) -> str:
        """What the sidecar wrote to stderr so far, all its starts together."""
        return self._log_path.read_text(encoding="utf-8") if self._log_path.exists() else ""

    @property
    def pid(self) -> int:
        """The process id of the running sidecar."""
        if self._process is None:
            raise SidecarUnavailable("the sidecar is not running")
        return self._process.pid

    def command(self) -> list[str]:
        """What it is started with."""
        command = [sys.executable, "-m", "bursar", "serve", "--config", str(self.config_path)]
        return [*command, "--socket", str(self.socket_path), "--store", str(self.store_path)]

    def start(self) -> None:
        """Starts it and waits until it listens.

        Raises:
            SidecarUnavailable: It ended, or did not listen in time; the message holds its log.
        """
        with self._log_path.open("ab") as log:
            said = log.tell()
            self._process = subprocess.Popen(self.command(), stdout=log, stderr=log)  # noqa: S603 -- ourselves
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._serves(said):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill9()
                raise SidecarUnavailable(f"the sidecar did not start:\n{self.log}")
            time.sleep(_POLL_S)

    def _serves(self, said: int) -> bool:
        # Its socket takes connections earlier, while it still recovers, and then it may yet fail.
        return b"listening on " in self._log_path.read_bytes()[said:]

    def _end(self, number: signal.Signals) -> int:
        process, self._process = self._process, None
        if process is None:
            return 0
        process.send_signal(number)
        try:
            return process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise SidecarUnavailable(f"{number.name} did not end it:\n{self.log}") from None

    def terminate(self) -> int:
        """Ends it by SIGTERM, so that it drains; returns its exit code."""
        return self._end(signal.SIGTERM)

    def kill9(self) -> None:
        """Ends it by SIGKILL, as a crash would."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Starts it again on the same store; drains it before if it is running."""
        self.terminate()
        self.start()

    def client(self, *, timeout_s: float = TIMEOUT_S, attempts: int = ATTEMPTS) -> Client:
        """Makes a client of it."""
        return connect(self.target, timeout_s=timeout_s, attempts=attempts)

    def client_async(
        self, *, timeout_s: float = TIMEOUT_S, attempts: int = ATTEMPTS
    ) -> AsyncClient:
        """Makes an asynchronous client of it."""
        return connect_async(self.target, timeout_s=timeout_s, attempts=attempts)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self._clean_up()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self._end(signal.SIGTERM)
        finally:
            self._clean_up()

    def _clean_up(self) -> None:
        if self._own_folder:
            shutil.rmtree(self.folder, ignore_errors=True)


def to_toml(config: Mapping[str, Any]) -> str:
    """Writes a configuration as TOML, one top-level key a line. None stands for "leave it out"."""
    lines = (f"{key} = {_value(one)}" for key, one in config.items() if one is not None)
    return "\n".join(lines) + "\n"


def _value(value: object) -> str:
    if isinstance(value, Mapping):
        items = (f"{json.dumps(key)} = {_value(one)}" for key, one in value.items())
        return "{" + ", ".join(items) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(one) for one in value) + "]"
    # A JSON string, number or boolean is a TOML one, as long as nothing is escaped as surrogates.
    return json.dumps(value, ensure_ascii=False)
