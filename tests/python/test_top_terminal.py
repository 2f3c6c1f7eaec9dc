"""`bursar top` as people start it: on a real pseudo-terminal, and where it cannot run."""

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest
from click.testing import CliRunner
from support.daemon import Daemon

from bursar.cli import cli

PATIENCE_S: Final = 30.0
ESCAPES: Final = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[@-Z\\-_]|[()][0-9A-B])")
LEAVES_THE_SCREEN: Final = "\x1b[?1049l"


class Terminal:
    """A program on a pseudo-terminal of 80 columns and 24 lines."""

    def __init__(self, *command: str, **environment: str) -> None:
        self.raw = ""
        pid, self._fd = pty.fork()
        if pid == 0:
            os.environ.update(environment, TERM="xterm-256color")
            os.execv(command[0], command)  # noqa: S606 -- the program under test
        self.pid = pid
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))

    def type(self, keys: str) -> None:
        """Presses keys."""
        os.write(self._fd, keys.encode())

    def has(self, text: str, *, again: str = "") -> None:
        """Waits until the text was drawn since the last such wait; types `again` meanwhile."""
        deadline = time.monotonic() + PATIENCE_S
        while text not in (shown := ESCAPES.sub("", self.raw)):
            assert time.monotonic() < deadline, f"no {text!r} in\n{shown[-4_000:]}"
            self._read()
            if again:
                time.sleep(0.5)
                self.type(again)
        self.raw = ""

    def _read(self) -> bool:
        if select.select([self._fd], [], [], 0.2)[0]:
            try:
                self.raw += os.read(self._fd, 65_536).decode(errors="replace")
            except OSError:  # its end: nobody has the terminal open any more
                return False
        return True

    def end(self) -> int:
        """The exit code; reads what it writes until then."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            self._read()
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.pid = 0
                return os.waitstatus_to_exitcode(status)
        raise AssertionError(f"it goes on: {self.raw[-2_000:]}")

    def close(self) -> None:
        """Ends what has not ended."""
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self._fd)


@contextmanager
def terminal(*command: str, **environment: str) -> Iterator[Terminal]:
    made = Terminal(*command, **environment)
    try:
        yield made
    finally:
        made.close()


@pytest.mark.timeout(150)
def test_a_person_looks_freezes_and_quits() -> None:
    pytest.importorskip("textual")
    with Daemon() as daemon, daemon.client() as client:
        client.set_budget("acme/agent-7", unit="tokens", limit=1_000)
        client.record("acme/agent-7", tokens=421)
        command = [sys.executable, "-m", "bursar", "top", "acme", "--target", daemon.target]
        with terminal(*command) as screen:
            screen.has("42%")
            screen.type("?")
            screen.has("a threshold")
            screen.type("q")
            screen.type("j")
            screen.has("spent 421 of 1,000")
            screen.type("f")
            screen.has("why, for those")
            screen.type("a loop\r")  # which goes on to the button
            screen.has("FROZEN", again="\r")
            assert client.get_account("acme/agent-7").freeze_reason == "a loop"
            screen.type("q")
            assert screen.end() == 0
            assert LEAVES_THE_SCREEN in screen.raw


@pytest.mark.parametrize("before", ["", "/", "?"])
def test_ctrl_c_quits_wherever_the_focus_is(before: str) -> None:
    pytest.importorskip("textual")
    with Daemon(in_memory=True) as daemon:
        command = [sys.executable, "-m", "bursar", "top", "--target", daemon.target]
        with terminal(*command) as screen:
            screen.has("operator")
            screen.type(before)
            time.sleep(1)
            screen.type("\x03")
            assert screen.end() == 0


@pytest.mark.timeout(150)
def test_without_colour_no_colour_is_sent() -> None:
    pytest.importorskip("textual")
    with Daemon(in_memory=True) as daemon, daemon.client() as client:
        client.set_budget("acme", unit="tokens", limit=1_000)
        command = [sys.executable, "-m", "bursar", "top", "--target", daemon.target]
        with terminal(*command, NO_COLOR="1") as screen:
            while "1,000" not in screen.raw:
                assert screen._read()
            sent = set(re.findall(r"[34]8;2;(\d+);(\d+);(\d+)", screen.raw))
            assert all(max(one) == min(one) for one in sent), "greys only"
            screen.type("q")
            assert screen.end() == 0


def test_without_a_terminal_it_says_what_writes_lines() -> None:
    pytest.importorskip("textual")
    result = CliRunner().invoke(cli, ["top"])
    assert result.exit_code == 2
    assert "bursar top needs a terminal; bursar watch writes lines" in result.stderr


def test_without_textual_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    result = CliRunner().invoke(cli, ["top"])
    assert result.exit_code == 2
    assert "pip install 'bursar-sidecar[top]'" in result.stderr


def test_no_command_but_top_loads_textual() -> None:
    code = "import sys, bursar.cli; sys.exit('textual' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_without_a_sidecar_it_ends_with_4_and_leaves_the_terminal_alone(tmp_path: Path) -> None:
    pytest.importorskip("textual")
    command = [sys.executable, "-m", "bursar", "top", "--target", f"{tmp_path}/none"]
    with terminal(*command) as screen:
        assert screen.end() == 4
        assert "no sidecar answers at unix:" in screen.raw
        assert "\x1b[?1049h" not in screen.raw


def test_an_account_that_is_not_there_ends_it_with_5_and_leaves_the_terminal_alone() -> None:
    pytest.importorskip("textual")
    with Daemon(in_memory=True) as daemon:
        command = [sys.executable, "-m", "bursar", "top", "nope", "--target", daemon.target]
        with terminal(*command) as screen:
            assert screen.end() == 5
            assert 'bursar: no account "nope"' in screen.raw
            assert "\x1b[?1049h" not in screen.raw
