"""When does a curve begin to move? An explicit detector on log time, with its uncertainty.

Axes: a curve is ``[points]``, resampled curves are ``[resamples, points]``; time is log10(step).
The algorithm, the same for every measure and every run:

1. A running median over ``window`` points; one or two spikes cannot move it, a step stays sharp.
2. Turned so that the curve rises. From its lowest level, held by five points of nine lest a
   group of spikes pass for one, to the median of its last points is the way it goes. Where it
   has passed half of the way for good, it has changed; never before that lowest level, from
   which it has yet to come.
3. The baseline is the median of the points between first reaching that level and then which lie
   within ``margin`` of the way, or within the noise, of it: a plateau, or the tip of a peak. A
   change from baseline to end that is small beside the scatter about a monotone curve is none.
4. The onset is where the curve passes baseline + ``fraction`` of the change for good: the split
   in time with the fewest points on its wrong side. It depends neither on how long the run goes
   on afterwards nor on single excursions. Interpolated in log time. Where the baseline's noise
   reaches that threshold, the threshold is raised clear of it (to half of the change at most):
   what cannot be told from noise has not visibly begun.
5. Uncertainty: the two measuring points around the crossing, widened by a local block bootstrap
   of the residuals (noise differs before and after memorisation, and spikes come in groups),
   enlarged so that 90 % intervals cover the threshold's crossing about that often
   (`grokscope.analysis.curve.resampled` has the numbers).

A curve that does not move by more than its noise has no onset; it is never given one. Nor is one
that lies short of its threshold again at more than a quarter of the points afterwards.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import isotonic_regression

from grokscope.analysis.curve import (
    WINDOW,
    Array,
    Direction,
    Prepared,
    Scale,
    deviation,
    prepare,
    resampled,
    smoothed,
)

Stage = Literal["first", "largest"]

FRACTION = 0.1  # of the way from baseline to final level
TIP = 9  # points of which more than half must share an extreme level
PERSISTENCE = 3  # points that must follow an onset
MARGIN = 0.1  # of the way: what still counts as plateau, or as the tip of a peak
REACHED = 0.25  # of that band: where the lowest level counts as reached
LAPSES = 0.25  # share of the points after an onset that may lie short of it again
SMOOTH_NOISE = 2.2  # deviations of single points: four of the running median of five
NOISE_FACTOR = 2.0  # a change smaller than this many deviations about a monotone curve is none
CLEAR = 2.0  # deviations of single points: nearly four of the running median of five
STAGE_WIDTH = 0.15  # decades of steps over which the steepness of a stage is judged
STAGE_EDGE = 0.2  # of the greatest steepness: where a stage ends
CONFIDENCE = 0.9
LEAST_POINTS = 8
LOST = "it passes the level and loses it again"


@dataclass(frozen=True)
class Onset:
    """When a curve began to move.

    Attributes:
        step: In optimiser steps, interpolated in log time; NaN when not found.
        interval: 90 % interval in steps: neighbouring measuring points and noise together.
        level_before: Baseline, in the curve's own units; NaN when the curve was too short.
        level_after: Where the curve ended up.
        found: Whether there is an onset.
        reason: One sentence: how it was found, or why there is none.
        draws: Onsets of resampled curves, in steps, ``[resamples]``, NaN where one had none.
    """

    step: float
    interval: tuple[float, float]
    level_before: float
    level_after: float
    found: bool
    reason: str
    draws: Array = field(default_factory=lambda: np.empty(0), repr=False, compare=False)


@dataclass(frozen=True)
class Located:
    """One pass of the detector over one curve, in scaled units and log time."""

    time: float
    bracket: tuple[float, float]
    before: float = math.nan
    after: float = math.nan
    reason: str = ""  # empty when there is an onset


def _none(reason: str, before: float = math.nan, after: float = math.nan) -> Located:
    return Located(math.nan, (math.nan, math.nan), before, after, reason)


def split_of(beyond: NDArray[np.bool_]) -> int:
    """Index that best separates points not yet beyond from points beyond; the first such.

    It minimises points beyond before it plus points not beyond from it on; 0 to ``len(beyond)``.
    """
    early = np.concatenate([[0], np.cumsum(beyond)])
    late = np.concatenate([np.cumsum(~beyond[::-1])[::-1], [0]])
    return int(np.argmin(early + late))


def crossing(
    time: Array, smooth: Array, level: float, persistence: int, start: int = 0, stop: int = -1
) -> Located:
    """Where a rising curve passes ``level`` for good, from point ``start`` to ``stop``."""
    beyond = smooth >= level
    at = start + split_of(beyond[start : stop if stop >= 0 else None])
    left = len(smooth) - at
    if left == 0:
        return _none("it never passes the level for good")
    if left < persistence:
        return _none(f"only {left} points follow the change")
    if at == start:
        return Located(float(time[at]), (float(time[at]), float(time[at])))
    low, high = smooth[at - 1], smooth[at]
    part = (level - low) / (high - low) if high > low else 1.0
    when = time[at - 1] + min(max(part, 0.0), 1.0) * (time[at] - time[at - 1])
    return Located(float(when), (float(time[at - 1]), float(time[at])))


def locate(
    time: Array,
    smooth: Array,
    raw: Array,
    *,
    fraction: float = FRACTION,
    persistence: int = PERSISTENCE,
    least: float = 0.0,
    margin: float = MARGIN,
) -> Located:
    """Steps 2 to 4 of the algorithm, on one rising curve and all the points it is given."""
    if len(smooth) < LEAST_POINTS:
        return _none(f"only {len(smooth)} points")
    after = float(np.median(raw[-max(WINDOW, len(raw) // 10) :]))
    lowest = float(smoothed(raw, TIP).min())
    way = max(after - lowest, 0.0)
    half = lowest + way / 2
    start = int(np.argmax(smooth <= half))
    middle = start + max(split_of(smooth[start:] > half), 1)
    band = band_of(raw - smooth, way, margin)
    lowest_at = int(np.argmin(smoothed(raw, TIP)))
    if lowest_at >= middle and (smooth[start:middle] > lowest + REACHED * band).all():
        # It had changed, came back to a level lower still and left that once more.
        middle = lowest_at + max(split_of(smooth[lowest_at:] > half), 1)
    calm = start + resting(smooth[start:middle], lowest, band)
    if middle == len(raw):
        return _none(
            "it does not pass half of its change for good" if way else "it does not change"
        )
    if not len(calm):
        return _none("it does not rest at the level from which it changes")
    before = float(np.median(smooth[calm]))
    change = after - before
    if change <= 1e-9 * max(abs(after), abs(before), 1e-12) or change < least:
        return _none("it does not change enough", before, after)
    # A monotone curve may come down in stages; what it cannot follow is not a fall but scatter.
    monotone = isotonic_regression(smooth[int(calm[0]) :]).x
    if change < NOISE_FACTOR * deviation(raw[int(calm[0]) :] - monotone):
        return _none("the change does not exceed the noise", before, after)
    clear = CLEAR * deviation(raw[calm] - before) / change
    level = before + min(max(fraction, clear), max(fraction, 0.5)) * change
    found = crossing(time, smooth, level, persistence, int(calm[0]), middle + 1)
    if lapsed(time, smooth, level, found):
        return _none("the change did not last", before, after)
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


def steepest(time: Array, smooth: Array) -> NDArray[np.int64]:
    """Bounds of the steepest stage of each rising curve, ``[curves, 2]``: points [first, last).

    Steepness is the mean over the next `STAGE_WIDTH` decades minus that over the last; a stage
    goes on while it exceeds `STAGE_EDGE` of its greatest value.
    """
    count = len(time)
    index = np.arange(count)
    first = np.searchsorted(time, time - STAGE_WIDTH)
    last = np.searchsorted(time, time + STAGE_WIDTH, side="right")
    sums = np.pad(np.cumsum(smooth, axis=1), ((0, 0), (1, 0)))
    ahead = (sums[:, last] - sums[:, index]) / (last - index)
    behind = (sums[:, index + 1] - sums[:, first]) / (index + 1 - first)
    steepness = ahead - behind
    bounds = np.empty((len(smooth), 2), dtype=np.int64)
    for row, values in enumerate(steepness):
        top = int(values.argmax())
        low = values < STAGE_EDGE * values[top]
        left = top - int(np.argmax(low[top::-1])) if low[: top + 1].any() else 0
        right = top + int(np.argmax(low[top:])) if low[top:].any() else count - 1
        bounds[row] = first[left], last[right]
    return bounds


def detect_onset(
    steps: ArrayLike,
    values: ArrayLike,
    direction: Direction = "rise",
    scale: Scale = "linear",
    *,
    stage: Stage = "first",
    fraction: float = FRACTION,
    persistence: int = PERSISTENCE,
    window: int = WINDOW,
    after: float | None = None,
    before: float | None = None,
    least_change: float = 0.0,
    margin: float = MARGIN,
    resamples: int = 200,
    seed: int = 0,
) -> Onset:
    """The onset of a lasting rise or fall.

    A curve may fall in stages. ``first`` is when it first leaves its highest level for good, on
    the way to where it ends; ``largest`` is the onset of its steepest stage alone, looked for
    only in a curve that has a ``first``.

    Args:
        steps: Optimiser steps, ``[points]``.
        values: The curve, ``[points]``.
        direction: ``rise`` or ``fall``.
        scale: ``log`` to judge ratios; values must not be negative then.
        stage: ``first`` or ``largest``.
        fraction: Of the change, in (0, 1): what counts as having begun.
        persistence: Measuring points that must follow.
        window: Points under one running median; odd.
        after: Points before this step are not looked at.
        before: Points after this step are not looked at.
        least_change: A smaller change is none; decades when ``scale`` is ``log``.
        margin: Of the way: how far a plateau may creep and still be one.
        resamples: Resampled curves for the interval; 0 leaves the bracket of measuring points.
        seed: Of the resampling.

    Returns:
        The onset; ``found`` is False, with a reason, for a curve that does not move.

    Raises:
        ValueError: For arguments that do not describe a curve or a rule.

    Cost: O(resamples * points * log(window)); about 20 ms for 90 points.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must be between 0 and 1, not {fraction}")
    curve = prepare(steps, values, direction, scale, window)
    within = _within(curve.time, after, before)

    def find(smooth: Array, raw: Array, bounds: slice) -> Located:
        return locate(
            curve.time[within][bounds], smooth[within][bounds], raw[within][bounds],
            fraction=fraction, persistence=persistence, least=least_change, margin=margin,
        )  # fmt: skip

    def stages(smooth: Array) -> list[slice]:
        if stage == "first" or not within.any():
            return [slice(None)] * len(smooth)
        return [slice(*map(int, each)) for each in steepest(curve.time[within], smooth[:, within])]

    if stage not in ("first", "largest"):
        raise ValueError(f"stage must be 'first' or 'largest', not {stage!r}")
    found = find(curve.smooth, curve.raw, slice(None))
    if stage == "largest" and not found.reason:
        found = find(curve.smooth, curve.raw, stages(curve.smooth[None])[0])
    if found.reason:
        return _onset(curve, found, np.empty(0))
    many = resampled(curve, resamples, seed)
    smooth = smoothed(many, window)
    each = zip(smooth, many, stages(smooth), strict=True)
    draws = np.array([find(*one).time for one in each])
    share = float(np.isfinite(draws).mean()) if len(draws) else 1.0
    if share < 0.5:
        few = f"only {share:.0%} of the resampled curves have an onset"
        found = _none(few, found.before, found.after)
    return _onset(curve, found, draws)


def detect_crossing(
    steps: ArrayLike,
    values: ArrayLike,
    level: float,
    direction: Direction = "rise",
    scale: Scale = "linear",
    *,
    persistence: int = PERSISTENCE,
    window: int = WINDOW,
    after: float | None = None,
    lasting: bool = True,
    resamples: int = 200,
    seed: int = 0,
) -> Onset:
    """When a curve passes a given level for good; the rest is as in `detect_onset`.

    For good: more of the points before it lie short of the level, and more of those after it
    beyond, than for any other step. A curve that lies beyond from its first point passes it there.

    Args:
        steps: Optimiser steps, ``[points]``.
        values: The curve, ``[points]``.
        level: In the curve's own units.
        direction: ``rise`` or ``fall``.
        scale: ``log`` or ``linear``.
        persistence: Measuring points that must follow.
        window: Points under one running median; odd.
        after: Points before this step are not looked at.
        lasting: A level that more than a quarter of the points afterwards lie short of again was
            lost, and is not found; False: whether or not it was lost.
        resamples: Resampled curves for the interval.
        seed: Of the resampling.
    """
    curve = prepare(steps, values, direction, scale, window)
    within = _within(curve.time, after, None)
    if within.sum() < LEAST_POINTS:
        return _onset(curve, _none(f"only {int(within.sum())} points"), np.empty(0))
    time, goal = curve.time[within], curve.scaled(level)
    found = crossing(time, curve.smooth[within], goal, persistence)
    if lasting and not found.reason and lapsed(time, curve.smooth[within], goal, found):
        found = _none(LOST)
    if found.reason:
        return _onset(curve, found, np.empty(0))
    many = smoothed(resampled(curve, resamples, seed), window)[:, within]
    draws = np.array([crossing(time, each, goal, persistence).time for each in many])
    return _onset(curve, found, draws)


def _within(time: Array, after: float | None, before: float | None) -> NDArray[np.bool_]:
    low = math.log10(after) - 1e-12 if after is not None and after > 0 else -math.inf
    high = math.log10(before) + 1e-12 if before is not None and before > 0 else math.inf
    return np.asarray((time >= low) & (time <= high))


def _onset(curve: Prepared, found: Located, draws: Array) -> Onset:
    """An onset in steps and own units."""
    levels = [
        curve.level(each) if math.isfinite(each) else math.nan
        for each in (found.before, found.after)
    ]
    if found.reason:
        nan = math.nan
        return Onset(nan, (nan, nan), levels[0], levels[1], False, found.reason, np.empty(0))
    low, high = found.bracket
    finite = draws[np.isfinite(draws)]
    if len(finite):
        tail = (1 - CONFIDENCE) / 2
        low = min(low, float(np.quantile(finite, tail)))
        high = max(high, float(np.quantile(finite, 1 - tail)))
    step = 10**found.time
    reason = f"passes its threshold for good at step {step:,.0f}"
    return Onset(step, (10**low, 10**high), levels[0], levels[1], True, reason, 10**draws)
