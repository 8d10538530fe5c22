"""How a fall is shared out between memorisation and generalisation, run by run.

The fall is that from the highest level reached until the middle of the plateau, in log steps, to
the end; the highest level of the whole run would grow with every group of spikes. A place on the
plateau is measured in units of its length in log steps: 0 is memorisation, 1 is when validation
accuracy begins to move.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from grokscope.analysis.curve import WINDOW, Array, Scale, prepare, resampled, smoothed
from grokscope.analysis.milestones import Trace, fall_onset
from grokscope.analysis.onset import LEAST_POINTS, TIP, Onset, band_of, resting

BEFORE_POINTS = 9  # measuring points whose median is the level just before generalisation


@dataclass(frozen=True)
class Fall:
    """The fall of one measure in one run that memorised first and generalised later.

    Attributes:
        first: Onset of the lasting fall.
        largest: Onset of its steepest stage.
        size: Decades (scale log) or own units from that highest level to the end.
        share: Of that fall, what came before validation accuracy began to move. Below 0 when the
            curve still rose, above 1 when it rose again afterwards; NaN without a fall.
        share_draws: ``[draws]``.
        position: Of the steepest stage, on the plateau; NaN without a fall.
        position_draws: ``[draws]``.
        plateau_share: Of that fall, how far the median over the whole plateau lies below the
            highest level; NaN without a fall. A measure that fell early and came back before
            generalisation has a small ``share`` and a large one here.
        plateau_share_draws: ``[draws]``.
        plateau: Median over the plateau relative to the highest level: a ratio on scale log, else
            a difference.
        remaining: From that median to the end: decades or own units; what fell after the plateau.
    """

    first: Onset
    largest: Onset
    size: float
    share: float
    share_draws: Array
    plateau_share: float
    plateau_share_draws: Array
    position: float
    position_draws: Array
    plateau: float
    remaining: float

    @property
    def why(self) -> str:
        """Why there is no fall to share out; empty when there is one."""
        if not self.first.found:
            return self.first.reason
        if not self.largest.found:
            return f"no steepest stage: {self.largest.reason}"
        if math.isfinite(self.share):
            return ""
        return "its end is no lower than its level around memorisation"


def describe_fall(run: Trace, measure: str, split: str, scale: Scale) -> Fall:
    """Where in a run a measure falls.

    Args:
        run: A run that is not `Trace.unusable`.
        measure: What falls; its absolute value on scale ``linear``.
        split: On which data.
        scale: ``log`` or ``linear``.
    """
    steps, values = run.get(measure, split)
    first = fall_onset(steps, values, scale)
    largest = fall_onset(steps, values, scale, "largest")
    share, size, drop, draws = _shares(run, steps, values, scale, first.found)
    at, at_draws = _position(run, largest)
    whole = drop / size if first.found and size > 0 else math.nan
    return Fall(
        first, largest, size, share, draws[0], whole, draws[1], at, at_draws,
        10**-drop if scale == "log" else -drop, size - drop,
    )  # fmt: skip


def _shares(
    run: Trace, steps: Array, values: Array, scale: Scale, found: bool
) -> tuple[float, float, float, Array]:
    """Share before generalisation, size, fall to the plateau's median, and ``[2, draws]``.

    Draws are of the share before generalisation and of that of the whole plateau.
    """
    nothing = np.empty((2, 0))
    magnitude = values if scale == "log" else np.abs(values)
    curve = prepare(steps, magnitude, "fall", scale, WINDOW)
    if len(curve.time) < LEAST_POINTS:
        return math.nan, math.nan, math.nan, nothing
    start = math.log10(run.memorised.step)

    middle = (start + math.log10(run.onset.step)) / 2
    early = curve.time <= middle

    def share_of(smooth: Array, raw: Array, onset: float) -> tuple[float, float, float]:
        plateau = raw[(curve.time >= start) & (curve.time <= onset)]
        if len(plateau) < 3 or early.sum() < 3:
            return math.nan, math.nan, math.nan
        # Turned curves rise: the highest level is the lowest here, and a fall is positive.
        after = float(np.median(raw[-max(WINDOW, len(raw) // 10) :]))
        lowest = float(smoothed(raw[early], TIP).min())
        calm = resting(smooth[early], lowest, band_of(raw - smooth, after - lowest))
        before = float(np.median(smooth[early][calm])) if len(calm) else lowest
        drop = float(np.median(plateau)) - before
        late = float(np.median(plateau[-BEFORE_POINTS:])) - before
        return late / (after - before) if after > before else math.nan, after - before, drop

    onset = math.log10(run.onset.step)
    share, size, drop = share_of(curve.smooth, curve.raw, onset)
    if not found:
        return math.nan, size, drop, nothing
    many = resampled(curve, len(run.onset.draws), seed=1)
    onsets = np.log10(run.onset.draws)[: len(many)]
    rows = zip(smoothed(many, WINDOW), many, onsets, strict=True)
    drawn = np.array([share_of(*row) for row in rows if math.isfinite(row[2])]).reshape(-1, 3).T
    # A resampled curve without a fall has no share of it.
    whole = np.divide(drawn[2], drawn[1], out=np.full_like(drawn[1], np.nan), where=drawn[1] > 0)
    return share, size, drop, np.array([drawn[0], whole])


def _position(run: Trace, onset: Onset) -> tuple[float, Array]:
    """Where on the plateau an onset lies, with its draws."""
    if not onset.found:
        return math.nan, np.empty(0)
    start, length = math.log10(run.memorised.step), math.log10(run.onset.step / run.memorised.step)
    count = min(len(onset.draws), len(run.memorised.draws), len(run.onset.draws))
    low = np.log10(run.memorised.draws[:count])
    span = np.log10(run.onset.draws[:count]) - low
    # A draw whose plateau has next to no length says nothing about a place on it.
    span = np.where(span > length / 3, span, np.nan)
    return (
        (math.log10(onset.step) - start) / length,
        np.asarray((np.log10(onset.draws[:count]) - low) / span),
    )
