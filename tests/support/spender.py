"""An agent that spends by the SDK, as a process of its own, whatever the network does.

`python -m support.spender TARGET ACCOUNT SECONDS`: reserves and commits, and records, for so long;
prints what it has spent and how long its longest call took, in milliseconds.
"""

import subprocess
import sys
import time
from pathlib import Path
from typing import Final, Self

import bursar

PATIENCE_S: Final = 20
_TESTS: Final = Path(__file__).resolve().parent.parent


def main(target: str, account: str, seconds: str) -> None:
    """Spends, and tells what."""
    spent, longest, number = 0, 0.0, 0
    end = time.monotonic() + float(seconds)
    with bursar.connect(target, timeout_s=PATIENCE_S, attempts=1_000) as client:
        while time.monotonic() < end:
            number += 1
            begun = time.monotonic()
            with client.reserve(account, tokens=number % 9 + 1) as held:
                spent += held.commit(tokens=number % 5 + 1).spent["tokens"]
            client.record(account, tokens=1)
            spent += 1
            longest = max(longest, time.monotonic() - begun)
    sys.stdout.write(f"{spent} {longest * 1000:.0f}\n")


class Spender:
    """Such an agent, started."""

    def __init__(self, target: str, account: str, *, seconds: float) -> None:
        arguments = [target, account, str(seconds)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "support.spender", *arguments],
            stdout=subprocess.PIPE,
            cwd=_TESTS,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def result(self, timeout_s: float = 60) -> tuple[int, int]:
        """What it has spent, and how long its longest step took."""
        output, _ = self.process.communicate(timeout=timeout_s)
        spent, longest_ms = output.split()
        return int(spent), int(longest_ms)


if __name__ == "__main__":
    main(*sys.argv[1:])
