"""llama.cpp's own server in this process (the package xllamacpp), under a budget.

`BudgetedServer` answers the calls of `xllamacpp.Server` with the same arguments. It counts what the
engine says it has computed (`timings.predicted_n`), never chunks: a chunk may hold the several
tokens of one character. It tells the engine its limit in advance, and applies advice to a running
generation by continuing it, from the cache, with other settings. It owns no model and no server.
"""

import http.client
import json
import queue
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

from bursar._convert import invalid
from bursar.client import Client
from bursar.exceptions import BursarError
from bursar.middleware._generation import Generation
from bursar.middleware._hosted import needs
from bursar.middleware._policy import BUDGET_EXHAUSTED, Policy
from bursar.models import Advice, Usage, Verdict

__all__ = ["BudgetedServer"]

Body = Mapping[str, Any]
Chunk = dict[str, Any]
Callback = Callable[[Chunk], Any]

_TIMEOUT_S: Final = 30.0
_SLOTS_MAX: Final = 1024
_FIXED: Final = ("tools", "response_format", "grammar", "json_schema")
"""What the engine follows from the first token on: such an answer cannot be continued."""


class Server(Protocol):
    """What is used of `xllamacpp.Server`."""

    @property
    def listening_address(self) -> str:
        """Where it listens."""

    def handle_completions(self, body: Any, callback: Callback) -> None:  # noqa: ANN401 -- JSON
        """Answers ``/v1/completions``."""

    def handle_chat_completions(self, body: Any, callback: Callback) -> None:  # noqa: ANN401 -- JSON
        """Answers ``/v1/chat/completions``."""


class BudgetedServer:
    """A `xllamacpp.Server` whose every call is reserved, metered and, at the limit, cut.

    The answer of a cut call ends with the notice and the finish reason ``budget_exhausted``, and
    the cache of its slot is erased. A refused call raises `BudgetExceeded` before any compute.

    Args:
        server: The engine. It needs `slot_save_path` (without it, llama.cpp erases no slot).
        client: Of a sidecar, or of a ledger in this process.
        account: The account that spends.
        model: The model's name as the rate card knows it; None: tokens are counted, not priced.
        fallbacks: Model → the server that has it, for budgets that ask for a cheaper one; what it
            can do is in `Policy.capabilities`.
        policy: How to reserve and cut.
        api_key: The engine's, if it has one.

    Raises:
        InvalidRequest: The engine cannot erase a slot.
    """

    def __init__(
        self,
        server: Server,
        *,
        client: Client,
        account: str,
        model: str | None = None,
        fallbacks: "Mapping[str, BudgetedServer] | None" = None,
        policy: Policy | None = None,
        api_key: str | None = None,
    ) -> None:
        self._server, self._client, self._account, self._model = server, client, account, model
        self._fallbacks = dict(fallbacks or {})
        self._policy = policy if policy is not None else Policy()
        self._engine = _Engine(server.listening_address, api_key)
        self._slots: queue.SimpleQueue[int] = queue.SimpleQueue()
        for slot in range(self._engine.slot_count()):
            self._slots.put(slot)

    def handle_chat_completions(self, body: Body, callback: Callback) -> None:
        """As the engine's; chunks are dictionaries, and a true answer to one ends the call."""
        self._answer(body, callback, is_chat=True)

    def handle_completions(self, body: Body, callback: Callback) -> None:
        """As `handle_chat_completions`, for a prompt that is one string."""
        if not isinstance(body.get("prompt"), str):
            raise invalid("the prompt has to be one string", field="prompt")
        self._answer(body, callback, is_chat=False)

    def _answer(self, body: Body, callback: Callback, *, is_chat: bool) -> None:
        if any(body.get(name) not in {None, 1} for name in ("n", "n_cmpl")):
            raise invalid("ask for one choice at a time", field="n")
        asked = body.get("max_completion_tokens", body.get("max_tokens", body.get("n_predict")))
        if asked is not None and asked < 1:
            asked = None  # llama.cpp's "no limit"; for 0 it makes 1 token all the same
        fallbacks = self._fallbacks
        generation = Generation(
            self._client,
            self._account,
            policy=self._policy,
            fallbacks=fallbacks,
            provider="llama.cpp",
            operation="chat" if is_chat else "text_completion",
            stream=bool(body.get("stream")),
        )
        with generation:
            prompt_tokens = self._engine.count_prompt(body, is_chat=is_chat)
            generation.on_prompt(
                prompt_tokens,
                model=self._model,
                max_new_tokens=asked,
                needs=needs(body.get("messages", ""), body.get("tools")),
            )
            runner = fallbacks.get(generation.model or "", self)
            with runner.slot() as slot:
                call = _Call(body, callback, generation, slot=slot, is_chat=is_chat)
                try:
                    call.run(runner.handler(is_chat=is_chat))
                finally:
                    reason = generation.on_end(call.ended, usage=call.usage(), error=call.failure)
                    if reason == BUDGET_EXHAUSTED:
                        runner.erase(slot)
                call.finish()

    def handler(self, *, is_chat: bool) -> Callable[[Chunk, Callback], None]:
        """The engine's own call."""
        server = self._server
        return server.handle_chat_completions if is_chat else server.handle_completions

    @contextmanager
    def slot(self) -> Iterator[int]:
        """A slot of the engine for one call; waits for one."""
        slot = self._slots.get()
        try:
            yield slot
        finally:
            self._slots.put(slot)

    def erase(self, slot: int) -> int:
        """Erases what the cache holds of a slot; how many tokens that were."""
        return self._engine.erase(slot)


class _Call:
    """One call, from the first chunk to the last."""

    def __init__(
        self, body: Body, callback: Callback, generation: Generation, *, slot: int, is_chat: bool
    ) -> None:
        self._body, self._callback, self._generation = body, callback, generation
        self._slot, self._is_chat = slot, is_chat
        self._is_streaming = bool(body.get("stream"))
        self._made = 0  # what the engine has computed in this run
        self._prompt_tokens: int | None = None
        self._text = ""
        self._parts: list[Chunk] = []
        self._frame: Chunk = {}
        self.failure: BaseException | None = None
        self._applied = self._sampling(generation.advice)
        self._again = False
        self.ended = "error"

    @staticmethod
    def _sampling(advice: Advice | None) -> dict[str, float]:
        if advice is None:
            return {}
        wanted = {"temperature": advice.temperature, "repeat_penalty": advice.repetition_penalty}
        return {name: value for name, value in wanted.items() if value is not None}

    def run(self, handle: Callable[[Chunk, Callback], None]) -> None:
        """Has the engine generate, until it or the budget ends it."""
        while True:
            self._made, self._again = 0, False
            handle(self._request(), self._on_chunk)
            if self.failure is not None:
                raise self.failure
            if not self._again:
                return

    def _request(self) -> Chunk:
        request = {**self._body, **self._applied}
        for name in ("max_completion_tokens", "n_predict"):
            request.pop(name, None)
        request |= {
            "max_tokens": self._generation.remaining,
            "stream": True,
            "stream_options": {"include_usage": True},
            "timings_per_token": True,
            "id_slot": self._slot,
            "cache_prompt": True,
        }
        if self._text and self._is_chat:
            request["messages"] = [
                *request["messages"],
                {"role": "assistant", "content": self._text},
            ]
        elif self._text:
            request["prompt"] += self._text
        return request

    def _on_chunk(self, chunk: Chunk) -> bool:
        # The engine drops what a callback raises, so it is kept here.
        try:
            return self._take(chunk)
        except BaseException as error:  # noqa: BLE001 -- raised again by `run`
            self.failure = error
            return True

    def _take(self, chunk: Chunk) -> bool:
        if "error" in chunk:
            failure = BursarError(f"llama.cpp: {chunk['error'].get('message')}", reason="ENGINE")
            if not self._generation.used:
                self._generation.abandon(failure)
            raise failure
        verdict = self._debit(chunk)
        choices = chunk.get("choices")
        if not choices:
            return False
        finished = choices[0].get("finish_reason")
        if finished is not None:
            self.ended = finished
            return False
        if verdict is Verdict.STOP:
            self.ended = "stop"
            return True
        if self._pass_on(chunk, choices[0]):
            self.ended = "cancelled"
            return True
        # While all is well there is no advice, and the limit is the one that the engine was told.
        return (verdict is not Verdict.OK or bool(self._applied)) and self._follow()

    def _debit(self, chunk: Chunk) -> Verdict:
        """Debits what the engine has computed since the last chunk."""
        timings = chunk.get("timings")
        if timings is None:
            return Verdict.OK
        if self._prompt_tokens is None and "prompt_n" in timings:
            self._prompt_tokens = timings["prompt_n"] + timings.get("cache_n", 0)
        new = timings.get("predicted_n", 0) - self._made
        if new <= 0:
            return Verdict.OK
        self._made += new
        return self._generation.on_step(new)

    def _pass_on(self, chunk: Chunk, choice: Chunk) -> bool:
        if not self._frame:  # the same in all chunks of an answer
            self._frame = {key: chunk[key] for key in ("id", "created", "model", "object")}
        delta = choice.get("delta", choice)
        self._text += delta.get("content" if self._is_chat else "text") or ""
        if self._is_streaming:
            return bool(self._callback(chunk))
        self._parts.append(delta)
        return False

    def _follow(self) -> bool:
        """Follows the advice; whether the engine has to stop for it."""
        if self._generation.remaining == 0:
            self.ended = "length"
            return self._made > 0
        wanted = self._sampling(self._generation.advice)
        if wanted == self._applied or any(self._body.get(name) for name in _FIXED):
            return False
        self._applied, self._again = wanted, True
        return True

    def usage(self) -> Usage | None:
        """What the engine itself has counted; None: it has not begun."""
        if self._prompt_tokens is None:
            return None
        return Usage(input_tokens=self._prompt_tokens, output_tokens=self._generation.used)

    def finish(self) -> None:
        """Sends the notice, why it ended, and the usage."""
        reason = self._generation.reason
        notice = self._generation.notice if reason == BUDGET_EXHAUSTED else ""
        used = self._generation.used
        prompt = self._prompt_tokens or self._generation.prompt_tokens
        usage = {
            "prompt_tokens": prompt,
            "completion_tokens": used,
            "total_tokens": prompt + used,
        }
        if not self._is_streaming:
            self._callback({**self._whole(notice, reason), "usage": usage})
            return
        if reason == "cancelled":
            return
        for text, why in ((notice, None), ("", reason)):
            if text or why:
                self._callback({**self._frame, "choices": [self._choice(text, why)]})
        if (self._body.get("stream_options") or {}).get("include_usage"):
            self._callback({**self._frame, "choices": [], "usage": usage})

    def _choice(self, text: str, reason: str | None) -> Chunk:
        if not self._is_chat:
            return {"index": 0, "text": text, "logprobs": None, "finish_reason": reason}
        return {"index": 0, "delta": {"content": text} if text else {}, "finish_reason": reason}

    def _whole(self, notice: str, reason: str | None) -> Chunk:
        """The answer that was asked for in one piece."""
        text = self._text + notice
        if not self._is_chat:
            return {**self._frame, "choices": [self._choice(text, reason)]}
        message: Chunk = {"role": "assistant", "content": text}
        thought = "".join(part.get("reasoning_content") or "" for part in self._parts)
        if thought:
            message["reasoning_content"] = thought
        calls: dict[int, Chunk] = {}
        for piece in (one for part in self._parts for one in part.get("tool_calls") or ()):
            call = calls.setdefault(piece["index"], {"type": "function", "function": {}})
            call |= {key: piece[key] for key in ("id", "type") if key in piece}
            for key, value in piece.get("function", {}).items():
                call["function"][key] = call["function"].get(key, "") + value
        if calls:
            message["tool_calls"] = [calls[index] for index in sorted(calls)]
        choice = {"index": 0, "message": message, "finish_reason": reason}
        return {**self._frame, "object": "chat.completion", "choices": [choice]}


class _Engine:
    """What is asked of the engine beside the calls: counts, slots."""

    def __init__(self, address: str, api_key: str | None) -> None:
        self._at = urlsplit(address)
        self._headers = {"Content-Type": "application/json"}
        if api_key is not None:
            self._headers["Authorization"] = f"Bearer {api_key}"

    @contextmanager
    def _connected(self) -> Iterator[http.client.HTTPConnection]:
        host = self._at.hostname or "localhost"
        connection = http.client.HTTPConnection(host, self._at.port, timeout=_TIMEOUT_S)
        try:
            yield connection
        finally:
            connection.close()

    def _ask(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        body: Body | None = None,
    ) -> tuple[int, Any]:
        connection.request(method, path, json.dumps(body or {}), self._headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())

    def _right(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        body: Body | None = None,
    ) -> Any:  # noqa: ANN401 -- JSON
        status, answer = self._ask(connection, method, path, body)
        if status != http.client.OK:
            raise BursarError(f"llama.cpp answered {status} to {path}: {answer}", reason="ENGINE")
        return answer

    def slot_count(self) -> int:
        """How many slots it has, once it is sure that they can be erased."""
        with self._connected() as engine:
            status, answer = self._ask(engine, "POST", "/slots/0?action=none")
            if status != http.client.BAD_REQUEST:
                raise invalid(f"the engine erases no slot: {answer}", field="slot_save_path")
            return min(int(self._right(engine, "GET", "/props")["total_slots"]), _SLOTS_MAX)

    def count_prompt(self, body: Body, *, is_chat: bool) -> int:
        """The exact prompt, the model's template included."""
        prompt = body.get("prompt")
        with self._connected() as engine:
            if is_chat:
                prompt = self._right(engine, "POST", "/apply-template", body)["prompt"]
            asked = {"content": prompt, "add_special": True, "parse_special": True}
            return len(self._right(engine, "POST", "/tokenize", asked)["tokens"])

    def erase(self, slot: int) -> int:
        """Erases a slot; how many tokens it held."""
        with self._connected() as engine:
            return int(self._right(engine, "POST", f"/slots/{slot}?action=erase")["n_erased"])
