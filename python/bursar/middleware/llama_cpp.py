"""llama-cpp-python under a budget: a `Llama` that overrides `generate`.

All its calls go through `generate`, which gets the exact prompt; processors and criteria of the
package are no place for a meter: `logit_bias` drops the first silently, a chat takes none of the
second, and what is raised in a processor is lost. A token is debited before it is handed on, so the
limit holds where `max_tokens` does not: inside a character the package does not look at it.
"""

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from typing import Any

from llama_cpp import Llama

from bursar.client import Client
from bursar.middleware._generation import Generation
from bursar.middleware._policy import BUDGET_EXHAUSTED, Policy
from bursar.models import Advice, Verdict

__all__ = ["BudgetedLlama"]


class BudgetedLlama(Llama):
    """A `Llama` whose every generation spends for an account.

    Completions and chats, streamed or not, end with the notice and the finish reason
    ``budget_exhausted`` where the budget has cut them, and the context is emptied. A refused call
    raises `BudgetExceeded` before any compute.

    Args:
        *args: As of `Llama`.
        client: Of a sidecar, or of a ledger in this process.
        account: The account that spends.
        model_name: The model's name as the rate card knows it; None: tokens are counted only.
        fallbacks: Name → the `Llama` to use where the budget asks for a cheaper one; it has to
            have the same vocabulary.
        policy: How to reserve and cut.
        **settings: As of `Llama`.
    """

    def __init__(
        self,
        *args: Any,  # noqa: ANN401 -- passed on
        client: Client,
        account: str,
        model_name: str | None = None,
        fallbacks: dict[str, Llama] | None = None,
        policy: Policy | None = None,
        **settings: Any,  # noqa: ANN401 -- passed on
    ) -> None:
        super().__init__(*args, **settings)
        self._client, self._account, self._model_name = client, account, model_name
        self._fallbacks = dict(fallbacks or {})
        self._policy = policy if policy is not None else Policy()
        self._asked: int | None = None
        self._is_stream = False
        self._last: Generation | None = None

    def create_completion(
        self,
        prompt: Any,  # noqa: ANN401 -- as the package's
        suffix: str | None = None,
        max_tokens: int | None = 16,
        *args: Any,  # noqa: ANN401 -- passed on
        **settings: Any,  # noqa: ANN401 -- passed on
    ) -> Any:  # noqa: ANN401 -- as the package's
        """As the package's; chats go through it too."""
        self._asked = max_tokens if max_tokens is not None and max_tokens > 0 else None
        self._is_stream = bool(settings.get("stream"))
        self._last = None
        made = super().create_completion(prompt, suffix, max_tokens, *args, **settings)
        if isinstance(made, dict):
            choice = made["choices"][0]
            if self._ended() == BUDGET_EXHAUSTED:
                choice["text"] += self._notice()
                choice["finish_reason"] = BUDGET_EXHAUSTED
                self.flush()
            return made
        return self._streamed(made)

    def _streamed(self, chunks: Iterator[Any]) -> Iterator[Any]:
        for chunk in chunks:
            choice = chunk["choices"][0]
            if choice["finish_reason"] is not None and self._ended() == BUDGET_EXHAUSTED:
                notice = {**choice, "text": choice["text"] + self._notice(), "finish_reason": None}
                yield {**chunk, "choices": [notice]}
                choice["text"], choice["finish_reason"] = "", BUDGET_EXHAUSTED
                self.flush()
            yield chunk

    def generate(
        self,
        tokens: Sequence[int],
        *args: Any,  # noqa: ANN401 -- passed on
        **settings: Any,  # noqa: ANN401 -- passed on
    ) -> Generator[int, Sequence[int] | None, None]:
        """As the package's: yields tokens, each of them debited."""
        room = max(1, self.n_ctx() - len(tokens))
        asked = min(self._asked or room, room)
        generation = self._last = Generation(
            self._client,
            self._account,
            policy=self._policy,
            fallbacks=self._fallbacks,
            provider="llama.cpp",
            operation="text_completion",
            stream=self._is_stream,
        )
        with generation:
            generation.on_prompt(len(tokens), model=self._model_name, max_new_tokens=asked)
            runner = self._fallbacks.get(generation.model or "", super())
            reason = yield from self._debited(generation, runner, list(tokens), args, settings)
            generation.on_end(reason)
        # Without it the package gives back an empty text.
        yield self.token_eos()

    def _debited(
        self,
        generation: Generation,
        runner: Any,  # noqa: ANN401 -- another `Llama`, or what this one inherits
        tokens: list[int],
        args: tuple[Any, ...],
        settings: dict[str, Any],
    ) -> Generator[int, Sequence[int] | None, str]:
        """Tokens until the end, and why that is; begun anew where the advice changes."""
        applied: dict[str, float] = {}
        while True:
            wanted = _sampling(generation.advice)
            applied = wanted
            with closing(runner.generate(tokens, *args, **{**settings, **applied})) as made:
                for token in made:
                    if token == self.token_eos():
                        return "stop"
                    if generation.remaining == 0:
                        return "length"
                    if generation.on_step() is Verdict.STOP:
                        return "stop"
                    tokens.append(token)
                    yield token
                    if generation.remaining == 0:
                        return "length"
                    if _sampling(generation.advice) != applied:
                        break  # the cache keeps what it has: the beginning is the same
                else:
                    return "stop"

    def flush(self) -> None:
        """Empties the context: keys, values, the tokens and scores beside them, and the cache."""
        self._ctx.kv_cache_clear()  # `reset` leaves it as it is
        self.input_ids.fill(0)
        self.scores.fill(0)
        self.n_tokens = 0
        self.cache = None

    def _ended(self) -> str | None:
        # A stream that the package ends at its own `max_tokens` has not come to the end here.
        return None if self._last is None else self._last.on_end("length")

    def _notice(self) -> str:
        return "" if self._last is None else self._last.notice


def _sampling(advice: Advice | None) -> dict[str, float]:
    """The advice in the package's words."""
    if advice is None:
        return {}
    wanted = {"temp": advice.temperature, "repeat_penalty": advice.repetition_penalty}
    return {name: value for name, value in wanted.items() if value is not None}
