"""Accounts that only look like another's, and ids that are guessed: answered alike."""

import http.client
import json
import socket
import statistics
import time
from collections.abc import Iterator
from itertools import pairwise
from typing import Any
from urllib.parse import quote_from_bytes

import grpc
import pytest
from support.bare import Bare, amounts, budget, failed
from support.daemon import Daemon, picture

import bursar
from bursar import Role
from bursar.v1 import account_pb2 as ac
from bursar.v1 import ledger_pb2 as lg

LOOKALIKES = {
    "a Cyrillic a": "\N{CYRILLIC SMALL LETTER A}cme/a",
    "a Greek omicron": "t\N{GREEK SMALL LETTER OMICRON}ols",
    "full width": "\N{FULLWIDTH LATIN SMALL LETTER A}cme/a",
    "a composed letter": "acm\N{LATIN SMALL LETTER E WITH ACUTE}/a",
    "the same decomposed": "acme\N{COMBINING ACUTE ACCENT}/a",
    "a ligature": "o\N{LATIN SMALL LIGATURE FFI}ce/a",
    "a compatibility letter": "\N{MATHEMATICAL BOLD SMALL A}cme/a",
    "a Turkish i": "acme/\N{LATIN SMALL LETTER DOTLESS I}",
    "a Kelvin sign": "acme/\N{KELVIN SIGN}",
    "written from the right": "\N{RIGHT-TO-LEFT OVERRIDE}a/emca",
    "an isolate": "acme/\N{FIRST STRONG ISOLATE}a\N{POP DIRECTIONAL ISOLATE}",
    "a space of no width": "acme\N{ZERO WIDTH SPACE}/a",
    "a joiner": "acme/a\N{ZERO WIDTH JOINER}",
    "a byte order mark": "\N{ZERO WIDTH NO-BREAK SPACE}acme/a",
    "a soft hyphen": "ac\N{SOFT HYPHEN}me/a",
    "a hard space": "acme\N{NO-BREAK SPACE}/a",
    "another slash": "acme\N{DIVISION SLASH}a",
    "a full-width slash": "acme\N{FULLWIDTH SOLIDUS}a",
    "another dot": "acme/\N{ONE DOT LEADER}\N{ONE DOT LEADER}",
    "a tag": "acme/a\N{TAG LATIN SMALL LETTER A}",
    "a variation selector": "acme/a\N{VARIATION SELECTOR-16}",
    "a line separator": "acme/a\N{LINE SEPARATOR}",
    "a NUL": "acme/a\0",
    "a NUL between": "acme\0/a",
    "up": "acme/../root",
    "up and down": "acme/x/../a",
    "here": "acme/./a",
    "an empty name": "acme//a",
    "from the root": "/acme/a",
    "a quoted slash": "acme%2fa",
    "a quoted dot": "acme/%2e%2e/root",
    "a backslash": "acme\\a",
    "1,000 levels": "acme" + "/x" * 1_000,
    "a pattern": "acme/*",
}


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    upstream = {"name": "gone", "url": "http://127.0.0.1:9", "api": "openai"}
    with Daemon(
        access={"mode": "enforce"},
        proxy={"listen": "127.0.0.1:0", "default_account": "acme/a", "upstreams": [upstream]},
        rates={"allow_unpriced": True},
    ) as made:
        with made.client() as operator:
            for account in ("acme", "acme/a", "acme/b"):
                operator.set_budget(account, unit="tokens", limit=1_000_000)
        yield made


@pytest.mark.parametrize("what", LOOKALIKES)
def test_an_account_that_looks_like_another_is_none_for_every_call(
    daemon: Daemon, what: str
) -> None:
    name = LOOKALIKES[what]
    with daemon.client() as client, Bare(daemon.target) as bare:
        before = picture(client)
        one = amounts(tokens=1)
        for method, request in (
            ("LedgerService/Reserve", lg.ReserveRequest(account=name, amounts=one)),
            ("LedgerService/Check", lg.CheckRequest(account=name, amounts=one)),
            ("LedgerService/Record", lg.RecordRequest(account=name, amounts=one)),
            ("AccountService/SetBudget", budget(name, 5)),
            ("AccountService/GetAccount", ac.GetAccountRequest(account=name)),
            ("AccountService/ListAccounts", ac.ListAccountsRequest(account=name)),
            ("AccountService/ListEntries", ac.ListEntriesRequest(account=name)),
            ("AccountService/Freeze", ac.FreezeRequest(account=name)),
            ("AccountService/Unfreeze", ac.UnfreezeRequest(account=name)),
            ("AccountService/RetireAccount", ac.RetireAccountRequest(account=name)),
        ):
            failed = bare.fails(method, request)
            assert failed.reason == "INVALID_ACCOUNT", (method, failed)
            assert failed.message.isprintable(), "nothing of it reaches a terminal as it is"
        with pytest.raises(bursar.InvalidRequest):
            client.tokens.create("x", role=Role.AGENT, account=name, ttl_s=60)
        assert picture(client) == before


@pytest.mark.parametrize("what", LOOKALIKES)
def test_an_account_that_looks_like_another_is_none_for_the_proxy(
    daemon: Daemon, what: str
) -> None:
    host, _, port = daemon.log.split("proxy on http://")[1].split("/")[0].rpartition(":")
    """By header and by path, with a token of that account, and with one of them all, which only the
    name keeps out. What no client would send is sent as it is."""
    with daemon.client() as operator:
        before = picture(operator)
        account = operator.tokens.create("a", role=Role.AGENT, account="acme/a", ttl_s=60)
        everybody = operator.tokens.create("b", role=Role.AGENT, ttl_s=60)
    name = LOOKALIKES[what].encode()
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "x"}]}).encode()
    plain, named = b"/v1/chat/completions", b"x-bursar-account: " + name + b"\r\n"
    for made, refused in ((account, (400, 403)), (everybody, (400,))):
        head = b"authorization: Bearer " + made.secret.encode() + b"\r\n"
        said = {by_header(host, int(port), plain, named + head, body)}
        said.add(
            by_header(host, int(port), b"/a/" + quote_from_bytes(name).encode() + plain, head, body)
        )
        assert said <= {*refused, 404}, said
    with daemon.client() as operator:
        assert picture(operator) == before


def by_header(host: str, port: int, path: bytes, head: bytes, body: bytes) -> int:
    """The status of a request that is sent byte by byte."""
    request = b"POST " + path + b" HTTP/1.1\r\nhost: " + host.encode() + b"\r\n" + head
    request += b"content-length: %d\r\nconnection: close\r\n\r\n" % len(body) + body
    with socket.create_connection((host, port), timeout=10) as connection:
        connection.sendall(request)
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        return answer.status


def test_a_guess_at_anothers_reservation_sounds_like_one_at_none(daemon: Daemon) -> None:
    """Ids are counted up, so neighbours are easily guessed: what they are worth is nothing. Neither
    words nor time tell right from wrong: medians over pairs differ by less than 20 %."""
    with daemon.client() as operator:
        theirs = operator.reserve("acme/b", tokens=10)
        made = operator.tokens.create("a", role=Role.AGENT, account="acme/a", ttl_s=600)
        store, sequence, slot = theirs.id.split("-")
        said: tuple[set[str], set[str]] = (set(), set())
        took: tuple[list[float], list[float]] = ([], [])
        with bursar.connect(daemon.target, token=made.secret, attempts=1) as thief:
            for number in range(2_000):
                none = f"{store}-{int(sequence, 16) + 1_000 + number:x}-{slot}"
                guesses = list(enumerate((theirs.id, none)))
                for which, guess in guesses if number % 2 else guesses[::-1]:
                    text, seconds = heard(thief, guess)
                    # Only the id that was asked for tells them apart.
                    said[which].add(text.replace(guess, "ID"))
                    took[which].append(seconds)
        assert said[0] == said[1]
        right, wrong = (statistics.median(one) * 1e6 for one in took)
        print(f"a right guess takes {right:.0f} us, a wrong one {wrong:.0f} us")
        assert max(right, wrong) < 1.2 * min(right, wrong)
        assert operator.get_reservation(theirs.id).state is bursar.ReservationState.PENDING
        theirs.release()


def heard(client: bursar.Client, reservation: str) -> tuple[str, float]:
    begun = time.perf_counter()
    with pytest.raises(bursar.ReservationNotFound) as raised:
        client.get_reservation(reservation)
    return str(raised.value), time.perf_counter() - begun


def test_secrets_are_not_guessed_from_one_another(daemon: Daemon) -> None:
    with daemon.client() as operator:
        made = [operator.tokens.create("x", role=Role.AGENT, ttl_s=60) for _ in range(50)]
        ids = {one.token.id for one in made}
        secrets = [one.secret.rpartition("_")[2] for one in made]
        assert len(ids) == len(set(secrets)) == 50
        assert {len(one) for one in secrets} == {64}, "32 random bytes"
        # Half of all bits differ between any two, give or take what chance allows.
        differ = [(int(a, 16) ^ int(b, 16)).bit_count() for a, b in pairwise(secrets)]
        assert all(70 < one < 186 for one in differ), differ
        for one in made:
            operator.tokens.revoke(one.token.id)


def test_a_revoked_token_is_nobody_wherever_it_is_played_again() -> None:
    """By the socket, by TCP, in another header, and after the daemon was killed."""
    with Daemon(access={"mode": "enforce"}, server={"tcp": "127.0.0.1:0"}) as daemon:
        with daemon.client() as operator:
            made = operator.tokens.create("x", role=Role.OPERATOR, ttl_s=600)
            operator.tokens.revoke(made.token.id)
        for again in (False, True):
            if again:
                daemon.kill9()
                daemon.start()
            tcp = "127.0.0.1:" + daemon.log.split("127.0.0.1:")[-1].split()[0]
            for target in (daemon.target, tcp):
                client = bursar.connect(target, token=made.secret, attempts=1)
                with client, pytest.raises(bursar.Unauthenticated, match="was revoked"):
                    client.who_am_i()
            shown = (("authorization", f"Bearer {made.secret}"),) * 2
            with Bare(tcp) as bare:
                call: Any = bare.channel.unary_unary("/bursar.v1.AccessService/WhoAmI")
                with pytest.raises(grpc.RpcError) as raised:
                    call(b"", metadata=shown, timeout=10)
            assert failed(raised.value).reason == "UNAUTHENTICATED"
