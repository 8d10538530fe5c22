"""What goes with what over training time, as it is and with something else held fixed.

Over time everything that only rises or only falls correlates; a window that begins with
memorisation, and a partial correlation, say more than the plain one over the whole run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce
from itertools import product
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd

from grokscope.analysis.level import Array
from grokscope.analysis.quantities import (
    COLLAPSE,
    FLATNESS,
    TRAINING_LOSS,
    VALIDATION_ACCURACY,
    Quantity,
)
from grokscope.analysis.run import Results, Trajectory
from grokscope.analysis.statistics import (
    Drawn,
    Effect,
    correlation_draws,
    correlation_over_seeds,
    rank_correlation,
)

Window = Literal["all steps", "plateau", "after memorisation"]
WINDOWS: tuple[Window, ...] = ("plateau", "all steps")
MEASURES = tuple(quantity.measure for quantity in (*FLATNESS, COLLAPSE[0]))


class Points(NamedTuple):
    """Several quantities of one run at the steps that all of them have.

    Attributes:
        steps: ``[points]``, ascending.
        values: ``[quantities, points]``.
    """

    steps: Array
    values: Array


def partial_correlations(results: Results, measures: Sequence[str] = MEASURES) -> pd.DataFrame:
    """Rank correlations over training time of flatness and NCC with what they might stand for.

    With validation accuracy plain and given training loss, with training loss plain; on the
    plateau (memorised, and validation accuracy not yet moving) and over all steps.

    Args:
        results: What has run; of a tidy frame ``Results.from_metrics(frame)``.
        measures: Training measures to correlate; what was not measured is left out.

    Returns:
        ``arm, measure, with, given, window, rho, low, high, seeds``; see `over_time`.
    """
    pairs = (
        (VALIDATION_ACCURACY, None),
        (VALIDATION_ACCURACY, TRAINING_LOSS),
        (TRAINING_LOSS, None),
    )
    rows = []
    for arm in Results.of(results).arms.values():
        runs = list(arm.runs.values())
        measured = [Quantity(measure) for measure in measures if arm.has(measure)]
        for window, (target, fixed), quantity in product(WINDOWS, pairs, measured):
            found = over_time(runs, quantity, target, fixed=fixed, window=window)
            held = fixed.name if fixed else ""
            names = (arm.name, quantity.measure, target.name, held, window)
            rows.append((*names, found.effect, *found.interval, len(found.per_seed)))
    columns = ["arm", "measure", "with", "given", "window", "rho", "low", "high", "seeds"]
    return pd.DataFrame(rows, columns=columns)


def plateau_correlation(runs: Sequence[Trajectory], measure: str = "relative_flatness") -> Effect:
    """Rank correlation of kappa with the training loss on the plateau.

    Args:
        runs: Runs of one arm.
        measure: Another measure of the training data instead of kappa.
    """
    return over_time(runs, Quantity(measure), TRAINING_LOSS, window="plateau")


def plateau_points(run: Trajectory, measure: str = "relative_flatness") -> Points:
    """What `plateau_correlation` correlates in one run: the measure, then the training loss."""
    return together(run, [Quantity(measure), TRAINING_LOSS], "plateau")


def over_time(
    runs: Sequence[Trajectory],
    x: Quantity,
    y: Quantity,
    *,
    fixed: Quantity | None = None,
    window: Window,
) -> Effect:
    """Rank correlation of two curves within runs, averaged over seeds on Fisher's scale.

    Its interval is over seeds, or of the one seed's curve resampled in blocks.

    Args:
        runs: Runs of one arm.
        x: A quantity.
        y: Another.
        fixed: What to hold fixed.
        window: Which steps to look at.
    """
    drawn: dict[int, Drawn] = {}
    for run in runs:
        first, second, *held = together(run, [x, y, *([fixed] if fixed else [])], window).values
        rho = rank_correlation(first, second, held)
        if math.isfinite(rho):
            draws = correlation_draws(first, second, held, seed=run.seed)
            drawn[run.seed] = Drawn(rho, draws)
    return correlation_over_seeds(drawn)


def together(run: Trajectory, quantities: Sequence[Quantity], window: Window) -> Points:
    """Several quantities at the steps of a window that all of them have."""
    curves = [run.curve(*quantity) for quantity in quantities]
    steps = reduce(np.intersect1d, [curve.steps for curve in curves])
    if window != "all steps":  # none without memorisation, whose step is NaN then
        steps = steps[steps >= run.memorised.step]
    if window == "plateau" and run.onset.found:
        steps = steps[steps <= run.onset.step]
    values = [curve.values[np.searchsorted(curve.steps, steps)] for curve in curves]
    return Points(steps, np.array(values))
