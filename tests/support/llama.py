"""A real llama.cpp server on the tiny model, and what its own counters say."""

import json
import urllib.request
from pathlib import Path
from typing import Any

from support.tiny_model import write_tiny_model


def start(folder: Path, *, slots: int = 1, seed: int = 0, **size: int) -> Any:
    """Starts it; it ends when it is dropped."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(write_tiny_model(folder / f"tiny-{seed}.gguf", seed=seed, **size))
    params.n_ctx, params.n_parallel, params.cpuparams.n_threads = 4096 * slots, slots, 1
    params.endpoint_slots = params.endpoint_metrics = True
    params.slot_save_path = f"{folder}/"
    params.warmup, params.verbosity = False, -1
    return xllamacpp.Server(params)


def get(server: Any, path: str) -> str:
    with urllib.request.urlopen(server.listening_address + path) as answer:  # noqa: S310 -- loopback
        return str(answer.read().decode())


def counter(server: Any, name: str) -> int:
    """One of the engine's counters."""
    [line] = [
        line
        for line in get(server, "/metrics").splitlines()
        if line.startswith(f"llamacpp:{name} ")
    ]
    return int(float(line.split()[1]))


def slots(server: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(get(server, "/slots"))
    return found
