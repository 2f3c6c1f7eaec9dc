"""The plots of a calibration: one picture for each unit, as PNG, for light and for dark pages.

Needs matplotlib, of the extra `report`. Floats are pixels here, nothing else.
"""

import io
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter, SymmetricalLogLocator

from bursar.calibrate.replay import Outcome, Replay, nearest_rank
from bursar.calibrate.summary import Question, UnitSummary

__all__ = ["DARK", "LIGHT", "Theme", "draw"]

_POINTS: Final = 400  # a curve has no more, however many runs there are
_DPI: Final = 110
_NANOS: Final = 1e9
_LINEAR_BELOW: Final = 5  # the largest limit by the least
_FEW_TICKS_FROM: Final = 1000
_FEW_POINTS: Final = 20
_LARGE: Final = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


@dataclass(frozen=True, slots=True)
class Theme:
    """Colours: paper, ink, a faint ink, and three that differ for the colour-blind, too."""

    paper: str
    ink: str
    faint: str
    first: str
    second: str
    third: str


LIGHT: Final = Theme("#ffffff", "#1b1f23", "#d8dcdf", "#1f6f8b", "#c2620d", "#7d4fa8")
DARK: Final = Theme("#15191c", "#e4e7e9", "#3a4147", "#5ab4d1", "#f0a35e", "#bf9fe0")


def draw(one: UnitSummary, question: Question, theme: Theme) -> bytes:
    """Draws the runs of a unit, at least one: four panels over the limit of a run."""
    replay = one.replay
    shares = [Fraction(step, _POINTS) for step in range(1, _POINTS + 1)]
    limits = {nearest_rank(side, one) for side in (replay.spent, replay.claimed) for one in shares}
    outcomes = [replay.at(limit, question.thresholds) for limit in sorted(limits)]
    figure = Figure(figsize=(11, 7.6), dpi=_DPI, layout="constrained", facecolor=theme.paper)
    panels = figure.subplots(2, 2).flat
    for axes in panels:
        _frame(axes, theme)
        _scale(axes, one)
    runs, cuts, amounts, last = figure.axes
    _draw_runs(runs, replay, shares, theme)
    _draw_cuts(cuts, outcomes, question, theme)
    _draw_amounts(amounts, outcomes, replay, theme)
    if replay.labelled:
        _draw_quality(last, outcomes, theme)
    else:
        _draw_holds(last, outcomes, theme)
    for axes in figure.axes:
        if one.recommendation:
            limit = one.recommendation.limit
            axes.axvline(limit, color=theme.ink, linestyle=":", linewidth=1.2, label="recommended")
        _legend(axes, theme)
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def _frame(axes: Axes, theme: Theme) -> None:
    axes.set_facecolor(theme.paper)
    axes.tick_params(colors=theme.ink, which="both", labelsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(theme.ink)
    axes.grid(color=theme.faint, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=None))
    axes.xaxis.label.set_color(theme.ink)


def _scale(axes: Axes, one: UnitSummary) -> None:
    """The limits that runs differ by: as a logarithm that has a zero, if they differ by much."""
    low, high = one.replay.spent[0], max(1, one.replay.claimed[-1])
    ratio = high // max(1, low)
    if ratio >= _LINEAR_BELOW:
        subs = (1, 2, 5) if ratio < _FEW_TICKS_FROM else (1,)
        axes.set_xscale("symlog", linthresh=1)
        axes.xaxis.set_major_locator(SymmetricalLogLocator(linthresh=1, base=10, subs=subs))
    axes.set_xlim(low * 0.8 if low else -0.5, high * 1.25)
    axes.set_ylim(-0.03, 1.05)
    axes.xaxis.set_major_formatter(lambda value, _: _tick(one.unit, value))
    shown = "US dollars" if one.unit == "usd_nanos" else one.unit
    axes.set_xlabel(f"limit of a run, {shown}", fontsize=9)


def _title(axes: Axes, text: str, theme: Theme) -> None:
    axes.set_title(text, loc="left", fontsize=10.5, color=theme.ink)


def _legend(axes: Axes, theme: Theme) -> None:
    axes.legend(
        fontsize=8.5, labelcolor=theme.ink, facecolor=theme.paper, edgecolor=theme.faint, loc="best"
    )


def _draw_runs(axes: Axes, replay: Replay, shares: list[Fraction], theme: Theme) -> None:
    _title(axes, "Runs within the limit", theme)
    heights = [float(share) for share in shares]
    for label, values, colour in (
        ("by what they spent", replay.spent, theme.first),
        ("by what they claimed", replay.claimed, theme.second),
    ):
        places = [nearest_rank(values, share) for share in shares]
        # The first step rises from nothing, so that one run is seen, too.
        axes.step([places[0], *places], [0.0, *heights], where="post", color=colour, label=label)


def _draw_cuts(axes: Axes, outcomes: list[Outcome], question: Question, theme: Theme) -> None:
    _title(axes, "Runs cut and degraded", theme)
    _curve(axes, outcomes, [one.share(one.cut) for one in outcomes], ("cut", theme.first, "-"))
    for index, permille in enumerate(question.thresholds):
        look = (f"degraded at {permille / 10:g}%", theme.third, ("--", "-.", ":")[index % 3])
        _curve(axes, outcomes, [one.share(one.degraded[index]) for one in outcomes], look)


def _draw_amounts(axes: Axes, outcomes: list[Outcome], replay: Replay, theme: Theme) -> None:
    _title(axes, "Saved, and overshoot if only whole calls are checked", theme)
    whole = max(1, replay.total)
    saved = [Fraction(one.saved, whole) for one in outcomes]
    late = [Fraction(one.late_overshoot, whole) for one in outcomes]
    _curve(axes, outcomes, saved, ("saved, with a debit each step", theme.first, "-"))
    _curve(axes, outcomes, late, ("spent beyond the limit, checked late", theme.second, "--"))
    axes.set_ylabel("share of all that was spent", fontsize=9, color=theme.ink)


def _draw_holds(axes: Axes, outcomes: list[Outcome], theme: Theme) -> None:
    _title(axes, "Runs refused by what they held", theme)
    refused = [one.share(one.refused) for one in outcomes]
    falsely = [one.share(one.refused_falsely) for one in outcomes]
    _curve(axes, outcomes, refused, ("refused", theme.first, "-"))
    _curve(axes, outcomes, falsely, ("falsely: they spent no more", theme.second, "--"))


def _draw_quality(axes: Axes, outcomes: list[Outcome], theme: Theme) -> None:
    _title(axes, "Labelled runs that succeed, if every run that is cut fails", theme)
    judged = [one.quality for one in outcomes if one.quality]
    after = [quality.success_after for quality in judged]
    before = [quality.success_before for quality in judged]
    _curve(axes, outcomes, after, ("with the limit", theme.first, "-"))
    _curve(axes, outcomes, before, ("without it", theme.second, "--"))


def _curve(
    axes: Axes, outcomes: list[Outcome], heights: list[Fraction], look: tuple[str, str, str]
) -> None:
    """Draws a share over the limits; its look is label, colour and style."""
    label, colour, style = look
    axes.plot(
        [one.limit for one in outcomes],
        [float(height) for height in heights],
        color=colour,
        linestyle=style,
        marker="o" if len(outcomes) < _FEW_POINTS else "",  # a curve of one is not seen
        markersize=4,
        label=label,
    )


def _tick(unit: str, value: float) -> str:
    if unit == "usd_nanos":
        return f"${value / _NANOS:g}"
    for size, suffix in _LARGE:
        if value >= size:
            return f"{value / size:g}{suffix}"
    return f"{value:g}"
