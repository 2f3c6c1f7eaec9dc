"""What the adapters of hosted models share: the prompt's estimate, and the metering of a stream.

A hosted model tells its own usage at the end, which settles the call. Until then texts are counted
here, with the tokenizer that the rate card names for the model.
"""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bursar.aio import AsyncClient
from bursar.client import Client
from bursar.exceptions import InvalidRequest
from bursar.middleware._generation import AsyncGeneration, Generation
from bursar.middleware._policy import Capability
from bursar.models import Usage, Verdict
from bursar.tokens import GrowingText, count_prompt_tokens, has_media

__all__ = ["AsyncMetered", "Metered", "Tokenizers", "count", "needs", "usage_from"]


class Tokenizers:
    """Which tokenizer counts for a model: the caller's own word, else the rate card's."""

    def __init__(self, given: str | Path | None = None) -> None:
        self._given = None if given is None else str(given)
        self._known: dict[str, str | None] = {}

    def of(self, client: Client, model: str | None) -> str | None:
        """An encoding or a file; None: nobody knows."""
        if self._given is not None or model is None:
            return self._given
        if model not in self._known:
            self._known[model] = None
            with contextlib.suppress(InvalidRequest):
                self._known[model] = client.count_tokens(model, text="").encoding
        return self._known[model]

    async def of_async(self, client: AsyncClient, model: str | None) -> str | None:
        """As `of`."""
        if self._given is not None or model is None:
            return self._given
        if model not in self._known:
            self._known[model] = None
            with contextlib.suppress(InvalidRequest):
                self._known[model] = (await client.count_tokens(model, text="")).encoding
        return self._known[model]


def count(
    prompt: str | Sequence[Mapping[str, Any]], tools: Sequence[Any], tokenizer: str | None
) -> int:
    """What a call reads, tools included."""
    whole = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    offered = [tool if isinstance(tool, Mapping) else {"tool": str(tool)} for tool in tools]
    return count_prompt_tokens(whole, tools=offered, tokenizer=tokenizer).count


def needs(prompt: str | Sequence[Mapping[str, Any]], tools: object) -> Capability:
    """What a call needs of the model that answers it."""
    return Capability(tools=bool(tools), media=not isinstance(prompt, str) and has_media(prompt))


class Metered:
    """A stream of text under a generation."""

    def __init__(self, generation: Generation, tokenizer: str | None) -> None:
        self.generation = generation
        self.text = ""
        self._growing = GrowingText(tokenizer)

    def step(self, piece: str) -> bool:
        """Debits a piece; False: it does not fit any more, cut before it."""
        new = self._growing.add(piece)
        if new and self.generation.on_step(new) is Verdict.STOP:
            return False
        self.text += piece
        return True


class AsyncMetered:
    """As `Metered`, on an event loop."""

    def __init__(self, generation: AsyncGeneration, tokenizer: str | None) -> None:
        self.generation = generation
        self.text = ""
        self._growing = GrowingText(tokenizer)

    async def step(self, piece: str) -> bool:
        """As `Metered.step`."""
        new = self._growing.add(piece)
        if new and await self.generation.on_step(new) is Verdict.STOP:
            return False
        self.text += piece
        return True


def usage_from(
    input_tokens: int | None,
    output_tokens: int | None,
    *,
    cached: int | None = 0,
    written: int | None = 0,
) -> Usage | None:
    """A provider's usage, if it told one."""
    if not input_tokens and not output_tokens:
        return None
    return Usage(
        input_tokens=input_tokens or 0,
        cached_input_tokens=cached or 0,
        cache_write_tokens=written or 0,
        output_tokens=output_tokens or 0,
    )
