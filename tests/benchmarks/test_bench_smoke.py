"""The benchmark runs, and what it wrote last is well formed. No figure is judged."""

import json
import math
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

RUN = Path(__file__).parent / "run.py"
LATEST = Path(__file__).parent / "results" / "latest.json"
FIELDS = {"ours", "floor", "ratio", "rounds", "machine", "unit", "goal"}


def check(results: dict[str, dict[str, Any]]) -> None:
    assert {"reserve_p50_c1_vs_echo", "reserve_rate_c64_vs_echo"} <= set(results)
    for name, result in results.items():
        assert set(result) == FIELDS, name
        assert result["ours"] > 0, name
        assert result["floor"] > 0, name
        assert math.isclose(result["ratio"], result["ours"] / result["floor"], rel_tol=1e-2), name
        assert math.isclose(result["ratio"], statistics.median_low(result["rounds"])), name
        assert isinstance(result["machine"], str), name
        assert isinstance(result["unit"], str), name
        assert result["goal"] is None or result["goal"][:2] in {"<=", ">="}, name


@pytest.mark.skipif(not LATEST.exists(), reason="`make bench` has not written its results yet")
def test_the_last_results_are_well_formed() -> None:
    check(json.loads(LATEST.read_text(encoding="utf-8")))


@pytest.mark.skipif(
    os.environ.get("BURSAR_LONG") != "1", reason="builds and measures; BURSAR_LONG=1"
)
@pytest.mark.timeout(1500)
def test_a_quick_run_measures_everything(tmp_path: Path) -> None:
    output = tmp_path / "results.json"
    command = [sys.executable, str(RUN), "--quick", "--output", str(output)]
    ran = subprocess.run(command, check=True, capture_output=True, text=True)
    results = json.loads(output.read_text(encoding="utf-8"))
    check(results)
    assert all(name in ran.stdout for name in results)
