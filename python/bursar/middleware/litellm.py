"""LiteLLM's proxy under a budget: a callback that reserves, meters, cuts and makes cheaper.

For the proxy only: in LiteLLM's SDK mode the hook that could refuse does not fire, and the one that
could cut a stream does not. Refusals are 402: of a 429 the official clients make three requests.
"""

import contextlib
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Container, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any, Final

from fastapi import HTTPException
from litellm.integrations.custom_logger import CustomLogger

from bursar.aio import AsyncClient
from bursar.exceptions import BudgetError, BudgetExceeded
from bursar.middleware._generation import AsyncGeneration
from bursar.middleware._hosted import AsyncMetered, Tokenizers, count, needs, usage_from
from bursar.middleware._policy import BUDGET_EXHAUSTED, Policy
from bursar.models import Usage

__all__ = ["BudgetLogger"]

_CALLS_MAX: Final = 10_000
_ANSWERS: Final = ("n", "best_of", "n_cmpl")
_TEXT_CALLS: Final = frozenset({"completion", "acompletion", "text_completion", "atext_completion"})

AccountOf = Callable[[Any, Mapping[str, Any]], str]
"""Says whose call it is, from LiteLLM's `UserAPIKeyAuth` and the request."""


class BudgetLogger(CustomLogger):
    """Has the calls of a LiteLLM proxy spend for accounts.

    ```python
    # budget.py, named in the proxy's configuration as `callbacks: ["budget.logger"]`
    logger = BudgetLogger(bursar.connect_async(), account="acme/litellm")
    ```

    A cut answer ends with the notice and ``finish_reason: "length"``, which every client knows.

    Args:
        client: Of a sidecar; belongs to the proxy's event loop.
        account: The account that spends, or what says it for a call (never the body alone: a
            caller writes that).
        models: The proxy's name of a model → the rate card's, where they differ.
        fallbacks: The models, in the proxy's names, that it may fall back to; what they can do is
            in `Policy.capabilities`.
        policy: How to reserve and cut.
        tokenizer: As for `count_prompt_tokens`; None: what the rate card says.
    """

    def __init__(
        self,
        client: AsyncClient,
        *,
        account: str | AccountOf,
        models: Mapping[str, str] | None = None,
        fallbacks: Container[str] = (),
        policy: Policy | None = None,
        tokenizer: str | Path | None = None,
    ) -> None:
        super().__init__()
        self._client, self._account = client, account
        self._models, self._fallbacks = dict(models or {}), fallbacks
        self._policy = policy if policy is not None else Policy()
        self._tokenizers = Tokenizers(tokenizer)
        self._calls: OrderedDict[str, AsyncMetered] = OrderedDict()

    async def async_pre_call_hook(
        self,
        user_api_key_dict: Any,  # noqa: ANN401 -- LiteLLM's own
        cache: Any,  # noqa: ANN401, ARG002 -- LiteLLM's own
        data: dict[str, Any],
        call_type: str,
    ) -> dict[str, Any]:
        """Reserves the call, and has the request follow."""
        call = data.get("litellm_call_id")
        if call_type not in _TEXT_CALLS or not isinstance(call, str):
            return data
        if _asks_for_several(data):
            message = "ask for one answer to one prompt: what is granted holds for that"
            raise HTTPException(400, detail={"error": {"message": message, "code": "invalid"}})
        account = self._account
        if not isinstance(account, str):
            account = account(user_api_key_dict, data)
        name = self._models.get(data["model"], data["model"])
        tokenizer = await self._tokenizers.of_async(self._client, name)
        generation = AsyncGeneration(
            self._client,
            account,
            policy=self._policy,
            fallbacks=self._fallbacks,
            provider="litellm",
            operation="text_completion" if "text" in call_type else "chat",
            stream=bool(data.get("stream")),
        )
        prompt = data.get("messages") or str(data.get("prompt", ""))
        tools = data.get("tools") or data.get("functions") or ()
        asked = data.get("max_completion_tokens") or data.get("max_tokens")
        try:
            most = await generation.on_prompt(
                count(prompt, tools, tokenizer),
                model=name,
                max_new_tokens=asked,
                needs=needs(prompt, tools),
            )
        except BudgetError as refused:
            raise _denied(refused) from refused
        data.pop("max_completion_tokens", None)
        data["max_tokens"] = most
        if generation.model is not None and generation.model != name:
            data["model"] = generation.model
        advice = generation.advice
        if advice is not None and advice.temperature is not None:
            data["temperature"] = advice.temperature
        if data.get("stream"):
            options = data.get("stream_options") or {}
            data["stream_options"] = {**options, "include_usage": True}
        self._calls[call] = AsyncMetered(generation, tokenizer)
        while len(self._calls) > _CALLS_MAX:  # what LiteLLM has never ended
            await self._calls.popitem(last=False)[1].generation.on_end("error")
        return data

    async def async_post_call_streaming_iterator_hook(
        self,
        user_api_key_dict: Any,  # noqa: ANN401, ARG002 -- LiteLLM's own
        response: AsyncIterator[Any],
        request_data: dict[str, Any],
    ) -> AsyncGenerator[Any, None]:
        """Meters a stream. After a cut LiteLLM tells nobody of a success, so it settles itself."""
        metered = self._calls.pop(str(request_data.get("litellm_call_id")), None)
        if metered is None:
            async for chunk in response:
                yield chunk
            return
        generation, usage, last, ended = metered.generation, None, None, "stop"
        async with generation, aclosing(_generator(response)) as chunks:
            async for chunk in chunks:
                usage = _usage(getattr(chunk, "usage", None)) or usage
                choice = chunk.choices[0] if chunk.choices else None
                if choice is not None:
                    if not await metered.step(_written(choice)):
                        usage = None
                        break
                    last = chunk
                    if choice.finish_reason:
                        ended = choice.finish_reason
                        continue  # sent below, behind a notice
                    yield chunk
            reason = await generation.on_end(ended, usage=usage)
            if last is None:
                return
            if reason == BUDGET_EXHAUSTED:
                yield _chunk(last, content=generation.notice, finish=None)
                ended = "length"
            yield _chunk(last, content=None, finish=ended)

    async def async_post_call_success_hook(
        self,
        data: dict[str, Any],
        user_api_key_dict: Any,  # noqa: ANN401, ARG002 -- LiteLLM's own
        response: Any,  # noqa: ANN401 -- LiteLLM's own
    ) -> Any:  # noqa: ANN401 -- LiteLLM's own
        """Settles an answer in one piece."""
        metered = self._calls.pop(str(data.get("litellm_call_id")), None)
        if metered is None:
            return response
        choice = response.choices[0]
        usage = _usage(getattr(response, "usage", None))
        reason = await metered.generation.on_end(choice.finish_reason or "stop", usage=usage)
        if reason == BUDGET_EXHAUSTED:
            notice = metered.generation.notice
            if hasattr(choice, "message"):
                choice.message.content = (choice.message.content or "") + notice
            else:
                choice.text = (choice.text or "") + notice
            choice.finish_reason = "length"
        return response

    async def async_post_call_failure_hook(
        self,
        request_data: dict[str, Any],
        original_exception: Exception,
        user_api_key_dict: Any,  # noqa: ANN401, ARG002 -- LiteLLM's own
        traceback_str: str | None = None,  # noqa: ARG002 -- LiteLLM's own
    ) -> None:
        """Gives back what a call that failed had reserved."""
        metered = self._calls.pop(str(request_data.get("litellm_call_id")), None)
        if metered is not None:
            await metered.generation.abandon(original_exception)


async def _generator(stream: AsyncIterator[Any]) -> AsyncGenerator[Any, None]:
    """The stream, so that closing it closes what is beneath."""
    try:
        async for chunk in stream:
            yield chunk
    finally:
        for name in ("aclose", "close"):
            close = getattr(stream, name, None)
            if close is not None:
                with contextlib.suppress(RuntimeError):  # it ended by itself
                    await close()
                break


def _asks_for_several(data: Mapping[str, Any]) -> bool:
    prompt = data.get("prompt")
    is_list = isinstance(prompt, list) and not all(isinstance(one, int) for one in prompt)
    return is_list or any(data.get(name) not in {None, 1} for name in _ANSWERS)


def _written(choice: Any) -> str:  # noqa: ANN401 -- LiteLLM's own
    """What the model has written in this chunk: text, thoughts, arguments of tools."""
    delta = getattr(choice, "delta", None)
    if delta is None:
        return choice.text or ""
    calls = getattr(delta, "tool_calls", None) or ()
    arguments = (getattr(one.function, "arguments", None) or "" for one in calls)
    thought = getattr(delta, "reasoning_content", None) or ""
    return (getattr(delta, "content", None) or "") + thought + "".join(arguments)


def _chunk(like: Any, *, content: str | None, finish: str | None) -> Any:  # noqa: ANN401 -- LiteLLM's own
    made = like.model_copy(deep=True)
    choice = made.choices[0]
    if hasattr(choice, "delta"):
        choice.delta.content = content
        choice.delta.tool_calls = None
    else:
        choice.text = content or ""
    choice.finish_reason = finish
    if hasattr(made, "usage"):
        made.usage = None
    return made


def _usage(told: Any) -> Usage | None:  # noqa: ANN401 -- LiteLLM's own
    if told is None:
        return None
    details = getattr(told, "prompt_tokens_details", None)
    return usage_from(
        told.prompt_tokens,
        told.completion_tokens,
        cached=getattr(details, "cached_tokens", 0),
    )


def _denied(refused: BudgetError) -> HTTPException:
    detail: dict[str, Any] = {
        "message": refused.message,
        "code": "budget_exceeded",
        "account": refused.account,
    }
    if isinstance(refused, BudgetExceeded):
        reset = refused.reset_time
        detail["unit"] = refused.unit
        detail["reset_time"] = None if reset is None else reset.isoformat()
    return HTTPException(402, detail={"error": detail}, headers={"x-should-retry": "false"})
