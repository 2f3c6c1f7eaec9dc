"""The gRPC transports against a server of our own making: deadlines, repeats, errors, pages."""

import asyncio
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

import bursar
from bursar import _grpc
from bursar._transport import Retry
from bursar.v1 import account_pb2, account_pb2_grpc, ledger_pb2, ledger_pb2_grpc

Step = Callable[[Any, Any], Any]


class Script(ledger_pb2_grpc.LedgerServiceServicer, account_pb2_grpc.AccountServiceServicer):
    """Answers calls from a list of steps and remembers what it was asked."""

    def __init__(self) -> None:
        self.steps: Iterator[Step] = iter(())
        self.requests: list[Any] = []
        self.authorities: list[str] = []

    def _next(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        return next(self.steps)(request, context)

    Reserve = Release = Record = GetReservation = ListAccounts = GetAccount = _next

    def WatchAccounts(self, request: Any, context: Any) -> Iterator[Any]:  # noqa: N802 -- as the proto
        for number in itertools.count():
            if not context.is_active():
                return
            path = f"a{number}"
            yield account_pb2.WatchAccountsResponse(accounts=[account_pb2.Account(path=path)])
            time.sleep(0.01)


def answer(message: Any) -> Step:
    return lambda _request, _context: message


def unavailable(_request: Any, context: Any) -> Any:
    context.abort(grpc.StatusCode.UNAVAILABLE, "starting")


def slow(_request: Any, context: Any) -> Any:
    time.sleep(1)
    return ledger_pb2.ReleaseResponse()


def fails(code: grpc.StatusCode, reason: str) -> Step:
    def step(_request: Any, context: Any) -> Any:
        detail = AnyMessage()
        detail.Pack(ErrorInfo(reason=reason, domain="bursar", metadata={"account": "acme"}))
        status = Status(code=code.value[0], message="m", details=[detail])
        context.set_trailing_metadata([("grpc-status-details-bin", status.SerializeToString())])
        context.abort(code, "what happened")

    return step


RESERVED = ledger_pb2.ReserveResponse(
    verdict=ledger_pb2.VERDICT_OK,
    reservation=ledger_pb2.Reservation(
        id="r1",
        state="STATE_PENDING",
        account="acme",
        granted=[ledger_pb2.Amount(unit="tokens", value=5)],
    ),
)


@pytest.fixture
def script() -> Script:
    return Script()


def serve(script: Script, address: str) -> grpc.Server:
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=4))
    for add in (
        ledger_pb2_grpc.add_LedgerServiceServicer_to_server,
        account_pb2_grpc.add_AccountServiceServicer_to_server,
    ):
        cast("Callable[..., None]", add)(script, server)
    server.add_insecure_port(address)
    server.start()
    return server


@pytest.fixture
def target(script: Script, tmp_path: Path) -> Iterator[str]:
    address = f"unix:{tmp_path}/s"
    server = serve(script, address)
    yield address
    server.stop(grace=None).wait()


@pytest.fixture
def client(target: str) -> Iterator[bursar.Client]:
    with bursar.connect(target) as made:
        yield made


def test_a_call_is_repeated_with_the_same_key_while_no_sidecar_answers(
    client: bursar.Client, script: Script
) -> None:
    script.steps = iter([unavailable, unavailable, answer(RESERVED)])
    reservation = client.reserve("acme", tokens=5)
    assert (reservation.id, dict(reservation.granted)) == ("r1", {"tokens": 5})
    keys = {request.idempotency_key for request in script.requests}
    assert len(script.requests) == 3
    assert len(keys) == 1
    assert len(keys.pop()) == 32


def test_each_new_call_has_a_key_of_its_own(client: bursar.Client, script: Script) -> None:
    script.steps = itertools.repeat(answer(RESERVED))
    client.reserve("acme", tokens=5)
    client.reserve("acme", tokens=5)
    client.reserve("acme", tokens=5, idempotency_key="mine")
    client.reserve("acme", tokens=5, idempotency_key="")
    first, second, third, fourth = (request.idempotency_key for request in script.requests)
    assert first != second
    assert (third, fourth) == ("mine", "")


def test_repeats_end_after_the_attempts(target: str, script: Script) -> None:
    script.steps = itertools.repeat(unavailable)
    with (
        bursar.connect(target, attempts=2) as client,
        pytest.raises(bursar.SidecarUnavailable, match="no sidecar answers at unix:") as caught,
    ):
        client.get_account("acme")
    assert len(script.requests) == 2
    assert (caught.value.code, caught.value.decision) == ("UNAVAILABLE", "fail_closed")


def test_pauses_grow_up_to_a_bound_and_are_spread() -> None:
    retry = Retry()
    for attempt, longest_s in ((1, 0.02), (2, 0.08), (3, 0.32), (4, 1.0), (1_000, 1.0)):
        pauses_s = [retry.spread_s(attempt) for _ in range(200)]
        assert longest_s / 2 <= min(pauses_s) < longest_s * 0.7
        assert longest_s * 0.8 < max(pauses_s) <= longest_s
    away = bursar.SidecarUnavailable("nobody is there")
    assert retry.pause_s(1, away, left_s=5) is not None
    assert retry.pause_s(3, away, left_s=0.1) is None, "its deadline comes first"
    assert retry.pause_s(6, away, left_s=5) is None, "that was the last attempt"
    assert retry.pause_s(1, bursar.AccountNotFound("x"), left_s=5) is None


def test_an_error_of_the_ledger_is_not_repeated(client: bursar.Client, script: Script) -> None:
    script.steps = iter([fails(grpc.StatusCode.NOT_FOUND, "ACCOUNT_NOT_FOUND")])
    with pytest.raises(bursar.AccountNotFound, match="what happened") as caught:
        client.get_account("acme")
    assert (caught.value.reason, caught.value.account) == ("ACCOUNT_NOT_FOUND", "acme")
    assert len(script.requests) == 1


def test_a_broken_store_is_not_asked_again(client: bursar.Client, script: Script) -> None:
    script.steps = iter([fails(grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE")])
    with pytest.raises(bursar.StoreUnavailable):
        client.release("r1")
    assert len(script.requests) == 1


def test_a_draining_sidecar_is_asked_again(client: bursar.Client, script: Script) -> None:
    drains = fails(grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN")
    script.steps = iter([drains, answer(RESERVED)])
    assert client.reserve("acme", tokens=5).id == "r1"


def test_a_late_answer_is_a_timeout(target: str, script: Script) -> None:
    script.steps = iter([slow])
    with bursar.connect(target, timeout_s=0.1) as client, pytest.raises(bursar.SidecarTimeout):
        client.release("r1")


def test_an_absent_sidecar_is_told_soon(tmp_path: Path) -> None:
    started = time.monotonic()
    with bursar.connect(f"{tmp_path}/none") as client, pytest.raises(bursar.SidecarUnavailable):
        client.release("r1")
    assert time.monotonic() - started < 4


def test_a_sidecar_that_comes_back_within_a_second_is_waited_for(
    tmp_path: Path, script: Script
) -> None:
    script.steps = iter([answer(RESERVED), answer(RESERVED)])
    address = f"unix:{tmp_path}/s"
    with bursar.connect(address) as client:
        first = serve(script, address)
        client.reserve("acme", tokens=5)
        first.stop(grace=None).wait()
        later: list[grpc.Server] = []
        timer = threading.Timer(0.7, lambda: later.append(serve(script, address)))
        timer.start()
        assert client.reserve("acme", tokens=5).id == "r1"
        timer.join()
        later[0].stop(grace=None).wait()


def test_a_refusal_raises_what_was_told(client: bursar.Client, script: Script) -> None:
    refusal = ledger_pb2.Refusal(
        reason="REASON_BUDGET_EXHAUSTED", account="acme", unit="tokens", shortfall=3, hint="h"
    )
    balance = ledger_pb2.Balance(account="acme", unit="tokens", limit=9, spent=7)
    script.steps = iter(
        [
            answer(
                ledger_pb2.ReserveResponse(
                    verdict="VERDICT_STOP", refusal=refusal, balances=[balance]
                )
            )
        ]
    )
    with pytest.raises(bursar.BudgetExceeded) as caught:
        client.reserve("acme", tokens=5)
    error = caught.value
    assert (error.limit, error.spent, error.shortfall, error.requested) == (9, 7, 3, 5)


def test_what_was_not_committed_is_released(client: bursar.Client, script: Script) -> None:
    released = answer(ledger_pb2.ReleaseResponse(state="STATE_RELEASED"))
    script.steps = iter([answer(RESERVED), released])
    with client.reserve("acme", tokens=5) as reservation:
        assert not reservation.ended
    assert reservation.ended
    assert script.requests[-1] == ledger_pb2.ReleaseRequest(reservation="r1")


def test_a_failed_release_does_not_hide_what_failed_before(
    client: bursar.Client, script: Script
) -> None:
    fault = fails(grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE")
    script.steps = iter([answer(RESERVED), fault])
    with pytest.raises(ZeroDivisionError) as caught, client.reserve("acme", tokens=5):
        _ = 1 // 0
    assert "it ends by its time to live" in caught.value.__notes__[0]


def test_a_failed_release_raises_when_nothing_failed_before(
    client: bursar.Client, script: Script
) -> None:
    fault = fails(grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE")
    script.steps = iter([answer(RESERVED), fault])
    with pytest.raises(bursar.StoreUnavailable), client.reserve("acme", tokens=5):
        pass


def test_pages_are_fetched_as_they_are_needed(client: bursar.Client, script: Script) -> None:
    def page(token: str, *paths: str) -> Step:
        accounts = [account_pb2.Account(path=path) for path in paths]
        return answer(account_pb2.ListAccountsResponse(accounts=accounts, next_page_token=token))

    script.steps = iter([page("t", "a", "b"), page("", "c")])
    accounts = client.list_accounts(page_size=2)
    assert [next(accounts).path, next(accounts).path] == ["a", "b"]
    assert len(script.requests) == 1
    assert [account.path for account in accounts] == ["c"]
    assert script.requests[1].page_token == "t"  # noqa: S105 -- a page's


def test_leaving_a_watch_hangs_up(client: bursar.Client) -> None:
    watch = client.watch_accounts()
    paths = [changes.accounts[0].path for changes in itertools.islice(watch, 3)]
    assert paths == ["a0", "a1", "a2"]


def test_exactly_one_way_to_say_how_much(client: bursar.Client, script: Script) -> None:
    estimate = bursar.UsageEstimate("m")
    for wrong in ({}, {"tokens": 1, "amounts": {"calls": 1}}, {"tokens": 1, "usage": estimate}):
        with pytest.raises(bursar.InvalidRequest, match="exactly one of") as caught:
            client.reserve("acme", **wrong)  # type: ignore[arg-type]
        assert caught.value.reason == "INVALID_AMOUNT"
    assert script.requests == []


def test_output_tokens_needs_a_usage(client: bursar.Client, script: Script) -> None:
    script.steps = iter([answer(RESERVED)])
    reservation = client.reserve("acme", tokens=5)
    with pytest.raises(bursar.InvalidRequest, match="output_tokens needs a reservation made from"):
        reservation.debit(output_tokens=3)


def test_a_closed_client_says_so(client: bursar.Client) -> None:
    client.close()
    client.close()
    with pytest.raises(bursar.SidecarUnavailable, match="the client is closed"):
        client.release("r1")


def test_the_async_client_does_the_same(target: str, script: Script) -> None:
    script.steps = iter(
        [
            unavailable,
            answer(RESERVED),
            answer(ledger_pb2.ReleaseResponse(state="STATE_RELEASED")),
            fails(grpc.StatusCode.NOT_FOUND, "ACCOUNT_NOT_FOUND"),
            answer(account_pb2.ListAccountsResponse(accounts=[account_pb2.Account(path="a")])),
        ]
    )

    async def run() -> None:
        async with bursar.connect_async(target) as client:
            async with await client.reserve("acme", tokens=5) as reservation:
                assert reservation.id == "r1"
            assert reservation.ended
            with pytest.raises(bursar.AccountNotFound):
                await client.get_account("acme")
            assert [account.path async for account in client.list_accounts()] == ["a"]
            seen = []
            async for changes in client.watch_accounts():
                seen.append(changes.accounts[0].path)
                if len(seen) == 2:
                    break
            assert seen == ["a0", "a1"]
        with pytest.raises(bursar.SidecarUnavailable, match="closed"):
            await client.release("r1")

    asyncio.run(run())
    keys = {request.idempotency_key for request in script.requests[:2]}
    assert len(keys) == 1


def test_unix_targets_send_a_plain_authority() -> None:
    assert ("grpc.default_authority", "localhost") in _grpc.channel_options("unix:/run/x")
    assert not dict(_grpc.channel_options("127.0.0.1:7411")).get("grpc.default_authority")


def test_the_target_comes_from_the_argument_or_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("BURSAR_TARGET", raising=False)
    assert _grpc.resolve_target(None) == "unix:/run/bursar/bursar.sock"
    monkeypatch.setenv("BURSAR_TARGET", "127.0.0.1:1")
    assert _grpc.resolve_target(None) == "127.0.0.1:1"
    assert _grpc.resolve_target("/run/x") == "unix:/run/x"


@pytest.mark.parametrize(
    "target",
    [
        "unix:/run/x",
        "unix:x.sock",
        "unix-abstract:x",
        "127.0.0.1:7411",
        "[::1]:7411",
        "host-1:65535",
    ],
)
def test_a_target_that_is_one_is_taken_as_it_is(target: str) -> None:
    assert _grpc.resolve_target(target) == target


@pytest.mark.parametrize(
    "target", ["garbage", "unix:", "1.2.3.4", "http://x:80", "host:", ":1", "a b:1"]
)
def test_what_is_no_target_is_refused_before_it_is_looked_for(target: str) -> None:
    """gRPC would ask the name service for it, and dial port 443 of what it finds."""
    for connect in (bursar.connect, bursar.connect_async):
        with pytest.raises(bursar.InvalidRequest, match="host:port") as caught:
            connect(target)
        assert repr(target) in str(caught.value)


def test_an_absent_sidecar_is_told_in_a_few_words(tmp_path: Path) -> None:
    for target, said in (
        (f"unix:{tmp_path}/none", "No such file or directory"),
        ("127.0.0.1:1", "Connection refused"),
    ):
        with (
            bursar.connect(target, attempts=1) as client,
            pytest.raises(bursar.SidecarUnavailable) as caught,
        ):
            client.get_account("acme")
        assert str(caught.value) == f"no sidecar answers at {target}: {said}"
