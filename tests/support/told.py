"""Daemons that tell receivers of what happens, and what `bursar notify` says of them."""

import subprocess
import sys
from typing import Any, Final

from bursar.notify.notifier import spool_path
from bursar.notify.spool import Standing, standings
from bursar.testing import to_toml
from support.daemon import Daemon
from support.receivers import until

LIMIT: Final = 1_000
ACCOUNTS: Final[list[dict[str, Any]]] = [
    {
        "path": "**",
        "budgets": [
            {
                "unit": "tokens",
                "limit": LIMIT,
                "thresholds": [
                    {"percent": 50, "verdict": "warn"},
                    {"percent": 80, "verdict": "degrade"},
                    {"percent": 100, "verdict": "degrade"},
                ],
            }
        ],
        "runaway": {"action": "freeze", "repeats": 3},
    }
]
CROSSINGS: Final = ["crossing.warn", "crossing.degrade", "crossing.stop"]
"""What spending a whole budget at once tells of, in this order."""


class Told(Daemon):
    """A daemon that tells; every account has a budget with three thresholds.

    Args:
        webhooks: Rows of `[[notify.webhooks]]`.
        notify: What else is in `[notify]`.
    """

    def __init__(self, *webhooks: dict[str, Any], **notify: Any) -> None:
        super().__init__()
        self.configure(*webhooks, **notify)

    def start(self) -> None:
        """Starts it, and waits until new receivers are taken in."""
        super().start()
        until(lambda: self._names <= self.rows().keys(), "all are taken in")

    def configure(self, *webhooks: dict[str, Any], **notify: Any) -> None:
        """Writes `[notify]`, for the next start."""
        notify = {"webhooks": list(webhooks), **notify}
        rows = [*notify["webhooks"], *notify.get("commands", ())]
        self._names = {one["name"] for one in rows}
        config = {"accounts": ACCOUNTS, "watchdog": {"mode": "off"}, "notify": notify}
        config["store"] = {"min_free_bytes": 0}  # tests fill its disk
        self.config_path.write_text(to_toml(config), encoding="utf-8")

    def rows(self) -> dict[str, Standing]:
        """How it stands with each receiver."""
        path = spool_path(self.store_path)
        return {one.name: one for one in standings(path)} if path.exists() else {}

    def notify(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Runs `bursar notify` with its configuration."""
        command = [sys.executable, "-m", "bursar", "notify", *arguments]
        command += ["--config", str(self.config_path)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
