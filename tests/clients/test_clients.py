"""Clients in other languages: on stubs from the proto, and by the layout of leases alone.

Goal: what the proto and rust/lease/src/layout.rs say is enough to write a client that is stopped
at the exact token. Method: each program runs against a real daemon and prints what it saw, which
has to be what the ledger says.
"""

import itertools
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
from support import toolchains
from support.bare import Bare, amounts
from support.daemon import Daemon, balance
from support.toolchains import Workshop, complaint, result, started

import bursar
from bursar.v1 import ledger_pb2

if TYPE_CHECKING:
    import subprocess

pytestmark = pytest.mark.timeout(400)  # the first test of a language builds its program

Program = Callable[..., "AbstractContextManager[subprocess.Popen[str]]"]

MAGIC: Final = 0x4C535242
ANSWER: Final = struct.Struct("<IHHQQQQH6x208s")
PAGE: Final = struct.Struct("<II4088x")
LIMIT: Final = 101  # no multiple of what the programs ask for at a time
PLENTY: Final = 10**12
EXHAUSTED: Final = "REASON_BUDGET_EXHAUSTED"
FROZEN: Final = "REASON_ACCOUNT_FROZEN"
NOT_THE_OWNER: Final = 20
NUMBERS: Final = itertools.count()


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with Daemon(server={"tcp": "127.0.0.1:0"}) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def client(daemon: Daemon) -> Iterator[bursar.Client]:
    with daemon.client() as client:
        yield client


@pytest.fixture(scope="session")
def go(project: Path) -> Workshop:
    return toolchains.go(project)


@pytest.fixture(scope="session")
def node(project: Path) -> Workshop:
    return toolchains.node(project)


@pytest.fixture(scope="session")
def java(project: Path) -> Workshop:
    return toolchains.java(project)


@pytest.fixture(scope="session")
def c(project: Path) -> Workshop:
    return toolchains.c(project)


@pytest.fixture
def account(client: bursar.Client) -> str:
    """An account below one with a budget of LIMIT tokens."""
    above = f"budget-{next(NUMBERS)}"
    client.set_budget(above, unit="tokens", limit=LIMIT)
    return f"{above}/agent"


@pytest.fixture(params=["go", "node", "java"])
def metering(request: pytest.FixtureRequest, daemon: Daemon) -> Program:
    """Starts a program that debits on a Meter stream: `metering("meter", account, wish)`."""
    shop: Workshop = request.getfixturevalue(request.param)
    folder, target = shop.folder, daemon.target
    if request.param == "go":
        command = [str(folder / "client")]
    elif request.param == "node":
        command = ["node", str(folder / "client.js"), str(shop.proto)]
    else:
        command = ["java", "-cp", f"{folder / 'classes'}:{folder / 'lib'}/*", "Client"]
        [listening] = [line for line in daemon.log.splitlines() if "listening on" in line]
        target = listening.rpartition(", ")[2]
    return lambda mode, *rest: started([*command, mode, target, *map(str, rest)])


def lease_by_go(shop: Workshop, daemon: Daemon) -> Program:
    """Starts the program in Go: `(account, hold)`, and a lease socket that is not the daemon's."""

    def start(account: str, hold: int, desk: str = "") -> Any:
        desk = desk or f"{daemon.socket_path}.lease"
        return started(
            [str(shop.folder / "client"), "lease", daemon.target, account, str(hold), desk]
        )

    return start


def lease_by_c(shop: Workshop, daemon: Daemon, *rest: str, program: str = "lease") -> Program:
    """The same for the one in C, behind the script that reserves for it."""

    def start(account: str, hold: int, desk: str = "") -> Any:
        desk = desk or f"{daemon.socket_path}.lease"
        launch = [sys.executable, str(shop.folder / "launch.py"), daemon.target, account]
        return started([*launch, str(hold), str(shop.folder / program), desk, *rest])

    return start


@pytest.fixture(params=["go", "c"])
def leasing(request: pytest.FixtureRequest, daemon: Daemon) -> Program:
    """Starts a program that debits a lease and gets more as it needs more, until it is stopped."""
    shop: Workshop = request.getfixturevalue(request.param)
    if request.param == "go":
        return lease_by_go(shop, daemon)
    return lease_by_c(shop, daemon, "64", "leave")


def freeze_after(
    client: bursar.Client, account: str, spent: int, process: "subprocess.Popen[str]"
) -> str:
    """Freezes the account with the budget, once so much is spent; returns its path."""
    above = account.partition("/")[0]
    deadline = time.monotonic() + 30
    while balance(client, above)[1] < spent:
        assert process.poll() is None, complaint(process)
        assert time.monotonic() < deadline, "it spends nothing"
        time.sleep(0.002)
    client.freeze(above, reason="test")
    return above


def settled(client: bursar.Client, account: str) -> tuple[int, int, int]:
    """The balance, once no reservation is pending."""
    above = account.partition("/")[0]
    deadline = time.monotonic() + 10
    while client.get_account(above).open_reservation_count > 0:
        assert time.monotonic() < deadline, "it is never settled"
        time.sleep(0.002)
    return balance(client, above)


def test_a_metering_client_is_stopped_at_the_exact_token(
    metering: Program, client: bursar.Client, account: str
) -> None:
    """Its hold of 30 is raised to 60, 90 and then to what is left; one token more is refused. What
    comes after the end is an answer's error on the stream, and an ErrorInfo for a call."""
    with metering("meter", account, 30) as process:
        seen = result(process)
    above = account.partition("/")[0]
    assert seen == {
        "used": LIMIT,
        "verdict": "VERDICT_STOP",
        "refusal": EXHAUSTED,
        "account": above,
        "unasked": False,
        "spent": LIMIT,
        "ended": "ERROR_REASON_RESERVATION_ENDED",
        "error": {"code": 6, "reason": "IDEMPOTENCY_MISMATCH", "domain": "bursar"},
    }
    assert balance(client, above) == (0, LIMIT, 0)


def test_a_freeze_reaches_a_metering_client_that_does_not_ask(
    metering: Program, client: bursar.Client, account: str
) -> None:
    with metering("watch", account, 30, 7) as process:
        above = freeze_after(client, account, 7, process)
        seen = result(process)
    assert (seen["used"], seen["spent"], seen["unasked"]) == (7, 7, True)
    assert (seen["verdict"], seen["refusal"], seen["account"]) == ("VERDICT_STOP", FROZEN, above)
    assert balance(client, above) == (0, 7, LIMIT - 7)


def test_a_refused_reservation_is_an_answer_that_says_who_limits(
    metering: Program, client: bursar.Client, account: str
) -> None:
    with metering("meter", account, LIMIT + 1) as process:
        assert EXHAUSTED in complaint(process)
    assert balance(client, account.partition("/")[0]) == (0, 0, LIMIT)


def test_a_leasing_client_is_stopped_at_the_exact_token(
    leasing: Program, client: bursar.Client, account: str
) -> None:
    """It holds 1 at first: Go asks for more by Extend, C is granted more ahead."""
    with leasing(account, 1) as process:
        seen = result(process)
    assert seen["used"] == LIMIT
    assert seen.get("spent", LIMIT) == LIMIT
    assert seen.get("refusal", EXHAUSTED) == EXHAUSTED
    assert seen.get("why", "exhausted") == "exhausted"
    assert settled(client, account) == (0, LIMIT, 0)


def test_a_freeze_stops_a_leasing_client_at_a_step_that_the_ledger_counts(
    leasing: Program, client: bursar.Client, account: str
) -> None:
    client.set_budget(account.partition("/")[0], unit="tokens", limit=PLENTY)
    with leasing(account, PLENTY) as process:
        above = freeze_after(client, account, 1, process)
        seen = result(process)
    assert seen.get("verdict", "VERDICT_STOP") == "VERDICT_STOP"
    assert seen.get("why", "stop") == "stop"
    assert seen.get("spent", seen["used"]) == seen["used"] > 0
    assert settled(client, account) == (0, seen["used"], PLENTY - seen["used"])
    assert client.get_account(above).frozen


def test_the_lease_of_a_committed_reservation_has_ended(
    go: Workshop, daemon: Daemon, account: str
) -> None:
    with lease_by_go(go, daemon)(account, 5) as process:
        assert result(process)["ended"] == "ended"


def test_a_lease_that_is_detached_leaves_its_reservation_to_be_committed(
    c: Workshop, daemon: Daemon, client: bursar.Client, account: str
) -> None:
    """It gets no more than the hold of 10, though the budget has more. Then the program is gone,
    and the reservation waits for somebody to commit it."""
    above = account.partition("/")[0]
    with lease_by_c(c, daemon, "0", "detach")(account, 10) as process:
        assert result(process) == {"used": 10, "counted": 10, "why": "exhausted"}
    time.sleep(0.1)
    assert client.get_account(above).open_reservation_count == 1
    [reservation] = {entry.reservation for entry in client.list_entries(account)}
    with Bare(daemon.target) as bare:
        done = bare("LedgerService/Commit", ledger_pb2.CommitRequest(reservation=reservation))
    assert list(done.spent) == amounts(tokens=10)
    assert settled(client, account) == (0, 10, LIMIT - 10)


def test_a_client_is_told_why_it_gets_no_lease(
    c: Workshop, daemon: Daemon, client: bursar.Client, account: str
) -> None:
    """A reservation of another process: this one's."""
    reservation = client.reserve(account, tokens=5)
    desk = f"{daemon.socket_path}.lease"
    with started([str(c.folder / "lease"), desk, reservation.id, "0", "leave"]) as process:
        said = complaint(process)
    assert f"reason {NOT_THE_OWNER}: " in said
    assert "another process" in said
    reservation.release()


def test_the_daemon_hangs_up_on_another_version_of_the_layout(
    c: Workshop, daemon: Daemon, client: bursar.Client, account: str
) -> None:
    with lease_by_c(c, daemon, "0", "leave", program="lease-2")(account, 5) as process:
        assert "may speak another version of the layout" in complaint(process)
    assert balance(client, account.partition("/")[0])[1] == 0


def page(version: int) -> int:
    """The descriptor of a page without a word of truth but its version."""
    fd = os.memfd_create("page")
    os.write(fd, PAGE.pack(MAGIC, version))
    return fd


@contextmanager
def another_daemon(path: Path, answer: bytes, *pages: int) -> Iterator[str]:
    """A lease socket that gives one answer, whatever is asked."""

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(4096)
            socket.send_fds(connection, [answer], pages)

    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)) as listener:
        listener.settimeout(30)
        listener.bind(str(path))
        listener.listen()
        thread = threading.Thread(target=serve)
        thread.start()
        yield str(path)
        thread.join()
    for fd in pages:
        os.close(fd)


@pytest.mark.parametrize("wrong", ["answer", "usage", "control", "short", "bare"])
def test_a_client_refuses_a_daemon_of_another_version(
    leasing: Program, account: str, tmp_path: Path, wrong: str
) -> None:
    versions = [2 if wrong == one else 1 for one in ("answer", "usage", "control")]
    answer = ANSWER.pack(MAGIC, versions[0], 0, 0, 0, 5, 9, 0, b"")
    answer = answer[:-1] if wrong == "short" else answer
    pages = [] if wrong == "bare" else [page(version) for version in versions[1:]]
    with (
        another_daemon(tmp_path / "desk", answer, *pages) as desk,
        leasing(account, 5, desk) as process,
    ):
        said = complaint(process)
    assert ("without its pages" if wrong == "bare" else "version") in said


def test_the_program_in_go_is_formatted_and_vetted(go: Workshop) -> None:
    assert go.make("gofmt", "-l", "main.go", "meter.go", "lease.go") == ""
    go.make("go", "vet", ".")


def test_lock_files_name_no_registry(project: Path) -> None:
    folder = project / "tests/clients"
    assert '"resolved"' not in (folder / "node/package-lock.json").read_text(encoding="utf-8")
    for program in ("go", "envoy"):
        assert "://" not in (folder / program / "go.sum").read_text(encoding="utf-8")


def test_what_cannot_be_fetched_skips_and_what_cannot_be_made_fails(
    c: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(message: str) -> tuple[str, ...]:
        return sys.executable, "-c", f"raise SystemExit({message!r})"

    with pytest.raises(pytest.skip.Exception, match=r"c: its registry .* no route"):
        c.fetch(*failing("error: no route to host"))
    with pytest.raises(pytest.fail.Exception, match="EINTEGRITY"):
        c.fetch(*failing("npm error code EINTEGRITY"))
    with pytest.raises(pytest.fail.Exception, match="no such type"):
        c.make(*failing("no such type"))
    monkeypatch.setenv("PATH", "")
    with pytest.raises(pytest.skip.Exception, match="c: gcc is not installed"):
        toolchains.c(c.proto.parent)
