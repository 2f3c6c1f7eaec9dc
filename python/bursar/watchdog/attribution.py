"""Whose a process is: its job, or the container that the configuration maps to an account.

What the kernel keeps goes before what a process says of itself: the cgroup of a job, then the
process that was registered, then the container's cgroup, then descent. An answer sticks to the
process, so that one that leaves its parents stays whose it was. Who is unknown is metered as
unattributed and never signalled.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from bursar.v1 import process_pb2 as pb
from bursar.watchdog import cgroups
from bursar.watchdog.jobs import Jobs, Kept
from bursar.watchdog.processes import Held, command_of, uid_of

__all__ = ["Attribution", "Attributor", "ContainerRule", "container_of"]

_CONTAINER: Final = re.compile(
    r"(?:^|/)(?:cri-containerd-|crio-|docker-|libpod-|nerdctl-)?"
    r"(?P<id>[0-9a-f]{64})(?:\.scope)?(?=/|\Z)"
)
_POD: Final = re.compile(
    r"pod(?P<uid>[0-9a-f]{8}[-_](?:[0-9a-f]{4}[-_]){3}[0-9a-f]{12})(?:\.slice)?(?=/|\Z)"
)

# A node of kind is a container whose kubelet makes the groups of pods right below the node's own.
# To make them, one has to be root in a container of Docker's or nerdctl's that may write to
# cgroups, which is no container any more. Other groups that were made inside of one name no pod.
_NODE: Final = re.compile(
    r"^/(?:docker/|system\.slice/(?:docker|nerdctl)-)[0-9a-f]{64}(?:\.scope)?"
    r"(?=/kubelet\.slice/kubelet-kubepods\.slice/|/kubelet/kubepods/)"
)


@dataclass(frozen=True, slots=True)
class ContainerRule:
    """Maps containers to an account.

    Attributes:
        pattern: A regular expression that is searched for in the cgroup's path.
        account: The account; ``{pod}`` and ``{container}`` stand for the pod's uid and the
            container's id.
    """

    pattern: re.Pattern[str]
    account: str


@dataclass(frozen=True, slots=True)
class Attribution:
    """Whose a process is, and how that is known.

    Attributes:
        account: Who pays; empty: unattributed.
        source: How that is known.
        job_id: Its job; empty: none.
        command: The first words of its command.
        uid: Who it runs as.
        conflict: What else was said, for an alarm; empty: nothing.
    """

    account: str
    source: pb.Process.Source
    job_id: str
    command: str
    uid: int
    conflict: str = ""


def container_of(path: str) -> tuple[str, str] | None:
    """The pod's uid and the container's id of a cgroup; None: it is no container's.

    Knows the shapes of containerd, CRI-O, Docker and Podman, with the systemd and the cgroupfs
    driver, and those within a node of kind. Outside of Kubernetes the pod's uid is empty.
    """
    path = _NODE.sub("", path)
    container = _CONTAINER.search(path)
    pod = _POD.search(path)
    if container is None and pod is None:
        return None
    if container is not None and pod is not None and container.start() < pod.start():
        pod = None  # a name that was given inside of the container
    uid = pod["uid"].replace("_", "-") if pod else ""
    return uid, container["id"] if container else ""


class Attributor:
    """Says whose a process is, and remembers it.

    Args:
        jobs: The registered jobs.
        rules: What maps containers to accounts; the first that fits counts.
    """

    def __init__(self, jobs: Jobs, rules: Sequence[ContainerRule] = ()) -> None:
        self._jobs = jobs
        self._rules = rules
        self._known: dict[tuple[int, int], Attribution] = {}

    def whose(self, held: Held) -> Attribution:
        """Whose a process is; the same for as long as it lives, once it is known."""
        known = self._known.get(held.identity)
        if known is None:
            known = self._known[held.identity] = self._look(held)
        return known

    def forget(self, held: Held) -> None:
        """Forgets a process that has ended."""
        self._known.pop(held.identity, None)

    def forget_nobody(self) -> None:
        """Looks anew at those that were nobody's: a job was registered."""
        self._known = {who: one for who, one in self._known.items() if one.account}

    def forget_job(self, job_id: str) -> None:
        """Forgets what belonged to a job: who is left over is looked at anew."""
        self._known = {who: one for who, one in self._known.items() if one.job_id != job_id}

    def _look(self, held: Held) -> Attribution:
        grouped = self._jobs.of_group(cgroups.path_of(held.pid))
        registered = self._jobs.of_process(held)
        if grouped is not None:
            said = registered if registered is not grouped else None
            conflict = f"it was registered for {said.job.account}" if said else ""
            return self._of_job(held, grouped, pb.Process.SOURCE_CGROUP, conflict)
        if registered is not None:
            return self._of_job(held, registered, pb.Process.SOURCE_REGISTERED)
        contained = self._contained(held, cgroups.path_seen(held.pid))
        if contained is not None:
            return contained
        above = self._jobs.of_ancestor(held)
        if above is not None:
            return self._of_job(held, above, pb.Process.SOURCE_ANCESTOR)
        return self._made("", pb.Process.SOURCE_UNSPECIFIED, "", held)

    def _contained(self, held: Held, path: str | None) -> Attribution | None:
        container = container_of(path) if path else None
        if path is None or container is None:
            return None
        for rule in self._rules:
            if rule.pattern.search(path):
                pod, container_id = container
                account = rule.account.replace("{pod}", pod or "none")
                account = account.replace("{container}", container_id[:12] or "none")
                return self._made(account, pb.Process.SOURCE_CONTAINER, "", held)
        return None

    def _of_job(
        self, held: Held, kept: Kept, source: pb.Process.Source, conflict: str = ""
    ) -> Attribution:
        return self._made(kept.job.account, source, kept.job.id, held, conflict)

    def _made(
        self, account: str, source: pb.Process.Source, job_id: str, held: Held, conflict: str = ""
    ) -> Attribution:
        uid = uid_of(held.pid)
        return Attribution(
            account, source, job_id, command_of(held.pid), -1 if uid is None else uid, conflict
        )
