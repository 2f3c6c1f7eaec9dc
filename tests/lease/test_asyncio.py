"""Leases of the asynchronous client: they count as the others do, and never hold up the loop."""

import asyncio
import contextlib
import os
import socket
import time
from typing import Any

import pytest
from support.daemon import Daemon

import bursar
from bursar import Verdict

PATIENT: Any = {"reservations": {"default_ttl": "10m"}}


class Pulse:
    """Says how long the loop stood still at most."""

    def __init__(self) -> None:
        self.longest_s = 0.0

    async def beat(self) -> None:
        last = time.monotonic()
        while True:
            await asyncio.sleep(0.01)
            now = time.monotonic()
            self.longest_s, last = max(self.longest_s, now - last), now


def test_a_debit_waits_for_the_next_daemon_without_holding_up_the_loop() -> None:
    """A desk that never answers stands in for a daemon that takes the lease over slowly."""

    async def run(daemon: Daemon) -> None:
        path = str(daemon.socket_path) + ".lease"
        async with daemon.client_async(timeout_s=20, attempts=100) as client:
            await client.set_budget("acme", unit="tokens", limit=1_000)
            reservation = await client.reserve("acme", tokens=100)
            lease = await reservation.lease(top_up=False)
            await lease.debit()
            daemon.kill9()
            os.unlink(path)  # noqa: PTH108 -- it takes no time
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as desk:
                desk.bind(path)
                desk.listen()
                await asyncio.sleep(0.6)
                pulse = Pulse()
                beating = asyncio.create_task(pulse.beat())
                debit = asyncio.create_task(lease.debit())
                await asyncio.sleep(0.5)
                assert not debit.done()
            await asyncio.to_thread(daemon.start)
            assert await debit is Verdict.OK
            beating.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await beating
            assert pulse.longest_s < 0.4
            assert await lease.detach() == 2
            assert (await reservation.commit()).spent == {"tokens": 2}

    with Daemon(**PATIENT) as daemon:
        asyncio.run(run(daemon))


def test_it_has_one_lease_tells_its_count_and_says_why_it_ended() -> None:
    async def run(daemon: Daemon, address: str) -> None:
        async with bursar.connect_async(address, timeout_s=20, attempts=100) as client:
            await client.set_budget("acme", unit="tokens", limit=1_000)
            reservation = await client.reserve("acme", tokens=400)
            lease = await reservation.lease(top_up=False)
            with pytest.raises(bursar.ReservationLeased):
                await reservation.lease(top_up=False)
            await lease.debit(5)
            await asyncio.sleep(0.2)
            assert lease.heard
            daemon.kill9()
            await lease.debit(300)
            begun, worked = time.monotonic(), time.process_time()
            assert await lease.detach() == 305
            assert time.monotonic() - begun < 7
            assert time.process_time() - worked < 1
            assert isinstance(lease.refused, bursar.SidecarUnavailable)
            await asyncio.to_thread(daemon.start)
            assert (await reservation.commit()).spent == {"tokens": 305}

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{one.getsockname()[1]}"
    with Daemon(server={"tcp": address}, **PATIENT) as daemon:
        asyncio.run(run(daemon, address))
