"""The wheel hands on what the licences of the crates in it ask for."""

import importlib.util
import shutil
from pathlib import Path

import pytest


@pytest.mark.skipif(not shutil.which("cargo"), reason="there is no cargo")
def test_the_notices_are_those_of_what_is_linked(project: Path) -> None:
    spec = importlib.util.spec_from_file_location("notices", project / "requirements/notices.py")
    assert spec is not None
    assert spec.loader is not None
    notices = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(notices)
    made, kept = notices.notices(), notices.NOTICES.read_text(encoding="utf-8")
    assert made == kept, "run `python requirements/notices.py`"
    assert "Copyright (c) Tokio Contributors" in kept
