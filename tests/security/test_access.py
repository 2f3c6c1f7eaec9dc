"""Who may do what: roles, accounts and tokens, by socket, TCP and proxy, and in streams."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import pytest
from click.testing import CliRunner
from openai import APIStatusError, OpenAI
from support.bare import Failed
from support.daemon import Daemon
from support.meter import Meter, debit

import bursar
from bursar import Client, EntryKind, Role
from bursar.cli import cli

DAY_S: Final = 86_400
LIMIT: Final = 1_000_000

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    local = [
        {"user": 40_001, "role": "agent", "account": "acme/a"},
        {"group": 40_002, "role": "observer"},
    ]
    access = {"mode": "enforce", "local": local}
    with Daemon(access=access, server={"tcp": "127.0.0.1:0", "socket_mode": "0666"}) as made:
        made.folder.chmod(0o711)  # so that other users reach the socket
        with made.client() as operator:
            operator.set_budget("acme", unit="tokens", limit=LIMIT)
            operator.set_budget("acme/a", unit="tokens", limit=LIMIT)
            operator.set_budget("acme/b", unit="tokens", limit=LIMIT)
        yield made


@pytest.fixture
def operator(daemon: Daemon) -> Iterator[Client]:
    with daemon.client() as client:
        yield client


def secret_of(operator: Client, role: Role, account: str = "", ttl_s: float = DAY_S) -> str:
    return operator.tokens.create("test", role=role, account=account, ttl_s=ttl_s).secret


def tcp_target(daemon: Daemon) -> str:
    return str(re.findall(r"127\.0\.0\.1:\d+", daemon.log)[0])


def holder(daemon: Daemon, secret: str, *, tcp: bool = False) -> Client:
    return bursar.connect(tcp_target(daemon) if tcp else daemon.target, token=secret, attempts=1)


READS: Final[dict[str, Callable[[Client, str], object]]] = {
    "get_account": lambda c, a: c.get_account(a),
    "list_accounts": lambda c, a: list(c.list_accounts(a)),
    "list_reservations": lambda c, a: c.list_reservations(a),
    "check": lambda c, a: c.check(a, tokens=1),
    "entries": lambda c, a: list(c.list_entries(a)),
    "watch": lambda c, a: next(c.watch_accounts(a)),
}
SPENDS: Final[dict[str, Callable[[Client, str], object]]] = {
    "reserve": lambda c, a: c.reserve(a, tokens=1).release(),
    "record": lambda c, a: c.record(a, tokens=1),
}
MANAGES: Final[dict[str, Callable[[Client, str], object]]] = {
    "set_budget": lambda c, a: c.set_budget(a, unit="tokens", limit=LIMIT),
    "freeze": lambda c, a: c.freeze(f"{a}/unused", reason="test"),
    "unfreeze": lambda c, a: c.unfreeze(f"{a}/unused"),
    "retire": lambda c, a: c.retire_account(f"{a}/unused"),
    "make a token": lambda c, a: c.tokens.create("x", role=Role.AGENT, account=a, ttl_s=DAY_S),
    "list tokens": lambda c, a: c.tokens.list(a),
}


@pytest.mark.parametrize("tcp", [False, True], ids=["unix", "tcp"])
@pytest.mark.parametrize("role", [Role.AGENT, Role.OBSERVER, Role.OPERATOR])
def test_each_role_does_what_it_may_and_nothing_else_and_only_with_its_accounts(
    daemon: Daemon,
    operator: Client,
    role: Role,
    tcp: bool,  # noqa: FBT001 -- from parametrize
) -> None:
    every = READS | SPENDS | MANAGES
    may = {Role.AGENT: READS | SPENDS, Role.OBSERVER: READS, Role.OPERATOR: every}[role]
    with holder(daemon, secret_of(operator, role, "acme/a"), tcp=tcp) as client:
        assert client.who_am_i().role is role
        for name, call in every.items():
            if name in may:
                call(client, "acme/a")
            else:
                with pytest.raises(bursar.NotAllowed, match=f"is {role.value} of acme/a"):
                    call(client, "acme/a")
            for other in ("acme", "acme/b", "acme/ab"):
                with pytest.raises((bursar.NotAllowed, bursar.AccountNotFound)):
                    call(client, other)


def test_what_is_listed_without_an_account_is_ones_own(daemon: Daemon, operator: Client) -> None:
    operator.record("acme/b", tokens=3)
    observer = secret_of(operator, Role.OBSERVER, "acme/a")
    open_ones = [operator.reserve(account, tokens=1) for account in ("acme/a", "acme/b")]
    with holder(daemon, observer) as client:
        own, _ = open_ones
        assert [one.reservation.id for one in client.list_reservations()] == [own.id]
        assert {one.path.split("/")[1] for one in client.list_accounts()} == {"a"}
        assert all(one.account.startswith("acme/a") for one in client.list_entries(""))
        changes = next(client.watch_accounts(""))
        assert all(one.path.startswith("acme/a") for one in changes.accounts)
    for each in open_ones:
        each.release()


def test_anothers_reservation_is_none(daemon: Daemon, operator: Client) -> None:
    theirs = operator.reserve("acme/b", tokens=10)
    ended = operator.reserve("acme/b", tokens=10)
    ended.release()
    with holder(daemon, secret_of(operator, Role.AGENT, "acme/a")) as client:
        tries: list[Callable[[str], Any]] = [
            lambda held: client.debit(held, tokens=1),
            lambda held: client.extend(held, tokens=1),
            lambda held: client.commit(held, tokens=1),
            client.release,
            client.get_reservation,
            lambda held: client.reserve("acme/a", tokens=1, parent=held),
        ]
        for attempt in tries:
            for held in (theirs.id, ended.id):
                with pytest.raises(bursar.ReservationNotFound):
                    attempt(held)
    assert operator.get_reservation(theirs.id).used.get("tokens", 0) == 0
    theirs.release()


def test_a_token_cannot_make_more_of_itself(daemon: Daemon, operator: Client) -> None:
    with holder(daemon, secret_of(operator, Role.OPERATOR, "acme/a")) as client:
        below = client.tokens.create("sub", role=Role.OPERATOR, account="acme/a/x", ttl_s=60)
        assert below.token.creator == "test"
        for account in ("", "acme", "acme/b", "acme/ab"):
            with pytest.raises(bursar.NotAllowed):
                client.tokens.create("up", role=Role.AGENT, account=account, ttl_s=60)
        other = operator.tokens.create("other", role=Role.AGENT, account="acme/b", ttl_s=60)
        with pytest.raises(bursar.TokenNotFound):
            client.tokens.revoke(other.token.id)
        assert other.token.id not in {one.id for one in client.tokens.list()}


def test_a_token_that_was_revoked_is_good_for_nothing_streams_included(
    daemon: Daemon, operator: Client
) -> None:
    made = operator.tokens.create("brief", role=Role.AGENT, account="acme/a", ttl_s=DAY_S)
    with holder(daemon, made.secret) as client:
        stream = client.watch_accounts("acme/a", min_interval_s=0.05)
        next(stream)
        assert operator.tokens.revoke(made.token.id).revoke_time is not None
        with pytest.raises(bursar.Unauthenticated, match="was revoked"):
            client.reserve("acme/a", tokens=1)
        with pytest.raises(bursar.Unauthenticated):
            next(stream)


def test_a_meter_of_a_revoked_token_hears_no_news(daemon: Daemon, operator: Client) -> None:
    made = operator.tokens.create("meter", role=Role.AGENT, account="acme/a", ttl_s=DAY_S)
    held = operator.reserve("acme/a", tokens=10)
    with held, Meter(daemon.target, token=made.secret) as meter:
        meter.send(debit(held.id, tokens=1))
        assert meter.receive().answers[0].verdict == 1
        operator.tokens.revoke(made.token.id)
        operator.freeze("acme/a", reason="test")
        try:
            with pytest.raises(Failed) as raised:
                meter.receive()
        finally:
            operator.unfreeze("acme/a")
        assert raised.value.reason == "UNAUTHENTICATED"


def test_a_token_is_made_listed_rotated_and_revoked_by_commands(daemon: Daemon) -> None:
    def say(*command: str, token: str = "", code: int = 0) -> str:
        env = {"BURSAR_TOKEN": token or None}
        told = CliRunner().invoke(cli, [*command, "--target", daemon.target], env=env)
        assert told.exit_code == code, told.output
        return str(told.stdout)

    def make() -> str:
        made = say("token", "create", "robot", "--role", "agent", "--account", "acme/a")
        return made.strip()

    old, new = make(), make()
    for secret in (old, new):
        assert "robot: agent of acme/a, until" in say("whoami", token=secret)
    ids = {say("token", "list", "acme/a").count(secret.split("_")[1]) for secret in (old, new)}
    assert ids == {1}
    assert "is good for nothing any more" in say("token", "revoke", old.split("_")[1])
    assert re.search(rf"{old.split('_')[1]} .*revoked", say("token", "list", "acme/a"))
    say("whoami", token=old, code=3)
    assert "robot" in say("whoami", token=new)


def test_a_token_expires(daemon: Daemon, operator: Client) -> None:
    with holder(daemon, secret_of(operator, Role.AGENT, "acme/a", ttl_s=0.2)) as client:
        assert client.who_am_i().expire_time is not None
        time.sleep(0.25)
        with pytest.raises(bursar.Unauthenticated, match="has expired"):
            client.who_am_i()


def test_tcp_without_a_token_and_a_wrong_token_are_nobody(daemon: Daemon, operator: Client) -> None:
    client = bursar.connect(tcp_target(daemon), attempts=1)
    with client, pytest.raises(bursar.Unauthenticated, match="needs a token"):
        client.who_am_i()
    real = secret_of(operator, Role.AGENT)
    for wrong in (real[:-1] + ("0" if real[-1] != "0" else "1"), "bursar_00_00"):
        client = holder(daemon, wrong)  # by the socket, where root would be an operator without it
        with client, pytest.raises(bursar.Unauthenticated, match="no such"):
            client.who_am_i()
    with pytest.raises(bursar.InvalidRequest, match="bursar_"):
        bursar.connect(daemon.target, token="Bearer x")  # noqa: S106 -- no secret


AS_USER: Final = """
import sys, bursar
with bursar.connect(sys.argv[1], attempts=1) as client:
    try:
        who = client.who_am_i()
        print(who.name, who.role.value, who.account or "all")
    except bursar.Unauthenticated as error:
        print(error)
"""


@as_root
@pytest.mark.parametrize(
    ("uid", "gid", "others", "said"),
    [
        (40_001, 40_001, [], "user 40001 agent acme/a"),
        (40_009, 40_002, [], "user 40009 observer all"),
        (40_009, 40_009, [*range(50_000, 50_100), 40_002], "user 40009 observer all"),
        (40_009, 40_009, [40_001, 40_003], "user 40009 is nobody here"),
        (0, 0, [], "user 0 operator all"),
    ],
)
def test_by_the_socket_the_kernel_says_who_calls(
    daemon: Daemon, uid: int, gid: int, others: list[int], said: str
) -> None:
    code = f"""
import os, sys
sys.argv = ["x", {daemon.target!r}]
import bursar, grpc, bursar._grpc, bursar.v1.access_pb2
os.setgroups({others}); os.setgid({gid}); os.setuid({uid})
{AS_USER}"""
    command = [sys.executable, "-c", code]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert ran.stdout.startswith(said), ran.stdout + ran.stderr


@as_root
def test_whom_the_socket_keeps_out_is_told_so() -> None:
    with Daemon(in_memory=True) as daemon:
        daemon.folder.chmod(0o711)
        code = f"""
import os, bursar, bursar._grpc, bursar.v1.access_pb2
from bursar.cli import cli, health
os.setgroups([]); os.setgid(40_009); os.setuid(40_009)
try:
    bursar.connect({daemon.target!r}, attempts=1).who_am_i()
except bursar.SidecarUnavailable as error:
    print(error)
cli(["health", "--target", {daemon.target!r}])
"""
        command = [sys.executable, "-c", code]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    told = f"user 40009 may not connect to {daemon.target}: join the group of the socket"
    assert told in ran.stdout
    assert told in ran.stderr


LEASES: Final = """
import bursar
from bursar.lease import LeaseTerms, SharedStep
try:
    step = SharedStep(path, LeaseTerms(reservation, "tokens", None, 0, None))
    print("leased")
except bursar.BursarError as error:
    print(error.reason)
"""


@as_root
@pytest.mark.parametrize(
    ("uid", "account", "said"),
    [
        (40_009, "acme/b", "UNAUTHENTICATED"),
        (40_001, "acme/b", "RESERVATION_NOT_FOUND"),
        (40_001, "acme/a", "leased"),
        (0, "acme/b", "leased"),
    ],
)
def test_what_a_token_has_reserved_by_tcp_is_leased_by_nobody_else(
    daemon: Daemon, operator: Client, uid: int, account: str, said: str
) -> None:
    with holder(daemon, secret_of(operator, Role.AGENT, account), tcp=True) as client:
        held = client.reserve(account, tokens=5)
        code = f"""
import os
import bursar.lease
os.setgroups([]); os.setgid({uid}); os.setuid({uid})
path, reservation = {str(daemon.socket_path) + ".lease"!r}, {held.id!r}
{LEASES}"""
        command = [sys.executable, "-c", code]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        assert ran.stdout.strip() == said, ran.stdout + ran.stderr
        held.release()


def test_tokens_outlive_a_restart_and_no_secret_is_on_the_disk_or_in_the_log() -> None:
    with Daemon(access={"mode": "enforce"}) as daemon:
        with daemon.client() as operator:
            made = operator.tokens.create("kept", role=Role.AGENT, account="acme", ttl_s=DAY_S)
        assert made.secret not in repr(made)
        daemon.kill9()
        daemon.start()
        with holder(daemon, made.secret) as client:
            assert client.who_am_i().name == "kept"
        secret = made.secret.rpartition("_")[2]
        files = [one for one in daemon.folder.iterdir() if one.is_file()]
        tokens = [one for one in files if one.name.endswith(".tokens")]
        assert [one.stat().st_mode & 0o777 for one in tokens] == [0o600]
        assert not any(secret.encode() in one.read_bytes() for one in files)
        assert secret not in daemon.log


def test_an_open_sidecar_takes_everybody_for_an_operator_but_a_token_at_its_word() -> None:
    with Daemon() as daemon, daemon.client() as anybody:
        assert anybody.who_am_i().role is Role.OPERATOR
        made = anybody.tokens.create("bound", role=Role.OBSERVER, account="acme", ttl_s=60)
        with holder(daemon, made.secret) as client, pytest.raises(bursar.NotAllowed):
            client.record("acme", tokens=1)


def test_the_proxy_asks_for_a_token_that_may_spend_and_passes_it_on_to_nobody() -> None:
    upstream = {"name": "gone", "url": "http://127.0.0.1:9", "api": "openai"}
    proxy = {"listen": "127.0.0.1:0", "default_account": "acme/a", "upstreams": [upstream]}
    enforce: dict[str, Any] = {"access": {"mode": "enforce"}, "rates": {"allow_unpriced": True}}
    with Daemon(proxy=proxy, **enforce) as daemon, daemon.client() as operator:
        [base] = re.findall(r"proxy on (http://\S+)/v1", daemon.log)

        def answer(key: str, account: str = "") -> tuple[int, str]:
            path = f"/a/{account}/v1" if account else "/v1"
            client = OpenAI(base_url=base + path, api_key=key, max_retries=0)
            try:
                client.completions.create(model="m", prompt="x")
            except APIStatusError as error:
                return error.status_code, error.message
            raise AssertionError("there is no upstream")

        agent = secret_of(operator, Role.AGENT, "acme/a")
        assert answer("sk-of-the-provider")[0] == 401
        assert answer("bursar_00_00")[0] == 401
        assert answer(secret_of(operator, Role.OBSERVER))[0] == 403
        assert answer(agent, "acme/b")[0] == 403
        for account in ("", "acme/a", "acme/a/sub"):
            code, said = answer(agent, account)
            assert (code, "cannot be reached" in said) == (502, True), "it is let through"
        assert agent not in daemon.log


def test_who_changed_what_is_in_the_history(daemon: Daemon, operator: Client) -> None:
    with holder(daemon, secret_of(operator, Role.OPERATOR, "acme/c")) as client:
        client.set_budget("acme/c", unit="tokens", limit=7)
        client.freeze("acme/c", reason="lunch")
        client.unfreeze("acme/c")
        client.retire_account("acme/c")
    found = [one for one in operator.list_entries("acme/c") if one.kind is EntryKind.OPERATED]
    assert [one.detail for one in found] == [
        "test: set a limit of 7 tokens, period total; before: none",
        "test: froze it: lunch",
        "test: ended its freeze",
        "test: retired it",
    ]
    assert {one.account for one in found} == {"acme/c"}
