"""When does a curve begin to move? An explicit detector on log time, with its uncertainty.

Axes: a curve is ``[points]``, resampled curves are ``[resamples, points]``; time is log10(step).
The algorithm, the same for every measure and every run:

1. A running median over five points; one or two spikes cannot move it, a step stays sharp.
2. Turned so that the curve rises. From its lowest level, held by five points of nine lest a
   group of spikes pass for one, to the median of its last points is the way it goes. Where it
   has passed half of the way for good, it has changed; never before that lowest level, from
   which it has yet to come.
3. The baseline is the median of the points between first reaching that level and then which lie
   within ``margin`` of the way, or within the noise, of it: a plateau, or the tip of a peak. A
   change from baseline to end that is small beside the scatter about a monotone curve is none.
4. The onset is where the curve passes a tenth of the change above it for good: the split
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
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from grokscope.analysis.curve import Direction, Prepared, prepare, resampled, smoothed
from grokscope.analysis.level import Array
from grokscope.analysis.locate import (
    LEAST_POINTS,
    MARGIN,
    Located,
    crossing,
    lapsed,
    locate,
    steepest,
)
from grokscope.analysis.quantities import Scale

Stage = Literal["first", "largest"]

CONFIDENCE = 0.9
RESAMPLES = 200
LOST = "it passes the level and loses it again"


@dataclass(frozen=True, kw_only=True)
class Onset:
    """When a curve began to move. Its interval is computed when it is asked for.

    Attributes:
        step: In optimiser steps, interpolated in log time; NaN when not found.
        bracket: The measuring points on either side, in steps.
        level_before: Baseline, in the curve's own units; NaN when the curve was too short.
        level_after: Where the curve came to rest.
        reason: One sentence: how it was found, or why there is none.
        resample: Finds the onsets of resampled curves, as log10 of their steps.
    """

    step: float = math.nan
    bracket: tuple[float, float] = (math.nan, math.nan)
    level_before: float = math.nan
    level_after: float = math.nan
    reason: str
    resample: Callable[[], Array] = field(default=lambda: np.empty(0), repr=False, compare=False)

    @property
    def found(self) -> bool:
        """Whether there is an onset."""
        return math.isfinite(self.step)

    @cached_property
    def _times(self) -> Array:
        return self.resample()

    @property
    def draws(self) -> Array:
        """Onsets of resampled curves, in steps, ``[resamples]``, NaN where one had none."""
        return np.asarray(10**self._times)

    @cached_property
    def interval(self) -> tuple[float, float]:
        """90 % interval in steps: neighbouring measuring points and noise together."""
        low, high = self.bracket
        finite = self._times[np.isfinite(self._times)]
        if len(finite):
            tail = (1 - CONFIDENCE) / 2
            low = min(low, float(10 ** np.quantile(finite, tail)))
            high = max(high, float(10 ** np.quantile(finite, 1 - tail)))
        return low, high


def detect_onset(
    steps: ArrayLike,
    values: ArrayLike,
    direction: Direction = "rise",
    scale: Scale = "linear",
    *,
    stage: Stage = "first",
    after: float = 0.0,
    least_change: float = 0.0,
    margin: float = MARGIN,
    resamples: int = RESAMPLES,
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
        after: Points before this step are not looked at.
        least_change: A smaller change is none; decades when ``scale`` is ``log``.
        margin: Of the way: how far a plateau may creep and still be one.
        resamples: Resampled curves for the interval; 0 leaves the bracket of measuring points.
        seed: Of the resampling.

    Returns:
        The onset; ``found`` is False, with a reason, for a curve that does not move.

    Raises:
        ValueError: For arguments that do not describe a curve or a rule.

    Cost: O(resamples * points); about 20 ms for 90 points.
    """
    if stage not in ("first", "largest"):
        raise ValueError(f"stage must be 'first' or 'largest', not {stage!r}")
    curve = prepare(steps, values, direction, scale)
    within = curve.time >= (math.log10(after) - 1e-12 if after > 0 else -math.inf)
    time, whole, raw = curve.time[within], curve.smooth[within], curve.raw[within]

    def find(smooth: Array, raw: Array, part: slice = slice(None)) -> Located:
        return locate(time[part], smooth[part], raw[part], least=least_change, margin=margin)

    found = find(whole, raw)
    if stage == "largest" and not found.reason:
        found = find(whole, raw, steepest(time, whole[None])[0])
    if found.reason:
        return _onset(curve, found)
    drawn = resampled(curve, resamples, seed)
    smooth, many = smoothed(drawn)[:, within], drawn[:, within]
    parts = steepest(time, smooth) if stage == "largest" else [slice(None)] * len(many)

    def times(first: int, last: int) -> list[float]:
        return [find(smooth[i], many[i], parts[i]).time for i in range(first, last)]

    # At first no more of them than tell whether half have an onset; the rest when asked for.
    known: list[float] = []
    with_onset = 0
    while len(known) < len(many) and 2 * with_onset < len(many):
        known += times(len(known), len(known) + 1)
        with_onset += math.isfinite(known[-1])
    if 2 * with_onset < len(many):
        few = f"only {with_onset / len(many):.0%} of the resampled curves have an onset"
        return _onset(curve, Located(before=found.before, after=found.after, reason=few))
    return _onset(curve, found, lambda: np.array(known + times(len(known), len(many))))


def detect_crossing(
    steps: ArrayLike,
    values: ArrayLike,
    level: float,
    *,
    lasting: bool = True,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Onset:
    """When a curve rises past a given level for good; the rest is as in `detect_onset`.

    For good: more of the points before it lie short of the level, and more of those after it
    beyond, than for any other step. A curve that lies beyond from its first point passes it there.

    Args:
        steps: Optimiser steps, ``[points]``.
        values: The curve, ``[points]``.
        level: In the curve's own units.
        lasting: A level that more than a quarter of the points afterwards lie short of again was
            lost, and is not found; False: whether or not it was lost.
        resamples: Resampled curves for the interval.
        seed: Of the resampling.
    """
    curve = prepare(steps, values, "rise", "linear")
    if len(curve.time) < LEAST_POINTS:
        return _onset(curve, Located(reason=f"only {len(curve.time)} points"))
    found = crossing(curve.time, curve.smooth, level)
    if lasting and not found.reason and lapsed(curve.time, curve.smooth, level, found):
        found = Located(reason=LOST)

    def resample() -> Array:
        many = smoothed(resampled(curve, resamples, seed))
        return np.array([crossing(curve.time, smooth, level).time for smooth in many])

    return _onset(curve, found, resample)


def _onset(curve: Prepared, found: Located, resample: Callable[[], Array] | None = None) -> Onset:
    """An onset in steps and the curve's own units."""
    levels = (found.before, found.after)
    before, after = (curve.level(level) if level == level else level for level in levels)
    onset = Onset(level_before=before, level_after=after, reason=found.reason)
    if found.reason or resample is None:
        return onset
    step, low, high = (float(10**time) for time in (found.time, *found.bracket))
    reason = f"passes its threshold for good at step {step:,.0f}"
    return replace(onset, step=step, bracket=(low, high), reason=reason, resample=resample)
