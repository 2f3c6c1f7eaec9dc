"""The log in JSON: one object a line, whatever others have chosen."""

import json
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.daemon import Daemon
from support.scraped import Scraped

from bursar._log import say_json, tell_crashes

EVIL = 'x"}\r\n{"level": "info"}\x1b[2J\x00\u2028\u202e\ud800\\'


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err


def test_an_event_has_its_time_its_level_its_words_and_its_fields(
    capsys: pytest.CaptureFixture[str],
) -> None:
    say_json("it is so", level="warning", event="told", count=3, addresses=["a", "b"])
    event = json.loads(said(capsys))
    time_told = event.pop("time")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", time_told)
    assert abs(datetime.fromisoformat(time_told).timestamp() - time.time()) < 60
    fields = {"event": "told", "count": 3, "addresses": ["a", "b"]}
    assert event == {"level": "warning", "message": "it is so", **fields}


@given(text=st.text(), field=st.text())
def test_an_event_is_one_line_whatever_is_in_it(text: str, field: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        lines: list[str] = []
        patch.setattr("sys.stderr", type("Lines", (), {"write": lines.append, "flush": list}))
        say_json(text, account=field)
    [line] = lines
    assert line.isascii()
    assert line[:-1].isprintable()
    assert line[-1] == "\n"
    event = json.loads(line)
    assert (event["message"], event["account"]) == (text, field)


def test_what_is_evil_comes_back_as_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    say_json(EVIL, account=EVIL)
    line = said(capsys)
    assert line.count("\n") == 1
    assert json.loads(line)["account"] == EVIL


def test_what_nobody_caught_is_an_event(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    tell_crashes(say_json)

    def fail() -> None:
        raise ValueError(EVIL)

    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
    event = json.loads(said(capsys))
    assert (event["level"], event["event"]) == ("error", "crash")
    assert EVIL in event["message"]
    assert "in fail" in event["traceback"]


def test_a_daemon_tells_of_its_life_in_json() -> None:
    with Scraped(log={"format": "json"}) as daemon:
        assert daemon.terminate() == 0
        events = daemon.events()
    assert [one["event"] for one in events] == [
        *("recovered", "listening", "listening", "draining", "drained"),
    ]
    assert [one.get("listener") for one in events[1:3]] == ["metrics", "grpc"]
    assert events[2]["addresses"] == [daemon.target]
    assert events[3]["signal"] == "SIGTERM"
    assert all(one["level"] == "info" for one in events)
    times = [datetime.fromisoformat(one["time"]) for one in events]
    assert times == sorted(times)


def test_why_a_daemon_cannot_start_is_told_in_json(tmp_path: Path) -> None:
    config = tmp_path / "bursar.toml"
    config.write_text('[log]\nformat = "json"\n[store]\npath = "/proc/none/ledger.db"\n', "utf-8")
    ran = subprocess.run(
        [sys.executable, "-m", "bursar", "serve", "--config", str(config), "--socket", "s.sock"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ran.returncode != 0
    [event] = [json.loads(line) for line in ran.stderr.splitlines()]
    assert (event["level"], event["event"]) == ("error", "failed")
    assert "/proc/none/ledger.db" in event["message"]


def started(tmp_path: Path, *, sleep_s: float, descriptors: int = 0) -> tuple[int, str]:
    """Starts a daemon with a log in JSON, and interrupts it a while after it has loaded the core.

    Returns its exit code, and what it said. It may have so many descriptors, or any number.
    """
    config = tmp_path / "bursar.toml"
    config.write_text('[log]\nformat = "json"\n[metrics]\nlisten = "127.0.0.1:0"\n', "utf-8")
    command = [sys.executable, "-m", "bursar", "serve", "--config", str(config)]
    command += ["--socket", "s.sock", "--store", "ledger.db"]
    if descriptors:
        command = ["/bin/sh", "-c", f'ulimit -n {descriptors}; exec "$@"', "sh", *command]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        maps = Path(f"/proc/{process.pid}/maps")
        while process.poll() is None and "_core.abi3" not in maps.read_text("utf-8"):
            time.sleep(0.005)
        with suppress(subprocess.TimeoutExpired):
            process.wait(sleep_s)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    return process.returncode, told


@pytest.mark.parametrize("descriptors", range(12, 36, 2))
def test_a_daemon_without_descriptors_says_so_in_one_event(
    tmp_path: Path, descriptors: int
) -> None:
    code, told = started(
        tmp_path, sleep_s=20.0 if descriptors < 20 else 3.0, descriptors=descriptors
    )
    events = [json.loads(line) for line in told.splitlines()]
    assert all(one["event"] not in {"panicked", "crash"} for one in events), told
    if code:
        assert (events[-1]["level"], events[-1]["event"]) == ("error", "failed")
        why = ("Too many open files", "unable to open database file")
        assert any(one in events[-1]["message"] for one in why)


def test_an_interrupt_while_it_starts_ends_it_without_a_word_or_drained(tmp_path: Path) -> None:
    """Python's own start, and that of the package, is not ours to guard."""
    imported = "import time; t = time.monotonic(); import bursar; print(time.monotonic() - t)"
    command = [sys.executable, "-c", imported]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    guarded_s = float(ran.stdout)
    for step in range(8):
        code, told = started(tmp_path, sleep_s=guarded_s + 0.15 * step)
        events = [json.loads(line)["event"] for line in told.splitlines()]
        if code == 0:
            assert events[-1] == "drained", told
        else:
            assert code in {130, -signal.SIGINT}  # which are one to a shell
            assert told == ""


def test_a_hostile_job_stays_in_its_line(tmp_path: Path) -> None:
    """The watchdog tells of a process by the name that it gave itself, and of who stopped it."""
    program = tmp_path / 'x"}\n\x1b[31mevil'
    program.symlink_to("/bin/sleep")
    with Daemon(log={"format": "json"}) as daemon:
        command = [sys.executable, "-m", "bursar", "run", "--target", daemon.target]
        command += ["--account", "acme/a", "--", str(program), "60"]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as job, daemon.client() as client:
            deadline = time.monotonic() + 20
            while not (jobs := client.list_processes().jobs):
                assert time.monotonic() < deadline
                time.sleep(0.05)
            client.kill_process(job=jobs[0].id, reason='because\r\n{"level": "info"}')
            job.wait(20)
            while not any(line["event"] == "incident" for line in events(daemon)):
                assert time.monotonic() < deadline
                time.sleep(0.05)
        told = [one for one in events(daemon) if one["event"] == "incident"]
        assert {one["account"] for one in told} == {"acme/a"}
        assert {one["job"] for one in told} == {jobs[0].id}
        assert any("because\r\n" in one["message"] for one in told)


def events(daemon: Daemon) -> list[dict[str, str]]:
    return [json.loads(line) for line in daemon.log.splitlines()]
