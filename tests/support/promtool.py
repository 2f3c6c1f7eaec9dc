"""Prometheus's own tool, where there is one: Debian's package `prometheus` has it."""

import os
import shutil
import subprocess

import pytest


def promtool(*arguments: str, given: str | None = None) -> "subprocess.CompletedProcess[str]":
    """Runs it; skips where it is missing. BURSAR_PROMTOOL names one that is not in PATH."""
    path = os.environ.get("BURSAR_PROMTOOL") or shutil.which("promtool")
    if path is None:
        pytest.skip(
            "promtool is not installed (Debian: prometheus), and BURSAR_PROMTOOL names none"
        )
    command = [path, *arguments]
    return subprocess.run(
        command, input=given, capture_output=True, text=True, timeout=60, check=False
    )
