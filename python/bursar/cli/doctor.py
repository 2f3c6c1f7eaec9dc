"""`bursar check` and `bursar doctor`: is the configuration right, and all else?"""

import json
import sys
from pathlib import Path
from typing import Final

import click

from bursar.care import checks, host
from bursar.care.files import unwritable
from bursar.care.findings import Finding, Outcome
from bursar.cli._output import echo_json, echo_table, plain, safe
from bursar.cli._shared import DEFAULT_CONFIG, EXIT_ERROR, json_option
from bursar.daemon.config import Config, load_config
from bursar.units import format_amount

_COLUMNS: Final = ("accounts", "unit", "period", "limit", "thresholds")


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
    if loaded.accounts:
        echo_table(_COLUMNS, _rows(loaded))
    else:
        click.echo("accounts: none configured; `bursar account set` makes them one by one")


def summary(config: Config) -> list[str]:
    """What a configuration means, in a few lines."""
    server, store = config.server, config.store
    listeners = [f"unix:{server.socket} (mode {server.socket_mode})"] if server.socket else []
    tls = "TLS" if server.tls else "no TLS"
    listeners += [f"{server.tcp} ({tls})"] if server.tcp else []
    models = len(config.rates.models)
    unpriced = "used at no cost" if config.rates.allow_unpriced else "refused"
    told = ", ".join(f"{one.name} ({one.kind})" for one in config.notify.receivers)
    where = f"{store.path}, durability {store.durability}" if store.path else "memory only"
    return [
        "the configuration is valid",
        f"listens on: {', '.join(listeners)}",
        *_guards(config),
        f"store: {where}",
        f"rate card: {models:,} with a price; a model without a price is {unpriced}",
        *_without_prices(config),
        f"tells: {told or 'nobody'}",
    ]


def _without_prices(config: Config) -> list[str]:
    """What is to be said of budgets in money where no model has a price."""
    budgets = (budget for account in config.accounts for budget in account.budgets)
    if config.rates.models or not any(budget.unit == "usd_nanos" for budget in budgets):
        return []
    return ["no model has a price, and budgets in usd_nanos wait for one: set rates.list_prices"]


def _guards(config: Config) -> list[str]:
    """How listeners that others may reach are guarded."""
    lines = []
    beside = (
        ("proxy", config.proxy),
        ("dashboard", config.dashboard),
        ("metrics", config.metrics),
    )
    for name, section in beside:
        if section.listen:
            lines.append(f"{name}: {section.listen} ({'TLS' if section.tls else 'no TLS'})")
    if (tls_section := config.server.tls) is not None:
        from bursar import _core

        try:
            lines.append(f"tls: {_core.describe_tls(tls_section.model_dump_json())}")
        except _core.CoreError as error:
            lines.append(f"tls: NOT AS IT IS HERE: {error.args[0]}")
        lines.append(f"clients' certificates: {tls_section.client_ca or 'not asked for'}")
    known = len(config.access.local) + len(config.access.certificate)
    if config.access.mode == "enforce":
        lines.append(f"access: tokens, and {known} rows of [access]")
    else:
        lines.append("access: open to whoever reaches a listener")
    return lines


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


@click.command(short_help="Examine a sidecar, a store, or this host.")
@click.argument("store", required=False, type=click.Path(exists=True, path_type=Path))
@click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path),
    envvar="BURSAR_CONFIG",
    help=f"Examine the sidecar of this configuration.  [default: {DEFAULT_CONFIG}, if it is there]",
)
@json_option
def doctor(store: Path | None, *, config_path: Path | None, as_json: bool) -> None:
    """Examine a sidecar: its store, sockets, files, clock and host, and what to do about each.

    With STORE, look at that store alone, and say what recovery would find and do. Without it and
    without a configuration, look at what this host lets the watchdog do: GPUs, cgroups, signals.

    It works while the sidecar runs, and changes nothing. Run it as the user, and in the container,
    that the sidecar runs in. Exits with 1 when something is broken.
    """
    if store is not None:
        _examine_store(store, as_json=as_json)
        return
    path = config_path or (Path(DEFAULT_CONFIG) if Path(DEFAULT_CONFIG).is_file() else None)
    found = list(checks.examine_config(path) if path is not None else host.look())
    if as_json:
        echo_json(found)
    else:
        _show(found)
    _exit(found)


def _examine_store(store: Path, *, as_json: bool) -> None:
    report = checks.report_on(store)
    found = list(checks.examine_store(store, report))
    if as_json:
        shown = report | {"unwritable": unwritable(store.parent), "findings": plain(found)}
        click.echo(json.dumps(shown, indent=2))
    else:
        whole = all(one.outcome is not Outcome.BROKEN for one in found)
        click.echo(safe(f"{store}: {'whole' if whole else 'DAMAGED'}"))
        _show(found)
    _exit(found)


def _show(found: list[Finding]) -> None:
    for one in found:
        click.echo(safe(f"{one.outcome:<8} {one.what}: {one.detail}"))
        if one.advice:
            click.echo(safe(f"{'':<8} {one.advice}"))


def _exit(found: list[Finding]) -> None:
    if any(one.outcome is Outcome.BROKEN for one in found):
        sys.exit(EXIT_ERROR)
