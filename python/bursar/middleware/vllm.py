"""vLLM's server under a budget: an ASGI middleware, loaded by name.

    vllm serve … --middleware bursar.middleware.vllm.BudgetMiddleware

It counts the prompt by the server's own `/tokenize`, has every chunk tell the usage so far (chunks
hold several tokens), and on STOP ends the stream well and then tells the server that the client
has gone: that, and no exception, aborts the request and frees its blocks. What else the server
could compute is refused: it would be free. It imports nothing of vLLM.
"""

import asyncio
import contextlib
import json
import os
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any, Final

import bursar
from bursar._convert import invalid
from bursar.aio import AsyncClient
from bursar.exceptions import BudgetError, InvalidRequest
from bursar.middleware._generation import AsyncGeneration
from bursar.middleware._hosted import count, usage_from
from bursar.middleware._policy import BUDGET_EXHAUSTED, Policy
from bursar.models import Usage, Verdict

__all__ = ["BudgetMiddleware"]

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_CHAT: Final = "/v1/chat/completions"
_PATHS: Final = frozenset({_CHAT, "/v1/completions"})
_FREE: Final = frozenset({"/ping", "/tokenize", "/detokenize", "/v1/messages/count_tokens"})
_READING: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_COMPLETION: Final = 16
"""What OpenAI and vLLM make of a completion that names no limit."""
_COUNTED: Final = (
    "model",
    "messages",
    "prompt",
    "tools",
    "add_special_tokens",
    "add_generation_prompt",
    "continue_final_message",
    "chat_template",
    "chat_template_kwargs",
)
"""What of a request the server's tokenizer has to know."""
_BODY_BYTES_MAX: Final = 16 * 1024 * 1024
_DISCONNECT: Final = "http.disconnect"


class BudgetMiddleware:
    """Has the completions of an OpenAI-compatible ASGI server spend for accounts.

    Args:
        app: The server.
        client: Of a sidecar; None: as the environment says (BURSAR_TARGET).
        account: The account that spends; None: the environment's BURSAR_ACCOUNT.
        account_header: The header that names the account instead; for a server that only a trusted
            proxy can reach. None: the environment's BURSAR_ACCOUNT_HEADER, else there is none.
        priced: Whether models are priced by the rate card, under the name that a request says;
            else tokens are counted only. None: whether the environment's BURSAR_PRICED is 1.
        free_paths: Paths to pass on without a budget, such as those of an operator; all others that
            write, but the metered ones, are refused. None: the environment's BURSAR_FREE_PATHS,
            with commas between them.
        policy: How to reserve and cut.
    """

    def __init__(
        self,
        app: App,
        *,
        client: AsyncClient | None = None,
        account: str | None = None,
        account_header: str | None = None,
        priced: bool | None = None,
        free_paths: Collection[str] | None = None,
        policy: Policy | None = None,
    ) -> None:
        header = account_header or os.environ.get("BURSAR_ACCOUNT_HEADER", "")
        self._app = app
        self._client = client if client is not None else bursar.connect_async()
        self._account = account or os.environ.get("BURSAR_ACCOUNT", "")
        self._header = header.lower().encode()
        self._priced = os.environ.get("BURSAR_PRICED") == "1" if priced is None else priced
        if free_paths is None:
            free_paths = os.environ.get("BURSAR_FREE_PATHS", "").split(",")
        self._free = _FREE.union(filter(None, free_paths))
        self._policy = policy if policy is not None else Policy()
        if not self._account and not self._header:
            raise invalid("name the account that spends, by BURSAR_ACCOUNT", field="account")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection."""
        kind, path = scope["type"], scope.get("path", "").removeprefix(scope.get("root_path", ""))
        if kind == "lifespan" or scope.get("method") in _READING or path in self._free:
            await self._app(scope, receive, send)
            return
        if kind != "http" or path not in _PATHS:
            await _refuse(send, kind, f"{path} is not metered: call {' or '.join(sorted(_PATHS))}")
            return
        raw = await _read(receive)
        if raw is None:
            await _answer(send, 413, f"at most {_BODY_BYTES_MAX} bytes", "request_too_large")
            return
        body = _parsed(raw)
        if body is None:
            await _answer(
                send, 400, "send a JSON object: one prompt, one choice, no beam search", "invalid"
            )
            return
        # What the server does not read of it would be counted in the place of what it does.
        body.pop("prompt" if path == _CHAT else "messages", None)
        account = dict(scope["headers"]).get(self._header, b"").decode("latin-1") or self._account
        async with AsyncGeneration(
            self._client,
            account,
            policy=self._policy,
            fallbacks=(),
            provider="vllm",
            operation="chat" if path == _CHAT else "text_completion",
            stream=bool(body.get("stream")),
        ) as generation:
            await self._serve(generation, body, scope, receive, send)

    async def _serve(
        self,
        generation: AsyncGeneration,
        body: dict[str, Any],
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        prompt, context = await self._count(scope, body)
        asked = body.pop("max_completion_tokens", None) or body.get("max_tokens")
        if asked is None:
            asked = self._policy.max_new_tokens if "messages" in body else _COMPLETION
        if (
            context is not None
        ):  # the server refuses more; a prompt that fills it, it refuses itself
            asked = min(asked, max(1, context - prompt))
        model = str(body.get("model")) if self._priced else None
        try:
            most = await generation.on_prompt(prompt, model=model, max_new_tokens=asked)
        except InvalidRequest as wrong:
            await _answer(send, 400, wrong.message, "invalid")
            return
        except BudgetError as refused:
            await _answer(send, 402, refused.message, "budget_exceeded")
            return
        body["max_tokens"] = most
        advice = generation.advice
        for name in ("temperature", "repetition_penalty"):
            value = None if advice is None else getattr(advice, name)
            if value is not None:
                body[name] = value
        options = body.get("stream_options") or {}
        if body.get("stream"):
            every = {"include_usage": True, "continuous_usage_stats": True}
            body["stream_options"] = {**options, **every}
        call = _Call(generation, send, options, is_chat="messages" in body)
        raw = json.dumps(body).encode()
        headers = [pair for pair in scope["headers"] if pair[0] != b"content-length"]
        scope = {**scope, "headers": [*headers, (b"content-length", str(len(raw)).encode())]}
        await self._app(scope, call.receiver(raw, receive), call.send)
        await call.finish()

    async def _count(self, scope: Scope, body: dict[str, Any]) -> tuple[int, int | None]:
        """The prompt, exact by the server's own tokenizer, else an estimate; and its context."""
        wanted = {name: body[name] for name in _COUNTED if name in body}
        tokens = wanted.get("prompt")
        if isinstance(tokens, list):
            wanted |= {"prompt": "", "add_special_tokens": False}
        raw, found = json.dumps(wanted).encode(), bytearray()
        status, is_asked = 0, False

        async def receive() -> Message:
            nonlocal is_asked
            if is_asked:  # the server listens for a hang-up until it has answered
                await asyncio.Event().wait()
            is_asked = True
            return {"type": "http.request", "body": raw, "more_body": False}

        async def send(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            found.extend(message.get("body", b""))

        headers = [pair for pair in scope["headers"] if pair[0] != b"content-length"]
        headers.append((b"content-length", str(len(raw)).encode()))
        path = f"{scope.get('root_path', '')}/tokenize"
        inner = {**scope, "path": path, "raw_path": path.encode(), "headers": headers}
        known = len(tokens) if isinstance(tokens, list) else 0
        with contextlib.suppress(ValueError, KeyError, TypeError):
            await self._app(inner, receive, send)
            if status == 200:  # noqa: PLR2004 -- OK
                told = json.loads(found)
                return known + int(told["count"]), told.get("max_model_len")
        if known:
            return known, None
        prompt = body.get("messages") or str(body.get("prompt", ""))
        return count(prompt, body.get("tools") or (), None), None


class _Call:
    """One request on its way back."""

    def __init__(
        self, generation: AsyncGeneration, send: Send, options: dict[str, Any], *, is_chat: bool
    ) -> None:
        self._generation, self._send, self._options = generation, send, options
        self._is_chat = is_chat
        self._start: Message | None = None
        self._is_stream = False
        self._over = asyncio.Event()
        self._buffer = b""
        self._frame: dict[str, Any] = {}
        self._usage: Usage | None = None
        self._made = 0
        self._reason = "error"

    def receiver(self, raw: bytes, receive: Receive) -> Receive:
        """What the server receives: the body once; that the client has gone, once it is cut."""
        told = False

        async def receive_next() -> Message:
            nonlocal told
            if not told:
                told = True
                return {"type": "http.request", "body": raw, "more_body": False}
            # The server asks beside its work; by the time it is answered the call may be cut.
            return await self._gone(receive)

        return receive_next

    async def _gone(self, receive: Receive) -> Message:
        real = asyncio.ensure_future(receive())
        over = asyncio.ensure_future(self._over.wait())
        try:
            await asyncio.wait({real, over}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            over.cancel()
            if not real.done():
                real.cancel()
        return {"type": _DISCONNECT} if self._over.is_set() else await real

    async def send(self, message: Message) -> None:
        """What the server sends."""
        if self._over.is_set():
            return
        if message["type"] == "http.response.start":
            self._start = message
            kind = dict(message["headers"]).get(b"content-type", b"")
            self._is_stream = kind.startswith(b"text/event-stream")
            if self._is_stream:
                await self._send(message)
            return
        self._buffer += message.get("body", b"")
        if not self._is_stream:
            return
        *events, self._buffer = self._buffer.split(b"\n\n")
        for event in events:
            await self._event(event)
            if self._over.is_set():
                return

    async def _event(self, event: bytes) -> None:
        data = event.removeprefix(b"data: ")
        if data == b"[DONE]":
            await self._end(self._reason)
            return
        chunk = json.loads(data)
        verdict = await self._debit(chunk.pop("usage", None))
        choice = (chunk.get("choices") or [{}])[0]
        self._frame = {**chunk, "choices": []} if chunk.get("choices") else self._frame
        if verdict is Verdict.STOP:
            await self._end("stop")
        elif choice.get("finish_reason"):
            self._reason = choice["finish_reason"]
            choice["finish_reason"] = None
            await self._say(chunk)
        elif chunk.get("choices") or "error" in chunk:
            await self._say(chunk)
            if self._generation.remaining == 0 and self._made < self._generation.limit:
                await self._end("length")

    async def _debit(self, told: dict[str, Any] | None) -> Verdict:
        if not told:
            return Verdict.OK
        details = told.get("prompt_tokens_details") or {}
        made = told.get("completion_tokens") or 0
        self._usage = usage_from(
            told.get("prompt_tokens"), made, cached=details.get("cached_tokens")
        )
        new, self._made = max(0, made - self._made), max(made, self._made)
        return await self._generation.on_step(new) if new else Verdict.OK

    async def _end(self, ended: str) -> None:
        """A well-formed end of the stream, with the notice if the budget was it."""
        reason = await self._generation.on_end(ended, usage=self._usage)
        if reason == BUDGET_EXHAUSTED:
            await self._say(self._chunk(self._generation.notice, None))
        finish = "length" if reason == BUDGET_EXHAUSTED else reason
        await self._say(self._chunk("", finish))
        if self._options.get("include_usage") and self._usage is not None:
            await self._say({**self._frame, "choices": [], "usage": _told(self._usage)})
        self._over.set()
        await self._send(
            {"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": False}
        )

    async def _say(self, chunk: dict[str, Any]) -> None:
        body = b"data: " + json.dumps(chunk, ensure_ascii=False).encode() + b"\n\n"
        await self._send({"type": "http.response.body", "body": body, "more_body": True})

    def _chunk(self, text: str, finish: str | None) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish}
        if self._is_chat:
            choice["delta"] = {"content": text} if text else {}
        else:
            choice["text"] = text
        return {**self._frame, "choices": [choice]}

    async def finish(self) -> None:
        """Settles, and sends an answer in one piece."""
        if self._over.is_set():
            return
        if self._is_stream:  # the server has ended without its last word
            await self._send(
                {"type": "http.response.body", "body": self._buffer, "more_body": False}
            )
            return
        start = self._start
        if start is None:
            return
        body = self._buffer
        if start["status"] == 200:  # noqa: PLR2004 -- OK
            answer = json.loads(body)
            await self._debit(answer.get("usage"))
            choice = answer["choices"][0]
            reason = await self._generation.on_end(
                choice.get("finish_reason") or "stop", usage=self._usage
            )
            if reason == BUDGET_EXHAUSTED:
                part, name = (choice["message"], "content") if self._is_chat else (choice, "text")
                part[name] = (part.get(name) or "") + self._generation.notice
                choice["finish_reason"] = "length"
                body = json.dumps(answer, ensure_ascii=False).encode()
        else:
            await self._generation.abandon()
        headers = [pair for pair in start["headers"] if pair[0].lower() != b"content-length"]
        headers.append((b"content-length", str(len(body)).encode()))
        await self._send({**start, "headers": headers})
        await self._send({"type": "http.response.body", "body": body, "more_body": False})


def _told(usage: Usage) -> dict[str, int]:
    total = usage.input_tokens + usage.output_tokens
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": total,
    }


def _parsed(raw: bytes) -> dict[str, Any] | None:
    """The request; None: it cannot be metered."""
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return body if isinstance(body, dict) and _is_one(body) else None


def _is_one(body: dict[str, Any]) -> bool:
    """Whether it asks for one text after one prompt: what is granted holds for that."""
    prompt = body.get("prompt", "")
    is_prompt = isinstance(prompt, str) or (
        isinstance(prompt, list) and all(isinstance(token, int) for token in prompt)
    )
    numbers = (body.get("max_tokens"), body.get("max_completion_tokens"))
    return (
        is_prompt
        and all(number is None or isinstance(number, int) for number in numbers)
        and all(body.get(name) in (None, 1) for name in ("n", "best_of"))
        and not body.get("use_beam_search")
        and body.get("prompt_embeds") is None
    )


async def _read(receive: Receive) -> bytes | None:
    """The whole body; None: it is too long."""
    body = bytearray()
    while True:
        message = await receive()
        body.extend(message.get("body", b""))
        if len(body) > _BODY_BYTES_MAX:
            return None
        if not message.get("more_body"):
            return bytes(body)


async def _refuse(send: Send, kind: str, message: str) -> None:
    if kind == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": message})
    else:
        await _answer(send, 403, message, "not_metered")


async def _answer(send: Send, status: int, message: str, code: str) -> None:
    """An error as the OpenAI clients know it."""
    error = {"message": message, "type": "insufficient_quota", "param": None, "code": code}
    body = json.dumps({"error": error}).encode()
    headers = [(b"content-type", b"application/json"), (b"x-should-retry", b"false")]
    headers.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})
