"""Where a rising curve begins to rise: one pass of the detector, step by step.

Axes: a curve is ``[points]``, several are ``[curves, points]``; time is log10(step). Curves are
turned so that they rise (`grokscope.analysis.curve`); `grokscope.analysis.onset` says what the
algorithm is and adds its uncertainty.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

from grokscope.analysis.curve import WINDOW, deviation, smoothed
from grokscope.analysis.level import Array, quick_median

TIP = 9  # points of which more than half must share an extreme level, lest spikes pass for one
FRACTION = 0.1  # of the way from baseline to final level
PERSISTENCE = 3  # points that must follow an onset
MARGIN = 0.1  # of the way: what still counts as plateau, or as the tip of a peak
REACHED = 0.25  # of that band: where the lowest level counts as reached
LAPSES = 0.25  # share of the points after an onset that may lie short of it again
SMOOTH_NOISE = 2.2  # deviations of single points: four of the running median of five
NOISE_FACTOR = 2.0  # a change smaller than this many deviations about a monotone curve is none
CLEAR = 2.0  # deviations of single points: nearly four of the running median of five
STAGE_WIDTH = 0.15  # decades of steps over which the steepness of a stage is judged
STAGE_EDGE = 0.2  # of the greatest steepness: where a stage ends
LEAST_POINTS = 8
RESTS = 10  # a curve comes to rest over its last tenth of points


@dataclass(frozen=True)
class Located:
    """One pass of the detector over one curve, in scaled units and log time.

    Attributes:
        time: Where the curve passes its threshold; NaN where it does not.
        bracket: The measuring points on either side.
        before: The baseline.
        after: Where the curve comes to rest.
        reason: Why there is no onset; empty when there is one.
    """

    time: float = math.nan
    bracket: tuple[float, float] = (math.nan, math.nan)
    before: float = math.nan
    after: float = math.nan
    reason: str = ""


def resting_level(raw: Array) -> float:
    """Where a curve comes to rest: the median of its last tenth of points, at least five.

    Not the level at the end of a phase (`grokscope.analysis.level`): a detector works on points in
    log time, and the last fifth of the *steps* of a log-spaced curve holds one or two of them.
    """
    return quick_median(raw[-max(WINDOW, len(raw) // RESTS) :])


def split_of(beyond: NDArray[np.bool_]) -> int:
    """Index that best separates points not yet beyond from points beyond; the first such.

    It minimises points beyond before it plus points not beyond from it on; 0 to ``len(beyond)``.
    """
    early = np.concatenate([[0], np.cumsum(beyond)])
    late = np.concatenate([np.cumsum(~beyond[::-1])[::-1], [0]])
    return int(np.argmin(early + late))


def crossing(
    time: Array, smooth: Array, level: float, *, start: int = 0, stop: int | None = None
) -> Located:
    """Where a rising curve passes ``level`` for good, from point ``start`` to ``stop``."""
    at = start + split_of(smooth[start:stop] >= level)
    left = len(smooth) - at
    if left == 0:
        return Located(reason="it never passes the level for good")
    if left < PERSISTENCE:
        return Located(reason=f"only {left} points follow the change")
    if at == start:
        return Located(float(time[at]), (float(time[at]), float(time[at])))
    low, high = smooth[at - 1], smooth[at]
    part = (level - low) / (high - low) if high > low else 1.0
    when = time[at - 1] + min(max(part, 0.0), 1.0) * (time[at] - time[at - 1])
    return Located(float(when), (float(time[at - 1]), float(time[at])))


def locate(
    time: Array, smooth: Array, raw: Array, *, least: float = 0.0, margin: float = MARGIN
) -> Located:
    """Steps 2 to 4 of the algorithm, on one rising curve and all the points it is given."""
    if len(smooth) < LEAST_POINTS:
        return Located(reason=f"only {len(smooth)} points")
    after = resting_level(raw)
    tips = smoothed(raw, TIP)
    lowest = float(tips.min())
    way = max(after - lowest, 0.0)
    half = lowest + way / 2
    start = int(np.argmax(smooth <= half))
    middle = start + max(split_of(smooth[start:] > half), 1)
    band = band_of(raw - smooth, way, margin)
    lowest_at = int(np.argmin(tips))
    if lowest_at >= middle and (smooth[start:middle] > lowest + REACHED * band).all():
        # It had changed, came back to a level lower still and left that once more.
        middle = lowest_at + max(split_of(smooth[lowest_at:] > half), 1)
    calm = start + resting(smooth[start:middle], lowest, band)
    if middle == len(raw):
        half_way = "it does not pass half of its change for good"
        return Located(reason=half_way if way else "it does not change")
    if not len(calm):
        return Located(reason="it does not rest at the level from which it changes")
    before = quick_median(smooth[calm])
    change = after - before
    nowhere = Located(before=before, after=after)
    if change <= 1e-9 * max(abs(after), abs(before), 1e-12) or change < least:
        return replace(nowhere, reason="it does not change enough")
    # A monotone curve may come down in stages; what it cannot follow is not a fall but scatter.
    monotone = isotonic_regression(smooth[int(calm[0]) :]).x
    if change < NOISE_FACTOR * deviation(raw[int(calm[0]) :] - monotone):
        return replace(nowhere, reason="the change does not exceed the noise")
    clear = CLEAR * deviation(raw[calm] - before) / change
    level = before + min(max(FRACTION, clear), 0.5) * change
    found = crossing(time, smooth, level, start=int(calm[0]), stop=middle + 1)
    if lapsed(time, smooth, level, found):
        return replace(nowhere, reason="the change did not last")
    return replace(found, before=before, after=after)


def lapsed(time: Array, smooth: Array, level: float, found: Located) -> bool:
    """Whether too many points lie short of the level again once it was passed."""
    later = smooth[time >= found.bracket[1]]
    return bool(len(later)) and bool((later < level).mean() > LAPSES)


def band_of(residuals: Array, way: float, margin: float = MARGIN) -> float:
    """How far above its lowest level a curve still rests there.

    It holds a plateau's noise to both sides, or else the tip of a peak.
    """
    return max(margin * max(way, 0.0), SMOOTH_NOISE * deviation(residuals))


def resting(smooth: Array, lowest: float, band: float) -> NDArray[np.int64]:
    """Points at the lowest level, from when it is first reached.

    Before that a curve may lie near it, and not yet be there.
    """
    if not len(smooth):
        return np.empty(0, dtype=np.int64)
    first = int(np.argmax(smooth <= lowest + REACHED * band))
    return first + np.flatnonzero(smooth[first:] <= lowest + band)


def steepest(time: Array, smooth: Array) -> list[slice]:
    """The points of the steepest stage of each rising curve ``[curves, points]``.

    Steepness is the mean over the next `STAGE_WIDTH` decades minus that over the last; a stage
    lasts while it exceeds `STAGE_EDGE` of its greatest value.
    """
    count = len(time)
    index = np.arange(count)
    first = np.searchsorted(time, time - STAGE_WIDTH)
    last = np.searchsorted(time, time + STAGE_WIDTH, side="right")
    sums = np.pad(np.cumsum(smooth, axis=1), ((0, 0), (1, 0)))
    ahead = (sums[:, last] - sums[:, index]) / (last - index)
    behind = (sums[:, index + 1] - sums[:, first]) / (index + 1 - first)
    stages = []
    for values in ahead - behind:
        top = int(values.argmax())
        low = values < STAGE_EDGE * values[top]
        left = top - int(np.argmax(low[top::-1])) if low[: top + 1].any() else 0
        right = top + int(np.argmax(low[top:])) if low[top:].any() else count - 1
        stages.append(slice(int(first[left]), int(last[right])))
    return stages
