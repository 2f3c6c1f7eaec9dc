"""Tool calls of an MCP server under a budget: a price for each call, and a limit to loops.

A middleware of the `mcp` package (2.x, which calls it provisional). It sees every message of a
session; only `tools/call` is charged. It refuses before the tool runs, and gives back what a tool
that fails has cost. It counts no tokens: a tool server sees none.
"""

import hashlib
import json
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from mcp import MCPError

from bursar._convert import invalid
from bursar.aio import AsyncClient
from bursar.exceptions import BudgetError
from bursar.models import Amounts

__all__ = ["BUDGET_ERROR", "BudgetedTools"]

BUDGET_ERROR: Final = -32402
"""The code of the JSON-RPC error that refuses a call."""

_FINGERPRINTS_MAX: Final = 10_000


class BudgetedTools:
    """Charges the calls of an MCP server's tools to an account.

    ```python
    tools = BudgetedTools(client, account="acme/a", price={"usd_nanos": 1_000_000})
    server = MCPServer("search", middleware=[tools])
    ```

    Args:
        client: Of a sidecar; belongs to the server's event loop.
        account: The account that spends.
        price: What one call costs; empty: nothing.
        prices: Tool → what one call of it costs.
        repeats_max: How often one tool may be called with the same arguments while the server
            runs; None: as often as the budget lasts.
    """

    def __init__(
        self,
        client: AsyncClient,
        *,
        account: str,
        price: Amounts | None = None,
        prices: Mapping[str, Amounts] | None = None,
        repeats_max: int | None = None,
    ) -> None:
        if repeats_max is not None and repeats_max < 1:
            raise invalid(f"{repeats_max}: allow at least 1 call", field="repeats_max")
        self._client, self._account = client, account
        self._price, self._prices = dict(price or {}), dict(prices or {})
        self._repeats_max = repeats_max
        self._seen: OrderedDict[bytes, int] = OrderedDict()

    async def __call__(
        self,
        ctx: Any,  # noqa: ANN401 -- the package's context, whose type is provisional
        call_next: Callable[[Any], Awaitable[Any]],
    ) -> Any:  # noqa: ANN401 -- the package's own union
        """One message."""
        if ctx.method != "tools/call":
            return await call_next(ctx)
        params = ctx.params or {}
        tool = str(params.get("name", ""))
        self._check_repeats(tool, params.get("arguments"))
        amounts = self._prices.get(tool, self._price)
        if not amounts:
            return await call_next(ctx)
        try:
            labels = {"action": f"tool:{tool}"[:128]}
            hold = await self._client.reserve(self._account, amounts=amounts, labels=labels)
        except BudgetError as refused:
            raise _refusal(refused.message, refused.reason) from refused
        async with hold:
            result = await call_next(ctx)
            if not _failed(result):
                await hold.commit(actual=amounts)
            return result

    def _check_repeats(self, tool: str, arguments: object) -> None:
        if self._repeats_max is None:
            return
        text = json.dumps([tool, arguments], sort_keys=True, default=str)
        fingerprint = hashlib.sha256(text.encode(errors="replace")).digest()
        times = self._seen.pop(fingerprint, 0) + 1
        self._seen[fingerprint] = times
        if len(self._seen) > _FINGERPRINTS_MAX:
            self._seen.popitem(last=False)
        if times > self._repeats_max:
            message = f"{tool} was called {times} times with the same arguments"
            raise _refusal(f"{message}; {self._repeats_max} are allowed", "REPEATED_CALL")


def _failed(result: object) -> bool:
    if isinstance(result, Mapping):
        return bool(result.get("isError"))
    return bool(getattr(result, "is_error", getattr(result, "isError", False)))


def _refusal(message: str, reason: str) -> MCPError:
    return MCPError(code=BUDGET_ERROR, message=message, data={"reason": reason})
