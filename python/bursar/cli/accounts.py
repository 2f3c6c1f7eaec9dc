"""`bursar account`: set, show, list, reservations, freeze, unfreeze, retire."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

import click

from bursar.cli._output import (
    BALANCE_COLUMNS,
    COUNTS,
    Cell,
    balance_cells,
    echo_json,
    echo_table,
    plain,
    safe,
    thresholds_of,
)
from bursar.cli._shared import Amount, PeriodText, connect, json_option, target_option
from bursar.models import Account, OpenReservation, Threshold, Verdict
from bursar.units import UNITS, show_amount, show_duration


@click.group()
def account() -> None:
    """Read and change accounts and their budgets."""


def _threshold(percent: float | None, verdict: Verdict) -> list[Threshold]:
    return [] if percent is None else [Threshold(round(percent * 10), verdict)]


@account.command("set")
@click.argument("path")
@click.option(
    "--unit",
    required=True,
    is_eager=True,  # --limit is read by it
    type=click.Choice(sorted(UNITS)),
    help="What it counts.",
)
@click.option(
    "--period",
    type=PeriodText(),
    default="total",
    show_default=True,
    help='"total", "hour", "day", "week", "month", "day@Europe/Berlin", "rolling:3600s".',
)
@click.option(
    "--limit",
    type=Amount(),
    required=True,
    help='An integer in the unit\'s base, or such as "25.00 USD", "8 GiB".',
)
@click.option("--warn-at", type=click.FloatRange(0.1, 100), help="Per cent spent that warns.")
@click.option("--degrade-at", type=click.FloatRange(0.1, 100), help="Per cent spent that degrades.")
@json_option
@target_option
def set_(
    path: str,
    *,
    unit: str,
    period: str,
    limit: str,
    warn_at: float | None,
    degrade_at: float | None,
    as_json: bool,
    target: str | None,
) -> None:
    """Set the hard limit and the thresholds of one budget, at once; what is spent stays spent."""
    thresholds = [*_threshold(warn_at, Verdict.WARN), *_threshold(degrade_at, Verdict.DEGRADE)]
    thresholds.sort(key=lambda threshold: threshold.permille)
    with connect(target) as client:
        balance = client.set_budget(
            path, unit=unit, limit=limit, period=period, thresholds=thresholds
        )
    if as_json:
        echo_json(balance)
    else:
        echo_table(BALANCE_COLUMNS, [balance_cells(balance)])


@account.command()
@click.argument("path")
@json_option
@target_option
def show(path: str, *, as_json: bool, target: str | None) -> None:
    """Show one account with its budgets."""
    with connect(target) as client:
        found = client.get_account(path)
    if as_json:
        echo_json(found)
        return
    _echo_account(found)
    if not found.balances:
        click.echo("budgets: none of its own")
        return
    rows = [
        [*balance_cells(balance), thresholds_of(found.budgets, balance)]
        for balance in found.balances
    ]
    echo_table((*BALANCE_COLUMNS, "thresholds"), rows)


def _echo_account(found: Account) -> None:
    click.echo(f"{found.path}: {found.verdict.name}, {_state(found)}")
    click.echo(f"pending reservations: {found.open_reservation_count:,}")
    if found.create_time:
        click.echo(f"created: {found.create_time.isoformat(sep=' ', timespec='seconds')}")


def _state(found: Account) -> str:
    if found.frozen:
        return f"frozen ({safe(found.freeze_reason)})" if found.freeze_reason else "frozen"
    return "stopped by an ancestor's freeze" if found.stopped else "active"


@account.command("list")
@click.argument("path", default="")
@json_option
@target_option
def list_(path: str, *, as_json: bool, target: str | None) -> None:
    """List the accounts at PATH and below it, or all of them."""
    with connect(target) as client:
        found = list(client.list_accounts(path))
    if as_json:
        echo_json([_without_budgets(one) for one in found])
        return
    rows = []
    for one in found:
        head = [one.path, one.verdict.name, "yes" if one.stopped else "", _count(one)]
        cells = [balance_cells(balance) for balance in one.balances]
        rows += [[*head, *row] for row in cells or [[""] * len(BALANCE_COLUMNS)]]
    echo_table(("account", "verdict", "frozen", "open", *BALANCE_COLUMNS), rows)


def _without_budgets(one: Account) -> dict[str, object]:
    """Only `get_account` reads budgets; elsewhere an empty list would say that there are none."""
    return {key: value for key, value in plain(one).items() if key != "budgets"}


def _count(one: Account) -> str:
    return f"{one.open_reservation_count:,}"


RESERVATION_COLUMNS: Final = (
    "account", "held", "used", "by", "open for", "expires in", "model", "reservation",
)  # fmt: skip


@account.command()
@click.argument("path", default="")
@json_option
@target_option
def reservations(path: str, *, as_json: bool, target: str | None) -> None:
    """List what is open at PATH and below it, at most 1000: leases first, then the newest."""
    with connect(target) as client:
        found = client.list_reservations(path)
    if as_json:
        echo_json([{**plain(one.reservation), "debiting": one.debiting} for one in found])
        return
    now = datetime.now(UTC)
    echo_table(RESERVATION_COLUMNS, [reservation_cells(one, now) for one in found])


def reservation_cells(one: OpenReservation, now: datetime) -> list[Cell]:
    """The cells of `RESERVATION_COLUMNS`."""
    held = one.reservation

    def amounts(found: Mapping[str, int]) -> str:
        shown = ((unit, show_amount(unit, amount)) for unit, amount in found.items())
        return ", ".join(f"{one} {unit}" if unit in COUNTS else one for unit, one in shown)

    def lasting(since: datetime | None, until: datetime | None) -> str:
        seconds = round((until - since).total_seconds()) if since and until else 0
        return show_duration(max(0, seconds) * 1000)

    times = lasting(held.create_time, now), lasting(now, held.expire_time)
    by = one.debiting.value
    return [
        held.account,
        amounts(held.granted),
        amounts(held.used),
        by,
        *times,
        held.model,
        held.id,
    ]


@account.command()
@click.argument("path")
@click.option("--reason", default="", help="Why, for those who find it frozen.")
@json_option
@target_option
def freeze(path: str, *, reason: str, as_json: bool, target: str | None) -> None:
    """Stop an account and everything below it, at once."""
    with connect(target) as client:
        _echo_change(client.freeze(path, reason=reason), as_json=as_json)


@account.command()
@click.argument("path")
@json_option
@target_option
def unfreeze(path: str, *, as_json: bool, target: str | None) -> None:
    """End a freeze; an ancestor's freeze still holds."""
    with connect(target) as client:
        _echo_change(client.unfreeze(path), as_json=as_json)


@account.command()
@click.argument("path")
@json_option
@target_option
def retire(path: str, *, as_json: bool, target: str | None) -> None:
    """Take an account with its budgets out of use; its history stays."""
    with connect(target) as client:
        client.retire_account(path)
    if as_json:
        echo_json({"retired": path})
    else:
        click.echo(f"{safe(path)} has retired")


def _echo_change(found: Account, *, as_json: bool) -> None:
    if as_json:
        echo_json(_without_budgets(found))
    else:
        _echo_account(found)
