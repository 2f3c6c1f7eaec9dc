"""A memory that ends: the kernel kills the daemon, and the next one has everything."""

import time

import pytest
from support.bare import Bare, Failed, amounts
from support.daemon import Daemon, balance
from support.places import limit_file, memory_group

from bursar.v1 import ledger_pb2 as lg

LIMIT = 10**12
ROOM_BYTES = 24 << 20
LABELS = {f"label{n}": "x" * 250 for n in range(15)}


def reserved_until_killed(bare: Bare) -> list[str]:
    answered: list[str] = []
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        wish = lg.ReserveRequest(
            account=f"acme/{len(answered) % 1_000}",
            idempotency_key=str(len(answered)),
            amounts=amounts(tokens=3),
            labels=LABELS,
        )
        try:
            answered.append(bare("LedgerService/Reserve", wish).reservation.id)
        except Failed as failed:
            assert failed.code == "UNAVAILABLE"
            return answered
    raise AssertionError("its memory never ends")


@pytest.mark.timeout(120)
def test_a_daemon_that_is_killed_for_its_memory_has_lost_nothing_after_a_restart() -> None:
    with memory_group("oom") as group, Daemon() as daemon:
        with daemon.client() as client, Bare(daemon.target) as bare:
            client.set_budget("acme", unit="tokens", limit=LIMIT)
            (group / "cgroup.procs").write_text(str(daemon.pid), encoding="ascii")
            limit_file(group).write_text(str(ROOM_BYTES), encoding="ascii")
            answered = reserved_until_killed(bare)
        daemon.kill9()  # only to collect it
        print(f"killed after {len(answered)} reservations")
        daemon.start()
        with daemon.client(timeout_s=30) as client:
            held = balance(client, "acme")[0]
            # The call that was not answered is there or not.
            assert held in (3 * len(answered), 3 * len(answered) + 3)
            for one in answered[-50:]:
                assert client.get_reservation(one).granted == {"tokens": 3}
