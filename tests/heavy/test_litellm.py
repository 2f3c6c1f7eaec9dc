"""LiteLLM's real proxy over a real engine, with the official client: `make test-heavy`."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import llama as engine
from support.daemon import balance

from bursar import Advice, Threshold, Verdict
from bursar.testing import Sidecar

if os.environ.get("BURSAR_HEAVY") != "1":
    pytest.skip("runs by `make test-heavy`", allow_module_level=True)
pytest.importorskip("litellm", reason="the extra litellm is not installed")

KEY = "sk-a-key-of-the-test-0123456789"
RATES = """
[[accounts]]
path = "**"
[rates]
models = [
    { name = "big", input_nanos_per_million = 10_000_000, output_nanos_per_million = 20_000_000 },
    { name = "small", input_nanos_per_million = 1_000_000, output_nanos_per_million = 2_000_000 },
]
"""
LOGGER = """
import bursar
from bursar.middleware import Capability, Policy
from bursar.middleware.litellm import BudgetLogger
logger = BudgetLogger(bursar.connect_async(), account=lambda key, data: "acme/" + data["user"],
    fallbacks={"small"}, policy=Policy(capabilities={"small": Capability(context_tokens=200)}))
"""


@pytest.fixture(scope="module")
def sidecar() -> Iterator[Sidecar]:
    with Sidecar(RATES) as one:
        yield one


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return engine.start(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def openai(sidecar: Sidecar, upstream: Any) -> Iterator[Any]:
    """The official client of a LiteLLM proxy."""
    import openai as package

    folder = Path(tempfile.mkdtemp(prefix="bursar-litellm-"))
    (folder / "budget.py").write_text(LOGGER, encoding="utf-8")
    model = (
        f"""{{model: "openai/x", api_base: "{upstream.listening_address}/v1", api_key: "none"}}"""
    )
    (folder / "proxy.yaml").write_text(
        f"model_list:\n- {{model_name: big, litellm_params: {model}}}\n"
        f"- {{model_name: small, litellm_params: {model}}}\n"
        f"litellm_settings: {{callbacks: [budget.logger], telemetry: false, num_retries: 0}}\n"
        f"general_settings: {{master_key: {KEY}}}\n",
        encoding="utf-8",
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(Path(sys.executable).parent / "litellm"), "--config", "proxy.yaml"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    environ = {
        **os.environ,
        "BURSAR_TARGET": sidecar.target,
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    environ |= {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "NO_PROXY": "*"}
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen(command, cwd=folder, env=environ, stdout=log, stderr=log) as process,
    ):
        try:
            wait_for(f"http://127.0.0.1:{port}/health/liveliness", process, folder / "log")
            yield package.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=KEY)
        finally:
            process.kill()
    shutil.rmtree(folder)


def wait_for(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=2)  # noqa: S310 -- loopback
        except (OSError, urllib.error.URLError):
            time.sleep(0.5)
        else:
            return
    pytest.fail(f"the proxy did not start:\n{log.read_text(encoding='utf-8')[-2000:]}")


def ask(openai: Any, user: str, **more: Any) -> Any:
    messages = [{"role": "user", "content": "hello"}]
    settings = {"max_tokens": 40, "extra_body": {"ignore_eos": True}} | more
    return openai.chat.completions.create(model="big", messages=messages, user=user, **settings)


def stream(openai: Any, user: str, **more: Any) -> tuple[str, str | None]:
    text, reason = "", None
    for chunk in ask(openai, user, stream=True, **more):
        if chunk.choices:
            text += chunk.choices[0].delta.content or ""
            reason = chunk.choices[0].finish_reason or reason
    return text, reason


@pytest.mark.timeout(180)
def test_calls_are_settled_at_the_engines_usage(openai: Any, sidecar: Sidecar) -> None:
    with sidecar.client() as client:
        client.set_budget("acme/whole", unit="usd_nanos", limit=1_000_000)
        usage = ask(openai, "whole").usage
        assert usage.completion_tokens == 40
        assert balance(client, "acme/whole")[:2] == (0, usage.prompt_tokens * 10 + 800)
        client.set_budget("acme/parts", unit="usd_nanos", limit=1_000_000)
        assert stream(openai, "parts")[1] == "length"
        assert balance(client, "acme/parts")[:2] == (0, usage.prompt_tokens * 10 + 800)


@pytest.mark.timeout(180)
def test_calls_are_cut_with_the_notice_and_refused_by_402(openai: Any, sidecar: Sidecar) -> None:
    import openai as package

    with sidecar.client() as client:
        client.set_budget("acme/cut", unit="usd_nanos", limit=500)
        text, reason = stream(openai, "cut")
        assert text.endswith("the compute budget of acme/cut is exhausted.]")
        assert reason == "length"
        client.set_budget("acme/one", unit="usd_nanos", limit=500)
        [choice] = ask(openai, "one").choices
        assert choice.message.content.endswith("the compute budget of acme/one is exhausted.]")
        client.set_budget("acme/none", unit="usd_nanos", limit=1)
        with pytest.raises(package.APIStatusError) as refused:
            ask(openai, "none")
        assert refused.value.status_code == 402
        assert "budget_exceeded" in str(refused.value)
        for name in ("cut", "one", "none"):
            assert balance(client, f"acme/{name}")[0] == 0


@pytest.mark.timeout(180)
def test_a_freeze_cuts_a_stream_and_frees_the_slot(
    openai: Any, sidecar: Sidecar, upstream: Any
) -> None:
    with sidecar.client() as client:
        client.set_budget("acme/frozen", unit="tokens", limit=1_000_000)
        text, pieces = "", 0
        for chunk in ask(openai, "frozen", stream=True, max_tokens=3500):
            if chunk.choices:
                text += chunk.choices[0].delta.content or ""
                pieces += 1
                if pieces == 3:
                    client.freeze("acme/frozen", reason="a test")
        assert text.endswith("the compute budget of acme/frozen is exhausted.]")
        deadline = time.monotonic() + 5
        while engine.slots(upstream)[0]["is_processing"] and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not engine.slots(upstream)[0]["is_processing"]


@pytest.mark.timeout(180)
def test_past_a_soft_limit_the_cheaper_model_is_asked(openai: Any, sidecar: Sidecar) -> None:
    soft = Threshold(500, Verdict.DEGRADE, Advice(fallback_model="small", max_new_tokens=7))
    with sidecar.client() as client:
        client.set_budget("acme/soft", unit="usd_nanos", limit=100_000, thresholds=[soft])
        client.record("acme/soft", amounts={"usd_nanos": 60_000})
        usage = ask(openai, "soft").usage
        assert usage.completion_tokens == 7
        assert balance(client, "acme/soft")[1] == 60_000 + usage.prompt_tokens + 14


TOOL = {"type": "function", "function": {"name": "search", "parameters": {"type": "object"}}}


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("name", "more", "is_cheaper"),
    [
        ("plain", {}, True),
        ("tools", {"tools": [TOOL]}, False),
        ("long", {"max_tokens": 300}, False),
    ],
)
def test_a_call_that_the_cheaper_model_cannot_do_stays_with_its_own(
    openai: Any, sidecar: Sidecar, name: str, more: Any, *, is_cheaper: bool
) -> None:
    soft = Threshold(500, Verdict.DEGRADE, Advice(fallback_model="small"))
    with sidecar.client() as client:
        client.set_budget(f"acme/{name}", unit="usd_nanos", limit=100_000, thresholds=[soft])
        client.record(f"acme/{name}", amounts={"usd_nanos": 60_000})
        usage = ask(openai, name, **more).usage
        each = (1, 2) if is_cheaper else (10, 20)
        spent = usage.prompt_tokens * each[0] + usage.completion_tokens * each[1]
        assert balance(client, f"acme/{name}")[1] == 60_000 + spent


@pytest.mark.parametrize("more", [{"n": 2}, {"extra_body": {"best_of": 2}}])
def test_several_answers_are_refused_as_the_grant_is_for_one(
    openai: Any, sidecar: Sidecar, more: dict[str, Any]
) -> None:
    from openai import BadRequestError

    with sidecar.client() as client:
        client.set_budget("acme/several", unit="tokens", limit=1_000_000)
        with pytest.raises(BadRequestError, match="one answer"):
            ask(openai, "several", max_tokens=5, **more)
        assert balance(client, "acme/several")[:2] == (0, 0)


def test_a_stream_of_plain_text_is_metered(openai: Any, sidecar: Sidecar) -> None:
    with sidecar.client() as client:
        client.set_budget("acme/words", unit="tokens", limit=1_000_000)
        chunks = openai.completions.create(
            model="big", prompt="hello", max_tokens=5, stream=True, user="words"
        )
        text = "".join(one.choices[0].text or "" for one in chunks if one.choices)
        held, spent, _ = balance(client, "acme/words")
        assert text
        assert held == 0
        assert spent > 5
