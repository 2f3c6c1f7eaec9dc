"""`bursar incidents`: what was stopped, why, what came back and how long it took. Only reads."""

from datetime import datetime, timedelta
from itertools import islice
from typing import Final

import click

from bursar.cli._output import (
    Cell,
    echo_json,
    echo_table,
    safe,
    show_bytes,
    show_time,
    used_of_limit,
)
from bursar.cli._shared import connect, json_option, target_option
from bursar.processes import Incident, IncidentCause, IncidentStep
from bursar.units import show_duration

COLUMNS: Final = ("when", "account", "job", "why", "state", "came back", "took")
_PAGE_SIZE_MAX: Final = 1000
_STATE_CELLS: Final = 14  # "reclaim failed", the longest


@click.command(short_help="Show what was stopped, and why.")
@click.argument("account", default="")
@click.option("--job", default="", help="Only the job with this id.")
@click.option(
    "--limit",
    type=click.IntRange(min=0),
    default=100,
    show_default=True,
    help="The latest so many; 0: all.",
)
@click.option("-v", "--verbose", is_flag=True, help="Show each step, and who was to be stopped.")
@json_option
@target_option
def incidents(
    account: str, *, job: str, limit: int, verbose: bool, as_json: bool, target: str | None
) -> None:
    """Show what was stopped, of ACCOUNT and those below it or of all, the latest first."""
    page_size = min(limit or _PAGE_SIZE_MAX, _PAGE_SIZE_MAX)
    with connect(target) as client:
        listed = client.list_incidents(account, job=job, page_size=page_size)
        found = list(islice(listed, limit or None))
    if as_json:
        echo_json(found)
    elif verbose:
        for incident in found:
            for line in story(incident):
                click.echo(line)
    else:
        echo_table(COLUMNS, [cells(incident) for incident in found])


def cells(incident: Incident) -> list[Cell]:
    """The cells of `COLUMNS`."""
    return [
        show_time(incident.create_time),
        incident.account,
        job_name(incident),
        why(incident),
        incident.state.value.replace("_", " "),
        came_back(incident),
        took(incident),
    ]


def story(incident: Incident) -> list[str]:
    """Everything about an incident, a line each."""
    head = [show_time(incident.create_time), incident.account, job_name(incident), why(incident)]
    ends = [incident.state.value.replace("_", " "), came_back(incident), took(incident)]
    lines = ["  ".join(head), f"  incident {incident.id}, job {incident.job}"]
    if incident.reason and incident.cause is not IncidentCause.OPERATOR:
        lines.append(f"  reason: {incident.reason}")
    lines += [
        f"  victim: pid {one.pid}, {show_bytes(one.vram_bytes)}, {one.command}"
        for one in incident.victims
    ]
    lines.append(f"  outcome: {', '.join(filter(None, ends))}")
    return [*map(safe, lines), *(step_line(incident, step) for step in incident.steps)]


def job_name(incident: Incident) -> Cell:
    """What people call the job; its id where nobody named it."""
    return incident.job_name or incident.job


def why(incident: Incident) -> str:
    """Why, in a few words: ``vram_bytes 9.5 GiB of 8 GiB``."""
    if incident.cause is IncidentCause.BUDGET:
        words = f"{incident.unit} {used_of_limit(incident.unit, incident.used, incident.limit)}"
        above = incident.limit_account not in {"", incident.account}
        return f"{words} in {incident.limit_account}" if above else words
    if incident.cause is IncidentCause.WALL_TIME:
        return f"ran {show_duration(incident.used)} of {show_duration(incident.limit)}"
    if incident.cause is IncidentCause.OPERATOR:
        return f"asked for: {incident.reason}" if incident.reason else "asked for"
    return incident.reason or "unknown"


def came_back(incident: Incident) -> Cell:
    """How much of the victims' memory is back, and what is not sold again."""
    if not incident.vram_bytes:
        return ""
    words = f"{show_bytes(incident.vram_returned_bytes)} of {show_bytes(incident.vram_bytes)}"
    if incident.vram_quarantined_bytes:
        words += f", {show_bytes(incident.vram_quarantined_bytes)} quarantined"
    return words


def took(incident: Incident) -> Cell:
    """From the breach to the end."""
    return _since(incident, incident.end_time) or ("" if incident.ended else "goes on")


def step_line(incident: Incident, step: IncidentStep) -> str:
    """One step of the escalation, with the time since the breach."""
    state = step.state.value.replace("_", " ")
    line = f"  {'+' + _since(incident, step.time):>12}  {state:<{_STATE_CELLS}}  {step.detail}"
    return safe(line).rstrip()


def _since(incident: Incident, moment: datetime | None) -> Cell:
    if moment is None or incident.create_time is None:
        return ""
    return show_duration(max(0, (moment - incident.create_time) // timedelta(milliseconds=1)))
