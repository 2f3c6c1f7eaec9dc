"""`bursar demo`: a tour on this machine, in a minute."""

import importlib
import sys

import click


@click.command(short_help="Watch budgets stop agents.")
@click.option("--plain", is_flag=True, help="Plain text, without colours or live tables.")
def demo(*, plain: bool) -> None:
    """Watch budgets stop agents: a sidecar, a few accounts, one overspender."""
    sys.exit(importlib.import_module("bursar.demo.main").run(plain=plain))
