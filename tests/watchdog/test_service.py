"""ProcessService at its border: who may register and stop what, and how a no is worded.

The service answers on this thread, over a real ledger; only the socket is left out, so a caller
can be anybody.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest
from google.protobuf.duration_pb2 import Duration
from support.cast import OTHER_UID, Cast
from support.suspicion import start_of

from bursar import _core
from bursar.daemon.config import Config
from bursar.v1 import account_pb2 as ac
from bursar.v1 import ledger_pb2 as lg
from bursar.v1 import process_pb2 as pb
from bursar.watchdog import cgroups, service
from bursar.watchdog.loop import Watchdog
from bursar.watchdog.service import Service
from bursar.watchdog.settings import Settings

GIB: Final = 2**30


class Failed(Exception):
    """The call failed."""

    def __init__(self, reason: str, message: str, metadata: dict[str, str]) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason
        self.metadata = metadata


class Desk:
    """The service and its ledger, called without a socket."""

    def __init__(self) -> None:
        config = Config.from_dict({"store": {"path": ""}, "accounts": [{"path": "acme/**"}]})
        self.engine = _core.Engine(config.to_core_json(listen=False))
        self.call = self.engine.call
        self.events: list[bytes] = []
        self.publish_process_event = self.events.append
        self.answered: Any = None
        self.within = ""
        self.dog = Watchdog(self, Settings(), journal_path=None, say=lambda *_, **__: None)  # type: ignore[arg-type]
        self.dog._open()
        self.service = Service(self.dog, self)  # type: ignore[arg-type]

    def answer_process_call(self, _: int, body: bytes) -> None:
        self.answered = body

    def fail_process_call(self, _: int, *about: Any) -> None:
        self.answered = Failed(*about)

    def ask(self, method: str, request: Any, peer: Any, answer: Any) -> Any:
        by = (f"user {peer[1]}" if peer else "a caller by TCP", self.within)
        self.service.answer(1, f"ProcessService/{method}", request.SerializeToString(), peer, by)
        if isinstance(self.answered, Failed):
            raise self.answered
        return answer.FromString(self.answered)

    def register(self, peer: Any, **fields: Any) -> pb.RegisterProcessResponse:
        request = pb.RegisterProcessRequest(**{"account": "acme/a", **fields})
        found: pb.RegisterProcessResponse = self.ask(
            "RegisterProcess", request, peer, pb.RegisterProcessResponse
        )
        return found

    def balances(self, account: str) -> dict[str, lg.Balance]:
        return {one.unit: one for one in self.dog.books.windows([account])}

    def accounts(self) -> list[str]:
        answer = self.dog._call(
            "AccountService/ListAccounts", ac.ListAccountsRequest(), ac.ListAccountsResponse
        )
        return [one.path for one in answer.accounts]  # type: ignore[attr-defined]


def peer_of(pid: int, uid: int = 0) -> tuple[int, int, int]:
    """What the socket says of a caller."""
    return pid, uid, start_of(pid)


@pytest.fixture(scope="module")
def cast() -> Iterator[Cast]:
    with Cast() as made:
        yield made


@pytest.fixture
def desk() -> Iterator[Desk]:
    made = Desk()
    try:
        yield made
    finally:
        made.dog.journal.close()
        made.dog.table.close()
        made.engine.close()


@contextmanager
def refused(reason: str, words: str) -> Iterator[None]:
    """The call fails with this reason, and its message has these words."""
    with pytest.raises(Failed) as caught:
        yield
    assert caught.value.reason == reason
    assert words in str(caught.value)


def seconds(count: int) -> Duration:
    return Duration(seconds=count)


FIELDS: Final[list[tuple[dict[str, Any], str, str]]] = [
    ({"name": "-a"}, "INVALID_FIELD", "name: write 1 to 64 letters"),
    ({"name": "a" * 65}, "INVALID_FIELD", "name: write 1 to 64 letters"),
    ({"name": "a/b"}, "INVALID_FIELD", "name: write 1 to 64 letters"),
    ({"name": "a\n"}, "INVALID_FIELD", "name: write 1 to 64 letters"),
    ({"term_grace": seconds(-1)}, "INVALID_FIELD", "term_grace: write from 0 to 300 s"),
    ({"term_grace": seconds(301)}, "INVALID_FIELD", "term_grace: write from 0 to 300 s"),
    ({"term_grace": seconds(2**62)}, "INVALID_FIELD", "term_grace: write from 0 to 300 s"),
    ({"wall_limit": seconds(0)}, "INVALID_FIELD", "wall_limit: write more than 0"),
    ({"wall_limit": seconds(-5)}, "INVALID_FIELD", "wall_limit: write more than 0"),
    ({"wall_limit": seconds(367 * 86_400)}, "INVALID_FIELD", "at most 366 days"),
    ({"limits": [lg.Amount(unit="gold", value=1)]}, "UNKNOWN_UNIT", "there is no unit 'gold'"),
    ({"limits": [lg.Amount(unit="tokens", value=-1)]}, "INVALID_AMOUNT", "tokens is negative"),
    ({"limits": [lg.Amount(unit="tokens", value=1)] * 2}, "INVALID_AMOUNT", "is there twice"),
    ({"cgroup": "bursar-a"}, "INVALID_FIELD", "cgroup: "),
    ({"cgroup": "/"}, "INVALID_FIELD", "not the group of a job"),
    ({"cgroup": "/../bursar-a"}, "INVALID_FIELD", "no cgroup below the root"),
    ({"cgroup": "//bursar-a"}, "INVALID_FIELD", "no cgroup below the root"),
    ({"cgroup": "/system.slice"}, "INVALID_FIELD", "its name begins with 'bursar-'"),
    ({"cgroup": "/bursar-none"}, "INVALID_FIELD", "there is no cgroup /bursar-none"),
    ({"cgroup": "/bursar-\0"}, "INVALID_FIELD", "cgroup: "),
    ({"cgroup": "/bursar-" + "a" * 8000}, "INVALID_FIELD", "cgroup: "),
    ({"cgroup": "/a" * 3000 + "/bursar-a"}, "INVALID_FIELD", "cgroup: "),
    ({"reservation": "r-nonsense"}, "INVALID_FIELD", "reservation: holds no vram_bytes of acme/a"),
    ({"account": ""}, "INVALID_ACCOUNT", "invalid account"),
    ({"account": "acme//a"}, "INVALID_ACCOUNT", "invalid account"),
    ({"account": "nobody/here"}, "ACCOUNT_NOT_FOUND", "nobody/here"),
    ({"pid": -1}, "PROCESS_NOT_FOUND", "there is no process -1"),
    ({"pid": 2**31 - 1}, "PROCESS_NOT_FOUND", "there is no process 2147483647"),
]


@pytest.mark.parametrize(("fields", "reason", "words"), FIELDS)
def test_a_field_that_is_wrong_is_named(
    fields: dict[str, Any], reason: str, words: str, cast: Cast, desk: Desk
) -> None:
    before = desk.accounts()
    with refused(reason, words):
        desk.register(peer_of(cast.pids["a"]), **fields)
    assert len(desk.dog.jobs) == 0
    assert set(desk.accounts()) <= {*before, "acme", "acme/a"}


def test_what_is_no_message_is_said_to_be_none(desk: Desk) -> None:
    for method in ("RegisterProcess", "ListProcesses", "KillProcess", "ListIncidents"):
        desk.service.answer(1, f"ProcessService/{method}", b"\xff\xff", None, ("", ""))
        assert desk.answered.reason == "INVALID_FIELD"


def test_who_cannot_be_seen_registers_nothing(cast: Cast, desk: Desk) -> None:
    with refused("NOT_THE_OWNER", "connect by the Unix socket"):
        desk.register(None, pid=cast.pids["a"])


def test_a_caller_names_itself_or_what_it_has_started(cast: Cast, desk: Desk) -> None:
    pids = cast.pids
    for stranger in ("b", "stranger", "b-child"):
        with refused("NOT_THE_OWNER", "does not descend from the caller"):
            desk.register(peer_of(pids["a"]), pid=pids[stranger])
    with refused("NOT_THE_OWNER", "does not descend from the caller"):
        desk.register(peer_of(pids["a-child"]), pid=pids["a"])
    grandchild = desk.register(peer_of(pids["a"]), pid=pids["a-grandchild"]).job
    assert grandchild.pid == pids["a-grandchild"]
    assert desk.register(peer_of(pids["a"])).job.pid == pids["a"]


def test_a_caller_that_has_ended_is_nobody(cast: Cast, desk: Desk) -> None:
    pid, uid, start = peer_of(cast.pids["a"])
    with refused("NOT_THE_OWNER", "has ended"):
        desk.register((pid, uid, start - 1))


def test_a_caller_cannot_name_another_users_process(cast: Cast, desk: Desk) -> None:
    if not cast.is_root:
        pytest.skip("only root can start a process as another user")
    with refused("NOT_THE_OWNER", "runs as user 65534, and the caller as user 1000"):
        desk.register(peer_of(cast.pids["a"], 1000), pid=cast.pids["a-other-user"])
    job = desk.register(peer_of(cast.pids["a"], 0), pid=cast.pids["a-other-user"]).job
    assert job.uid == OTHER_UID


def test_what_is_never_signalled_is_not_registered(cast: Cast, desk: Desk) -> None:
    with refused("PROCESS_PROTECTED", "sshd"):
        desk.register(peer_of(cast.pids["a"]), pid=cast.pids["a-sshd"])
    with refused("PROCESS_PROTECTED", "is the sidecar or an ancestor"):
        desk.register(peer_of(os.getpid()))
    with refused("PROCESS_PROTECTED", "part of the sidecar"):
        desk.register(peer_of(cast.stage))


def test_a_repeat_is_answered_alike_and_another_account_is_not(cast: Cast, desk: Desk) -> None:
    peer = peer_of(cast.pids["a"])
    first = desk.register(peer, name="one")
    assert desk.register(peer, name="two") == first
    for account in ("acme", "acme/b", "acme/a/b", ""):
        with refused("IDEMPOTENCY_MISMATCH", "is registered for acme/a"):
            desk.register(peer, account=account)


def test_a_repeat_for_a_job_with_limits_names_the_account_above(cast: Cast, desk: Desk) -> None:
    peer = peer_of(cast.pids["a"])
    limits = [lg.Amount(unit="gpu_ms", value=5)]
    first = desk.register(peer, name="train_1.x", limits=limits)
    assert first.job.account.startswith("acme/a/train_1.x-")
    assert desk.register(peer, limits=limits) == first
    assert desk.register(peer, account=first.job.account) == first
    with refused("IDEMPOTENCY_MISMATCH", first.job.account):
        desk.register(peer, account="acme")


def test_who_is_bound_to_other_accounts_finds_no_job_to_stop(cast: Cast, desk: Desk) -> None:
    job = desk.register(peer_of(cast.pids["a"])).job
    desk.within = "acme/b"
    for request in (pb.KillProcessRequest(job=job.id), pb.KillProcessRequest(pid=job.pid)):
        with refused("PROCESS_NOT_FOUND", "is no job's"):
            desk.ask("KillProcess", request, None, pb.KillProcessResponse)
    assert not list(desk.dog.cases)


def test_no_more_jobs_than_there_may_be(
    cast: Cast, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "JOBS_MAX", 1)
    desk.register(peer_of(cast.pids["a"]))
    desk.register(peer_of(cast.pids["a"]))
    with refused("JOB_LIMIT_REACHED", "1 jobs are registered, which is the most"):
        desk.register(peer_of(cast.pids["b"]))


def test_a_frozen_account_takes_no_job(cast: Cast, desk: Desk) -> None:
    desk.dog.books.check("acme/a")
    desk.register(peer_of(cast.pids["b"]))
    desk.dog.books.freeze("acme/a", "audit")
    answer = desk.register(peer_of(cast.pids["a"]))
    assert answer.verdict == lg.VERDICT_STOP
    assert answer.refusal.reason == lg.Refusal.REASON_ACCOUNT_FROZEN
    assert len(desk.dog.jobs) == 1


def test_memory_that_is_not_left_is_refused_and_leaves_nothing(cast: Cast, desk: Desk) -> None:
    desk.dog.books.open_account("acme/a", {"vram_bytes": 8 * GIB})
    wanted = [lg.Amount(unit="vram_bytes", value=9 * GIB)]
    answer = desk.register(peer_of(cast.pids["a"]), limits=wanted)
    assert answer.verdict == lg.VERDICT_STOP
    assert (answer.refusal.account, answer.refusal.unit) == ("acme/a", "vram_bytes")
    assert desk.balances("acme/a")["vram_bytes"].held == 0
    assert set(desk.accounts()) == {"acme", "acme/a"}
    assert desk.dog.journal.holds() == []


def test_limits_that_the_ledger_refuses_leave_no_account(cast: Cast, desk: Desk) -> None:
    deep = "/".join(["acme", *"abcdefghijklmno"])
    with refused("INVALID_ACCOUNT", "write 1 to 16 names"):
        desk.register(
            peer_of(cast.pids["a"]), account=deep, limits=[lg.Amount(unit="tokens", value=1)]
        )
    assert all(deep.startswith(one) for one in desk.accounts())


def test_only_a_hold_of_the_account_covers_its_memory(cast: Cast, desk: Desk) -> None:
    request = lg.ReserveRequest(
        account="acme/rich", amounts=[lg.Amount(unit="vram_bytes", value=GIB)]
    )
    desk.dog.books.open_account("acme/rich", {"vram_bytes": 8 * GIB})
    answer: Any = desk.dog._call("LedgerService/Reserve", request, lg.ReserveResponse)
    hold = answer.reservation.id
    with refused("INVALID_FIELD", "reservation: holds no vram_bytes of acme/a"):
        desk.register(peer_of(cast.pids["a"]), reservation=hold)
    desk.register(peer_of(cast.pids["a"]), account="acme/rich", reservation=hold)


def test_a_group_must_be_the_jobs_alone(cast: Cast, desk: Desk) -> None:
    if not cast.groups:
        pytest.skip("no cgroup v2 can be made here")
    path = cast.groups["group"]
    with refused("INVALID_FIELD", "and nothing else"):
        desk.register(peer_of(cast.pids["group"]), cgroup=path)
    with refused("INVALID_FIELD", "is not in the cgroup"):
        desk.register(peer_of(cast.pids["a"]), cgroup=path)
    own = cgroups.make("own")
    try:
        cgroups.add(own, cast.pids["stranger"])
        assert desk.register(peer_of(cast.pids["stranger"]), cgroup=own).job.cgroup == own
    finally:
        root = Path(f"{cgroups.mount_point()}/cgroup.procs")
        root.write_text(str(cast.pids["stranger"]), encoding="ascii")
        cgroups.remove(own)


@pytest.mark.parametrize(
    ("fields", "reason", "words"),
    [
        ({}, "INVALID_FIELD", "job: give either job or pid"),
        ({"job": "j", "pid": 5}, "INVALID_FIELD", "job: give either job or pid"),
        ({"job": "j1"}, "PROCESS_NOT_FOUND", "j1 is no job's"),
        ({"pid": -1}, "PROCESS_NOT_FOUND", "process -1 is no job's"),
        ({"pid": 1}, "PROCESS_NOT_FOUND", "process 1 is no job's"),
        ({"pid": 2**31 - 1}, "PROCESS_NOT_FOUND", "is no job's"),
        ({"job": "j1", "reason": "é" * 129}, "INVALID_FIELD", "reason: longer than 256 bytes"),
    ],
)
def test_what_cannot_be_killed_is_explained(
    fields: dict[str, Any], reason: str, words: str, desk: Desk
) -> None:
    with refused(reason, words):
        desk.ask("KillProcess", pb.KillProcessRequest(**fields), None, pb.KillProcessResponse)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"page_size": -1}, "page_size: has to be from 0 to 1000"),
        ({"page_size": 1001}, "page_size: has to be from 0 to 1000"),
        ({"page_token": "x"}, "page_token: is not one out of an answer"),
        ({"page_token": "-1"}, "page_token: is not one out of an answer"),
        ({"page_token": "\u0661"}, "page_token: is not one out of an answer"),
    ],
)
def test_a_page_that_is_not_one_is_explained(
    fields: dict[str, Any], words: str, desk: Desk
) -> None:
    request = pb.ListIncidentsRequest(**fields)
    with refused("INVALID_FIELD", words):
        desk.ask("ListIncidents", request, None, pb.ListIncidentsResponse)


def test_a_page_far_behind_is_empty(desk: Desk) -> None:
    request = pb.ListIncidentsRequest(page_token="9" * 400)
    answer = desk.ask("ListIncidents", request, None, pb.ListIncidentsResponse)
    assert not answer.incidents
