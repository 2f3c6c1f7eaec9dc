"""Answers ProcessService, on the watchdog's thread. Who calls is known from the socket alone."""

import re
import secrets
import sqlite3
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, NamedTuple

from google.protobuf.message import DecodeError, Message

from bursar import _process_convert
from bursar.exceptions import BursarError
from bursar.units import UNITS
from bursar.v1 import ledger_pb2 as lg
from bursar.v1 import process_pb2 as pb
from bursar.watchdog import cgroups, signals
from bursar.watchdog.figures import exposition
from bursar.watchdog.jobs import JOBS_MAX, Kept
from bursar.watchdog.loop import Watchdog, boot_ms
from bursar.watchdog.processes import Held, ancestors, command_of, uid_of

if TYPE_CHECKING:
    from bursar._core import Server

__all__ = ["Service"]

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_FOREIGN: Final = re.compile(r"[^A-Za-z0-9._-]+")
_GRACE_MS_MAX: Final = 300_000
_WALL_MS_MAX: Final = 366 * 86_400_000
_REASON_BYTES_MAX: Final = 256
_PAGE: Final = (100, 1000)
_PAGE_TOKEN: Final = re.compile(r"[0-9]{1,1000}")

Peer = tuple[int, int, int]  # pid, uid, start time in clock ticks


class Caller(NamedTuple):
    """Who calls.

    Attributes:
        peer: Its process; None: it cannot be seen.
        name: What it is called.
        account: What it is bound to: this account and those below it; empty: all.
    """

    peer: Peer | None
    name: str
    account: str


class Refused(Exception):
    """A call that fails, with its reason out of errors.proto."""

    def __init__(self, reason: str, message: str, **metadata: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.metadata = metadata


def _field(name: str, message: str) -> Refused:
    return Refused("INVALID_FIELD", f"{name}: {message}", field=name)


class Service:
    """Answers calls about one watchdog."""

    def __init__(self, watchdog: Watchdog, server: "Server") -> None:
        self._watchdog = watchdog
        self._server = server
        self._methods: Mapping[str, tuple[type[Message], Callable[..., Message]]] = {
            "ProcessService/RegisterProcess": (pb.RegisterProcessRequest, self._register),
            "ProcessService/ListProcesses": (pb.ListProcessesRequest, self._list),
            "ProcessService/KillProcess": (pb.KillProcessRequest, self._kill),
            "ProcessService/ListIncidents": (pb.ListIncidentsRequest, self._incidents),
        }

    def answer(
        self, number: int, method: str, request: bytes, peer: Peer | None, by: tuple[str, str]
    ) -> None:
        """Answers one call, whatever it is."""
        try:
            if method == "Figures":
                body = self._figures()
            else:
                kind, answer = self._methods[method]
                called = answer(kind.FromString(request), Caller(peer, *by))
                body = called.SerializeToString()
        except Refused as refused:
            self._fail(number, refused.reason, str(refused), refused.metadata)
        except BursarError as error:
            self._fail(number, error.reason, str(error), dict(error.metadata))
        except DecodeError as error:
            self._fail(number, "INVALID_FIELD", f"request: not a message: {error}", {})
        except sqlite3.Error as error:
            message = f"the watchdog's journal cannot be read: {error}"
            self._fail(number, "STORE_UNAVAILABLE", message, {})
        else:
            self._server.answer_process_call(number, body)

    def _fail(self, number: int, reason: str, message: str, metadata: Mapping[str, str]) -> None:
        self._server.fail_process_call(number, reason, message, dict(metadata))

    def _register(
        self, request: pb.RegisterProcessRequest, caller: Caller
    ) -> pb.RegisterProcessResponse:
        watchdog = self._watchdog
        held = self._process(request.pid, caller.peer)
        known = watchdog.jobs.of_process(held)
        if known is not None:
            if request.account not in {known.job.account, known.named_account}:
                account = known.job.account
                message = f"process {held.pid} is registered for {account}"
                raise Refused("IDEMPOTENCY_MISMATCH", message, account=account)
            return pb.RegisterProcessResponse(verdict=lg.VERDICT_OK, job=known.job)
        if len(watchdog.jobs) >= JOBS_MAX:
            message = f"{JOBS_MAX} jobs are registered, which is the most"
            raise Refused("JOB_LIMIT_REACHED", message, max=str(JOBS_MAX))
        uid = uid_of(held.pid)
        job = self._job(request, held, -1 if uid is None else uid)
        if refusal := watchdog.rules.refusal(held, uid=job.uid, family=signals.own_family()):
            raise Refused("PROCESS_PROTECTED", refusal)
        kept = Kept(
            job=job,
            start_ticks=held.start_ticks,
            cgroup_inode=self._group(request.cgroup, held.pid),
            own_account=bool(job.limits),
            reservation=request.reservation,
            start_boot_ms=boot_ms(),
            boot=watchdog.boot,
        )
        if (refused := self._admit(request, kept)) is not None:
            return pb.RegisterProcessResponse(verdict=lg.VERDICT_STOP, refusal=refused)
        if failure := watchdog.register(kept):
            raise Refused("STORE_UNAVAILABLE", failure)
        return pb.RegisterProcessResponse(verdict=lg.VERDICT_OK, job=job)

    def _process(self, pid: int, peer: Peer | None) -> Held:
        """The process that is meant, if the caller may speak for it."""
        if peer is None:
            message = "the caller cannot be seen: connect by the Unix socket, on this host"
            raise Refused("NOT_THE_OWNER", message)
        caller, uid, start_ticks = peer
        if self._watchdog.table.hold(caller, start_ticks) is None:
            raise Refused("NOT_THE_OWNER", f"the process that connected, {caller}, has ended")
        held = self._watchdog.table.hold(pid or caller)
        if held is None:
            raise Refused("PROCESS_NOT_FOUND", f"there is no process {pid}", pid=str(pid))
        if held.pid != caller and caller not in ancestors(held.pid):
            message = f"process {pid} does not descend from the caller, process {caller}"
            raise Refused("NOT_THE_OWNER", message, pid=str(pid))
        if uid not in {0, owner := uid_of(held.pid)}:  # what it could not signal, it may not name
            message = f"process {pid} runs as user {owner}, and the caller as user {uid}"
            raise Refused("NOT_THE_OWNER", message, pid=str(pid))
        return held

    def _job(self, request: pb.RegisterProcessRequest, held: Held, uid: int) -> pb.Job:
        job = pb.Job(
            id=f"j{secrets.token_hex(8)}",
            name=request.name or _name_of(held.pid),
            account=request.account,
            pid=held.pid,
            uid=uid,
            cgroup=request.cgroup,
            limits=_checked_limits(request.limits),
            enforce=request.enforce,
        )
        if not _NAME.fullmatch(job.name):
            raise _field("name", "write 1 to 64 letters, digits and ._- after a letter or digit")
        grace_ms = self._watchdog.settings.term_grace_ms
        if request.HasField("term_grace"):
            grace_ms = request.term_grace.ToMilliseconds()
            if not 0 <= grace_ms <= _GRACE_MS_MAX:
                raise _field("term_grace", "write from 0 to 300 s")
        job.term_grace.FromMilliseconds(grace_ms)
        if request.HasField("wall_limit"):
            if not 0 < request.wall_limit.ToMilliseconds() <= _WALL_MS_MAX:
                raise _field("wall_limit", "write more than 0 and at most 366 days")
            job.wall_limit.CopyFrom(request.wall_limit)
        job.create_time.GetCurrentTime()
        return job

    def _group(self, path: str, pid: int) -> int:
        if not path:
            return 0
        try:
            cgroups.check_job_group(path, pid)
        except (ValueError, OSError) as error:
            raise _field("cgroup", str(error)) from None
        return cgroups.inode(path)

    def _admit(self, request: pb.RegisterProcessRequest, kept: Kept) -> lg.Refusal | None:
        """Makes the job's own account and holds its memory; why not, if so."""
        books, job = self._watchdog.books, kept.job
        checked = books.check(request.account)
        if checked.HasField("refusal"):
            return checked.refusal
        if request.reservation and not books.vram_of(request.reservation, request.account):
            message = f"holds no vram_bytes of {request.account} now; name one that is pending"
            raise _field("reservation", message)
        if not kept.own_account:
            return None
        job.account = f"{request.account}/{job.name[:48]}-{secrets.token_hex(4)}"
        limits = {one.unit: one.value for one in job.limits}
        try:
            books.open_account(job.account, limits)
        except BursarError:
            books.retire(job.account)
            raise
        size = limits.get("vram_bytes", 0)
        over = books.occupy(job.account, size, boot_ms()) if size else None
        if over is None:
            return None
        books.retire(job.account)
        return over.refusal

    def _figures(self) -> bytes:
        """Everything as OpenMetrics text, for the daemon's page."""
        found = _process_convert.listing(self._listed(""))
        latest, _ = self._watchdog.journal.incidents("", "", None, _PAGE[1])
        incidents = map(_process_convert.incident, latest)
        return exposition(found, incidents, now=datetime.now(UTC)).encode()

    def _list(self, request: pb.ListProcessesRequest, _: Caller) -> pb.ListProcessesResponse:
        return self._listed(request.account)

    def _listed(self, within: str) -> pb.ListProcessesResponse:
        watchdog, gpus = self._watchdog, self._watchdog.gpus
        answer = pb.ListProcessesResponse(watchdog=watchdog.status())
        sample = gpus.view.sample
        for device in sample.devices if sample else ():
            shown = pb.Device(
                uuid=device.uuid,
                index=device.index,
                name=device.name,
                vram_total_bytes=device.vram_total_bytes or 0,
                vram_used_bytes=device.vram_used_bytes,
                busy_percent=_percent(device.busy_permille),
                vram_quarantined_bytes=watchdog.cases.quarantined(gpus.view, device.uuid),
                error=device.error,
            )
            answer.devices.append(shown)
        for device in sample.devices if sample else ():
            for process in device.processes or ():
                shown_process = self._shown(process.pid)
                shown_process.device = device.uuid
                if process.vram_bytes is not None:
                    shown_process.vram_bytes = process.vram_bytes
                if process.busy_permille is not None:
                    shown_process.busy_percent = process.busy_permille // 10
                answer.processes.append(shown_process)
        for kept in watchdog.jobs:
            answer.jobs.append(kept.job)
            if kept.job.id not in gpus.pids_by_job:
                answer.processes.append(self._shown_job(kept))
        for account, totals in watchdog.booking.totals.items():
            amounts = [lg.Amount(unit=meter, value=total) for meter, total in totals.items()]
            answer.metered.append(pb.MeteredAccount(account=account, amounts=amounts))
        return _within(answer, within)

    def _shown(self, pid: int) -> pb.Process:
        whose = self._watchdog.gpus.whose.get(pid)
        if whose is None:
            return pb.Process(pid=pid, uid=-1)
        return pb.Process(
            pid=pid,
            command=whose.command,
            uid=whose.uid,
            account=whose.account,
            source=whose.source,
            job=whose.job_id,
            state=self._state(whose.job_id),
        )

    def _shown_job(self, kept: Kept) -> pb.Process:
        job = kept.job
        source = pb.Process.SOURCE_CGROUP if job.cgroup else pb.Process.SOURCE_REGISTERED
        return pb.Process(
            pid=job.pid,
            command=command_of(job.pid) or job.name,
            uid=job.uid,
            account=job.account,
            source=source,
            job=job.id,
            state=self._state(job.id),
        )

    def _state(self, job_id: str) -> "pb.Incident.State":
        case = self._watchdog.cases.of_job(job_id)
        return case.incident.state if case else pb.Incident.STATE_UNSPECIFIED

    def _kill(self, request: pb.KillProcessRequest, caller: Caller) -> pb.KillProcessResponse:
        watchdog = self._watchdog
        if len(request.reason.encode()) > _REASON_BYTES_MAX:
            raise _field("reason", f"longer than {_REASON_BYTES_MAX} bytes")
        if bool(request.job) == bool(request.pid):
            raise _field("job", "give either job or pid")
        kept = watchdog.jobs.get(request.job) if request.job else self._job_of(request.pid)
        if kept is not None and not _is_within(kept.job.account, caller.account):
            kept = None  # who may not see a job does not learn that there is one
        if kept is None:
            asked = request.job or f"process {request.pid}"
            message = f"{asked} is no job's; only what was registered can be stopped"
            raise Refused("PROCESS_NOT_FOUND", message)
        case = watchdog.cases.of_job(kept.job.id)
        reason = ": ".join(filter(None, (f"{caller.name} asked for it", request.reason)))
        if case is not None:
            watchdog.cases.order(case, reason)
        else:
            incident = pb.Incident(cause=pb.Incident.CAUSE_OPERATOR, reason=reason)
            case = watchdog.stop_job(kept, incident, boot_ms())
        if case is None or case.incident.state == pb.Incident.STATE_OBSERVED:
            why = case.standing.detail if case else "another incident is in the way"
            raise Refused("PROCESS_PROTECTED", why)
        return pb.KillProcessResponse(incident=case.incident)

    def _job_of(self, pid: int) -> Kept | None:
        watchdog = self._watchdog
        held = watchdog.table.hold(pid)
        return watchdog.jobs.get(watchdog.attributor.whose(held).job_id) if held else None

    def _incidents(self, request: pb.ListIncidentsRequest, _: Caller) -> pb.ListIncidentsResponse:
        default, most = _PAGE
        size = request.page_size or default
        if not 0 < size <= most:
            raise _field("page_size", f"has to be from 0 to {most}")
        before = None
        if request.page_token:
            if not _PAGE_TOKEN.fullmatch(request.page_token):
                raise _field("page_token", "is not one out of an answer")
            before = min(int(request.page_token), 2**62)
        page, last = self._watchdog.journal.incidents(request.account, request.job, before, size)
        token = str(last) if last else ""
        return pb.ListIncidentsResponse(incidents=page, next_page_token=token)


def _checked_limits(limits: "Iterable[lg.Amount]") -> "list[lg.Amount]":
    found = list(limits)
    units = [one.unit for one in found]
    for one in found:
        if one.unit not in UNITS:
            message = f"there is no unit {one.unit!r}; write one of {', '.join(sorted(UNITS))}"
            raise Refused("UNKNOWN_UNIT", message, unit=one.unit)
        if one.value < 0 or units.count(one.unit) > 1:
            why = "negative" if one.value < 0 else "there twice"
            raise Refused("INVALID_AMOUNT", f"limits: {one.unit} is {why}", unit=one.unit)
    return found


def _name_of(pid: int) -> str:
    program = command_of(pid).split(" ", 1)[0].rpartition("/")[2]
    return _FOREIGN.sub("-", program).strip("-._")[:64] or "job"


def _percent(permille: int | None) -> int | None:
    return None if permille is None else permille // 10


def _within(answer: pb.ListProcessesResponse, account: str) -> pb.ListProcessesResponse:
    """Leaves only what belongs to an account or one below it."""
    if account:
        for rows in (answer.processes, answer.jobs, answer.metered):
            for index in range(len(rows) - 1, -1, -1):
                if not _is_within(rows[index].account, account):
                    del rows[index]
    return answer


def _is_within(account: str, ancestor: str) -> bool:
    return not ancestor or f"{account}/".startswith(f"{ancestor}/")
