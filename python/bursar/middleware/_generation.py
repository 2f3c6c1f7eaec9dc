"""One generation under a budget: the contract between an engine and the ledger.

Every adapter follows it: `on_prompt` before any compute, `on_step` after each forward pass (or
chunk), `on_end` once. It owns the reservation and the lease of one model call and the decision how
that ends; it never touches an engine, a text or a request. The ledger may be embedded, on this host
or remote: `bursar.Lease` hides which.
"""

import asyncio
from collections.abc import Container, Coroutine
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from bursar._convert import invalid
from bursar.aio import AsyncClient, AsyncLease, AsyncReservation
from bursar.client import Client
from bursar.exceptions import BursarError, InvalidRequest
from bursar.middleware._course import FALLBACKS_MAX, Course
from bursar.middleware._policy import Capability, Policy
from bursar.middleware._telemetry import OTHER
from bursar.models import Advice, Usage, Verdict
from bursar.reservation import Reservation

if TYPE_CHECKING:
    from bursar.lease import Lease

__all__ = ["AsyncGeneration", "Generation"]

_SETTLING: Final[set[asyncio.Task[None]]] = set()  # an event loop itself would forget them


class Generation(Course):
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
        provider: Who generates, for traces and metrics: a `gen_ai.provider.name`.
        operation: What the call is, for those: a `gen_ai.operation.name`.
        stream: Whether the answer comes as a stream, for those.
    """

    def __init__(
        self,
        client: Client,
        account: str,
        *,
        policy: Policy | None = None,
        fallbacks: Container[str] | None = None,
        provider: str = OTHER,
        operation: str = "chat",
        stream: bool = False,
    ) -> None:
        super().__init__(
            account,
            policy=policy,
            fallbacks=fallbacks,
            provider=provider,
            operation=operation,
            stream=stream,
        )
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
        with self._beginning():
            hold = self._reserve()
            for _ in range(FALLBACKS_MAX):
                cheaper = self._cheaper(hold)
                if cheaper is not None:
                    hold.release()
                    self._take(cheaper)
                    hold = self._reserve()
        self._hold = hold
        self._admitted(hold)
        try:
            self._attach(hold)
        except BaseException as error:
            self.abandon(error)
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
        if verdict is not self._verdict:
            self._turned(verdict)
        return verdict

    def on_end(
        self, reason: str, *, usage: Usage | None = None, error: BaseException | None = None
    ) -> str:
        """Commits, once; a repeat changes nothing.

        Args:
            reason: Why the engine ended: "stop", "length", "error", …
            usage: What the provider says was used; it wins over what was counted.
            error: What failed, for traces; None: nothing that is known.

        Returns:
            The reason, or `BUDGET_EXHAUSTED`.
        """
        if self._hold is not None and self.reason is None:
            with self._ending(usage, error):
                self._detach()
                self.reason = self._why(reason, usage)
                actual, spent = self._spending(usage)
                self.result = self._hold.commit(actual=actual, usage=spent)
        return self.reason or reason

    def abandon(self, error: BaseException | None = None) -> None:
        """Ends it where no compute has happened: everything goes back.

        Args:
            error: What failed, for traces; None: nothing that is known.
        """
        if self._hold is not None and self.reason is None:
            with self._ending(None, error, made=False):
                self._detach()
                self.reason = "error"
                amounts, usage = self._nothing()
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
            self.on_end("stop" if error is None else "error", error=error)
        except BursarError as failure:
            if error is None:
                raise
            error.add_note(f"the generation was not settled: {failure}")


class AsyncGeneration(Course):
    """As `Generation`, for an event loop."""

    def __init__(
        self,
        client: AsyncClient,
        account: str,
        *,
        policy: Policy | None = None,
        fallbacks: Container[str] | None = None,
        provider: str = OTHER,
        operation: str = "chat",
        stream: bool = False,
    ) -> None:
        super().__init__(
            account,
            policy=policy,
            fallbacks=fallbacks,
            provider=provider,
            operation=operation,
            stream=stream,
        )
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
        with self._beginning():
            hold = await self._reserve()
            for _ in range(FALLBACKS_MAX):
                cheaper = self._cheaper(hold)
                if cheaper is not None:
                    await hold.release()
                    self._take(cheaper)
                    hold = await self._reserve()
        self._hold = hold
        self._admitted(hold)
        try:
            await self._attach(hold)
        except BaseException as error:
            await self.abandon(error)
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
        if verdict is not self._verdict:
            self._turned(verdict)
        return verdict

    async def on_end(
        self, reason: str, *, usage: Usage | None = None, error: BaseException | None = None
    ) -> str:
        """As `Generation.on_end`."""
        if self._hold is not None and self.reason is None:
            await self._once(self._end(self._hold, reason, usage, error))
        return self.reason or reason

    async def abandon(self, error: BaseException | None = None) -> None:
        """As `Generation.abandon`."""
        if self._hold is not None and self.reason is None:
            await self._once(self._give_back(self._hold, error))

    async def _once(self, settle: Coroutine[Any, Any, None]) -> None:
        """Settles once, and to the end: who waits for it may be cancelled, and more than once."""
        if self._settling is None:
            self._settling = asyncio.ensure_future(settle)
            _SETTLING.add(self._settling)
            self._settling.add_done_callback(_SETTLING.discard)
        else:
            settle.close()
        await asyncio.shield(self._settling)

    async def _end(
        self,
        hold: AsyncReservation,
        reason: str,
        usage: Usage | None,
        error: BaseException | None,
    ) -> None:
        with self._ending(usage, error):
            await self._detach()
            self.reason = self._why(reason, usage)
            actual, spent = self._spending(usage)
            self.result = await hold.commit(actual=actual, usage=spent)

    async def _give_back(self, hold: AsyncReservation, error: BaseException | None) -> None:
        with self._ending(None, error, made=False):
            await self._detach()
            self.reason = "error"
            amounts, usage = self._nothing()
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
            await self.on_end("stop" if error is None else "error", error=error)
        except BursarError as failure:
            if error is None:
                raise
            error.add_note(f"the generation was not settled: {failure}")


def _no_prompt() -> InvalidRequest:
    return invalid("on_step comes between on_prompt and on_end", field="on_step")
