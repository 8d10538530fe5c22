"""The milestones of one run: memorised, validation accuracy begins to move, generalised, stable.

Functions of its curves; a `grokscope.analysis.run.Trajectory` computes each once and keeps it. A
run without a milestone has NaN there and is never dropped.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from grokscope.analysis.curve import Scale
from grokscope.analysis.level import Array, Curve
from grokscope.analysis.locate import resting_level
from grokscope.analysis.onset import LOST, Onset, Stage, detect_crossing, detect_onset

MEMORISED = 0.99  # training accuracy
GENERALISED = 0.95  # validation accuracy
FELL_AGAIN = 0.9  # validation accuracy below which a generalised network counts as lost
UNSTABLE = 0.05  # share of such points above which a run is called unstable
LEAST_RISE = 0.1  # of validation accuracy; less is no generalisation
CREEP = 0.25  # of the way from plateau to end: how far the plateau may creep and still be one
LEAST_FALL = math.log10(1.5)  # decades; a measure that falls less does not fall
LEAST_PLATEAU = 1.25  # ratio of steps; a shorter plateau cannot tell its two ends apart
LEAST_PLATEAU_POINTS = 5


def memorisation_step(steps: ArrayLike, train_accuracy: ArrayLike) -> Onset:
    """When training accuracy passes 0.99 for good, single spikes aside; not when it is lost."""
    return detect_crossing(steps, train_accuracy, MEMORISED)


def generalisation_step(steps: ArrayLike, validation_accuracy: ArrayLike) -> Onset:
    """When validation accuracy passes 0.95 for good, single spikes aside; not when it is lost."""
    return detect_crossing(steps, validation_accuracy, GENERALISED)


def generalisation_onset(
    steps: ArrayLike, validation_accuracy: ArrayLike, memorised: float
) -> Onset:
    """When validation accuracy leaves its plateau after memorisation.

    The baseline is the plateau's own median, however high: the long shallow stretch at 0.2 to
    0.4 does not count, a lasting rise by a tenth of the way that remains does.

    Args:
        steps: ``[points]``.
        validation_accuracy: ``[points]``.
        memorised: The step of memorisation; points before it are not looked at.
    """
    return detect_onset(
        steps, validation_accuracy, after=memorised, least_change=LEAST_RISE, margin=CREEP
    )


def stability(
    steps: ArrayLike, validation_accuracy: ArrayLike, generalised: float, level: float = FELL_AGAIN
) -> float:
    """Share of the points after generalisation whose accuracy fell below ``level`` again.

    Returns:
        In [0, 1], 0 for a run that stays up; NaN for a run that never got there.
    """
    x, y = np.asarray(steps, dtype=np.float64), np.asarray(validation_accuracy, dtype=np.float64)
    later = y[(x >= generalised) & np.isfinite(y)] if math.isfinite(generalised) else y[:0]
    return float((later < level).mean()) if len(later) else math.nan


def lost_again(steps: ArrayLike, validation_accuracy: ArrayLike) -> float:
    """Share of the looks after validation accuracy first reached 0.95 at which it was below 0.9.

    Whether or not it was lost for good; NaN for a run that never got there.
    """
    reached = detect_crossing(steps, validation_accuracy, GENERALISED, lasting=False, resamples=0)
    return stability(steps, validation_accuracy, reached.step)


def unusable(memorised: Onset, onset: Onset, generalised: Onset, validation: Curve) -> str:
    """Why a run says nothing about the order of events; empty when it does.

    Args:
        memorised: When training accuracy was reached.
        onset: When validation accuracy left its plateau.
        generalised: When validation accuracy was reached.
        validation: The curve of validation accuracy.
    """
    if not memorised.found:
        lost = memorised.reason == LOST
        return "memorised and lost it again" if lost else "never memorised"
    lost = generalised.reason == LOST
    if not (generalised.found or lost):
        return "never generalised"
    # Lost at the very end: too few looks for `LOST`, yet all of those that an onset ends on.
    if lost or (not onset.found and resting_level(validation.values) < FELL_AGAIN):
        return "generalised and lost it again"
    if not onset.found:
        return "generalised without a plateau"
    between = (validation.steps >= memorised.step) & (validation.steps <= onset.step)
    if onset.step < LEAST_PLATEAU * memorised.step or between.sum() < LEAST_PLATEAU_POINTS:
        return "generalised right after memorising"
    return ""


def fall_onset(steps: Array, values: Array, scale: Scale, stage: Stage = "first") -> Onset:
    """Onset of a fall (``log``: by a factor of 1.5 or more) or, on ``linear``, towards zero."""
    if scale == "log":
        return detect_onset(steps, values, "fall", "log", stage=stage, least_change=LEAST_FALL)
    return detect_onset(steps, np.abs(values), "fall", stage=stage)
