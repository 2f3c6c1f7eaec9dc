"""Real daemons with what the tests ask of them, and pictures of their ledgers."""

import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import bursar
from bursar.testing import Sidecar

LONG: Final = os.environ.get("BURSAR_LONG") == "1"
"""Whether the full versions run: `make test-long`."""


def new_seed() -> int:
    """A seed for a test to print; with BURSAR_SEED set it is that one, to play a failure again."""
    given = os.environ.get("BURSAR_SEED")
    return int(given) if given else random.randrange(2**31)


class Daemon(Sidecar):
    """A sidecar that accepts any account.

    Args:
        in_memory: Whether it does without a store.
        sections: What goes into the configuration, by section: `limits={"max_accounts": 5}`.
    """

    def __init__(self, *, in_memory: bool = False, **sections: Any) -> None:
        config: dict[str, Any] = {**sections}
        if in_memory:
            config["store"] = {**config.get("store", {}), "path": ""}
        config.setdefault("accounts", [{"path": "**"}])
        super().__init__(config)
        self._stored = not in_memory

    def command(self) -> list[str]:
        """As the sidecar's, without the store where there is none."""
        command = super().command()
        if not self._stored:
            at = command.index("--store")
            del command[at : at + 2]
        return command

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Stops the process for a while: what is sent meanwhile, it meets all at once."""
        pid = self.pid
        os.kill(pid, signal.SIGSTOP)
        while not all(_is_stopped(task) for task in Path(f"/proc/{pid}/task").iterdir()):
            time.sleep(0.001)  # a thread that runs goes on for a moment
        try:
            yield
        finally:
            with suppress(ProcessLookupError):  # it may be killed meanwhile
                os.kill(pid, signal.SIGCONT)

    def start_and_crash(self, after_s: float) -> bool:
        """Starts it, and kills it so long after it has opened its store; whether it had."""
        log = (self.folder / "sidecar.log").open("ab")
        with log, subprocess.Popen(self.command(), stdout=log, stderr=log) as process:
            opened = self._wait_for_the_store(process)
            if opened:
                time.sleep(after_s)
            process.kill()
        return opened

    def _wait_for_the_store(self, process: "subprocess.Popen[bytes]") -> bool:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and process.poll() is None:
            for descriptor in Path(f"/proc/{process.pid}/fd").iterdir():
                with suppress(OSError):
                    if descriptor.readlink().name.startswith(self.store_path.name):
                        return True
            time.sleep(0.001)
        return False

    def move_store(self, folder: Path) -> None:
        """Goes on with a new store, in another folder."""
        self.terminate()
        self.store_path = folder / "ledger.db"
        self.start()

    def rss_bytes(self) -> int:
        """The memory that is resident."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def cpu_s(self) -> float:
        """The processor time that it has used."""
        fields = (
            Path(f"/proc/{self.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        )
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def thread_work_ns(self) -> dict[str, int]:
        """The processor time of each data-plane thread so far, by name."""
        found = {}
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            name = (task / "comm").read_text(encoding="ascii").strip()
            if name.removeprefix("bursar-").isdigit():
                found[name] = int((task / "schedstat").read_text(encoding="ascii").split()[0])
        return found


def _is_stopped(task: Path) -> bool:
    stat = (task / "stat").read_text(encoding="ascii")
    return stat.rpartition(")")[2].split()[0] == "T"


def picture(client: bursar.Client, account: str = "") -> dict[str, Any]:
    """Every account with its balances, budgets and freezes: two ledgers alike have one picture."""
    seen: dict[str, Any] = {}
    for one in client.list_accounts(account):
        balances = {
            (two.unit, str(two.period)): (two.limit, two.held, two.spent, two.remaining)
            for two in one.balances
        }
        seen[one.path] = (one.frozen, one.freeze_reason, one.open_reservation_count, balances)
    return seen


def balance(client: bursar.Client, account: str) -> tuple[int, int, int]:
    """Held, spent and remaining of an account's only budget; checks that they add up."""
    [one] = client.get_account(account).balances
    assert one.remaining == one.limit - one.spent - one.held
    assert one.held >= 0
    return one.held, one.spent, one.remaining
