"""`bursar watch` against a real sidecar: its lines, its ends, and the sidecar's absences."""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import pytest
from support.daemon import Daemon

import bursar
from bursar.cli.watch import _words

PATIENCE_S: Final = 20.0


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with Daemon() as made:
        yield made


class Watching:
    """A `bursar watch` in a process of its own."""

    def __init__(self, daemon: Daemon, *arguments: str) -> None:
        line = [sys.executable, "-m", "bursar", "watch", *arguments, "--interval", "50ms"]
        self.process = subprocess.Popen(
            [*line, "--target", daemon.target],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def line(self) -> str:
        """The next line, which must come while the process goes on."""
        stdout = self.process.stdout
        assert stdout is not None
        assert select.select([stdout], [], [], PATIENCE_S)[0], "no line came"
        return os.read(stdout.fileno(), 65_536).decode()

    def end(self) -> tuple[int, str, str]:
        """Its exit code and what else it wrote."""
        stdout, stderr = self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode, stdout.decode(), stderr.decode()


@contextmanager
def watching(daemon: Daemon, *arguments: str) -> Iterator[Watching]:
    watch = Watching(daemon, *arguments)
    try:
        yield watch
    finally:
        watch.process.kill()
        watch.process.communicate()


def parsed(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_each_change_is_a_line_at_once_and_the_exit_code_tells_that_the_end_is_reached(
    daemon: Daemon,
) -> None:
    with daemon.client() as client:
        warn = bursar.Threshold(500, bursar.Verdict.WARN)
        client.set_budget("a/x", unit="tokens", limit=100, thresholds=[warn])
        client.set_budget("a/x", unit="calls", limit=10)
        with watching(daemon, "a/x", "--json", "--unit", "tokens", "--until", "warn") as watch:
            [first] = parsed(watch.line())
            assert (first["verdict"], first["unit"], first["remaining"]) == ("OK", "tokens", 100)
            client.record("a/x", tokens=20)
            [second] = parsed(watch.line())
            assert (second["spent"], second["limit"], second["held"]) == (20, 100, 0)
            client.record("a/x/below", amounts={"tokens": 1, "calls": 1})
            client.record("a/x", tokens=30)
            code, rest, errors = watch.end()
    assert (code, errors) == (0, "")
    assert (parsed(rest)[-1]["verdict"], parsed(rest)[-1]["spent"]) == ("WARN", 51)
    assert {line["unit"] for line in parsed(rest)} == {"tokens"}


@pytest.mark.parametrize("until", ["degrade", "stop", "exhausted"])
def test_it_ends_at_once_where_that_is_reached_already(daemon: Daemon, until: str) -> None:
    with daemon.client() as client:
        client.set_budget(f"b/{until}", unit="tokens", limit=100)
        client.record(f"b/{until}", tokens=100)
    with watching(daemon, f"b/{until}", "--until", until) as watch:
        code, text, errors = watch.end()
    assert (code, errors) == (0, "")
    assert f"b/{until}  OK  tokens/total  spent 100 of 100  held 0  remaining 0  100%" in text


def test_what_an_ancestor_stops_is_a_change_and_so_is_a_freeze(daemon: Daemon) -> None:
    with daemon.client() as client:
        client.set_budget("c/x", unit="tokens", limit=100)
        with watching(daemon, "c/x") as watch:
            assert "c/x  OK  tokens/total" in watch.line()
            client.freeze("c")
            assert "c/x  STOP  FROZEN  tokens/total" in watch.line()


def test_an_account_without_budgets_has_a_line_too(daemon: Daemon) -> None:
    with daemon.client() as client:
        client.record("d/x", tokens=1)
        with watching(daemon, "d/x") as watch:
            assert watch.line().rstrip().endswith("d/x  OK  no budget of its own")


def test_a_unit_without_a_budget_is_told_and_waiting_for_its_end_is_refused(daemon: Daemon) -> None:
    with daemon.client() as client:
        client.set_budget("d/y", unit="tokens", limit=100)
        client.record("d/z", tokens=1)
    with watching(daemon, "d/y", "--unit", "gpu_ms") as watch:
        assert watch.line().rstrip().endswith("d/y  OK  no budget in gpu_ms")
    with watching(daemon, "d/y", "--unit", "gpu_ms", "--until", "exhausted") as watch:
        refused = "bursar: d/y has no budget in gpu_ms that could be exhausted\n"
        assert watch.end() == (2, "", refused)
    with watching(daemon, "d/z", "--until", "exhausted") as watch:
        refused = "bursar: d/z has no budget of its own that could be exhausted\n"
        assert watch.end() == (2, "", refused)


def test_a_line_says_how_fast_it_burns_and_when_it_ends() -> None:
    line = {
        "time": None,
        "account": "a",
        "verdict": bursar.Verdict.OK,
        "stopped": False,
        "unit": "tokens",
        "period": "total",
        "limit": 1_000,
        "spent": 400,
        "held": 0,
        "remaining": 600,
        "rate_per_s": 10.0,
        "exhausted_in_s": 60,
    }
    assert _words(line, None).endswith("  40%  burns 10/s  empty in 1 min")
    assert _words(line | {"rate_per_s": 0.0, "exhausted_in_s": None}, None).endswith("  40%")


def test_no_account_and_one_that_retires_end_with_5(daemon: Daemon) -> None:
    with watching(daemon, "none/at\x1b[31mall") as watch:
        code, text, errors = watch.end()
    assert (code, text) == (2, ""), errors  # no account has such a name
    with watching(daemon, "none/at-all") as watch:
        code, text, errors = watch.end()
    assert (code, text, errors) == (5, "", "bursar: there is no account none/at-all\n")
    with daemon.client() as client:
        client.set_budget("e/x", unit="tokens", limit=100)
        with watching(daemon, "e/x") as watch:
            watch.line()
            client.retire_account("e/x")
            code, text, errors = watch.end()
    assert (code, text, errors) == (5, "", "bursar: e/x has retired\n")


def test_ctrl_c_ends_it_with_130_and_without_a_word(daemon: Daemon) -> None:
    with daemon.client() as client:
        client.set_budget("f/x", unit="tokens", limit=100)
    with watching(daemon, "f/x") as watch:
        watch.line()
        watch.process.send_signal(signal.SIGINT)
        assert watch.end() == (130, "", "")


@pytest.mark.parametrize("writes", [True, False])
def test_it_ends_with_141_when_nobody_reads_any_more_also_while_nothing_changes(
    daemon: Daemon,
    writes: bool,  # noqa: FBT001 -- from parametrize
) -> None:
    with daemon.client() as client:
        client.set_budget("g/x", unit="tokens", limit=10_000)
        with watching(daemon, "g/x") as watch:
            watch.line()
            assert watch.process.stdout is not None
            watch.process.stdout.close()
            if writes:
                client.record("g/x", tokens=1)
            code = watch.process.wait(PATIENCE_S)
            assert watch.process.stderr is not None
            assert (code, watch.process.stderr.read()) == (141, b"")


def test_it_waits_for_a_sidecar_that_is_away_and_goes_on_where_it_was() -> None:
    with Daemon() as daemon:
        with daemon.client() as client:
            client.set_budget("h/x", unit="tokens", limit=100)
            client.record("h/x", tokens=10)
        with watching(daemon, "h/x", "--json", "--wait", "60s") as watch:
            assert parsed(watch.line())[0]["spent"] == 10
            daemon.kill9()
            time.sleep(1)
            daemon.start()
            with daemon.client() as client:
                client.record("h/x", tokens=5)
            assert parsed(watch.line())[-1]["spent"] == 15
            watch.process.send_signal(signal.SIGINT)
            code, _, errors = watch.end()
            assert code == 130
            said, back = errors.splitlines()
            assert said.startswith("bursar: ")
            assert said.endswith("; waiting")
            assert back == "bursar: the sidecar is back"


def test_it_fails_with_4_when_the_sidecar_is_away_for_longer_than_it_may_be() -> None:
    with Daemon() as daemon:
        with daemon.client() as client:
            client.set_budget("h/x", unit="tokens", limit=100)
        with (
            watching(daemon, "h/x", "--wait", "1s") as watch,
            watching(daemon, "h/x", "--wait", "0s") as impatient,
        ):
            watch.line()
            impatient.line()
            daemon.kill9()
            assert impatient.end()[0] == 4
            assert watch.end()[0] == 4


@pytest.mark.parametrize("options", [["--interval", "1ms"], ["--wait", "soon"], ["--until", "x"]])
def test_wrong_options_end_with_2(daemon: Daemon, options: list[str]) -> None:
    line = [sys.executable, "-m", "bursar", "watch", "x", "--target", daemon.target, *options]
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 2
    assert options[0] in done.stderr
