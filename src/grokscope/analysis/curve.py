"""Curves ready for a detector: over log time, turned so that they rise, with their running median.

Axes: a curve is ``[points]``, resampled curves are ``[resamples, points]``; time is log10(step).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.ndimage import median_filter

from grokscope.analysis.level import Array, quick_median
from grokscope.analysis.quantities import Scale

Direction = Literal["rise", "fall"]

WINDOW = 5  # points under one running median; odd
INFLATION = 2.5  # of residuals, see `resampled`
TYPICAL = 3.0  # deviations; a larger residual is a spike


@dataclass(frozen=True)
class Prepared:
    """A curve ready for the detector: turned so that it rises, over log time.

    Attributes:
        time: log10(step), ascending, ``[points]``; step 0 stands at half the first step.
        raw: Scaled, turned values, ``[points]``.
        smooth: Their running median, ``[points]``.
        sign: +1 for a rise, -1 for a fall.
        log: Whether values are log10 of the measured ones.
    """

    time: Array
    raw: Array
    smooth: Array
    sign: int
    log: bool

    def level(self, value: float) -> float:
        """A scaled, turned value in the curve's own units."""
        return float(10 ** (self.sign * value)) if self.log else self.sign * value


def prepare(steps: ArrayLike, values: ArrayLike, direction: Direction, scale: Scale) -> Prepared:
    """Check, sort, scale and turn a curve; points that are not finite are left out.

    Exact zeros on a log scale (a saturated softmax) count as the smallest positive value.

    Raises:
        ValueError: For shapes that differ, an unknown direction or scale, negative steps, or
            negative values on a log scale.
    """
    x, y = np.asarray(steps, dtype=np.float64), np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or x.shape != y.shape:
        raise ValueError(f"steps {x.shape} and values {y.shape} must be one curve [points]")
    if direction not in ("rise", "fall"):
        raise ValueError(f"direction must be 'rise' or 'fall', not {direction!r}")
    if scale not in ("linear", "log"):
        raise ValueError(f"scale must be 'linear' or 'log', not {scale!r}")
    order = np.argsort(x[np.isfinite(y)], kind="stable")
    x, y = x[np.isfinite(y)][order], y[np.isfinite(y)][order]
    if len(x) and (x[0] < 0 or np.any(np.diff(x) == 0)):
        raise ValueError("steps must be distinct and not negative")
    if scale == "log" and len(y):
        if y.min() < 0:
            raise ValueError("values are negative in places; use scale='linear'")
        positive = y[y > 0]
        y = np.log10(np.maximum(y, positive.min() if len(positive) else 1.0))
    sign = 1 if direction == "rise" else -1
    if len(x) and x[0] == 0:
        x = np.concatenate([x[1:2] / 2 if len(x) > 1 else np.ones(1), x[1:]])
    turned = sign * y
    return Prepared(np.log10(x), turned, smoothed(turned), sign=sign, log=scale == "log")


def smoothed(values: Array, window: int = WINDOW) -> Array:
    """Running median along the last axis, mirrored at both ends."""
    if values.shape[-1] == 0:
        return values
    size = (1,) * (values.ndim - 1) + (min(window, 2 * values.shape[-1] - 1),)
    return np.asarray(median_filter(values, size=size, mode="reflect"), dtype=np.float64)


def resampled(curve: Prepared, resamples: int, seed: int) -> Array:
    """Curves that could have been measured instead, ``[resamples, points]``, scaled and turned.

    The running median plus blocks of residuals drawn from the neighbourhood of each place,
    enlarged: residuals about a median that has followed them are too small, and what noise
    neighbours share stays in the median altogether. Up to `TYPICAL` deviations a residual counts
    `INFLATION` times; what exceeds that is a spike, which no median follows, and counts once.

    How far is calibrated, not derived. Made-up falls by 0.8 decades, 0.015, 0.05 and 0.12 wide,
    noise of 0.01 to 0.1 decades with a correlation of 0.5 between neighbours, from 0.05 on with
    spikes, on two grids, 100 curves each: the "90 %" interval of an onset covers it in 92 % of
    curves, in 81 to 100 % by setting; least where the fall is slow (0.12: 81 to 95 %), for there
    the baseline is off as well. As they are, residuals gave 67 to 95 %. The onset is that of the
    threshold in use: where it was raised clear of the noise, the interval holds the tenth of the
    change more rarely (0.1 decades of noise: 59 to 96 %).
    """
    count, block = len(curve.raw), WINDOW
    if resamples == 0 or count < block:
        return np.empty((0, count))
    rng = np.random.default_rng(seed)
    places = np.arange(0, count, block)
    shifts = rng.integers(-3 * block, 3 * block + 1, size=(resamples, len(places)))
    sources = np.clip(places + shifts, 0, count - block)
    index = (sources[..., None] + np.arange(block)).reshape(resamples, -1)[:, :count]
    residuals = curve.raw - curve.smooth
    limit = TYPICAL * deviation(residuals)
    residuals = residuals + (INFLATION - 1) * np.clip(residuals, -limit, limit)
    return np.asarray(curve.smooth + residuals[index], dtype=np.float64)


def deviation(residuals: Array) -> float:
    """Standard deviation of a normal sample by its median absolute value; blind to spikes."""
    return 1.4826 * quick_median(np.abs(residuals))
