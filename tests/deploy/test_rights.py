"""The watchdog with CAP_KILL and nothing else, as the units and the manifests run it.

setpriv(1) gives exactly that, to user 0 (as Kubernetes does, which gives capabilities to nobody
else) and to another user (as systemd does).
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest
from support.daemon import Daemon
from support.jobs import PATIENCE_S, alive, eventually

import bursar
from bursar.processes import IncidentState
from bursar.watchdog.processes import uid_of

VICTIM_UID: Final = 65534
DAEMON_UID: Final = 65533
OBEYS: Final = {"mode": "enforce", "period": "100ms", "term_grace": "200ms"}

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("setpriv") is None,
    reason="only root can give rights away, with setpriv",
)

# In a mount namespace of its own, where Python is to be reached by everybody: its folder moves out
# of the one that is closed, an empty one takes that one's place, and it moves back.
OPEN_UP: Final = """
closed=$1 python=$2; shift 2
mount -t tmpfs none /mnt && mkdir /mnt/kept && mount --bind "$python" /mnt/kept
mount -t tmpfs -o mode=755 none "$closed" && mkdir -p "$python"
mount --bind /mnt/kept "$python" && exec "$@"
"""


def rights(uid: int, capabilities: Sequence[str]) -> list[str]:
    """What runs a command as a user with these capabilities alone, and without a way to more."""
    given = ",".join(["-all", *(f"+{one}" for one in capabilities)])
    ids = [f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--no-new-privs"]
    if uid == 0:  # without ambient ones: exec gives root what the bounding set leaves
        return ["setpriv", *ids, f"--inh-caps={given}", f"--bounding-set={given}"]
    kept = [f"--inh-caps={given}", f"--ambient-caps={given}", f"--bounding-set={given}"]
    return ["setpriv", *ids, *kept]


def reachable(command: list[str]) -> list[str]:
    """The command where another user finds this Python."""
    python = Path(sys.base_prefix).resolve()
    closed = [one for one in python.parents if not one.stat().st_mode & 0o001]
    if not closed:
        return command
    prefix = ["unshare", "--mount", "sh", "-ec", OPEN_UP, "sh", str(closed[-1]), str(python)]
    return [*prefix, *command]


class Limited(Daemon):
    """A daemon with some rights only."""

    def __init__(self, uid: int, capabilities: Sequence[str], **sections: Any) -> None:
        super().__init__(**sections)
        self._with = (uid, capabilities)
        self.folder.chmod(0o755)
        self.config_path.chmod(0o644)
        os.chown(self.folder, uid, uid)

    def command(self) -> list[str]:
        return reachable([*rights(*self._with), *super().command()])


@contextmanager
def victim(uid: int = VICTIM_UID) -> Iterator[int]:
    """A process of another user that would go on for long, and does not mind SIGTERM."""
    shell = 'trap "" TERM; while :; do sleep 0.1; done'
    command = ["setpriv", f"--reuid={uid}", "--clear-groups", "sh", "-c", shell]
    with subprocess.Popen(command) as process:
        try:
            eventually(lambda: uid_of(process.pid) == uid, "another user")
            yield process.pid
        finally:
            process.kill()


def limited(uid: int, *capabilities: str) -> Limited:
    server = {"socket_mode": "0666"}
    return Limited(uid, capabilities, server=server, watchdog=OBEYS)


@pytest.mark.parametrize("uid", [0, DAEMON_UID])
def test_cap_kill_alone_ends_the_job_of_another_user(uid: int) -> None:
    with limited(uid, "kill") as daemon, daemon.client() as client, victim() as pid:
        status = Path(f"/proc/{daemon.pid}/status").read_text(encoding="utf-8")
        assert "CapEff:\t0000000000000020\n" in status
        client.register_process("acme/x", pid=pid, wall_limit_s=0.3, enforce=True)
        eventually(lambda: not alive(pid), "the end of the job")
        eventually(lambda: [one for one in client.list_incidents() if one.ended], "its incident")
        [incident] = client.list_incidents()
        assert incident.state is IncidentState.RECLAIMED
        assert pid in [one.pid for one in incident.victims]


@pytest.mark.parametrize("uid", [0, DAEMON_UID])
def test_without_it_the_job_is_refused_by_name(uid: int) -> None:
    """Also of user 0: without rights it is a user as any."""
    with limited(uid) as daemon, daemon.client() as client, victim() as pid:
        with pytest.raises(bursar.ProcessProtected, match="does not let the sidecar signal"):
            client.register_process("acme/x", pid=pid, wall_limit_s=0.3, enforce=True)
        assert alive(pid)


def examine(*prefix: str) -> dict[str, dict[str, str]]:
    command = [*prefix, sys.executable, "-m", "bursar", "doctor", "--json"]
    told = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=PATIENCE_S * 2
    )
    return {one["what"]: one for one in json.loads(told.stdout)}


def test_the_doctor_says_what_is_there_and_what_is_missing() -> None:
    found = examine(*rights(0, ["kill"]))
    assert found["CAP_KILL"]["outcome"] == "ok"
    assert found["CAP_SYS_PTRACE"]["outcome"] == "warn"
    missing = examine(*rights(0, []))
    assert missing["CAP_KILL"]["outcome"] == "warn"
    assert "AmbientCapabilities=CAP_KILL" in missing["CAP_KILL"]["advice"]


def test_the_doctor_misses_the_hosts_pids() -> None:
    namespace = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    try:
        subprocess.run([*namespace, "true"], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no pid namespace: {error}")
    found = examine(*namespace)
    assert found["pid namespace"]["outcome"] == "warn"
    assert "hostPID: true" in found["pid namespace"]["advice"]
