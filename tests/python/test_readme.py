"""The README's snippets do what they say, and the paths that it names exist."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.pages import README, ROOT, block

from bursar.testing import Sidecar

TEN_LINES = block(README, "python", "bursar.open(")
CONFIGURATION = block(README, "toml", "[server]")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder where the README's relative paths lead to what they name."""
    (tmp_path / "sidecar").symlink_to(ROOT / "sidecar")
    return tmp_path


def ran(snippet: str, folder: Path, environment: dict[str, str]) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", snippet],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_ten_lines_run_without_a_daemon(tmp_path: Path) -> None:
    told = ran(TEN_LINES, tmp_path, dict(os.environ))
    assert told == ["{'tokens': 321}", "acme/research tokens 221"]
    assert (tmp_path / "example.db").is_file()


def test_ten_lines_run_with_a_daemon_and_connect_in_the_place_of_open(folder: Path) -> None:
    snippet = TEN_LINES.replace('bursar.open("example.db")', "bursar.connect()")
    with Sidecar(CONFIGURATION, folder=folder) as sidecar:
        told = ran(snippet, folder, os.environ | {"BURSAR_TARGET": sidecar.target})
    assert told == ["{'tokens': 321}", "acme/research tokens 221"]


def test_the_command_lines_run_against_the_configuration(folder: Path) -> None:
    """The daemon beside them is the same one, started and ended here."""
    check, serve, export, lists = block(README, "sh", "bursar serve").splitlines()
    assert serve.startswith("bursar serve --config bursar.toml")
    with Sidecar(CONFIGURATION, folder=folder):
        script = f"set -e\n{check}\n{export}\n{lists}"
        script = script.replace("\nbursar", f"\n{sys.executable} -m bursar")
        command = ["/bin/sh", "-c", script]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "acme" in done.stdout


def test_every_path_that_the_readme_names_exists() -> None:
    text = README.read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:rust|proto|sidecar|tests|python)/[\w./-]+)`", text))
    assert len(named) > 8
    missing = [path for path in sorted(named) if not (ROOT / path).exists()]
    assert not missing
