"""`bursar top`: the accounts, live, on a terminal.

- `_tree`, `_draw`: which lines there are and what they say; pure.
- `_feed`: the threads that read the sidecar.
- `_accounts`, `_panels`, `_dialogs`, `_app`: the screen; they need Textual, of the extra `top`.

This module is the command; it loads the others when it runs.
"""

import importlib.util
import os
import sys
from typing import Final

import click

from bursar.cli._shared import connect, target_option

_DRAWS_S: Final = 0.5
_LIGHT_GROUNDS: Final = frozenset({"7", "15"})


@click.command(short_help="Watch all accounts live, on a terminal.")
@click.argument("account", default="")
@click.option(
    "--interval",
    type=click.FloatRange(0.1, 60),
    default=_DRAWS_S,
    show_default=True,
    help="Seconds between two draws.",
)
@click.option("--light/--dark", default=None, help="For a light or a dark terminal.")
@target_option
def top(account: str, *, interval: float, light: bool | None, target: str | None) -> None:
    """Show ACCOUNT and those below it, or all: what is spent and held, how fast, until when.

    Entries, incidents and GPUs as well; ? shows the keys. Operators freeze accounts and change
    limits, and are asked before anything happens. With NO_COLOR it does without colours.
    """
    if importlib.util.find_spec("textual") is None:
        raise click.UsageError("bursar top needs Textual: pip install 'bursar-sidecar[top]'")
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise click.UsageError("bursar top needs a terminal; bursar watch writes lines")
    from bursar._grpc import resolve_target
    from bursar.cli.top._app import TopApp

    with connect(target) as client:
        # Who gets no answer, or asks for what is not there, hears it as from every command.
        client.who_am_i()
        if account:
            client.get_account(account)
        app = TopApp(
            client,
            account,
            target=resolve_target(target),
            interval_s=interval,
            light=_is_light() if light is None else light,
        )
        app.run()


def _is_light() -> bool:
    """What the terminal says of its background, where it says so."""
    return os.environ.get("COLORFGBG", "").rpartition(";")[2] in _LIGHT_GROUNDS
