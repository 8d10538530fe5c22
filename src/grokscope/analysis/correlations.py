"""What goes with what over training time, as it is and with something else held fixed.

Over time everything that only rises or only falls correlates; a window that begins with
memorisation, and a partial correlation, say more than the plain one over the whole run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd

from grokscope.analysis.level import Array
from grokscope.analysis.run import Results, Trajectory
from grokscope.analysis.statistics import (
    UNKNOWN,
    Interval,
    correlation_draws,
    correlation_over_seeds,
    partial_rank_correlation,
)

Window = Literal["all steps", "plateau", "after memorisation"]
Quantity = tuple[str, str]  # measure, split
WINDOWS: tuple[Window, ...] = ("plateau", "all steps")
VALIDATION_ACCURACY: Quantity = ("accuracy", "validation")
TRAINING_LOSS: Quantity = ("loss", "train")
NAMES = {VALIDATION_ACCURACY: "validation accuracy", TRAINING_LOSS: "training loss"}
FLATNESS = (
    "relative_flatness",
    "relative_flatness_bound",
    "published_flatness",
    "relative_flatness_matched",
    "ncc",
)


class Points(NamedTuple):
    """Several quantities of one run at the steps that all of them have.

    Attributes:
        steps: ``[points]``, ascending.
        values: ``[quantities, points]``.
    """

    steps: Array
    values: Array


class Correlation(NamedTuple):
    """A rank correlation within runs, over their seeds.

    Attributes:
        rho: The mean over seeds on Fisher's scale; NaN where no run has both quantities.
        interval: 95 % interval over seeds, or of the one seed's curve resampled in blocks.
        by_seed: Seed -> its correlation.
    """

    rho: float
    interval: Interval
    by_seed: dict[int, float]


def partial_correlations(results: Results, measures: Sequence[str] = FLATNESS) -> pd.DataFrame:
    """Rank correlations over training time of flatness and NCC with what they might stand for.

    With validation accuracy plain and given training loss, with training loss plain; on the
    plateau (memorised, and validation accuracy not yet moving) and over all steps.

    Args:
        results: What has run; of a tidy frame ``Results.from_metrics(frame)``.
        measures: Training measures to correlate; what was not measured is left out.

    Returns:
        ``arm, measure, with, given, window, rho, low, high, seeds``; see `Correlation`.
    """
    pairs = (
        (VALIDATION_ACCURACY, None),
        (VALIDATION_ACCURACY, TRAINING_LOSS),
        (TRAINING_LOSS, None),
    )
    rows = []
    for arm in results.arms.values():
        runs = list(arm.runs.values())
        measured = [measure for measure in measures if arm.has(measure)]
        for window in WINDOWS:
            for target, fixed in pairs:
                held = NAMES[fixed] if fixed else ""
                for measure in measured:
                    rho, interval, by_seed = over_time(
                        runs, (measure, "train"), target, fixed=fixed, window=window
                    )
                    rows.append(
                        (arm.name, measure, NAMES[target], held, window, rho, *interval,
                         len(by_seed))
                    )  # fmt: skip
    columns = ["arm", "measure", "with", "given", "window", "rho", "low", "high", "seeds"]
    return pd.DataFrame(rows, columns=columns)


def plateau_correlation(
    runs: Sequence[Trajectory], measure: str = "relative_flatness"
) -> Correlation:
    """Rank correlation of kappa with the training loss on the plateau.

    Args:
        runs: Runs of one arm.
        measure: Another measure of the training data instead of kappa.
    """
    return over_time(runs, (measure, "train"), TRAINING_LOSS, window="plateau")


def plateau_points(run: Trajectory, measure: str = "relative_flatness") -> Points:
    """What `plateau_correlation` correlates in one run: the measure, then the training loss."""
    return together(run, [(measure, "train"), TRAINING_LOSS], "plateau")


def over_time(
    runs: Sequence[Trajectory],
    x: Quantity,
    y: Quantity,
    *,
    fixed: Quantity | None = None,
    window: Window,
) -> Correlation:
    """Rank correlation of two curves within runs.

    Args:
        runs: Runs of one arm.
        x: (measure, split).
        y: (measure, split).
        fixed: What to hold fixed.
        window: Which steps to look at.
    """
    by_seed: dict[int, float] = {}
    draws: list[Array] = []
    for run in runs:
        first, second, *held = together(run, [x, y, *([fixed] if fixed else [])], window).values
        rho = partial_rank_correlation(first, second, held)
        if math.isfinite(rho):
            by_seed[run.seed] = rho
            draws.append(correlation_draws(first, second, held, seed=run.seed))
    if not by_seed:
        return Correlation(math.nan, UNKNOWN, {})
    return Correlation(*correlation_over_seeds(list(by_seed.values()), draws), by_seed)


def together(run: Trajectory, quantities: Sequence[Quantity], window: Window) -> Points:
    """Several quantities at the steps of a window that all of them have."""
    start, stop = bounds(run, window)
    curves = [run.curve(*quantity) for quantity in quantities]
    steps = reduce(np.intersect1d, [curve.steps for curve in curves])
    steps = steps[(steps >= start) & (steps <= stop)]
    values = [curve.values[np.searchsorted(curve.steps, steps)] for curve in curves]
    return Points(steps, np.array(values))


def bounds(run: Trajectory, window: Window) -> tuple[float, float]:
    """First and last step of a window; an empty one where the run lacks the milestone."""
    if window == "all steps":
        return 0.0, math.inf
    if not run.memorised.found:
        return math.inf, 0.0
    stop = run.onset.step if run.onset.found and window == "plateau" else math.inf
    return run.memorised.step, stop
