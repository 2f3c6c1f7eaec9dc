"""The whole answer of a calibration, by unit; and the same as JSON. Pure."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final

from bursar.calibrate.replay import Outcome, Recommendation, Replay, nearest_rank
from bursar.calibrate.runs import By, History

__all__ = ["QUANTILES", "THRESHOLDS", "Quantile", "Question", "Summary", "UnitSummary", "summarise"]

QUANTILES: Final = tuple(Fraction(one, 1000) for one in (500, 750, 900, 950, 990, 999, 1000))
THRESHOLDS: Final = (800, 900)
_SHARE_DIGITS: Final = 6


@dataclass(frozen=True, slots=True)
class Question:
    """What was asked.

    Attributes:
        account: The account; empty: all.
        by: What a run is.
        period: The windows that divide the runs of an account, as text; "total": none.
        cut: The share of runs that a limit may cut.
        degrade: The share of runs that a threshold may degrade.
        limits: The limits to try; empty: those at the quantiles.
        quantiles: The quantiles to show.
        thresholds: The thresholds to try, in thousandths of a limit.
    """

    account: str
    by: By = By.RESERVATION
    period: str = "total"
    cut: Fraction = Fraction(1, 100)
    degrade: Fraction = Fraction(1, 10)
    limits: tuple[int, ...] = ()
    quantiles: tuple[Fraction, ...] = QUANTILES
    thresholds: tuple[int, ...] = THRESHOLDS


@dataclass(frozen=True, slots=True)
class Quantile:
    """A quantile, each amount by its own order.

    Attributes:
        share: Which quantile.
        spent: What runs spent.
        claimed: The most that they had spent and held at one moment.
        unused: The part of that which they never spent: the worst case that did not come.
    """

    share: Fraction
    spent: int
    claimed: int
    unused: int


@dataclass(frozen=True, slots=True)
class UnitSummary:
    """The answer for one unit; `replay` answers for any other limit."""

    unit: str
    replay: Replay
    quantiles: tuple[Quantile, ...]
    outcomes: tuple[Outcome, ...]
    recommendation: Recommendation | None


@dataclass(frozen=True, slots=True)
class Summary:
    """The answer.

    Attributes:
        question: What was asked.
        units: By unit, in the order of their names.
        open_calls: Reservations that have not ended, left out.
        calls_without_hold: As in `History`.
        unmatched_labels: Labels of no run.
    """

    question: Question
    units: tuple[UnitSummary, ...]
    open_calls: int
    calls_without_hold: int
    unmatched_labels: int

    def to_json(self) -> dict[str, Any]:
        """As JSON can hold it: amounts are integers in base units, shares numbers up to 1."""
        told: dict[str, Any] = _plain(asdict(self.question))
        told["open_calls"] = self.open_calls
        told["calls_without_hold"] = self.calls_without_hold
        told["unmatched_labels"] = self.unmatched_labels
        told["units"] = [_unit_json(one) for one in self.units]
        return told


def summarise(history: History, question: Question, labels: Mapping[str, bool]) -> Summary:
    """Answers a question about the runs."""
    units = []
    for unit, runs in history.runs.items():
        replay = Replay(runs, labels)
        limits = sorted(set(question.limits)) or replay.limits(question.quantiles)
        recommended = replay.recommend(
            question.cut, degrade=question.degrade, thresholds=question.thresholds
        )
        units.append(
            UnitSummary(
                unit=unit,
                replay=replay,
                quantiles=tuple(_quantile(replay, share) for share in question.quantiles),
                outcomes=tuple(replay.at(limit, question.thresholds) for limit in limits),
                recommendation=recommended,
            )
        )
    known = {run.key for runs in history.runs.values() for run in runs} if labels else set()
    return Summary(
        question=question,
        units=tuple(units),
        open_calls=history.open_calls,
        calls_without_hold=history.calls_without_hold,
        unmatched_labels=sum(key not in known for key in labels),
    )


def _quantile(replay: Replay, share: Fraction) -> Quantile:
    sides = (replay.spent, replay.claimed, replay.unused)
    return Quantile(share, *(nearest_rank(side, share) for side in sides))


def _unit_json(one: UnitSummary) -> dict[str, Any]:
    replay, found = one.replay, one.recommendation
    told: dict[str, Any] = {
        "unit": one.unit,
        "runs": len(replay.spent),
        "spent": replay.total,
        "overdrawn": replay.overdrawn,
        "overdraft": replay.overdraft,
        "exhausted": replay.exhausted,
        "labelled": replay.labelled,
        "quantiles": [_plain(asdict(each)) for each in one.quantiles],
        "outcomes": [_outcome_json(each) for each in one.outcomes],
    }
    told["recommendation"] = found and _plain(asdict(found)) | {
        "outcome": _outcome_json(found.outcome)
    }
    return told


def _outcome_json(outcome: Outcome) -> dict[str, Any]:
    told: dict[str, Any] = _plain(asdict(outcome))
    told["cut_share"] = _plain(outcome.share(outcome.cut))
    told["refused_falsely_share"] = _plain(outcome.share(outcome.refused_falsely))
    told["degraded_shares"] = [_plain(outcome.share(runs)) for runs in outcome.degraded]
    if outcome.quality:
        told["quality"]["success_before"] = _plain(outcome.quality.success_before)
        told["quality"]["success_after"] = _plain(outcome.quality.success_after)
    return told


def _plain(value: Any) -> Any:  # noqa: ANN401 -- what json.dumps takes
    if isinstance(value, Fraction | Decimal):
        return round(float(value), _SHARE_DIGITS)
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value
