"""`bursar watch`: a line for each change of one account, for scripts. Only reads."""

import contextlib
import json
import os
import select
import stat
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any, Final

import click

import bursar
from bursar.cli._follow import Away, Snapshot, follow
from bursar.cli._output import plain, safe, say, share, show_time
from bursar.cli._shared import connect, fail, json_option, target_option
from bursar.exceptions import AccountNotFound, BursarError, InvalidRequest
from bursar.forecast import Burn, exhausted_in_s, resets_in_s
from bursar.models import Account, AccountChanges, Balance, Verdict
from bursar.units import UNITS, format_amount, parse_duration_ms, show_duration

EXIT_INTERRUPTED: Final = 130
EXIT_PIPE: Final = 141

_INTERVAL_MS_MIN: Final = 50
_INTERVAL_MS_MAX: Final = 60_000
_GONE_POLL_MS: Final = 500
_UNTIL: Final = {
    "warn": Verdict.WARN,
    "degrade": Verdict.DEGRADE,
    "stop": Verdict.STOP,
}
_CODES: Final = (
    "\b\nExit codes, beside those of `bursar --help`:\n"
    "  0    what --until names is reached\n"
    "  2    there is no budget that --until exhausted could wait for\n"
    "  4    the sidecar was away for longer than --wait\n"
    "  5    there is no such account, or it has retired\n"
    "  130  Ctrl-C\n"
    "  141  who read the lines is gone\n"
)


class Duration(click.ParamType[int]):
    """A duration as people write it, in milliseconds."""

    name = "duration"

    def __init__(self, least_ms: int = 0, most_ms: int | None = None) -> None:
        self._least_ms, self._most_ms = least_ms, most_ms

    def convert(
        self,
        value: Any,  # noqa: ANN401 -- as click declares it
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> int:
        """Reads the duration."""
        try:
            read = value if isinstance(value, int) else parse_duration_ms(value)
        except ValueError as error:
            self.fail(f"{value!r} is no duration: {error}", param, ctx)
        if read < self._least_ms or (self._most_ms is not None and read > self._most_ms):
            self.fail(
                f"{value!r} is not from {show_duration(self._least_ms)} to "
                f"{show_duration(self._most_ms or 0)}",
                param,
                ctx,
            )
        return read


@click.command(short_help="Write a line for each change of an account.", epilog=_CODES)
@click.argument("account")
@click.option("--unit", type=click.Choice(sorted(UNITS)), help="Only budgets of this unit.")
@click.option(
    "--until",
    type=click.Choice([*_UNTIL, "exhausted"]),
    help="End with 0 when the verdict is that or worse, or as soon as a budget has nothing left.",
)
@click.option(
    "--interval",
    type=Duration(_INTERVAL_MS_MIN, _INTERVAL_MS_MAX),
    default="250ms",
    show_default=True,
    help="The least time between two looks.",
)
@click.option(
    "--wait",
    type=Duration(),
    default="30s",
    show_default=True,
    help="How long the sidecar may be away, each time; 0s: not at all.",
)
@json_option
@target_option
def watch(
    account: str,
    *,
    unit: str | None,
    until: str | None,
    interval: int,
    wait: int,
    as_json: bool,
    target: str | None,
) -> None:
    """Write ACCOUNT's budgets as they are, a line each, and a line whenever one changes.

    The verdict is the account's: of all its budgets and its ancestors'. With --json every line is
    an object, with integers in base units.
    """
    reader = _Reader(unit, until)
    is_away = False
    with connect(target) as client, _hung_up_with_the_reader(client) as gone:
        try:
            for event in follow(client, account, min_interval_s=interval / 1000):
                if isinstance(event, Away):
                    _wait_or_fail(event, wait)
                    is_away = True
                    continue
                if is_away:
                    say("the sidecar is back")
                    is_away = False
                for line in reader.read(account, event):
                    click.echo(json.dumps(plain(line)) if as_json else _words(line, unit))
                sys.stdout.flush()
                if reader.reached:
                    return
        except KeyboardInterrupt:
            sys.exit(EXIT_INTERRUPTED)
        except (BrokenPipeError, BursarError) as error:
            if isinstance(error, BursarError) and not gone.is_set():
                raise
            # What is buffered has nowhere to go, and the interpreter would complain at its end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(EXIT_PIPE)


def _wait_or_fail(away: Away, wait_ms: int) -> None:
    if away.for_s * 1000 >= wait_ms:
        fail(away.error)
    if away.for_s == 0:
        say(f"{away.error}; waiting")


@contextlib.contextmanager
def _hung_up_with_the_reader(client: bursar.Client) -> Iterator[threading.Event]:
    """Hangs up when nobody reads the pipe any more, also while nothing changes."""
    gone, over = threading.Event(), threading.Event()

    def look() -> None:
        poller = select.poll()
        poller.register(sys.stdout.fileno(), 0)  # errors are told in any case
        while not over.is_set():
            if poller.poll(_GONE_POLL_MS):
                gone.set()
                client.close()
                return

    with contextlib.suppress(OSError, ValueError):  # without a descriptor there is no pipe
        if stat.S_ISFIFO(os.fstat(sys.stdout.fileno()).st_mode):
            threading.Thread(target=look, daemon=True).start()
    try:
        yield gone
    finally:
        over.set()


class _Reader:
    """What was written last of each budget, and so what is new."""

    def __init__(self, unit: str | None, until: str | None) -> None:
        self._unit = unit
        self._until = until
        self._written: dict[tuple[str, str], object] = {}
        self._burns: dict[tuple[str, str], Burn] = {}
        self.reached = False

    def read(self, path: str, event: Snapshot | AccountChanges) -> list[dict[str, object]]:
        """The lines that the event is worth; raises where it is gone or can never end."""
        changes = event.changes if isinstance(event, Snapshot) else event
        found = next((one for one in changes.accounts if one.path == path), None)
        if path in changes.retired:
            raise AccountNotFound(f"{safe(path)} has retired")
        if found is None:
            if isinstance(event, Snapshot):
                raise AccountNotFound(f"there is no account {safe(path)}")
            return []
        balances = [one for one in found.balances if self._unit in {None, one.unit}]
        if self._until == "exhausted" and not balances and isinstance(event, Snapshot):
            raise InvalidRequest(f"{path} has {_no_budget(self._unit)} that could be exhausted")
        self.reached = self._is_reached(found, balances)
        lines = [self._line(found, one) for one in balances or (None,)]
        return [line for line in lines if line is not None]

    def _is_reached(self, found: Account, balances: Iterable[Balance]) -> bool:
        if self._until is None:
            return False
        # Who is stopped at the exact token has nothing left and overdrew nothing: no worse verdict.
        worse = self._until in _UNTIL and found.verdict >= _UNTIL[self._until]
        return worse or any(one.remaining <= 0 for one in balances)

    def _line(self, found: Account, balance: Balance | None) -> dict[str, object] | None:
        key = (balance.unit, balance.period) if balance else ("", "")
        now = (found.verdict, found.frozen, found.stopped, found.freeze_reason, balance)
        if self._written.get(key) == now:
            return None
        self._written[key] = now
        line = {
            "time": datetime.now(UTC),
            "account": found.path,
            "verdict": found.verdict,
            "frozen": found.frozen,
            "stopped": found.stopped,
            "freeze_reason": found.freeze_reason,
        }
        return line | (self._figures(balance, key) if balance else {})

    def _figures(self, balance: Balance, key: tuple[str, str]) -> dict[str, object]:
        now_s = time.monotonic()
        burn = self._burns.setdefault(key, Burn())
        burn.see(now_s, balance.spent, start=balance.start_time)
        rate = burn.rate_per_s(now_s)
        ends_s = exhausted_in_s(
            left=balance.limit - balance.spent,
            rate_per_s=rate,
            resets_in_s=resets_in_s(balance, now=datetime.now(UTC)),
        )
        return {
            "unit": balance.unit,
            "period": balance.period,
            "limit": balance.limit,
            "spent": balance.spent,
            "held": balance.held,
            "remaining": balance.remaining,
            "reset_time": balance.reset_time,
            "rate_per_s": None if rate is None else round(rate, 3),
            "exhausted_in_s": None if ends_s is None else round(ends_s),
        }


def _no_budget(unit: str | None) -> str:
    return f"no budget in {unit}" if unit else "no budget of its own"


def _words(line: dict[str, Any], wanted: str | None) -> str:
    head = [show_time(line["time"]), line["account"], line["verdict"].name]
    if line["stopped"]:
        head.append("FROZEN")
    if "unit" not in line:
        return safe("  ".join([*head, _no_budget(wanted)]))
    unit, limit = line["unit"], line["limit"]
    amounts = [f"{name} {format_amount(unit, line[name])}" for name in ("held", "remaining")]
    spent = f"spent {format_amount(unit, line['spent'])} of {format_amount(unit, limit)}"
    used = share(line["spent"] + line["held"], limit)
    words = [*head, f"{unit}/{line['period']}", spent, *amounts, used, *_pace(line)]
    return safe("  ".join(words))


def _pace(line: dict[str, Any]) -> list[str]:
    from bursar.cli.top._draw import rate, show_seconds

    burns, ends_s = rate(line["unit"], line["rate_per_s"]), line["exhausted_in_s"]
    if burns in {"", "idle"}:
        return []
    return [f"burns {burns}", *([f"empty in {show_seconds(ends_s)}"] if ends_s else [])]
