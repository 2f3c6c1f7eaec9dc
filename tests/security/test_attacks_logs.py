"""What agents choose forges no line of a log and moves no terminal; secrets are in no line."""

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import openai
import pytest
from support.bare import Bare, amounts
from support.daemon import Daemon
from support.proxied import ACCOUNT, Proxied, tokens
from support.upstreams import RawUpstream, respond, usage

import bursar
from bursar import Role
from bursar.v1 import account_pb2 as ac
from bursar.v1 import ledger_pb2 as lg

FORGED: Final = "bursar: SIGTERM: draining for at most 0 s"
EVIL: Final = f"x\r\n{FORGED}\x1b[2J\x1b]0;title\x07\x9b31m\x00\x08\u2028{FORGED}\u202egpj"
KEY: Final = "sk-of-the-provider-0123456789abcdef"
PROMPT: Final = "the-prompt-that-nobody-may-read"
TELLING: Final = {("account", "show", "acme/b"), ("account", "show", "acme/c"), ("log", "acme/b")}
"""Commands that show what somebody else chose."""


def is_clean(text: str) -> None:
    """No control character but the ends of lines, and no line that somebody else has written."""
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e]", text), text
    assert not any(line.startswith(FORGED) for line in text.splitlines()), text


def shown(daemon: Daemon, *command: str) -> str:
    """What a command says, on both streams."""
    ran = subprocess.run(
        [sys.executable, "-m", "bursar", *command, "--target", daemon.target],
        capture_output=True,
        check=False,
        timeout=60,
    )
    return (ran.stdout + ran.stderr).decode()


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    """One with evil in every text that a caller may choose."""
    with (
        Daemon(runaway={"action": "freeze"}) as made,
        Bare(made.target) as bare,
        made.client() as operator,
    ):
        operator.set_budget("acme", unit="tokens", limit=10**6)
        labels = {"model": EVIL, EVIL: EVIL, "prompt_fingerprint": EVIL}
        for number in range(4):
            wish = lg.ReserveRequest(
                account="acme/a",
                amounts=amounts(tokens=1),
                labels=labels,
                idempotency_key=f"{number}{EVIL}",
            )
            bare("LedgerService/Reserve", wish)
        operator.freeze("acme/b", reason=EVIL)
        operator.tokens.create("a-name", role=Role.AGENT, ttl_s=60)
        bare("AccountService/Freeze", ac.FreezeRequest(account="acme/c", reason=EVIL))
        yield made


@pytest.mark.parametrize(
    "command",
    [
        ("account", "list"),
        ("account", "show", "acme/b"),
        ("account", "show", "acme/c"),
        ("log",),
        ("log", "acme/b"),
        ("incidents",),
        ("incidents", "-v"),
        ("token", "list"),
        ("whoami",),
        ("gpu",),
        ("account", "show", EVIL.replace("\0", "")),
        ("token", "revoke", EVIL.replace("\0", "")),
        ("kill", EVIL.replace("\0", "")),
    ],
    ids=lambda one: " ".join(one).replace(EVIL.replace("\0", ""), "EVIL"),
)
def test_a_command_shows_what_others_chose_in_one_line_without_control_characters(
    daemon: Daemon, command: tuple[str, ...]
) -> None:
    told = shown(daemon, *command)
    is_clean(told)
    assert "draining" in told or command not in TELLING


def test_the_names_of_tokens_and_methods_reach_no_terminal_as_they_are(daemon: Daemon) -> None:
    with daemon.client() as operator:
        try:
            made = operator.tokens.create(EVIL, role=Role.AGENT, ttl_s=60)
        except bursar.InvalidRequest as error:
            is_clean(str(error))
        else:
            is_clean(shown(daemon, "token", "list"))
            is_clean(shown(daemon, "token", "revoke", made.token.id))


def test_json_is_escaped_and_keeps_what_was_chosen(daemon: Daemon) -> None:
    ran = shown(daemon, "account", "show", "acme/b", "--json")
    is_clean(ran)
    assert json.loads(ran)["freeze_reason"] == EVIL


def test_the_daemons_log_stays_one_line_for_each_event(daemon: Daemon) -> None:
    is_clean(daemon.log)
    assert all(line.startswith("bursar: ") for line in daemon.log.splitlines())


def test_what_the_proxy_is_told_forges_nothing() -> None:
    def repeat(connection: object, head: str, body: bytes) -> None:
        error = {"error": {"message": head + EVIL}}
        respond(connection, error, "500 Internal Server Error")  # type: ignore[arg-type]

    with RawUpstream(repeat) as upstream, Proxied(upstream.url, budgets=tokens(10**6)) as proxied:
        client = proxied.openai(max_retries=0, default_headers={"user-agent": "x\t(evil)"})
        for model in (EVIL, "m"):
            with pytest.raises(openai.APIStatusError):
                client.chat.completions.create(
                    model=model, messages=[{"role": "user", "content": EVIL}]
                )
        is_clean(shown(proxied, "log"))
        is_clean(shown(proxied, "account", "show", ACCOUNT))
        is_clean(proxied.log)


def test_a_watched_process_with_an_evil_name_forges_no_line_of_the_log(tmp_path: Path) -> None:
    """The watchdog tells of processes by the names that they gave themselves."""
    program = tmp_path / "x\n\x1b[31mevil"
    program.symlink_to("/bin/sleep")
    with Daemon() as daemon:
        command = [sys.executable, "-m", "bursar", "run", "--target", daemon.target]
        command += ["--account", "acme/a", "--", str(program), "60"]
        with subprocess.Popen(command, stderr=subprocess.PIPE) as job:
            deadline = time.monotonic() + 20
            with daemon.client() as client:
                while not (jobs := client.list_processes().jobs):
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
            is_clean(shown(daemon, "kill", str(jobs[0].pid), "--reason", EVIL.replace("\0", "")))
            is_clean(job.communicate(timeout=20)[1].decode())
        is_clean(shown(daemon, "incidents", "-v"))
        is_clean(shown(daemon, "log"))
        is_clean(daemon.log)
        assert all(line.startswith("bursar: ") for line in daemon.log.splitlines())


def test_no_secret_is_in_a_log_an_error_a_repr_or_a_command_line(tmp_path: Path) -> None:
    """Tokens, the provider's key and prompts, with everything turned up that can be."""

    def answer(connection: object, head: str, body: bytes) -> None:
        choices = [{"message": {"content": "hello"}, "finish_reason": "stop", "index": 0}]
        respond(connection, {"choices": choices, "usage": usage(1, 1)})  # type: ignore[arg-type]

    secret = tmp_path / "key"
    secret.write_text(KEY, encoding="utf-8")
    verbose = {"RUST_LOG": "trace", "RUST_BACKTRACE": "full", "GRPC_VERBOSITY": "debug"}
    before = {name: os.environ.get(name) for name in verbose}
    os.environ.update(verbose)
    try:
        with (
            RawUpstream(answer) as upstream,
            Proxied(
                upstream.url, budgets=tokens(10**6), upstream_settings={"key_file": str(secret)}
            ) as proxied,
        ):
            with proxied.client() as operator:
                made = operator.tokens.create("x", role=Role.AGENT, account="acme", ttl_s=60)
            with bursar.connect(proxied.target, token=made.secret) as client:
                said = [repr(client), str(client), repr(vars(client)), repr(made)]
                said += errors_of(client)
            proxied.openai(default_headers={"x-bursar-token": made.secret}).chat.completions.create(
                model="m", messages=[{"role": "user", "content": PROMPT}]
            )
            proc = Path(f"/proc/{proxied.pid}")
            said.append((proc / "cmdline").read_text(encoding="utf-8"))
            said.append(proxied.log)
            with proxied.client() as client:
                said += [str(one) for one in client.list_entries()]
            proxied.terminate()
            said += [
                one.read_bytes().decode("latin-1")
                for one in proxied.folder.rglob("*")
                if one.is_file()
            ]
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    for text in said:
        assert KEY not in text
        assert PROMPT not in text
        assert made.secret.rpartition("_")[2] not in text


def errors_of(client: bursar.Client) -> list[str]:
    """What errors say, with all that Python would show of them."""
    said = []
    for wrong in (lambda: client.reserve("", tokens=1), lambda: client.get_reservation("x")):
        try:
            wrong()
        except bursar.BursarError as error:
            said.append("".join(traceback.format_exception(error)))
            said.append(repr(error) + repr(vars(error)))
    assert len(said) == 4
    return said


def test_a_daemon_that_crashes_leaves_no_core(tmp_path: Path) -> None:
    """A core would hold every secret in its memory."""
    if resource.getrlimit(resource.RLIMIT_CORE)[1] == 1:
        pytest.skip("a sidecar ran within this process before, and has given cores up for good")

    class Cored(Daemon):
        def command(self) -> list[str]:
            return ["prlimit", "--core=unlimited", *super().command()]

    with Cored() as daemon:
        assert resource.prlimit(daemon.pid, resource.RLIMIT_CORE) == (1, 1)
        cwd = Path(f"/proc/{daemon.pid}/cwd").readlink()
        there = set(cwd.glob("core*"))
        os.kill(daemon.pid, signal.SIGSEGV)
        assert daemon._process is not None
        ended = daemon._process.wait(20)
        assert ended == -signal.SIGSEGV
        time.sleep(0.2)
        assert set(cwd.glob("core*")) == there
        daemon.kill9()
