"""`bursar token` and `bursar whoami`: who may do what."""

from datetime import UTC, datetime
from typing import Final

import click

from bursar.access import Role, Token
from bursar.cli._output import echo_json, echo_table, safe
from bursar.cli._shared import connect, json_option, target_option
from bursar.cli.run import Duration

_ROLES: Final = ("agent", "observer", "operator")


@click.group(short_help="Make, list and revoke tokens.")
def token() -> None:
    """Make, list and revoke tokens.

    A token says what its holder may do: an agent spends, an observer reads, an operator changes
    budgets, too; all of them only with the token's account and those below it. Clients show it in
    BURSAR_TOKEN, or to the proxy as their API key.
    """


@token.command(short_help="Make a token.")
@click.argument("name")
@click.option("--role", type=click.Choice(_ROLES), required=True, help="What it allows.")
@click.option("--account", default="", help="This account and those below it.  [default: all]")
@click.option(
    "--expires", type=Duration(), default="90d", show_default=True, help="How long it is good for."
)
@json_option
@target_option
def create(
    name: str, *, role: str, account: str, expires: float, as_json: bool, target: str | None
) -> None:
    """Make a token called NAME. Its secret is shown once, here, and kept nowhere."""
    with connect(target) as client:
        made = client.tokens.create(name, role=Role(role), account=account, ttl_s=expires)
    if as_json:
        echo_json({"token": made.token, "secret": made.secret})
        return
    click.echo(made.secret)
    click.echo(f"id {made.token.id}: {_what(made.token)}, until {_day(made.token)}", err=True)


@token.command("list", short_help="List tokens.")
@click.argument("account", default="")
@json_option
@target_option
def list_(account: str, *, as_json: bool, target: str | None) -> None:
    """List the tokens of ACCOUNT and those below it; of those that ended, the last 1,000."""
    with connect(target) as client:
        tokens = client.tokens.list(account)
    if as_json:
        echo_json(tokens)
        return
    rows = [
        (one.id, one.name, one.role.value, one.account or "all", one.creator, _state(one))
        for one in tokens
    ]
    echo_table(("id", "name", "role", "account", "made by", "state"), rows)


@token.command(short_help="End a token.")
@click.argument("token_id", metavar="ID")
@target_option
def revoke(token_id: str, *, target: str | None) -> None:
    """End the token ID at once: the next call with it fails, and so do streams."""
    with connect(target) as client:
        ended = client.tokens.revoke(token_id)
    click.echo(f"{ended.id} ({safe(ended.name)}) is good for nothing any more")


@click.command(short_help="Who you are to the sidecar.")
@json_option
@target_option
def whoami(*, as_json: bool, target: str | None) -> None:
    """Say who you are to the sidecar, and what you may do."""
    with connect(target) as client:
        principal = client.who_am_i()
    if as_json:
        echo_json(principal)
        return
    until = f", until {principal.expire_time:%Y-%m-%d %H:%M} UTC" if principal.expire_time else ""
    where = principal.account or "all accounts"
    click.echo(f"{safe(principal.name)}: {principal.role.value} of {where}{until}")


def _what(one: Token) -> str:
    return f"{one.role.value} of {one.account or 'all accounts'}"


def _day(one: Token) -> str:
    return f"{one.expire_time:%Y-%m-%d %H:%M} UTC" if one.expire_time else "for ever"


def _state(one: Token) -> str:
    if one.revoke_time is not None:
        return f"revoked {one.revoke_time:%Y-%m-%d}"
    if one.expire_time is not None and one.expire_time <= datetime.now(UTC):
        return f"expired {one.expire_time:%Y-%m-%d}"
    return f"until {_day(one)}"
