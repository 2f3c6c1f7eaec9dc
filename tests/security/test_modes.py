"""What the sidecar makes is its own, whatever the umask that it was started with."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.daemon import Daemon

from bursar import Role


@pytest.fixture
def no_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def modes(folder: Path) -> dict[str, int]:
    """The mode of everything below a folder, by its name less the store's own."""
    return {
        str(one.relative_to(folder)): stat.S_IMODE(one.lstat().st_mode) for one in folder.rglob("*")
    }


@pytest.mark.usefixtures("no_umask")
def test_with_no_umask_at_all_nothing_is_open_to_others() -> None:
    with Daemon() as daemon:
        given = {"bursar.toml", "sidecar.log"}  # the test's own: they are made before it starts
        for _ in range(2):
            with daemon.client() as client:
                client.set_budget("acme", unit="tokens", limit=100)
                client.tokens.create("x", role=Role.AGENT, ttl_s=60)
                with client.reserve("acme/a", tokens=10) as held, held.lease() as lease:
                    lease.debit(1)
            found = modes(daemon.folder)
            made = {name: mode for name, mode in found.items() if name not in given}
            sockets = {name for name in made if name.endswith((".sock", ".sock.lease"))}
            assert {made.pop(name) for name in sockets} == {0o660}
            assert len(sockets) == 2
            assert len(made) >= 5, "the store, its log, the tokens, a lock, the watchdog's journal"
            wide = {name: oct(mode) for name, mode in made.items() if mode & 0o077}
            assert wide == {}
            daemon.kill9()  # what is made in recovery, too
            daemon.start()
