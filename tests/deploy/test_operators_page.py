"""The page that installs: its files exist, and its commands are such."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from bursar.cli import cli

NEEDS_A_HOST = ("systemctl", "systemd-sysusers", "usermod", "docker", "kubectl", "python3", "ln")
"""What changes a host or a cluster. The files that they name are checked, here and beside."""


@pytest.fixture(scope="module")
def page(project: Path) -> str:
    return (project / "sidecar/README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def commands(page: str) -> list[list[str]]:
    blocks = re.findall(r"```sh\n(.*?)```", page, re.DOTALL)
    lines = [shlex.split(line, comments=True) for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


def test_every_file_that_it_names_exists(
    project: Path, page: str, commands: list[list[str]]
) -> None:
    links = re.findall(r"\]\(([\w./-]+)\)", page)
    named = [word for line in commands for word in line if word.startswith("sidecar/")]
    assert len(links) > 8
    assert len(named) > 8
    assert [one for one in links if not (project / "sidecar" / one).exists()] == []
    assert [one for one in named if not (project / one).exists()] == []


def test_every_command_is_known_here(commands: list[list[str]]) -> None:
    known = ("install", "export", *NEEDS_A_HOST)
    for program, *arguments in commands:
        if program == "bursar":
            assert arguments[0] in cli.commands
        else:
            assert program in known or program.endswith("/bin/pip"), program


def test_the_services_find_the_program_where_it_is_put(
    project: Path, commands: list[list[str]]
) -> None:
    links = {line[-1]: line[-2] for line in commands if line[0] == "ln"}
    made = {line[-1] for line in commands if line[:3] == ["python3", "-m", "venv"]}
    assert {target.removesuffix("/bin/bursar") for target in links.values()} == made
    for unit, place in (("system", "/opt/bursar/bin/bursar"), ("user", "~/.local/bin/bursar")):
        text = (project / f"sidecar/systemd/{unit}/bursar.service").read_text(encoding="utf-8")
        assert f"ExecStart={place.replace('~', '%h')} serve" in text
        assert place in {*links, *links.values()}


def test_the_files_go_where_it_says(
    project: Path, tmp_path: Path, commands: list[list[str]]
) -> None:
    """By install(1) itself, into a folder that stands for the root."""
    copies = [line for line in commands if line[0] == "install"]
    assert len(copies) == 6
    for line in copies:
        moved = [
            f"{tmp_path}{one.replace('~', '/alice')}" if one.startswith(("/", "~")) else one
            for one in line
        ]
        subprocess.run(moved, cwd=project, check=True)
    for name in (
        "etc/bursar/bursar.toml",
        "usr/lib/sysusers.d/bursar.conf",
        "etc/systemd/system/bursar.service",
        "etc/systemd/system/bursar.socket",
        "alice/.config/bursar/bursar.toml",
        "alice/.config/systemd/user/bursar.service",
    ):
        assert (tmp_path / name).is_file(), name
