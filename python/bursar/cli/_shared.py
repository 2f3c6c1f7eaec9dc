"""What all commands share: exit codes, the options --target and --json, and readers of options."""

import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar

import click

import bursar
from bursar._log import Say
from bursar.cli._output import say
from bursar.daemon.config import ConfigError
from bursar.exceptions import (
    AccessError,
    AccountFrozen,
    AccountNotFound,
    BudgetExceeded,
    BursarError,
    InvalidRequest,
    ProcessNotFound,
    ReservationNotFound,
    SidecarTimeout,
    SidecarUnavailable,
    StoreUnavailable,
    TokenNotFound,
    WatchdogUnavailable,
)
from bursar.models import Period
from bursar.units import UNITS, parse_amount, parse_duration_ms

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_CONFIG: Final = "/etc/bursar/bursar.toml"

EXIT_ERROR: Final = 1
EXIT_USAGE: Final = 2
EXIT_REFUSED: Final = 3
EXIT_UNAVAILABLE: Final = 4
EXIT_NOT_FOUND: Final = 5
EXIT_INTERRUPTED: Final = 130  # as shells say it: 128 and SIGINT

EXIT_CODES_HELP: Final = (
    "\b\nExit codes:\n"
    "  0  done\n"
    "  1  something else went wrong\n"
    "  2  wrong usage or wrong configuration\n"
    "  3  refused: over budget, frozen or not allowed\n"
    "  4  the sidecar, its store or its watchdog is unavailable\n"
    "  5  no such account, reservation, job, process or token\n"
    "  130  interrupted\n"
)

_EXIT_CODES: Final[tuple[tuple[type[BursarError], int], ...]] = (
    (ConfigError, EXIT_USAGE),
    (InvalidRequest, EXIT_USAGE),
    (BudgetExceeded, EXIT_REFUSED),
    (AccountFrozen, EXIT_REFUSED),
    (SidecarUnavailable, EXIT_UNAVAILABLE),
    (SidecarTimeout, EXIT_UNAVAILABLE),
    (StoreUnavailable, EXIT_UNAVAILABLE),
    (WatchdogUnavailable, EXIT_UNAVAILABLE),
    (AccountNotFound, EXIT_NOT_FOUND),
    (ReservationNotFound, EXIT_NOT_FOUND),
    (ProcessNotFound, EXIT_NOT_FOUND),
    (TokenNotFound, EXIT_NOT_FOUND),
    (AccessError, EXIT_REFUSED),
)
_CLI_ATTEMPTS: Final = 2  # a person waits; an agent's patience would only look like a hang


def exit_code(error: BursarError) -> int:
    """The exit code that an error ends the command with."""
    return next((code for kind, code in _EXIT_CODES if isinstance(error, kind)), EXIT_ERROR)


def fail(error: BursarError, *, say: Say = say) -> NoReturn:
    """Says on stderr what went wrong and exits with its code."""
    for line in str(error).splitlines() or [type(error).__name__]:
        say(line, level="error", event="failed")
    sys.exit(exit_code(error))


class BursarGroup(click.Group):
    """A group that turns Bursar's errors into a line on stderr and a code, SIGINT into a code."""

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401 -- as click declares it
        """Runs the command."""
        try:
            return super().invoke(ctx)
        except BursarError as error:
            fail(error)
        except KeyboardInterrupt:
            sys.exit(EXIT_INTERRUPTED)


def target_option(function: F) -> F:
    """Adds --target."""
    return click.option(
        "--target",
        envvar="BURSAR_TARGET",
        metavar="TARGET",
        help='The sidecar: "unix:/path", a socket path, or "host:port".  '
        "[default: unix:/run/bursar/bursar.sock]",
    )(function)


def config_option(function: F) -> F:
    """Adds --config, for commands that look at what the sidecar is configured to use."""
    return click.option(
        "--config",
        "config_path",
        type=click.Path(path_type=Path),
        default=DEFAULT_CONFIG,
        show_default=True,
        envvar="BURSAR_CONFIG",
        help="The configuration.",
    )(function)


def store_option(function: F) -> F:
    """Adds --store, for commands that can do without a sidecar."""
    return click.option(
        "--store",
        type=click.Path(exists=True, path_type=Path),
        help="Read this store itself; no sidecar may have it open.",
    )(function)


def json_option(function: F) -> F:
    """Adds --json."""
    return click.option(
        "--json", "as_json", is_flag=True, help="Write JSON: integers in base units."
    )(function)


def in_base_unit(unit: str, amount: str) -> tuple[str, str]:
    """A unit and an amount as `parse_amount` takes them; "usd" is short for dollars."""
    return ("usd_nanos", f"{amount} USD") if unit == "usd" else (unit, amount)


def connect(target: str | None) -> bursar.Client:
    """Makes the client of a command."""
    return bursar.connect(target, attempts=_CLI_ATTEMPTS)


class Amount(click.ParamType[str]):
    """An amount of the unit that --unit names; the SDK reads it, this only says what is wrong."""

    name = "amount"

    def convert(
        self,
        value: Any,  # noqa: ANN401 -- as click declares it
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> str:
        """Checks the amount; where --unit is wrong too, that is told instead."""
        unit = str(ctx.params.get("unit", "")) if ctx else ""
        try:
            parse_amount(unit, value)
        except ValueError as error:
            if unit in UNITS:
                self.fail(f"{value!r} is no amount: {error}", param, ctx)
        return str(value)


class PeriodText(click.ParamType[str]):
    """A period as the configuration writes it."""

    name = "period"

    def convert(
        self,
        value: Any,  # noqa: ANN401 -- as click declares it
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> str:
        """Checks the period."""
        try:
            Period.parse(value)
        except ValueError as error:
            self.fail(f"{value!r} is no period: {error}", param, ctx)
        return str(value)


class Moment(click.ParamType[datetime]):
    """A moment: an ISO 8601 time (without a zone: local time), or how long ago, as in 2h."""

    name = "time"

    def convert(
        self,
        value: Any,  # noqa: ANN401 -- as click declares it
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> datetime:
        """Reads the moment; always aware."""
        if isinstance(value, datetime):
            return value
        try:
            return datetime.now(UTC) - timedelta(milliseconds=parse_duration_ms(value))
        except ValueError:
            pass
        try:
            return datetime.fromisoformat(value).astimezone()
        except ValueError:
            right = "a time like 2026-05-01T12:00 or an age like 2h"
            self.fail(f"{value!r} is not {right}", param, ctx)
