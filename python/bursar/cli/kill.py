"""`bursar kill`: stop a job, and follow the escalation to its end.

It signals nothing itself: it asks the watchdog, which goes on when this command is interrupted.
"""

import re
import sys
import time
from typing import Final

import click

import bursar
from bursar.cli._output import echo_json, safe, show_bytes
from bursar.cli._shared import EXIT_ERROR, connect, json_option, target_option
from bursar.cli.incidents import came_back, job_name, step_line, took, why
from bursar.exceptions import ProcessNotFound
from bursar.processes import Incident, IncidentState

_PID: Final = re.compile(r"[0-9]{1,10}")
_POLL_S: Final = 0.2


@click.command(short_help="Stop a job.")
@click.argument("job_or_pid")
@click.option("--reason", default="", help="Why, for those who find it stopped.")
@click.option(
    "--wait/--no-wait", default=True, show_default=True, help="Follow it until it has ended."
)
@json_option
@target_option
def kill(job_or_pid: str, *, reason: str, wait: bool, as_json: bool, target: str | None) -> None:
    """Stop the job JOB_OR_PID: its id, or a process of it.

    SIGTERM, the grace period, SIGKILL, and the check that its VRAM is back. Exits with 0 when it
    has ended and its VRAM is back, and with 1 when not; with --no-wait, when it is under way.
    """
    pid = int(job_or_pid) if _PID.fullmatch(job_or_pid) else 0
    with connect(target) as client:
        incident = client.kill_process(job="" if pid else job_or_pid, pid=pid, reason=reason)
        if not as_json:
            click.echo(_opening(incident))
        incident = _follow(client, incident, wait=wait, quiet=as_json)
    if as_json:
        echo_json(incident)
    elif incident.ended:
        click.echo(outcome(incident))
    else:
        click.echo(f"it goes on; see: bursar incidents -v --job {safe(incident.job)}")
    if not _done(incident) and (wait or incident.ended):
        sys.exit(EXIT_ERROR)


def _opening(incident: Incident) -> str:
    return safe(
        f"stopping {job_name(incident)} of {incident.account} "
        f"(job {incident.job}, incident {incident.id}): {why(incident)}"
    )


def _follow(client: bursar.Client, incident: Incident, *, wait: bool, quiet: bool) -> Incident:
    """Prints each step as it comes. An escalation ends in bounded time, whatever a process does."""
    told = 0
    try:
        while True:
            for step in () if quiet else incident.steps[told:]:
                click.echo(step_line(incident, step))
            told = len(incident.steps)
            if incident.ended or not wait:
                return incident
            time.sleep(_POLL_S)
            incident = _again(client, incident)
    except KeyboardInterrupt:
        return incident  # it goes on without us


def _again(client: bursar.Client, incident: Incident) -> Incident:
    for one in client.list_incidents(job=incident.job):
        if one.id == incident.id:
            return one
    raise ProcessNotFound(f"incident {incident.id} of job {incident.job} is no longer listed")


def _done(incident: Incident) -> bool:
    if incident.state is IncidentState.UNVERIFIED:
        return not incident.vram_bytes  # there was nothing that could have stayed
    return incident.state is IncidentState.RECLAIMED


def outcome(incident: Incident) -> str:
    """How it ended, in one line."""
    quarantined = f"{show_bytes(incident.vram_quarantined_bytes)} are quarantined"
    vram = incident.vram_bytes
    words = {
        IncidentState.RECLAIMED: "stopped, and its VRAM is back" if vram else "stopped",
        IncidentState.UNVERIFIED: "stopped; whether its VRAM is back cannot be seen"
        if vram
        else "stopped",
        IncidentState.RECLAIM_FAILED: f"stopped, but its VRAM is not back: {quarantined}",
        IncidentState.UNKILLABLE: f"NOT stopped, it survives SIGKILL: {quarantined}",
        IncidentState.CANCELLED: "not stopped: it came back under its limit before",
        IncidentState.OBSERVED: "NOT stopped: nothing was signalled",
    }.get(incident.state, f"ended in the state {incident.state.value}")
    facts = ", ".join(filter(None, (came_back(incident), took(incident))))
    return f"{words} ({facts})" if facts else words
