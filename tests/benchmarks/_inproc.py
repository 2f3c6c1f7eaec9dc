"""The figures of the ledger in this process, without a wire: `cargo bench -p bursar-ledger`.

That prints a line of JSON for each figure; `cas_floor` is a bare compare-and-swap.
"""

import json
import subprocess
from typing import Any

import _servers


def measure(*, quick: bool) -> dict[str, list[tuple[float, float]]]:
    """Name → nanoseconds and the floor's, for the least, the median and the most."""
    if quick:
        return {}
    command = ["cargo", "bench", "-p", "bursar-ledger", "--bench", "ledger"]
    ran = subprocess.run(
        command, cwd=_servers.PROJECT, stdout=subprocess.PIPE, check=True, text=True
    )
    lines = [json.loads(line) for line in ran.stdout.splitlines() if line.startswith("{")]
    figures: dict[str, dict[str, Any]] = {line["case"]: line for line in lines}
    floor = float(figures.pop("cas_floor")["median"])
    return {
        f"ledger_{name}": [(float(each[field]), floor) for field in ("min", "median", "max")]
        for name, each in figures.items()
    }
