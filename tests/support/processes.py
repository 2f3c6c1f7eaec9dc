"""A ProcessService of our own making on a real socket: canned answers, and what it was asked."""

from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Final, cast

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

from bursar.v1 import process_pb2 as pr
from bursar.v1 import process_pb2_grpc

GIB: Final = 2**30
BREACH_TIME: Final = datetime(2026, 5, 1, 12, 0, 0, tzinfo=UTC)


def at(ms: int) -> Timestamp:
    """So many milliseconds after the breach."""
    wire = Timestamp()
    wire.FromDatetime(BREACH_TIME + timedelta(milliseconds=ms))
    return wire


class FakeWatchdog(process_pb2_grpc.ProcessServiceServicer):
    """Answers each method from a list; the last answer stays."""

    def __init__(self) -> None:
        self.answers: dict[str, list[Any]] = {}
        self.events: Sequence[pr.WatchProcessesResponse] = ()
        self.failure: tuple[grpc.StatusCode, str] | None = None
        self.requests: list[Any] = []

    def _answer(self, method: str, request: Any, context: Any) -> Any:
        self.requests.append(request)
        if self.failure is not None:
            code, reason = self.failure
            detail = AnyMessage()
            detail.Pack(ErrorInfo(reason=reason, domain="bursar"))
            status = Status(code=code.value[0], message="m", details=[detail])
            context.set_trailing_metadata([("grpc-status-details-bin", status.SerializeToString())])
            context.abort(code, "what happened")
        left = self.answers[method]
        return left.pop(0) if len(left) > 1 else left[0]

    def RegisterProcess(self, request: Any, context: Any) -> Any:  # noqa: N802 -- as the proto
        return self._answer("RegisterProcess", request, context)

    def ListProcesses(self, request: Any, context: Any) -> Any:  # noqa: N802 -- as the proto
        return self._answer("ListProcesses", request, context)

    def KillProcess(self, request: Any, context: Any) -> Any:  # noqa: N802 -- as the proto
        return self._answer("KillProcess", request, context)

    def ListIncidents(self, request: Any, context: Any) -> Any:  # noqa: N802 -- as the proto
        return self._answer("ListIncidents", request, context)

    def WatchProcesses(self, request: Any, context: Any) -> Iterator[Any]:  # noqa: N802 -- as the proto
        self.requests.append(request)
        yield from self.events


@contextmanager
def serving(fake: FakeWatchdog, address: str) -> Iterator[str]:
    """Serves it; yields the target."""
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=4))
    add = process_pb2_grpc.add_ProcessServiceServicer_to_server
    cast("Callable[..., None]", add)(fake, server)
    server.add_insecure_port(address)
    server.start()
    try:
        yield address
    finally:
        server.stop(grace=None).wait()


JOB: Final = pr.Job(
    id="j1",
    name="train",
    account="acme/x/j1",
    pid=4321,
    uid=1000,
    cgroup="bursar/j1",
    limits=[{"unit": "vram_bytes", "value": 8 * GIB}],
    wall_limit={"seconds": 7200},
    enforce=True,
    term_grace={"seconds": 5},
    create_time=at(-60_000),
)
LISTING: Final = pr.ListProcessesResponse(
    watchdog=pr.Watchdog(
        state="STATE_WATCHING", mode="observe", sample_time=at(0), driver_version="580.82"
    ),
    devices=[
        pr.Device(
            uuid="GPU-11111111-2222",
            index=0,
            name="Test GPU",
            vram_total_bytes=80 * GIB,
            vram_used_bytes=20 * GIB,
            busy_percent=37,
            vram_quarantined_bytes=2 * GIB,
        ),
        pr.Device(uuid="MIG-33333333-4444", index=1, name="Test slice", error="fell off the bus"),
    ],
    processes=[
        pr.Process(
            pid=4321,
            command="python train.py\x1b[2J",
            uid=1000,
            account="acme/x/j1",
            source="SOURCE_CGROUP",
            job="j1",
            device="GPU-11111111-2222",
            vram_bytes=19 * GIB // 2,
            busy_percent=36,
            state="STATE_TERM",
        ),
        pr.Process(pid=99, command="Xorg", device="GPU-11111111-2222"),
        pr.Process(pid=100, command="sleep", account="acme/y", source="SOURCE_REGISTERED"),
    ],
    jobs=[JOB],
)
STEPS: Final = (
    pr.Incident.Step(state="STATE_BREACH", time=at(0), detail="vram_bytes passed"),
    pr.Incident.Step(state="STATE_TERM", time=at(12), detail="SIGTERM to 1 process"),
    pr.Incident.Step(state="STATE_VERIFY", time=at(800), detail="ended\x07"),
    pr.Incident.Step(state="STATE_RECLAIMED", time=at(1812), detail="not listed twice"),
)


def incident(count: int = len(STEPS), **changes: Any) -> pr.Incident:
    """An incident after so many steps."""
    ended = count == len(STEPS)
    return pr.Incident(
        **{
            "id": "i1",
            "state": STEPS[count - 1].state,
            "account": "acme/x/j1",
            "job": "j1",
            "job_name": "train",
            "cause": "CAUSE_BUDGET",
            "limit_account": "acme/x/j1",
            "unit": "vram_bytes",
            "limit": 8 * GIB,
            "used": 19 * GIB // 2,
            "reason": "over the limit",
            "steps": STEPS[:count],
            "victims": [{"pid": 4321, "command": "python train.py", "vram_bytes": 19 * GIB // 2}],
            "vram_bytes": 19 * GIB // 2,
            "vram_returned_bytes": 19 * GIB // 2 if ended else 0,
            "create_time": at(0),
            "end_time": at(1812) if ended else None,
            **changes,
        }
    )
