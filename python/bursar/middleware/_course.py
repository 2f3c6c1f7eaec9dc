"""What the sync and the async generation have in common: all that needs no call.

It decides what to reserve, when to fall back, what a generation may still make, why it ended and
what is committed, and tells of all that; it calls no ledger.
"""

import logging
from collections.abc import Container, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any, Final

from bursar._convert import invalid
from bursar.aio import AsyncReservation
from bursar.exceptions import BudgetExceeded, SidecarError
from bursar.middleware._policy import BUDGET_EXHAUSTED, Capability, Policy
from bursar.middleware._telemetry import OTHER, Observed
from bursar.models import Advice, Amounts, CommitResult, Usage, UsageEstimate, Verdict
from bursar.reservation import Reservation

__all__ = ["FALLBACKS_MAX", "Course"]

FALLBACKS_MAX: Final = 1  # a fallback's own advice does not lead to a third model
_LENGTH: Final = frozenset({"length", "max_tokens", "max_output_tokens", "incomplete"})
_LOG: Final = logging.getLogger("bursar.middleware")


class Course:
    """The state of one generation, and all decisions about it.

    Args:
        account: The account that spends.
        policy: How to reserve and cut; None: the defaults.
        fallbacks: The models that the caller can fall back to; None: any.
        provider: Who generates, for traces and metrics: a `gen_ai.provider.name`.
        operation: What the call is, for those: a `gen_ai.operation.name`.
        stream: Whether the answer comes as a stream, for those.
    """

    def __init__(
        self,
        account: str,
        *,
        policy: Policy | None = None,
        fallbacks: Container[str] | None = None,
        provider: str = OTHER,
        operation: str = "chat",
        stream: bool = False,
    ) -> None:
        self.account = account
        self._fallbacks = fallbacks
        self.policy = policy if policy is not None else Policy()
        self._observed = Observed(
            account,
            provider,
            operation,
            stream=stream,
            by_account=self.policy.metrics_by_account,
        )
        self._facts: dict[str, Any] = {}
        self._verdict = Verdict.OK  # of the latest step
        self.model: str | None = None
        self.passed_over = ""
        """Which fallback model was advised but not taken, and why; empty: none."""
        self._needs = Capability()
        self.prompt_tokens = 0
        self.reason: str | None = None
        self.result: CommitResult | None = None
        self._wanted = self._limit = 0
        self._last = 0  # the steps of a lease that is detached
        self._stopped = False

    @property
    def notice(self) -> str:
        """What to append when the reason is `BUDGET_EXHAUSTED`."""
        return self.policy.notice(self.account)

    @property
    def limit(self) -> int:
        """How many new tokens the engine may make in all, the latest advice included."""
        advice = self.advice
        if advice is None or advice.max_new_tokens is None:
            return self._limit
        return min(self._limit, advice.max_new_tokens)

    @property
    def remaining(self) -> int:
        """How many new tokens the engine may still make."""
        return 0 if self._stopped else max(0, self.limit - self.used)

    @property
    def advice(self) -> Advice | None:
        """What to change about the running generation; None: nothing."""
        raise NotImplementedError

    @property
    def used(self) -> int:
        """How many new tokens are debited."""
        raise NotImplementedError

    def current(self) -> AbstractContextManager[Any]:
        """Has what is called within it traced as a part of this generation.

        ```python
        with generation.current():
            answer = client.chat.completions.create(...)
        ```

        Leave it before anything is yielded. Without OpenTelemetry it does nothing.
        """
        return self._observed.current()

    def refusal(self, shortfall: int) -> BudgetExceeded:
        """The error of an engine for which what was granted is too little to begin."""
        message = f"{self.account} is short of {shortfall} tokens for a first step"
        return BudgetExceeded(message, account=self.account, unit="tokens", shortfall=shortfall)

    def _labels(self) -> dict[str, str]:
        named = {"model": self.model} if self.model else {}
        return named | dict(self.policy.labels)

    def _begin(
        self,
        prompt_tokens: int,
        model: str | None,
        max_new_tokens: int | None,
        needs: Capability | None,
    ) -> None:
        if self._wanted:
            raise invalid("a Generation is one model call: make a new one", field="on_prompt")
        most = self.policy.max_new_tokens if max_new_tokens is None else max_new_tokens
        if prompt_tokens < 0 or most < 1:
            what = f"prompt_tokens={prompt_tokens}, max_new_tokens={most}"
            raise invalid(f"{what}: at least 0 and 1", field="max_new_tokens")
        self.prompt_tokens, self.model, self._wanted = prompt_tokens, model, most
        self._needs = replace(needs or Capability(), context_tokens=prompt_tokens + most)
        self._observed.begin(model, most)

    @contextmanager
    def _beginning(self) -> Iterator[None]:
        """Tells of a refusal, or of whatever else keeps the call from beginning."""
        try:
            yield
        except BaseException as error:
            self._observed.end(self._facts, error=error)
            raise

    @contextmanager
    def _ending(
        self, usage: Usage | None, error: BaseException | None, *, made: bool = True
    ) -> Iterator[None]:
        """Tells how it ended, once that is settled.

        What was generated within its grant is not withheld because the commit has to wait.
        """
        failure = error
        try:
            yield
        except SidecarError as unsettled:
            if not unsettled.kept:
                failure = failure or unsettled
                raise
            _LOG.warning("%s: %s", self.account, unsettled)
        except BaseException as unsettled:
            failure = failure or unsettled
            raise
        finally:
            self._tell(usage, failure, made=made)

    def _tell(self, usage: Usage | None, error: BaseException | None, *, made: bool) -> None:
        is_cut = self.reason == BUDGET_EXHAUSTED
        if is_cut:
            self._observed.turned(Verdict.STOP, None, self.used)
        facts = self._facts | {"bursar.stopped": is_cut, "bursar.tokens.debited": self.used}
        if self.result is not None:
            facts |= {f"bursar.spent.{unit}": n for unit, n in self.result.spent.items()}
        if self.passed_over:
            facts["bursar.passed_over"] = self.passed_over
        if made and usage is None:
            usage = Usage(input_tokens=self.prompt_tokens, output_tokens=self.used)
        self._observed.end(
            facts, reason=self.reason, model=self.model, usage=usage if made else None, error=error
        )

    def _first(self) -> int:
        first = self.policy.first_grant
        return self._wanted if first is None else min(first, self._wanted)

    def _wish(self) -> tuple[UsageEstimate | None, Amounts | None, Amounts | None]:
        """What to reserve: a usage, or amounts and the least of them."""
        if self.model is None:
            least = {"tokens": self.prompt_tokens + 1}
            return None, {"tokens": self.prompt_tokens + self._first()}, least
        usage = UsageEstimate(
            model=self.model,
            input_tokens=self.prompt_tokens,
            max_output_tokens=self._first(),
            min_output_tokens=1,
        )
        return usage, None, None

    def _cheaper(self, hold: Reservation | AsyncReservation) -> str | None:
        """The model to fall back to, if the budget asks for one."""
        advice = hold.advice
        if self.model is None or advice is None or hold.verdict is not Verdict.DEGRADE:
            return None
        cheaper = advice.fallback_model
        if cheaper is None or cheaper == self.model:
            return None
        if self._fallbacks is not None and cheaper not in self._fallbacks:
            return None
        lacking = self.policy.capabilities.get(cheaper, Capability()).lacking(self._needs)
        if lacking:
            self.passed_over = f"{cheaper}: {lacking}"
            _LOG.warning("%s stays with %s, for %s", self.account, self.model, self.passed_over)
            return None
        return cheaper

    def _admitted(self, hold: Reservation | AsyncReservation) -> None:
        granted = hold.max_output_tokens
        if self.model is None:
            granted = hold.granted["tokens"] - self.prompt_tokens
        self._limit = granted if self.policy.first_grant is None else self._wanted
        self._facts = {
            "bursar.reservation.id": hold.id,
            "bursar.reservation.local": hold.local,
            "bursar.tokens.reserved": self.prompt_tokens + granted,
        }
        self._observed.turned(hold.verdict, hold.advice, 0)

    def _take(self, cheaper: str) -> None:
        """Goes on with the cheaper model."""
        self._observed.fell_back(self.model, cheaper)
        self.model = cheaper

    def _turned(self, verdict: Verdict) -> None:
        """The verdict of a step is another than that of the step before."""
        self._verdict = verdict
        if verdict is Verdict.STOP:
            self._stopped = True
        self._observed.turned(verdict, self.advice, self.used)

    def _at_most(self) -> int:
        return self._limit if self.model is not None else self._limit + self.prompt_tokens

    def _counted(self, used: int) -> int:
        return used if self.model is not None else max(0, used - self.prompt_tokens)

    def _why(self, reason: str, usage: Usage | None) -> str:
        """The reason, or that the budget was it: a limit that was lower than the wish."""
        used = self.used if usage is None else usage.output_tokens
        short = reason in _LENGTH and used >= self._limit < self._wanted
        return BUDGET_EXHAUSTED if short or self._stopped else reason

    def _spending(self, usage: Usage | None) -> tuple[Amounts | None, Usage | None]:
        """What to commit: the provider's own word if there is one, else what was counted."""
        if self.model is None:
            total = self.prompt_tokens + self.used
            if usage is not None:
                total = usage.input_tokens + usage.output_tokens
            return {"tokens": total}, None
        if usage is not None:
            return None, usage
        return None, Usage(input_tokens=self.prompt_tokens, output_tokens=self.used)

    def _nothing(self) -> tuple[Amounts | None, Usage | None]:
        """What to commit where nothing was computed."""
        return ({"tokens": 0}, None) if self.model is None else (None, Usage())
