"""Measures what the watchdog costs and how soon it acts. Prints a table; nothing passes or fails.

The GPUs are the tests' stand-in, whose own cost is in the sampler's figure; the processes are real.
`python tests/benchmarks/watchdog.py [--seconds 20] [--runs 20] [--only cost|latency]`;
of the cost, `--accounts 1 20 200`.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from support.gpu import GIB, MIB, Orders, StandIn
from support.sights import eventually, sampler, shown
from support.watched import Watched

GPUS, PER_GPU = 8, 200
ACCOUNTS = (1, 20, 200)
SETTLE_S = 5.0


def cpu_s(pid: int) -> float:
    """The processor time of a process so far, to the nanosecond."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def crowd(count: int) -> "subprocess.Popen[bytes]":
    """A process with so many children that do nothing; it answers when they are there."""
    script = f"i=0; while [ $i -lt {count} ]; do sleep 900 & i=$((i+1)); done; echo ready; wait"
    made = subprocess.Popen(
        ["/bin/sh", "-c", script], stdout=subprocess.PIPE, start_new_session=True
    )
    assert made.stdout is not None
    made.stdout.readline()
    return made


def children(pid: int) -> list[int]:
    """The children of a process."""
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def cost(accounts: int, seconds: float) -> list[tuple[str, str]]:
    """The processor time of the daemon and the sampler with that many accounts, at 1 Hz."""
    machine = StandIn()
    gpus = [machine.add_gpu(energy_runs=True) for _ in range(GPUS)]
    quiet = {"period": "1s", "vram_patience": "3s"}
    with ExitStack() as stack:
        watched = stack.enter_context(Watched(machine, watchdog=quiet))
        count = 0
        for number in range(accounts):
            account = f"team/a{number}"
            for unit, limit in (("vram_bytes", 2**50), ("gpu_ms", 2**50), ("energy_mj", 2**50)):
                watched.client.set_budget(account, unit=unit, limit=limit)
            root = crowd(GPUS * PER_GPU // accounts)
            stack.callback(os.killpg, root.pid, 9)
            watched.client.register_process(account, pid=root.pid)
            for pid in children(root.pid):
                machine.set_process(pid, gpus[count % GPUS], vram_bytes=100 * MIB, busy_percent=1)
                count += 1
        eventually(lambda: len(shown(watched)) == count, seconds=60)
        time.sleep(SETTLE_S)
        pids = {"daemon": watched.daemon.pid, "sampler": sampler(watched)}
        before = {name: cpu_s(pid) for name, pid in pids.items()}
        started = time.monotonic()
        time.sleep(seconds)
        passed = time.monotonic() - started
        used = {name: (cpu_s(pid) - before[name]) / passed for name, pid in pids.items()}
        used["both"] = sum(used.values())
        shares = ", ".join(f"{name} {share:.2%}" for name, share in used.items())
        return [(f"{count} processes on {GPUS} GPUs at 1 Hz, {accounts} accounts", shares)]


def latency(period: str, runs: int) -> list[tuple[str, str]]:
    """How long from a process passing its limit to its SIGTERM, and from SIGKILL to RECLAIMED."""
    period_s = {"1s": 1.0, "100ms": 0.1}[period]
    to_term, to_reclaimed = [], []
    options = {"period": period, "max_incidents": 1000, "max_incidents_per_account": 1000}
    with Watched(watchdog=options | {"term_grace": "200ms"}) as watched:
        for run in range(runs):
            account = f"a{run}"
            watched.limit_vram(account, GIB)
            worker = watched.register(account, orders=Orders(on_term="ignore"), vram_bytes=MIB)
            eventually(lambda pid=worker.pid: pid in shown(watched))  # type: ignore[misc]
            time.sleep(period_s * (run % 10) / 10)  # all phases of the period alike
            passed_s = time.time()
            watched.gpus.set_process(worker.pid, watched.gpu, vram_bytes=2 * GIB)
            [incident] = watched.ended(account)
            times = {str(one.state): one.time.timestamp() for one in incident.steps if one.time}
            to_term.append((times["term"] - passed_s) / period_s)
            to_reclaimed.append(times["reclaimed"] - times["kill"])
            worker.end()
    return [
        (f"breach to SIGTERM, period {period}", f"{_spread(to_term)} periods"),
        (f"SIGKILL to RECLAIMED, period {period}", f"{_spread(to_reclaimed)} s"),
    ]


def _spread(found: list[float]) -> str:
    return f"median {statistics.median(found):.2f}, max {max(found):.2f} of {len(found)}"


def main(arguments: list[str]) -> None:
    """Measures, and prints each row when it is there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0, help="how long each cost is taken")
    parser.add_argument("--runs", type=int, default=20, help="how often each latency is taken")
    parser.add_argument("--accounts", type=int, nargs="*", default=ACCOUNTS, help="for the cost")
    parser.add_argument("--only", choices=["cost", "latency"])
    chosen = parser.parse_args(arguments)
    table: list[Any] = []
    if chosen.only != "latency":
        table += [lambda count=count: cost(count, chosen.seconds) for count in chosen.accounts]
    if chosen.only != "cost":
        table += [lambda period=period: latency(period, chosen.runs) for period in ("1s", "100ms")]
    for measure in table:
        for name, figures in measure():
            sys.stdout.write(f"{name:<55} {figures}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
