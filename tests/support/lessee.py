"""An agent that debits a lease, as a process of its own: it may be killed at any token.

`python -m support.lessee TARGET ACCOUNT JOURNAL RESERVE COUNT TTL_S`: reserves, leases, and debits
one at a time until STOP or COUNT. JOURNAL is a file of two numbers, mapped: what it was about to
have debited, and what it knows that it has debited. Only a step that is under way tells them apart.
"""

import mmap
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Final, Self

import bursar

_NUMBERS: Final = struct.Struct("<qq")
_TESTS: Final = Path(__file__).resolve().parent.parent


def main(target: str, account: str, journal: str, *numbers: str) -> None:
    """Debits, and commits what it has debited."""
    reserve, count, ttl_s = numbers
    with Path(journal).open("r+b") as file, mmap.mmap(file.fileno(), _NUMBERS.size) as page:
        # Each number is stored whole: a kill leaves the one before or the one after.
        told = memoryview(page).cast("q")
        with bursar.connect(target, timeout_s=30, attempts=100) as client:
            reservation = client.reserve(account, tokens=int(reserve), ttl_s=float(ttl_s))
            lease = reservation.lease()
            sys.stdout.write(f"{reservation.id}\n")
            sys.stdout.flush()
            for done in range(int(count)):
                told[0] = done + 1
                if lease.debit(1) is bursar.Verdict.STOP:
                    break
                told[1] = done + 1
            told.release()
            spent = reservation.commit(tokens=lease.used).spent.get("tokens", 0)
        sys.stdout.write(f"{spent}\n")


class Lessee:
    """Such an agent, started."""

    def __init__(
        self,
        target: str,
        account: str,
        journal: Path,
        *,
        reserve: int = 1,
        count: int = 2**40,
        ttl_s: float = 600,
    ) -> None:
        self._journal = journal
        journal.write_bytes(bytes(_NUMBERS.size))
        arguments = [target, account, str(journal), str(reserve), str(count), str(ttl_s)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "support.lessee", *arguments],
            stdout=subprocess.PIPE,
            cwd=_TESTS,
            text=True,
        )
        assert self.process.stdout is not None
        self.reservation = self.process.stdout.readline().strip()
        assert self.reservation, "the agent did not start"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def debited(self) -> tuple[int, int]:
        """What it knows that it has debited, and that with the step under way."""
        about, done = _NUMBERS.unpack(self._journal.read_bytes())
        return done, about

    def wait_for(self, count: int, timeout_s: float = 20) -> None:
        """Waits until it has debited so much."""
        deadline = time.monotonic() + timeout_s
        while self.debited()[0] < count:
            assert time.monotonic() < deadline, f"no more than {self.debited()} of {count}"
            assert self.process.poll() is None, "the agent has ended"
            time.sleep(0.001)

    def kill9(self) -> None:
        """Kills it at whatever it is doing."""
        self.process.kill()
        self.process.wait()

    def result(self, timeout_s: float = 60) -> int:
        """What its commit came to."""
        output, _ = self.process.communicate(timeout=timeout_s)
        return int(output)


if __name__ == "__main__":
    main(*sys.argv[1:])
