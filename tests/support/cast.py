"""Real processes in known trees, for tests of who is signalled; they sleep until they are ended.

Who descends from whom is what was asked for here, not what /proc says: it is the truth that the
watchdog's own findings are held against.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

from bursar.watchdog import cgroups

OTHER_UID: Final = 65_534
_STAGE: Final = """
import os, shutil, sys
def grow(name, below):
    pid = os.fork()
    if pid:
        return
    os.setsid()
    for child in children.get(name, ()):
        grow(child, name)
    if name in users:
        os.setuid(users[name])
    print(name, os.getpid(), flush=True)
    if name in programs:
        os.execv(programs[name], [programs[name], "600"])
    os.read(0, 1)
    os._exit(0)
children, users, programs = eval(sys.argv[1])
for name in children[""]:
    grow(name, "")
os.read(0, 1)
"""

TREE: Final[dict[str, tuple[str, ...]]] = {
    "": ("a", "b", "group", "mixed", "pod", "stranger"),
    "a": ("a-child", "a-sshd", "a-other-user", "a-served"),
    "a-child": ("a-grandchild",),
    "b": ("b-child",),
    "group": ("group-child", "group-other-user"),
    "mixed": ("mixed-child", "mixed-sshd"),
}
"""Who has which children; those of "" are started by the stage, which is a child of the test."""


PEOPLE: Final = frozenset(name for names in TREE.values() for name in names)


class Cast:
    """The processes, by name; as a context manager all of them end.

    Attributes:
        pids: The pid of each.
        stage: The pid of the process that started them.
        groups: The cgroups that "group" and "mixed" have with their children; empty: none can be
            made here.
    """

    def __init__(self) -> None:
        self.pids: dict[str, int] = {}
        self.groups: dict[str, str] = {}
        self._folder = tempfile.mkdtemp(prefix="bursar-cast-")
        self.is_root = os.getuid() == 0

    def __enter__(self) -> Self:
        programs: dict[str, str] = {}
        for name, program in (("sshd", "sshd"), ("served", "my-server")):
            path = Path(self._folder, program)
            shutil.copy(shutil.which("sleep") or "/bin/sleep", path)
            names = (f"{root}-{name}" for root in ("a", "mixed"))
            programs |= {one: str(path) for one in names if one in PEOPLE}
        others = ("a-other-user", "group-other-user") if self.is_root else ()
        about = repr((TREE, dict.fromkeys(others, OTHER_UID), programs))
        self._stage = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _STAGE, about],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.stage = self._stage.pid
        count = sum(map(len, TREE.values()))
        assert self._stage.stdout is not None
        for _ in range(count):
            who, pid_text = self._stage.stdout.readline().split()
            self.pids[who] = int(pid_text)
        for name, program in programs.items():  # until it is that program, it is Python
            while not Path(f"/proc/{self.pids[name]}/exe").samefile(program):
                time.sleep(0.001)
        self._pidfds = {pid: os.pidfd_open(pid) for pid in self.pids.values()}
        for root in ("group", "mixed"):
            with suppress(OSError):
                self.groups[root] = cgroups.make(root)
                for member in self.below(root):
                    cgroups.add(self.groups[root], self.pids[member])
        return self

    def __exit__(self, *_: object) -> None:
        for pidfd in self._pidfds.values():
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            os.close(pidfd)
        self._stage.kill()
        self._stage.communicate()
        for path in self.groups.values():
            for __ in range(1000):
                if cgroups.remove(path):
                    break
                time.sleep(0.001)
        shutil.rmtree(self._folder)

    def below(self, root: str) -> set[str]:
        """The names of a process and of all that descend from it."""
        return {root}.union(*(self.below(one) for one in TREE.get(root, ())))

    def name_of(self, pid: int) -> str:
        """The name of a process; empty: it is none of these."""
        return next((name for name, one in self.pids.items() if one == pid), "")
