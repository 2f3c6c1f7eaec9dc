"""The recipes run as they stand, against a real sidecar.

llama.cpp's server stands for OpenAI's, so addresses are changed to its own; the job's GPU is the
stand-in for NVML. vLLM itself runs by `make test-heavy`; here its command line is read as vLLM
reads it, and the middleware that it names serves before a server of a few lines.
"""

import asyncio
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.away import wait_for
from support.daemon import balance
from support.gpu import GIB
from support.pages import DOCS, ROOT, block, blocks
from support.watched import Watched

import bursar
from bursar.testing import Sidecar

PAGE = DOCS / "recipes.md"
AGENT = "acme/research/agent-7"
Environment = Callable[..., dict[str, str]]


def ran(snippet: str, folder: Path, environment: dict[str, str]) -> str:
    command = [sys.executable, "-c", snippet]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def defined(snippet: str, **names: Any) -> dict[str, Any]:
    exec(snippet, names)  # noqa: S102 -- the page is ours
    return names


def until_refused(snippet: str, folder: Path, environment: dict[str, str]) -> list[str]:
    """Runs it until it says that it was stopped. Each answer costs a third of the budget or more;
    one that the model ends by itself is whole, any other ends with the notice."""
    told: list[str] = []
    while not (told and told[-1].startswith("stopped: ")):
        assert len(told) < 4, told
        told.append(ran(snippet, folder, environment))
    assert len(told) > 1, "the first call fits"
    return told


@pytest.mark.timeout(240)
def test_a_langchain_agent_answers_until_it_is_refused(
    folder: Path, configuration: str, llama: str, environment: Environment
) -> None:
    pytest.importorskip("langchain_openai")
    snippet = block(PAGE, "python", "create_agent(ChatOpenAI")
    with Sidecar(configuration, folder=folder) as sidecar, sidecar.client() as client:
        client.set_budget(AGENT, unit="tokens", period="hour", limit=120)
        provider = {"OPENAI_BASE_URL": f"{llama}/v1", "OPENAI_API_KEY": "none"}
        told = until_refused(snippet, folder, environment(sidecar, **provider))
        assert told[-1].startswith(f"stopped: {AGENT} is short of ")
        held, spent, _ = balance(client, AGENT)
        assert held == 0
        assert spent > 100, "the engine's usage counts, though the prompt was estimated"


@pytest.mark.timeout(240)
def test_an_openai_client_is_answered_until_the_proxy_refuses(
    folder: Path,
    configuration: str,
    llama: str,
    environment: Environment,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "of-the-provider")
    proxy = block(PAGE, "toml", "[proxy]").replace("https://api.openai.com", llama)
    proxy = proxy.replace("127.0.0.1:7412", "127.0.0.1:0")
    snippet = block(PAGE, "python", "OpenAI(base_url")
    with Sidecar(f"{configuration}\n{proxy}", folder=folder) as sidecar:
        [url] = re.findall(r"proxy on (http://\S+)/v1", sidecar.log)
        snippet = snippet.replace("http://127.0.0.1:7412", url)
        with sidecar.client() as client:
            client.set_budget(AGENT, unit="tokens", period="hour", limit=120)
            told = until_refused(snippet, folder, environment(sidecar))
            assert told[-1] == "stopped: 402 budget_exceeded\n"
            assert balance(client, AGENT)[0] == 0


def test_the_middleware_of_the_vllm_command_meters_a_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import importlib

    line = next(one for one in block(PAGE, "sh", "vllm serve").splitlines() if "serve" in one)
    variable, *words = line.split()
    module, _, name = words[words.index("--middleware") + 1].rpartition(".")
    middleware = getattr(importlib.import_module(module), name)

    async def server(scope: Any, receive: Any, send: Any) -> None:
        tokens = scope["path"] == "/tokenize"
        usage = {"prompt_tokens": 5, "completion_tokens": 7}
        answer = {"count": 5} if tokens else {"choices": [{"text": "x"}], "usage": usage}
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": json.dumps(answer).encode()})

    async def asked() -> int:
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            body = json.dumps({"model": "m", "prompt": "hello", "max_tokens": 7}).encode()
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": []}
        async with bursar.connect_async(target) as client:
            await middleware(server, client=client)(scope, receive, send)
        return int(sent[0]["status"])

    monkeypatch.setenv(*variable.split("=", 1))
    with Sidecar() as sidecar, sidecar.client() as client:
        target = sidecar.target
        client.set_budget("acme/serving/vllm", unit="tokens", limit=12)
        assert [asyncio.run(asked()) for _ in range(2)] == [200, 402]
        assert balance(client, "acme/serving/vllm")[:2] == (0, 12)


@pytest.mark.timeout(120)
def test_a_training_job_saves_and_ends_when_it_passes_its_vram(
    folder: Path, environment: Environment
) -> None:
    (folder / "train.py").write_text(block(PAGE, "python", "SIGTERM"), encoding="utf-8")
    set_budget, run, incidents = block(PAGE, "sh", "train.py").splitlines()
    shell: dict[str, Any] = {"cwd": folder, "text": True, "shell": True}
    with Watched() as watched:
        shell["env"] = environment(watched.daemon)
        subprocess.run(set_budget, check=True, **shell)
        job = subprocess.Popen(run, **shell)
        wait_for(lambda: bool(watched.client.list_processes("acme").jobs))
        [one] = watched.client.list_processes("acme").jobs
        assert one.account.startswith("acme/research/train-1")
        wait_for(lambda: catches(one.pid, signal.SIGTERM))
        time.sleep(0.1)  # a few steps
        watched.gpus.set_process(one.pid, watched.gpu, vram_bytes=9 * GIB)
        assert job.wait(30) == 75
        watched.ended("acme")
        told = subprocess.run(incidents, capture_output=True, check=True, **shell).stdout
    assert json.loads((folder / "checkpoint.json").read_text(encoding="utf-8"))["step"] > 0
    assert "reclaimed" in told


def catches(pid: int, number: signal.Signals) -> bool:
    """Whether a process has a handler for a signal by now."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    [caught] = re.findall(r"^SigCgt:\s*(\w+)$", status, re.MULTILINE)
    return bool(int(caught, 16) >> (number - 1) & 1)


def test_a_loop_on_a_lease_ends_where_the_budget_does() -> None:
    loop_for_ever = defined(block(PAGE, "python", "loop_for_ever"))["loop_for_ever"]
    with Sidecar('accounts = [{ path = "**" }]') as sidecar, sidecar.client() as client:
        client.set_budget("acme", unit="tokens", limit=5_000)
        assert loop_for_ever(client, "acme/agent") == {"tokens": 5_000}
        with pytest.raises(bursar.BudgetExceeded):
            loop_for_ever(client, "acme/agent")


def test_a_generation_pays_for_every_token(folder: Path, configuration: str) -> None:
    """With the configuration that the README shows, so it has to have a price for the model."""
    snippet = block(PAGE, "python", "def generate(client")
    generate = defined(snippet, my_model=lambda prompt, limit: map(str, range(limit)))["generate"]
    with Sidecar(configuration, folder=folder) as sidecar, sidecar.client() as client:
        client.set_budget("acme", unit="tokens", limit=100)
        prompt = "Count me exactly, please."
        count = client.count_tokens("gpt-4o-mini", text=prompt).token_count
        produced = list(generate(client, prompt))
        assert len(produced) == 100 - count
        money, tokens = client.get_account("acme").balances
        assert (tokens.spent, tokens.held, tokens.remaining) == (100, 0, 0)
        price = 150 * count + 600 * (100 - count)  # gpt-4o-mini, nano-dollars a token
        assert (money.spent, money.held) == (price, 0)
        with pytest.raises(bursar.BudgetExceeded):
            list(generate(client, prompt))


def test_a_generation_of_ones_own_ends_with_the_notice() -> None:
    generate_under = defined(block(PAGE, "python", "def generate_under"))["generate_under"]
    with bursar.open() as client:
        client.set_budget("acme/own", unit="tokens", limit=13)

        def engine(prompt: str, most: int) -> range:
            return range(most)

        *tokens, notice = generate_under(client, "acme/own", engine, "abc")
        assert (len(tokens), "is exhausted" in notice) == (10, True)


def test_what_is_handed_on_is_paid_out_of_the_first_task() -> None:
    hand_on = defined(block(PAGE, "python", "def hand_on"))["hand_on"]
    with bursar.open() as client:
        client.set_budget("acme", unit="tokens", limit=10_000)
        hand_on(client, "acme/agent", lambda: 700)
        assert balance(client, "acme")[:2] == (0, 1_200)


def test_a_client_goes_on_while_the_sidecar_is_away(
    folder: Path,
    configuration: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folder)
    with Sidecar(configuration, folder=folder) as sidecar:
        monkeypatch.setenv("BURSAR_TARGET", sidecar.target)
        sidecar.kill9()
        names = defined(block(PAGE, "python", "FailOpen("))
        assert capsys.readouterr().out == "granted here\n1 calls wait to be told\n"
        sidecar.start()
        with names["client"] as client:
            wait_for(lambda: client.away.told_count == 1)
            [tokens] = client.get_account(AGENT).balances
            assert (tokens.spent, tokens.held) == (321, 0)
    assert list((folder / "state/journal").iterdir()) == []


def test_every_snippet_compiles_and_names_adapters_that_exist() -> None:
    for snippet in blocks(PAGE, "python"):
        compile(snippet, PAGE.name, "exec")
        for module, name in re.findall(r"bursar\.middleware\.(\w+)\.([A-Za-z]\w+)", snippet):
            text = (ROOT / f"python/bursar/middleware/{module}.py").read_text(encoding="utf-8")
            assert re.search(rf"^(class|def) {name}\b", text, re.MULTILINE), (module, name)
