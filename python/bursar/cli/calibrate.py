"""`bursar calibrate`: what limits would have done to past runs, and which to take. Only reads."""

import importlib.util
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any, Final

import click

import bursar
from bursar._entry_calls import ENTRIES_PAGE_MAX
from bursar.calibrate.labels import LabelsError, read_labels
from bursar.calibrate.runs import JUDGED, KINDS, By, History, TooMuchHistory, read_runs
from bursar.calibrate.summary import QUANTILES, THRESHOLDS, Question, Summary, summarise
from bursar.calibrate.words import advice, facts, left_out, run_in_words, tables
from bursar.cli._output import echo_json, echo_table, safe
from bursar.cli._shared import (
    Amount,
    Moment,
    PeriodText,
    connect,
    json_option,
    store_option,
    target_option,
)
from bursar.exceptions import ReservationNotFound
from bursar.models import Period, PeriodKind, ReservationState
from bursar.units import CAPACITY_UNITS, UNITS, parse_amount

_TRIED_MAX: Final = {"limits": 64, "quantiles": 64, "thresholds": 4}  # 4: as a budget has


class Percent(click.ParamType[Fraction]):
    """A share in per cent, exact: 1, 0.5 or 99.9%."""

    name = "percent"

    def __init__(self, *, up_to_all: bool = False) -> None:
        self._most = Fraction(1) if up_to_all else Fraction(999_999, 1_000_000)

    def convert(
        self,
        value: Any,  # noqa: ANN401 -- as click declares it
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> Fraction:
        """Reads the share; above 0."""
        if isinstance(value, Fraction):
            return value
        try:
            share = Fraction(Decimal(str(value).strip().removesuffix("%"))) / 100
        except (InvalidOperation, ValueError, OverflowError):
            share = Fraction(0)
        if not Fraction(1, 1_000_000) <= share <= self._most:
            self.fail(f"{value!r} is not a share such as 1% or 99.9%", param, ctx)
        return share


@click.command(short_help="Find limits by replaying what was spent.")
@click.argument("account")
@click.option(
    "--unit",
    is_eager=True,  # --limit is read by it
    type=click.Choice(sorted(set(UNITS) - CAPACITY_UNITS)),
    help="Only this unit.",
)
@click.option(
    "--by",
    type=click.Choice(["reservation", "account"]),
    default="reservation",
    show_default=True,
    help="What a run is: a reservation, which every history has; or an account directly below "
    "ACCOUNT with all below it, which a budget can limit.",
)
@click.option(
    "--period",
    type=PeriodText(),
    default="total",
    show_default=True,
    help="With --by account: each window of it is a run, as for a budget of that period.",
)
@click.option("--since", type=Moment(), help='Runs begun from then on: "2026-05-01", or "2h" ago.')
@click.option("--until", type=Moment(), help="Runs begun before then.")
@click.option(
    "--cut",
    type=Percent(),
    default="1%",
    show_default=True,
    help="The share of runs that the recommended limit may cut: the truncation rate.",
)
@click.option(
    "--degrade",
    type=Percent(),
    default="10%",
    show_default=True,
    help="The share of runs that the recommended threshold may degrade, cut ones included.",
)
@click.option(
    "--limit", "limits", multiple=True, type=Amount(), help="Try this limit. Needs --unit."
)
@click.option(
    "--quantile",
    "quantiles",
    multiple=True,
    type=Percent(up_to_all=True),
    help="Show this quantile, and try it as a limit if there is no --limit.  "
    "[default: 50, 75, 90, 95, 99, 99.9, 100]",
)
@click.option(
    "--degrade-at",
    "thresholds",
    multiple=True,
    type=click.FloatRange(0.1, 100),
    help="Try this threshold, in per cent of each limit.  [default: 80, 90]",
)
@click.option(
    "--labels",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="CSV with the columns reservation (or account) and success: what truncation costs. It "
    "outranks what Commits said.",
)
@click.option(
    "--report",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    help="Write an HTML page with plots. Needs bursar-sidecar[report].",
)
@json_option
@store_option
@target_option
def calibrate(
    account: str,
    *,
    store: Path | None,
    target: str | None,
    report: Path | None,
    as_json: bool,
    **options: Any,  # noqa: ANN401 -- `_question` and `_history` read each
) -> None:
    """Replay the runs of ACCOUNT and those below it against limits, and recommend one.

    A limit here is that of one run. Past runs were held to the limits of their time: those that
    were cut would have spent more.
    """
    question = _question(account, options)
    labels = _labels(options["labels"], question.by)
    if report is not None:
        _require_matplotlib()
    with bursar.open(store) if store else connect(target) as client:
        history = _history(client, question, options)
    summary = summarise(history, question, labels)
    if report is not None:
        from bursar.calibrate.report import page

        report.write_text(page(summary), encoding="utf-8")
    if as_json:
        echo_json(summary.to_json())
    else:
        _show(summary)
    if report is not None:
        click.echo(f"wrote {report}", err=True)


def _question(account: str, options: dict[str, Any]) -> Question:
    """Refuses options that make no sense together, before anything is read."""
    unit, by = options["unit"], By(options["by"])
    if options["limits"] and not unit:
        raise click.UsageError("--limit needs --unit: an amount has a unit")
    if options["period"] != "total" and by is not By.ACCOUNT:
        raise click.UsageError("--period needs --by account: a reservation is not divided")
    if Period.parse(options["period"]).kind is PeriodKind.ROLLING:
        raise click.UsageError("--period cannot be rolling: its windows have no edges")
    for name, most in _TRIED_MAX.items():
        if len(options[name]) > most:
            raise click.UsageError(f"at most {most} {name} can be tried at once")
    thresholds = {round(percent * 10) for percent in options["thresholds"]}
    return Question(
        account=account,
        by=by,
        period=options["period"],
        cut=options["cut"],
        degrade=options["degrade"],
        limits=tuple(sorted({parse_amount(unit, text) for text in options["limits"]})),
        quantiles=tuple(sorted(set(options["quantiles"]))) or QUANTILES,
        thresholds=tuple(sorted(thresholds)) or THRESHOLDS,
    )


def _labels(path: Path | None, by: By) -> dict[str, bool]:
    try:
        return read_labels(path, by) if path else {}
    except LabelsError as error:
        raise click.UsageError(str(error)) from error


def _history(client: bursar.Client, question: Question, options: dict[str, Any]) -> History:
    """Reads all entries: one that began before --since must not be taken for a smaller one."""

    def is_pending(reservation: str) -> bool:
        try:
            found = client.get_reservation(reservation)
        except ReservationNotFound:
            return False
        # One that has spent since its entries were read is one that was open then.
        return found.state is ReservationState.PENDING or any(found.spent.values())

    account, unit = question.account, options["unit"] or ""
    entries = client.list_entries(account, unit=unit, kinds=KINDS, page_size=ENTRIES_PAGE_MAX)
    judged = client.list_entries(account, kinds=JUDGED, page_size=ENTRIES_PAGE_MAX)
    try:
        return read_runs(
            chain(entries, judged),
            account,
            by=question.by,
            period=Period.parse(question.period),
            since=options["since"],
            until=options["until"],
            is_pending=is_pending,
        )
    except TooMuchHistory as error:
        raise click.UsageError(str(error)) from error


def _require_matplotlib() -> None:
    if importlib.util.find_spec("matplotlib") is None:
        raise click.UsageError("--report needs matplotlib: pip install 'bursar-sidecar[report]'")


def _show(summary: Summary) -> None:
    question = summary.question
    click.echo(f"{safe(question.account) or 'all accounts'}: {run_in_words(question)}")
    for line in left_out(summary):
        click.echo(line)
    if not summary.units:
        click.echo("no runs: nothing that has ended held or spent anything")
    for one in summary.units:
        click.echo()
        for line in facts(one):
            click.echo(line)
        for table in tables(one, question):
            click.echo()
            echo_table(table.columns, table.rows)
            click.echo(f"({table.note})")
        click.echo()
        for line in advice(one, question):
            click.echo(line)
