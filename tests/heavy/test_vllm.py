"""vLLM's real server on the CPU, under the ASGI middleware and the logits processor.

By `make test-heavy`. The model is tiny and its weights are made up; a token is a byte.
"""

import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from http.client import HTTPResponse
from pathlib import Path
from typing import Any, Final

import pytest
from support.daemon import balance, new_seed
from support.tiny_hf import CONTEXT, write_tiny_hf

from bursar import Advice, Threshold, Verdict
from bursar.testing import Sidecar

if os.environ.get("BURSAR_HEAVY") != "1":
    pytest.skip("runs by `make test-heavy`", allow_module_level=True)
pytest.importorskip("vllm", reason="vLLM is not installed")
START_S: Final = 400  # a minute where the cores are free
pytestmark = pytest.mark.timeout(START_S + 100)

SETTINGS: Final = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "BURSAR_ACCOUNT_HEADER": "x-account",
}
ADAPTERS: Final = (
    *("--middleware", "bursar.middleware.vllm.BudgetMiddleware"),
    *("--logits-processors", "bursar.middleware.vllm_logits:GrantedTokens"),
)
PROMPT: Final = 22  # "[user]hello[assistant]"


class Server:
    """The server, seen from outside, and what its own counters say."""

    def __init__(self, url: str) -> None:
        self.url = url

    def open(self, account: str, body: dict[str, Any], path: str) -> HTTPResponse:
        headers = {"Content-Type": "application/json", "X-Account": account}
        raw = json.dumps({"model": "tiny", **body}).encode()
        request = urllib.request.Request(self.url + path, raw, headers)  # noqa: S310 -- loopback
        answer: HTTPResponse = urllib.request.urlopen(request, timeout=60)  # noqa: S310 -- loopback
        return answer

    def ask(self, account: str, path: str = "/v1/chat/completions", **body: Any) -> Any:
        """An answer in one piece."""
        if path == "/v1/chat/completions":
            body = {"messages": [{"role": "user", "content": "hello"}], **body}
        try:
            with self.open(account, body, path) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as refused:
            with refused:
                return {"status": refused.code, **json.load(refused)}

    def stream(self, account: str, **body: Any) -> Iterator[dict[str, Any]]:
        """An answer as it comes; closing it hangs up."""
        asked = {"messages": [{"role": "user", "content": "hello"}], "stream": True, **body}
        with self.open(account, asked, "/v1/chat/completions") as answer:
            for line in answer:
                if line == b"data: [DONE]\n":
                    return
                if line.startswith(b"data: "):
                    yield json.loads(line[6:])
        pytest.fail("the stream did not end well")

    def counter(self, name: str) -> float:
        """One of vLLM's counters, summed over its labels."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=10) as answer:  # noqa: S310 -- loopback
            lines = answer.read().decode().splitlines()
        found = [line for line in lines if line.startswith(f"vllm:{name}{{")]
        assert found, f"vLLM has no {name}"
        return sum(float(line.rpartition(" ")[2]) for line in found)

    def computed(self) -> tuple[int, int]:
        """How many tokens of prompts and of answers it has computed."""
        return int(self.counter("prompt_tokens_total")), int(
            self.counter("generation_tokens_total")
        )

    def is_free(self) -> bool:
        """Whether no request runs or waits, and no block of the cache is taken."""
        names = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
        return all(self.counter(name) == 0 for name in names)


@pytest.fixture(scope="module")
def sidecar() -> Iterator[Sidecar]:
    with Sidecar('[[accounts]]\npath = "**"\n') as one:
        yield one


@pytest.fixture(scope="module")
def vllm(sidecar: Sidecar) -> Iterator[Server]:
    """One server for all tests: it takes a minute to start."""
    folder = Path(tempfile.mkdtemp(prefix="bursar-vllm-"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    program = str(Path(sys.executable).parent / "vllm")
    command = [program, "serve", str(write_tiny_hf(folder / "tiny")), "--served-model-name", "tiny"]
    command += ["--load-format", "dummy", "--enforce-eager", "--dtype", "float32"]
    command += ["--no-enable-prefix-caching", "--host", "127.0.0.1", "--port", str(port), *ADAPTERS]
    environ = {**os.environ, **SETTINGS, "BURSAR_TARGET": sidecar.target}
    environ |= {"PYTHONPATH": os.pathsep.join(sys.path)}
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen(command, cwd=folder, env=environ, stdout=log, stderr=log) as process,
    ):
        try:
            wait_for(f"http://127.0.0.1:{port}/health", process, folder / "log")
            yield Server(f"http://127.0.0.1:{port}")
        finally:
            process.terminate()  # its workers end with it
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
    shutil.rmtree(folder)


def wait_for(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=2)  # noqa: S310 -- loopback
        except (OSError, urllib.error.URLError):
            time.sleep(0.5)
        else:
            return
    pytest.fail(f"vLLM did not start:\n{log.read_text(encoding='utf-8')[-3000:]}")


def until(holds: Callable[[], object], within_s: float = 5) -> bool:
    deadline = time.monotonic() + within_s
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def text_of(chunks: list[dict[str, Any]]) -> str:
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


def test_a_refusal_is_402_before_anything_is_computed(vllm: Server, sidecar: Sidecar) -> None:
    with sidecar.client() as client:
        client.set_budget("acme/none", unit="tokens", limit=PROMPT)
        before = vllm.computed()
        refused = vllm.ask("acme/none", max_tokens=5)
        assert (refused["status"], refused["error"]["code"]) == (402, "budget_exceeded")
        assert vllm.computed() == before
        assert balance(client, "acme/none") == (0, 0, PROMPT)


def test_streams_and_answers_are_settled_at_the_engines_own_count(
    vllm: Server, sidecar: Sidecar
) -> None:
    seed = new_seed()
    print(f"BURSAR_SEED={seed}")
    chance = random.Random(seed)
    before, told = vllm.computed(), 0
    with sidecar.client() as client:
        client.set_budget("acme/exact", unit="tokens", limit=1_000_000)
        for at in range(30):
            asked = {
                "messages": [{"role": "user", "content": "x" * chance.randrange(200)}],
                "max_tokens": chance.randrange(1, 80),
                "ignore_eos": chance.random() < 0.5,
            }
            if at % 2:
                usage = vllm.ask("acme/exact", **asked)["usage"]
            else:
                options = {"include_usage": True}
                *_, last = vllm.stream("acme/exact", stream_options=options, **asked)
                usage = last["usage"]
            told += usage["total_tokens"]
        tokens = [random.Random(seed).randrange(3, 250) for _ in range(9)]
        whole = vllm.ask("acme/exact", "/v1/completions", prompt=tokens, max_tokens=4)
        told += whole["usage"]["total_tokens"]
        assert balance(client, "acme/exact")[:2] == (0, told)
    assert until(lambda: sum(vllm.computed()) - sum(before) >= told)
    assert sum(vllm.computed()) - sum(before) == told


def test_every_chunk_is_metered_while_the_stream_runs(vllm: Server, sidecar: Sidecar) -> None:
    with sidecar.client() as client:
        client.set_budget("acme/live", unit="tokens", limit=1_000_000)
        stream = vllm.stream("acme/live", max_tokens=3000, ignore_eos=True)
        spent = []
        for at, chunk in enumerate(stream):
            assert "usage" not in chunk, "nobody asked for it"
            if at % 100 == 50:
                spent.append(balance(client, "acme/live")[1])
        assert len(spent) > 5
        assert spent[0] < spent[len(spent) // 2] < spent[-1] < PROMPT + 3000
        assert balance(client, "acme/live")[:2] == (0, PROMPT + 3000)


@pytest.mark.parametrize("k", [1, 7, 60])
@pytest.mark.parametrize("is_stream", [True, False])
def test_at_a_limit_of_k_the_engine_computes_k_tokens_and_the_notice_follows(
    vllm: Server, sidecar: Sidecar, k: int, *, is_stream: bool
) -> None:
    account = f"acme/cut-{k}-{is_stream}"
    asked = {"max_tokens": 500, "ignore_eos": True}
    with sidecar.client() as client:
        client.set_budget(account, unit="tokens", limit=PROMPT + k)
        before = vllm.computed()
        if is_stream:
            chunks = list(vllm.stream(account, **asked))
            text, reason = text_of(chunks), chunks[-1]["choices"][0]["finish_reason"]
        else:
            [choice] = vllm.ask(account, **asked)["choices"]
            text, reason = choice["message"]["content"], choice["finish_reason"]
        assert text.endswith(f"[Stopped: the compute budget of {account} is exhausted.]")
        assert reason == "length"
        assert until(lambda: vllm.computed() != before and vllm.is_free())
        assert vllm.computed() == (before[0] + PROMPT, before[1] + k)
        assert balance(client, account) == (0, PROMPT + k, 0)


def test_a_freeze_in_mid_stream_ends_the_request_in_the_engine(
    vllm: Server, sidecar: Sidecar
) -> None:
    before = vllm.computed()
    with sidecar.client() as client:
        client.set_budget("acme/frozen", unit="tokens", limit=1_000_000)
        chunks = []
        for chunk in vllm.stream("acme/frozen", max_tokens=4000, ignore_eos=True):
            chunks.append(chunk)
            if len(chunks) == 20:
                assert vllm.counter("num_requests_running") == 1
                assert vllm.counter("kv_cache_usage_perc") > 0
                client.freeze("acme/frozen", reason="a test")
        assert text_of(chunks).endswith("the compute budget of acme/frozen is exhausted.]")
        assert chunks[-1]["choices"][0]["finish_reason"] == "length"
        assert until(vllm.is_free, within_s=2), "no request runs, no block is taken"
        after = vllm.computed()
        time.sleep(0.3)
        assert vllm.computed() == after, "nothing more is computed"
        held, spent, _ = balance(client, "acme/frozen")
        assert held == 0
        assert PROMPT + 20 <= spent <= sum(after) - sum(before) < PROMPT + 4000
        client.set_budget("acme/next", unit="tokens", limit=1_000)
        assert (
            vllm.ask("acme/next", max_tokens=5, ignore_eos=True)["usage"]["completion_tokens"] == 5
        )


def test_who_hangs_up_pays_for_what_came(vllm: Server, sidecar: Sidecar) -> None:
    with sidecar.client() as client:
        client.set_budget("acme/gone", unit="tokens", limit=1_000_000)
        stream = vllm.stream("acme/gone", max_tokens=4000, ignore_eos=True)
        for _ in range(20):
            next(stream)
        stream.close()  # type: ignore[attr-defined] -- a generator
        assert until(vllm.is_free, within_s=2)
        assert until(lambda: balance(client, "acme/gone")[0] == 0)
        assert PROMPT < balance(client, "acme/gone")[1] < PROMPT + 4000


def test_a_call_without_a_limit_of_its_own_fits_the_context(vllm: Server, sidecar: Sidecar) -> None:
    with sidecar.client() as client:
        client.set_budget("acme/open", unit="tokens", limit=1_000_000)
        usage = vllm.ask("acme/open", ignore_eos=True)["usage"]
        assert usage["total_tokens"] == CONTEXT
        usage = vllm.ask("acme/open", "/v1/completions", prompt="hello", ignore_eos=True)["usage"]
        assert usage["completion_tokens"] == 16, "as OpenAI has it"


def test_past_a_soft_limit_the_advice_is_in_the_request(vllm: Server, sidecar: Sidecar) -> None:
    soft = Threshold(500, Verdict.DEGRADE, Advice(max_new_tokens=6, temperature=0.0))
    with sidecar.client() as client:
        client.set_budget("acme/soft", unit="tokens", limit=10_000, thresholds=[soft])
        client.record("acme/soft", tokens=6_000)
        asked = {"max_tokens": 40, "temperature": 2.0, "ignore_eos": True}
        one, two = (vllm.ask("acme/soft", **asked) for _ in range(2))
        assert one["usage"]["completion_tokens"] == 6
        assert one["choices"][0]["message"] == two["choices"][0]["message"], "greedy now"


@pytest.mark.parametrize("granted", [1, 2, 25])
def test_the_engine_ends_a_request_at_its_granted_tokens(
    vllm: Server, sidecar: Sidecar, granted: int
) -> None:
    asked = {"max_tokens": 300, "min_tokens": 300, "vllm_xargs": {"bursar_granted_tokens": granted}}
    with sidecar.client() as client:
        client.set_budget("acme/granted", unit="tokens", limit=1_000_000)
        before = vllm.computed()
        answer = vllm.ask("acme/granted", **asked)
        assert answer["usage"]["completion_tokens"] == granted
        assert answer["choices"][0]["finish_reason"] == "stop"
        assert until(lambda: vllm.computed() != before)
        assert vllm.computed() == (before[0] + PROMPT, before[1] + granted)
        beside = vllm.ask("acme/granted", max_tokens=30, ignore_eos=True)
        assert beside["usage"]["completion_tokens"] == 30, "who names no grant is left alone"


@pytest.mark.parametrize(
    ("xargs", "more", "why"),
    [
        ({"bursar_granted_tokens": 0}, {}, "at least 1"),
        ({"bursar_granted_tokens": "many"}, {}, "at least 1"),
        ({"bursar_granted_tokens": 5}, {"ignore_eos": True}, "stop_token_ids"),
    ],
)
def test_a_grant_that_cannot_be_held_is_refused(
    vllm: Server, sidecar: Sidecar, xargs: Any, more: Any, why: str
) -> None:
    with sidecar.client() as client:
        client.set_budget("acme/wrong", unit="tokens", limit=1_000)
        refused = vllm.ask("acme/wrong", max_tokens=9, vllm_xargs=xargs, **more)
        assert refused["status"] == 400
        assert why in refused["error"]["message"]
        assert balance(client, "acme/wrong") == (0, 0, 1_000)


def test_under_the_second_model_runner_the_processor_says_what_to_do() -> None:
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    environ["VLLM_USE_V2_MODEL_RUNNER"] = "1"
    command = [sys.executable, "-c", "import bursar.middleware.vllm_logits"]
    found = subprocess.run(
        command, env=environ, capture_output=True, text=True, timeout=120, check=False
    )
    assert found.returncode == 1
    assert "ImportError: bursar.middleware.vllm_logits works with" in found.stderr
    assert "VLLM_USE_V2_MODEL_RUNNER=0" in found.stderr


def test_nothing_is_registered_as_a_plugin_of_vllm() -> None:
    project = Path(__file__).resolve().parents[2] / "pyproject.toml"
    said = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
    assert not [name for name in said.get("entry-points", {}) if name.startswith("vllm")]
