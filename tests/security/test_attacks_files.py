"""Links and files that somebody planted where the daemon puts its own, in a folder open to all."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.daemon import Daemon

import bursar

OTHER = 40_009

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to another user")


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A file that is nobody's business."""
    path = tmp_path / "victim"
    path.write_bytes(b"precious")
    path.chmod(0o600)
    return path


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    """One that is not started, in a folder where everybody may write, as in /tmp."""
    made = Daemon()
    made.folder.chmod(0o1777)
    try:
        yield made
    finally:
        made.kill9()
        shutil.rmtree(made.folder, ignore_errors=True)


def refused(daemon: Daemon, match: str) -> str:
    with pytest.raises(bursar.SidecarUnavailable, match=match) as raised:
        daemon.start()
    assert "Traceback" not in str(raised.value)
    return str(raised.value)


def untouched(victim: Path) -> None:
    assert victim.read_bytes() == b"precious"
    assert victim.stat().st_mode & 0o777 == 0o600


NAMES = ["ledger.db", "ledger.db-wal", "ledger.db-log", "ledger.db.tokens", "ledger.db.watchdog"]


@pytest.mark.parametrize("name", NAMES)
def test_a_link_in_place_of_a_file_of_the_store_is_not_followed(
    daemon: Daemon, victim: Path, name: str
) -> None:
    content = b'{"version": 1, "tokens": []}' if name.endswith("tokens") else b"precious"
    victim.write_bytes(content)
    (daemon.folder / name).symlink_to(victim)
    said = refused(daemon, "is a link, and everybody may write to its folder")
    assert name in said
    assert victim.read_bytes() == content


@pytest.mark.parametrize("name", NAMES)
def test_a_link_to_what_is_not_there_makes_nothing_there(
    daemon: Daemon, tmp_path: Path, name: str
) -> None:
    (daemon.folder / name).symlink_to(tmp_path / "made")
    refused(daemon, "is a link")
    assert not (tmp_path / "made").exists()


def test_a_second_name_of_a_file_is_not_taken_for_a_store(daemon: Daemon, tmp_path: Path) -> None:
    victim = Path(daemon.folder) / "victim"
    victim.write_bytes(b"precious")
    victim.chmod(0o600)
    daemon.store_path.hardlink_to(victim)
    refused(daemon, "has another name as well")
    untouched(victim)


@as_root
@pytest.mark.parametrize("name", ["ledger.db", "ledger.db.tokens"])
def test_a_file_of_another_user_is_not_trusted(daemon: Daemon, name: str) -> None:
    """A store with budgets, or tokens with roles, that somebody else has prepared."""
    with Daemon() as made:
        with made.client() as operator:
            operator.tokens.create("evil", role=bursar.Role.OPERATOR, ttl_s=60)
        made.terminate()
        for one in (name, f"{name}-log"):
            if (made.folder / one).exists():
                shutil.move(made.folder / one, daemon.folder / one)
        os.chown(daemon.folder / name, OTHER, OTHER)
    refused(daemon, f"belongs to user {OTHER}")


def test_a_folder_of_ones_own_takes_links_as_before(daemon: Daemon, tmp_path: Path) -> None:
    """An operator may have the store on another disk: who may write there is known."""
    daemon.folder.chmod(0o700)
    daemon.store_path.symlink_to(tmp_path / "elsewhere.db")
    daemon.start()
    daemon.restart()
    assert (tmp_path / "elsewhere.db").stat().st_size > 0


def a_link(path: Path, victim: Path) -> None:
    path.symlink_to(victim)


def a_link_to_nothing(path: Path, victim: Path) -> None:
    path.symlink_to(victim.with_name("nothing"))


def a_file(path: Path, victim: Path) -> None:
    path.write_bytes(b"precious")


def a_folder(path: Path, victim: Path) -> None:
    path.mkdir()
    (path / "file").write_bytes(b"precious")


@pytest.mark.parametrize("suffix", ["", ".lease"])
@pytest.mark.parametrize("plant", [a_link, a_file, a_folder])
def test_what_is_at_a_sockets_place_and_is_no_socket_stays(
    daemon: Daemon, victim: Path, suffix: str, plant: Callable[[Path, Path], Any]
) -> None:
    path = Path(f"{daemon.socket_path}{suffix}")
    plant(path, victim)
    refused(daemon, r"not a socket|Is a directory|cannot listen")
    untouched(victim)
    assert path.is_symlink() or path.is_dir() or path.read_bytes() == b"precious"


def test_a_link_to_the_socket_of_another_is_no_way_to_take_its_place(
    daemon: Daemon, tmp_path: Path
) -> None:
    with Daemon() as other:
        daemon.socket_path.symlink_to(other.socket_path)
        refused(daemon, "another sidecar listens on it")
        with other.client() as client:
            client.set_budget("acme", unit="tokens", limit=1)


def test_a_link_to_nothing_in_place_of_the_socket_is_replaced_not_followed(
    daemon: Daemon, victim: Path
) -> None:
    a_link_to_nothing(daemon.socket_path, victim)
    daemon.start()
    assert daemon.socket_path.is_socket()
    assert not daemon.socket_path.is_symlink()
    assert not victim.with_name("nothing").exists()


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_whatever_the_umask_nobody_else_may_read_what_it_makes(umask: int) -> None:
    class Masked(Daemon):
        def command(self) -> list[str]:
            return ["sh", "-c", f'umask {umask:04o}; exec "$@"', "sh", *super().command()]

    with Masked() as daemon, daemon.client() as operator:
        operator.set_budget("acme", unit="tokens", limit=5)
        operator.tokens.create("x", role=bursar.Role.AGENT, ttl_s=60)
        next(operator.list_entries("acme"))
        with operator.reserve("acme", tokens=1).lease():
            pass
        for path in daemon.folder.rglob("ledger.db*"):
            mode = path.stat().st_mode & 0o777
            assert mode in (0o600, 0o700), (path, oct(mode))
        for path in (daemon.socket_path, Path(f"{daemon.socket_path}.lease")):
            assert path.stat().st_mode & 0o777 == 0o660


@as_root
def test_an_embedded_store_in_a_folder_open_to_all_is_as_careful(daemon: Daemon) -> None:
    """As another user, who finds what root has planted."""
    folder = daemon.folder
    (folder / "ledger.db").write_bytes(b"")
    code = f"""
import os, bursar, bursar._core, bursar._embedded, bursar.daemon.config
os.setgroups([]); os.setgid({OTHER}); os.setuid({OTHER})
try:
    bursar.open({str(folder / "ledger.db")!r})
except bursar.StoreUnavailable as error:
    print(error)
"""
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False
    )
    assert "belongs to user 0" in ran.stdout, ran.stdout + ran.stderr
