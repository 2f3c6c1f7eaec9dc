"""transformers under a budget: `generate` of a model, debited after each forward pass.

A stopping criterion debits the rows of a pass (a beam is a row, and costs as much), a logits
processor applies advice to what is still to be sampled, and the cache is the call's own, so that it
is gone when the budget cuts.
"""

from dataclasses import dataclass
from typing import Any, Final

import torch
from transformers import (
    DynamicCache,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from bursar.client import Client
from bursar.middleware._generation import Generation
from bursar.middleware._policy import BUDGET_EXHAUSTED, Policy
from bursar.models import Verdict

__all__ = ["Generated", "generate"]

_PROVIDER: Final = "transformers"
_OPERATION: Final = "text_completion"


@dataclass(frozen=True, slots=True)
class Generated:
    """What came of a call.

    Attributes:
        sequences: As `generate` returns them, prompts included.
        reason: "stop", "length" or "budget_exhausted".
        notice: What to append to the decoded text; empty unless the budget has cut.
        used: How many new tokens were computed, of all rows.
        cache: The keys and values; emptied if the budget has cut.
    """

    sequences: torch.Tensor
    reason: str
    notice: str
    used: int
    cache: DynamicCache


def generate(
    model: Any,  # noqa: ANN401 -- any of the package's models
    input_ids: torch.Tensor,
    *,
    client: Client,
    account: str,
    name: str | None = None,
    policy: Policy | None = None,
    **settings: Any,  # noqa: ANN401 -- passed on
) -> Generated:
    """Generates as ``model.generate(input_ids, **settings)`` does, under the account's budget.

    Args:
        model: The model.
        input_ids: The prompts, a row each.
        client: Of a sidecar, or of a ledger in this process.
        account: The account that spends.
        name: The model's name as the rate card knows it; None: tokens are counted, not priced.
        policy: How to reserve and cut.
        **settings: What ``model.generate`` takes; `max_new_tokens` counts for each row.

    Raises:
        BudgetExceeded: Not one pass fits; nothing was computed.
    """
    chosen = policy if policy is not None else Policy()
    config = settings.get("generation_config") or model.generation_config

    def said(name: str) -> Any:  # noqa: ANN401 -- the package's settings
        return settings.get(name) or getattr(config, name, None)

    each = max(int(said(name) or 1) for name in ("num_beams", "num_return_sequences"))
    rows = input_ids.shape[0] * each
    mask = settings.get("attention_mask")
    prompt_tokens = int(input_ids.numel() if mask is None else mask.sum())
    asked = int(said("max_new_tokens") or chosen.max_new_tokens)
    settings.pop("max_new_tokens", None)
    generation = Generation(
        client, account, policy=chosen, fallbacks=(), provider=_PROVIDER, operation=_OPERATION
    )
    with generation:
        most = generation.on_prompt(prompt_tokens, model=name, max_new_tokens=asked * rows)
        if most < rows:
            refusal = generation.refusal(rows - most)
            generation.abandon(refusal)
            raise refusal
        meter = _Meter(generation, rows, input_ids.shape[1])
        cache = DynamicCache(config=model.config)
        steps = most // rows
        settings["stopping_criteria"] = StoppingCriteriaList(
            [*settings.get("stopping_criteria", ()), meter]
        )
        base = float(said("temperature") or 1)
        settings["logits_processor"] = LogitsProcessorList(
            [*settings.get("logits_processor", ()), _Advised(generation, base)]
        )
        sequences = model.generate(
            input_ids, max_new_tokens=steps, past_key_values=cache, **settings
        )
        tokens = sequences if isinstance(sequences, torch.Tensor) else sequences.sequences
        full = tokens.shape[1] - input_ids.shape[1] >= steps or generation.remaining < rows
        is_cut = full and steps < asked and generation.limit >= steps * rows
        ended = "length" if full else "stop"
        reason = generation.on_end(BUDGET_EXHAUSTED if is_cut else ended)
        if reason == BUDGET_EXHAUSTED:
            cache.reset()
            return Generated(tokens, BUDGET_EXHAUSTED, generation.notice, generation.used, cache)
        return Generated(tokens, reason, "", generation.used, cache)


class _Meter(StoppingCriteria):
    """Debits each pass: its rows times the tokens that each has grown by.

    What it is shown may have more rows than were computed: a beam search shows its candidates.
    """

    def __init__(self, generation: Generation, rows: int, prompt_length: int) -> None:
        self._generation, self._rows, self._length = generation, rows, prompt_length

    def __call__(
        self,
        input_ids: torch.Tensor,
        scores: Any,  # noqa: ANN401, ARG002 -- the package's own
        **_: Any,  # noqa: ANN401 -- the package's own
    ) -> torch.Tensor:
        shown, length = input_ids.shape
        new, self._length = (length - self._length) * self._rows, length
        verdict = self._generation.on_step(new)
        is_over = verdict is Verdict.STOP or self._generation.remaining < self._rows
        return torch.full((shown,), is_over, device=input_ids.device, dtype=torch.bool)


class _Advised(LogitsProcessor):
    """Applies the temperature and the repetition penalty that are advised."""

    def __init__(self, generation: Generation, base: float) -> None:
        self._generation, self._base = generation, base

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        advice = self._generation.advice
        if advice is None:
            return scores
        penalty = advice.repetition_penalty
        if penalty is not None:
            seen = torch.gather(scores, 1, input_ids)
            seen = torch.where(seen < 0, seen * penalty, seen / penalty)
            scores = scores.scatter(1, input_ids, seen)
        if advice.temperature is not None and advice.temperature > 0:
            # The package divides by the call's own temperature afterwards.
            scores = scores * (self._base / advice.temperature)
        return scores
