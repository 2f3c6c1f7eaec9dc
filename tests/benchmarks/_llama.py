"""What the adapter costs: tokens a second of llama.cpp with it and without it, in one process.

The engine, its thread, its model and its text are the same; calls alternate, so that what disturbs
one kind disturbs the other. Of a round's calls the medians count: until the first piece, from piece
to piece, after the last. So the whole call is in it, the counting of its prompt and its settlement
at a sidecar included. The model's step takes some milliseconds, as a small real one's does.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import _machine
import _servers

NAME = "llama_rate_with_adapter_vs_without"
GOAL = ">= 0.99"
ACCOUNT = "bench/llama"
CALLS = 10  # of either kind, in a round
TOKENS = 200
SIZE = {"embedding": 512, "layers": 12}

Handle = Callable[[Any, Callable[[Any], bool]], None]


def lacking() -> str:
    """Why it cannot be measured; empty: it can."""
    try:
        import gguf  # noqa: F401 -- writes the model
        import xllamacpp  # noqa: F401 -- the engine
    except ImportError as error:
        return str(error)
    return ""


def measure(rounds: int, *, quick: bool) -> list[tuple[float, float]]:
    """Tokens a second with and without, once a round."""
    sys.path.insert(0, str(_servers.PROJECT / "tests"))
    from support import llama

    from bursar.middleware.xllamacpp import BudgetedServer
    from bursar.testing import Sidecar

    with (
        tempfile.TemporaryDirectory(prefix="bench-llama-") as folder,
        Sidecar('[[accounts]]\npath = "**"\n') as sidecar,
        sidecar.client() as client,
    ):
        client.set_budget(ACCOUNT, unit="tokens", limit=10**12)
        size = {} if quick else SIZE
        engine = llama.start(Path(folder), **size)
        ours = BudgetedServer(engine, client=client, account=ACCOUNT)
        with_it, without = ours.handle_chat_completions, engine.handle_chat_completions
        pairs = []
        for _ in range(rounds):
            _machine.wait_until_quiet(_machine.cpus(), [])
            calls: dict[Handle, list[list[float]]] = {with_it: [], without: []}
            call(with_it), call(without)  # warm
            for number in range(CALLS):  # each is first as often as the other
                for handle in (with_it, without)[:: -1 if number % 2 else 1]:
                    calls[handle].append(call(handle))
            pairs.append((rate(calls[with_it]), rate(calls[without])))
    return pairs


def call(handle: Handle) -> list[float]:
    """When one call that streams began, had each piece of its text, and ended."""
    body = {
        "messages": [{"role": "user", "content": "hello"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": TOKENS,
        "ignore_eos": True,
        "temperature": 0,
    }
    times, made = [time.perf_counter()], 0

    def take(chunk: Any) -> bool:
        nonlocal made
        choices = chunk.get("choices")
        if choices and choices[0]["delta"].get("content"):
            times.append(time.perf_counter())
        made = max(made, (chunk.get("usage") or {}).get("completion_tokens", 0))
        return False

    handle(body, take)
    times.append(time.perf_counter())
    if made != TOKENS:
        raise RuntimeError(f"{made} tokens instead of {TOKENS}")
    return times


def rate(calls: list[list[float]]) -> float:
    """Tokens a second of a call of medians."""
    first = statistics.median(times[1] - times[0] for times in calls)
    last = statistics.median(times[-1] - times[-2] for times in calls)
    steps = [after - before for times in calls for before, after in pairwise(times[1:-1])]
    return TOKENS / (first + last + statistics.median(steps) * len(steps) / len(calls))
