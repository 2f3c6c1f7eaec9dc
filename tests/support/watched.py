"""A real daemon that watches stand-in GPUs with real processes on them."""

import os
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, Self

from bursar.processes import Incident, IncidentState
from support.daemon import Daemon
from support.gpu import StandIn
from support.gpu_worker import Orders, Worker

if TYPE_CHECKING:
    from bursar import Client

GIB: Final = 2**30
QUICK: Final[dict[str, Any]] = {
    "mode": "enforce",
    "period": "100ms",
    "settle": "0s",
    "vram_patience": "0s",
    "term_grace": "500ms",
    "verify_timeout": "1s",
}
PATIENCE_S: Final = 20.0


class Watched:
    """A daemon, its GPUs and a client; as a context manager all of it ends.

    Args:
        gpus: The GPUs; None: one of 80 GiB, made here.
        watchdog: What is to be different from `QUICK`.
        sections: Further sections of the configuration.
    """

    def __init__(
        self,
        gpus: StandIn | None = None,
        *,
        watchdog: dict[str, Any] | None = None,
        **sections: Any,
    ) -> None:
        self.gpus = gpus or StandIn()
        self.gpu = "" if gpus else self.gpus.add_gpu()
        self.daemon = Daemon(watchdog=QUICK | (watchdog or {}), **sections)
        self._before: dict[str, str | None] = {}
        self.client: Client

    def __enter__(self) -> Self:
        env = self.gpus.env()
        for name in ("LD_LIBRARY_PATH", "NVML_STAND_IN"):
            self._before[name] = os.environ.get(name)
            os.environ[name] = env[name]
        self.daemon.__enter__()
        self.client = self.daemon.client()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.client.close()
            self.daemon.__exit__(None, None, None)
        finally:
            for name, value in self._before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value
            self.gpus.__exit__()

    def launch(
        self,
        account: str,
        *options: str,
        gpu: str = "",
        orders: Orders | None = None,
        **about: Any,
    ) -> Worker:
        """Starts a worker by `bursar run` with these options."""
        command = [sys.executable, "-m", "bursar", "run", "--target", self.daemon.target]
        launcher = [*command, "--account", account, *options, "--"]
        return self.gpus.worker(gpu or self.gpu, orders=orders, launcher=launcher, **about)

    def register(
        self, account: str, *, gpu: str = "", orders: Orders | None = None, **about: Any
    ) -> Worker:
        """Starts a worker, and registers it for an account from here."""
        worker = self.gpus.worker(gpu or self.gpu, orders=orders, **about)
        self.client.register_process(account, pid=worker.pid)
        return worker

    def limit_vram(self, account: str, size: int) -> None:
        """Gives an account so much memory."""
        self.client.set_budget(account, unit="vram_bytes", limit=size)

    def ended(self, account: str = "", count: int = 1) -> list[Incident]:
        """Waits for so many incidents to end, and returns them, the oldest first."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            found = [one for one in self.client.list_incidents(account) if one.ended]
            if len(found) >= count:
                return found[::-1]
            log = self.daemon.log[-2000:]
            assert time.monotonic() < deadline, f"{len(found)} of {count} ended:\n{log}"
            time.sleep(0.02)

    def one(self, account: str, state: IncidentState) -> Incident:
        """Waits for the only incident of an account to end in this state."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            found = list(self.client.list_incidents(account))
            if found and found[0].state is state:
                assert len(found) == 1, f"{found}"
                return found[0]
            assert time.monotonic() < deadline, f"{found[:1]}\n{self.daemon.log[-2000:]}"
            time.sleep(0.02)

    def held(self, account: str, unit: str = "vram_bytes") -> int:
        """How much of a unit an account holds."""
        balances = self.client.get_account(account).balances
        return next(one.held for one in balances if one.unit == unit)


def states(incident: Incident) -> Sequence[str]:
    """The states that an incident went through."""
    return [str(step.state) for step in incident.steps]
