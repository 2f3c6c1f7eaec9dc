"""The ASGI middleware before a relay to the real llama.cpp: cuts, refusals, a request that is gone.

The relay answers as vLLM does, with the usage so far in every chunk, and aborts as it does; the
engine behind it is real.
"""

import asyncio
import json
from typing import Any

import pytest
from support import llama as engine
from support.daemon import balance

import bursar
from bursar.middleware.vllm import BudgetMiddleware
from bursar.testing import Sidecar

httpx2 = pytest.importorskip("httpx2", reason="httpx2 talks to the engine; it is not installed")


class Relay:
    """An ASGI server before llama.cpp that aborts, as vLLM does, when its client has gone."""

    def __init__(self, upstream: Any) -> None:
        self.url = upstream.listening_address
        self.aborted = False

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = json.loads((await receive())["body"])
        async with httpx2.AsyncClient(base_url=self.url, timeout=30) as client:
            gone = asyncio.create_task(self.until_gone(receive))
            work = asyncio.create_task(self.answer(client, scope["path"], body, send))
            await asyncio.wait({gone, work}, return_when=asyncio.FIRST_COMPLETED)
            self.aborted = not work.done()
            for task in (gone, work):
                task.cancel()
            await asyncio.gather(gone, work, return_exceptions=True)

    async def answer(self, client: Any, path: str, body: Any, send: Any) -> None:
        if path == "/tokenize":
            await self.tokenize(client, body, send)
        elif body.get("stream"):
            await self.stream(client, path, body, send)
        else:
            answer = await client.post(path, json={**body, "ignore_eos": True})
            await self.say(send, answer.status_code, "application/json", answer.content)

    async def tokenize(self, client: Any, body: Any, send: Any) -> None:
        prompt = body.get("prompt")  # which goes before messages in vLLM as well
        if prompt is None:
            prompt = (await client.post("/apply-template", json=body)).json()["prompt"]
        asked = {"content": prompt, "add_special": True, "parse_special": True}
        tokens = (await client.post("/tokenize", json=asked)).json()["tokens"]
        content = json.dumps({"count": len(tokens)}).encode()
        await self.say(send, 200, "application/json", content)

    @staticmethod
    async def until_gone(receive: Any) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    async def stream(self, client: Any, path: str, body: Any, send: Any) -> None:
        asked = {**body, "ignore_eos": True, "timings_per_token": True}
        await self.start(send, 200, "text/event-stream")
        async with client.stream("POST", path, json=asked) as answer:
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    chunk = json.loads(line[6:])
                    timings = chunk.pop("timings", {})
                    if "predicted_n" in timings:
                        chunk["usage"] = {
                            "prompt_tokens": timings["prompt_n"] + timings["cache_n"],
                            "completion_tokens": timings["predicted_n"],
                        }
                    line = "data: " + json.dumps(chunk)  # noqa: PLW2901 -- rewritten on its way
                if line:
                    await self.part(send, line.encode() + b"\n\n")
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    @staticmethod
    async def start(send: Any, status: int, kind: str) -> None:
        headers = [(b"content-type", kind.encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})

    @staticmethod
    async def part(send: Any, body: bytes) -> None:
        await send({"type": "http.response.body", "body": body, "more_body": True})

    async def say(self, send: Any, status: int, kind: str, body: bytes) -> None:
        await self.start(send, status, kind)
        await send({"type": "http.response.body", "body": body, "more_body": False})


async def call(
    app: Any,
    body: dict[str, Any],
    *,
    on_part: Any = None,
    path: str = "/v1/chat/completions",
    method: str = "POST",
) -> tuple[int, bytes]:
    """One request; its status and the bytes of its answer."""
    raw = json.dumps({"messages": [{"role": "user", "content": "hello"}], **body}).encode()
    status, answer, ended = 0, bytearray(), asyncio.Event()
    asked = iter([{"type": "http.request", "body": raw, "more_body": False}])

    async def receive() -> Any:
        for message in asked:
            return message
        await ended.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        nonlocal status
        status = message.get("status", status)
        answer.extend(message.get("body", b""))
        if on_part is not None:
            await on_part(len(answer))

    scope = {"type": "http", "method": method, "path": path, "headers": []}
    await app(scope, receive, send)
    ended.set()
    return status, bytes(answer)


def chunks(answer: bytes) -> list[dict[str, Any]]:
    events = answer.decode().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    return [json.loads(event.removeprefix("data: ")) for event in events[:-2]]


def run(sidecar: Sidecar, llama: Any, account: str, limit: int, body: Any) -> Any:
    async def main() -> Any:
        async with sidecar.client_async() as client:
            await client.set_budget(account, unit="tokens", limit=limit)
            relay = Relay(llama)
            return await body(
                BudgetMiddleware(relay, client=client, account=account), relay, client
            )

    return asyncio.run(main())


@pytest.mark.parametrize("k", [1, 20])
def test_a_stream_is_cut_at_k_tokens_with_the_notice(llama: Any, sidecar: Sidecar, k: int) -> None:
    account = f"acme/asgi-{k}"
    before = engine.counter(llama, "tokens_predicted_total")
    asked = {"stream": True, "max_tokens": 500, "stream_options": {"include_usage": True}}
    status, answer = run(sidecar, llama, account, 24 + k, lambda app, *_: call(app, asked))
    assert status == 200
    *_, notice, last, usage = chunks(answer)
    assert notice["choices"][0]["delta"]["content"].endswith(f"budget of {account} is exhausted.]")
    assert last["choices"][0]["finish_reason"] == "length"
    assert usage["usage"] == {
        "prompt_tokens": 24,
        "completion_tokens": k,
        "total_tokens": 24 + k,
    }
    assert engine.counter(llama, "tokens_predicted_total") - before == k
    with sidecar.client() as client:
        assert balance(client, account) == (0, 24 + k, 0)


@pytest.mark.parametrize(
    ("path", "beside"),
    [("/v1/chat/completions", {"prompt": "x"}), ("/v1/completions", {"prompt": "hello " * 40})],
)
def test_a_prompt_is_counted_by_what_the_server_reads_of_it(
    llama: Any, sidecar: Sidecar, path: str, beside: dict[str, Any]
) -> None:
    account = f"acme/asgi-both{path.count('chat')}"
    before = engine.counter(llama, "tokens_predicted_total")
    asked = {"max_tokens": 500, **beside}
    status, answer = run(sidecar, llama, account, 24, lambda app, *_: call(app, asked, path=path))
    assert status == 402, answer
    assert engine.counter(llama, "tokens_predicted_total") == before


def test_usage_that_nobody_asked_for_is_not_sent(llama: Any, sidecar: Sidecar) -> None:
    asked = {"stream": True, "max_tokens": 5}
    _, answer = run(sidecar, llama, "acme/asgi-u", 1000, lambda app, *_: call(app, asked))
    assert all("usage" not in chunk for chunk in chunks(answer))
    with sidecar.client() as client:
        assert balance(client, "acme/asgi-u")[:2] == (0, 29)


def test_an_answer_in_one_piece_ends_with_the_notice(llama: Any, sidecar: Sidecar) -> None:
    asked = {"max_tokens": 500}
    status, answer = run(sidecar, llama, "acme/asgi-whole", 34, lambda app, *_: call(app, asked))
    assert status == 200, answer
    choice = json.loads(answer)["choices"][0]
    assert (status, choice["finish_reason"]) == (200, "length")
    assert choice["message"]["content"].endswith(
        "the compute budget of acme/asgi-whole is exhausted.]"
    )
    with sidecar.client() as client:
        assert balance(client, "acme/asgi-whole") == (0, 34, 0)


def test_a_refusal_is_402_and_nothing_is_computed(llama: Any, sidecar: Sidecar) -> None:
    before = engine.counter(llama, "tokens_predicted_total")
    status, answer = run(sidecar, llama, "acme/asgi-0", 24, lambda app, *_: call(app, {}))
    assert (status, json.loads(answer)["error"]["code"]) == (402, "budget_exceeded")
    assert engine.counter(llama, "tokens_predicted_total") == before


def test_a_freeze_tells_the_server_that_its_client_has_gone(llama: Any, sidecar: Sidecar) -> None:
    async def body(app: Any, relay: Relay, client: bursar.AsyncClient) -> Any:
        frozen = False

        async def freeze(size: int) -> None:
            nonlocal frozen
            if size > 500 and not frozen:
                frozen = True
                await client.freeze("acme/asgi-f", reason="a test")
                await asyncio.sleep(0.1)

        asked = {"stream": True, "max_tokens": 3500}
        _, answer = await call(app, asked, on_part=freeze)
        return relay, chunks(answer)

    relay, found = run(sidecar, llama, "acme/asgi-f", 100_000, body)
    assert relay.aborted
    assert "is exhausted" in found[-2]["choices"][0]["delta"]["content"]
    assert len(found) < 3000


UNMETERABLE: list[dict[str, Any]] = [
    {"n": 2},
    {"best_of": 3},
    {"use_beam_search": True},
    {"prompt": ["one", "two"]},
    {"prompt": [[1, 2], [3]]},
    {"max_tokens": "many"},
    {"max_tokens": -1},
    {"messages": "x" * (16 * 1024 * 1024)},
]


@pytest.mark.parametrize("raw", UNMETERABLE, ids=[next(iter(raw)) for raw in UNMETERABLE])
def test_what_cannot_be_metered_is_refused(llama: Any, sidecar: Sidecar, raw: Any) -> None:
    before = engine.counter(llama, "tokens_predicted_total")
    status, _ = run(sidecar, llama, "acme/asgi-b", 1000, lambda app, *_: call(app, raw))
    assert status in {400, 413}
    assert engine.counter(llama, "tokens_predicted_total") == before


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/messages", "/invocations", "/new/way"])
def test_there_is_no_way_beside_the_metered_ones(llama: Any, sidecar: Sidecar, path: str) -> None:
    body = {"max_tokens": 5}
    status, answer = run(
        sidecar, llama, "acme/asgi-w", 1000, lambda app, *_: call(app, body, path=path)
    )
    assert (status, json.loads(answer)["error"]["code"]) == (403, "not_metered")


def test_a_websocket_is_closed(llama: Any, sidecar: Sidecar) -> None:
    sent: list[Any] = []

    async def body(app: Any, *_: Any) -> None:
        async def send(message: Any) -> None:
            sent.append(message)

        await app({"type": "websocket", "path": "/v1/realtime"}, None, send)

    run(sidecar, llama, "acme/asgi-s", 1000, body)
    assert [message["type"] for message in sent] == ["websocket.close"]


def test_an_operators_path_is_passed_on_where_it_is_named(
    sidecar: Sidecar, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed: list[str] = []

    async def server(scope: Any, receive: Any, send: Any) -> None:
        passed.append(scope["path"])
        await Relay.start(send, 200, "text/plain")

    async def main() -> None:
        async with sidecar.client_async() as client:
            app = BudgetMiddleware(server, client=client, account="acme/asgi-o")
            assert (await call(app, {}, path="/sleep"))[0] == 403
            monkeypatch.setenv("BURSAR_FREE_PATHS", "/sleep,/wake_up")
            app = BudgetMiddleware(server, client=client, account="acme/asgi-o")
            assert (await call(app, {}, path="/sleep"))[0] == 200
            assert (await call(app, {}, path="/metrics", method="GET"))[0] == 200

    asyncio.run(main())
    assert passed == ["/sleep", "/metrics"]


def test_an_account_has_to_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BURSAR_ACCOUNT", raising=False)
    with pytest.raises(bursar.InvalidRequest, match="BURSAR_ACCOUNT"):
        BudgetMiddleware(Relay.__new__(Relay), client=bursar.connect_async())
