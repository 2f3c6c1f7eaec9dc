"""Pydantic AI under a budget: a capability that wraps the model of every request.

It reserves before each request, meters the text that streams, and cuts it at the limit; the
package's own usage limits are checked after a response is there. A run that does not stream
(`Agent.run`) is held by the limit that the provider is told, which is what the budget gives.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic_ai.capabilities import AbstractCapability
from pydantic_ai.messages import (
    ModelMessage,
    ModelResponse,
    PartDeltaEvent,
    PartStartEvent,
    TextPart,
    TextPartDelta,
    ThinkingPart,
    ThinkingPartDelta,
    ToolCallPart,
    ToolCallPartDelta,
)
from pydantic_ai.models import Model, ModelRequestParameters, StreamedResponse
from pydantic_ai.models.wrapper import WrapperModel
from pydantic_ai.settings import ModelSettings
from pydantic_ai.usage import RequestUsage

from bursar.aio import AsyncClient
from bursar.middleware._generation import AsyncGeneration
from bursar.middleware._hosted import AsyncMetered, Tokenizers, count, needs, usage_from
from bursar.middleware._policy import BUDGET_EXHAUSTED, Policy
from bursar.middleware._telemetry import provider_name
from bursar.models import Usage

__all__ = ["BudgetCapability"]


@dataclass
class BudgetCapability(AbstractCapability[Any]):
    """Has all model requests of an agent spend for an account.

    ```python
    Agent("openai:gpt-5", capabilities=[BudgetCapability(client, account="acme/a")])
    ```

    A cut answer ends with the notice; its finish reason is ``length``, the only one that the
    package knows for it, and `provider_details` says ``budget_exhausted``.

    Attributes:
        client: Of a sidecar; belongs to the event loop that runs the agent.
        account: The account that spends.
        model: The model's name as the rate card knows it; None: the name that the model says.
        fallbacks: Name → the model to use where the budget asks for a cheaper one; what it can do
            is in `Policy.capabilities`.
        policy: How to reserve and cut; None: the defaults.
        tokenizer: As for `count_prompt_tokens`; None: what the rate card says.
    """

    client: AsyncClient
    account: str = ""
    model: str | None = None
    fallbacks: Mapping[str, Model] | None = None
    policy: Policy | None = None
    tokenizer: str | Path | None = None

    def __post_init__(self) -> None:
        self._tokenizers = Tokenizers(self.tokenizer)

    def get_wrapper_model(self, model: Model) -> WrapperModel:
        """The model, under the budget."""
        return _BudgetedModel(model, self, self._tokenizers)


class _BudgetedModel(WrapperModel):
    """One request's model."""

    def __init__(
        self, wrapped: Model, capability: BudgetCapability, tokenizers: Tokenizers
    ) -> None:
        super().__init__(wrapped)
        self._capability, self._tokenizers = capability, tokenizers

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        """One request, answered in one piece."""
        async with self._generation() as generation:
            _, settings = await self._begin(
                generation, messages, model_settings, model_request_parameters
            )
            model = self._of(generation)
            try:
                with generation.current():
                    response = await model.request(messages, settings, model_request_parameters)
            except Exception as error:  # who cancels pays for the prompt that was sent
                await generation.abandon(error)
                raise
            reason = await generation.on_end(
                response.finish_reason or "stop", usage=_usage(response.usage)
            )
        if reason == BUDGET_EXHAUSTED:
            kept = [part for part in response.parts if not isinstance(part, ToolCallPart)]
            response.parts = [*kept, TextPart(content=generation.notice)]
            response.provider_details = {
                **(response.provider_details or {}),
                "finish_reason": BUDGET_EXHAUSTED,
            }
        return response

    @asynccontextmanager
    async def request_stream(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
        run_context: Any = None,  # noqa: ANN401 -- passed on
    ) -> AsyncGenerator[StreamedResponse]:
        """One request, answered as it comes."""
        async with self._generation(stream=True) as generation:
            metered, settings = await self._begin(
                generation, messages, model_settings, model_request_parameters
            )
            model = self._of(generation)
            try:
                async with AsyncExitStack() as opened:
                    with generation.current():
                        stream = await opened.enter_async_context(
                            model.request_stream(
                                messages, settings, model_request_parameters, run_context
                            )
                        )
                    _watch(stream, metered)
                    yield stream
                    told = _usage(stream.usage()) if callable(stream.usage) else None
                    await generation.on_end(stream.finish_reason or "stop", usage=told)
            except Exception as error:
                if not generation.used:
                    await generation.abandon(error)
                raise

    def _generation(self, *, stream: bool = False) -> AsyncGeneration:
        own = self._capability
        fallbacks = own.fallbacks or {}
        return AsyncGeneration(
            own.client,
            own.account,
            policy=own.policy,
            fallbacks=fallbacks,
            provider=provider_name(self.wrapped.system),
            stream=stream,
        )

    def _of(self, generation: AsyncGeneration) -> Model:
        return (self._capability.fallbacks or {}).get(generation.model or "", self.wrapped)

    async def _begin(
        self,
        generation: AsyncGeneration,
        messages: list[ModelMessage],
        settings: ModelSettings | None,
        parameters: ModelRequestParameters,
    ) -> tuple[AsyncMetered, ModelSettings]:
        """Reserves, and has the settings follow."""
        own = self._capability
        name = own.model or self.wrapped.model_name
        tokenizer = await self._tokenizers.of_async(own.client, name)
        tools = [
            {"name": tool.name, "about": tool.description, "schema": tool.parameters_json_schema}
            for tool in (*parameters.function_tools, *parameters.output_tools)
        ]
        prompt = _plain(messages)
        most = await generation.on_prompt(
            count(prompt, tools, tokenizer),
            model=name,
            max_new_tokens=(settings or {}).get("max_tokens"),
            needs=needs(prompt, tools),
        )
        follow = ModelSettings(**(settings or {}))
        follow["max_tokens"] = most
        advice = generation.advice
        if advice is not None and advice.temperature is not None:
            follow["temperature"] = advice.temperature
        return AsyncMetered(generation, tokenizer), follow


def _watch(stream: StreamedResponse, metered: AsyncMetered) -> None:
    """Has the stream's events metered, before the agent sees them."""
    generation, events = metered.generation, stream._get_event_iterator  # noqa: SLF001 -- the seam that models implement

    async def watched() -> AsyncIterator[Any]:
        is_cut = False
        async for event in events():
            if not await metered.step(_text(event)):
                is_cut = True
                break
            yield event
        usage = None if is_cut else _usage(_told(stream))
        reason = await generation.on_end(stream.finish_reason or "stop", usage=usage)
        if reason != BUDGET_EXHAUSTED:
            return
        if is_cut:
            await stream.close_stream()
        stream.finish_reason = "length"
        stream.provider_details = {
            **(stream.provider_details or {}),
            "finish_reason": BUDGET_EXHAUSTED,
        }
        parts = stream._parts_manager  # noqa: SLF001 -- as above
        for event in parts.handle_text_delta(vendor_part_id="notice", content=generation.notice):
            yield event

    stream._get_event_iterator = watched  # type: ignore[method-assign]  # noqa: SLF001 -- as above


def _told(stream: StreamedResponse) -> RequestUsage:
    usage: Any = stream.usage
    found: RequestUsage = usage() if callable(usage) else usage
    return found


def _text(event: object) -> str:
    """What the model has written, as far as this event tells of it."""
    if isinstance(event, PartStartEvent):
        part = event.part
        if isinstance(part, TextPart | ThinkingPart):
            return part.content or ""
        return str(part.args or "") if isinstance(part, ToolCallPart) else ""
    if isinstance(event, PartDeltaEvent):
        delta = event.delta
        if isinstance(delta, TextPartDelta | ThinkingPartDelta):
            return delta.content_delta or ""
        return str(delta.args_delta or "") if isinstance(delta, ToolCallPartDelta) else ""
    return ""


def _plain(messages: list[ModelMessage]) -> list[dict[str, Any]]:
    plain: list[dict[str, Any]] = []
    for message in messages:
        instructions = getattr(message, "instructions", None)
        if instructions:
            plain.append({"content": instructions})
        for part in message.parts:
            content = getattr(part, "content", None) or getattr(part, "args", None)
            if isinstance(content, list | tuple):
                content = [one if isinstance(one, str) else {"type": "file"} for one in content]
            elif content is not None and not isinstance(content, str | dict):
                content = str(content)
            plain.append({"content": content})
    return plain


def _usage(used: RequestUsage) -> Usage | None:
    return usage_from(
        used.input_tokens,
        used.output_tokens,
        cached=used.cache_read_tokens,
        written=used.cache_write_tokens,
    )
