"""`bursar doctor` beside a sidecar that is short of descriptors, someone else's, or none at all."""

import json
import os
import re
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import pytest
from support import wire
from support.certificates import Authority, Pair
from support.daemon import Daemon
from support.examined import CONFIG, findings, sidecar

from bursar.care import host

OF_THE_MACHINE: Final = {one.what for one in host.look()}
ANOTHER: Final = 40_009
A_THIRD: Final = 12_345
SAYS_WHO: Final = "run this as the sidecar's user"

AS_ANOTHER: Final = """
import os, sys
from click.testing import CliRunner
from bursar.cli import cli
doctor = ["doctor", "--config", sys.argv[1], "--json"]
CliRunner().invoke(cli, doctor)  # everything is imported while it can be
os.setgroups([]), os.setgid(int(sys.argv[2])), os.setuid(int(sys.argv[2]))
print(CliRunner().invoke(cli, doctor, catch_exceptions=False).stdout)
"""
HOLDS: Final = """
import fcntl, os, sys
with open(sys.argv[1], "r+") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    lock.write(str(os.getpid()))
    lock.flush()
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    with sidecar() as running:
        yield running


def open_files(daemon: Daemon) -> int:
    return len(list(Path(f"/proc/{daemon.pid}/fd").iterdir()))


def limit(daemon: Daemon, count: int) -> dict[str, Any]:
    """Gives a sidecar so many descriptors; what the doctor says of them."""
    resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (count, count))
    told = findings(daemon)
    return {**told["descriptors"], "exit": told["exit"]}


def test_descriptors_are_short_once_four_fifths_of_them_are_in_use(daemon: Daemon) -> None:
    """Real ones, under a limit that is set while it runs; give or take what a look itself opens."""
    with ExitStack() as stack:
        for _ in range(80):
            one = stack.enter_context(socket.socket(socket.AF_UNIX))
            one.connect(str(daemon.socket_path))
            one.sendall(wire.start())
            assert one.recv(1), "it is taken"
        told = limit(daemon, 400)
        assert (told["outcome"], told["detail"]) == ("ok", "400, for 100 connections")
        four_fifths = open_files(daemon) * 5 // 4
        told = limit(daemon, four_fifths + 8)
        assert told["outcome"] == "warn"
        assert "connections; 100 are allowed" in told["detail"]
        told = limit(daemon, four_fifths - 8)
        assert (told["outcome"], told["exit"]) == ("broken", 1)
        said = rf"\d+ of {four_fifths - 8} are in use: soon no connection is taken"
        assert re.fullmatch(said, told["detail"])
        assert "LimitNOFILE=" in told["advice"]


def as_another(daemon: Daemon) -> dict[str, Any]:
    """What another user is told of a sidecar, by what was looked at; of the machine, nothing."""
    config = daemon.folder / "doctor.toml"
    command = [sys.executable, "-c", AS_ANOTHER, str(config), str(ANOTHER)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stderr
    found = {one["what"]: one for one in json.loads(ran.stdout)}
    return {what: one for what, one in found.items() if what not in OF_THE_MACHINE}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_is_told_whose_doctor_to_be_and_of_nothing_broken(daemon: Daemon) -> None:
    """The store may be read by everybody here, what else the sidecar has may not."""
    daemon.folder.chmod(0o755)
    log = daemon.store_path.with_name("ledger.db-log")
    log.chmod(0o755)
    of_the_store = [daemon.store_path.with_name(f"ledger.db{end}") for end in ("", "-wal", "-shm")]
    for path in (*of_the_store, *log.iterdir()):
        path.chmod(0o644)
    for path in daemon.folder.glob("ledger.db*"):
        os.chown(path, A_THIRD, A_THIRD)
    found = as_another(daemon)
    for what, said in {
        "socket": "cannot be reached from here",
        "release": f"process {daemon.pid} cannot be looked at: Permission denied",
        "descriptors": f"those of process {daemon.pid} cannot be seen: ",
        "tokens": "cannot be read: Permission denied",
        "journal": "cannot be read: Permission denied",
        "owner": f"they are user {A_THIRD}'s, and this runs as user {ANOTHER}",
    }.items():
        assert found[what]["outcome"] == "warn", found[what]
        assert said in found[what]["detail"]
        assert SAYS_WHO in found[what]["advice"]
    assert found["recovery"]["outcome"] == found["totals"]["outcome"] == "ok"
    assert "broken" not in {one["outcome"] for one in found.values()}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_folder_that_is_closed_to_who_looks_is_no_damage(daemon: Daemon) -> None:
    """As /var/lib/bursar is, whose configuration anybody may read. Who then restored a backup, as
    one does with a damaged store, would do it for nothing."""
    daemon.terminate()
    closed = daemon.folder / "closed"
    closed.mkdir(mode=0o700)
    daemon.store_path, daemon.socket_path = closed / "ledger.db", closed / "bursar.sock"
    daemon.start()
    daemon.folder.chmod(0o755)
    text = CONFIG.replace('"bursar.sock"', '"closed/bursar.sock"')
    text = text.replace('"ledger.db"', '"closed/ledger.db"')
    (daemon.folder / "doctor.toml").write_text(text, encoding="utf-8")
    found = as_another(daemon)
    assert "broken" not in {one["outcome"] for one in found.values()}, found
    assert "cannot be reached from here" in found["socket"]["detail"]
    for what in ("recovery", "permissions", "tokens", "journal"):
        assert found[what]["outcome"] == "warn", found[what]
        assert "Permission denied" in found[what]["detail"]
        assert SAYS_WHO in found[what]["advice"]
    assert findings(daemon)["recovery"]["outcome"] == "ok", "to its own user"


def test_a_program_that_has_the_store_and_is_no_sidecar_is_named(daemon: Daemon) -> None:
    daemon.terminate()
    lock = daemon.store_path.with_name("ledger.db-log") / "lock"
    lock.write_bytes(b"")
    command = [sys.executable, "-c", HOLDS, str(lock)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        found = findings(daemon)
        holder.communicate()
    told = found["release"]
    said = f"process {holder.pid} has the store open, and is no sidecar of this release"
    assert (told["outcome"], told["detail"]) == ("warn", said)
    assert found["recovery"]["detail"].startswith(f"process {holder.pid} has it open")
    assert "release" not in findings(daemon), "nobody has it now"


def listening(daemon: Daemon, tls: Pair | None = None) -> str:
    """Has the doctor look at the TCP listener of a sidecar as well; its address."""
    [address] = re.findall(r"127\.0\.0\.1:\d+", daemon.log)
    lines = [f'tcp = "{address}"']
    if tls is not None:
        lines += [f'tls = {{ certificate = "{tls.certificate}", key = "{tls.key}" }}']
    text = CONFIG.replace("[store]", "\n".join([*lines, "[store]"]))
    (daemon.folder / "doctor.toml").write_text(text, encoding="utf-8")
    return str(address)


@pytest.mark.parametrize("mode", ["open", "enforce"])
def test_a_listener_without_tls_is_asked_and_one_that_wants_a_token_answers_as_well(
    monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    monkeypatch.delenv("BURSAR_TOKEN", raising=False)
    with Daemon(server={"tcp": "127.0.0.1:0"}, access={"mode": mode}) as daemon:
        address = listening(daemon)
        answers = f"a sidecar answers at {address}"
        told = findings(daemon)["tcp"]
        said = answers if mode == "open" else f"{answers}, and asks for a token"
        assert (told["outcome"], told["detail"]) == ("ok", said)
        daemon.terminate()
        told = findings(daemon)["tcp"]
        assert told["outcome"] == "broken"
        assert f"{address} does not answer" in told["detail"]


def test_a_listener_with_another_certificate_than_configured_is_found(tmp_path: Path) -> None:
    shown, configured = (
        Authority(tmp_path, name).issue(f"of-{name}", addresses=["127.0.0.1"], server=True, days=30)
        for name in ("one", "another")
    )
    tls = {"certificate": str(shown.certificate), "key": str(shown.key)}
    with Daemon(server={"tcp": "127.0.0.1:0", "tls": tls}, access={"mode": "enforce"}) as daemon:
        address = listening(daemon, configured)
        told = findings(daemon)["tcp"]
        assert told["outcome"] == "broken"
        said = f"{address} shows another certificate than {configured.certificate}"
        assert told["detail"].startswith(said)
        listening(daemon, shown)
        assert findings(daemon)["tcp"]["outcome"] == "ok"


def test_a_socket_of_another_kind_is_not_the_sidecars(daemon: Daemon) -> None:
    daemon.terminate()
    daemon.socket_path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as other:
        other.bind(str(daemon.socket_path))
        other.listen()
        told = findings(daemon)["socket"]
    assert told["outcome"] == "broken"
    assert "takes no connection" in told["detail"]


def test_a_folder_that_its_group_may_write_is_said_to_be(daemon: Daemon) -> None:
    daemon.folder.chmod(0o770)
    found = findings(daemon)
    for what in ("store folder", "socket folder"):
        assert found[what]["outcome"] == "warn"
        said = f"the group may replace what is in {daemon.folder} (0770)"
        assert found[what]["detail"] == said
        assert found[what]["advice"] == f"chmod g-w {daemon.folder}"
