"""Who takes most of what all share: accounts, leases, calls of the proxy, reads of the store.

Whatever one agent takes with all that is below its account, there is some left for another.
"""

import os
import re
import socket
import sqlite3
import threading
import time
from collections import Counter
from contextlib import ExitStack, closing, suppress
from http.client import HTTPConnection
from itertools import count, repeat
from pathlib import Path
from typing import Any, Final

import grpc
import pytest
from support.bare import Bare
from support.daemon import Daemon, balance
from support.desk import LEASE_LIMIT_REACHED, Desk
from support.places import small_disk
from support.upstreams import RawUpstream, respond, usage

import bursar
from bursar import Role
from bursar.v1 import ledger_pb2 as lg

ENFORCE: Final[dict[str, Any]] = {"access": {"mode": "enforce"}}


def secret_of(operator: bursar.Client, account: str) -> str:
    return operator.tokens.create("x", role=Role.AGENT, account=account, ttl_s=600).secret


def test_who_opens_accounts_without_end_leaves_half_to_others() -> None:
    with (
        Daemon(limits={"max_accounts": 40}, **ENFORCE) as daemon,
        daemon.client() as operator,
        bursar.connect(daemon.target, token=secret_of(operator, "acme/a"), attempts=1) as agent,
    ):
        for number in range(15):
            agent.check(f"acme/a/{number % 5}/{number}", tokens=1)
        with pytest.raises(bursar.LimitReached, match="has reached its maximum of 20") as full:
            agent.check("acme/a/0/more", tokens=1)
        assert full.value.reason == "ACCOUNT_LIMIT_REACHED"
        daemon.restart()
        with pytest.raises(bursar.LimitReached):
            agent.check("acme/a/one/more", tokens=1)
        for number in range(15):
            operator.check(f"acme/b/{number}", tokens=1)


def test_who_leases_without_end_leaves_some_to_others() -> None:
    limits = {"max_leases": 64}
    with Daemon(limits=limits) as daemon, daemon.client() as client, ExitStack() as stack:
        desk = stack.enter_context(Desk(daemon))

        def leased(account: str) -> bool:
            answer = desk.attach(client.reserve(account, tokens=1).id)
            for one in answer.fds:
                os.close(one)
            assert answer.status in (0, LEASE_LIMIT_REACHED), answer.message
            return answer.status == 0

        assert sum(leased(f"acme/a/{number % 5}") for number in range(70)) == 60
        assert [leased("acme/b/1") for _ in range(5)] == [True] * 4 + [False]


def test_who_calls_through_the_proxy_without_end_leaves_some_to_others() -> None:
    """Each of its calls waits for an upstream that does not answer."""
    go_on = threading.Event()

    def answer(connection: socket.socket, _head: str, _body: bytes) -> None:
        go_on.wait(60)
        choices = [{"index": 0, "message": {"content": "hello"}, "finish_reason": "stop"}]
        respond(connection, {"id": "c", "choices": choices, "usage": usage(1, 1)})

    with RawUpstream(answer) as upstream, ExitStack() as stack:
        to = {"name": "openai", "api": "openai", "url": upstream.url}
        proxy = {"listen": "127.0.0.1:0", "upstreams": [to], "max_calls": 32}
        rates = {"allow_unpriced": True}
        daemon = stack.enter_context(Daemon(proxy=proxy, rates=rates))
        stack.callback(go_on.set)
        [address] = re.findall(r"proxy on http://(\S+)/v1", daemon.log)

        def call(account: str) -> HTTPConnection:
            connection = stack.enter_context(closing(HTTPConnection(address, timeout=30)))
            body = '{"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "x"}]}'
            connection.request("POST", f"/a/{account}/v1/chat/completions", body)
            return connection

        def wait_until(under_way: int) -> None:
            with daemon.client() as operator:
                while (
                    sum(one.open_reservation_count for one in operator.list_accounts()) < under_way
                ):
                    time.sleep(0.01)

        flood = [call(f"acme/a/{number % 5}") for number in range(30)]
        wait_until(30)
        assert call("acme/a/more").getresponse().status in (429, 503)
        other = call("acme/b")
        wait_until(31)
        go_on.set()
        assert {one.getresponse().status for one in (*flood, other)} == {200}


LOOKUPS: Final = 2_000


@pytest.mark.parametrize("what", ["reservations", "accounts"])
def test_lookups_without_end_take_turns_and_delay_nobody(what: str) -> None:
    """Of reservations that there are none of, so that the store is asked for each, or of all
    accounts. They are sent while the daemon stands, so that it meets them all at once."""
    with Daemon(**ENFORCE) as daemon, daemon.client(timeout_s=20) as operator, ExitStack() as stack:
        operator.set_budget("acme", unit="tokens", limit=10)
        held = operator.reserve("acme/b", tokens=1)
        store, sequence, slot = held.id.split("-")
        token = (("authorization", f"Bearer {secret_of(operator, 'acme/a')}"),)
        crowd = [stack.enter_context(Bare(daemon.target)) for _ in range(4)]
        for one in crowd:
            one("LedgerService/GetReservation", lg.GetReservationRequest(reservation=held.id))
        unknown = (f"{store}-{int(sequence, 16) + 1_000 + number:x}-{slot}" for number in count())
        method, sent, answer = {
            "reservations": (
                "LedgerService/GetReservation",
                (
                    lg.GetReservationRequest(reservation=name).SerializeToString()
                    for name in unknown
                ),
                grpc.StatusCode.NOT_FOUND,
            ),
            "accounts": ("AccountService/ListAccounts", repeat(b""), grpc.StatusCode.OK),
        }[what]
        lookups: list[Any] = [one.channel.unary_unary(f"/bursar.v1.{method}") for one in crowd]
        with daemon.stopped():
            flood = [
                lookups[number % 4].future(request, metadata=token, timeout=60)
                for number, request in zip(range(LOOKUPS), sent, strict=False)
            ]
        begun = time.monotonic()
        assert operator.get_account("acme").path == "acme"
        print(f"an account after {(time.monotonic() - begun) * 1e3:.0f} ms")
        assert time.monotonic() - begun < 2
        with pytest.raises(bursar.ReservationNotFound):  # another's lookup finds a place
            operator.get_reservation(f"{store}-{int(sequence, 16) + 1:x}-{slot}")
        held.commit(tokens=1)
        codes = Counter(one.code() for one in flood)
        assert set(codes) == {answer, grpc.StatusCode.UNAVAILABLE}, codes
        refused = next(one for one in flood if one.code() is grpc.StatusCode.UNAVAILABLE)
        assert "256 calls of this kind wait" in refused.details()


def test_a_revocation_holds_at_once_also_where_it_cannot_be_written(tmp_path: Path) -> None:
    """And says that it has to be repeated to outlive a restart."""
    with small_disk(tmp_path / "disk", "32m") as disk, Daemon(**ENFORCE) as daemon:
        daemon.terminate()
        daemon.store_path = disk.path / "ledger.db"
        daemon.config_path.write_text(
            daemon.config_path.read_text(encoding="utf-8") + "\n[store]\nmin_free_bytes = 0\n",
            encoding="utf-8",
        )
        daemon.start()
        with daemon.client(attempts=1, timeout_s=20) as operator:
            made = operator.tokens.create("x", role=Role.AGENT, account="acme", ttl_s=600)
            with bursar.connect(daemon.target, token=made.secret, attempts=1) as agent:
                assert agent.who_am_i().account == "acme"
                disk.fill()
                with pytest.raises(bursar.StoreUnavailable, match="only until a restart"):
                    operator.tokens.revoke(made.token.id)
                with pytest.raises(bursar.Unauthenticated, match="was revoked"):
                    agent.who_am_i()
            disk.empty()
            with suppress(bursar.StoreUnavailable):  # the entry may find the store failed
                operator.tokens.revoke(made.token.id)
            daemon.kill9()
            daemon.start()
            with (
                bursar.connect(daemon.target, token=made.secret, attempts=1) as agent,
                pytest.raises(bursar.Unauthenticated, match="was revoked"),
            ):
                agent.who_am_i()


def test_a_token_that_has_expired_is_not_good_again_when_the_clock_steps_back() -> None:
    """The ledger has seen the hour after this one; the clock says that it is still this one."""
    with Daemon(**ENFORCE) as daemon:
        with daemon.client() as operator:
            operator.set_budget("acme", unit="tokens", limit=10)
            secret = secret_of(operator, "acme")
        with bursar.connect(daemon.target, token=secret, attempts=1) as agent:
            agent.who_am_i()
        daemon.terminate()
        with closing(sqlite3.connect(daemon.store_path)) as store, store:
            store.execute("UPDATE meta SET ledger_time_ms = ledger_time_ms + 3600000")
        daemon.start()
        with (
            bursar.connect(daemon.target, token=secret, attempts=1) as agent,
            pytest.raises(bursar.Unauthenticated, match="has expired"),
        ):
            agent.who_am_i()
        with daemon.client() as operator:
            assert balance(operator, "acme") == (0, 0, 10)
