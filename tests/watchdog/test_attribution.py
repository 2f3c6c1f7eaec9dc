"""Whose a process is: the shapes of containers' cgroups, the order of sources, and what sticks."""

import os
import re
from collections.abc import Iterator
from typing import Any, Final

import pytest
from support.cast import Cast
from support.suspicion import start_of

from bursar.v1 import process_pb2 as pb
from bursar.watchdog import attribution, cgroups
from bursar.watchdog.attribution import Attributor, ContainerRule, container_of
from bursar.watchdog.jobs import Jobs, Kept
from bursar.watchdog.processes import Held, ProcessTable, boot_id

ID: Final = "0123456789abcdef" * 4
UID: Final = "1a2b3c4d-0000-4000-8000-00000000beef"
BURST: Final = "/kubepods.slice/kubepods-burstable.slice"
EFFORT: Final = "/kubepods.slice/kubepods-besteffort.slice"
SNAKE: Final = UID.replace("-", "_")

NODE: Final = "f" * 64
KIND: Final = "kubelet.slice/kubelet-kubepods.slice"
BELOW: Final = f"kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-pod{SNAKE}.slice"

SHAPES: Final = {
    # containerd, CRI-O and cri-dockerd in Kubernetes, by systemd and by cgroupfs
    f"{BURST}/kubepods-burstable-pod{SNAKE}.slice/cri-containerd-{ID}.scope": (UID, ID),
    f"/kubepods.slice/kubepods-pod{SNAKE}.slice/cri-containerd-{ID}.scope": (UID, ID),
    f"{EFFORT}/kubepods-besteffort-pod{SNAKE}.slice/crio-{ID}.scope": (UID, ID),
    f"{EFFORT}/kubepods-besteffort-pod{SNAKE}.slice/crio-{ID}.scope/container": (UID, ID),
    f"/kubepods.slice/kubepods-pod{SNAKE}.slice/docker-{ID}.scope": (UID, ID),
    f"/kubepods/burstable/pod{UID}/{ID}": (UID, ID),
    f"/kubepods/pod{UID}/{ID}": (UID, ID),
    f"/kubepods/pod{UID}/crio-{ID}": (UID, ID),
    f"/kubelet/kubepods/besteffort/pod{UID}/{ID}/nested/below": (UID, ID),
    f"/kubepods/burstable/pod{UID}": (UID, ""),
    # Docker and Podman alone
    f"/system.slice/docker-{ID}.scope": ("", ID),
    f"/docker/{ID}": ("", ID),
    f"/docker/{ID}/system.slice/nginx.service": ("", ID),
    f"/machine.slice/libpod-{ID}.scope": ("", ID),
    f"/machine.slice/libpod-{ID}.scope/container": ("", ID),
    f"/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{ID}.scope": ("", ID),
    f"/libpod_parent/libpod-{ID}": ("", ID),
    f"/ecs/task/{ID}": ("", ID),
    # kind, seen from within a node and from the host of the node
    f"/{KIND}/{BELOW}/cri-containerd-{ID}.scope": (UID, ID),
    f"/{KIND}/kubelet-kubepods-pod{SNAKE}.slice/cri-containerd-{ID}.scope": (UID, ID),
    f"/system.slice/docker-{NODE}.scope/{KIND}/{BELOW}/cri-containerd-{ID}.scope": (UID, ID),
    f"/system.slice/nerdctl-{NODE}.scope/{KIND}/{BELOW}/cri-containerd-{ID}.scope": (UID, ID),
    f"/docker/{NODE}/{KIND}/{BELOW}/cri-containerd-{ID}.scope": (UID, ID),
    f"/docker/{NODE}/kubelet/kubepods/besteffort/pod{UID}/{ID}": (UID, ID),
    # as seen from another container, whose own groups are above the paths
    f"/kubepods-burstable-pod{SNAKE}.slice/cri-containerd-{ID}.scope": (UID, ID),
    f"/besteffort/pod{UID}/{ID}": (UID, ID),
    f"/pod{UID}/{ID}": (UID, ID),
    f"/docker/{NODE}/{KIND}/{BELOW}/cri-containerd-{ID}.scope/kubepods/pod{'e' * 36}": (UID, ID),
    f"/system.slice/docker-{NODE}.scope/init.scope": ("", NODE),
    f"/system.slice/docker-{NODE}.scope/kubelet.slice/kubelet.service": ("", NODE),
    f"/system.slice/nerdctl-{ID}.scope": ("", ID),
}  # fmt: skip

NO_SHAPES: Final = [
    "/",
    "",
    "/user.slice/user-1000.slice/session-3.scope",
    "/system.slice/docker.service",
    "/system.slice/containerd.service",
    f"/docker/{ID[:63]}",
    f"/docker/{ID}0",
    f"/docker/{ID.upper()}",
    f"/docker/x{ID}",
    f"/docker/{ID}.slice",
    f"/system.slice/docker-{ID}.scopes",
    f"/system.slice/notdocker-{ID}.scope",
    f"/kubepods/podcast/{UID}",
    f"/kubepods/pod{UID}x",
    f"/kubepods/pod{UID[:-1]}",
    "/kubepods/pod" + "-" * 36,
    f"/{ID}\n",
]


@pytest.mark.parametrize(("path", "found"), SHAPES.items())
def test_a_container_is_known_by_its_cgroup(path: str, found: tuple[str, str]) -> None:
    assert container_of(path) == found


@pytest.mark.parametrize("path", NO_SHAPES)
def test_what_only_looks_like_a_container_is_none(path: str) -> None:
    assert container_of(path) is None


def test_of_nested_names_the_outermost_counts() -> None:
    """Who is in a container may make groups below its own, and name them as it likes."""
    other, other_id = "f" * 8 + UID[8:], "f" * 64
    inner = f"/kubepods/pod{other}/crio-{other_id}.scope"
    assert container_of(f"/kubepods/pod{UID}/{ID}{inner}") == (UID, ID)
    assert container_of(f"/system.slice/docker-{ID}.scope/docker/{other_id}") == ("", ID)


def test_a_container_cannot_name_itself_into_a_pod() -> None:
    """Docker inside Docker may name its groups as Kubernetes does."""
    found = container_of(f"/system.slice/docker-{ID}.scope/kubepods/pod{UID}/{'f' * 64}")
    assert found == ("", ID)
    for outer in (
        f"/user.slice/user-1000.slice/docker-{ID}.scope",
        f"/machine.slice/libpod-{ID}.scope/container",
        f"/system.slice/docker-{ID}.scope/inner",
    ):
        inner = f"{KIND}/{BELOW}/cri-containerd-{'e' * 64}.scope"
        assert container_of(f"{outer}/{inner}") == ("", ID), outer


class World:
    """Jobs, and an attributor that is told of cgroups."""

    def __init__(self, cast: Cast, patch: pytest.MonkeyPatch, *rules: ContainerRule) -> None:
        self.cast = cast
        self.paths: dict[int, str | None] = {}
        self.table = ProcessTable()
        self.jobs = Jobs(self.table)
        self.attributor = Attributor(self.jobs, rules)
        patch.setattr(cgroups, "path_of", self.paths.get)
        patch.setattr(cgroups, "path_seen", self.paths.get)
        patch.setattr(cgroups, "inode", lambda path: 7 if path else 0)

    def held(self, name: str) -> Held:
        found = self.table.hold(self.cast.pids[name])
        assert found is not None
        return found

    def job(self, name: str, account: str, cgroup: str = "", inode: int = 7) -> Kept:
        pid = self.cast.pids[name]
        job = pb.Job(id=f"j-{name}-{account}", name=name, account=account, pid=pid, cgroup=cgroup)
        kept = Kept(job, start_of(pid), inode, False, "", 0, boot_id())
        self.jobs.add(kept)
        return kept

    def whose(self, name: str) -> tuple[str, str]:
        found = self.attributor.whose(self.held(name))
        return found.account, pb.Process.Source.Name(found.source).removeprefix("SOURCE_")


@pytest.fixture(scope="module")
def cast() -> Iterator[Cast]:
    with Cast() as made:
        yield made


@pytest.fixture
def world(cast: Cast, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    rule = ContainerRule(re.compile("kubepods"), "k8s/{pod}/{container}")
    made = World(cast, monkeypatch, rule, ContainerRule(re.compile("docker"), "plain/{pod}"))
    yield made
    made.table.close()


def test_nobody_says_whose_it_is(world: World) -> None:
    assert world.whose("a") == ("", "UNSPECIFIED")
    found = world.attributor.whose(world.held("a"))
    assert (found.job_id, found.conflict, found.uid) == ("", "", os.getuid())
    assert found.command


def test_the_sources_in_their_order(world: World) -> None:
    pod = f"/kubepods/pod{UID}/{ID}"
    world.job("a", "by-root")
    assert world.whose("a-grandchild") == ("by-root", "ANCESTOR")
    world.paths[world.cast.pids["a-child"]] = pod
    assert world.whose("a-child") == (f"k8s/{UID}/{ID[:12]}", "CONTAINER")
    world.paths[world.cast.pids["a"]] = pod
    assert world.whose("a") == ("by-root", "REGISTERED")
    world.job("group", "by-group", "/x/bursar-1")
    world.paths[world.cast.pids["a-served"]] = "/x/bursar-1/below"
    assert world.whose("a-served") == ("by-group", "CGROUP")


def test_the_nearest_job_above_counts(world: World) -> None:
    world.job("a", "outer")
    world.job("a-child", "inner")
    assert world.whose("a-grandchild") == ("inner", "ANCESTOR")
    assert world.whose("a-served") == ("outer", "ANCESTOR")


def test_of_two_groups_the_inner_counts(world: World) -> None:
    world.job("group", "outer", "/x/bursar-1")
    world.job("a", "inner", "/x/bursar-1/bursar-2")
    pids = world.cast.pids
    world.paths |= {pids["b"]: "/x/bursar-1/bursar-2/deep", pids["pod"]: "/x/bursar-1/bursar-20"}
    assert world.whose("b") == ("inner", "CGROUP")
    assert world.whose("pod") == ("outer", "CGROUP")


def test_the_kernel_goes_before_what_was_said_and_that_is_told(world: World) -> None:
    world.job("group", "kept", "/x/bursar-1")
    world.job("a", "said")
    world.paths[world.cast.pids["a"]] = "/x/bursar-1"
    assert world.whose("a") == ("kept", "CGROUP")
    assert world.attributor.whose(world.held("a")).conflict == "it was registered for said"


def test_a_group_of_the_same_name_is_another(world: World) -> None:
    world.job("group", "gone", "/x/bursar-1", inode=6)
    world.paths[world.cast.pids["b"]] = "/x/bursar-1"
    assert world.whose("b") == ("", "UNSPECIFIED")


def test_a_root_whose_pid_is_anothers_has_no_descendants(world: World) -> None:
    kept = world.job("a", "before")
    world.jobs.remove(kept)
    kept.start_ticks -= 1
    world.jobs.add(kept)
    assert world.whose("a") == ("", "UNSPECIFIED")
    assert world.whose("a-child") == ("", "UNSPECIFIED")


def test_an_answer_sticks_and_nobodys_is_asked_anew(world: World) -> None:
    assert world.whose("a-child") == ("", "UNSPECIFIED")
    kept = world.job("a", "acme")
    assert world.whose("a-child") == ("", "UNSPECIFIED")
    world.attributor.forget_nobody()
    assert world.whose("a-child") == ("acme", "ANCESTOR")
    world.jobs.remove(kept)
    world.attributor.forget_nobody()
    assert world.whose("a-child") == ("acme", "ANCESTOR")
    world.attributor.forget_job(kept.job.id)
    assert world.whose("a-child") == ("", "UNSPECIFIED")
    world.attributor.forget(world.held("a-child"))
    world.attributor.forget(world.held("a-child"))


def test_without_a_pod_or_a_container_it_says_none(world: World) -> None:
    pids = world.cast.pids
    world.paths[pids["a"]] = f"/docker/{ID}"
    world.paths[pids["b"]] = f"/kubepods/pod{UID}"
    assert world.whose("a") == ("plain/none", "CONTAINER")
    assert world.whose("b") == (f"k8s/{UID}/none", "CONTAINER")


def test_the_first_rule_that_fits_counts_and_none_is_nobodys(world: World) -> None:
    pids = world.cast.pids
    world.paths[pids["a"]] = f"/kubepods/docker/pod{UID}/{ID}"
    world.paths[pids["b"]] = f"/machine.slice/libpod-{ID}.scope"
    assert world.whose("a")[0].startswith("k8s/")
    assert world.whose("b") == ("", "UNSPECIFIED")


def test_a_rule_fits_containers_alone(world: World) -> None:
    world.paths[world.cast.pids["a"]] = "/user.slice/kubepods"
    assert world.whose("a") == ("", "UNSPECIFIED")


def test_names_that_are_to_be_taken_for_places_to_fill_in_stay_names(
    cast: Cast, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes out of a path is hexadecimal and dashes: it cannot name another account."""
    for path in SHAPES:
        found = container_of(path)
        assert found is not None
        assert re.fullmatch(r"[0-9a-f-]*", "".join(found))
    rule = ContainerRule(re.compile("."), "{pod}{container}{other}")
    world = World(cast, monkeypatch, rule)
    world.paths[cast.pids["a"]] = f"/kubepods/pod{UID}/{ID}"
    assert world.whose("a")[0] == f"{UID}{ID[:12]}{{other}}"
    world.table.close()


def test_the_attributor_reads_the_real_cgroups(cast: Cast) -> None:
    if not cast.groups:
        pytest.skip("no cgroup v2 can be made here")
    table: Any = ProcessTable()
    jobs = Jobs(table)
    path, pid = cast.groups["group"], cast.pids["group"]
    job = pb.Job(id="j", account="acme", pid=pid, cgroup=path)
    jobs.add(Kept(job, start_of(pid), cgroups.inode(path), False, "", 0, boot_id()))
    whose = attribution.Attributor(jobs).whose
    assert whose(table.hold(cast.pids["group-child"])).source == pb.Process.SOURCE_CGROUP
    assert not whose(table.hold(cast.pids["mixed"])).account
    table.close()
