"""From samples to the ledger: who pays for what is left of an account, and what is remembered."""

from typing import Any, Final

import pytest

from bursar.v1 import process_pb2 as pb
from bursar.watchdog import booking as module
from bursar.watchdog.attribution import Attribution
from bursar.watchdog.booking import Booking
from bursar.watchdog.gpus import Gpus
from bursar.watchdog.samples import DeviceSample, GpuProcess, Health, Sample

SECOND: Final = 1_000_000_000


class CannedBooks:
    """Notes who is charged, and whose memory is held."""

    def __init__(self) -> None:
        self.spent: dict[str, int] = {}
        self.sizes: dict[str, int] = {}
        self.occupied: set[str] = set()

    def spend(self, account: str, amounts: dict[str, int], _: int) -> None:
        self.spent[account] = self.spent.get(account, 0) + amounts.get("gpu_ms", 0)

    def occupy(self, account: str, size: int, _: int) -> None:
        if size:
            self.sizes[account] = size

    def held_bytes(self, account: str) -> int:
        return self.sizes.get(account, 0)

    def seen(self, _: str) -> list[Any]:
        return []


class Bench:
    """Booking with samples of one GPU."""

    def __init__(self) -> None:
        self.books = CannedBooks()
        books: Any = self.books
        nobody: Any = []
        self.booking = Booking(books, nobody, nobody, gpu_time="allocated", period_ns=SECOND)

    def at(self, second: float, who: dict[int, str], **ended: float) -> None:
        """Takes a sample with these processes, by pid, and their accounts."""
        found = tuple(GpuProcess(pid, "C", 1 << 30) for pid in who)
        device = DeviceSample("GPU-0", 0, processes=found)
        source = pb.Process.SOURCE_REGISTERED
        whose = {pid: Attribution(one, source, "j", "x", 0) for pid, one in who.items()}
        sample = Sample(int(second * SECOND), Health.WATCHING, (device,))
        ends = {int(pid.removeprefix("p")): int(at * SECOND) for pid, at in ended.items()}
        self.booking.step(sample, Gpus(whose=whose), ends, 0)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_what_is_left_of_a_retired_account_is_paid_by_the_one_above(bench: Bench) -> None:
    """Its job ended while nobody could see the GPU, and a later sample meters the rest."""
    bench.at(1, {10: "acme/run-1"})
    bench.at(2, {10: "acme/run-1"})
    assert bench.books.spent == {"acme/run-1": 1000}
    bench.booking.retire("acme/run-1")
    bench.books.sizes.clear()
    bench.at(30, {}, p10=3)
    assert bench.books.spent == {"acme/run-1": 1000, "acme": 1000}
    assert "acme/run-1" not in bench.booking.totals
    assert bench.booking.totals["acme"]["gpu_alloc_ms"] == 2000
    assert "acme/run-1" not in bench.books.sizes
    assert not bench.booking._retired


def test_an_account_that_the_meter_does_not_know_is_retired_without_a_trace(bench: Bench) -> None:
    for number in range(10):
        bench.booking.retire(f"acme/run-{number}")
    assert not bench.booking._retired
    assert not bench.booking.totals


def test_totals_are_kept_for_so_many_accounts_and_add_up(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TOTALS_MAX", 5)
    for number in range(40):
        bench.at(number, {10: f"pods/{number}", 20: "stays"})
    totals = bench.booking.totals
    assert set(totals) == {"pods/37", "pods/38", "pods", "stays", ""}
    assert sum(one.get("gpu_alloc_ms", 0) for who, one in totals.items() if "pods" in who) == 39_000
    assert totals["stays"]["gpu_alloc_ms"] == 39_000


def test_only_ends_that_are_still_to_be_charged_are_kept(bench: Bench) -> None:
    bench.at(1, {10: "acme", 11: ""})
    ended = dict.fromkeys(range(5000), 7)
    assert bench.booking.only_held(ended) == {10: 7, 11: 7}
