"""The README's snippets do what they say, and the paths that it names exist."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.away import wait_for

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
    assert (tmp_path / "example.db").is_file()


def test_the_ledger_of_the_ten_lines_is_calibrated(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    subprocess.run([sys.executable, "-c", blocks("python")[0]], cwd=tmp_path, check=True)
    [command] = blocks("sh")[2].splitlines()
    line = [sys.executable, "-m", *command.split()]
    ran = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "recommended limit of a run: 321 tokens" in ran.stdout
    assert (tmp_path / "calibration.html").is_file()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder where the README's relative paths lead to what they name."""
    (tmp_path / "sidecar").symlink_to(README.parent / "sidecar")
    return tmp_path


def in_a_shell(
    command: str, folder: Path, environment: dict[str, str]
) -> "subprocess.CompletedProcess[str]":
    line = command.replace("bursar", f"{sys.executable} -m bursar", 1)
    return subprocess.run(
        ["/bin/sh", "-c", line],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_lines_run_against_the_configuration(folder: Path) -> None:
    (folder / "bursar.toml").write_text(blocks("toml")[0], encoding="utf-8")
    lines = blocks("sh")[1].splitlines()
    check = f"{sys.executable} -m bursar check bursar.toml"
    assert subprocess.run(check.split(), cwd=folder, check=False).returncode == 0
    with Sidecar(blocks("toml")[0], folder=folder) as sidecar:
        environment = os.environ | {"BURSAR_TARGET": sidecar.target}
        commands = [line for line in lines if line.startswith(("bursar account", "bursar log"))]
        assert len(commands) == 5
        for command in commands:
            ran = in_a_shell(command, folder, environment)
            assert ran.returncode == 0, (command, ran.stderr)


def test_the_commands_about_jobs_run_with_a_gpu_or_without(folder: Path) -> None:
    """The two programs only end; a job to kill is not there, which has an exit code of its own."""
    for name in ("agent.py", "train.py"):
        (folder / name).write_text("", encoding="utf-8")
    (folder / "python").symlink_to(sys.executable)
    programs = f"{folder}:{os.environ['PATH']}"
    [block] = [one for one in blocks("sh") if "bursar incidents" in one]
    commands = [line for line in block.splitlines() if line.startswith("bursar")]
    assert len(commands) == 7
    with Sidecar(blocks("toml")[0], folder=folder) as sidecar:
        environment = os.environ | {"BURSAR_TARGET": sidecar.target, "PATH": programs}
        for command in commands:
            ran = in_a_shell(command, folder, environment)
            expected = 5 if command.startswith("bursar kill") else 0
            assert ran.returncode == expected, (command, ran.stderr)


def test_the_commands_of_care_run_beside_a_sidecar(folder: Path) -> None:
    [block] = [one for one in blocks("sh") if "bursar backup" in one]
    commands = [line for line in block.splitlines() if line.startswith("bursar")]
    assert len(commands) == 5
    with Sidecar(blocks("toml")[0], folder=folder):
        for command in commands:
            ran = in_a_shell(command, folder, dict(os.environ))
            assert ran.returncode == 0, (command, ran.stdout, ran.stderr)
    assert (folder / "restored.db").is_file()


def test_a_loop_on_a_lease_ends_where_the_budget_does() -> None:
    names: dict[str, object] = {}
    exec(blocks("python")[1], names)  # noqa: S102 -- the README is ours
    loop_for_ever = names["loop_for_ever"]
    with Sidecar('accounts = [{ path = "**" }]') as sidecar, sidecar.client() as client:
        client.set_budget("acme", unit="tokens", limit=5_000)
        assert loop_for_ever(client, "acme/agent") == {"tokens": 5_000}  # type: ignore[operator]
        with pytest.raises(bursar.BudgetExceeded):
            loop_for_ever(client, "acme/agent")  # type: ignore[operator]


def test_a_generation_pays_for_every_token(folder: Path) -> None:
    """With the configuration that the README shows, so it has to have a price for the model."""
    names: dict[str, object] = {"my_model": lambda prompt, limit: (str(i) for i in range(limit))}
    exec(blocks("python")[2], names)  # noqa: S102 -- the README is ours
    toml = blocks("toml")[0]
    with Sidecar(toml, folder=folder) as sidecar, sidecar.client() as client:
        client.set_budget("acme", unit="tokens", limit=100)
        generate = names["generate"]
        prompt = "Count me exactly, please."
        count = client.count_tokens("gpt-4o-mini", text=prompt).token_count
        produced = list(generate(client, prompt))  # type: ignore[operator]
        assert len(produced) == 100 - count
        money, tokens = client.get_account("acme").balances
        assert (tokens.spent, tokens.held, tokens.remaining) == (100, 0, 0)
        price = 150 * count + 600 * (100 - count)  # gpt-4o-mini, nano-dollars a token
        assert (money.spent, money.held) == (price, 0)
        with pytest.raises(bursar.BudgetExceeded):
            list(generate(client, prompt))  # type: ignore[operator]


def test_the_snippets_leave_budget_for_each_other(folder: Path) -> None:
    names: dict[str, object] = {"my_model": lambda prompt, limit: (str(i) for i in range(limit))}
    subprocess.run([sys.executable, "-c", blocks("python")[0]], cwd=folder, check=True)
    with Sidecar(blocks("toml")[0], folder=folder) as sidecar, sidecar.client() as client:
        for block in blocks("python")[1:3]:
            exec(block, names)  # noqa: S102 -- the README is ours
        spent = names["loop_for_ever"](client, "acme/research/agent-7")  # type: ignore[operator]
        assert spent == {"tokens": 100_000}
        assert list(names["generate"](client, "Hello"))  # type: ignore[operator]


def test_a_client_goes_on_while_the_sidecar_is_away(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    [block] = [one for one in blocks("python") if "FailOpen(" in one]
    monkeypatch.chdir(folder)
    names: dict[str, bursar.Client] = {}
    with Sidecar(blocks("toml")[0], folder=folder) as sidecar:
        monkeypatch.setenv("BURSAR_TARGET", sidecar.target)
        sidecar.kill9()
        exec(block, names)  # noqa: S102 -- the README is ours
        assert capsys.readouterr().out == "granted here\n1 calls wait to be told\n"
        sidecar.start()
        with names["client"] as client:
            wait_for(lambda: client.away.told_count == 1)
            [tokens] = client.get_account("acme/research/agent-7").balances
            assert (tokens.spent, tokens.held) == (321, 0)
    assert list((folder / "state/journal").iterdir()) == []


def test_every_path_that_the_readme_names_exists() -> None:
    text = README.read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:rust|proto|sidecar|tests|python)/[\w./-]+)`", text))
    assert len(named) > 8
    missing = [path for path in sorted(named) if not (README.parent / path).exists()]
    assert not missing


def test_a_generation_of_ones_own_ends_with_the_notice() -> None:
    [block] = [one for one in blocks("python") if "def generate_under" in one]
    names: dict[str, object] = {}
    exec(block, names)  # noqa: S102 -- the README is ours
    generate_under = names["generate_under"]
    with bursar.open() as client:
        client.set_budget("acme/own", unit="tokens", limit=13)

        def engine(prompt: str, most: int) -> range:
            return range(most)

        *tokens, notice = generate_under(client, "acme/own", engine, "abc")  # type: ignore[operator]
        assert (len(tokens), "is exhausted" in notice) == (10, True)


def test_the_snippets_of_the_adapters_name_what_exists(project: Path) -> None:
    for block in blocks("python"):
        compile(block, "README.md", "exec")
        for module, name in re.findall(r"bursar\.middleware\.(\w+)\.([A-Za-z]\w+)", block):
            text = (project / f"python/bursar/middleware/{module}.py").read_text(encoding="utf-8")
            assert re.search(rf"^(class|def) {name}\b", text, re.MULTILINE), (module, name)


def test_the_watch_of_the_readme_writes_lines_and_ends_where_it_says(folder: Path) -> None:
    [block] = [one for one in blocks("sh") if "bursar watch" in one]
    [command] = [line for line in block.splitlines() if line.startswith("bursar watch")]
    with Sidecar('accounts = [{ path = "**" }]') as sidecar, sidecar.client() as client:
        client.set_budget("acme/research", unit="tokens", limit=10)
        client.record("acme/research", tokens=10)
        ran = in_a_shell(command, folder, os.environ | {"BURSAR_TARGET": sidecar.target})
    assert ran.returncode == 0, ran.stderr
    assert '"account": "acme/research"' in ran.stdout
