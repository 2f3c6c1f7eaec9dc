"""`bursar notify`: whether those are told who are to be. On the sidecar's host, as its user."""

import dataclasses
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import click

from bursar.cli._output import Cell, echo_json, echo_table, safe, show_time
from bursar.cli._shared import EXIT_ERROR, config_option, json_option
from bursar.daemon._receivers import ReceiverConfig
from bursar.daemon.config import Config, load_config
from bursar.exceptions import BursarError
from bursar.notify.events import TEST, Event, Waiting
from bursar.notify.notifier import spool_path
from bursar.notify.outcomes import Answer
from bursar.notify.spool import Standing, standings

_COLUMNS: Final = (
    *("receiver", "kind", "state", "waiting", "told", "lost"),
    *("last told", "last failure", "why"),
)


@click.group(short_help="Look at webhooks and commands, and try them.")
def notify() -> None:
    """Look at those who are told of what happens, and try whether it works.

    Run it on the sidecar's host, as the user that the sidecar runs as.
    """


@notify.command("list", short_help="Show how it stands with each receiver.")
@config_option
@click.option("--store", type=click.Path(path_type=Path), help="The sidecar's store.")
@json_option
def list_(config_path: Path, *, store: Path | None, as_json: bool) -> None:
    """Show each receiver: how much waits for it, when it was told last, and what failed.

    The state is new (nothing was tried yet), ok, failing (it is tried again), or gone: it answered
    410 and is told nothing more until its address changes.
    """
    config = load_config(config_path).with_overrides(store=store)
    path = spool_path(config.store.path or "")
    try:
        found = {one.name: one for one in standings(path)} if path.exists() else {}
    except OSError as error:
        raise BursarError(str(error)) from None
    receivers = config.notify.receivers
    if as_json:
        echo_json([_plain(one, found.get(one.name)) for one in receivers])
    else:
        echo_table(_COLUMNS, [_cells(one, found.get(one.name)) for one in receivers])


@notify.command(short_help="Tell a receiver of a sample event.")
@click.argument("name")
@config_option
@json_option
def test(name: str, *, config_path: Path, as_json: bool) -> None:
    """Tell the receiver NAME of a sample event, once, and say what comes back.

    It is sent from here, and with what the sidecar would send it with; the sidecar need not run.
    Exits with 1 when it is not taken.
    """
    config = load_config(config_path)
    receiver = _named(config, name).to_receiver()
    began_s = time.monotonic()
    outcome = receiver.deliver(_sample(config.notify.named_source, name), threading.Event())
    took_ms = round((time.monotonic() - began_s) * 1000)
    if as_json:
        echo_json({"answer": outcome.answer, "detail": outcome.detail, "took_ms": took_ms})
    else:
        taken = outcome.answer is Answer.TAKEN
        click.echo(safe(f"{name} {'took it' if taken else 'DID NOT take it'}: {outcome.detail}"))
        click.echo(f"after {took_ms:,} ms")
    if outcome.answer is not Answer.TAKEN:
        sys.exit(EXIT_ERROR)


def _named(config: Config, name: str) -> ReceiverConfig:
    for one in config.notify.receivers:
        if one.name == name:
            return one
    known = ", ".join(one.name for one in config.notify.receivers) or "none"
    raise click.UsageError(f"there is no receiver {name}; the configuration has: {known}")


def _sample(source: str, name: str) -> Waiting:
    now = datetime.now(UTC)
    event_id = f"test-{round(now.timestamp() * 1000)}"
    event = Event(key=event_id, name=TEST, time=now, data={"receiver": name})
    return Waiting(0, event_id, TEST, "", event.body(event_id, source))


def _state(standing: Standing | None) -> str:
    if standing is None or standing.success_ms is standing.failure_ms is None:
        return "new"
    if standing.is_gone:
        return "gone"
    return "failing" if standing.failures else "ok"


def _plain(receiver: ReceiverConfig, standing: Standing | None) -> dict[str, object]:
    about = {"name": receiver.name, "kind": receiver.kind, "state": _state(standing)}
    return about | (dataclasses.asdict(standing) if standing else {})


def _cells(receiver: ReceiverConfig, standing: Standing | None) -> list[Cell]:
    about = [receiver.name, receiver.kind, _state(standing)]
    if standing is None:
        return [*about, "0", "0", "0", "", "", ""]
    counts = [f"{one:,}" for one in (standing.waiting, standing.told, standing.lost)]
    return [
        *about,
        *counts,
        show_time(_moment(standing.success_ms)),
        show_time(_moment(standing.failure_ms)),
        standing.failure if standing.failures else "",
    ]


def _moment(time_ms: int | None) -> datetime | None:
    return None if time_ms is None else datetime.fromtimestamp(time_ms / 1000, UTC)
