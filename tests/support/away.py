"""What the tests of an absent sidecar share."""

import asyncio
import time
from collections.abc import Callable

import bursar


def wait_for(what: Callable[[], bool], timeout_s: float = 20) -> None:
    """Waits until something is so."""
    deadline = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def told(client: bursar.Client | bursar.AsyncClient) -> bool:
    """Whether the sidecar answers and knows everything."""
    return client.away.since is None and client.away.waiting_count == 0


async def wait_until_told(client: bursar.AsyncClient) -> None:
    """Waits for that on an event loop."""
    await asyncio.to_thread(wait_for, lambda: told(client))
