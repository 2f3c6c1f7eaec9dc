"""No call to the daemon waits for Python: not even while its process holds the GIL."""

import select
import subprocess
import sys
from pathlib import Path

import pytest

import bursar

pytest.importorskip("bursar._core", reason="the extension is not built")

# The sum runs in C for seconds on end and never lets go of the GIL.
HOLDER = """
import sys
from bursar import _core
from bursar.daemon.config import Config, AccountPattern, ServerSection, StoreSection

socket, store = sys.argv[1:]
config = Config(
    server=ServerSection(socket=socket),
    store=StoreSection(path=store),
    accounts=(AccountPattern(path="**"),),
)
server = _core.Server(config.to_core_json())
print("serves", flush=True)
sys.stdin.readline()
print("holds", flush=True)
sum(range(400_000_000))
print("lets go", flush=True)
sys.stdin.readline()
server.shutdown()
"""


@pytest.mark.timeout(120)
def test_calls_are_answered_while_the_gil_is_held(tmp_path: Path) -> None:
    """Method: a thousand calls begin once the process says that it is about to hold the GIL, and
    all are answered before it says that it has let go."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "s"), str(tmp_path / "ledger.db")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "serves\n"
        with bursar.connect(f"unix:{tmp_path / 's'}", timeout_s=30) as client:
            client.set_budget("acme", unit="tokens", limit=10_000)
            process.stdin.write("hold\n")
            assert process.stdout.readline() == "holds\n"
            for _ in range(250):
                with client.reserve("acme/a", tokens=10) as hold:
                    hold.debit(tokens=3)
                    hold.commit(tokens=4)
            client.freeze("acme")
            still_holds = not select.select([process.stdout], [], [], 0)[0]
            assert still_holds, "too slow to tell: the GIL was let go before the calls had ended"
            assert process.stdout.readline() == "lets go\n"
            assert client.get_account("acme").balances[0].spent == 1_000
        process.stdin.write("end\n")
        assert process.wait(30) == 0
