"""systemd's own tools read the units: nothing unknown in them, and a score for what they close."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bursar.daemon.config import load_config

EXPOSURE_MAX = 21
"""Of 100, as `systemd-analyze security` counts: 2.1."""

ANALYZE = shutil.which("systemd-analyze") or ""

pytestmark = pytest.mark.skipif(not ANALYZE, reason="there is no systemd-analyze")


def analyze(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [ANALYZE, *arguments],
        env=os.environ | {"XDG_RUNTIME_DIR": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )


def settings(unit: Path) -> dict[str, list[str]]:
    """Each setting of a unit with its values, in order."""
    found: dict[str, list[str]] = {}
    for line in unit.read_text(encoding="utf-8").splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(name, []).append(value)
    return found


@pytest.fixture(params=["system", "user"])
def units(request: pytest.FixtureRequest, project: Path, tmp_path: Path) -> Path:
    """The units with the program where there is one: `verify` looks for it."""
    folder = tmp_path / str(request.param)
    shutil.copytree(project / "sidecar/systemd" / str(request.param), folder)
    service = folder / "bursar.service"
    text = service.read_text(encoding="utf-8")
    for program in ("/opt/bursar/bin/bursar", "%h/.local/bin/bursar"):
        text = text.replace(program, sys.executable)
    service.write_text(text, encoding="utf-8")
    return folder


def test_systemd_takes_the_units(units: Path) -> None:
    of_whom = ["--user"] if units.name == "user" else []
    names = [str(units / name) for name in ("bursar.service", "bursar.socket")]
    told = analyze(units, "verify", *of_whom, *names)
    assert (told.returncode, told.stderr) == (0, "")
    with (units / "bursar.service").open("a", encoding="utf-8") as service:
        service.write("[Service]\nProtectSistem=strict\n")
    assert "'ProtectSistem'" in analyze(units, "verify", *of_whom, *names).stderr


def test_the_service_of_a_host_is_closed_but_for_what_the_watchdog_needs(project: Path) -> None:
    service = project / "sidecar/systemd/system/bursar.service"
    limit = ["security", "--offline=yes", "--no-pager", f"--threshold={EXPOSURE_MAX}"]
    told = analyze(project, *limit, str(service))
    assert told.returncode == 0, told.stdout
    has = settings(service)
    assert has["AmbientCapabilities"] == has["CapabilityBoundingSet"] == ["CAP_KILL"]
    # With these the watchdog would see no processes, no cgroups and no GPUs.
    for hides in ("ProtectControlGroups", "PrivateDevices", "ProcSubset", "PrivatePIDs"):
        assert hides not in has, hides


def test_units_and_configuration_name_the_same_and_leave_time_to_drain(project: Path) -> None:
    system = project / "sidecar/systemd/system"
    config = load_config(project / "sidecar/examples/gpu-host.toml")
    listens = settings(system / "bursar.socket")
    assert listens["ListenStream"] == [config.server.socket]
    assert listens["ListenSequentialPacket"] == [f"{config.server.socket}.lease"]
    service = settings(system / "bursar.service")
    assert int(service["TimeoutStopSec"][0]) * 1000 >= 3 * config.server.drain_timeout
    assert config.store.path is not None
    assert Path(config.store.path).parent == Path("/var/lib") / service["StateDirectory"][0]
