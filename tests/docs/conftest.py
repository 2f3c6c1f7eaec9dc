"""What the pages' snippets stand on: folders, programs and the configuration that is shown."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.pages import README, ROOT, block

from bursar.testing import Sidecar


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder where the relative paths of the pages lead to what they name."""
    (tmp_path / "sidecar").symlink_to(ROOT / "sidecar")
    return tmp_path


@pytest.fixture
def configuration() -> str:
    """The configuration that the README shows."""
    return block(README, "toml", 'path = "acme/*/*"')


@pytest.fixture
def environment(folder: Path) -> Callable[[Sidecar], dict[str, str]]:
    """The environment of a shell in which `bursar` and `python` are those under test."""
    programs = folder / "programs"
    programs.mkdir()
    (programs / "python").symlink_to(sys.executable)
    script = programs / "bursar"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m bursar "$@"\n', encoding="utf-8")
    script.chmod(0o755)

    def of(sidecar: Sidecar, **more: Any) -> dict[str, str]:
        path = f"{programs}:{os.environ['PATH']}"
        return os.environ | {"BURSAR_TARGET": sidecar.target, "PATH": path} | more

    return of
