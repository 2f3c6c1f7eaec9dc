"""`bursar run` against a sidecar of our own making: what it starts, passes on, and leaves."""

import os
import shlex
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.jobs import (
    MODES,
    PATIENCE_S,
    Runner,
    Watched,
    alive,
    arguments,
    end,
    eventually,
    need_cgroups,
    parent,
    state,
)
from support.processes import GIB, incident, serving

from bursar.v1 import process_pb2 as pr
from bursar.watchdog import cgroups

TRAPS = """
for one in INT HUP QUIT USR1 USR2 TERM; do trap "echo got $one" $one; done
trap 'exit 7' WINCH
echo ready
while :; do sleep 0.02; done
"""
SIGNALS = (1 << 31) - 1  # without those of the C library, which nobody can set and make ignores
NO_CGROUP = (
    "bursar: no cgroup could be made (as asked for): "
    "children that leave are found by their descent only"
)


@pytest.fixture
def sidecar() -> Watched:
    return Watched()


@pytest.fixture
def target(tmp_path: Path, sidecar: Watched) -> Iterator[str]:
    with serving(sidecar, f"unix:{tmp_path}/s.sock") as address:
        yield address


@pytest.fixture(params=MODES)
def runner(request: pytest.FixtureRequest, target: str) -> Iterator[Runner]:
    if request.param == "cgroup":
        need_cgroups()
    made = Runner(request.param, target)
    yield made
    made.clean_up()


@pytest.fixture
def in_cgroup(target: str) -> Iterator[Runner]:
    need_cgroups()
    made = Runner("cgroup", target)
    yield made
    made.clean_up()


@pytest.fixture
def by_descent(target: str) -> Iterator[Runner]:
    made = Runner("descent", target)
    yield made
    made.clean_up()


def folder(group: str) -> Path:
    mounted = cgroups.mount_point()
    assert mounted is not None
    return mounted / group[1:]


def nothing_is_left(sidecar: Watched) -> None:
    """Neither the process that was registered, nor its group."""
    assert state(sidecar.registered.pid) == ""
    if sidecar.registered.cgroup:
        assert not folder(sidecar.registered.cgroup).exists()


@pytest.mark.parametrize("code", [0, 7, 255])
def test_the_exit_code_is_the_commands_own(runner: Runner, sidecar: Watched, code: int) -> None:
    assert runner.run("sh", "-c", f"exit {code}").returncode == code
    nothing_is_left(sidecar)


def test_a_command_that_a_signal_ends_counts_as_128_and_the_signal(runner: Runner) -> None:
    assert runner.run("sh", "-c", "kill -KILL $$").returncode == 128 + signal.SIGKILL
    assert runner.run("sh", "-c", "kill -PIPE $$").returncode == 128 + signal.SIGPIPE


def test_the_command_finds_its_job_in_the_environment(runner: Runner) -> None:
    command = ("sh", "-c", "echo $BURSAR_ACCOUNT $BURSAR_JOB $BURSAR_TARGET $OTHER")
    ended = runner.run(*command, env={**os.environ, "OTHER": "x"})
    assert ended.stdout == f"acme/x/j1 j1 {runner.target} x\n"


def test_input_and_output_are_the_commands(runner: Runner, tmp_path: Path) -> None:
    (tmp_path / "in").write_text("said\n", encoding="utf-8")
    with (tmp_path / "in").open(encoding="utf-8") as told:
        assert runner.run("cat", stdin=told).stdout == "said\n"


def test_signals_are_as_any_command_expects_them(runner: Runner) -> None:
    lines = runner.run("grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status").stdout.splitlines()
    assert [int(line.split()[1], 16) & SIGNALS for line in lines] == [0, 0]


def test_a_hangup_that_is_ignored_stays_ignored(runner: Runner) -> None:
    line = shlex.join(runner.line(["grep", "^SigIgn", "/proc/self/status"]))
    ended = subprocess.run(
        ["/bin/sh", "-c", f"trap '' HUP; exec {line}"],  # as nohup does it
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE_S,
    )
    assert int(ended.stdout.split()[1], 16) & SIGNALS == 1 << (signal.SIGHUP - 1)


def test_the_process_is_registered_before_it_becomes_the_command(
    runner: Runner, sidecar: Watched
) -> None:
    seen: list[list[str]] = []

    def look(request: pr.RegisterProcessRequest) -> None:
        seen.append(arguments(request.pid))
        if request.cgroup:
            cgroups.check_job_group(request.cgroup, request.pid)

    sidecar.meanwhile = look
    options = ["--name", "train-1", "--limit", "usd=5", "--limit", "tokens=10_000", "--observe"]
    options += ["--vram", "8GiB", "--gpu-time", "15m", "--wall", "1h", "--grace", "2500ms"]
    ended = runner.run("sleep", "0", options=options)
    assert (ended.returncode, sidecar.registered.name) == (0, "train-1")
    assert "sleep" in seen[0]
    assert "run" in seen[0], "it had become the command already"
    request = sidecar.registered
    limits = {one.unit: one.value for one in request.limits}
    assert limits == {
        "usd_nanos": 5 * 10**9,
        "tokens": 10_000,
        "vram_bytes": 8 * GIB,
        "gpu_ms": 900_000,
    }
    assert (request.account, request.enforce) == ("acme/x", False)
    assert request.wall_limit.ToMilliseconds() == 3_600_000
    assert request.term_grace.ToMilliseconds() == 2_500
    assert bool(request.cgroup) == (runner.mode == "cgroup")


def test_a_job_is_called_after_its_command_and_enforced(runner: Runner, sidecar: Watched) -> None:
    assert runner.run("/bin/sleep", "0").returncode == 0
    assert (sidecar.registered.name, sidecar.registered.enforce) == ("sleep", True)
    assert not sidecar.registered.HasField("term_grace")


def test_what_is_refused_does_not_run(runner: Runner, sidecar: Watched, tmp_path: Path) -> None:
    refusal = pr.RegisterProcessResponse(verdict="VERDICT_STOP")
    refusal.refusal.account, refusal.refusal.unit = "acme", "vram_bytes"
    refusal.refusal.shortfall = 7
    sidecar.answers["RegisterProcess"] = [refusal]
    ended = runner.run("touch", str(tmp_path / "ran"))
    assert ended.returncode == 3
    assert "bursar: acme is short of 7 vram_bytes" in ended.stderr
    assert not (tmp_path / "ran").exists()
    nothing_is_left(sidecar)


@pytest.mark.parametrize("mode", MODES)
def test_without_a_sidecar_nothing_runs(tmp_path: Path, mode: str) -> None:
    runner = Runner(mode, f"unix:{tmp_path}/none.sock")
    ended = runner.run("touch", str(tmp_path / "ran"), options=("--name", "unreachable-sidecar"))
    assert ended.returncode == 4
    assert "no sidecar answers" in ended.stderr
    assert not (tmp_path / "ran").exists()
    if mounted := cgroups.mount_point():
        own = cgroups.path_of(os.getpid()) or "/"
        assert list((mounted / own[1:]).glob("bursar-unreachable-sidecar-*")) == []


def test_a_command_that_is_missing_or_no_program_is_told_apart(
    runner: Runner, sidecar: Watched, tmp_path: Path
) -> None:
    (tmp_path / "text").write_text("text", encoding="utf-8")
    for command, code, why in [
        ("no-such-command", 127, "No such file or directory"),
        (f"{tmp_path}/text/below", 127, "No such file or directory"),
        (f"{tmp_path}/text", 126, "Permission denied"),
    ]:
        ended = runner.run(command)
        assert ended.returncode == code
        assert ended.stderr.splitlines()[-1] == f"bursar: cannot run {command}: {why}"
        nothing_is_left(sidecar)
        sidecar.requests.clear()


@pytest.mark.parametrize("closed", ["2>&-", "2>/dev/full"])
def test_nobody_has_to_listen_to_it(runner: Runner, sidecar: Watched, closed: str) -> None:
    line = shlex.join(runner.line(["/bin/sh", "-c", "setsid sleep 1 & exit 7"]))
    ended = subprocess.run(["/bin/sh", "-c", f"{line} {closed}"], check=False, timeout=PATIENCE_S)
    assert ended.returncode == 7
    if group := sidecar.registered.cgroup:
        eventually(lambda: cgroups.remove(group), "the end of what it left")


@pytest.mark.parametrize("number", ["INT", "HUP", "QUIT", "USR1", "USR2", "TERM"])
def test_a_signal_is_passed_on_once(runner: Runner, number: str) -> None:
    process = runner.start("sh", "-c", TRAPS)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(getattr(signal, f"SIG{number}"))
    assert process.stdout.readline() == f"got {number}\n"
    process.send_signal(signal.SIGWINCH)
    assert process.wait(PATIENCE_S) == 7
    assert process.stdout.read() == ""


def test_a_signal_that_comes_before_the_start_leaves_it_at_that(
    runner: Runner, sidecar: Watched, tmp_path: Path
) -> None:
    asked, go = threading.Event(), threading.Event()

    def wait(_: pr.RegisterProcessRequest) -> None:
        asked.set()
        go.wait(PATIENCE_S)

    sidecar.meanwhile = wait
    process = runner.start("touch", str(tmp_path / "ran"))
    assert asked.wait(PATIENCE_S)
    process.send_signal(signal.SIGINT)
    go.set()
    assert process.wait(PATIENCE_S) == 128 + signal.SIGINT
    assert not (tmp_path / "ran").exists()
    nothing_is_left(sidecar)


def test_a_launcher_that_is_killed_before_the_start_starts_nothing(
    runner: Runner, sidecar: Watched, tmp_path: Path
) -> None:
    asked, go = threading.Event(), threading.Event()

    def wait(_: pr.RegisterProcessRequest) -> None:
        asked.set()
        go.wait(PATIENCE_S)

    sidecar.meanwhile = wait
    process = runner.start("touch", str(tmp_path / "ran"))
    assert asked.wait(PATIENCE_S)
    process.kill()
    process.wait(PATIENCE_S)
    go.set()
    eventually(lambda: sidecar.requests, "the request")
    eventually(lambda: not alive(sidecar.registered.pid), "the end of the child")
    assert not (tmp_path / "ran").exists()
    if group := sidecar.registered.cgroup:
        assert cgroups.remove(group), "the daemon can tidy up after it"


def test_a_launcher_that_is_killed_leaves_the_job_to_the_daemon(
    runner: Runner, sidecar: Watched
) -> None:
    process = runner.start("sh", "-c", "echo $$; exec sleep 60")
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    process.kill()
    process.wait(PATIENCE_S)
    assert alive(pid)
    request = sidecar.registered
    if runner.mode == "cgroup":
        assert cgroups.members(request.cgroup) == [pid]
        cgroups.kill(request.cgroup)
        eventually(lambda: cgroups.remove(request.cgroup), "the end of the group")
    else:
        assert parent(pid) == request.pid
        end(pid)
        eventually(lambda: not alive(request.pid), "the end of the process that kept it")


def test_members_that_are_left_in_the_group_go_on(in_cgroup: Runner, sidecar: Watched) -> None:
    leave_two = "for one in 1 2; do setsid sleep 60 >/dev/null 2>&1 & done; exit 3"
    ended = in_cgroup.run("sh", "-c", leave_two)
    assert ended.returncode == 3
    assert ended.stderr == "bursar: 2 processes of the job go on, under its limits\n"
    group = sidecar.registered.cgroup
    assert len(cgroups.members(group)) == 2
    cgroups.kill(group)
    eventually(lambda: cgroups.remove(group), "the end of the group")


def test_a_job_within_a_job_has_a_group_within_its_group(
    in_cgroup: Runner, sidecar: Watched
) -> None:
    ended = in_cgroup.run(*in_cgroup.line(["grep", "^0::", "/proc/self/cgroup"]))
    assert (ended.returncode, ended.stderr) == (0, "")
    asked = [one for one in sidecar.requests if isinstance(one, pr.RegisterProcessRequest)]
    [outer, inner] = [one.cgroup for one in asked]
    assert inner.startswith(f"{outer}/bursar-grep-")
    assert ended.stdout == f"0::{inner}\n"
    assert not folder(outer).exists()


def test_without_a_group_it_says_so_and_waits_for_those_that_left(
    by_descent: Runner, sidecar: Watched
) -> None:
    # A daemon by the book: its own session, and its parent ends at once.
    daemon = "setsid sh -c 'sleep 1; grep PPid: /proc/$$/status; echo late' &"
    ended = by_descent.run("sh", "-c", f"({daemon}); exit 3")
    assert ended.returncode == 3
    [_, adopted, late] = ended.stdout.split()
    assert (int(adopted), late) == (sidecar.registered.pid, "late")
    assert ended.stderr.splitlines() == [
        NO_CGROUP,
        "bursar: the command has ended; processes that it left go on, and are waited for",
    ]
    nothing_is_left(sidecar)


def test_children_that_lost_their_parent_do_not_stay_zombies(
    by_descent: Runner, sidecar: Watched
) -> None:
    spawn = "for one in 1 2 3 4 5; do (true & true &); done; echo spawned; exec sleep 60"
    process = by_descent.start("sh", "-c", spawn)
    assert process.stdout is not None
    assert process.stdout.readline() == "spawned\n"
    keeper = sidecar.registered.pid
    children = Path(f"/proc/{keeper}/task/{keeper}/children")
    if not children.exists():
        pytest.skip("this kernel does not list children")
    eventually(lambda: len(children.read_text(encoding="ascii").split()) == 1, "only the command")
    process.terminate()
    assert process.wait(PATIENCE_S) == 128 + signal.SIGTERM
    nothing_is_left(sidecar)


def test_a_signal_after_the_command_reaches_those_that_left(by_descent: Runner) -> None:
    process = by_descent.start("sh", "-c", "setsid sh -c 'echo up; exec sleep 60' & exit 5")
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == "up\n"
    assert "no cgroup" in process.stderr.readline()
    assert "go on, and are waited for" in process.stderr.readline()
    process.terminate()
    assert process.wait(PATIENCE_S) == 5


def test_only_the_launcher_speaks_through_the_process_that_keeps_the_command(
    by_descent: Runner, sidecar: Watched
) -> None:
    # The watchdog signals every process of a job, the command too; it must not get two.
    process = by_descent.start("sh", "-c", TRAPS)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    os.kill(sidecar.registered.pid, signal.SIGTERM)
    process.send_signal(signal.SIGUSR1)
    assert process.stdout.readline() == "got USR1\n"
    process.send_signal(signal.SIGWINCH)
    assert process.wait(PATIENCE_S) == 7
    assert process.stdout.read() == ""


def test_why_it_was_stopped_is_told_once_that_is_over(runner: Runner, sidecar: Watched) -> None:
    answers = [pr.ListIncidentsResponse(incidents=[incident(count)]) for count in (2, 3, 4)]
    sidecar.answers["ListIncidents"] = list(answers)
    ended = runner.run("sh", "-c", "kill -TERM $$")
    assert ended.returncode == 128 + signal.SIGTERM
    assert ended.stderr.splitlines()[-1] == (
        "bursar: stopped acme/x/j1: VRAM of 9.5 GiB passed the limit of 8 GiB; "
        "SIGTERM after 12 ms; 9.5 GiB came back after 1.81 s"
    )
    asked = [one for one in sidecar.requests if isinstance(one, pr.ListIncidentsRequest)]
    assert {one.job for one in asked} == {"j1"}
    assert len(asked) == 3


def test_a_sidecar_that_is_gone_at_the_end_does_not_hide_the_exit_code(
    tmp_path: Path, sidecar: Watched
) -> None:
    runner = Runner("descent", f"unix:{tmp_path}/s.sock")
    with serving(sidecar, runner.target):
        process = runner.start("sh", "-c", "echo up; read x; exit 7", stdin=-1)
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
    _, errors = process.communicate("\n", timeout=PATIENCE_S)
    assert process.returncode == 7
    assert "whether it was stopped cannot be told: no sidecar answers" in errors
    runner.clean_up()
