"""Where every run ended: how sharp it is, and how accurate on held-out data.

A sharp network that generalises lies to the right at the top. Whether it fits its training data
shows in its marker, for one that does not says nothing of the question.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from grokscope.analysis.claims.rules import FITS
from grokscope.report.arms import Arm, arms_of, blocks, reference_of
from grokscope.report.contents import Drawn, Study
from grokscope.report.curves import MissingMeasureError
from grokscope.report.lines import ASIDE, STYLES, Style, plain, sheet, shown_name
from grokscope.report.panels import GENERALISED, INK
from grokscope.report.words import count, listed, name_of, number, tick

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHARP = 10.0  # times the reference's kappa
AS_GOOD = 0.02  # of accuracy: no more than so much below the reference
MATCHED, PLAIN = "relative_flatness_matched", "relative_flatness"


@dataclass(frozen=True)
class Outcome:
    """The levels of one run at its end."""

    arm: Arm
    seed: int
    kappa: float
    accuracy: float
    training: float  # accuracy; NaN where it was not measured

    @property
    def fits(self) -> bool:
        """Whether it has learnt its training data."""
        return self.training >= FITS


@dataclass(frozen=True)
class Bounds:
    """The reference's medians, and from where on a run is a counterexample."""

    kappa: float
    accuracy: float

    def passed(self, run: Outcome) -> bool:
        """Whether a run is much sharper than the reference and no less accurate."""
        return run.kappa >= SHARP * self.kappa and run.accuracy >= self.accuracy - AS_GOOD


def outcomes(study: Study, narrow: bool = False) -> Drawn:
    """A point for each run: exact kappa at matched loss against held-out accuracy."""
    arms = arms_of(study)
    reference = reference_of(arms)
    measure = MATCHED if reference.has(MATCHED, "train") else PLAIN
    runs, lost = _read(arms, measure)
    bounds = Bounds(
        _median([run.kappa for run in runs if run.arm is reference]),
        _median([run.accuracy for run in runs if run.arm is reference]),
    )
    groups = blocks(arms)
    figure, grid = sheet(groups, 1, 1, narrow, 2.9, ASIDE, marked=True)
    for axes, group in zip(grid, groups, strict=True):
        _scatter(axes, group, runs, bounds, measure)
    return Drawn(
        figure,
        "Sharpness and accuracy at the end",
        _told(runs, reference, bounds, measure),
        _how(runs, reference, lost, len(groups)),
    )


def _read(arms: Sequence[Arm], measure: str) -> tuple[list[Outcome], list[str]]:
    """Every run that came to its end, and those that have no point, with the reason."""
    for name, split in ((measure, "train"), ("accuracy", "validation")):
        if not any(arm.has(name, split) for arm in arms):
            raise MissingMeasureError(f"{name_of(name, split)} was not measured")
    runs, lost = [], []
    for arm in arms:
        last = arm.phases[-1]
        kappa, accuracy, training = (
            arm.levels(name, split, last)
            for name, split in (
                (measure, "train"), ("accuracy", "validation"), ("accuracy", "train"),
            )
        )  # fmt: skip
        for seed, end in arm.ends.items():
            found = [each.get(seed, math.nan) for each in (kappa, accuracy, training)]
            run = Outcome(arm, seed, *found)
            if not arm.came_to(last.stop, seed):
                lost.append(f"{arm.quoted}, seed {seed} (ended at epoch {plain(end)})")
            elif math.isnan(run.kappa) or math.isnan(run.accuracy):
                lost.append(f"{arm.quoted}, seed {seed} (not measured)")
            elif run.kappa <= 0:
                lost.append(f"{arm.quoted}, seed {seed} (κ is {number(run.kappa)})")
            else:
                runs.append(run)
    if not runs:
        raise MissingMeasureError("no run has come to its end")
    return runs, lost


def _scatter(
    axes: Axes, group: Sequence[Arm], runs: Sequence[Outcome], bounds: Bounds, measure: str
) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    styles = dict(zip((arm.name for arm in group), STYLES, strict=False))
    _frame(axes, runs, bounds, group[0].name)
    for run in runs:
        if run.arm in group:
            _point(axes, run, styles[run.arm.name])
    low, high = axes.get_xlim()
    few = high < 100 * low
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,), numticks=8))
    axes.xaxis.set_major_formatter(FuncFormatter(tick))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(FuncFormatter(tick))
    axes.set_title("Accuracy, held out", pad=16)
    axes.set_xlabel(f"{name_of(measure)}, nats (right = sharp)", labelpad=2)


def _point(axes: Axes, run: Outcome, style: Style) -> None:
    axes.plot(
        [run.kappa], [run.accuracy], style.marker, color=style.colour, markersize=6.5,
        markeredgewidth=1.1, markerfacecolor=style.colour if run.fits else "white", alpha=0.9,
        label=f"{run.arm.name}/{run.seed}", zorder=3, clip_on=False,
    )  # fmt: skip


def _frame(axes: Axes, runs: Sequence[Outcome], bounds: Bounds, name: str) -> None:
    """Limits that all groups share, the reference's line, and where counterexamples lie."""
    kappas = [run.kappa for run in runs]
    accuracies = [run.accuracy for run in runs]
    if not math.isnan(bounds.kappa):
        kappas += [bounds.kappa * SHARP * 3]
        accuracies += [bounds.accuracy, bounds.accuracy - AS_GOOD]
    room = 0.08 * (max(accuracies) - min(accuracies)) or 0.05
    axes.set_xscale("log")
    axes.set_xlim(min(kappas) / 1.5, max(kappas) * 1.5)
    axes.set_ylim(min(accuracies) - room, max(accuracies) + room)
    if math.isnan(bounds.kappa):
        return
    axes.fill_between(
        [SHARP * bounds.kappa, axes.get_xlim()[1]], bounds.accuracy - AS_GOOD,
        axes.get_ylim()[1], color=GENERALISED, linewidth=0, zorder=0, label="counterexamples",
    )  # fmt: skip
    axes.axhline(bounds.accuracy, color=INK, linewidth=0.7, zorder=1, label="reference")
    axes.annotate(
        f"{shown_name(name, ASIDE - 0.1, 7.5)}\n{number(bounds.accuracy)}", (1, bounds.accuracy),
        (5, 0), xycoords=("axes fraction", "data"), textcoords="offset points", size=7.5,
        va="center", color=INK, linespacing=1.0, parse_math=False,
    )  # fmt: skip
    axes.annotate(
        f"shaded: {SHARP:g} times as sharp, as accurate", (1, 1), (0, 4),
        xycoords="axes fraction", textcoords="offset points", ha="right", size=8, color="#666666",
    )  # fmt: skip


def _told(runs: Sequence[Outcome], reference: Arm, bounds: Bounds, measure: str) -> str:
    """How many runs are sharp and good, of which arms, and whether they fit."""
    instead = ""
    if measure != MATCHED:
        instead = f"{name_of(MATCHED)[0].upper()}{name_of(MATCHED)[1:]} was not measured: shown is "
        instead += f"{name_of(PLAIN)}, which falls with confidence alone. "
    if math.isnan(bounds.kappa):
        return f"{instead}No run of {reference.quoted} came to its end, so nothing is compared."
    others = [run for run in runs if run.arm is not reference]
    if not others:
        return (
            f"{instead}{reference.quoted}: median {name_of(measure)} {number(bounds.kappa)} at a "
            f"held-out accuracy of {number(bounds.accuracy)}; there is no other run."
        )
    passed = [run for run in others if bounds.passed(run)]
    fitting = [run for run in passed if run.fits]
    verb = "is" if len(passed) == 1 else "are"
    told = (
        f"{instead}{len(passed)} of {count(len(others), 'other run')} {verb} at least {SHARP:g} "
        f"times as sharp as {reference.quoted} (median {name_of(measure)} {number(bounds.kappa)}) "
        f"and within {AS_GOOD:g} of its median held-out accuracy of {number(bounds.accuracy)} or "
        "above."
    )
    if not passed:
        return told
    by_arm = [
        f"{arm.quoted} ({len(own)} of {count(len(arm.ends), 'seed')})"
        for arm in dict.fromkeys(run.arm for run in fitting)
        if (own := [run for run in fitting if run.arm is arm])
    ]
    which = f": {listed(by_arm)}" if by_arm else ""
    return f"{told} Of these, {len(fitting)} {_fit(len(fitting))} the training data{which}."


def _fit(runs: int) -> str:
    return "fits" if runs == 1 else "fit"


def _how(runs: Sequence[Outcome], reference: Arm, lost: Sequence[str], groups: int) -> str:
    """How to read the figure, and what is not in it."""
    hollow = sum(not run.fits for run in runs)
    parts = [
        "A point is a run at its end: medians over the last fifth of its last phase. The line is "
        f"the median of {reference.quoted}; a filled point in the shaded part speaks against "
        "flatness being necessary."
    ]
    if hollow:
        parts.append(
            f"Hollow: {count(hollow, 'run')} with a training accuracy below {FITS:g}, which "
            f"{'does' if hollow == 1 else 'do'} not fit the training data."
        )
    if lost:
        parts.append(f"Not drawn: {'; '.join(lost)}.")
    if groups > 1:
        parts.append(
            f"There are more arms than one panel can show, so there are {groups} panels on the "
            f"same axes, {reference.quoted} in each."
        )
    return " ".join(parts)


def _median(values: Sequence[float]) -> float:
    return float(np.median(values)) if values else math.nan
