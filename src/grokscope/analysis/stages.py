"""How a fall is shared out between memorisation and generalisation, run by run.

The fall is that from the highest level reached until the middle of the plateau, in log steps, to
the end; the highest level of the whole run would grow with every group of spikes. A place on the
plateau is measured in units of its length in log steps: 0 is memorisation, 1 is when validation
accuracy begins to move.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from grokscope.analysis.curve import prepare, resampled, smoothed
from grokscope.analysis.level import LEAST_LOOKS, Array, Span, median, quick_median
from grokscope.analysis.locate import LEAST_POINTS, TIP, band_of, resting, resting_level
from grokscope.analysis.onset import Onset
from grokscope.analysis.quantities import Quantity, scale_of
from grokscope.analysis.run import Trajectory
from grokscope.analysis.statistics import Drawn

UNKNOWN = Drawn(math.nan, np.empty(0))


@dataclass(frozen=True, kw_only=True)
class Fall:
    """The fall of one measure in one run that memorised first and generalised later.

    Attributes:
        first: Onset of the lasting fall.
        largest: Onset of its steepest stage.
        size: Decades (scale log) or the measure's units, from that highest level to the end.
        share: Of that fall, what came before validation accuracy began to move. Below 0 when the
            curve still rose, above 1 when it rose again afterwards; NaN without a fall.
        plateau_share: Of that fall, how far the median over the whole plateau lies below the
            highest level; NaN without a fall. A measure that fell early and came back before
            generalisation has a small ``share`` and a large one here.
        position: Of the steepest stage, on the plateau; NaN without a fall.
        plateau: Median over the plateau relative to the highest level: a ratio on scale log, else
            a difference.
        remaining: From that median to the end, in the units of ``size``: what fell afterwards.
    """

    first: Onset
    largest: Onset
    size: float
    share: Drawn
    plateau_share: Drawn
    position: Drawn
    plateau: float
    remaining: float

    @property
    def why(self) -> str:
        """Why there is no fall to share out; empty when there is one."""
        if not self.first.found:
            return self.first.reason
        if not self.largest.found:
            return f"no steepest stage: {self.largest.reason}"
        if math.isfinite(self.share.value):
            return ""
        return "its end is no lower than its level around memorisation"


class _Parts(NamedTuple):
    """What a fall is made of: its size, and how much of it has come by two moments of the plateau.

    In decades (scale log) or the measure's units, NaN where it cannot be told.
    """

    size: float  # from the highest level until the middle of the plateau to the end
    late: float  # until the level at the end of the plateau
    whole: float  # by the median over the whole plateau

    @property
    def shares(self) -> tuple[float, float]:
        """`late` and `whole` as shares of the fall."""
        if not self.size > 0:
            return math.nan, math.nan
        return self.late / self.size, self.whole / self.size


def lead(first: Onset, second: Onset) -> Drawn:
    """By how many decades of steps one onset precedes another; positive: it comes first."""
    early, late = _paired(first, second)
    return Drawn(math.log10(second.step) - math.log10(first.step), late - early)


def _paired(*onsets: Onset) -> list[Array]:
    """As many draws of log10 of each step as of the onset with the fewest."""
    count = min(len(onset.draws) for onset in onsets)
    return [np.log10(onset.draws[:count]) for onset in onsets]


def describe_fall(run: Trajectory, quantity: Quantity) -> Fall:
    """Where in a run a measure falls.

    Args:
        run: A run that is not `Trajectory.unusable`.
        quantity: What falls; towards zero where it has a sign.
    """
    first, largest = run.fall(*quantity), run.fall(*quantity, stage="largest")
    parts, draws = _parts(run, quantity)
    late, whole = parts.shares if first.found else (math.nan, math.nan)
    log = scale_of(quantity.measure) == "log"
    return Fall(
        first=first,
        largest=largest,
        size=parts.size,
        share=Drawn(late, draws[0]),
        plateau_share=Drawn(whole, draws[1]),
        position=_position(run, largest),
        plateau=10**-parts.whole if log else -parts.whole,
        remaining=parts.size - parts.whole,
    )


def _parts(run: Trajectory, quantity: Quantity) -> tuple[_Parts, Array]:
    """The parts of a fall, and ``[2, draws]`` of its two shares, empty without a lasting fall."""
    steps, values = run.curve(*quantity)
    scale = scale_of(quantity.measure)
    curve = prepare(steps, values if scale == "log" else np.abs(values), "fall", scale)
    start = math.log10(run.memorised.step)
    middle = (start + math.log10(run.onset.step)) / 2
    early = curve.time <= middle
    if len(curve.time) < LEAST_POINTS or early.sum() < LEAST_LOOKS:
        return _Parts(math.nan, math.nan, math.nan), np.empty((2, 0))

    def parts_of(smooth: Array, raw: Array, onset: float) -> _Parts:
        plateau = (curve.time >= start) & (curve.time <= onset)
        end = plateau & (curve.time >= math.log10(Span(10**start, 10**onset).last_part))
        # Turned curves rise: the highest level is the lowest here, and a fall is positive.
        after, lowest = resting_level(raw), float(smoothed(raw[early], TIP).min())
        calm = resting(smooth[early], lowest, band_of(raw - smooth, after - lowest))
        before = quick_median(smooth[early][calm]) if len(calm) else lowest
        return _Parts(after - before, median(raw[end]) - before, median(raw[plateau]) - before)

    parts = parts_of(curve.smooth, curve.raw, math.log10(run.onset.step))
    if not run.fall(*quantity).found:
        return parts, np.empty((2, 0))
    many = resampled(curve, len(run.onset.draws), seed=1)
    onsets = np.log10(run.onset.draws)[: len(many)]
    rows = zip(smoothed(many), many, onsets, strict=True)
    # A resampled curve without a fall has no share of it.
    shares = [parts_of(*row).shares for row in rows if math.isfinite(row[2])]
    return parts, np.array(shares).reshape(-1, 2).T


def _position(run: Trajectory, onset: Onset) -> Drawn:
    """Where on the plateau an onset lies."""
    if not onset.found:
        return UNKNOWN
    start, length = math.log10(run.memorised.step), math.log10(run.onset.step / run.memorised.step)
    low, high, place = _paired(run.memorised, run.onset, onset)
    # A draw whose plateau has next to no length says nothing about a place on it.
    span = np.where(high - low > length / 3, high - low, np.nan)
    return Drawn((math.log10(onset.step) - start) / length, np.asarray((place - low) / span))
