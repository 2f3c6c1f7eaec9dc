"""`bursar check` and `bursar doctor`: is the configuration right, the store whole, the host fit."""

import json
import os
import sys
from pathlib import Path
from typing import Any, Final

import click

from bursar.cli._output import echo_json, echo_table, safe
from bursar.cli._shared import EXIT_ERROR, json_option
from bursar.daemon.config import Config, load_config
from bursar.units import format_amount

_DECISIONS: Final = {
    "create": "make a new store",
    "start": "begin a new log",
    "import": "take over what the log has",
    "cut_then_import": "drop the record that was never finished, and take over the rest",
    "keep_database": "go on from the database without the log",
    "refuse": "be refused",
}
_ROOM: Final = 1 << 20  # bytes: with less, a log or a journal soon cannot be written
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
    where = f"{store.path}, durability {store.durability}" if store.path else "memory only"
    return [
        "the configuration is valid",
        f"listens on: {', '.join(listeners)}",
        *_guards(config),
        f"store: {where}",
        f"rate card: {models:,} with a price; a model without a price is {unpriced}",
    ]


def _guards(config: Config) -> list[str]:
    """How listeners that others may reach are guarded."""
    lines = []
    if config.proxy.listen:
        tls = "TLS" if config.proxy.tls else "no TLS"
        lines.append(f"proxy: {config.proxy.listen} ({tls})")
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


@click.command(short_help="Examine this host, or a store at rest.")
@click.argument("store", required=False, type=click.Path(exists=True, path_type=Path))
@json_option
def doctor(store: Path | None, *, as_json: bool) -> None:
    """Examine the store STORE at rest: what recovery would find and do. Changes nothing.

    Without STORE, examine what this host lets the watchdog do: GPUs, cgroups, signals. Run it as
    the user, and in the container, that the sidecar runs in; it needs none.

    Exits with 1 when the store is damaged, or when nothing could be stopped here.
    """
    if store is None:
        _examine_host(as_json=as_json)
        return
    from bursar import _core

    report: dict[str, Any] = json.loads(_core.check_store(str(store)))
    report["unwritable"] = _unwritable(store)
    if as_json:
        click.echo(json.dumps(report, indent=2))
    else:
        for line in _findings(store, report):
            click.echo(safe(line))
    if not report["ok"]:
        sys.exit(EXIT_ERROR)


def _examine_host(*, as_json: bool) -> None:
    from bursar.cli import _host

    found = _host.look()
    if as_json:
        echo_json(found)
    for one in () if as_json else found:
        click.echo(safe(f"{one.outcome:<8} {one.what}: {one.detail}"))
        if one.advice:
            click.echo(safe(f"{'':<8} {one.advice}"))
    if any(one.outcome is _host.Outcome.BROKEN for one in found):
        sys.exit(EXIT_ERROR)


def _unwritable(store: Path) -> str:
    """What keeps everybody from writing beside a store, as far as can be seen without trying."""
    system = os.statvfs(store.parent)
    if system.f_flag & os.ST_RDONLY:
        return "the file system is read-only"
    free_bytes = system.f_bavail * system.f_frsize
    return f"the file system is full: {free_bytes:,} bytes are left" if free_bytes < _ROOM else ""


def _findings(store: Path, report: dict[str, Any]) -> list[str]:
    """What a person wants to know of a diagnosis."""
    lines = [f"{store}: {'whole' if report['ok'] else 'DAMAGED'}"]
    if report["in_use_by"]:
        lines.append(f"in use by process {report['in_use_by']}: what follows may be out of date")
    lines.append(f"recovery: {report['case']}; opening it would {_DECISIONS[report['decision']]}")
    if report["refusal"]:
        lines.append(f"refused: {report['refusal']}")
    if report["unwritable"]:
        told = "nothing is granted, and the watchdog cannot write down whom it stops"
        lines.append(f"{report['unwritable']}: {told}")
    log = report["log"]
    lines.append(f"log: {log['log']}, {len(log['segments'])} segments")
    if log["spot"]:
        lines.append(f"unreadable: {log['spot']}")
    database = report["database"]
    if database is None:
        return [*lines, "database: cannot be read"]
    lines.append(
        f"database: {database['entries']:,} entries, "
        f"{database['holding']:,} reservations that hold, "
        f"{'closed cleanly' if database['clean'] else 'not closed'}"
    )
    lines += [f"damage: {one}" for one in database["damage"]]
    return lines + [f"a window differs from its entries: {one}" for one in database["mismatches"]]
