"""What operators see and write: `bursar notify`, the settings, and that no secret is in sight."""

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from support.receivers import SECRET, Hook, Reply, until, webhook
from support.told import Told

import bursar
from bursar.daemon.config import Config, ConfigError
from bursar.exceptions import SidecarUnavailable

HOOK = 'name = "a"\nurl = "https://example.org/x"\nsecret_file = "s"'
COMMAND = 'name = "a"\nrun = ["/bin/true"]'


def problems_of(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        Config.from_dict(tomllib.loads(text))
    return [str(problem) for problem in caught.value.problems]


def webhooks(*rows: str) -> str:
    return "\n".join(f"[[notify.webhooks]]\n{row}" for row in rows)


def commands(row: str) -> str:
    return f"[[notify.commands]]\n{row}"


COMPLAINTS = [
    (webhooks('url = "https://a/"\nsecret_file = "s"'), "notify.webhooks[0].name: missing; what"),
    (webhooks(HOOK.replace('"a"', '"a b"')), "got 'a b'; what messages and `bursar notify` call"),
    (webhooks(HOOK, HOOK), "2 receivers are called a; give each its own name"),
    (webhooks(HOOK) + "\n" + commands(COMMAND), "2 receivers are called a"),
    (webhooks(HOOK.replace("https://", "ftp://")), "that is not an address of http or https"),
    (webhooks(HOOK.replace("https://", "https://u:p@")), "has no user and no fragment"),
    (webhooks(HOOK.replace("example.org", "a b")), "characters that an address does not have"),
    (webhooks(HOOK.replace("example.org", "a:99999")), "notify.webhooks[0].url: its address;"),
    (webhooks(HOOK.replace("https", "http")), "write https://, or plain_http = true"),
    (webhooks(HOOK + '\nsecret_env = "S"'), "write one of secret_file and secret_env"),
    (webhooks(HOOK.replace("secret_file", "ca_file")), "events are signed"),
    (webhooks(HOOK + '\nevents = ["frieze"]'), "there is no event 'frieze'; write some of cross"),
    (webhooks(HOOK + "\nevents = []"), "what it is told of; write names or groups"),
    (webhooks(HOOK + '\naccounts = ["a/**/b"]'), "** may only be the last name"),
    (webhooks(HOOK + '\ntimeout = "10m"'), 'write from "100ms" to "5m"'),
    (webhooks(HOOK + '\nurls = "x"'), "there is no such key; did you mean url?"),
    (commands('name = "a"\nrun = ["true"]'), "the program is not an absolute path"),
    (commands('name = "a"\nrun = "/bin/true"'), "write a list such as"),
    (commands('name = "a"\nrun = []'), "the program and its arguments"),
    (commands('name = "a"\nrun = ["/bin/x", "\\u0000"]'), "an argument has a zero byte"),
    ("[notify]\nmax_backlog = 5", "write an integer from 10 to 100_000"),
    ('[notify]\nsource = "a b"', "that is not a URI"),
]


@pytest.mark.parametrize(("text", "expected"), COMPLAINTS)
def test_what_is_wrong_is_named_with_its_key_and_what_is_right(text: str, expected: str) -> None:
    problems = problems_of(text)
    assert any(expected in problem for problem in problems), problems
    assert "u:p" not in " ".join(problems), "what may be a secret is not shown"


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "localhost"])
def test_plain_http_is_for_this_host_or_for_who_says_so(host: str) -> None:
    here = webhooks(HOOK.replace("https://example.org", f"http://{host}:8080"))
    there = webhooks(HOOK.replace("https", "http") + "\nplain_http = true")
    for text in (here, there):
        assert Config.from_dict(tomllib.loads(text)).notify.webhooks


def refused_start(*rows: dict[str, Any], **about: Any) -> str:
    """What a daemon says that does not start."""
    daemon = Told(*rows, **about)
    try:
        with pytest.raises(SidecarUnavailable) as caught:
            daemon.start()
    finally:
        daemon._clean_up()
    return str(caught.value)


def test_what_is_not_there_on_this_host_is_named_at_the_start(tmp_path: Path) -> None:
    row = webhook(tmp_path, "https://127.0.0.1:1/")
    missing = row | {"secret_file": str(tmp_path / "none")}
    assert "notify.webhooks (hook): " in (said := refused_start(missing))
    assert "none cannot be read: No such file or directory" in said
    (tmp_path / "short").write_text("whsec_c2VjcmV0LXNlY3JldA==", encoding="ascii")
    said = refused_start(row | {"secret_file": str(tmp_path / "short")})
    assert "has a secret that is none; write" in said
    assert "c2VjcmV0" not in said
    unset = {key: one for key, one in row.items() if key != "secret_file"}
    said = refused_start(unset | {"secret_env": "BURSAR_TEST_NOT_SET"})
    assert "the environment variable BURSAR_TEST_NOT_SET has no secret" in said
    (tmp_path / "not.crt").write_text("no certificate", encoding="ascii")
    said = refused_start(row | {"ca_file": str(tmp_path / "not.crt")})
    assert "not.crt cannot be used" in said
    run = {"name": "x", "run": [str(tmp_path / "nothing")]}
    assert "is not a program that the sidecar may start" in refused_start(commands=[run])


def test_list_says_how_it_stands_with_each(tmp_path: Path) -> None:
    with Hook() as good, Hook(Reply(500)) as bad:
        rows = [webhook(tmp_path, good, "good"), webhook(tmp_path, bad, "bad")]
        run = {"name": "run", "run": ["/bin/true"]}
        with Told(*rows, commands=[run]) as daemon, daemon.client() as client:
            new = listed(daemon)
            client.freeze("acme")
            until(lambda: daemon.rows()["bad"].failures, "the bad one was tried")
            until(lambda: daemon.rows()["good"].told, "the good one is told")
            until(lambda: daemon.rows()["run"].told, "the command has run")
            found = listed(daemon)
            shown = daemon.notify("list", "--store", str(daemon.store_path)).stdout
            daemon.terminate()
            assert listed(daemon)["good"] == found["good"], "also while no sidecar runs"
    assert {one["state"] for one in new.values()} == {"new"}
    states = {name: (one["state"], one["waiting"]) for name, one in found.items()}
    assert states == {"good": ("ok", 0), "bad": ("failing", 1), "run": ("ok", 0)}
    lines = {line.split()[0]: line for line in shown.splitlines()}
    assert lines["bad"].endswith("answered 500")
    assert lines["good"].split()[1:5] == ["webhook", "ok", "0", "1"]
    assert lines["run"].split()[1] == "command"


def listed(daemon: Told) -> dict[str, dict[str, Any]]:
    found = daemon.notify("list", "--store", str(daemon.store_path), "--json")
    assert found.returncode == 0, found.stderr
    return {one["name"]: one for one in json.loads(found.stdout)}


def test_test_sends_a_sample_and_says_what_comes_back(tmp_path: Path) -> None:
    run = {"name": "run", "run": ["/bin/sh", "-c", "cat >&2; exit 3"]}
    with Hook() as hook:
        daemon = Told(webhook(tmp_path, hook), commands=[run])
        try:
            taken = daemon.notify("test", "hook")
            assert (taken.returncode, taken.stdout[:29]) == (0, "hook took it: answered 204\naf")
            [event] = [one.verified() for one in hook.requests]
            assert event["type"] == "bursar.test"
            hook.reply = Reply(302, {"location": "http://127.0.0.1:1/"})
            answer = daemon.notify("test", "hook", "--json")
            assert answer.returncode == 1
            assert json.loads(answer.stdout)["answer"] == "away"
            ran = daemon.notify("test", "run")
            assert ran.returncode == 1
            assert 'DID NOT take it: ended with 3: {"specversion":"1.0"' in ran.stdout
            unknown = daemon.notify("test", "nobody")
            assert unknown.returncode == 2
            assert "there is no receiver nobody; the configuration has: hook, run" in unknown.stderr
        finally:
            daemon._clean_up()


def test_no_secret_is_in_a_log_a_file_or_a_command_line(tmp_path: Path) -> None:
    secret, path_secret = SECRET.removeprefix("whsec_"), "T0K3N-in-the-path"
    with Hook(Reply(401)) as hook:
        row = webhook(tmp_path, hook.url + "/" + path_secret)
        with Told(row) as daemon, daemon.client() as client:
            client.freeze("acme", reason="x\r\nx-forged: 1\x1b[31m")
            until(lambda: daemon.rows()["hook"].failures, "an attempt")
            command = Path(f"/proc/{daemon.pid}/cmdline").read_bytes().decode()
            shown = daemon.notify("list", "--store", str(daemon.store_path), "--json")
            kept = [one for one in daemon.folder.iterdir() if one != daemon.config_path]
            content = b"".join(one.read_bytes() for one in kept if one.is_file())
            log = daemon.log
            modes = {one.name: one.stat().st_mode & 0o77 for one in kept if "notify" in one.name}
    for text in (command, shown.stdout, shown.stderr, log, content.decode("latin-1")):
        assert secret not in text
        assert path_secret not in text
    assert set(modes.values()) == {0}, modes
    [request, *_] = hook.requests
    assert "x-forged" not in request.headers
    assert request.verified()["data"]["reason"] == "x\r\nx-forged: 1\x1b[31m"
    assert "\x1b" not in log


def test_hostile_names_reach_neither_the_ledger_nor_a_receiver(tmp_path: Path) -> None:
    with Hook() as hook, Told(webhook(tmp_path, hook)) as daemon, daemon.client() as client:
        for name in ("a\r\nx: y", "a\0b", "a b", "$(id)", "../a", "é"):
            with pytest.raises(bursar.InvalidRequest):
                client.freeze(name)
        client.freeze("honest")
        hook.saw(1)
    assert [one["subject"] for one in hook.events] == ["honest"]
