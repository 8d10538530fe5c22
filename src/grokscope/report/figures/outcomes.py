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
from grokscope.analysis.run import Arm
from grokscope.report.arms import blocks, reference_of, styles_of, too_many
from grokscope.report.axes import Horizontal, Vertical, draw_axes, vertical_axis, write
from grokscope.report.canvas import ASIDE, Canvas, Drawn, arms_key
from grokscope.report.contents import MissingMeasureError, Study
from grokscope.report.sheet import Row, Top
from grokscope.report.style import FAINT, GENERALISED, INK, SMALL, LineStyle, shortened
from grokscope.report.tables import Table
from grokscope.report.words import capital, count, name_of, number, numeral, quoted, seeds, share

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MATCHED, EXACT = "relative_flatness_matched", "relative_flatness"
TITLE = "Accuracy, held out"
Lost = dict[tuple[str, str], list[int]]  # (arm, why it has no point) -> seeds
HEIGHT = 3.0  # of a panel, in inches


@dataclass(frozen=True)
class Ending:
    """The levels of one run at its end."""

    arm: Arm
    seed: int
    kappa: float
    accuracy: float
    fits: bool  # whether it has learnt its training data


@dataclass(frozen=True)
class Reference:
    """The reference's medians over seeds; NaN where no run of it came to its end."""

    arm: Arm
    kappa: float
    accuracy: float

    @property
    def name(self) -> str:
        """As in a sentence."""
        return quoted(self.arm.name)

    def beaten(self, run: Ending) -> bool:
        """Whether a run is a counterexample: it fits, is much sharper and no less accurate."""
        return run.fits and is_counterexample(run.kappa / self.kappa, run.accuracy - self.accuracy)


def outcomes(study: Study, canvas: Canvas) -> Drawn:
    """A point for each run: exact kappa at matched loss against held-out accuracy."""
    arms = study.arms
    first = reference_of(arms)
    measure = MATCHED if first.has(MATCHED) else EXACT
    runs, lost = _endings(arms, measure)
    levels = np.array([(run.kappa, run.accuracy) for run in runs if run.arm is first])
    middle = np.median(levels, axis=0) if len(levels) else (math.nan, math.nan)
    reference = Reference(first, *middle)
    x, y = _limits(runs, reference, measure)
    groups = blocks(arms)
    tops = [Top(TITLE, noted=True, block=arms_key(group, marked=True)) for group in groups]
    sheet = canvas.sheet([Row(HEIGHT, (top,)) for top in tops], aside=ASIDE)
    for (axes,), group in zip(sheet.grid, groups, strict=True):
        draw_axes(axes, x, y)
        if not math.isnan(reference.kappa):
            _frame(axes, x, y, reference)
        styles = dict(zip(group, styles_of(group), strict=True))
        for run in (run for run in runs if run.arm in styles):
            _point(axes, run, styles[run.arm], size=4.0 if too_many(arms) else 6.5)
    title, table = "Sharpness and accuracy at the end", _table(runs, arms, reference, measure)
    caption = "Every point is a run."
    if not study.smoke_test:
        caption += f" {_comparison(runs, arms, reference)}"
    remarks = list(_remarks(runs, lost, measure))
    return Drawn(canvas.figure, title, caption, tables=[table], remarks=remarks)


def _endings(arms: Sequence[Arm], measure: str) -> tuple[list[Ending], Lost]:
    """Every run that came to its end, and those that have no point, with the reason."""
    axes = ((measure, "train"), ("accuracy", "validation"))
    for key in axes:
        if not any(arm.has(*key) for arm in arms):
            raise MissingMeasureError(f"{name_of(*key)} was not measured")
    runs: list[Ending] = []
    lost: Lost = {}
    pairs = [(arm, run) for arm in arms for run in arm.runs.values()]
    for arm, run in pairs:
        kappa, accuracy = (run.level(*key) for key in axes)
        why = next(filter(None, (run.why_no_level(*key) for key in axes)), "")
        if not why and kappa <= 0:
            why = f"κ is {number(kappa)}"
        if why:
            lost.setdefault((arm.name, why), []).append(run.seed)
        else:
            fits = run.level("accuracy") >= FITS  # not where that was not measured
            runs.append(Ending(arm, run.seed, kappa, accuracy, fits=fits))
    if not runs:
        named = "; ".join(dict.fromkeys(why for _, why in lost))
        raise MissingMeasureError(f"no run has a level at its end ({named})")
    return runs, lost


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
    label = f"{name_of(measure)}, nats; right is sharp"
    x = Horizontal(min(kappas) / 1.5, max(kappas) * 1.5, label, log=True)
    return x, vertical_axis("linear", accuracies, accuracies, include=include)


def _frame(axes: Axes, x: Horizontal, y: Vertical, reference: Reference) -> None:
    """The reference's level, and where counterexamples lie."""
    axes.fill_between(
        [KAPPA_FACTOR * reference.kappa, x.last], reference.accuracy - MARGIN, y.high,
        color=GENERALISED, linewidth=0, zorder=0, label="counterexamples",
    )  # fmt: skip
    axes.axhline(reference.accuracy, color=INK, linewidth=0.7, zorder=1, label="reference")
    name = shortened(reference.arm.name, ASIDE - 0.1, SMALL)
    write(
        axes, f"{name}\n{share(reference.accuracy)}", (1, reference.accuracy), (5, 0),
        xycoords=("axes fraction", "data"), va="center",
    )  # fmt: skip
    text = f"shaded: ≥ {KAPPA_FACTOR:g} times as sharp, and as accurate"
    write(axes, text, (1, 1), (0, 3.5), ha="right", color=FAINT)


def _point(axes: Axes, run: Ending, style: LineStyle, *, size: float) -> None:
    axes.plot(
        [run.kappa], [run.accuracy], style.marker, color=style.colour, markersize=size,
        markeredgewidth=1.1, markerfacecolor=style.colour if run.fits else "white", alpha=0.9,
        label=f"{run.arm.name}/{run.seed}", zorder=3, clip_on=False,
    )  # fmt: skip


def _comparison(runs: Sequence[Ending], arms: Sequence[Arm], reference: Reference) -> str:
    """How many runs are sharp and as accurate as the reference."""
    name = reference.name
    others = [run for run in runs if run.arm is not reference.arm]
    if len(arms) == 1:
        return f"There is no other arm to compare {name} with."
    if math.isnan(reference.kappa) or not others:
        missing = name if math.isnan(reference.kappa) else "another arm"
        return f"Nothing is compared, for no run of {missing} can be drawn."
    passed = sum(reference.beaten(run) for run in others)
    if len(others) == 1:
        subject = f"{'The' if passed else 'No'} other run"
    else:
        subject = f"Of {numeral(len(others), 'other run')}, {passed or 'none'}"
    verbs = ("is", "fits its") if 1 in (passed, len(others)) else ("are", "fit their")
    return (
        f"{subject} {verbs[0]} at least {KAPPA_FACTOR:g} times as sharp as {name} and no more than "
        f"{MARGIN:g} less accurate, and {verbs[1]} training data."
    )


def _table(
    runs: Sequence[Ending], arms: Sequence[Arm], reference: Reference, measure: str
) -> Table:
    """How many runs of each arm fit, are sharp, and are counterexamples."""
    note = (
        f"Sharp: {name_of(measure)} at least {KAPPA_FACTOR:g} times the median of "
        f"{reference.name}, {number(reference.kappa)}. As accurate: no more than "
        f"{MARGIN:g} below its median held-out accuracy, {share(reference.accuracy)}. Fit: "
        f"training accuracy {FITS:g} or more."
    )
    rows = []
    for arm in arms:
        found = [run for run in runs if run.arm is arm]
        counts = [len(found), sum(run.fits for run in found)]
        if arm is not reference.arm and not math.isnan(reference.kappa):
            counts.append(sum(run.kappa >= KAPPA_FACTOR * reference.kappa for run in found))
            counts.append(sum(reference.beaten(run) for run in found))
        cells = [*map(str, counts), "", ""]
        rows.append((arm.name, *cells[:4]))
    headings = ("Arm", "Runs", "Fit", "Sharp", "Fit, sharp and as accurate")
    return Table("outcomes", "How many runs", headings, rows, note=note)


def _remarks(runs: Sequence[Ending], lost: Lost, measure: str) -> Iterator[str]:
    if measure != MATCHED:
        yield (
            f"{capital(name_of(MATCHED))} was not measured: shown is {name_of(EXACT)}, which "
            "falls with confidence alone."
        )
    hollow = sum(not run.fits for run in runs)
    if hollow:
        does = "does" if hollow == 1 else "do"
        yield (
            f"Hollow: {count(hollow, 'run')} with a training accuracy below {FITS:g}, which "
            f"{does} not fit the training data."
        )
    if lost:
        named = [f"{quoted(arm)}, {seeds(found)} ({why})" for (arm, why), found in lost.items()]
        yield f"Not drawn: {'; '.join(named)}."
