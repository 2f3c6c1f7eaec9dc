"""What a limit would have done to runs, and which limit to take. Pure; integers and fractions only.

A run is *cut* at a limit when it spent more: with a debit for every step it would have been stopped
at the limit exactly. It is *degraded* when it spent the threshold's share of the limit, rounded up,
as the ledger's thresholds are crossed. It is *refused* when it at some moment claimed more than the
limit, spent and held together; *falsely*, when in the end it spent no more than the limit.

Quantiles are nearest-rank: of n values the quantile q is the value at rank ⌈q·n⌉, and always one
of them (definition 1 of Hyndman and Fan, "Sample Quantiles in Statistical Packages", 1996).

The limit that is recommended for a share a is the value at rank ⌈(1 - a)·(n + 1)⌉: a new run of the
same kind passes it with a probability of at most a (the conformal quantile: Lei and others,
"Distribution-Free Predictive Inference for Regression", 2018). How many new runs do so, were they
endless, follows the distribution Beta(n + 1 - rank, rank).
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from itertools import accumulate

from bursar.calibrate.runs import Run

__all__ = ["Outcome", "Quality", "Recommendation", "Replay", "nearest_rank"]

_FULL = 1000  # permille


def nearest_rank(values: Sequence[int], share: Fraction) -> int:
    """The quantile of ascending values, at least one; of share 0 the least."""
    return values[max(1, _ceil(share * len(values))) - 1]


@dataclass(frozen=True, slots=True)
class Quality:
    """What a limit does to runs that are labelled, if a run that is cut fails: the worst case.

    Attributes:
        labelled: Runs with a label.
        succeeded: Those of them that succeeded.
        cut_succeeded: Those that succeeded and would have been cut.
        cut_failed: Those that failed and would have been cut.
        saved_on_failed: What cutting the failed ones would have saved.
    """

    labelled: int
    succeeded: int
    cut_succeeded: int
    cut_failed: int
    saved_on_failed: int

    @property
    def success_before(self) -> Fraction:
        """The share that succeeded."""
        return _share(self.succeeded, self.labelled)

    @property
    def success_after(self) -> Fraction:
        """The share that succeeded and would not have been cut."""
        return _share(self.succeeded - self.cut_succeeded, self.labelled)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a limit would have done.

    Attributes:
        limit: The limit of one run.
        runs: How many runs were replayed.
        cut: Runs that would have been stopped at the limit.
        saved: What they spent beyond it.
        degraded: Runs that would have crossed each threshold, those that were cut later included.
        overshoot: What would have been spent beyond the limit: nothing, a debit comes before.
        late_overshoot: The same if only whole calls were checked, before they begin.
        late_overshoot_max: The part of the worst run in it.
        refused: Runs of which a call would have been refused, as much as they held.
        refused_falsely: Those of them that in the end spent no more than the limit.
        quality: What happens to labelled runs; None: none is labelled.
    """

    limit: int
    runs: int
    cut: int
    saved: int
    degraded: tuple[int, ...]
    overshoot: int
    late_overshoot: int
    late_overshoot_max: int
    refused: int
    refused_falsely: int
    quality: Quality | None

    def share(self, runs: int) -> Fraction:
        """A number of runs as a share of all."""
        return _share(runs, self.runs)


@dataclass(frozen=True, slots=True)
class Recommendation:
    """A limit for a share of runs to be cut.

    Attributes:
        limit: The limit of one run.
        reachable: False: there are too few runs to promise so small a share; the limit is the most
            that a run spent.
        runs_needed: How many runs it takes at least.
        expected_cut: The share of new runs that will be cut, at most; less where runs are alike.
        deviation: The standard deviation of that share, out of having seen so few runs.
        degrade_permille: The least threshold that degrades no more than the share asked for; None:
            no threshold of the limit does.
        limit_for_holds: The limit that refuses no more than the same share, as much as runs held.
        outcome: What the limit would have done to the runs that it was found by.
    """

    limit: int
    reachable: bool
    runs_needed: int
    expected_cut: Fraction
    deviation: Decimal
    degrade_permille: int | None
    limit_for_holds: int
    outcome: Outcome


class Replay:
    """The runs of one unit, ready to be asked about any limit."""

    def __init__(self, runs: Iterable[Run], labels: Mapping[str, bool] | None = None) -> None:
        """Sorts the runs.

        Args:
            runs: The runs of one unit.
            labels: Whether runs succeeded, by their keys; others are labelled as their Commits say.
        """
        ordered = sorted(runs, key=lambda run: run.spent)
        labels = labels or {}
        judged = [(run.spent, labels.get(run.key, run.success)) for run in ordered]
        self.spent = [run.spent for run in ordered]
        self.claimed = sorted(run.claimed for run in ordered)
        self.unused = sorted(run.claimed - run.spent for run in ordered)
        self.overdrawn = sum(run.overdraft > 0 for run in ordered)
        self.overdraft = sum(run.overdraft for run in ordered)
        self.exhausted = sum(run.exhausted for run in ordered)
        self._tail = _tail(self.spent)
        self._single = [run.spent for run in ordered if len(run.floors) == 1]
        self._single_tail = _tail(self._single)
        self._several = [run for run in ordered if len(run.floors) > 1]
        self._several_spent = [run.spent for run in self._several]
        self._good = [spent for spent, success in judged if success]
        self._bad = [spent for spent, success in judged if success is False]
        self._bad_tail = _tail(self._bad)

    @property
    def total(self) -> int:
        """What all runs spent."""
        return self._tail[0]

    @property
    def labelled(self) -> int:
        """How many runs are labelled."""
        return len(self._good) + len(self._bad)

    def limits(self, shares: Iterable[Fraction]) -> list[int]:
        """The quantiles of what runs spent: ascending, each once; none where there are no runs."""
        return sorted({nearest_rank(self.spent, share) for share in shares}) if self.spent else []

    def at(self, limit: int, thresholds: Sequence[int] = ()) -> Outcome:
        """Says what a limit with thresholds, in thousandths of it, would have done."""
        cut, saved = _beyond(self.spent, self._tail, limit)
        late, late_max = self._late(limit)
        refused = len(self.claimed) - bisect_right(self.claimed, limit)
        return Outcome(
            limit=limit,
            runs=len(self.spent),
            cut=cut,
            saved=saved,
            degraded=tuple(self._degraded(limit, permille) for permille in thresholds),
            overshoot=0,
            late_overshoot=late,
            late_overshoot_max=late_max,
            refused=refused,
            refused_falsely=refused - cut,  # whoever is cut claimed more than the limit, too
            quality=self._quality(limit),
        )

    def recommend(
        self, cut: Fraction, *, degrade: Fraction, thresholds: Sequence[int] = ()
    ) -> Recommendation | None:
        """Finds the least limit that cuts no more than a share of new runs.

        Args:
            cut: The share that may be cut, above 0 and below 1.
            degrade: The share that may be degraded, those that are cut included.
            thresholds: For the outcome.

        Returns:
            The limit; None where there are no runs.
        """
        count = len(self.spent)
        if not count:
            return None
        rank, reachable = _rank(count, cut)
        limit = self.spent[rank - 1]
        above = count + 1 - rank
        variance = Fraction(above * rank, (count + 1) ** 2 * (count + 2))
        return Recommendation(
            limit=limit,
            reachable=reachable,
            runs_needed=_ceil(1 / cut) - 1,
            expected_cut=Fraction(above, count + 1),
            deviation=(Decimal(variance.numerator) / variance.denominator).sqrt(),
            degrade_permille=self._threshold(limit, degrade),
            limit_for_holds=self.claimed[rank - 1],
            outcome=self.at(limit, thresholds),
        )

    def _threshold(self, limit: int, degrade: Fraction) -> int | None:
        """The least threshold whose mark only the runs above the quantile reach."""
        below = self.spent[_rank(len(self.spent), degrade)[0] - 1]
        if below >= limit:
            return None
        return below * _FULL // limit + 1

    def _degraded(self, limit: int, permille: int) -> int:
        mark = max(1, -(-limit * permille // _FULL))
        return len(self.spent) - bisect_left(self.spent, mark)

    def _late(self, limit: int) -> tuple[int, int]:
        """What passes the limit when only the beginning of a call is checked: in all, and most."""
        if limit <= 0:
            return 0, 0
        cut, total = _beyond(self._single, self._single_tail, limit)
        most = self._single[-1] - limit if cut else 0
        for run in self._several[bisect_right(self._several_spent, limit) :]:
            over = max(0, run.spent_if_checked_between_calls(limit) - limit)
            total += over
            most = max(most, over)
        return total, most

    def _quality(self, limit: int) -> Quality | None:
        if not self.labelled:
            return None
        cut_failed, saved = _beyond(self._bad, self._bad_tail, limit)
        return Quality(
            labelled=self.labelled,
            succeeded=len(self._good),
            cut_succeeded=len(self._good) - bisect_right(self._good, limit),
            cut_failed=cut_failed,
            saved_on_failed=saved,
        )


def _rank(count: int, share: Fraction) -> tuple[int, bool]:
    """The rank whose value a new one passes with at most that probability; whether there is one.

    Where there is none, the last rank.
    """
    rank = _ceil((1 - share) * (count + 1))
    return min(max(1, rank), count), rank <= count


def _beyond(values: Sequence[int], tail: Sequence[int], limit: int) -> tuple[int, int]:
    """How many ascending values pass the limit, and by how much together."""
    index = bisect_right(values, limit)
    count = len(values) - index
    return count, tail[index] - limit * count


def _tail(values: Sequence[int]) -> list[int]:
    """At each index what the values from there on come to; one more than there are values."""
    return list(accumulate(reversed(values), initial=0))[::-1]


def _ceil(share: Fraction) -> int:
    return -(-share.numerator // share.denominator)


def _share(part: int, whole: int) -> Fraction:
    return Fraction(part, whole) if whole else Fraction(0)
