"""The OpenAI Agents SDK under a budget: a model that wraps a model.

It reserves before each call, meters the text that streams, and at the limit ends the stream well:
the notice as a last piece, then a completed response. The wrapped model's stream is closed, which
cancels the call upstream. Hooks of the SDK can refuse, but neither meter nor cut.
"""

import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from agents import Model, ModelResponse, ModelSettings
from openai.types.responses import (
    Response,
    ResponseCompletedEvent,
    ResponseOutputMessage,
    ResponseOutputText,
    ResponseTextDeltaEvent,
)

from bursar.aio import AsyncClient
from bursar.middleware._generation import AsyncGeneration
from bursar.middleware._hosted import AsyncMetered, Tokenizers, count, needs, usage_from
from bursar.middleware._policy import BUDGET_EXHAUSTED, Policy

__all__ = ["BudgetedModel"]

_METERED: Final = frozenset(
    {
        "response.output_text.delta",
        "response.refusal.delta",
        "response.function_call_arguments.delta",
        "response.reasoning_text.delta",
        "response.reasoning_summary_text.delta",
    }
)


class BudgetedModel(Model):
    """A model of the Agents SDK, chat or responses, that spends for an account.

    ```python
    model = BudgetedModel(OpenAIResponsesModel(...), client=client, account="acme/a", name="gpt-5")
    Agent(name="helper", model=model)
    ```

    Args:
        model: The model that is wrapped.
        client: Of a sidecar; belongs to the event loop that runs the agent.
        account: The account that spends.
        name: The model's name as the rate card knows it; None: tokens are counted, not priced.
        fallbacks: Name → the model to use where the budget asks for a cheaper one; what it can do
            is in `Policy.capabilities`.
        policy: How to reserve and cut.
        tokenizer: As for `count_prompt_tokens`; None: what the rate card says.
    """

    def __init__(
        self,
        model: Model,
        *,
        client: AsyncClient,
        account: str,
        name: str | None = None,
        fallbacks: Mapping[str, Model] | None = None,
        policy: Policy | None = None,
        tokenizer: str | Path | None = None,
    ) -> None:
        self._model, self._client, self._account, self._name = model, client, account, name
        self._fallbacks = dict(fallbacks or {})
        self._policy = policy if policy is not None else Policy()
        self._tokenizers = Tokenizers(tokenizer)

    async def get_response(  # noqa: PLR0917 -- the SDK's own signature
        self,
        system_instructions: str | None,
        input: Any,  # noqa: A002, ANN401 -- the SDK's own name and union
        model_settings: ModelSettings,
        tools: list[Any],
        output_schema: Any,  # noqa: ANN401 -- the SDK's own
        handoffs: list[Any],
        *rest: Any,  # noqa: ANN401 -- what the SDK passes on
        **more: Any,  # noqa: ANN401 -- as above
    ) -> ModelResponse:
        """One call, its answer in one piece."""
        async with self._generation() as generation:
            _, settings = await self._begin(
                generation, system_instructions, input, model_settings, [*tools, *handoffs]
            )
            try:
                with generation.current():
                    answer = await self._of(generation).get_response(
                        system_instructions,
                        input,
                        settings,
                        tools,
                        output_schema,
                        handoffs,
                        *rest,
                        **more,
                    )
            except Exception as error:  # who cancels pays for the prompt that was sent
                await generation.abandon(error)
                raise
            used = answer.usage
            cached = used.input_tokens_details.cached_tokens
            usage = usage_from(used.input_tokens, used.output_tokens, cached=cached)
            reached = used.output_tokens >= (settings.max_tokens or 0)
            reason = await generation.on_end("length" if reached else "stop", usage=usage)
        if reason == BUDGET_EXHAUSTED:
            answer.output = _with_notice(answer.output, generation.notice)
        return answer

    async def stream_response(  # noqa: PLR0917 -- as above
        self,
        system_instructions: str | None,
        input: Any,  # noqa: A002, ANN401 -- the SDK's own name and union
        model_settings: ModelSettings,
        tools: list[Any],
        output_schema: Any,  # noqa: ANN401 -- the SDK's own
        handoffs: list[Any],
        *rest: Any,  # noqa: ANN401 -- what the SDK passes on
        **more: Any,  # noqa: ANN401 -- as above
    ) -> AsyncIterator[Any]:
        """One call, its events as they come."""
        async with self._generation(stream=True) as generation:
            metered, settings = await self._begin(
                generation, system_instructions, input, model_settings, [*tools, *handoffs]
            )
            stream = self._of(generation).stream_response(
                system_instructions, input, settings, tools, output_schema, handoffs, *rest, **more
            )
            try:
                # Closed before this generator is, or the SDK closes it while it runs.
                async with aclosing(_generator(stream, generation)) as events:
                    async for event in self._metered(events, metered, settings.max_tokens or 0):
                        yield event
            except Exception as error:
                if not generation.used:
                    await generation.abandon(error)
                raise

    async def _metered(
        self, events: AsyncIterator[Any], metered: AsyncMetered, most: int
    ) -> AsyncIterator[Any]:
        generation, last = metered.generation, None
        async for event in events:
            if event.type in _METERED:
                if not await metered.step(event.delta):
                    await generation.on_end("stop")
                    async for end in _ending(metered, last):
                        yield end
                    return
                last = event if event.type == "response.output_text.delta" else last
            if isinstance(event, ResponseCompletedEvent):
                used = event.response.usage
                spent = None
                if used is not None:
                    cached = used.input_tokens_details.cached_tokens
                    spent = usage_from(used.input_tokens, used.output_tokens, cached=cached)
                reached = used is not None and used.output_tokens >= most
                reason = await generation.on_end("length" if reached else "stop", usage=spent)
                if reason == BUDGET_EXHAUSTED:
                    yield _delta(generation.notice, last)
                    output = _with_notice(event.response.output, generation.notice)
                    event.response = event.response.model_copy(update={"output": output})
            yield event

    def _generation(self, *, stream: bool = False) -> AsyncGeneration:
        return AsyncGeneration(
            self._client,
            self._account,
            policy=self._policy,
            fallbacks=self._fallbacks,
            provider="openai",
            stream=stream,
        )

    async def _begin(
        self,
        generation: AsyncGeneration,
        system: str | None,
        asked: Any,  # noqa: ANN401 -- the SDK's own union
        settings: ModelSettings,
        tools: list[Any],
    ) -> tuple[AsyncMetered, ModelSettings]:
        """Reserves, and has the settings follow."""
        tokenizer = await self._tokenizers.of_async(self._client, self._name)
        messages = [{"role": "user", "content": asked}] if isinstance(asked, str) else list(asked)
        if system:
            messages.insert(0, {"role": "system", "content": system})
        schemas = [_schema(tool) for tool in tools]
        most = await generation.on_prompt(
            count(messages, schemas, tokenizer),
            model=self._name,
            max_new_tokens=settings.max_tokens,
            needs=needs(messages, tools),
        )
        follow: dict[str, Any] = {"max_tokens": most, "include_usage": True}
        advice = generation.advice
        if advice is not None and advice.temperature is not None:
            follow["temperature"] = advice.temperature
        return AsyncMetered(generation, tokenizer), replace(settings, **follow)

    def _of(self, generation: AsyncGeneration) -> Model:
        return self._fallbacks.get(generation.model or "", self._model)


def _schema(tool: Any) -> dict[str, Any]:  # noqa: ANN401 -- the SDK's own union
    """What a model reads of a tool, or of an agent to hand over to."""
    name = getattr(tool, "name", None) or getattr(tool, "tool_name", "")
    schema = getattr(tool, "params_json_schema", None) or getattr(tool, "input_json_schema", {})
    return {"name": name, "parameters": schema}


async def _generator(
    stream: AsyncIterator[Any], generation: AsyncGeneration
) -> AsyncGenerator[Any, None]:
    """The stream, so that closing it closes what is beneath."""
    try:
        with generation.current():  # the call upstream is made for the first event
            first = await anext(stream, None)
        if first is not None:
            yield first
        async for event in stream:
            yield event
    finally:
        if isinstance(stream, AsyncGenerator):
            await stream.aclose()


def _delta(text: str, like: ResponseTextDeltaEvent | None) -> ResponseTextDeltaEvent:
    if like is not None:
        return like.model_copy(update={"delta": text})
    return ResponseTextDeltaEvent(
        type="response.output_text.delta",
        item_id="notice",
        output_index=0,
        content_index=0,
        delta=text,
        logprobs=[],
        sequence_number=0,
    )


async def _ending(metered: AsyncMetered, last: ResponseTextDeltaEvent | None) -> AsyncIterator[Any]:
    """The notice, and a completed response of what came: without one the SDK fails the run."""
    generation = metered.generation
    yield _delta(generation.notice, last)
    output: list[Any] = [_message(metered.text + generation.notice)]
    response = Response.model_construct(
        id="budget-exhausted",
        created_at=time.time(),
        model=generation.model or "",
        object="response",
        output=output,
        status="incomplete",
        parallel_tool_calls=False,
        tool_choice="auto",
        tools=[],
        usage=None,
    )
    yield ResponseCompletedEvent.model_construct(
        type="response.completed", response=response, sequence_number=0
    )


def _message(text: str) -> ResponseOutputMessage:
    part = ResponseOutputText(annotations=[], text=text, type="output_text", logprobs=[])
    return ResponseOutputMessage(
        id="notice", content=[part], role="assistant", status="incomplete", type="message"
    )


def _with_notice(output: list[Any], notice: str) -> list[Any]:
    """The output with the notice at its end, and without calls of tools that nobody can pay for."""
    kept = [item for item in output if getattr(item, "type", "") == "message"]
    text = "".join(
        part.text for item in kept for part in item.content if part.type == "output_text"
    )
    return [_message(text + notice)]
