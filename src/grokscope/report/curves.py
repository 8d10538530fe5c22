"""What a line of a figure shows: the curves of an arm's seeds, and their running median.

Training spikes, so what is drawn in bold is always a median over neighbouring looks of one phase,
never a single look: what lies before the end of a phase does not smooth what comes after it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from grokscope.analysis.level import Array, Curve, level_around
from grokscope.analysis.run import Arm, Trajectory
from grokscope.report.words import name_of

WINDOW = 5  # looks under one running median; odd


class MissingMeasureError(LookupError):
    """What a figure needs was not measured; the message says what, for the reader."""


def curves_of(
    arm: Arm, measure: str, split: str, *, relative: bool = False
) -> tuple[list[Curve], Curve]:
    """The curves of the seeds that have a measure, and their running median.

    Raises:
        MissingMeasureError: If no run of the arm has the measure on that split.
    """
    runs = [run for run in arm.runs.values() if run.has(measure, split)]
    if not runs:
        raise MissingMeasureError(f"{name_of(measure, split)} was not measured")
    curves = [run.curve(measure, split) for run in runs]
    if relative:
        curves = [
            Curve(curve.steps, curve.values / unit(run, curve))
            for run, curve in zip(runs, curves, strict=True)
        ]
    stops = [phase.stop for phase in arm.phases[:-1]]
    return curves, running_median(curves, stops)


def unit(run: Trajectory, curve: Curve) -> float:
    """A curve's value at memorisation, or at its start without one; NaN if not positive."""
    step = run.memorised.step
    value = float(curve.values[0]) if math.isnan(step) else level_around(curve, step)
    return value if value > 0 else math.nan


def running_median(curves: Sequence[Curve], stops: Sequence[float] = ()) -> Curve:
    """Median of all curves' values in a centred window of looks, phase by phase.

    Returns:
        A curve over all steps at which one of them has a value.
    """
    steps = np.unique(np.concatenate([curve.steps for curve in curves]))
    values = np.full((len(steps), len(curves)), math.nan)
    for column, curve in enumerate(curves):
        values[np.searchsorted(steps, curve.steps), column] = curve.values
    phases = np.searchsorted(np.asarray(stops, dtype=float), steps)
    pieces = [_windows(values[phases == phase]) for phase in np.unique(phases)]
    medians = np.concatenate(pieces) if pieces else np.empty(0)
    known = np.isfinite(medians)
    return Curve(steps[known], medians[known])


def _windows(values: Array) -> Array:
    """Median over a centred window of rows and all columns, for each row; ``[looks, seeds]``."""
    half = WINDOW // 2
    padded = np.pad(values, ((half, half), (0, 0)), constant_values=math.nan)
    windows = np.lib.stride_tricks.sliding_window_view(padded, WINDOW, axis=0)
    ordered = np.sort(windows.reshape(len(values), -1), axis=1)  # NaN comes last
    count = np.isfinite(ordered).sum(axis=1)
    rows = np.arange(len(values))
    low, high = (ordered[rows, np.maximum(place, 0)] for place in ((count - 1) // 2, count // 2))
    return np.where(count > 0, (low + high) / 2, math.nan)
