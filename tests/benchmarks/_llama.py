"""What the adapter costs: tokens a second of llama.cpp with it and without it, in one process.

The engine, its thread and its model are the same; calls alternate, so that what disturbs one kind
disturbs the other, and of each round the pair counts whose ratio is the median. The whole call is
timed, the counting of its prompt and its settlement at a sidecar included. The model's step takes
some milliseconds, as a small real one's does.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _machine
import _servers

NAME = "llama_rate_with_adapter_vs_without"
GOAL = ">= 0.99"
ACCOUNT = "bench/llama"
CALLS = 11  # of either kind, in a round
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

    size = {} if quick else SIZE
    with (
        tempfile.TemporaryDirectory(prefix="bench-llama-") as folder,
        Sidecar('[[accounts]]\npath = "**"\n') as sidecar,
        sidecar.client() as client,
    ):
        client.set_budget(ACCOUNT, unit="tokens", limit=10**12)
        engine = llama.start(Path(folder), **size)
        ours = BudgetedServer(engine, client=client, account=ACCOUNT)
        tokens = 20 if quick else 200
        kinds = (ours.handle_chat_completions, engine.handle_chat_completions)
        for handle in kinds:
            rate(handle, tokens)  # warm
        pairs = []
        for _ in range(rounds):
            _machine.wait_until_quiet(_machine.cpus(), [])
            pairs.append(middle([pair(kinds, tokens, number) for number in range(CALLS)]))
    return pairs


def pair(kinds: tuple[Handle, Handle], tokens: int, number: int) -> tuple[float, float]:
    """Both rates, one after the other; each is first as often as the other."""
    if number % 2:
        without, with_it = (rate(handle, tokens) for handle in reversed(kinds))
    else:
        with_it, without = (rate(handle, tokens) for handle in kinds)
    return with_it, without


def middle(pairs: list[tuple[float, float]]) -> tuple[float, float]:
    """The pair whose ratio is the median."""
    return sorted(pairs, key=lambda each: each[0] / each[1])[len(pairs) // 2]


def rate(handle: Handle, tokens: int) -> float:
    """Tokens a second of one call that streams."""
    body = {
        "messages": [{"role": "user", "content": "hello"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": tokens,
        "ignore_eos": True,
        "temperature": 0,
    }
    made: list[int] = []

    def take(chunk: Any) -> bool:
        usage = chunk.get("usage") or {}
        made.append(usage.get("completion_tokens", 0))
        return False

    begun = time.perf_counter()
    handle(body, take)
    elapsed = time.perf_counter() - begun
    if max(made) != tokens:
        raise RuntimeError(f"{max(made)} tokens instead of {tokens}")
    return tokens / elapsed
