"""A watched machine whose every test ends clean: nothing lives, is held, frozen or left behind."""

import os
import secrets
import select
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from bursar.processes import Incident, IncidentState, Job
from bursar.watchdog import cgroups
from support.gpu_claims import start_time
from support.gpu_worker import Orders, Worker
from support.watched import Watched

PATIENCE_S: Final = 10.0
MANY: Final = {"max_incidents": 1000, "max_incidents_per_account": 100}
"""For a daemon that several tests share."""
MODES: Final[dict[str, Sequence[str]]] = {"cgroup": (), "descent": ("--no-cgroup",)}


def until(is_so: Callable[[], object], what: str) -> None:
    """Waits until something is so."""
    deadline = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < deadline, f"not within {PATIENCE_S:g} s: {what}"
        time.sleep(0.02)


def lives(pid: int, start: int | None = None) -> bool:
    """Whether a process has a thread left; one that only looks like a zombie has."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        same = start is None or start_time(pid) == start
        return same and not select.select([pidfd], [], [], 0)[0]
    except (OSError, IndexError):
        return False
    finally:
        os.close(pidfd)


class Scene(Watched):
    """A `Watched` that knows which jobs are its own, among others on the same machine."""

    def __init__(self, *arguments: Any, **about: Any) -> None:
        super().__init__(*arguments, **about)
        self.job_name = f"s{secrets.token_hex(4)}"

    def launch(
        self,
        account: str,
        *options: str,
        gpu: str = "",
        orders: Orders | None = None,
        **about: Any,
    ) -> Worker:
        """As in `Watched`, by a name of this scene."""
        named = ("--name", self.job_name, *options)
        return super().launch(account, *named, gpu=gpu, orders=orders, **about)

    def job(self, account: str) -> Job:
        """The only job of an account and those below it."""
        [job] = self.client.list_processes(account).jobs
        return job

    def reached(self, account: str, state: IncidentState) -> Incident:
        """Waits until an incident of an account has been in a state, whatever came after."""
        found: list[Incident] = []

        def been() -> bool:
            found[:] = self.client.list_incidents(account)
            return any(step.state is state for one in found[:1] for step in one.steps)

        until(been, f"{account} is {state}, not {found}")
        return found[0]

    def one_ended(self, account: str) -> Incident:
        """Waits for the only incident of an account and those below it to end."""
        [incident] = self.ended(account)
        return incident

    def one_test(self) -> Iterator["Scene"]:
        """A turn of a daemon that several tests share, as a fixture yields it."""
        try:
            yield self
            self.check_clean()
        finally:  # what one test left must not make the next one fail
            for worker in self.gpus._workers:
                worker.end()
                for pid in worker.members():
                    self.gpus.remove(pid)
            self.gpus._workers.clear()

    def check_clean(self) -> None:
        """Fails unless all that the tests started is gone, and all that they held is given back."""
        workers = self.gpus._workers
        until(lambda: not any(map(_members, workers)), "the end of all processes")
        until(lambda: not self.client.list_processes().jobs, "the end of all jobs")
        until(lambda: not self._groups(), f"no cgroup is left: {self._groups()}")
        until(lambda: not self._unsettled(), f"all is given back: {self._unsettled()}")
        listing = self.client.list_processes()
        assert [one.vram_quarantined_bytes for one in listing.devices if not one.error] in ([], [0])
        open_ones = [one for one in self.client.list_incidents() if not one.ended]
        assert not open_ones, f"{open_ones}"

    def _groups(self) -> list[Path]:
        mounted, own = cgroups.mount_point(), cgroups.path_of(os.getpid())
        if mounted is None or own is None:
            return []
        return list((mounted / own.lstrip("/")).glob(f"{cgroups.PREFIX}{self.job_name}-*"))

    def _unsettled(self) -> list[str]:
        """The accounts that still hold something, are frozen, or were made for a job."""
        return [
            one.path
            for one in self.client.list_accounts()
            if one.open_reservation_count
            or one.frozen
            or one.path.rpartition("/")[2].startswith(f"{self.job_name}-")
        ]


def _members(worker: Worker) -> list[int]:
    worker.process.poll()  # else what has ended stays a zombie of ours
    return [pid for pid, start in worker._signed() if lives(pid, start)]
