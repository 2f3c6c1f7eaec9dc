"""What is known by other means than a user: control groups, and what jobs are handed."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from support.certificates import Authority
from support.daemon import Daemon
from support.jobs import need_cgroups

import bursar
from bursar import Client, EntryKind, Role
from bursar.watchdog import cgroups

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
ENFORCE: Final = {"mode": "enforce"}


@pytest.fixture
def group() -> Iterator[str]:
    need_cgroups()
    made = cgroups.make("agent")
    yield made
    cgroups.remove(made)


WHO: Final = """
import os, sys, bursar, grpc, bursar._grpc, bursar.v1.access_pb2
from bursar.watchdog import cgroups
import bursar.lease
group, target, reservation = sys.argv[1:4]
if group:
    cgroups.add(group, os.getpid())
os.setgroups([]); os.setgid(40_003); os.setuid(40_003)
with bursar.connect(target, attempts=1) as client:
    try:
        who = client.who_am_i()
        print(who.role.value, who.account)
    except bursar.Unauthenticated as error:
        print(error)
try:
    terms = bursar.lease.LeaseTerms(reservation, "tokens", None, 0, None)
    bursar.lease.SharedStep(target.removeprefix("unix:") + ".lease", terms)
    print("leased")
except bursar.BursarError as error:
    print(error.reason)
"""


@as_root
def test_a_control_group_says_who_calls_at_both_sockets(group: str) -> None:
    rows = [{"cgroup": group, "role": "agent", "account": "acme/a"}]
    server = {"tcp": "127.0.0.1:0", "socket_mode": "0666"}
    with Daemon(access={**ENFORCE, "local": rows}, server=server) as daemon:
        daemon.folder.chmod(0o711)
        with daemon.client() as operator:
            token = operator.tokens.create("tcp", role=Role.AGENT, ttl_s=60).secret
            address = daemon.log.rpartition("listening on")[2].split(", ")[1].split()[0]
            with bursar.connect(address, token=token) as remote:  # made by no process of this host
                held = {one: remote.reserve(one, tokens=5).id for one in ("acme/a", "acme/b")}

        def said(of: str, account: str) -> list[str]:
            command = [sys.executable, "-c", WHO, of, daemon.target, held[account]]
            ran = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
            return ran.stdout.splitlines() or [ran.stderr]

        assert said(group, "acme/a") == ["agent acme/a", "leased"]
        assert said(group, "acme/b") == ["agent acme/a", "RESERVATION_NOT_FOUND"]
        nobody, refused = said("", "acme/a")
        assert "is nobody here" in nobody
        assert refused == "UNAUTHENTICATED"


def balance(client: Client, account: str) -> tuple[int, int]:
    [one] = client.get_account(account).balances
    return one.held, one.spent


@pytest.mark.parametrize("how", ["revoked", "expired"])
def test_what_a_token_holds_ends_with_it_at_what_was_debited(how: str) -> None:
    with Daemon(access=ENFORCE) as daemon, daemon.client() as operator:
        operator.set_budget("acme", unit="tokens", limit=100)
        ttl_s = 60.0 if how == "revoked" else 1.0
        made = operator.tokens.create("brief", role=Role.AGENT, account="acme", ttl_s=ttl_s)
        kept = operator.reserve("acme/c", tokens=7)
        with bursar.connect(daemon.target, token=made.secret) as client:
            held = client.reserve("acme/a", tokens=30)
            held.debit(used={"tokens": 3})
            leased = client.reserve("acme/b", tokens=40)
            lease = leased.lease()
            lease.debit(5)
            assert balance(operator, "acme")[0] >= 60
            if how == "revoked":
                operator.tokens.revoke(made.token.id)
            deadline = time.monotonic() + 10
            while lease.debit(0) is not bursar.Verdict.STOP:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            while balance(operator, "acme") != (7, 8):
                assert time.monotonic() < deadline
                time.sleep(0.01)
            with pytest.raises(bursar.Unauthenticated):
                held.commit(tokens=3)
            assert operator.get_reservation(leased.id).state.value == "expired"
        kept.release()


def test_who_made_and_revoked_tokens_and_stopped_jobs_is_in_the_history() -> None:
    with Daemon(access=ENFORCE) as daemon, daemon.client() as root:
        root.record("acme/a", tokens=1)
        root.record("other", tokens=1)
        admin = root.tokens.create("admin", role=Role.OPERATOR, account="acme", ttl_s=60)
        with bursar.connect(daemon.target, token=admin.secret) as operator:
            made = operator.tokens.create("x", role=Role.AGENT, account="acme/a/new", ttl_s=60)
            operator.tokens.revoke(made.token.id)
            with subprocess.Popen(["/bin/sleep", "60"]) as process:
                job = operator.register_process("acme/a", pid=process.pid, name="nap")
                operator.kill_process(job=job.id, reason="enough")
                process.wait(30)
        wide = root.tokens.create("wide", role=Role.OBSERVER, ttl_s=60)

        def noted(account: str) -> list[str]:
            found = [one for one in root.list_entries(account) if one.account == account]
            return [one.detail for one in found if one.kind is EntryKind.OPERATED]

        name = f"{made.token.id} (x), agent of acme/a/new"
        stopped = f"admin: stopped the job {job.id} (nap): enough"
        assert sorted(noted("acme/a")) == sorted(
            [f"admin: made the token {name}", f"admin: revoked the token {name}", stopped]
        )
        everywhere = f"user {os.geteuid()}: made the token {wide.token.id} (wide), observer of all"
        for account in ("acme", "other"):
            assert any(one.startswith(everywhere) for one in noted(account))


@pytest.mark.parametrize("role", [Role.AGENT, Role.OBSERVER, Role.OPERATOR])
def test_a_job_is_handed_an_agents_token_only(role: Role, tmp_path: Path) -> None:
    with Daemon(access=ENFORCE) as daemon, daemon.client() as root:
        token = root.tokens.create("x", role=role, account="acme", ttl_s=60).secret
        pair = Authority(tmp_path).issue("client")
        environment = {
            **os.environ,
            "BURSAR_TOKEN": token,
            "BURSAR_TLS_CA": "system",
            "BURSAR_TLS_CERTIFICATE": str(pair.certificate),
            "BURSAR_TLS_KEY": str(pair.key),
        }
        command = [sys.executable, "-m", "bursar", "run", "--target", daemon.target, "--no-cgroup"]
        ran = subprocess.run(
            [*command, "--account", "acme/a", "--", "env"],
            capture_output=True, text=True, timeout=50, check=False, env=environment,
        )  # fmt: skip
        got: dict[str, Any] = dict(one.partition("=")[::2] for one in ran.stdout.splitlines())
        secrets = ("BURSAR_TOKEN", "BURSAR_TLS_CERTIFICATE", "BURSAR_TLS_KEY")
        if role is Role.OBSERVER:
            assert ran.returncode == 3, "an observer starts nothing"
            assert got == {}
            return
        assert ran.returncode == 0, ran.stderr
        assert got["BURSAR_TLS_CA"] == "system"
        if role is Role.AGENT:
            assert {got[one] for one in secrets} == {environment[one] for one in secrets}
        else:
            assert not set(secrets) & set(got)
            assert "withheld" in ran.stderr
        assert token not in ran.stderr
