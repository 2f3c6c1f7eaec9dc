"""What leases cost: a step from Python and Rust, a generation that debits each token, the pump.

Needs the extension that the tests use. Each figure is measured against its floor in turn, round by
round.
"""

import json
import multiprocessing
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import _servers

import bursar
from bursar import _core
from bursar.testing import Sidecar

Pairs = list[tuple[float, float]]
STEPS = 200_000
HOLD = 2**40
PROCESSES = 8
IDLE, ACTIVE = 10_000, 1_000
TEXT = _servers.PROJECT / "examples/austen-persuasion-1-6.txt"


def measure(rounds: int, *, quick: bool) -> dict[str, dict[str, Any]]:
    """Name → pairs, unit and goal."""
    scale = 100 if quick else 1
    config = {"accounts": [{"path": "**"}], "limits": {"max_leases": IDLE + ACTIVE}}
    with Sidecar(config) as sidecar, sidecar.client() as client:
        client.set_budget("acme", unit="tokens", limit=2**60)
        found = {
            "lease_debit_python_vs_empty_call": figure(
                python_debit(client, rounds, STEPS // scale), "ns", "<= 2"
            ),
            "lease_debit_8_processes_vs_1": figure(
                processes(sidecar.target, rounds, STEPS // scale), "debits/s", None
            ),
        }
        for name, pairs in generation(client, rounds, 10_000 // scale).items():
            found[name] = figure(pairs, "s", "<= 1.01" if "debit" in name else None)
        seconds = 1.0 if quick else 10.0
        idle, active = pump(sidecar, client, seconds, scale)
        found["pump_10000_idle_leases_of_a_core"] = figure([(idle, 1.0)], "cores", "<= 0.01")
        found["pump_1000_active_leases_of_a_core"] = figure([(active, 1.0)], "cores", "<= 0.1")
    if not quick:
        found["lease_debit_rust_vs_cas"] = figure(rust_debit(), "ns", None)
    return found


def figure(pairs: Pairs, unit: str, goal: str | None) -> dict[str, Any]:
    """What `_results.entry` takes."""
    return {"pairs": pairs, "unit": unit, "goal": goal}


def timed_ns(call: Callable[[int], object], steps: int) -> float:
    """Nanoseconds a call, the loop included."""
    begun = time.perf_counter_ns()
    for _ in range(steps):
        call(1)
    return (time.perf_counter_ns() - begun) / steps


def python_debit(client: bursar.Client, rounds: int, steps: int) -> Pairs:
    """`lease.debit(1)` beside a call of the extension that does nothing with its one argument."""
    with client.reserve("acme/a", tokens=HOLD) as one, one.lease(top_up=False) as lease:
        timed_ns(lease.debit, steps)
        return [
            (timed_ns(lease.debit, steps), timed_ns(_core.empty_call, steps)) for _ in range(rounds)
        ]


def spend(target: str, number: int, steps: int, out: Any) -> None:
    """One process of `processes`."""
    with bursar.connect(target) as client, client.reserve(f"acme/p{number}", tokens=HOLD) as one:
        lease = one.lease(top_up=False)
        out.put(timed_ns(lease.debit, steps))
        lease.detach()


def processes(target: str, rounds: int, steps: int) -> Pairs:
    """Debits per second of several processes, each on its lease, beside those of one."""
    context = multiprocessing.get_context("spawn")

    def rate(count: int) -> float:
        out = context.Queue()
        all_of_them = [
            context.Process(target=spend, args=(target, number, steps * 5, out))
            for number in range(count)
        ]
        for one in all_of_them:
            one.start()
        spent = [out.get(timeout=60) for _ in all_of_them]
        for one in all_of_them:
            one.join()
        return sum(1e9 / ns for ns in spent)

    return [(rate(PROCESSES), rate(1)) for _ in range(rounds)]


def generation(client: bursar.Client, rounds: int, steps: int) -> dict[str, Pairs]:
    """Seconds of a loop that decodes a token a step, and nothing else: with a debit each, and with
    a call that does nothing, which is the least that Python allows; beside those without.

    The tokenizer is a byte-level BPE, trained on a text of the examples. A step decodes the last
    tokens without and with the new one, and what is longer is new text: as vLLM's
    `detokenize_incrementally`.
    """
    try:
        from tokenizers import ByteLevelBPETokenizer
    except ImportError:
        sys.stdout.write("skipped generation_with_debit_vs_without: tokenizers is not installed\n")
        return {}
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train([str(TEXT)], vocab_size=4_000, show_progress=False)
    decode, ids = tokenizer.decode, tokenizer.encode(TEXT.read_text(encoding="utf-8")).ids

    def generate(debit: Callable[[int], object] | None) -> float:
        stop = bursar.Verdict.STOP
        begun = time.perf_counter()
        if debit is None:
            for at in range(steps):
                decode(ids[at : at + 7])[len(decode(ids[at : at + 6])) :]
        else:
            for at in range(steps):
                decode(ids[at : at + 7])[len(decode(ids[at : at + 6])) :]
                if debit(1) is stop:
                    break
        return time.perf_counter() - begun

    with client.reserve("acme/g", tokens=HOLD) as one, one.lease(top_up=False) as lease:
        kinds = (lease.debit, _core.empty_call, None)
        debits, empty = [], []
        for _ in range(max(rounds, 3)):
            # In small parts, in turn: what the machine does meanwhile meets all alike.
            parts = zip(*[[generate(kind) for kind in kinds] for _ in range(11)], strict=True)
            with_debit, with_call, without = (statistics.median(part) for part in parts)
            debits.append((with_debit, without))
            empty.append((with_call, without))
    return {
        "generation_with_debit_vs_without": debits,
        "generation_with_empty_call_vs_without": empty,
    }


def pump(
    sidecar: Sidecar, client: bursar.Client, seconds: float, scale: int
) -> tuple[float, float]:
    """The share of a core that the sidecar takes: many idle leases, then many that move."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65_536), hard))
    with ExitStack() as stack:
        leases = []
        for number in range(IDLE // scale):
            one = client.reserve(f"acme/l{number % 100}", tokens=10**9, ttl_s=3_600)
            leases.append(stack.enter_context(one.lease(top_up=False)))
        time.sleep(1)
        idle = share(sidecar.pid, seconds)
        moving = leases[: ACTIVE // scale]
        stop = time.monotonic() + seconds + 1

        def move() -> None:
            while time.monotonic() < stop:
                for lease in moving:
                    lease.debit(1)
                time.sleep(0.004)

        import threading

        mover = threading.Thread(target=move)
        mover.start()
        time.sleep(0.5)
        active = share(sidecar.pid, seconds)
        mover.join()
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return idle, active


def share(pid: int, seconds: float) -> float:
    """The share of a core that a process takes meanwhile."""

    def used_s() -> float:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / 100

    before = used_s()
    time.sleep(seconds)
    return (used_s() - before) / seconds


def rust_debit() -> Pairs:
    """A step on the pages, from Rust, beside one compare-and-swap."""
    command = ["cargo", "bench", "-p", "bursar-lease", "--bench", "lease"]
    ran = subprocess.run(
        command, cwd=_servers.PROJECT, stdout=subprocess.PIPE, check=True, text=True
    )
    lines = [json.loads(line) for line in ran.stdout.splitlines() if line.startswith("{")]
    figures = {line["case"]: line for line in lines}
    floor = float(figures["cas_floor"]["median"])
    return [(float(figures["debit_rust"][field]), floor) for field in ("min", "median", "max")]
