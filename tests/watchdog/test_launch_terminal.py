"""`bursar run` on a terminal: keys reach the command once, and a shell can stop and resume it."""

import fcntl
import os
import select
import shlex
import shutil
import struct
import subprocess
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.jobs import MODES, PATIENCE_S, Runner, Watched, need_cgroups
from support.processes import serving

TRAPS = """
trap 'echo got INT' INT
trap 'echo resumed' CONT
trap 'exit 7' WINCH
echo ready
while :; do read line; done
"""
# It forks nothing: a shell whose vforked child is stopped before its exec does not stop itself.
CTRL_C, CTRL_Z = b"\x03", b"\x1a"


class Terminal:
    """A pseudo-terminal with a session of its own on it."""

    def __init__(self, command: list[str]) -> None:
        self._ours, theirs = os.openpty()
        self.text = ""
        with os.fdopen(theirs, "r+b", buffering=0) as end:
            # setsid -c makes the terminal the controlling one.
            line = ["/usr/bin/env", "setsid", "-c", *command]
            self.process = subprocess.Popen(line, stdin=end, stdout=end, stderr=end)

    def press(self, key: bytes) -> None:
        """Types a key."""
        os.write(self._ours, key)

    def resize(self) -> None:
        """Changes the size, which the kernel tells the foreground group by SIGWINCH."""
        lines = 20 + len(self.text) % 7
        fcntl.ioctl(self._ours, termios.TIOCSWINSZ, struct.pack("HHHH", lines, 80, 0, 0))

    def expect(self, words: str) -> None:
        """Reads until the words are there."""
        deadline = time.monotonic() + PATIENCE_S
        while words not in self.text:
            left_s = deadline - time.monotonic()
            assert left_s > 0, f"{words!r} is not in {self.text!r}"
            if select.select([self._ours], [], [], left_s)[0]:
                self.text += os.read(self._ours, 4096).decode()

    def close(self) -> None:
        """Hangs up; what still runs gets a SIGHUP."""
        os.close(self._ours)
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(PATIENCE_S)


@pytest.fixture(params=MODES)
def line(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[list[str]]:
    if shutil.which("setsid") is None:
        pytest.skip("there is no setsid")
    if request.param == "cgroup":
        need_cgroups()
    with serving(Watched(), f"unix:{tmp_path}/s.sock") as target:
        yield Runner(request.param, target).line(["sh", "-c", TRAPS])


@pytest.fixture
def opened() -> Iterator[list[Terminal]]:
    terminals: list[Terminal] = []
    yield terminals
    for one in terminals:
        one.close()


def test_a_key_reaches_the_command_once(line: list[str], opened: list[Terminal]) -> None:
    opened.append(terminal := Terminal(line))
    terminal.expect("ready\r\n")
    terminal.press(CTRL_C)
    terminal.expect("got INT\r\n")
    terminal.resize()
    assert terminal.process.wait(PATIENCE_S) == 7
    assert terminal.text.count("got INT\r\n") == 1


def test_a_shell_can_stop_and_resume_it(line: list[str], opened: list[Terminal]) -> None:
    script = f"{shlex.join(line)}; echo status $?; fg; echo status $?"
    opened.append(terminal := Terminal(["sh", "-m", "-c", script]))
    terminal.expect("ready\r\n")
    terminal.press(CTRL_Z)
    terminal.expect("status 148")  # 128 and SIGTSTP: the launcher has stopped too
    terminal.expect("resumed\r\n")
    terminal.press(CTRL_C)
    terminal.expect("got INT\r\n")
    terminal.resize()
    terminal.expect("status 7")
    assert terminal.process.wait(PATIENCE_S) == 0
    assert terminal.text.count("got INT\r\n") == 1
