"""LangChain 1.x under a budget: an agent middleware, and a callback handler for bare models.

The middleware sees requests and can change them (limit, temperature, model); only a callback sees
tokens, and only while the model streams. So the middleware lends its model a callback and makes it
stream. It owns no model; the handler that it lends lives as long as the call.
"""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from langchain.agents.middleware import AgentMiddleware, ModelRequest, ModelResponse
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.messages.utils import convert_to_openai_messages
from langchain_core.outputs import LLMResult
from langchain_core.utils.function_calling import convert_to_openai_tool

from bursar.client import Client
from bursar.exceptions import GenerationTerminated
from bursar.middleware._generation import Generation
from bursar.middleware._hosted import Metered, Tokenizers, count, needs, usage_from
from bursar.middleware._policy import BUDGET_EXHAUSTED, Policy
from bursar.middleware._telemetry import provider_name
from bursar.models import Usage

__all__ = ["BudgetCallback", "BudgetMiddleware"]

_CALLS_MAX: Final = 10_000


class BudgetMiddleware(AgentMiddleware[Any, Any, Any]):
    """Reserves before each model call of an agent, meters its tokens, and cuts it at the limit.

    ```python
    agent = create_agent(model, tools, middleware=[BudgetMiddleware(client, account="acme/a")])
    ```

    A cut call answers what came until then with the notice, which ends the agent's loop. A refused
    one raises `BudgetExceeded`.

    Args:
        client: Of a sidecar, or of a ledger in this process.
        account: The account that spends.
        model: The model's name as the rate card knows it; None: the name that the model says.
        fallbacks: Name → the model to use where the budget asks for a cheaper one; what it can do
            is in `Policy.capabilities`.
        policy: How to reserve and cut.
        tokenizer: As for `count_prompt_tokens`; None: what the rate card says.
    """

    def __init__(
        self,
        client: Client,
        *,
        account: str,
        model: str | None = None,
        fallbacks: Mapping[str, BaseChatModel] | None = None,
        policy: Policy | None = None,
        tokenizer: str | Path | None = None,
    ) -> None:
        super().__init__()
        self._client, self._account, self._model = client, account, model
        self._fallbacks = dict(fallbacks or {})
        self._policy = policy if policy is not None else Policy()
        self._tokenizers = Tokenizers(tokenizer)

    def wrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Any]
    ) -> Any:  # noqa: ANN401 -- the framework's own union
        """One model call."""
        with self._generation(request.model) as generation:
            asked, callback = self._prepare(generation, request)
            try:
                with generation.current():
                    response = handler(asked)
            except GenerationTerminated as cut:
                generation.on_end("stop")
                return _cut_short(cut.partial_text, generation)
            except BaseException as error:
                _settle_failed(generation, error)
                raise
            return self._settle(generation, response, callback)

    async def awrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Awaitable[Any]]
    ) -> Any:  # noqa: ANN401 -- the framework's own union
        """One model call; what asks the sidecar runs in a thread."""
        generation = self._generation(request.model)
        try:
            asked, callback = await asyncio.to_thread(self._prepare, generation, request)
            try:
                with generation.current():
                    response = await handler(asked)
            except GenerationTerminated as cut:
                await asyncio.to_thread(generation.on_end, "stop")
                return _cut_short(cut.partial_text, generation)
            return await asyncio.to_thread(self._settle, generation, response, callback)
        except BaseException as error:
            await asyncio.to_thread(_settle_failed, generation, error)
            raise

    def _generation(self, model: BaseChatModel) -> Generation:
        return Generation(
            self._client,
            self._account,
            policy=self._policy,
            fallbacks=self._fallbacks,
            provider=_provider(model._get_ls_params()),  # noqa: SLF001 -- what callbacks are told
            stream="streaming" in type(model).model_fields,
        )

    def _prepare(
        self, generation: Generation, request: ModelRequest[Any]
    ) -> tuple[ModelRequest[Any], "BudgetCallback"]:
        """Reserves, and has the request follow."""
        name = self._model or _name(request.model)
        tokenizer = self._tokenizers.of(self._client, name)
        messages = [request.system_message] if request.system_message else []
        tools = [
            one if isinstance(one, dict) else convert_to_openai_tool(one) for one in request.tools
        ]
        prompt = _plain([*messages, *request.messages])
        asked = request.model_settings.get("max_tokens") or getattr(
            request.model, "max_tokens", None
        )
        most = generation.on_prompt(
            count(prompt, tools, tokenizer),
            model=name,
            max_new_tokens=asked,
            needs=needs(prompt, tools or request.response_format),
        )
        model = request.model
        if generation.model is not None and generation.model != name:
            model = self._fallbacks[generation.model]
        callback = BudgetCallback(
            self._client, account=self._account, policy=self._policy, tokenizer=tokenizer
        )
        callback.lend(Metered(generation, tokenizer))
        settings = {**request.model_settings, "max_tokens": most}
        advice = generation.advice
        if advice is not None and advice.temperature is not None:
            settings["temperature"] = advice.temperature
        return request.override(model=_watched(model, callback), model_settings=settings), callback

    def _settle(
        self,
        generation: Generation,
        response: Any,  # noqa: ANN401 -- the framework's own union
        callback: "BudgetCallback",
    ) -> Any:  # noqa: ANN401 -- the framework's own union
        message = response.result[-1] if isinstance(response, ModelResponse) else response
        usage = _usage(message) if isinstance(message, AIMessage) else callback.usage
        reason = generation.on_end(_finish(message), usage=usage)
        if reason != BUDGET_EXHAUSTED:
            return response
        return _cut_short(str(message.text), generation)


class BudgetCallback(BaseCallbackHandler):
    """Meters the calls of a chat model that is used without an agent, and cuts them at the limit.

    ```python
    model.invoke("Hello", config={"callbacks": [BudgetCallback(client, account="acme/a")]})
    ```

    It can refuse (`BudgetExceeded`) and cut (`GenerationTerminated`, with the partial text), but
    change nothing about the request; the model has to stream (``streaming=True``, and
    ``stream_usage=True`` with a base URL of one's own) to be cut at all.
    """

    raise_error = True  # else the framework logs what is raised here and goes on
    run_inline = True

    def __init__(
        self,
        client: Client,
        *,
        account: str,
        model: str | None = None,
        policy: Policy | None = None,
        tokenizer: str | Path | None = None,
    ) -> None:
        self._client, self._account, self._model = client, account, model
        self._policy = policy
        self._tokenizers = Tokenizers(tokenizer)
        self._calls: dict[UUID, Metered] = {}
        self._lent: Metered | None = None
        self._lock = threading.Lock()
        self.usage: Usage | None = None

    def lend(self, metered: Metered) -> None:
        """Meters all calls by this generation, which its owner ends."""
        self._lent = metered

    def on_chat_model_start(
        self,
        serialized: dict[str, Any],  # noqa: ARG002 -- the interface
        messages: list[list[BaseMessage]],
        *,
        run_id: UUID,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,  # noqa: ANN401 -- whatever the framework says
    ) -> None:
        """Reserves the call."""
        if self._lent is not None:
            return
        name = self._model or (metadata or {}).get("ls_model_name")
        tokenizer = self._tokenizers.of(self._client, name)
        said = kwargs.get("invocation_params") or {}
        asked = said.get("max_completion_tokens") or said.get("max_tokens")
        generation = Generation(
            self._client,
            self._account,
            policy=self._policy,
            fallbacks=(),
            provider=_provider(metadata or {}),
            stream=bool(said.get("stream")),
        )
        prompt = sum(count(_plain(batch), said.get("tools") or (), tokenizer) for batch in messages)
        generation.on_prompt(prompt, model=name, max_new_tokens=asked)
        with self._lock:
            if len(self._calls) >= _CALLS_MAX:
                generation.abandon()
                raise RuntimeError(f"{_CALLS_MAX} calls at once: what has become of them?")
            self._calls[run_id] = Metered(generation, tokenizer)

    def on_llm_new_token(
        self,
        token: str | list[Any],
        *,
        run_id: UUID,
        **kwargs: Any,  # noqa: ANN401, ARG002 -- whatever the framework says
    ) -> None:
        """Debits what came; raises where nothing more fits."""
        metered = self._lent or self._calls.get(run_id)
        piece = token if isinstance(token, str) else "".join(map(_text, token))
        if metered is None or not piece or metered.step(piece):
            return
        if self._lent is None:
            self._end(run_id, "stop", None)
        generation = metered.generation
        message = f"the budget of {generation.account} is exhausted"
        raise GenerationTerminated(message, partial_text=metered.text, reason=BUDGET_EXHAUSTED)

    def on_llm_end(
        self,
        response: LLMResult,
        *,
        run_id: UUID,
        **kwargs: Any,  # noqa: ANN401, ARG002 -- whatever the framework says
    ) -> None:
        """Settles the call by the usage that the model says."""
        message = getattr(response.generations[0][0], "message", None)
        usage = _usage(message) if isinstance(message, AIMessage) else None
        self.usage = usage
        self._end(run_id, "stop", usage)

    def on_llm_error(
        self,
        error: BaseException,
        *,
        run_id: UUID,
        **kwargs: Any,  # noqa: ANN401, ARG002 -- whatever the framework says
    ) -> None:
        """Settles what was counted; nothing where nothing came."""
        with self._lock:
            metered = self._calls.pop(run_id, None)
        if metered is not None:
            _settle_failed(metered.generation, error)

    def _end(self, run_id: UUID, reason: str, usage: Usage | None) -> None:
        with self._lock:
            metered = self._calls.pop(run_id, None)
        if metered is not None:
            metered.generation.on_end(reason, usage=usage)


def _settle_failed(generation: Generation, error: BaseException) -> None:
    # Who cancels pays for the prompt that was sent.
    if generation.used or not isinstance(error, Exception):
        generation.on_end("error", error=error)
    else:
        generation.abandon(error)


def _cut_short(text: str, generation: Generation) -> AIMessage:
    return AIMessage(
        content=text + generation.notice, response_metadata={"finish_reason": BUDGET_EXHAUSTED}
    )


def _name(model: BaseChatModel) -> str | None:
    name = getattr(model, "model_name", None) or getattr(model, "model", None)
    return name if isinstance(name, str) else None


def _provider(told: Mapping[str, Any]) -> str:
    return provider_name(str(told.get("ls_provider") or ""))


def _watched(model: BaseChatModel, callback: BudgetCallback) -> BaseChatModel:
    """The model, with the callback and streaming."""
    callbacks = model.callbacks
    if callbacks is not None and not isinstance(callbacks, list):
        callbacks = callbacks.copy()
        callbacks.add_handler(callback)
    else:
        callbacks = [*(callbacks or ()), callback]
    wished = {"streaming": True, "stream_usage": True}
    fields = type(model).model_fields
    update = {name: value for name, value in wished.items() if name in fields}
    return model.model_copy(update=update | {"callbacks": callbacks})


def _plain(messages: Sequence[BaseMessage]) -> list[dict[str, Any]]:
    return list(convert_to_openai_messages(list(messages)))


def _text(block: object) -> str:
    return str(block.get("text", "")) if isinstance(block, Mapping) else str(block)


def _finish(message: BaseMessage) -> str:
    reason = message.response_metadata.get("finish_reason")
    return reason if isinstance(reason, str) else "stop"


def _usage(message: AIMessage) -> Usage | None:
    told = message.usage_metadata
    if told is None:
        return None
    details = told.get("input_token_details") or {}
    return usage_from(
        told["input_tokens"],
        told["output_tokens"],
        cached=details.get("cache_read"),
        written=details.get("cache_creation"),
    )
