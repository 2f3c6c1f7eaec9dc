"""A daemon with a proxy, and the clients that agents use."""

import re
import time
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Final

from anthropic import Anthropic
from openai import AsyncOpenAI, OpenAI

import bursar
from support.daemon import Daemon

NOTICE: Final = "[the budget is used up]"
ACCOUNT: Final = "acme/agent"


class Proxied(Daemon):
    """A daemon whose proxy stands before one upstream.

    Args:
        upstream: Its address.
        budgets: The budgets of `ACCOUNT`.
        settings: More of `[proxy]`; of its upstreams: `upstream_settings`.
    """

    def __init__(
        self,
        upstream: str,
        *,
        budgets: list[dict[str, Any]] | None = None,
        upstream_settings: dict[str, Any] | None = None,
        rates: dict[str, Any] | None = None,
        runaway: dict[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        of_all = {"url": upstream, **(upstream_settings or {})}
        upstreams = [{"name": api, "api": api, **of_all} for api in ("openai", "anthropic")]
        proxy = {"listen": "127.0.0.1:0", "notice": NOTICE, "upstreams": upstreams, **settings}
        super().__init__(
            proxy=proxy,
            rates=rates or {"allow_unpriced": True},
            accounts=[{"path": ACCOUNT, "budgets": budgets or []}, {"path": "acme/**"}],
            watchdog={"mode": "off"},
            runaway=runaway or {},
        )
        self._clients = ExitStack()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Closes the clients that it has made, then ends."""
        self._clients.close()
        super().__exit__(kind, error, traceback)

    @property
    def url(self) -> str:
        """Where the proxy of the last start listens."""
        addresses: list[str] = re.findall(r"proxy on (http://\S+)/v1", self.log)
        return addresses[-1]

    def openai(self, account: str = ACCOUNT, **settings: Any) -> OpenAI:
        """OpenAI's client, as an agent makes it."""
        base_url = f"{self.url}/a/{account}/v1"
        client = OpenAI(base_url=base_url, api_key="of-the-client", **settings)
        return self._clients.enter_context(client)

    def openai_async(self, account: str = ACCOUNT, **settings: Any) -> AsyncOpenAI:
        """The same, asynchronous."""
        base_url = f"{self.url}/a/{account}/v1"
        return AsyncOpenAI(base_url=base_url, api_key="of-the-client", **settings)

    def anthropic(self, account: str = ACCOUNT, **settings: Any) -> Anthropic:
        """Anthropic's client."""
        base_url = f"{self.url}/a/{account}"
        client = Anthropic(base_url=base_url, api_key="of-the-client", **settings)
        return self._clients.enter_context(client)


def tokens(limit: int) -> list[dict[str, Any]]:
    """A budget of tokens."""
    return [{"unit": "tokens", "limit": limit}]


def settled(client: bursar.Client, account: str = ACCOUNT, *, within_s: float = 5) -> int:
    """What an account has spent of its only budget, once nothing is held on it any more."""
    deadline = time.monotonic() + within_s
    while True:
        [one] = client.get_account(account).balances
        if one.held == 0:
            return one.spent
        assert time.monotonic() < deadline, f"{one.held} {one.unit} are still held"
        time.sleep(0.01)
