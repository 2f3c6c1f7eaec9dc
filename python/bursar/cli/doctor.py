"""`bursar check` and `bursar doctor`: is the configuration right, is the store whole."""

import json
import sys
from pathlib import Path
from typing import Any, Final

import click

from bursar.cli._output import echo_table, safe
from bursar.cli._shared import EXIT_ERROR, json_option
from bursar.daemon.config import Config, load_config
from bursar.units import format_amount

_COLUMNS: Final = ("accounts", "unit", "period", "limit", "thresholds")
_KNOWN: Final = frozenset({"ok", "table_row", "message"})


@click.command(short_help="Validate a configuration file.")
@click.argument("config", type=click.Path(path_type=Path))
@json_option
def check(config: Path, *, as_json: bool) -> None:
    """Validate the configuration CONFIG and show what it means."""
    loaded = load_config(config)
    if as_json:
        click.echo(json.dumps(json.loads(loaded.to_core_json()), indent=2))
        return
    for line in summary(loaded):
        click.echo(line)
    echo_table(_COLUMNS, _rows(loaded))


def summary(config: Config) -> list[str]:
    """What a configuration means, in a few lines."""
    server, store = config.server, config.store
    listeners = [f"unix:{server.socket} (mode {server.socket_mode})"] if server.socket else []
    listeners += [server.tcp] if server.tcp else []
    models = len(config.rates.models)
    unpriced = "used at no cost" if config.rates.allow_unpriced else "refused"
    where = f"{store.path}, durability {store.durability}" if store.path else "memory only"
    return [
        "the configuration is valid",
        f"listens on: {', '.join(listeners)}",
        f"store: {where}",
        f"rate card: {models:,} with a price; a model without a price is {unpriced}",
    ]


def _rows(config: Config) -> list[list[str]]:
    rows = []
    for pattern in config.accounts:
        for budget in pattern.budgets:
            shares = [f"{one.verdict} at {one.percent:g}%" for one in budget.thresholds]
            limit = format_amount(budget.unit, budget.limit)
            rows.append([pattern.path, budget.unit, budget.period, limit, ", ".join(shares)])
        if not pattern.budgets:
            rows.append([pattern.path, "", "", "", "no budgets of their own"])
    return rows


@click.command(short_help="Examine a store at rest.")
@click.argument("store", type=click.Path(exists=True, path_type=Path))
@json_option
def doctor(store: Path, *, as_json: bool) -> None:
    """Examine the store STORE at rest: what recovery would find and do. Changes nothing.

    Exits with 1 when the store is damaged.
    """
    from bursar import _core

    report: dict[str, Any] = json.loads(_core.check_store(str(store)))
    if as_json:
        click.echo(json.dumps(report, indent=2))
    else:
        click.echo(f"{store}: {'whole' if report['ok'] else 'DAMAGED'}")
        click.echo(safe(str(report.get("message", ""))))
        click.echo(f"recovery: {safe(str(report.get('table_row', '')))}")
        for key in sorted(set(report) - _KNOWN):
            click.echo(f"{key.replace('_', ' ')}: {safe(str(report[key]))}")
    if not report["ok"]:
        sys.exit(EXIT_ERROR)
