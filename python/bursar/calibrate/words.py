"""A calibration in words and tables, the same for the command line and for the page. Pure."""

from fractions import Fraction
from typing import Final, NamedTuple

from bursar.calibrate.replay import Outcome, Quality, Recommendation
from bursar.calibrate.runs import By
from bursar.calibrate.summary import Question, Summary, UnitSummary
from bursar.units import format_amount

__all__ = ["Table", "advice", "facts", "left_out", "run_in_words", "show_share", "tables"]

_QUANTILES: Final = ("quantile", "spent", "claimed", "unused")
_OUTCOMES: Final = (
    *("limit", "cut", "saved", "degraded", "overshoot", "checked late", "refused", "falsely"),
)
_ALL: Final = 100
_QUALITY: Final = ("limit", "success", "good cut", "bad cut", "saved on bad")


class Table(NamedTuple):
    """A table, and a line on what its columns mean."""

    columns: tuple[str, ...]
    rows: list[list[str]]
    note: str


def run_in_words(question: Question) -> str:
    """What a run is."""
    if question.by is By.RESERVATION:
        return "a run is one reservation"
    window = "" if question.period == "total" else f", in one window of {question.period}"
    return f"a run is an account directly below, with all below it{window}"


def left_out(summary: Summary) -> list[str]:
    """What was not replayed, a line each."""
    lines = []
    if summary.open_calls:
        lines.append(f"left out: {_count(summary.open_calls, 'reservation')} not yet ended")
    if summary.calls_without_hold and summary.question.by is By.RESERVATION:
        count = _count(summary.calls_without_hold, "reservation")
        lines.append(f"left out: {count} without a hold: recorded, or older than the store keeps")
    if summary.unmatched_labels:
        lines.append(f"left out: {_count(summary.unmatched_labels, 'label')} of no run")
    return lines


def facts(one: UnitSummary) -> list[str]:
    """What the runs of a unit have come to, a line each."""
    replay = one.replay
    lines = [f"{one.unit}: {_count(len(replay.spent), 'run')} spent {_amount(one, replay.total)}"]
    if replay.exhausted:
        lines.append(
            f"{replay.exhausted:,} spent all that they held: they may have been cut, and what they "
            "needed is not known"
        )
    if replay.overdrawn:
        over = _amount(one, replay.overdraft)
        lines.append(f"{replay.overdrawn:,} overdrew a limit of their time, by {over} in all")
    if replay.labelled:
        lines.append(f"{replay.labelled:,} are labelled")
    return lines


def advice(one: UnitSummary, question: Question) -> list[str]:
    """The recommendation, a line each; none where there are no runs."""
    found = one.recommendation
    if found is None:
        return []
    expected, deviation = show_share(found.expected_cut), show_share(Fraction(found.deviation))
    lines = [
        f"recommended limit of a run: {_amount(one, found.limit)}",
        f"it cuts {expected} of new runs of this kind or fewer, give or take {deviation}",
    ]
    if not found.reachable:
        needed = f"{found.runs_needed:,}"
        lines.append(
            "that is the most that a run spent, for there are too few: "
            f"to promise {show_share(question.cut)} takes {needed}"
        )
    lines.append(_threshold(found, question))
    if found.outcome.quality:
        quality = found.outcome.quality
        before, after = show_share(quality.success_before), show_share(quality.success_after)
        lines.append(f"success goes from {before} to {after}, if every run that is cut fails")
    if found.limit_for_holds > found.limit:
        lines.append(
            f"runs that hold so much need {_amount(one, found.limit_for_holds)} to be refused no "
            "more often; hold less, take partial grants, or use a lease"
        )
    return lines


def _threshold(found: Recommendation, question: Question) -> str:
    share = show_share(question.degrade)
    if found.degrade_permille is None:
        return f"no threshold of it degrades {share} of runs or fewer"
    return f"degrade at {found.degrade_permille / 10:g}% of it: {share} of runs or fewer"


def tables(one: UnitSummary, question: Question) -> list[Table]:
    """The tables of a unit; the last one only where runs are labelled."""
    unit = one.unit
    quantiles = [
        [
            show_share(each.share),
            *(format_amount(unit, part) for part in (each.spent, each.claimed, each.unused)),
        ]
        for each in one.quantiles
    ]
    marks = ", ".join(f"{permille / 10:g}%" for permille in question.thresholds)
    told = [
        Table(
            _QUANTILES,
            quantiles,
            "claimed: the most that a run had spent and held at one moment; unused: the part of "
            "it that was never spent",
        ),
        Table(
            _OUTCOMES,
            [_outcome_cells(unit, each) for each in one.outcomes],
            f"degraded: at {marks} of the limit; overshoot: beyond the limit, with a debit before "
            "each step; checked late: the same if only whole calls are checked, before they begin; "
            "refused: claimed more than the limit, falsely if they spent no more than it",
        ),
    ]
    judged = [(each.limit, each.quality) for each in one.outcomes if each.quality]
    if judged:
        rows = [_quality_cells(unit, limit, quality) for limit, quality in judged]
        note = "success: without the limit > with it, if every run that is cut fails"
        told.append(Table(_QUALITY, rows, note))
    return told


def _outcome_cells(unit: str, outcome: Outcome) -> list[str]:
    return [
        format_amount(unit, outcome.limit),
        show_share(outcome.share(outcome.cut)),
        format_amount(unit, outcome.saved),
        ", ".join(show_share(outcome.share(runs)) for runs in outcome.degraded),
        format_amount(unit, outcome.overshoot),
        format_amount(unit, outcome.late_overshoot),
        show_share(outcome.share(outcome.refused)),
        show_share(outcome.share(outcome.refused_falsely)),
    ]


def _quality_cells(unit: str, limit: int, quality: Quality) -> list[str]:
    before, after = show_share(quality.success_before), show_share(quality.success_after)
    return [
        format_amount(unit, limit),
        f"{before} > {after}",
        f"{quality.cut_succeeded:,}",
        f"{quality.cut_failed:,}",
        format_amount(unit, quality.saved_on_failed),
    ]


def show_share(share: Fraction) -> str:
    """A share in per cent, rounded to a tenth, or to a thousandth below one per cent.

    What is not nothing is never shown as 0 %, what is not all never as 100 %.
    """
    percent = share * 100
    shown = round(percent, 1 if percent >= 1 else 3)
    if shown == 0 < percent:
        return "<0.001%"
    if percent < _ALL == shown:
        return ">99.9%"
    return f"{float(shown):g}%"


def _amount(one: UnitSummary, value: int) -> str:
    shown = format_amount(one.unit, value)
    return shown if one.unit == "usd_nanos" else f"{shown} {one.unit}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
