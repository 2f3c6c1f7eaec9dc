"""NVML that hangs, dies or is not there, under a real daemon: blind is said, and harms nobody."""

import os
import signal
import subprocess
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest
from support.daemon import Daemon
from support.gpu import GIB, NEVER, Orders, StandIn
from support.sights import eventually, listening, sampler, shown, state
from support.watched import QUICK, Watched, states

from bursar.processes import IncidentState, ProcessEvent, ProcessEventKind, WatchdogState

COUNT = "nvmlDeviceGetCount_v2"
NO_PROCESSES = """
import sys
sys.executable = "/no/such/python"
from bursar.__main__ import main
raise SystemExit(main())
"""
QUICK_RETRY = """
from functools import partial
from bursar.watchdog import loop
loop.Poller = partial(loop.Poller, retry_missing_s=0.3)
from bursar.__main__ import main
raise SystemExit(main())
"""


def of_state(heard: list[ProcessEvent], wanted: WatchdogState) -> list[ProcessEvent]:
    """The events that tell of a state of the watchdog."""
    return [one for one in heard if one.watchdog and one.watchdog.state is wanted]


def test_a_hang_blinds_the_watchdog_kills_nobody_and_heals_with_another_sampler() -> None:
    """A breach that takes 1 s to come about is cut off by a hang: what was seen is old."""
    with Watched(watchdog={"vram_patience": "1s"}) as watched, listening(watched) as heard:
        watched.limit_vram("over", GIB)
        watched.client.set_budget("over", unit="gpu_ms", limit=3_600_000)
        worker = watched.register("over", vram_bytes=2 * GIB)
        eventually(lambda: worker.pid in shown(watched))
        time.sleep(0.3)
        watched.gpus.hang("*")
        old = sampler(watched.daemon)
        eventually(lambda: state(watched) is WatchdogState.BLIND)
        assert not Path(f"/proc/{old}").exists()
        status = watched.client.list_processes().watchdog
        assert "NVML has not answered for 3 s" in status.detail
        eventually(lambda: bool(of_state(heard, WatchdogState.BLIND)))
        time.sleep(1.5)
        assert worker.process.poll() is None, f"stopped on old data:\n{watched.daemon.log}"
        assert list(watched.client.list_incidents()) == []
        watched.gpus.heal()
        eventually(lambda: state(watched) is WatchdogState.WATCHING)
        assert sampler(watched.daemon) != old
        assert of_state(heard, WatchdogState.BLIND)[0].kind is ProcessEventKind.WATCHDOG
        assert watched.one("over", IncidentState.RECLAIMED).vram_bytes == 2 * GIB


def test_time_in_which_nothing_was_seen_is_charged_for_three_periods_at_the_most() -> None:
    with Watched() as watched:
        watched.client.set_budget("a", unit="gpu_ms", limit=3_600_000)
        worker = watched.register("a", vram_bytes=GIB)
        eventually(lambda: worker.pid in shown(watched))

        def spent() -> int:
            [one] = watched.client.get_account("a").balances
            return one.spent

        eventually(lambda: spent() > 0)
        started = time.monotonic()
        watched.gpus.hang("*")
        time.sleep(0.3)  # the sample that was on its way
        before = spent()
        eventually(lambda: state(watched) is WatchdogState.BLIND)
        assert spent() == before
        watched.gpus.heal()
        eventually(lambda: "are charged to nobody" in watched.daemon.log)
        seen_again = time.monotonic()
        assert seen_again - started > 3
        after = spent()
        watching_ms = (time.monotonic() - seen_again) * 1000
        assert after - before <= 300 + 400 + watching_ms, "the gap was charged"


def test_a_sampler_that_is_killed_is_started_again() -> None:
    with Watched() as watched, listening(watched) as heard:
        worker = watched.register("a", vram_bytes=GIB)
        eventually(lambda: worker.pid in shown(watched))
        old = sampler(watched.daemon)
        os.kill(old, signal.SIGKILL)
        eventually(lambda: "has ended" in watched.daemon.log)
        eventually(lambda: worker.pid in shown(watched))
        assert sampler(watched.daemon) not in {0, old}
        eventually(lambda: len(of_state(heard, WatchdogState.WATCHING)) > 0)
        assert of_state(heard, WatchdogState.BLIND)


@pytest.mark.parametrize("code", [1, 999])
def test_nvml_that_dies_and_returns_is_blind_between(code: int) -> None:
    with Watched() as watched:
        watched.limit_vram("a", 4 * GIB)
        worker = watched.register("a", vram_bytes=GIB)
        eventually(lambda: worker.pid in shown(watched))
        eventually(lambda: watched.held("a") == GIB)
        watched.gpus.fail("*", code)
        eventually(lambda: state(watched) is WatchdogState.BLIND)
        assert worker.pid not in shown(watched)
        assert watched.held("a") == GIB, "what was in use stays held"
        watched.gpus.heal()
        eventually(lambda: worker.pid in shown(watched))
        assert worker.process.poll() is None


def test_memory_of_a_gpu_that_is_lost_meanwhile_is_quarantined_until_it_is_seen_again() -> None:
    with Watched(watchdog={"verify_timeout": "20s"}) as watched:
        watched.limit_vram("over", GIB)
        worker = watched.register("over", vram_bytes=2 * GIB, free_after_ms=NEVER)
        watched.one("over", IncidentState.VERIFY)
        watched.gpus.lose(watched.gpu)
        incident = watched.one("over", IncidentState.UNVERIFIED)
        assert incident.vram_quarantined_bytes == 2 * GIB
        assert incident.vram_returned_bytes == 0
        watched.gpus.remove(worker.pid)
        time.sleep(0.5)
        assert watched.one("over", IncidentState.UNVERIFIED).vram_quarantined_bytes == 2 * GIB
        watched.gpus.update(watched.gpu, lost=False)
        incident = watched.one("over", IncidentState.RECLAIMED)
        assert incident.vram_quarantined_bytes == 0
        assert incident.vram_returned_bytes == 2 * GIB
        assert states(incident)[-3:] == ["verify", "unverified", "reclaimed"]


def test_a_gpu_that_is_lost_keeps_its_name_also_for_the_next_sampler() -> None:
    machine = StandIn()
    first, second = machine.add_gpu(), machine.add_gpu()
    with Watched(machine) as watched:
        eventually(lambda: len(watched.client.list_processes().devices) == 2)
        machine.fail("nvmlDeviceGetHandleByIndex_v2", 15, gpu=second)
        machine.lose(second)

        def told() -> dict[str, bool]:
            devices = watched.client.list_processes().devices
            return {one.uuid: bool(one.error) for one in devices}

        eventually(lambda: told() == {first: False, second: True})
        old = sampler(watched.daemon)
        os.kill(old, signal.SIGKILL)
        eventually(lambda: sampler(watched.daemon) not in {0, old})
        eventually(lambda: told() == {first: False, second: True})
        assert "unreadable" not in watched.daemon.log


def test_a_gpu_that_was_never_read_has_the_name_of_its_place() -> None:
    machine = StandIn()
    machine.lose(machine.add_gpu())
    machine.fail("nvmlDeviceGetHandleByIndex_v2", 15)
    with Watched(machine) as watched:
        eventually(lambda: bool(watched.client.list_processes().devices))
        assert [one.uuid for one in watched.client.list_processes().devices] == ["unreadable-0"]


def test_a_driver_that_does_not_fit_the_library_is_blind_with_words() -> None:
    machine = StandIn()
    machine.add_gpu()
    machine.fail_init(18)
    with Watched(machine) as watched:
        eventually(lambda: state(watched) is WatchdogState.BLIND)
        assert "version mismatch" in watched.client.list_processes().watchdog.detail
        machine.heal()
        eventually(lambda: state(watched) is WatchdogState.WATCHING)


def test_a_gpu_that_vanishes_moves_the_index_and_nothing_else() -> None:
    machine = StandIn()
    first, second = machine.add_gpu(), machine.add_gpu()
    with Watched(machine) as watched:
        watched.limit_vram("b", 2 * GIB)
        gone = watched.register("a", gpu=first, vram_bytes=GIB)
        worker = watched.register("b", gpu=second, vram_bytes=GIB)
        eventually(lambda: worker.pid in shown(watched))
        machine.remove(gone.pid)
        machine.remove_gpu(first)
        eventually(lambda: len(watched.client.list_processes().devices) == 1)
        listed = watched.client.list_processes()
        assert [(one.uuid, one.index) for one in listed.devices] == [(second, 0)]
        [row] = [one for one in listed.processes if one.device]
        assert (row.pid, row.account, row.device) == (worker.pid, "b", second)
        assert gone.process.poll() is None
        machine.set_process(worker.pid, second, vram_bytes=3 * GIB)
        incident = watched.one("b", IncidentState.RECLAIMED)
        assert [one.pid for one in incident.victims] == [worker.pid]
        assert gone.process.poll() is None


def test_a_context_torn_down_by_our_kill_is_no_fault_but_a_gpu_off_the_bus_is() -> None:
    with Watched(watchdog={"verify_timeout": "20s"}) as watched, listening(watched) as heard:
        watched.limit_vram("over", GIB)
        ignoring = Orders(on_term="ignore")
        watched.register("over", orders=ignoring, vram_bytes=2 * GIB, free_after_ms=500)
        watched.one("over", IncidentState.RECLAIMED)
        for number in (43, 45, 79):
            watched.gpus.xid(watched.gpu, number)
        eventually(lambda: any("XID 79" in one.detail for one in heard))
        time.sleep(1.2)
        told = [one.detail for one in heard if "XID" in one.detail]
        assert len(told) == 1, told
        assert watched.gpu in told[0]


def test_a_context_torn_down_without_us_is_a_fault() -> None:
    with Watched() as watched, listening(watched) as heard:
        eventually(lambda: state(watched) is WatchdogState.WATCHING)
        time.sleep(0.2)
        watched.gpus.xid(watched.gpu, 45)
        eventually(lambda: any("XID 45" in one.detail for one in heard))


def test_no_descriptor_is_left_of_processes_jobs_and_samplers_that_have_ended() -> None:
    with Watched() as watched:

        def opened() -> Counter[str]:
            kinds: Counter[str] = Counter()
            for one in Path(f"/proc/{watched.daemon.pid}/fd").iterdir():
                with suppress(FileNotFoundError):
                    kinds[str(one.readlink()).split("[")[0]] += 1
            return kinds

        def come_and_go(count: int) -> None:
            pid = 0
            for number in range(count):
                worker = watched.register(f"churn/{number}", vram_bytes=GIB)
                stray = watched.gpus.worker(watched.gpu, vram_bytes=GIB)
                eventually(lambda: len(shown(watched)) == 2)
                eventually(lambda: sampler(watched.daemon) > 0)
                pid = sampler(watched.daemon)
                assert pid > 0, "0 would be this process group"
                os.kill(pid, signal.SIGKILL)
                worker.end()
                stray.end()
                eventually(lambda: not watched.client.list_processes().jobs)
            eventually(lambda: sampler(watched.daemon) not in (0, pid))
            eventually(lambda: state(watched) is WatchdogState.WATCHING)
            eventually(lambda: not shown(watched))

        come_and_go(2)
        before = opened()
        come_and_go(6)
        with suppress(AssertionError):
            eventually(lambda: not opened() - before)
        assert not opened() - before


class Retrying(Daemon):
    """A daemon that looks for a missing NVML more often than every 30 s."""

    code = QUICK_RETRY

    def command(self) -> list[str]:
        """As the sidecar's."""
        command = super().command()
        at = command.index("-m")
        return [*command[:at], "-c", self.code, *command[at + 2 :]]


class Crowded(Retrying):
    """A daemon that can start no process, as where a fork bomb has taken all there are."""

    code = NO_PROCESSES


def test_jobs_are_stopped_also_where_no_process_can_be_started_to_read_nvml() -> None:
    with Crowded(watchdog=QUICK) as daemon, daemon.client() as client:
        with subprocess.Popen(["/bin/sleep", "60"]) as runaway:
            client.register_process("bomb", pid=runaway.pid, wall_limit_s=1)
            assert runaway.wait(10) == -signal.SIGTERM
        status = client.list_processes().watchdog
        assert status.state is WatchdogState.BLIND
        assert "no process can be started" in status.detail
        assert "starts again" not in daemon.log


def test_a_library_that_is_missing_is_no_fault_and_watched_once_it_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with StandIn() as machine:
        machine.add_gpu()
        monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
        monkeypatch.setenv("NVML_STAND_IN", str(machine.folder))
        with Retrying(watchdog=QUICK) as daemon, daemon.client() as client:
            status = client.list_processes().watchdog
            eventually(lambda: "no GPUs" in daemon.log)
            status = client.list_processes().watchdog
            assert status.state is WatchdogState.NO_NVML
            assert "NVML Shared Library Not Found" in status.detail
            (tmp_path / machine.library_path.name).symlink_to(machine.library_path)
            eventually(lambda: client.list_processes().watchdog.state is WatchdogState.WATCHING)
            assert len(client.list_processes().devices) == 1
            (tmp_path / machine.library_path.name).unlink()
            os.kill(sampler(daemon), signal.SIGKILL)
            text = "GPUs were seen, and NVML is there no longer"
            eventually(lambda: text in client.list_processes().watchdog.detail)
            assert client.list_processes().watchdog.state is WatchdogState.BLIND


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"pynvml.py": "raise ImportError"}, 'pip install "bursar-sidecar[gpu]"'),
        ({"pynvml/__init__.py": "def nvmlInit(): pass"}, "another package named pynvml"),
        ({"pynvml/__init__.py": "_nvmlGetFunctionPointer = 1"}, "another package named pynvml"),
        ({"pynvml.py": "def nvmlInit(): pass"}, "another package named pynvml"),
    ],
)
def test_a_python_module_that_is_not_nvidias_is_told_with_what_to_do(
    files: dict[str, str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    paths = [str(tmp_path), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    with Watched() as watched:
        eventually(lambda: "no GPUs" in watched.daemon.log)
        status = watched.client.list_processes().watchdog
        assert status.state is WatchdogState.NO_NVML
        assert words in status.detail
        job = watched.launch("a", "--wall", "1s", vram_bytes=GIB)
        job.process.wait(10)
        assert watched.one("a", IncidentState.RECLAIMED).victims
