"""The calls of ProcessService, as `_calls` has those of the other services. No I/O."""

from typing import Final

from bursar import _convert as convert
from bursar import _process_convert as read
from bursar import models, processes
from bursar._calls import Call, Page, _sendable
from bursar._errors import refused
from bursar.v1 import process_pb2 as pr

PID_MAX: Final = 2**31 - 1


def _pid(pid: int) -> int:
    if type(pid) is not int or not 0 <= pid <= PID_MAX:
        raise convert.invalid(f"pid is {pid!r}; it is an integer from 0 to {PID_MAX}", field="pid")
    return pid


@_sendable
def register_process(
    account: str,
    *,
    pid: int,
    name: str,
    limits: models.Amounts | None,
    wall_limit_s: float | None,
    cgroup: str,
    enforce: bool,
    term_grace_s: float | None,
    reservation: str,
) -> Call[processes.Job]:
    """ProcessService/RegisterProcess; raises on a refusal."""

    def job(answer: pr.RegisterProcessResponse) -> processes.Job:
        if (refusal := convert.refusal(answer)) is not None:
            raise refused(refusal, requested=limits)
        return read.job(answer.job)

    request = pr.RegisterProcessRequest(
        account=account,
        pid=_pid(pid),
        name=name,
        limits=convert.amounts_to_wire(limits or {}, field="limits"),
        wall_limit=convert.duration(wall_limit_s, field="wall_limit_s"),
        cgroup=cgroup,
        enforce=enforce,
        term_grace=convert.duration(term_grace_s, field="term_grace_s", or_zero=True),
        reservation=reservation,
    )
    return Call("ProcessService/RegisterProcess", request, pr.RegisterProcessResponse, job)


@_sendable
def list_processes(account: str) -> Call[processes.Processes]:
    """ProcessService/ListProcesses."""
    request = pr.ListProcessesRequest(account=account)
    return Call("ProcessService/ListProcesses", request, pr.ListProcessesResponse, read.listing)


@_sendable
def kill_process(*, job: str, pid: int, reason: str) -> Call[processes.Incident]:
    """ProcessService/KillProcess."""
    if bool(job) == bool(pid):
        raise convert.invalid("give exactly one of job and pid", field="job")
    return Call(
        "ProcessService/KillProcess",
        pr.KillProcessRequest(job=job, pid=_pid(pid), reason=reason),
        pr.KillProcessResponse,
        lambda answer: read.incident(answer.incident),
    )


@_sendable
def list_incidents(
    account: str, *, job: str, page_size: int, page_token: str = ""
) -> Call[Page[processes.Incident]]:
    """ProcessService/ListIncidents, one page."""
    return Call(
        "ProcessService/ListIncidents",
        pr.ListIncidentsRequest(
            account=account, job=job, page_size=page_size, page_token=page_token
        ),
        pr.ListIncidentsResponse,
        lambda answer: Page(
            tuple(read.incident(one) for one in answer.incidents), answer.next_page_token
        ),
    )


@_sendable
def watch_processes(account: str) -> Call[processes.ProcessEvent]:
    """ProcessService/WatchProcesses; `read` turns each message into an event."""
    request = pr.WatchProcessesRequest(account=account)
    return Call("ProcessService/WatchProcesses", request, pr.WatchProcessesResponse, read.event)
