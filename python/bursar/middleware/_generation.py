"""One generation under a budget: the contract between an engine and the ledger.

Every adapter follows it: `on_prompt` before any compute, `on_step` after each forward pass (or
chunk), `on_end` once. It owns the reservation and the lease of one model call and the decision how
that ends; it never touches an engine, a text or a request. The ledger may be embedded, on this host
or remote: `bursar.Lease` hides which.
"""

import asyncio
import logging
from collections.abc import Container, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from bursar._convert import invalid
from bursar.aio import AsyncClient, AsyncLease, AsyncReservation
from bursar.client import Client
from bursar.exceptions import BudgetExceeded, BursarError, InvalidRequest, SidecarError
from bursar.middleware._policy import BUDGET_EXHAUSTED, Capability, Policy
from bursar.models import Advice, Amounts, CommitResult, Usage, UsageEstimate, Verdict
from bursar.reservation import Reservation

if TYPE_CHECKING:
    from bursar.lease import Lease

__all__ = ["AsyncGeneration", "Generation"]

_LENGTH: Final = frozenset({"length", "max_tokens", "max_output_tokens", "incomplete"})
_LOG: Final = logging.getLogger("bursar.middleware")
_SETTLING: Final[set[asyncio.Task[None]]] = set()  # an event loop itself would forget them
_FALLBACKS_MAX: Final = 1  # a fallback's own advice does not lead to a third model


@contextmanager
def _told_later(account: str) -> Iterator[None]:
    """What was generated within its grant is not withheld because the commit has to wait."""
    try:
        yield
    except SidecarError as error:
        if not error.kept:
            raise
        _LOG.warning("%s: %s", account, error)


class _Course:
    """What the sync and the async generation have in common: all that needs no call."""

    def __init__(
        self, account: str, policy: Policy | None, fallbacks: Container[str] | None
    ) -> None:
        self.account = account
        self._fallbacks = fallbacks
        self.policy = policy if policy is not None else Policy()
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


class Generation(_Course):
    """One model call of an account: reserved, debited step by step, committed.

    ```python
    with Generation(client, account) as generation:
        most = generation.on_prompt(len(prompt), model="my-model", max_new_tokens=500)
        for token in engine.generate(prompt, max_new_tokens=most):
            if generation.on_step() is Verdict.STOP:
                break
        reason = generation.on_end("stop")
    ```

    Leaving the context settles what was counted, also when an error is under way.

    Args:
        client: Of a sidecar, or of a ledger in this process.
        account: The account that spends.
        policy: How to reserve and cut; None: the defaults.
        fallbacks: The models that the caller can fall back to; None: any.
    """

    def __init__(
        self,
        client: Client,
        account: str,
        *,
        policy: Policy | None = None,
        fallbacks: Container[str] | None = None,
    ) -> None:
        super().__init__(account, policy, fallbacks)
        self._client = client
        self._hold: Reservation | None = None
        self._lease: Lease | None = None

    def on_prompt(
        self,
        prompt_tokens: int,
        *,
        model: str | None = None,
        max_new_tokens: int | None = None,
        needs: Capability | None = None,
    ) -> int:
        """Reserves the prompt and the first tokens, before any compute.

        Past a soft limit that names a fallback model which can do what the call needs, that one is
        priced and reserved instead; see `model`, and else `passed_over`.

        Args:
            prompt_tokens: How many tokens the prompt has.
            model: The model's name as the rate card knows it; None: count tokens only.
            max_new_tokens: The most that the call may generate; None: what the policy says.
            needs: What the call needs of a fallback model; None: texts only.

        Returns:
            How many new tokens the engine may make.

        Raises:
            BudgetExceeded: Not even one new token fits; nothing is held.
            BudgetError: The account is frozen or unknown, or the model has no price.
        """
        self._begin(prompt_tokens, model, max_new_tokens, needs)
        hold = self._reserve()
        for _ in range(_FALLBACKS_MAX):
            cheaper = self._cheaper(hold)
            if cheaper is not None:
                hold.release()
                self.model = cheaper
                hold = self._reserve()
        self._hold = hold
        self._admitted(hold)
        try:
            self._attach(hold)
        except BaseException:
            self.abandon()
            raise
        return self.limit

    def _attach(self, hold: Reservation) -> None:
        unit = "tokens" if self.model is None else None
        lease = self._lease = hold.lease(unit=unit, at_most=self._at_most())
        if self.model is None and lease.debit(self.prompt_tokens) is Verdict.STOP:
            raise lease.refused or self.refusal(1)

    def _reserve(self) -> Reservation:
        usage, amounts, least = self._wish()
        return self._client.reserve(
            self.account,
            usage=usage,
            amounts=amounts,
            min_acceptable=least,
            ttl_s=self.policy.ttl_s,
            labels=self._labels(),
        )

    def on_step(self, n: int = 1) -> Verdict:
        """Debits `n` new tokens; on STOP cut, else follow `advice` and `remaining`."""
        if self._lease is None:
            raise _no_prompt()
        verdict = self._lease.debit(n)
        if verdict is Verdict.STOP:
            self._stopped = True
        return verdict

    def on_end(self, reason: str, *, usage: Usage | None = None) -> str:
        """Commits, once; a repeat changes nothing.

        Args:
            reason: Why the engine ended: "stop", "length", "error", …
            usage: What the provider says was used; it wins over what was counted.

        Returns:
            The reason, or `BUDGET_EXHAUSTED`.
        """
        if self._hold is not None and self.reason is None:
            self._detach()
            self.reason = self._why(reason, usage)
            actual, spent = self._spending(usage)
            with _told_later(self.account):
                self.result = self._hold.commit(actual=actual, usage=spent)
        return self.reason or reason

    def abandon(self) -> None:
        """Ends it where no compute has happened: everything goes back."""
        if self._hold is not None and self.reason is None:
            self._detach()
            self.reason = "error"
            amounts = {"tokens": 0} if self.model is None else None
            usage = Usage() if amounts is None else None
            with _told_later(self.account):
                self.result = self._hold.commit(actual=amounts, usage=usage)

    def _detach(self) -> None:
        if self._lease is not None:
            self._last = self._counted(self._lease.detach())
            self._lease = None

    @property
    def advice(self) -> Advice | None:
        """What to change about the running generation; None: nothing."""
        told = None if self._lease is None else self._lease.advice
        if told is not None:
            return told
        return self._hold.advice if self._hold is not None and self.reason is None else None

    @property
    def used(self) -> int:
        """How many new tokens are debited."""
        return self._last if self._lease is None else self._counted(self._lease.used)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.on_end("stop" if error is None else "error")
        except BursarError as failure:
            if error is None:
                raise
            error.add_note(f"the generation was not settled: {failure}")


class AsyncGeneration(_Course):
    """As `Generation`, for an event loop."""

    def __init__(
        self,
        client: AsyncClient,
        account: str,
        *,
        policy: Policy | None = None,
        fallbacks: Container[str] | None = None,
    ) -> None:
        super().__init__(account, policy, fallbacks)
        self._client = client
        self._hold: AsyncReservation | None = None
        self._lease: AsyncLease | None = None
        self._settling: asyncio.Task[None] | None = None

    async def on_prompt(
        self,
        prompt_tokens: int,
        *,
        model: str | None = None,
        max_new_tokens: int | None = None,
        needs: Capability | None = None,
    ) -> int:
        """As `Generation.on_prompt`."""
        self._begin(prompt_tokens, model, max_new_tokens, needs)
        hold = await self._reserve()
        for _ in range(_FALLBACKS_MAX):
            cheaper = self._cheaper(hold)
            if cheaper is not None:
                await hold.release()
                self.model = cheaper
                hold = await self._reserve()
        self._hold = hold
        self._admitted(hold)
        try:
            await self._attach(hold)
        except BaseException:
            await self.abandon()
            raise
        return self.limit

    async def _attach(self, hold: AsyncReservation) -> None:
        unit = "tokens" if self.model is None else None
        lease = self._lease = await hold.lease(unit=unit, at_most=self._at_most())
        if self.model is None and await lease.debit(self.prompt_tokens) is Verdict.STOP:
            raise lease.refused or self.refusal(1)

    async def _reserve(self) -> AsyncReservation:
        usage, amounts, least = self._wish()
        return await self._client.reserve(
            self.account,
            usage=usage,
            amounts=amounts,
            min_acceptable=least,
            ttl_s=self.policy.ttl_s,
            labels=self._labels(),
        )

    async def on_step(self, n: int = 1) -> Verdict:
        """As `Generation.on_step`."""
        if self._lease is None:
            raise _no_prompt()
        verdict = await self._lease.debit(n)
        if verdict is Verdict.STOP:
            self._stopped = True
        return verdict

    async def on_end(self, reason: str, *, usage: Usage | None = None) -> str:
        """As `Generation.on_end`."""
        if self._hold is not None and self.reason is None:
            await self._once(self._end(self._hold, reason, usage))
        return self.reason or reason

    async def abandon(self) -> None:
        """As `Generation.abandon`."""
        if self._hold is not None and self.reason is None:
            await self._once(self._give_back(self._hold))

    async def _once(self, settle: Coroutine[Any, Any, None]) -> None:
        """Settles once, and to the end: who waits for it may be cancelled, and more than once."""
        if self._settling is None:
            self._settling = asyncio.ensure_future(settle)
            _SETTLING.add(self._settling)
            self._settling.add_done_callback(_SETTLING.discard)
        else:
            settle.close()
        await asyncio.shield(self._settling)

    async def _end(self, hold: AsyncReservation, reason: str, usage: Usage | None) -> None:
        await self._detach()
        self.reason = self._why(reason, usage)
        actual, spent = self._spending(usage)
        with _told_later(self.account):
            self.result = await hold.commit(actual=actual, usage=spent)

    async def _give_back(self, hold: AsyncReservation) -> None:
        await self._detach()
        self.reason = "error"
        amounts = {"tokens": 0} if self.model is None else None
        usage = Usage() if amounts is None else None
        with _told_later(self.account):
            self.result = await hold.commit(actual=amounts, usage=usage)

    async def _detach(self) -> None:
        if self._lease is not None:
            self._last = self._counted(await self._lease.detach())
            self._lease = None

    @property
    def advice(self) -> Advice | None:
        """What to change about the running generation; None: nothing."""
        told = None if self._lease is None else self._lease.advice
        if told is not None:
            return told
        return self._hold.advice if self._hold is not None and self.reason is None else None

    @property
    def used(self) -> int:
        """How many new tokens are debited."""
        return self._last if self._lease is None else self._counted(self._lease.used)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            await self.on_end("stop" if error is None else "error")
        except BursarError as failure:
            if error is None:
                raise
            error.add_note(f"the generation was not settled: {failure}")


def _no_prompt() -> InvalidRequest:
    return invalid("on_step comes between on_prompt and on_end", field="on_step")
