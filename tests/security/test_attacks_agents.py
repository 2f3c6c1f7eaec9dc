"""An agent that would not pay: by ending what meters it, by going on after its token, by two names.

Also who fills what others need as well: watches, silent connections, all the places there are.
"""

import http.client
import json
import os
import re
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any, Final

import grpc
import pytest
from support import wire
from support.bare import Bare, Failed, amounts, failed
from support.daemon import Daemon, balance
from support.desk import Desk
from support.upstreams import RawUpstream, begin_stream, chunk, respond, usage

import bursar
from bursar import Role
from bursar._grpc import channel_options
from bursar.v1 import account_pb2 as ac
from bursar.v1 import ledger_pb2 as lg

LIMIT: Final = 1_000_000
ENFORCE: Final[dict[str, Any]] = {"access": {"mode": "enforce"}}

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


def agent_secret(operator: bursar.Client, account: str = "acme/a") -> str:
    return operator.tokens.create("x", role=Role.AGENT, account=account, ttl_s=600).secret


class Agent:
    """Calls with an agent's token, without the SDK."""

    def __init__(self, daemon: Daemon, secret: str) -> None:
        self._channel = grpc.insecure_channel(daemon.target, channel_options(daemon.target))
        self._metadata = (("authorization", f"Bearer {secret}"),)

    def __call__(self, method: str, request: Any) -> str:
        """The reason that the call fails for, or "" where it is answered."""
        call: Any = self._channel.unary_unary(f"/bursar.v1.LedgerService/{method}")
        try:
            call(request.SerializeToString(), metadata=self._metadata, timeout=10)
        except grpc.RpcError as error:
            return failed(error).reason
        return ""

    def try_everything(self, reservation: str) -> set[str]:
        """What comes of ending, debiting, raising and carving a reservation."""
        nothing = amounts(tokens=0)
        return {
            self("Commit", lg.CommitRequest(reservation=reservation, actual=nothing)),
            self("Release", lg.ReleaseRequest(reservation=reservation)),
            self("Debit", lg.DebitRequest(reservation=reservation, used=amounts(tokens=1))),
            self("Extend", lg.ExtendRequest(reservation=reservation)),
            self(
                "Reserve",
                lg.ReserveRequest(
                    account="acme/a", parent_reservation=reservation, amounts=amounts(tokens=1)
                ),
            ),
        }


class Call:
    """One call through the proxy that its upstream lets wait."""

    def __init__(self, *, stream: bool) -> None:
        self.came, self._go = threading.Event(), threading.Event()
        self._stream = stream

    def answer(self, connection: socket.socket, _head: str, _body: bytes) -> None:
        """As the upstream does."""
        if self._stream:
            begin_stream(connection)
            connection.sendall(chunk("hello"))
        self.came.set()
        self._go.wait(20)
        told = usage(500, 500)
        if self._stream:
            connection.sendall(chunk(finish="stop") + chunk(usage=told) + b"data: [DONE]\n\n")
            return
        message = {"role": "assistant", "content": "hello"}
        choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
        respond(connection, {"id": "c", "choices": choices, "usage": told})

    def make(self, daemon: Daemon, secret: str) -> Callable[[], int]:
        """Makes it; returns what lets it go on, and tells how it ended."""
        [address] = re.findall(r"proxy on http://(\S+)/v1", daemon.log)
        ended: list[int] = []

        def ask() -> None:
            connection = http.client.HTTPConnection(address, timeout=30)
            said = [{"role": "user", "content": "hi"}]
            body = {"model": "m", "max_tokens": 600, "messages": said, "stream": self._stream}
            head = {"authorization": f"Bearer {secret}", "content-type": "application/json"}
            with closing(connection), suppress(OSError, http.client.HTTPException):
                connection.request("POST", "/v1/chat/completions", json.dumps(body), head)
                response = connection.getresponse()
                response.read()
                ended.append(response.status)

        thread = threading.Thread(target=ask)
        thread.start()
        assert self.came.wait(20)

        def go_on() -> int:
            self._go.set()
            thread.join(30)
            return ended[0] if ended else 0

        return go_on


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_what_the_proxy_holds_for_a_call_its_agent_cannot_end(
    stream: bool,  # noqa: FBT001 -- from parametrize
) -> None:
    """Committed at nothing by its agent while the answer is on its way, a call would be free."""
    call = Call(stream=stream)
    with RawUpstream(call.answer) as upstream:
        to = {"name": "openai", "api": "openai", "url": upstream.url}
        proxy = {"listen": "127.0.0.1:0", "upstreams": [to]}
        rates = {"allow_unpriced": True}
        with Daemon(proxy=proxy, rates=rates, **ENFORCE) as daemon, daemon.client() as operator:
            operator.set_budget("acme/a", unit="tokens", limit=LIMIT)
            secret = agent_secret(operator)
            go_on = call.make(daemon, secret)
            [held] = {one.reservation for one in operator.list_entries("acme/a")} - {"", None}
            assert held is not None
            assert Agent(daemon, secret).try_everything(held) == {"NOT_THE_OWNER"}
            assert go_on() == 200
            while balance(operator, "acme/a")[0]:
                time.sleep(0.01)
            assert balance(operator, "acme/a") == (0, 1_000, LIMIT - 1_000)


def test_an_answer_through_the_proxy_ends_with_its_token() -> None:
    """What it holds ends, and with that the answer at its next part; what was sent is paid."""

    def answer(connection: socket.socket, _head: str, _body: bytes) -> None:
        begin_stream(connection)
        for _ in range(200):
            connection.sendall(chunk("word "))
            time.sleep(0.05)

    with RawUpstream(answer) as upstream:
        to = {"name": "openai", "api": "openai", "url": upstream.url}
        proxy = {"listen": "127.0.0.1:0", "upstreams": [to]}
        rates = {"allow_unpriced": True}
        with Daemon(proxy=proxy, rates=rates, **ENFORCE) as daemon, daemon.client() as operator:
            operator.set_budget("acme/a", unit="tokens", limit=LIMIT)
            made = operator.tokens.create("x", role=Role.AGENT, account="acme/a", ttl_s=600)
            [address] = re.findall(r"proxy on http://(\S+)/v1", daemon.log)
            with closing(http.client.HTTPConnection(address, timeout=30)) as connection:
                said = [{"role": "user", "content": "hi"}]
                body = {"model": "m", "max_tokens": 600, "messages": said, "stream": True}
                head = {"authorization": f"Bearer {made.secret}"}
                connection.request("POST", "/v1/chat/completions", json.dumps(body), head)
                response = connection.getresponse()
                assert response.read1(10)
                operator.tokens.revoke(made.token.id)
                begun = time.monotonic()
                response.read()
                assert time.monotonic() - begun < 3
            held, spent, _ = balance(operator, "acme/a")
            assert held == 0
            assert 1 < spent < 150


def test_what_a_crash_has_left_of_the_proxys_holds_is_not_the_agents_either() -> None:
    """It expires at what was measured, and a late Commit could say less."""
    call = Call(stream=True)
    with RawUpstream(call.answer) as upstream:
        to = {"name": "openai", "api": "openai", "url": upstream.url}
        proxy = {"listen": "127.0.0.1:0", "upstreams": [to], "idle_timeout": "1s"}
        proxy["first_byte_timeout"] = "1s"
        times = {"default_ttl": "1s", "max_ttl": "1s", "key_retention": "1s"}
        rates = {"allow_unpriced": True}
        with Daemon(proxy=proxy, rates=rates, reservations=times, **ENFORCE) as daemon:
            with daemon.client() as operator:
                operator.set_budget("acme/a", unit="tokens", limit=LIMIT)
                secret = agent_secret(operator)
                go_on = call.make(daemon, secret)
                entries = operator.list_entries("acme/a")
                [held] = {one.reservation for one in entries} - {"", None}
                assert held is not None
            time.sleep(0.3)  # the floor of what was used is logged
            daemon.kill9()
            go_on()
            daemon.start()
            with daemon.client() as operator:
                for _ in range(2):  # while it is remembered, and out of the store
                    while operator.get_reservation(held).state == "pending":
                        time.sleep(0.05)
                    commit = lg.CommitRequest(reservation=held, actual=amounts(tokens=0))
                    assert Agent(daemon, secret)("Commit", commit) == "NOT_THE_OWNER"
                    time.sleep(1.5)
                assert balance(operator, "acme/a")[1] > 0


def test_what_the_watchdog_holds_for_a_job_its_agent_cannot_give_back() -> None:
    with Daemon(**ENFORCE) as daemon, daemon.client() as operator:
        secret = agent_secret(operator)
        with subprocess.Popen(["/bin/sleep", "60"]) as job:
            operator.register_process("acme/a", pid=job.pid, limits={"vram_bytes": 2**20})
            entries = operator.list_entries("acme/a")
            [held] = {one.reservation for one in entries} - {"", None}
            assert held is not None
            assert Agent(daemon, secret).try_everything(held) == {"NOT_THE_OWNER"}
            assert operator.get_reservation(held).granted == {"vram_bytes": 2**20}
            job.kill()


def test_a_lease_ends_with_its_token_also_after_a_restart() -> None:
    """It is its process's, which attaches again without a token, and tops up by itself."""
    with Daemon(**ENFORCE) as daemon:
        with daemon.client() as operator:
            operator.set_budget("acme/a", unit="tokens", limit=LIMIT)
            made = operator.tokens.create("x", role=Role.AGENT, account="acme/a", ttl_s=600)
        with bursar.connect(daemon.target, token=made.secret) as agent:
            lease = agent.reserve("acme/a", tokens=64, ttl_s=30).lease()
            assert lease.debit(1) is bursar.Verdict.OK
            daemon.kill9()
            daemon.start()
            with daemon.client() as operator:
                for _ in range(10):
                    assert lease.debit(1) is bursar.Verdict.OK
                    time.sleep(0.05)
                operator.tokens.revoke(made.token.id)
                begun = time.monotonic()
                while lease.debit(1) is not bursar.Verdict.STOP:
                    assert time.monotonic() - begun < 2
                    time.sleep(0.01)
                assert balance(operator, "acme/a")[0] == 0


def test_a_reservation_is_not_ended_twice_by_two_names(daemon: Daemon) -> None:
    """The last part of an id is a place: with another one the store still finds the sequence."""
    with daemon.client() as client, Bare(daemon.target) as bare:
        client.set_budget("acme", unit="tokens", limit=1_000)
        held = client.reserve("acme", tokens=100)
        held.release()
        store, sequence, slot = held.id.split("-")
        spent = []
        for place, tokens in ((int(slot, 16) + 7, 50), (int(slot, 16), 70)):
            name = f"{store}-{sequence}-{place:x}"
            commit = lg.CommitRequest(reservation=name, actual=amounts(tokens=tokens))
            with suppress(Failed):
                bare("LedgerService/Commit", commit)
            spent.append(balance(client, "acme")[1])
        assert spent in ([50, 50], [0, 70])


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    with Daemon() as running:
        yield running


def test_watches_without_end_are_bounded_and_operators_still_find_a_place() -> None:
    """Each looks at all of its accounts, again and again, and remembers them."""
    with Daemon(**ENFORCE) as daemon, daemon.client(timeout_s=20) as operator, ExitStack() as stack:
        for number in range(500):
            operator.record(f"acme/a/{number}", tokens=1)
        secret = agent_secret(operator)
        before = daemon.rss_bytes()
        request = ac.WatchAccountsRequest()
        request.min_interval.FromMilliseconds(50)
        message = request.SerializeToString()
        body = b"\0" + struct.pack(">I", len(message)) + message
        token = wire.header(b"authorization", f"Bearer {secret}".encode())
        block = wire.headers("/bursar.v1.AccountService/WatchAccounts", extra=token)
        for _ in range(5):
            one = stack.enter_context(socket.socket(socket.AF_UNIX))
            one.settimeout(10)
            one.connect(str(daemon.socket_path))
            one.sendall(wire.PREFACE + wire.frame(wire.SETTINGS, 0, 0))
            for stream in range(1, 800, 2):
                one.sendall(
                    wire.frame(wire.HEADERS, wire.END_HEADERS, stream, block)
                    + wire.frame(wire.DATA, wire.END_STREAM, stream, body)
                )
        time.sleep(3)
        assert daemon.rss_bytes() - before < 100 * 2**20
        begun = time.monotonic()
        operator.get_account("acme/a")
        assert time.monotonic() - begun < 2
        assert next(operator.watch_accounts("acme")).accounts


def test_silent_connections_leave_room_at_the_lease_socket() -> None:
    """More than there are places for: the oldest without a lease makes room."""
    with Daemon(server={"max_connections": 40}) as daemon, daemon.client() as client:
        client.set_budget("acme", unit="tokens", limit=100)
        lease = client.reserve("acme", tokens=50).lease(top_up=False)
        with ExitStack() as stack:
            for _ in range(120):
                stack.enter_context(Desk(daemon))
            with Desk(daemon) as desk:
                answer = desk.attach(client.reserve("acme", tokens=5).id)
                assert (answer.status, answer.granted) == (0, 5)
                for one in answer.fds:
                    os.close(one)
            assert lease.debit(50) is bursar.Verdict.OK, "who has a lease keeps its place"


CROWD: Final = """
import os, socket, sys
from support import wire
os.setgroups([]); os.setgid(40_009); os.setuid(40_009)
held = []
for _ in range(80):
    one = socket.socket(socket.AF_UNIX)
    one.connect(sys.argv[1])
    try:
        one.sendall(wire.start())
        held.append(one)
    except OSError:
        pass
print(len(held), flush=True)
sys.stdin.read()
"""


@as_root
def test_who_takes_all_places_leaves_one_for_the_operator() -> None:
    """By HTTP/2, so that nobody closes them for saying nothing."""
    server = {"max_connections": 64, "socket_mode": "0666"}
    with Daemon(server=server) as daemon:
        daemon.folder.chmod(0o711)
        command = [sys.executable, "-c", CROWD, str(daemon.socket_path)]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdin=pipe, stdout=pipe) as crowd:
            assert crowd.stdout is not None
            assert int(crowd.stdout.readline()) >= 60
            with daemon.client(attempts=1) as operator:
                operator.freeze("acme", reason="it floods")
            assert crowd.poll() is None
            crowd.communicate(b"")


LAST_PID: Final = Path("/proc/sys/kernel/ns_last_pid")


def spawn_as(pid: int) -> int:
    """A process that has this pid, which nobody has; returns what ends it when it is closed."""
    for _ in range(200):
        try:
            LAST_PID.write_text(str(pid - 1), encoding="ascii")
        except OSError:
            break
        waits, ends = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(ends)
            os.read(waits, 1)
            os._exit(0)
        os.close(waits)
        if child == pid:
            return ends
        os.close(ends)
        os.waitpid(child, 0)
    pytest.skip("this host gives nobody the pid that is asked for")


def test_who_is_gone_is_not_taken_for_who_has_its_pid_now(daemon: Daemon) -> None:
    """While a connection waits to be accepted its process may end, and its pid go to another."""
    with daemon.client() as client:
        client.set_budget("acme", unit="tokens", limit=100)
    with socket.socket(socket.AF_UNIX) as late:
        late.settimeout(10)
        with daemon.stopped():
            child = os.fork()
            if child == 0:
                late.connect(str(daemon.socket_path))
                os._exit(0)
            os.waitpid(child, 0)
            ends = spawn_as(child)
        message = lg.ReserveRequest(account="acme", amounts=amounts(tokens=5)).SerializeToString()
        body = b"\0" + struct.pack(">I", len(message)) + message
        late.sendall(
            wire.start()
            + wire.frame(
                wire.HEADERS, wire.END_HEADERS, 1, wire.headers("/bursar.v1.LedgerService/Reserve")
            )
            + wire.frame(wire.DATA, wire.END_STREAM, 1, body)
        )
        said = b""
        while not (found := re.search(rb"[0-9a-f]{8}-[0-9a-f]+-[0-9a-f]+", said)):
            said += late.recv(65_536)
        with Desk(daemon) as desk:  # of a stranger's it would be refused
            answer = desk.attach(found[0].decode())
            assert answer.status == 0, answer.message
            for one in answer.fds:
                os.close(one)
        os.close(ends)
        os.waitpid(child, 0)


def reserve_without_end(client: bursar.Client) -> None:
    for number in range(200):
        client.reserve(f"acme/a/{number % 7}", tokens=1).release()
        time.sleep(0.015)


def test_who_reserves_without_end_leaves_room_to_others() -> None:
    """Spread over as many accounts as it likes: what is below an account counts with it."""
    with Daemon(limits={"max_reservations": 200}, **ENFORCE) as daemon, daemon.client() as operator:
        with bursar.connect(daemon.target, token=agent_secret(operator), attempts=1) as agent:
            with pytest.raises(bursar.LimitReached) as full:
                reserve_without_end(agent)
            assert full.value.reason == "RESERVATION_LIMIT_REACHED"
            with pytest.raises(bursar.LimitReached):
                agent.record("acme/a", tokens=1)
        for _ in range(20):
            operator.reserve("acme/b", tokens=1).release()
