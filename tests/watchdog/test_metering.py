"""Metering by example: each rule once, in numbers that can be checked by hand."""

from collections.abc import Mapping
from typing import Any

import pytest

from bursar.watchdog import metering
from bursar.watchdog.metering import Gap, Meter, Metered
from bursar.watchdog.samples import DeviceSample, GpuProcess, Health, Sample
from bursar.watchdog.usage import split

MIB = 2**20
S = 10**9
OWNERS = {10: "a", 11: "a", 20: "b", 21: "b", 30: "c"}


def process(pid: int, mib: int | None = 100, busy: int | None = 0) -> GpuProcess:
    size = None if mib is None else mib * MIB
    return GpuProcess(pid=pid, contexts="C", vram_bytes=size, busy_permille=busy)


def gpu(*processes: GpuProcess, uuid: str = "GPU-1", **fields: Any) -> DeviceSample:
    return DeviceSample(uuid=uuid, index=0, processes=processes, **fields)


def unreadable(uuid: str = "GPU-1", **fields: Any) -> DeviceSample:
    return DeviceSample(uuid=uuid, index=0, processes=None, **fields)


class Bench:
    """A meter with a period of one second, stepped at the seconds that are given."""

    def __init__(self, **settings: Any) -> None:
        self.meter = Meter(period_ns=S, **settings)

    def at(
        self,
        second: float,
        *devices: DeviceSample,
        owners: Mapping[int, str] = OWNERS,
        health: Health = Health.WATCHING,
        **known: dict[int, float],
    ) -> Metered:
        times = {name: {pid: int(at * S) for pid, at in by.items()} for name, by in known.items()}
        return self.meter.step(
            Sample(time_ns=int(second * S), health=health, devices=devices), owners, **times
        )


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_the_first_sample_of_a_device_charges_nothing(bench: Bench) -> None:
    metered = bench.at(1, gpu(process(10, busy=500), energy_mj=7), started={10: 0})
    assert (metered.amounts, metered.unattributed, metered.host_idle_mj) == ({}, {}, 0)
    assert metered.vram_bytes == {"a": 100 * MIB}


def test_what_was_held_at_the_sample_before_is_charged(bench: Bench) -> None:
    bench.at(1, gpu(process(10, 100)))
    metered = bench.at(2, gpu(process(10, 700), process(20, 50)))
    assert metered.amounts == {"a": {"gpu_alloc_ms": 1000, "vram_mib_s": 100}}
    metered = bench.at(3, gpu())
    assert metered.amounts["a"] == {"gpu_alloc_ms": 1000, "vram_mib_s": 700}
    assert metered.amounts["b"] == {"gpu_alloc_ms": 1000, "vram_mib_s": 50}
    assert bench.at(4, gpu()).amounts == {}


def test_two_processes_of_an_account_hold_a_device_once_and_two_devices_twice(
    bench: Bench,
) -> None:
    for second in (1, 2):
        metered = bench.at(
            second, gpu(process(10), process(11)), gpu(process(10), uuid="GPU-2"), gpu(uuid="idle")
        )
    assert metered.amounts == {"a": {"gpu_alloc_ms": 2000, "vram_mib_s": 300}}


def test_whose_account_is_unknown_is_metered_apart(bench: Bench) -> None:
    for second in (1, 2):
        metered = bench.at(second, gpu(process(10), process(99, busy=500)), owners={10: ""})
    assert metered.amounts == {}
    assert metered.unattributed == {"gpu_alloc_ms": 1000, "gpu_busy_ms": 500, "vram_mib_s": 200}
    assert metered.vram_bytes == {}


def test_who_owned_it_at_the_sample_before_pays_for_what_was_held(bench: Bench) -> None:
    bench.at(1, gpu(process(10)), owners={10: "old"})
    metered = bench.at(2, gpu(process(10, busy=100)), owners={10: "new"})
    assert metered.amounts == {
        "old": {"gpu_alloc_ms": 1000, "vram_mib_s": 100},
        "new": {"gpu_busy_ms": 100},
    }


def test_a_process_is_charged_to_the_moment_it_ends(bench: Bench) -> None:
    bench.at(1, gpu(process(10), process(20)))
    metered = bench.at(2, gpu(process(20)), ended={10: 1.25})
    assert metered.amounts["a"] == {"gpu_alloc_ms": 250, "vram_mib_s": 25}
    assert metered.amounts["b"]["gpu_alloc_ms"] == 1000


def test_an_end_that_is_told_before_the_sample_waits_for_the_next(bench: Bench) -> None:
    bench.at(1, gpu(process(10)), ended={10: 1.5})
    assert bench.at(2, gpu()).amounts == {"a": {"gpu_alloc_ms": 500, "vram_mib_s": 50}}


def test_a_new_process_counts_from_its_start_where_that_is_known(bench: Bench) -> None:
    bench.at(1, gpu())
    metered = bench.at(2, gpu(process(10), process(20), process(30)), started={10: 1.75, 20: 0.5})
    assert metered.amounts == {
        "a": {"gpu_alloc_ms": 250, "vram_mib_s": 25},
        "b": {"gpu_alloc_ms": 1000, "vram_mib_s": 100},
    }
    metered = bench.at(3, gpu(process(10)), started={10: 1.75})
    assert metered.amounts["a"] == {"gpu_alloc_ms": 1000, "vram_mib_s": 100}


def test_a_pid_that_is_used_again_is_two_processes(bench: Bench) -> None:
    bench.at(1, gpu(process(10)), owners={10: "a"})
    again = gpu(process(10, 400))
    metered = bench.at(2, again, owners={10: "b"}, ended={10: 1.25}, started={10: 1.75})
    assert metered.amounts == {
        "a": {"gpu_alloc_ms": 250, "vram_mib_s": 25},
        "b": {"gpu_alloc_ms": 250, "vram_mib_s": 100},
    }


def test_time_between_two_processes_of_an_account_is_not_held(bench: Bench) -> None:
    bench.at(1, gpu(process(10)))
    metered = bench.at(2, gpu(process(11)), ended={10: 1.25}, started={11: 1.5})
    assert metered.amounts["a"] == {"gpu_alloc_ms": 750, "vram_mib_s": 75}


def test_what_is_listed_after_its_end_is_held_from_then_on_and_never_twice(bench: Bench) -> None:
    bench.at(1, gpu(process(10)))
    metered = bench.at(2, gpu(process(10)), ended={10: 1.25}, started={10: 0})
    assert metered.amounts["a"] == {"gpu_alloc_ms": 1000, "vram_mib_s": 100}


def test_busy_time_is_what_was_measured_for_each_process(bench: Bench) -> None:
    bench.at(1, gpu())
    busy = gpu(process(10, busy=100), process(11, busy=50), process(20, busy=300))
    metered = bench.at(2, busy)
    assert {name: by["gpu_busy_ms"] for name, by in metered.amounts.items()} == {"a": 150, "b": 300}


@pytest.mark.parametrize(
    ("told", "expected"), [(600, (200, 400)), (None, (333, 666)), (0, (0, 0)), (2000, (333, 666))]
)
def test_busy_time_is_clamped_and_scaled_to_what_the_device_was_busy(
    bench: Bench, told: int | None, expected: tuple[int, int]
) -> None:
    bench.at(1, gpu())
    busy = (process(10, busy=500), process(20, busy=5000), process(30, busy=-7))
    metered = bench.at(2, gpu(*busy, busy_permille=told))
    found = [metered.amounts.get(name, {}).get("gpu_busy_ms", 0) for name in "abc"]
    assert found == [*expected, 0]


def test_processes_without_a_figure_share_the_rest_by_their_bytes(bench: Bench) -> None:
    bench.at(1, gpu())
    shared = (process(10, 300, busy=None), process(20, 100, busy=None), process(30, busy=200))
    metered = bench.at(2, gpu(*shared, busy_permille=600))
    assert metered.amounts == {
        "a": {"gpu_estimated_ms": 300},
        "b": {"gpu_estimated_ms": 100},
        "c": {"gpu_busy_ms": 200},
    }
    assert metered.estimated == {"a", "b"}


def test_processes_without_figures_and_bytes_share_equally(bench: Bench) -> None:
    bench.at(1, gpu())
    shared = (process(10, 0, busy=None), process(11, 0, busy=None), process(20, None, busy=None))
    metered = bench.at(2, gpu(*shared, busy_permille=600))
    assert metered.amounts == {"a": {"gpu_estimated_ms": 400}, "b": {"gpu_estimated_ms": 200}}


def test_where_nobody_has_a_figure_the_estimate_is_the_allocation(bench: Bench) -> None:
    instance = gpu(process(10, busy=None), weight_permille=250, parent_uuid="GPU-0")
    bench.at(1, instance)
    metered = bench.at(2, instance)
    assert metered.amounts["a"] == {
        "gpu_alloc_ms": 250,
        "gpu_estimated_ms": 250,
        "vram_mib_s": 100,
    }


def test_bytes_that_are_not_told_are_an_equal_part_of_what_is_left(bench: Bench) -> None:
    used = gpu(process(10, 100), process(20, None), process(21, None), vram_used_bytes=501 * MIB)
    metered = bench.at(1, used)
    assert metered.vram_bytes == {"a": 100 * MIB, "b": 401 * MIB}
    assert metered.estimated == {"b"}
    metered = bench.at(2, gpu(process(10, 100)))
    assert metered.amounts["b"]["vram_mib_s"] == 401
    assert metered.estimated == {"b"}


def test_bytes_that_cannot_be_known_are_none_and_never_negative(bench: Bench) -> None:
    assert bench.at(1, gpu(process(20, None))).vram_bytes == {"b": 0}
    over = gpu(process(10, 100), process(20, None), vram_used_bytes=1)
    assert bench.at(2, over).vram_bytes == {"a": 100 * MIB, "b": 0}


def test_remainders_are_carried_and_nothing_is_lost() -> None:
    meter = Meter(period_ns=S)
    third = (GpuProcess(pid=10, contexts="C", vram_bytes=MIB // 3, busy_permille=1),)
    total = {"gpu_alloc_ms": 0, "gpu_busy_ms": 0, "vram_mib_s": 0}
    for step in range(1, 10_002):
        sample = Sample(time_ns=step * 333_333, health=Health.WATCHING, devices=(gpu(*third),))
        for name, amount in meter.step(sample, OWNERS).amounts.get("a", {}).items():
            total[name] += amount
    span = 10_000 * 333_333
    assert total == {
        "gpu_alloc_ms": span // 10**6,
        "gpu_busy_ms": span // 10**9,
        "vram_mib_s": (MIB // 3) * span // (MIB * S),
    }


def test_an_account_that_comes_back_finds_its_remainder_and_a_new_peak(bench: Bench) -> None:
    bench.at(1, gpu(process(10, 900)))
    bench.at(2, gpu(), ended={10: 1.0004})
    assert bench.at(3, gpu()).vram_peak_bytes == {}
    assert bench.at(4, gpu(process(10, 100))).vram_peak_bytes == {"a": 100 * MIB}
    metered = bench.at(5, gpu(), ended={10: 4.0006})
    assert metered.amounts["a"]["gpu_alloc_ms"] == 1


def test_the_peak_is_the_most_on_all_devices_together(bench: Bench) -> None:
    bench.at(1, gpu(process(10, 100)), gpu(process(10, 200), uuid="GPU-2"))
    metered = bench.at(2, gpu(process(10, 50)), gpu(process(10, 220), uuid="GPU-2"))
    assert metered.vram_bytes == {"a": 270 * MIB}
    assert metered.vram_peak_bytes == {"a": 300 * MIB}


def test_a_late_sample_is_charged_as_three_periods_and_told_as_a_gap(bench: Bench) -> None:
    bench.at(1, gpu(process(10), energy_mj=0))
    assert bench.at(4, gpu(process(10), energy_mj=300)).gaps == ()
    metered = bench.at(9, gpu(process(10, busy=500), process(20), energy_mj=800), started={20: 4.5})
    assert metered.gaps == (Gap("GPU-1", 4 * S, 9 * S, 3 * S),)
    assert metered.amounts["a"] == {
        "gpu_alloc_ms": 3000,
        "gpu_busy_ms": 1500,
        "vram_mib_s": 300,
        "energy_mj": 150,
    }
    assert metered.amounts["b"] == {
        "gpu_alloc_ms": 3000,
        "vram_mib_s": 300,
        "energy_mj": 150,
    }
    assert metered.unattributed == {"energy_mj": 200}


@pytest.mark.parametrize(
    ("health", "devices"),
    [
        (Health.BLIND, ()),
        (Health.WATCHING, ()),
        (Health.WATCHING, (unreadable(energy_mj=500),)),
        (Health.WATCHING, (gpu(error="lost"),)),
    ],
)
def test_what_cannot_be_read_is_neither_charged_nor_zero_and_is_made_up_for(
    bench: Bench, health: Health, devices: tuple[DeviceSample, ...]
) -> None:
    bench.at(1, gpu(process(10, 100), energy_mj=100))
    metered = bench.at(2, *devices, health=health)
    assert (metered.amounts, metered.unattributed, metered.host_idle_mj) == ({}, {}, 0)
    assert metered.vram_bytes == metered.vram_peak_bytes == {"a": 100 * MIB}
    metered = bench.at(3, gpu(process(10), energy_mj=700))
    assert metered.amounts["a"] == {"gpu_alloc_ms": 2000, "vram_mib_s": 200, "energy_mj": 600}
    assert metered.gaps == ()


def test_a_process_that_ends_unseen_is_charged_to_its_end_once_its_device_is_read(
    bench: Bench,
) -> None:
    bench.at(1, gpu(process(10), process(11)))
    metered = bench.at(2, health=Health.BLIND, ended={10: 1.5})
    assert metered.amounts == {}
    assert metered.vram_bytes == {"a": 100 * MIB}
    metered = bench.at(3, gpu(process(11)))
    assert metered.amounts["a"] == {"gpu_alloc_ms": 2000, "vram_mib_s": 250}


def test_a_device_that_is_gone_for_long_is_forgotten_and_its_gap_is_told(bench: Bench) -> None:
    bench.at(1, gpu(process(10), energy_mj=1), gpu(uuid="GPU-2"))
    assert bench.at(600, gpu(uuid="GPU-2")).vram_bytes == {"a": 100 * MIB}
    blind = bench.at(602, health=Health.BLIND)
    assert (blind.vram_bytes, blind.gaps) == ({"a": 100 * MIB}, ())
    metered = bench.at(603, gpu(uuid="GPU-2"))
    assert Gap("GPU-1", 1 * S, 603 * S, 0) in metered.gaps
    assert (metered.amounts, metered.vram_bytes) == ({}, {})
    assert list(bench.meter._pictures) == ["GPU-2"]
    assert bench.meter._counters == {}


def test_remainders_of_accounts_that_are_gone_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metering, "CARRIED_MAX", 3)
    bench = Bench()
    for second in range(1, 100):
        bench.at(second, gpu(process(10, 1, busy=1)), owners={10: f"job-{second}"})
    assert list(bench.meter._gone) == ["job-96", "job-97", "job-98"]
    assert max(len(by) for by in bench.meter._carried.values()) <= 4
    assert list(bench.meter._peaks) == ["job-99"]


def test_idle_energy_goes_by_allocation_and_the_rest_by_busy_time(bench: Bench) -> None:
    held = (process(10, 300), process(20, 100))
    bench.at(1, gpu(*held, energy_mj=1000))
    metered = bench.at(2, gpu(*held, energy_mj=1100))  # the least so far: all of it is idle
    assert [metered.amounts[name]["energy_mj"] for name in "ab"] == [50, 50]
    busy = (process(10, 300, busy=200), process(20, 100, busy=600))
    metered = bench.at(3, gpu(*busy, energy_mj=1600))  # 100 idle, 400 for work
    assert [metered.amounts[name]["energy_mj"] for name in "ab"] == [150, 350]
    metered = bench.at(4, gpu(*held, energy_mj=2100))  # nobody is busy: by bytes
    assert [metered.amounts[name]["energy_mj"] for name in "ab"] == [350, 150]


def test_energy_of_processes_without_bytes_or_busy_time_is_shared_equally() -> None:
    bench = Bench(idle_mw=0)
    for second in (1, 2):
        held = gpu(process(10, 0), process(11, 0), process(20, 0), energy_mj=second * 500)
        metered = bench.at(second, held)
    assert [metered.amounts[name]["energy_mj"] for name in "ab"] == [250, 250]


def test_the_idle_power_can_be_configured() -> None:
    bench = Bench(idle_mw=200)
    bench.at(1, gpu(process(10), process(20), energy_mj=0))
    metered = bench.at(2, gpu(process(10, busy=900), process(20), energy_mj=500))
    assert [metered.amounts[name]["energy_mj"] for name in "ab"] == [400, 100]
    metered = bench.at(3, gpu(process(10, busy=900), process(20), energy_mj=600))
    assert [metered.amounts[name]["energy_mj"] for name in "ab"] == [50, 50]


def test_the_least_power_is_forgotten_after_two_windows() -> None:
    bench = Bench(idle_window_ns=10 * S)
    held = (process(10, busy=500), process(20))
    energy = 0
    shares = []
    for second in range(1, 30):
        energy += 100 if second <= 3 else 300
        metered = bench.at(second, gpu(*held, energy_mj=energy))
        shares.append(metered.amounts.get("b", {}).get("energy_mj"))
    assert shares == [None, *[50] * 19, *[150] * 9]


def test_the_energy_of_a_device_without_processes_is_the_hosts(bench: Bench) -> None:
    bench.at(1, gpu(energy_mj=100))
    metered = bench.at(2, gpu(process(10), energy_mj=350))
    assert metered.host_idle_mj == 250
    assert metered.amounts == {}


def test_a_counter_that_starts_anew_is_a_new_base_line(bench: Bench) -> None:
    bench.at(1, gpu(process(10), energy_mj=10**9))
    assert "energy_mj" not in bench.at(2, gpu(process(10), energy_mj=5)).amounts["a"]
    assert bench.at(3, gpu(process(10), energy_mj=105)).amounts["a"]["energy_mj"] == 100


def test_a_counter_that_cannot_be_read_for_a_while_is_made_up_for(bench: Bench) -> None:
    bench.at(1, gpu(process(10), energy_mj=100))
    assert "energy_mj" not in bench.at(2, gpu(process(10))).amounts["a"]
    assert bench.at(3, gpu(process(10), energy_mj=700)).amounts["a"]["energy_mj"] == 600


def test_instances_take_their_weights_of_the_parents_energy(bench: Bench) -> None:
    def mig(energy: int, *, blind: bool = False) -> tuple[DeviceSample, ...]:
        common: dict[str, Any] = {"parent_uuid": "GPU-0", "energy_mj": energy}
        second = unreadable if blind else gpu
        return (
            gpu(process(10), uuid="MIG-1", weight_permille=500, **common),
            second(uuid="MIG-2", weight_permille=250, **common),
        )

    bench.at(1, *mig(0))
    metered = bench.at(2, *mig(1000))
    assert metered.amounts["a"]["energy_mj"] == 500
    assert metered.amounts["a"]["gpu_alloc_ms"] == 500
    assert metered.host_idle_mj == 500  # an instance without a process, and what is not cut up
    metered = bench.at(3, *mig(2000, blind=True))
    assert metered.amounts["a"]["energy_mj"] == 500
    assert metered.unattributed == {"energy_mj": 250}
    assert metered.host_idle_mj == 250


def test_energy_that_was_summed_from_power_is_marked(bench: Bench) -> None:
    for second in (1, 2):
        held = gpu(process(10), energy_mj=second, energy_estimated=True)
        metered = bench.at(second, held, gpu(process(20), uuid="GPU-2", energy_mj=second))
    assert metered.estimated == {"a"}


def test_energy_is_divided_by_largest_remainder() -> None:
    assert split(10, {"a": 1, "b": 1, "c": 1}) == {"a": 4, "b": 3, "c": 3}
    assert split(10, {"a": 66, "b": 67, "c": 67}) == {"a": 3, "b": 4, "c": 3}
    assert split(0, {"a": 1}) == {"a": 0}
    assert split(7, {"a": 0, "b": 5}) == {"a": 0, "b": 7}


def test_samples_out_of_order_are_refused(bench: Bench) -> None:
    bench.at(2)
    with pytest.raises(ValueError, match="order of their time"):
        bench.at(2)


def test_a_period_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="positive"):
        Meter(period_ns=0)
