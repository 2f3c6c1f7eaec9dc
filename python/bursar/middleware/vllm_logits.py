"""vLLM's engine held at a number of tokens: a logits processor, loaded by name.

    vllm serve … --logits-processors bursar.middleware.vllm_logits:GrantedTokens

A request says in `vllm_xargs` how many tokens it was granted (`{"bursar_granted_tokens": 200}`);
the last of them becomes the one that ends a text, whatever the request says about its own limit.
Whoever reserves says it: the middleware, or a gateway before the server. It keeps no account.

It has the interface of vLLM's first model runner. The second has another base class and refuses
this one, so it is never registered as a plugin: that would keep a server from starting which
does not even use it.
"""

from typing import Any, Final

import torch
from vllm import envs
from vllm.sampling_params import SamplingParams
from vllm.triton_utils import HAS_TRITON
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

__all__ = ["GRANTED_TOKENS", "GrantedTokens"]

GRANTED_TOKENS: Final = "bursar_granted_tokens"
"""The name in `vllm_xargs`."""


def _is_second_runner(wanted: bool | None, *, has_triton: bool) -> bool:  # noqa: FBT001 -- vLLM's setting
    """Whether the second model runner will serve; unset, it does where Triton is."""
    return has_triton if wanted is None else wanted


if _is_second_runner(getattr(envs, "VLLM_USE_V2_MODEL_RUNNER", False), has_triton=HAS_TRITON):
    raise ImportError(
        "bursar.middleware.vllm_logits works with vLLM's first model runner: set "
        "VLLM_USE_V2_MODEL_RUNNER=0, or leave --logits-processors out and use "
        "--middleware bursar.middleware.vllm.BudgetMiddleware, which works with both"
    )


class GrantedTokens(AdapterLogitsProcessor):
    """Ends each request at the tokens that it was granted; one that names none is left alone."""

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Refuses, as HTTP 400, a grant that could not be held.

        Raises:
            ValueError: It is no number of at least 1, or no token would end the text.
        """
        granted = _granted(sampling_params)
        if granted is None:
            return
        if not isinstance(granted, int) or granted < 1:
            raise ValueError(f"{GRANTED_TOKENS}={granted!r}: write an integer of at least 1")
        if sampling_params.ignore_eos and not sampling_params.stop_token_ids:
            raise ValueError(
                f"{GRANTED_TOKENS} ends a text by its last token: leave out ignore_eos, or name "
                "stop_token_ids"
            )

    def is_argmax_invariant(self) -> bool:
        """No: the last token is not the most likely one."""
        return False

    def new_req_logits_processor(self, params: SamplingParams) -> "_Grant | None":
        """What holds a request; None: it names no grant."""
        granted = _granted(params)
        if granted is None:
            return None
        last = params.eos_token_id
        return _Grant(granted, params.stop_token_ids[0] if last is None else last)


class _Grant:
    """One request's grant."""

    def __init__(self, granted: int, last: int) -> None:
        self._granted, self._last = granted, last

    def __call__(self, output_ids: list[int], logits: torch.Tensor) -> torch.Tensor:
        if len(output_ids) + 1 >= self._granted:
            logits.fill_(float("-inf"))
            logits[self._last] = 0
        return logits


def _granted(params: SamplingParams) -> Any:  # noqa: ANN401 -- what the request says
    return (params.extra_args or {}).get(GRANTED_TOKENS)
