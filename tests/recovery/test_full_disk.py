"""A disk that takes no more: what was answered stands, the rest is refused, and the end is orderly.

The disk is a limit on the size of the daemon's files, set while it runs: writes fail as they do on
a full one, in the log and in SQLite.
"""

import resource
import time

import pytest
from support.bare import Bare, amounts
from support.daemon import Daemon, balance, picture

import bursar
from bursar.v1 import account_pb2 as ac
from bursar.v1 import ledger_pb2 as lg

ROOM_BYTES = 400_000
LIMIT = 10**9
LABELS = {"action": "x" * 250}


def reserve(client: bursar.Client, number: int) -> str:
    key = str(number)
    return client.reserve("acme/a", tokens=5, idempotency_key=key, labels=LABELS, ttl_s=900).id


def reserves_until_full(client: bursar.Client) -> list[str]:
    held: list[str] = []
    while len(held) < 100_000:
        try:
            held.append(reserve(client, len(held)))
        except bursar.StoreUnavailable as error:
            assert "the store failed" in str(error)
            return held
    raise AssertionError("the disk never fills")


@pytest.mark.parametrize("durability", ["process", "power"])
def test_a_full_disk_refuses_by_name_keeps_what_was_answered_and_ends_in_order(
    durability: str,
) -> None:
    with Daemon(store={"durability": durability}) as daemon:
        with daemon.client(timeout_s=30) as client, Bare(daemon.target) as bare:
            client.set_budget("acme", unit="tokens", limit=LIMIT)
            resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE, (ROOM_BYTES, ROOM_BYTES))
            held = reserves_until_full(client)
            assert len(held) > 10
            # The hold that could not be kept is undone, and balances are still told.
            assert balance(client, "acme")[0] == 5 * len(held)
            kept = picture(client)
            for method, request in (
                ("LedgerService/Commit", lg.CommitRequest(reservation=held[0])),
                (
                    "LedgerService/Record",
                    lg.RecordRequest(account="acme", amounts=amounts(calls=1)),
                ),
                ("AccountService/Freeze", ac.FreezeRequest(account="acme")),
            ):
                failed = bare.fails(method, request)
                assert (failed.code, failed.reason) == ("UNAVAILABLE", "STORE_UNAVAILABLE")
            assert picture(client) == kept
        deadline = time.monotonic() + 10
        while "only reads are answered" not in daemon.log:
            assert time.monotonic() < deadline, daemon.log
            time.sleep(0.05)
        assert daemon.terminate() == 4
        assert "Traceback" not in daemon.log
        assert daemon.log.splitlines()[-1].startswith("bursar: the store failed")
        daemon.start()
        with daemon.client(timeout_s=30) as client:
            # The call that failed may be there or not: its repeat makes it there once.
            assert balance(client, "acme")[0] in (5 * len(held), 5 * len(held) + 5)
            again = [reserve(client, number) for number in range(len(held) + 1)]
            assert again[:-1] == held
            assert balance(client, "acme") == (5 * len(again), 0, LIMIT - 5 * len(again))
            client.release(again[-1])
            assert picture(client) == kept
