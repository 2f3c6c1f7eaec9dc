"""`bursar serve`: runs the sidecar in the foreground."""

from pathlib import Path

import click

from bursar._log import say_json, tell_crashes
from bursar.cli._output import say
from bursar.cli._shared import config_option, fail
from bursar.daemon.config import load_config
from bursar.daemon.serve import run
from bursar.exceptions import BursarError


@click.command(short_help="Run the sidecar.")
@config_option
@click.option("--socket", type=click.Path(path_type=Path), help="Listen on this Unix socket.")
@click.option("--store", type=click.Path(path_type=Path), help="Keep the ledger in this file.")
def serve(config_path: Path, *, socket: Path | None, store: Path | None) -> None:
    """Run the sidecar until SIGTERM or SIGINT, then drain: finish calls, flush the store.

    Holds are kept: after a restart they are there again.
    """
    config = load_config(config_path).with_overrides(socket=socket, store=store)
    if config.log.format == "text":
        run(config, say=say)
        return
    tell_crashes(say_json)
    try:
        run(config, say=say_json)
    except BursarError as error:
        fail(error, say=say_json)
