"""Cgroups of jobs, on the real hierarchy where there is one; elsewhere the tests skip."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.jobs import PATIENCE_S, eventually, need_cgroups

from bursar.watchdog import cgroups

HYBRID = """\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 master:1 - cgroup2 cgroup2 rw
"""


@pytest.fixture
def group() -> Iterator[str]:
    need_cgroups()
    path = cgroups.make("test")
    yield path
    cgroups.kill(path)
    eventually(lambda: cgroups.remove(path), f"the end of {path}")


@pytest.fixture
def process() -> Iterator["subprocess.Popen[bytes]"]:
    with subprocess.Popen(["/bin/sleep", "60"]) as started:
        yield started
        started.kill()


def folder(path: str) -> Path:
    mounted = cgroups.mount_point()
    assert mounted is not None
    return mounted / path[1:]


def test_the_hierarchy_is_found_also_beside_the_old_ones() -> None:
    assert cgroups._find_mount(HYBRID) == Path("/sys/fs/cgroup/unified")
    assert cgroups._find_mount("30 23 0:26 / /cg\\040two rw - cgroup2 c rw") == Path("/cg two")


def test_a_mount_of_a_part_of_the_hierarchy_is_not_used() -> None:
    assert cgroups._find_mount("30 23 0:26 /docker/1 /sys/fs/cgroup rw - cgroup2 c rw") is None
    assert cgroups._find_mount("30 23 0:26 / /sys/fs/cgroup rw - cgroup cgroup2 rw") is None


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("1:name=systemd:/x\n0::/user.slice/a\n", "/user.slice/a"),
        ("0::/\n", "/"),
        ("0::/../other\n", None),
        ("0::/..\n", None),
        ("0::/gone (deleted)\n", None),
        ("4:memory:/x\n", None),
    ],
)
def test_only_a_useful_path_is_one(
    monkeypatch: pytest.MonkeyPatch, text: str, path: str | None
) -> None:
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: text)
    assert cgroups.path_of(1) == path


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("0::/user.slice/a\n", "/user.slice/a"),
        ("0::/../../kubepods-pod1.slice/a.scope\n", "/kubepods-pod1.slice/a.scope"),
        ("0::/../..hidden\n", "/..hidden"),
        ("0::/..\n", None),
        ("0::/../gone (deleted)\n", None),
    ],
)
def test_what_can_be_seen_of_a_path_is_what_is_not_above(
    monkeypatch: pytest.MonkeyPatch, text: str, path: str | None
) -> None:
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: text)
    assert cgroups.path_seen(1) == path


def test_in_a_container_another_group_has_a_name_and_cannot_be_reached(
    group: str, process: "subprocess.Popen[bytes]"
) -> None:
    """As a daemon sees it whose cgroup namespace begins at a group of its own."""
    cgroups.add(group, process.pid)
    own = cgroups.make("container")
    look = (
        "import sys; from bursar.watchdog import cgroups as c; pid = int(sys.argv[1]);"
        "print(c.path_of(pid), c.path_seen(pid), c.path_seen(1) == '/')"
    )
    inside = ["unshare", "--cgroup", sys.executable, "-c", look, str(process.pid)]
    line = ["/bin/sh", "-c", 'read x; exec "$@"', "sh", *inside]
    pipe = subprocess.PIPE
    with subprocess.Popen(line, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as shell:
        cgroups.add(own, shell.pid)
        said, failed = shell.communicate("go\n", timeout=PATIENCE_S)
    cgroups.remove(own)
    if "unshare failed" in failed:
        pytest.skip(f"no cgroup namespace can be made here: {failed}")
    assert said.split() == ["None", f"/{group.rpartition('/')[2]}", "False"], failed


def test_a_process_that_has_ended_is_in_no_group() -> None:
    with subprocess.Popen(["/bin/true"]) as ended:
        ended.wait(PATIENCE_S)
    assert cgroups.path_of(ended.pid) is None


def test_a_group_holds_what_was_moved_and_what_that_starts(group: str) -> None:
    line = ["/bin/sh", "-c", "read x; sleep 60 & wait"]
    with subprocess.Popen(line, stdin=subprocess.PIPE) as shell:
        assert cgroups.is_empty(group)
        cgroups.add(group, shell.pid)
        assert cgroups.path_of(shell.pid) == group
        cgroups.check_job_group(group, shell.pid)
        assert shell.stdin is not None
        shell.stdin.write(b"go\n")
        shell.stdin.flush()
        eventually(lambda: len(cgroups.members(group)) == 2, "a second member")
        assert shell.pid in cgroups.members(group)
        assert not cgroups.is_empty(group)
        assert not cgroups.remove(group)
        cgroups.kill(group)
        assert shell.wait(PATIENCE_S) == -9
    eventually(lambda: cgroups.is_empty(group), "an empty group")
    assert cgroups.members(group) == []


def test_groups_below_belong_to_it(group: str, process: "subprocess.Popen[bytes]") -> None:
    below = folder(group) / "a" / "b"
    below.mkdir(parents=True)
    (below / "cgroup.procs").write_text(str(process.pid), encoding="ascii")
    assert cgroups.members(group) == [process.pid]
    assert not cgroups.is_empty(group)
    with pytest.raises(ValueError, match="is not in the cgroup"):
        cgroups.check_job_group(group, process.pid)
    cgroups.kill(group)
    assert process.wait(PATIENCE_S) == -9
    eventually(lambda: cgroups.remove(group), "the removal of all three")
    assert not folder(group).exists()


def test_what_is_gone_is_empty_and_stays_gone(group: str) -> None:
    assert cgroups.remove(group)
    assert cgroups.remove(group)
    assert cgroups.is_empty(group)
    assert cgroups.members(group) == []
    cgroups.kill(group)
    assert not folder(group).exists()


def test_a_group_with_another_process_is_refused(
    group: str, process: "subprocess.Popen[bytes]"
) -> None:
    with subprocess.Popen(["/bin/sleep", "60"]) as other:
        cgroups.add(group, process.pid)
        cgroups.add(group, other.pid)
        with pytest.raises(ValueError, match=f"nothing else, and holds {other.pid}"):
            cgroups.check_job_group(group, process.pid)
        other.kill()


def test_a_group_without_the_process_is_refused(group: str) -> None:
    with pytest.raises(ValueError, match="move it there first"):
        cgroups.check_job_group(group, os.getpid())


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "bursar-a",
        "/a",
        "/bursar-a/b",
        "/../bursar-a",
        "/a/../bursar-a",
        "/./bursar-a",
        "//bursar-a",
        "/bursar-a/",
        "/a//bursar-a",
    ],
)
def test_what_is_no_path_of_a_job_is_refused(path: str) -> None:
    for refuse in (cgroups.kill, cgroups.remove):
        with pytest.raises(ValueError, match=r"cgroup|job"):
            refuse(path)
    with pytest.raises(ValueError, match=r"cgroup|job"):
        cgroups.check_job_group(path, os.getpid())


def test_a_group_that_is_missing_is_refused() -> None:
    need_cgroups()
    with pytest.raises(ValueError, match="there is no cgroup /bursar-missing"):
        cgroups.check_job_group("/bursar-missing", os.getpid())


@pytest.mark.parametrize("own", ["/bursar-a", "/bursar-a/daemon"])
def test_the_daemons_own_group_and_those_above_it_are_refused(
    monkeypatch: pytest.MonkeyPatch, own: str
) -> None:
    monkeypatch.setattr(cgroups, "mount_point", lambda: Path("/nowhere"))
    monkeypatch.setattr(cgroups, "path_of", lambda _: own)
    with pytest.raises(ValueError, match="holds the sidecar itself"):
        cgroups.check_job_group("/bursar-a", os.getpid())


def test_without_a_hierarchy_no_group_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroups, "mount_point", lambda: None)
    with pytest.raises(OSError, match="no cgroup v2 hierarchy is mounted"):
        cgroups.make("test")
