"""The command line: `bursar`.

Commands talk to the sidecar through the same client that agents use. `_shared` holds the exit codes
and common options, `_output` how things are shown; each other module holds one group of commands.
"""

import click

from bursar import __version__
from bursar.cli import (
    accounts,
    backup,
    calibrate,
    demo,
    doctor,
    gpu,
    health,
    incidents,
    kill,
    log,
    notify,
    proxy,
    run,
    serve,
    token,
    top,
    watch,
)
from bursar.cli._shared import EXIT_CODES_HELP, BursarGroup

__all__ = ["cli", "main"]


@click.group(
    cls=BursarGroup,
    epilog=EXIT_CODES_HELP,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="bursar")
def cli() -> None:
    """Hard compute budgets for AI agents: tokens, money, GPU time, VRAM."""


cli.add_command(serve.serve)
cli.add_command(proxy.proxy)
cli.add_command(run.run)
cli.add_command(accounts.account)
cli.add_command(log.log)
cli.add_command(watch.watch)
cli.add_command(top.top)
cli.add_command(notify.notify)
cli.add_command(calibrate.calibrate)
cli.add_command(gpu.gpu)
cli.add_command(kill.kill)
cli.add_command(incidents.incidents)
cli.add_command(token.token)
cli.add_command(token.whoami)
cli.add_command(health.health)
cli.add_command(doctor.check)
cli.add_command(doctor.doctor)
cli.add_command(backup.backup)
cli.add_command(backup.restore)
cli.add_command(demo.demo)


def main() -> None:
    """Runs the command line and exits with one of the documented codes."""
    cli(prog_name="bursar")
