"""The one rule for a level: where a curve stands at the end of a stretch, or around a step.

A *look* is a step at which a run was measured. Training spikes, so a level is the median of
several looks and never a single one:

* at the end of a stretch, such as a phase, or the plateau between two milestones: of the looks in
  its last fifth;
* around a step: of the `NEAR` looks nearest to it.

Fewer than `LEAST_LOOKS` looks have no level (NaN). A stretch covers the steps in (start, stop].
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

LAST_PART = 0.2  # of a stretch, over which the level at its end is taken
LEAST_LOOKS = 3  # fewer have no level
NEAR = 5  # looks around a step, whose median is the level there


class Curve(NamedTuple):
    """One measure over training.

    Attributes:
        steps: ``[looks]``, ascending.
        values: ``[looks]``, finite.
    """

    steps: Array
    values: Array


class Span(NamedTuple):
    """A stretch of training, in steps: after ``start``, up to and including ``stop``."""

    start: float
    stop: float

    @property
    def last_part(self) -> float:
        """The step from which on looks belong to the last fifth."""
        return self.stop - LAST_PART * (self.stop - self.start)


def looks_at_end(curve: Curve, span: Span) -> Array:
    """The values of a curve in the last fifth of a span, ``[looks]``."""
    steps, values = curve  # ascending, so two searches find the part
    first = int(np.searchsorted(steps, span.last_part))
    return values[first : int(np.searchsorted(steps, span.stop, side="right"))]


def level_at_end(curve: Curve, span: Span) -> float:
    """The median of a curve over the looks in the last fifth of a span; NaN with too few."""
    return median(looks_at_end(curve, span))


def level_around(curve: Curve, step: float) -> float:
    """The median of a curve over the `NEAR` looks around a step; NaN with too few."""
    if math.isnan(step) or not len(curve.steps):
        return math.nan
    nearest = int(np.abs(curve.steps - step).argmin())
    return median(curve.values[max(0, nearest - NEAR // 2) : nearest + NEAR // 2 + 1])


def median(values: Array) -> float:
    """The median of some looks; NaN of fewer than `LEAST_LOOKS`."""
    return quick_median(values) if len(values) >= LEAST_LOOKS else math.nan


def quick_median(values: Array) -> float:
    """The median of one or more finite values; many times as fast as `numpy.median` on a few."""
    ordered, half = np.sort(values), len(values) // 2
    return float(ordered[half] if len(values) % 2 else (ordered[half - 1] + ordered[half]) / 2)


def too_few_looks(looks: int, stretch: str = "phase") -> str:
    """Why there is no level at the end of a stretch, as a clause."""
    return (
        f"{looks or 'no'} look{'' if looks == 1 else 's'} in the last fifth of the {stretch}, "
        f"where {LEAST_LOOKS} are needed"
    )
