"""The operators' pages: their commands run beside a sidecar, their tables are those of the code."""

import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.pages import DOCS, README, ROOT, block, blocks, rows

from bursar.cli import cli
from bursar.daemon.config import Config
from bursar.notify.events import NAMES
from bursar.testing import Sidecar

PAGE = DOCS / "operations.md"
Environment = Callable[..., dict[str, str]]
NEEDS_A_HOST = ("/opt/bursar/bin/pip", "pip", "systemctl", "export", "install", "find")
"""What changes a host, or its shell."""
AS_THE_SIDECAR = "runuser -u bursar -- "


def lines() -> list[str]:
    found = [line for one in blocks(PAGE, "sh") for line in one.splitlines() if line]
    return [line.removeprefix(AS_THE_SIDECAR) for line in found]


def commands(containing: str) -> list[str]:
    return block(PAGE, "sh", containing).splitlines()


def run(
    command: str, folder: Path, environment: dict[str, str]
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["/bin/sh", "-c", command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_every_command_is_known_here() -> None:
    for line in lines():
        words = [word for word in shlex.split(line, comments=True) if "=" not in word.split("-")[0]]
        if not words:
            continue
        assert words[0] in ("bursar", *NEEDS_A_HOST), line
        assert words[0] != "bursar" or words[1] in cli.commands, line


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("containing", "count", "codes"),
    [
        ("bursar health", 7, {}),
        ("bursar account freeze", 4, {}),
        ("bursar doctor ledger.db", 2, {}),
        ("bursar backup monday", 3, {}),
        ("bursar gpu --metrics", 7, {"bursar kill": 5}),  # there is no such job
    ],
)
def test_commands_run_beside_a_sidecar(  # noqa: PLR0917 -- from fixtures, by name
    containing: str,
    count: int,
    codes: dict[str, int],
    folder: Path,
    configuration: str,
    environment: Environment,
) -> None:
    for program in ("agent.py", "train.py"):
        (folder / program).write_text("", encoding="utf-8")
    found = commands(containing)
    assert len(found) == count
    with Sidecar(configuration, folder=folder) as sidecar:
        for command in found:
            ran = run(command, folder, environment(sidecar))
            start = " ".join(command.split()[:2])
            assert ran.returncode == codes.get(start, 0), (command, ran.stdout, ran.stderr)


def test_a_damaged_store_is_replaced_by_the_last_backup_step_by_step(
    folder: Path, configuration: str, environment: Environment
) -> None:
    """On a host of its own: with other folders, as one user, and without systemd."""
    backups = folder / "backups"

    def steps(containing: str) -> list[str]:
        here = {
            AS_THE_SIDECAR: "",
            "-o bursar -g bursar ": "",
            "/var/lib/bursar": str(folder),
            "/var/backups/bursar": str(backups),
            "2026-11-28": "$(date +%F)",
            "bursar backup": f"bursar backup --config {folder}/bursar.toml",
        }
        text = block(PAGE, "sh", containing)
        for there, instead in here.items():
            text = text.replace(there, instead)
        return [line for line in text.splitlines() if not line.startswith("systemctl")]

    with Sidecar(configuration, folder=folder) as sidecar:
        with sidecar.client() as client:
            client.record("acme/research/a", tokens=40)
        for step in steps("$(date +%F)"):
            ran = run(step, folder, environment(sidecar))
            assert ran.returncode == 0, (step, ran.stderr)
        sidecar.terminate()
        (folder / "ledger.db").write_bytes(b"damaged")
        (folder / "ledger.db.notify").touch()
        for step in steps("/var/lib/bursar/damaged"):
            ran = run(step, folder, environment(sidecar))
            assert ran.returncode == 0, (step, ran.stderr)
        sidecar.start()
        with sidecar.client() as client:
            spent = {one.unit: one.spent for one in client.get_account("acme/research/a").balances}
    assert spent["tokens"] == 40
    assert (folder / "damaged/ledger.db").read_bytes() == b"damaged"
    assert (folder / "ledger.db.notify").exists()


def test_the_watch_writes_lines_and_ends_where_it_says(
    folder: Path, environment: Environment
) -> None:
    [command] = [line for line in lines() if line.startswith("bursar watch")]
    with Sidecar(folder=folder) as sidecar, sidecar.client() as client:
        client.set_budget("acme/research", unit="tokens", limit=10)
        client.record("acme/research", tokens=10)
        ran = run(command, folder, environment(sidecar))
    assert ran.returncode == 0, ran.stderr
    assert '"account": "acme/research"' in ran.stdout


def test_the_ledger_of_the_ten_lines_is_calibrated(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    ten_lines = block(README, "python", "bursar.open(")
    subprocess.run([sys.executable, "-c", ten_lines], cwd=tmp_path, check=True)
    [command] = commands("bursar calibrate")
    line = command.replace("bursar", f"{sys.executable} -m bursar", 1)
    ran = run(line, tmp_path, dict(os.environ))
    assert "recommended limit of a run: 321 tokens" in ran.stdout, ran.stderr
    assert (tmp_path / "calibration.html").is_file()


def test_every_configuration_of_the_pages_is_valid() -> None:
    found = [one for page in DOCS.glob("*.md") for one in blocks(page, "toml")]
    assert len(found) >= 3
    for text in found:
        Config.from_dict(tomllib.loads(text))


def test_every_alert_is_there_with_what_to_do() -> None:
    file = ROOT / "sidecar/prometheus/alerts.yaml"
    [group] = yaml.safe_load(file.read_text(encoding="utf-8"))["groups"]
    labels = re.compile(r"\{\{ \$labels\.(\w+) \}\}")
    expected: list[Any] = [
        [
            f"`{rule['alert']}` ({rule['labels']['severity']})",
            labels.sub(lambda label: label[1].upper(), rule["annotations"]["action"]),
        ]
        for rule in group["rules"]
    ]
    assert [[name, action] for name, _, action in rows(PAGE, "Alerts")] == expected


def test_every_event_is_there_with_its_meaning() -> None:
    assert [tuple(row) for row in rows(PAGE, "Events")] == [
        (f"`{name}`", meaning) for name, meaning in NAMES.items()
    ]
