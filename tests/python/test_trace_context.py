"""Calls to the sidecar under OpenTelemetry's instrumentation of gRPC: spans, and W3C's context."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from opentelemetry import trace
from opentelemetry.instrumentation.grpc import GrpcAioInstrumentorClient, GrpcInstrumentorClient
from support.traced import Traced, is_child

import bursar
from bursar import Verdict
from bursar.testing import Sidecar


class Listener(grpc.GenericRpcHandler):
    """Answers nothing, and keeps what comes with a call."""

    def __init__(self) -> None:
        self.metadata: list[dict[str, Any]] = []

    def service(self, handler_call_details: Any) -> None:
        self.metadata.append(dict(handler_call_details.invocation_metadata))


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[Traced]:
    one = Traced()
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", one.tracers)
    kinds: tuple[Any, ...] = (GrpcInstrumentorClient, GrpcAioInstrumentorClient)
    instrumentors = [kind() for kind in kinds]
    for instrumentor in instrumentors:
        instrumentor.instrument()
    yield one
    for instrumentor in instrumentors:
        instrumentor.uninstrument()
    one.close()


@pytest.fixture(scope="module")
def sidecar() -> Iterator[Sidecar]:
    with Sidecar() as one:
        yield one


@pytest.fixture
def listener() -> Iterator[tuple[Listener, str]]:
    heard = Listener()
    with ThreadPoolExecutor(1) as pool:
        server = grpc.server(pool, handlers=[heard])
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield heard, f"127.0.0.1:{port}"
        server.stop(None).wait()


def reserve(target: str, *, is_async: bool) -> None:
    async def main() -> None:
        async with bursar.connect_async(target, attempts=1) as client:
            await (await client.reserve("acme/rpc", tokens=5)).release()

    if is_async:
        asyncio.run(main())
        return
    with bursar.connect(target, attempts=1) as client:
        client.reserve("acme/rpc", tokens=5).release()


@pytest.mark.parametrize("is_async", [False, True])
def test_calls_to_the_sidecar_are_spans_within_the_callers(
    sidecar: Sidecar, traced: Traced, *, is_async: bool
) -> None:
    with traced.app.start_as_current_span("agent") as around:
        reserve(sidecar.target, is_async=is_async)
    calls = {span.name: is_child(span, around) for span in traced.spans if span.name != "agent"}
    of = "/bursar.v1.LedgerService/"
    assert calls == {f"{of}Reserve": True, f"{of}Release": True}


@pytest.mark.parametrize("is_async", [False, True])
def test_the_context_of_the_trace_goes_along(
    traced: Traced, listener: tuple[Listener, str], *, is_async: bool
) -> None:
    heard, target = listener
    with traced.app.start_as_current_span("agent"), pytest.raises(bursar.BursarError):
        reserve(target, is_async=is_async)
    call = next(span.get_span_context() for span in traced.spans if "Reserve" in span.name)
    assert call is not None
    [metadata] = heard.metadata
    _, *ids, _ = metadata["traceparent"].split("-")
    assert ids == [f"{call.trace_id:032x}", f"{call.span_id:016x}"]


def test_streams_are_what_they_were(
    sidecar: Sidecar, traced: Traced, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenTelemetry's own streams can be neither waited for nor cancelled: ours go past it."""
    with sidecar.client() as client:
        monkeypatch.setattr(client._transport, "lease_socket", None)  # a Meter stream instead
        client.set_budget("acme/streams", unit="tokens", limit=100)
        assert next(iter(client.watch_accounts("acme/streams"))).accounts
        with client.reserve("acme/streams", tokens=10) as hold, hold.lease() as lease:
            while lease.debit(1) is not Verdict.STOP:
                pass
            assert lease.used == 100
        assert client.get_account("acme/streams").balances[0].spent == 100


def test_streams_of_an_event_loop_are_what_they_were(
    sidecar: Sidecar, traced: Traced, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with sidecar.client_async() as client:
            monkeypatch.setattr(client._transport, "lease_socket", None)
            await client.set_budget("acme/loop", unit="tokens", limit=100)
            watch = client.watch_accounts("acme/loop")
            assert (await anext(watch)).accounts
            await watch.aclose()  # type: ignore[attr-defined]
            hold = await client.reserve("acme/loop", tokens=10)
            async with hold, await hold.lease() as lease:
                while await lease.debit(1) is not Verdict.STOP:
                    pass
                assert lease.used == 100
            assert (await client.get_account("acme/loop")).balances[0].spent == 100

    asyncio.run(main())
