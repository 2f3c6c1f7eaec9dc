"""Who decides goes ahead of who works, where the system allows it."""

import os
from pathlib import Path

import pytest
from support.daemon import Daemon

AHEAD = -10
"""How far, in nice values."""
NICE_FIELD = 16
"""Of `/proc/PID/stat`, counted from behind the name; see proc_pid_stat(5)."""


def nices(pid: int) -> list[tuple[str, int]]:
    """Each thread's name, and how far it steps aside."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        stat = (task / "stat").read_text(encoding="utf-8")
        name, _, fields = stat.partition("(")[2].rpartition(")")
        found.append((name, int(fields.split()[NICE_FIELD])))
    return found


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may raise a priority")
def test_only_the_threads_that_decide_go_ahead() -> None:
    with Daemon() as daemon, daemon.client() as client:
        list(client.list_accounts())  # is read aside
        threads = nices(daemon.pid)
    assert any(name.startswith("tokio") for name, _ in threads)
    own = os.getpriority(os.PRIO_PROCESS, 0)
    ahead = [name for name, nice in threads if nice < own]
    assert ahead == ["bursar-0"]
    assert ("bursar-0", own + AHEAD) in threads
