"""Commands: what they are given, what they are not, and that nothing of them is left behind."""

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from support.receivers import until
from support.told import CROSSINGS, Told

from bursar.notify.command import Command
from bursar.notify.events import Selection, Waiting, expand
from bursar.notify.outcomes import Answer, Outcome

EVERYTHING = Selection(expand(["*"]), ("**",))
WAITING = Waiting(7, "id-7", "freeze", "acme/a", b'{"a": 1}')


def program(folder: Path, text: str, name: str = "program") -> str:
    """Writes a Python program that can be started."""
    path = folder / name
    path.write_text(f"#!{sys.executable}\n{text}\n", encoding="utf-8")
    path.chmod(0o700)
    return str(path)


def told(*run: str, timeout_s: float = 30, stop: threading.Event | None = None) -> Outcome:
    command = Command("command", run, EVERYTHING, timeout_s)
    return command.deliver(WAITING, stop or threading.Event())


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in {"Z", "X"}


def test_it_gets_the_event_a_few_variables_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BURSAR_HOOK_SECRET", "do not tell")
    kept = os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(kept, True)
    run = program(
        tmp_path,
        "import json, os, sys\n"
        "status = open('/proc/self/status').read()\n"
        "ambient = next(l.split()[1] for l in status.splitlines() if l.startswith('CapAmb'))\n"
        "said = {'argv': sys.argv[1:], 'env': dict(os.environ), 'in': sys.stdin.read(),\n"
        "        'fds': os.listdir('/proc/self/fd'), 'cwd': os.getcwd(), 'amb': ambient}\n"
        f"json.dump(said, open({str(tmp_path / 'said')!r}, 'w'))",
    )
    try:
        outcome = told(run, "a b", "$(touch x)", "; true")
    finally:
        os.close(kept)
    assert outcome == Outcome(Answer.TAKEN, "ended with 0")
    said = json.loads((tmp_path / "said").read_text(encoding="utf-8"))
    assert said["argv"] == ["a b", "$(touch x)", "; true"]
    assert json.loads(said["in"]) == {"a": 1}
    own = {key: value for key, value in said["env"].items() if key != "LC_CTYPE"}  # Python's own
    assert own == {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "BURSAR_EVENT_ID": "id-7",
        "BURSAR_EVENT": "freeze",
        "BURSAR_ACCOUNT": "acme/a",
    }
    assert said["cwd"] == "/"
    assert int(said["amb"], 16) == 0
    assert str(kept) not in said["fds"]


def test_its_exit_code_decides_and_what_it_says_is_told(tmp_path: Path) -> None:
    failing = program(tmp_path, "import sys; sys.exit('no such mailbox')")
    assert told(failing) == Outcome(Answer.REFUSED, "ended with 1: no such mailbox")
    dying = program(tmp_path, "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    assert told(dying).detail == "was ended by SIGSEGV"
    missing = told(str(tmp_path / "nothing"))
    assert missing.answer is Answer.AWAY
    assert missing.detail == "it cannot be started: No such file or directory"


def test_however_much_it_says_it_is_not_held_up_and_little_is_kept(tmp_path: Path) -> None:
    loud = program(
        tmp_path,
        "import sys\nfor _ in range(200):\n"
        "    sys.stdout.write('o' * 50_000); sys.stderr.write('e' * 50_000)\nsys.exit(3)",
    )
    outcome = told(loud)
    assert outcome.detail == f"ended with 3: {'e' * 400}"


GRANDCHILD = """
import os, sys, time, signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    if os.fork() == 0:
        open({pids!r}, "a").write(f"{{os.getpid()}}\\n")
        time.sleep(600)
    open({pids!r}, "a").write(f"{{os.getpid()}}\\n")
    time.sleep(600)
open({pids!r}, "a").write(f"{{os.getpid()}}\\n")
while open({pids!r}).read().count("\\n") < 3: time.sleep(0.01)
{end}
"""


@pytest.mark.parametrize(
    ("end", "answer"), [("time.sleep(600)", Answer.REFUSED), ("", Answer.TAKEN)]
)
def test_its_grandchildren_end_with_it(tmp_path: Path, end: str, answer: Answer) -> None:
    pids = tmp_path / "pids"
    run = program(tmp_path, GRANDCHILD.format(pids=str(pids), end=end))
    began_s = time.monotonic()
    outcome = told(run, timeout_s=15 if end else 30)
    assert outcome.answer is answer
    assert time.monotonic() - began_s < 40
    found = [int(line) for line in pids.read_text(encoding="ascii").split()]
    assert len(found) == 3
    until(lambda: not any(map(is_alive, found)), f"{found} have ended")


def test_a_drain_ends_it_at_once_and_it_is_told_again_later(tmp_path: Path) -> None:
    stop = threading.Event()
    threading.Timer(0.5, stop.set).start()
    began_s = time.monotonic()
    outcome = told(program(tmp_path, "import time; time.sleep(600)"), stop=stop)
    assert outcome == Outcome(Answer.AWAY, "its process group was killed: the sidecar drains")
    assert time.monotonic() - began_s < 10


def command(run: list[str], **about: Any) -> dict[str, Any]:
    return {"name": "command", "run": run, **about}


def test_a_daemon_starts_it_for_each_event_in_order_and_again_after_a_kill(tmp_path: Path) -> None:
    said, hold = tmp_path / "said", tmp_path / "hold"
    hold.touch()
    run = program(
        tmp_path,
        "import json, os, sys, time\n"
        f"while os.path.exists({str(hold)!r}): time.sleep(0.05)\n"
        f"open({str(said)!r}, 'a').write(json.dumps(json.load(sys.stdin)) + '\\n')",
    )
    with Told(commands=[command([run])]) as daemon:
        with daemon.client() as client:
            client.record("acme", tokens=1_000)
        until(lambda: daemon.rows()["command"].waiting == 3, "three wait")
        daemon.kill9()
        daemon.start()
        hold.unlink()
        until(lambda: not daemon.rows()["command"].waiting, "all is told")
        log = daemon.log
    events = [json.loads(line) for line in said.read_text(encoding="utf-8").splitlines()]
    names = list(dict.fromkeys(one["type"].removeprefix("bursar.") for one in events))
    assert names == CROSSINGS
    assert "Traceback" not in log
