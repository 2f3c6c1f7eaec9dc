"""The README's snippets do what they say, and the paths that it names exist."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import bursar
from bursar.testing import Sidecar

README = Path(__file__).parents[2] / "README.md"


def blocks(language: str) -> list[str]:
    """The fenced blocks of a language, in order."""
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


def test_ten_lines_run_without_a_daemon(tmp_path: Path) -> None:
    snippet = blocks("python")[0]
    ran = subprocess.run(
        [sys.executable, "-c", snippet], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines() == ["{'tokens': 321}", "acme/research tokens 221"]
    assert (tmp_path / "ledger.db").is_file()


def test_the_command_lines_run_against_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "bursar.toml").write_text(blocks("toml")[0], encoding="utf-8")
    lines = blocks("sh")[1].splitlines()
    check = f"{sys.executable} -m bursar check bursar.toml"
    assert subprocess.run(check.split(), cwd=tmp_path, check=False).returncode == 0
    with Sidecar(blocks("toml")[0], folder=tmp_path) as sidecar:
        environment = os.environ | {"BURSAR_TARGET": sidecar.target}
        commands = [line for line in lines if line.startswith(("bursar account", "bursar log"))]
        assert len(commands) == 4
        for command in commands:
            line = command.replace("bursar", f"{sys.executable} -m bursar", 1)
            ran = subprocess.run(
                ["/bin/sh", "-c", line],
                cwd=tmp_path,
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
            assert ran.returncode == 0, (command, ran.stderr)


def test_a_generation_pays_for_every_token() -> None:
    names: dict[str, object] = {"my_model": lambda prompt, limit: (str(i) for i in range(limit))}
    exec(blocks("python")[1], names)  # noqa: S102 -- the README is ours
    config = {
        "rates": {
            "models": [
                {
                    "name": "gpt-4o-mini",
                    "tokenizer": "o200k_base",
                    "input_nanos_per_million": 150_000_000,
                    "output_nanos_per_million": 600_000_000,
                }
            ]
        },
        "accounts": [{"path": "**"}],
    }
    with Sidecar(config) as sidecar, sidecar.client() as client:
        client.set_budget("acme", unit="tokens", limit=100)
        generate = names["generate"]
        prompt = "Count me exactly, please."
        count = client.count_tokens("gpt-4o-mini", text=prompt).token_count
        produced = list(generate(client, prompt))  # type: ignore[operator]
        assert len(produced) == 100 - count
        (balance,) = client.get_account("acme").balances
        assert (balance.spent, balance.held, balance.remaining) == (100, 0, 0)
        with pytest.raises(bursar.BudgetExceeded):
            list(generate(client, prompt))  # type: ignore[operator]


def test_every_path_that_the_readme_names_exists() -> None:
    text = README.read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:rust|proto|sidecar|tests|python)/[\w./-]+)`", text))
    assert len(named) > 8
    missing = [path for path in sorted(named) if not (README.parent / path).exists()]
    assert not missing
