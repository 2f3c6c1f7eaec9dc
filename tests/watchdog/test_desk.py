"""Calls of ProcessService reach the watchdog with who made them; answers and events come back."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from support.bare import Bare, failed
from support.daemon import balance

import bursar
from bursar._grpc import channel_options
from bursar.daemon.config import Config
from bursar.v1 import account_pb2 as ac
from bursar.v1 import process_pb2 as pr
from bursar.v1 import process_pb2_grpc

_core = pytest.importorskip("bursar._core", reason="the extension is not built")

LIST = "ProcessService/ListProcesses"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Any]:
    config = Config.model_validate(
        {
            "server": {"socket": str(tmp_path / "s")},
            "store": {"path": str(tmp_path / "ledger.db")},
            "accounts": [{"path": "**"}],
        }
    )
    server = _core.Server(config.to_core_json())
    yield server
    server.shutdown()


@pytest.fixture
def bare(server: Any) -> Iterator[Bare]:
    with Bare(server.addresses[0]) as bare:
        yield bare


@contextmanager
def watchdog(server: Any, deal: Callable[..., None]) -> Iterator[None]:
    """A thread that deals with every call until the block ends."""
    over = threading.Event()

    def run() -> None:
        while not over.is_set():
            call = server.next_process_call(0.05)
            if call is not None:
                deal(*call)

    server.attach_watchdog()
    thread = threading.Thread(target=run)
    thread.start()
    yield
    over.set()
    thread.join()


def test_without_a_watchdog_every_call_fails_at_once(bare: Bare) -> None:
    for name in ("RegisterProcess", "ListProcesses", "KillProcess", "ListIncidents"):
        error = bare.fails(f"ProcessService/{name}", getattr(pr, f"{name}Request")())
        assert (error.code, error.reason) == ("UNAVAILABLE", "WATCHDOG_UNAVAILABLE")
        assert "off" in error.message


def test_a_call_comes_with_its_caller_and_is_answered(server: Any, bare: Bare) -> None:
    seen: list[tuple[str, bytes, tuple[int, int, int], tuple[str, str]]] = []

    def deal(
        number: int,
        method: str,
        request: bytes,
        peer: tuple[int, int, int],
        by: tuple[str, str],
    ) -> None:
        seen.append((method, request, peer, by))
        answer = pr.RegisterProcessResponse(job=pr.Job(id="j1"))
        server.answer_process_call(number, answer.SerializeToString())

    with watchdog(server, deal):
        request = pr.RegisterProcessRequest(account="acme/a", pid=7)
        assert bare("ProcessService/RegisterProcess", request).job.id == "j1"
    [(method, asked, (pid, uid, start_ticks), by)] = seen
    assert by == (f"user {uid}", "")
    assert (method, pr.RegisterProcessRequest.FromString(asked)) == (
        "ProcessService/RegisterProcess",
        request,
    )
    stat = Path("/proc/self/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    assert (pid, uid, start_ticks) == (os.getpid(), os.getuid(), int(stat[19]))


def test_a_failure_carries_reason_message_and_metadata(server: Any, bare: Bare) -> None:
    reasons = iter(["PROCESS_PROTECTED", "NO_SUCH_REASON"])

    def deal(number: int, *_: object) -> None:
        server.fail_process_call(number, next(reasons), "it is init", {"pid": "1"})

    with watchdog(server, deal):
        error = bare.fails("ProcessService/KillProcess", pr.KillProcessRequest(pid=1))
        assert (error.code, error.reason) == ("FAILED_PRECONDITION", "PROCESS_PROTECTED")
        assert (error.message, error.metadata) == ("it is init", {"pid": "1"})
        error = bare.fails("ProcessService/KillProcess", pr.KillProcessRequest(pid=1))
        assert (error.code, error.reason) == ("UNKNOWN", "UNSPECIFIED")


def test_an_answer_that_is_no_message_is_the_watchdogs_failure(server: Any, bare: Bare) -> None:
    with watchdog(server, lambda number, *_: server.answer_process_call(number, b"\xff")):
        assert bare.fails(LIST, pr.ListProcessesRequest()).reason == "WATCHDOG_UNAVAILABLE"


def test_the_57th_list_that_waits_is_refused_and_the_drain_ends_the_others(server: Any) -> None:
    server.attach_watchdog()
    with Bare(server.addresses[0]) as bare, ThreadPoolExecutor(57) as pool:
        calls = [pool.submit(bare.fails, LIST, pr.ListProcessesRequest()) for _ in range(57)]
        deadline = time.monotonic() + 5
        while not any(call.done() for call in calls):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        [refused] = [call.result() for call in calls if call.done()]
        assert refused.reason == "WATCHDOG_UNAVAILABLE"
        assert "too many calls" in refused.message
        server.shutdown()
        reasons = [call.result().reason for call in calls]
        assert reasons.count("SHUTTING_DOWN") == 56
    begun = time.monotonic()
    assert server.next_process_call(30) is None
    assert time.monotonic() - begun < 5


def test_a_watcher_hears_of_its_account_until_the_drain(server: Any) -> None:
    with grpc.insecure_channel(
        server.addresses[0], options=channel_options(server.addresses[0])
    ) as channel:
        stub: Any = process_pb2_grpc.ProcessServiceStub(channel)  # type: ignore[no-untyped-call]
        with pytest.raises(grpc.RpcError) as off:
            next(stub.WatchProcesses(pr.WatchProcessesRequest()))
        assert failed(off.value).reason == "WATCHDOG_UNAVAILABLE"
        server.attach_watchdog()
        with pytest.raises(grpc.RpcError) as malformed:
            next(stub.WatchProcesses(pr.WatchProcessesRequest(account="a//b")))
        assert failed(malformed.value).reason == "INVALID_ACCOUNT"
        stream = stub.WatchProcesses(pr.WatchProcessesRequest(account="acme/a"))
        stream.initial_metadata()  # it watches from here on
        for account in ("acme", "acme/ab", "acme/a/b", "acme/a"):
            event = pr.WatchProcessesResponse(account=account)
            server.publish_process_event(event.SerializeToString())
        assert [next(stream).account, next(stream).account] == ["acme/a/b", "acme/a"]
        threading.Timer(0.1, server.shutdown).start()
        with pytest.raises(StopIteration):
            next(stream)


def test_a_call_in_process_is_answered_like_one_on_the_socket(server: Any) -> None:
    budget = ac.Budget(account="acme", unit="tokens", limit=5)
    budget.period.kind = ac.Period.KIND_TOTAL
    request = ac.SetBudgetRequest(budget=budget).SerializeToString()
    answer = ac.SetBudgetResponse.FromString(server.call("AccountService/SetBudget", request))
    assert answer.balance.limit == 5
    with pytest.raises(_core.CoreError, match="socket") as error:
        server.call(LIST, b"")
    assert error.value.reason == "WATCHDOG_UNAVAILABLE"


OWNER = """
import sys, bursar
with bursar.connect(sys.argv[1]) as client:
    client.reserve("acme/a", amounts={"vram_bytes": 7}, ttl_s=0.2)
    print(open("/proc/self/stat").read().rpartition(")")[2].split()[19], flush=True)
    sys.stdin.readline()
"""


def test_vram_of_a_dead_owner_comes_back_once_nvml_lists_it_no_more(server: Any) -> None:
    """R9. Method: the owner dies, its hold expires, and two looks change nothing until
    the list of GPU processes no longer has it."""
    target = server.addresses[0]
    with bursar.connect(target) as client:
        client.set_budget("acme", unit="vram_bytes", limit=10)
        with subprocess.Popen(
            [sys.executable, "-c", OWNER, target],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        ) as owner:  # fmt: skip
            assert owner.stdout is not None
            server.set_gpu_processes([(owner.pid, int(owner.stdout.readline()))])
            owner.communicate("\n")
        time.sleep(2.5)
        assert balance(client, "acme") == (7, 0, 3)
        server.set_gpu_processes([])
        deadline = time.monotonic() + 5
        while balance(client, "acme") != (0, 0, 10):
            assert time.monotonic() < deadline
            time.sleep(0.05)
