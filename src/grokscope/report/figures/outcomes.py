"""Where every run ended: how sharp it is, and how accurate on held-out data.

A sharp network that generalises lies to the right at the top. Whether it fits its training data
shows in its marker, for one that does not says nothing about the question.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from grokscope.analysis.claims.rules import FITS, KAPPA_FACTOR, MARGIN, is_counterexample
from grokscope.analysis.run import Arm, Trajectory
from grokscope.report import words
from grokscope.report.arms import blocks, reference_of, styles_of, too_many
from grokscope.report.axes import (
    Horizontal,
    Vertical,
    draw_horizontal,
    draw_vertical,
    vertical_axis,
)
from grokscope.report.canvas import ASIDE, XLABEL, Canvas, Drawn, arms_key
from grokscope.report.contents import Study
from grokscope.report.curves import MissingMeasureError
from grokscope.report.sheet import NOTE, Entry, Row, key_height, title_height
from grokscope.report.style import FAINT, GENERALISED, INK, SMALL, LineStyle, shortened
from grokscope.report.tables import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MATCHED, EXACT = "relative_flatness_matched", "relative_flatness"
HEIGHT = 3.0  # of a panel, in inches


@dataclass(frozen=True)
class Ending:
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
class Reference:
    """The reference's medians over seeds; NaN where no run of it came to its end."""

    arm: Arm
    kappa: float
    accuracy: float

    def beaten(self, run: Ending) -> bool:
        """Whether a run is much sharper and no less accurate, whether or not it fits."""
        return is_counterexample(run.kappa / self.kappa, run.accuracy - self.accuracy)


def outcomes(study: Study, canvas: Canvas) -> Drawn:
    """A point for each run: exact kappa at matched loss against held-out accuracy."""
    arms = study.arms
    reference_arm = reference_of(arms)
    measure = MATCHED if reference_arm.has(MATCHED) else EXACT
    runs, lost = _endings(arms, measure)
    mine = [run for run in runs if run.arm is reference_arm]
    reference = Reference(
        reference_arm,
        _median([run.kappa for run in mine]),
        _median([run.accuracy for run in mine]),
    )
    x, y = _limits(runs, reference, measure)
    groups = blocks(arms)
    keys = [_markers(group) for group in groups]
    above = title_height("", (), canvas.width) + NOTE
    sheet = canvas.sheet(
        [Row(HEIGHT, 1, above + key_height(key, canvas.width), XLABEL) for key in keys],
        aside=ASIDE,
    )
    for (axes,), group, key in zip(sheet.grid, groups, keys, strict=True):
        sheet.key(axes, key, above)
        sheet.title(axes, "Accuracy, held out", width=canvas.inches(axes), raised=NOTE)
        axes.set_label("Accuracy, held out")
        draw_vertical(axes, y)
        draw_horizontal(axes, x, canvas.inches(axes), labelled=True)
        _frame(axes, x, y, reference)
        styles = dict(zip(group, styles_of(group), strict=True))
        for run in runs:
            if run.arm in styles:
                _point(axes, run, styles[run.arm], small=too_many(arms))
    return Drawn(
        canvas.figure, "Sharpness and accuracy at the end",
        _caption(runs, reference), (_table(runs, arms, reference, measure),),
        tuple(_remarks(runs, lost, measure)),
    )  # fmt: skip


def _endings(arms: Sequence[Arm], measure: str) -> tuple[list[Ending], list[str]]:
    """Every run that came to its end, and those that have no point, with the reason."""
    for name, split in ((measure, "train"), ("accuracy", "validation")):
        if not any(arm.has(name, split) for arm in arms):
            raise MissingMeasureError(f"{words.name_of(name, split)} was not measured")
    runs, lost = [], []
    for arm in arms:
        for seed, run in arm.runs.items():
            ending = Ending(
                arm, seed, run.level(measure), run.level("accuracy", "validation"),
                run.level("accuracy"),
            )  # fmt: skip
            why = _why_lost(run, ending, measure)
            if why:
                lost.append(f"{words.quoted(arm.name)}, seed {seed} ({why})")
            else:
                runs.append(ending)
    if not runs:
        raise MissingMeasureError("no run has come to its end")
    return runs, lost


def _why_lost(run: Trajectory, ending: Ending, measure: str) -> str:
    if math.isnan(ending.kappa):
        return run.why_no_level(measure)
    if math.isnan(ending.accuracy):
        return run.why_no_level("accuracy", "validation")
    return "" if ending.kappa > 0 else f"κ is {words.number(ending.kappa)}"


def _limits(
    runs: Sequence[Ending], reference: Reference, measure: str
) -> tuple[Horizontal, Vertical]:
    """Axes that all groups share, with room for where counterexamples lie."""
    kappas = [run.kappa for run in runs]
    accuracies = np.array([run.accuracy for run in runs])
    include: tuple[float, ...] = ()
    if not math.isnan(reference.kappa):
        kappas.append(reference.kappa * KAPPA_FACTOR * 3)
        include = (reference.accuracy, reference.accuracy - MARGIN)
    label = f"{words.name_of(measure)}, nats; right is sharp"
    x = Horizontal(min(kappas) / 1.5, max(kappas) * 1.5, label, log=True)
    return x, vertical_axis("linear", accuracies, accuracies, include=include)


def _frame(axes: Axes, x: Horizontal, y: Vertical, reference: Reference) -> None:
    """The reference's level, and where counterexamples lie."""
    if math.isnan(reference.kappa):
        return
    axes.fill_between(
        [KAPPA_FACTOR * reference.kappa, x.last], reference.accuracy - MARGIN, y.high,
        color=GENERALISED, linewidth=0, zorder=0, label="counterexamples",
    )  # fmt: skip
    axes.axhline(reference.accuracy, color=INK, linewidth=0.7, zorder=1, label="reference")
    axes.annotate(
        f"{shortened(reference.arm.name, ASIDE - 0.1, SMALL)}\n{words.share(reference.accuracy)}",
        (1, reference.accuracy), (5, 0), xycoords=("axes fraction", "data"),
        textcoords="offset points", size=SMALL, va="center", color=INK, linespacing=1.0,
    )  # fmt: skip
    axes.annotate(
        f"shaded: at least {KAPPA_FACTOR:g} times as sharp, and as accurate", (1, 1), (0, 3.5),
        xycoords="axes fraction", textcoords="offset points", ha="right", size=SMALL, color=FAINT,
    )  # fmt: skip


def _point(axes: Axes, run: Ending, style: LineStyle, *, small: bool) -> None:
    axes.plot(
        [run.kappa], [run.accuracy], style.marker, color=style.colour,
        markersize=4.0 if small else 6.5, markeredgewidth=1.1, alpha=0.9,
        markerfacecolor=style.colour if run.fits else "white",
        label=f"{run.arm.name}/{run.seed}", zorder=3, clip_on=False, scalex=False, scaley=False,
    )  # fmt: skip


def _markers(group: Sequence[Arm]) -> tuple[Entry, ...]:
    return tuple(Entry(entry.name, entry.style, marked=True) for entry in arms_key(group))


def _caption(runs: Sequence[Ending], reference: Reference) -> str:
    """How many runs are sharp and as accurate as the reference."""
    name = words.quoted(reference.arm.name)
    if math.isnan(reference.kappa):
        return f"Every point is a run. No run of {name} came to its end, so nothing is compared."
    others = [run for run in runs if run.arm is not reference.arm]
    if not others:
        return f"Every point is a run. There is no other arm to compare {name} with."
    passed = sum(run.fits and reference.beaten(run) for run in others)
    are = "is" if passed == 1 else "are"
    return (
        f"Every point is a run. Of {words.numeral(len(others), 'other run')}, {passed or 'none'} {are} at "
        f"least {KAPPA_FACTOR:g} times as sharp as {name} and no more than {MARGIN:g} less "
        f"accurate, and {'fits its' if passed == 1 else 'fit their'} training data."
    )


def _table(
    runs: Sequence[Ending], arms: Sequence[Arm], reference: Reference, measure: str
) -> Table:
    note = (
        f"Sharp: {words.name_of(measure)} at least {KAPPA_FACTOR:g} times the median of "
        f"{words.quoted(reference.arm.name)}, {words.number(reference.kappa)}. As accurate: within {MARGIN:g} "
        f"of its median held-out accuracy, {words.share(reference.accuracy)}, or above. Fits: training "
        f"accuracy {FITS:g} or more."
    )
    headings = ("Arm", "Runs", "Fit", "Sharp", "Fit, sharp and as accurate")
    rows = []
    for arm in arms:
        found = [run for run in runs if run.arm is arm]
        compared = arm is not reference.arm and not math.isnan(reference.kappa)
        sharp = [run for run in found if run.kappa >= KAPPA_FACTOR * reference.kappa]
        beaten = [run for run in found if run.fits and reference.beaten(run)]
        counts = [len(sharp), len(beaten)] if compared else ["", ""]
        rows.append((arm.name, *map(str, (len(found), sum(run.fits for run in found), *counts))))
    return Table("outcomes", "How many runs", headings, tuple(rows), note)


def _remarks(runs: Sequence[Ending], lost: Sequence[str], measure: str) -> Iterator[str]:
    if measure != MATCHED:
        yield (
            f"{words.capital(words.name_of(MATCHED))} was not measured: shown is {words.name_of(EXACT)}, which falls "
            "with confidence alone."
        )
    hollow = sum(not run.fits for run in runs)
    if hollow:
        does = "does" if hollow == 1 else "do"
        yield (
            f"Hollow: {words.count(hollow, 'run')} with a training accuracy below {FITS:g}, which {does} "
            "not fit the training data."
        )
    if lost:
        yield f"Not drawn: {'; '.join(lost)}."


def _median(values: Sequence[float]) -> float:
    return float(np.median(values)) if values else math.nan
