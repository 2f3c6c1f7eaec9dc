"""`bursar run`: a command under an account's budgets."""

import contextlib
import re
import sys
from pathlib import Path
from typing import Any, Final

import click

from bursar.cli._output import say
from bursar.cli._shared import in_base_unit, target_option
from bursar.cli._words import in_words
from bursar.units import UNITS, parse_amount, parse_duration_ms

NAME_CHARACTERS_MAX: Final = 64
_NAME: Final = re.compile(rf"[A-Za-z0-9._-]{{1,{NAME_CHARACTERS_MAX}}}")
_FOREIGN: Final = re.compile(r"[^A-Za-z0-9._-]")
_MS_PER_S: Final = 1000

_EXIT_CODES_HELP: Final = (
    "\b\nExit codes:\n"
    "  the command's own, or 128+n where signal n ended it; but where it was not run:\n"
    "  2    wrong usage\n"
    "  3    refused: over budget, frozen or not allowed\n"
    "  4    the sidecar is unavailable\n"
    "  5    no such account\n"
    "  126  the command cannot be executed\n"
    "  127  there is no such command\n"
)


class Limit(click.ParamType[tuple[str, int]]):
    """A limit as UNIT=AMOUNT; "usd" stands for usd_nanos in dollars."""

    name = "limit"

    def convert(
        self,
        value: Any,  # noqa: ANN401 -- as click declares it
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> tuple[str, int]:
        """Reads the limit."""
        unit, _, amount = str(value).partition("=")
        try:
            base, amount = in_base_unit(unit, amount)
            return base, parse_amount(base, amount)
        except ValueError as error:
            if unit == "usd":
                self.fail(f"{value!r} is no limit: write dollars such as usd=5 or usd=0.25")
            self.fail(f"{value!r} is no limit: {error}", param, ctx)


class UnitAmount(click.ParamType[int]):
    """An amount of one unit."""

    name = "amount"

    def __init__(self, unit: str) -> None:
        self._unit = unit

    def convert(
        self,
        value: Any,  # noqa: ANN401 -- as click declares it
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> int:
        """Reads the amount."""
        try:
            return parse_amount(self._unit, value)
        except ValueError as error:
            self.fail(f"{value!r} is no amount: {error}", param, ctx)


class Duration(click.ParamType[float]):
    """A duration with its suffix."""

    name = "duration"

    def convert(
        self,
        value: Any,  # noqa: ANN401 -- as click declares it
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> float:
        """Reads the duration; seconds."""
        try:
            return parse_duration_ms(str(value)) / _MS_PER_S
        except ValueError as error:
            self.fail(f"{value!r} is no duration: {error}", param, ctx)


def _check_name(_: click.Context, __: click.Parameter, name: str | None) -> str | None:
    if name is not None and not _NAME.fullmatch(name):
        raise click.BadParameter(f"write 1 to {NAME_CHARACTERS_MAX} letters, digits and ._-")
    return name


def _limits(
    pairs: tuple[tuple[str, int], ...], vram: int | None, gpu_time: int | None
) -> dict[str, int]:
    given = list(pairs)
    given += [("vram_bytes", vram)] if vram is not None else []
    given += [("gpu_ms", gpu_time)] if gpu_time is not None else []
    limits = dict(given)
    if len(limits) < len(given):
        raise click.UsageError("a unit has one limit; one is given twice")
    return limits


def _name_of(command: str) -> str:
    return _FOREIGN.sub("-", Path(command).name)[:NAME_CHARACTERS_MAX] or "job"


@click.command(
    short_help="Run a command under an account's budgets.",
    context_settings={"allow_interspersed_args": False},
    epilog=_EXIT_CODES_HELP,
)
@click.option("--account", required=True, envvar="BURSAR_ACCOUNT", help="The account that pays.")
@click.option("--name", callback=_check_name, help="What people call it.  [default: the command]")
@click.option(
    "--limit",
    "limits",
    type=Limit(),
    multiple=True,
    metavar="UNIT=AMOUNT",
    help=f"A limit of this run alone, such as usd=5; of {', '.join(sorted(UNITS))}.",
)
@click.option(
    "--vram", type=UnitAmount("vram_bytes"), help='Its VRAM, such as "8GiB"; held for it.'
)
@click.option("--gpu-time", type=UnitAmount("gpu_ms"), help='Its GPU time, such as "15m".')
@click.option("--wall", type=Duration(), help='How long it may run, such as "1h".')
@click.option("--grace", type=Duration(), help='From SIGTERM to SIGKILL, such as "10s".')
@click.option("--observe", is_flag=True, help="Stop it only where the sidecar's mode says so.")
@click.option("--no-cgroup", is_flag=True, help="Do not try to make a cgroup for it.")
@target_option
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def run(
    command: tuple[str, ...],
    *,
    account: str,
    name: str | None,
    limits: tuple[tuple[str, int], ...],
    vram: int | None,
    gpu_time: int | None,
    wall: float | None,
    grace: float | None,
    observe: bool,
    no_cgroup: bool,
    target: str | None,
) -> None:
    """Run COMMAND as a job of an account: it is stopped at a hard limit, with all that it starts.

    The command finds the account in BURSAR_ACCOUNT, the sidecar in BURSAR_TARGET and its job in
    BURSAR_JOB. It gets BURSAR_TOKEN and the client certificate of BURSAR_TLS_CERTIFICATE only where
    they are an agent's. Where the sidecar refuses or does not answer, nothing runs.
    """
    from bursar._grpc import resolve_target
    from bursar.watchdog import launch

    order = launch.Order(
        command=command,
        account=account,
        name=name or _name_of(command[0]),
        limits=_limits(limits, vram, gpu_time),
        wall_limit_s=wall,
        term_grace_s=grace,
        enforce=not observe,
        use_cgroup=not no_cgroup,
    )
    sys.exit(launch.run(order, target=resolve_target(target), say=_say, in_words=in_words))


def _say(line: str) -> None:
    with contextlib.suppress(OSError):  # that nobody listens must not end the wait for the job
        say(line)
