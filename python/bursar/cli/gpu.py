"""`bursar gpu`: the GPUs, their processes and the jobs, as the watchdog saw them last.

Only reads. On a terminal it goes on until Ctrl-C.
"""

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import TYPE_CHECKING, Final

import click

import bursar
from bursar.cli._output import (
    Cell,
    echo_json,
    echo_table,
    rich_table,
    safe,
    show_bytes,
    show_time,
)
from bursar.cli._shared import connect, json_option, target_option
from bursar.processes import (
    Device,
    Job,
    Process,
    Processes,
    ProcessSource,
    WatchdogState,
    WatchdogStatus,
)
from bursar.units import show_amount, show_duration
from bursar.watchdog.figures import exposition

if TYPE_CHECKING:
    from rich.console import Group

Section = tuple[str, Sequence[str], list[list[Cell]]]
"""What to say where there are no rows, the columns, and the rows."""

DEVICE_COLUMNS: Final = ("gpu", "name", "memory", "vram", "busy", "quarantined", "fault")
PROCESS_COLUMNS: Final = ("pid", "command", "account", "known by", "gpu", "vram", "busy", "state")
JOB_COLUMNS: Final = ("job", "name", "account", "pid", "limits", "runs", "enforced", "since")
INCIDENTS_MAX: Final = 1000
"""How many of the latest incidents are looked at for those that are open."""

_REFRESH_S: Final = 1.0
_BAR_CELLS: Final = 10
_UUID_CELLS: Final = 12  # "MIG-" or "GPU-" and the eight digits that tell one from the next
_MODES: Final[Mapping[str, str]] = {
    "observe": "mode observe: of itself, it stops only jobs that are to be enforced",
    "enforce": "mode enforce: jobs that pass a hard limit are stopped",
}
_SOURCES: Final[Mapping[ProcessSource | None, str]] = {
    None: "",
    ProcessSource.CGROUP: "its cgroup",
    ProcessSource.REGISTERED: "registered",
    ProcessSource.ANCESTOR: "a job's child",
    ProcessSource.CONTAINER: "its container",
}


@click.command(short_help="Watch the GPUs and who uses them.")
@click.argument("account", default="")
@click.option("--once", is_flag=True, help="Print once, also on a terminal.")
@click.option("--metrics", is_flag=True, help="Write OpenMetrics text, for a scrape.")
@json_option
@target_option
def gpu(account: str, *, once: bool, metrics: bool, as_json: bool, target: str | None) -> None:
    """Show the GPUs, their processes and the jobs of ACCOUNT and those below it, or of all.

    On a terminal it refreshes every second until Ctrl-C.
    """
    if metrics and as_json:
        raise click.UsageError("give either --metrics or --json")
    with connect(target) as client:
        if metrics:
            latest = islice(client.list_incidents(account, page_size=INCIDENTS_MAX), INCIDENTS_MAX)
            text = exposition(client.list_processes(account), latest, now=datetime.now(UTC))
            click.echo(text.encode(), nl=False)
        elif as_json:
            echo_json(client.list_processes(account))
        elif once or not sys.stdout.isatty():
            _print(client.list_processes(account))
        else:
            _follow(client, account)


def _follow(client: bursar.Client, account: str) -> None:
    from rich.live import Live

    try:
        with Live(auto_refresh=False) as live:
            while True:
                live.update(drawn(client.list_processes(account)), refresh=True)
                time.sleep(_REFRESH_S)
    except KeyboardInterrupt:
        return  # the way to leave it


def _print(found: Processes) -> None:
    for line in watchdog_lines(found):
        click.echo(line)
    for nothing, columns, rows in _sections(found):
        click.echo()
        if rows:
            echo_table(columns, rows)
        else:
            click.echo(nothing)


def drawn(found: Processes) -> "Group":
    """Everything, as a terminal shows it."""
    from rich.console import Group
    from rich.text import Text

    healthy = found.watchdog.state is WatchdogState.WATCHING and not found.watchdog.held_back
    style = "green" if healthy else "bold yellow"
    parts = [Text(line, style=style) for line in watchdog_lines(found)]
    tables = (
        rich_table(columns, rows) if rows else Text(f"\n{nothing}")
        for nothing, columns, rows in _sections(
            found, full="\N{FULL BLOCK}", rest="\N{LIGHT SHADE}"
        )
    )
    return Group(*parts, *tables)


def watchdog_lines(found: Processes) -> list[str]:
    """What the watchdog sees and does, in a few lines for a tired person."""
    watchdog = found.watchdog
    lines = [f"{_sight(watchdog, len(found.devices))}, {_mode(watchdog)}"]
    if watchdog.held_back:
        lines.append(f"HELD BACK, nobody is signalled for now: {watchdog.held_back}")
    if watchdog.detail:
        lines.append(f"note: {watchdog.detail}")
    return [safe(line) for line in lines]


def _mode(watchdog: WatchdogStatus) -> str:
    return _MODES.get(watchdog.mode, f"mode {watchdog.mode or 'unknown'}")


def _sight(watchdog: WatchdogStatus, count: int) -> str:
    if watchdog.state is WatchdogState.WATCHING:
        driver = f" (driver {watchdog.driver_version})" if watchdog.driver_version else ""
        return f"watching {count} GPU{'' if count == 1 else 's'}{driver}"
    if watchdog.state is WatchdogState.NO_NVML:
        return "no NVIDIA driver here: jobs are enforced, GPUs are not watched"
    if watchdog.state is WatchdogState.BLIND:
        return f"BLIND: what the GPUs do is unknown, seen {_ago(watchdog.sample_time)}"
    return "the watchdog's state is not known to this version of bursar"


def _ago(moment: datetime | None) -> str:
    if moment is None:
        return "never"
    age_ms = (datetime.now(UTC) - moment) // timedelta(milliseconds=1)
    return f"last {show_duration(max(0, age_ms))} ago"


def _sections(found: Processes, *, full: str = "#", rest: str = ".") -> Iterator[Section]:
    labels = {device.uuid: _label(device) for device in found.devices}
    devices = [_device_cells(device, full, rest) for device in found.devices]
    yield "no GPUs", DEVICE_COLUMNS, devices
    processes = [_process_cells(process, labels) for process in found.processes]
    yield "no processes", PROCESS_COLUMNS, processes
    yield "no jobs; `bursar run` starts one", JOB_COLUMNS, [_job_cells(job) for job in found.jobs]


def _label(device: Device) -> str:
    """The index; a MIG instance shares it with others, so its UUID goes with it."""
    if device.uuid.startswith("MIG-"):
        return f"{device.index} {device.uuid[:_UUID_CELLS]}"
    return str(device.index)


def _device_cells(device: Device, full: str, rest: str) -> list[Cell]:
    used, total = device.vram_used_bytes, device.vram_total_bytes
    return [
        _label(device),
        device.name,
        _bar(used, total, full, rest),
        f"{show_bytes(used)} of {show_bytes(total)}" if total else show_bytes(used),
        _percent(device.busy_percent),
        show_bytes(device.vram_quarantined_bytes) if device.vram_quarantined_bytes else "",
        device.error,
    ]


def _bar(used: int | None, total: int | None, full: str, rest: str) -> Cell:
    if used is None or not total:
        return "?" * _BAR_CELLS
    filled = min(_BAR_CELLS, round(used * _BAR_CELLS / total))
    return full * filled + rest * (_BAR_CELLS - filled)


def _percent(value: int | None) -> Cell:
    return "unknown" if value is None else f"{value}%"


def _process_cells(process: Process, labels: Mapping[str, str]) -> list[Cell]:
    return [
        str(process.pid),
        process.command,
        process.account or "unattributed",
        _SOURCES.get(process.source, "unknown"),
        labels.get(process.device, process.device[:_UUID_CELLS]) or "none",
        show_bytes(process.vram_bytes) if process.device else "",
        _percent(process.busy_percent) if process.device else "",
        process.state.value.replace("_", " ") if process.state else "",
    ]


def _job_cells(job: Job) -> list[Cell]:
    limits = (f"{unit} {show_amount(unit, value)}" for unit, value in job.limits.items())
    return [
        job.id,
        job.name,
        job.account,
        str(job.pid),
        ", ".join(limits),
        "" if job.wall_limit_ms is None else f"at most {show_duration(job.wall_limit_ms)}",
        "yes" if job.enforce else "",
        show_time(job.create_time),
    ]
