"""What goes with what over training time, as it is and with something else held fixed.

Over time everything that only rises or only falls correlates; a window that begins with
memorisation, and a partial correlation, say more than the plain one over the whole run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import pandas as pd

from grokscope.analysis.curve import Array
from grokscope.analysis.milestones import Trace, traces
from grokscope.analysis.statistics import (
    Interval,
    correlation_draws,
    correlation_over_seeds,
    partial_rank_correlation,
)

Window = Literal["all steps", "plateau", "after memorisation"]
Curve = tuple[str, str]  # measure, split
WINDOWS: tuple[Window, ...] = ("plateau", "all steps")
VALIDATION_ACCURACY: Curve = ("accuracy", "validation")
TRAINING_LOSS: Curve = ("loss", "train")
NAMES = {VALIDATION_ACCURACY: "validation accuracy", TRAINING_LOSS: "training loss"}
FLATNESS = (
    "relative_flatness",
    "relative_flatness_bound",
    "published_flatness",
    "relative_flatness_matched",
    "ncc",
)


def partial_correlations(metrics: pd.DataFrame, measures: Sequence[str] = FLATNESS) -> pd.DataFrame:
    """Rank correlations over training time of flatness and NCC with what they might stand for.

    With validation accuracy plain and given training loss, with training loss plain; on the
    plateau (memorised, and validation accuracy not yet moving) and over all steps.

    Args:
        metrics: Tidy frame.
        measures: Training measures to correlate; what was not measured is left out.

    Returns:
        ``arm, measure, with, given, window, rho, low, high, seeds``. The mean over seeds on
        Fisher's scale, 95 % interval over seeds, or of the one seed's curve resampled in blocks.
    """
    pairs = (
        (VALIDATION_ACCURACY, None),
        (VALIDATION_ACCURACY, TRAINING_LOSS),
        (TRAINING_LOSS, None),
    )
    runs = traces(metrics)
    rows = []
    for arm in sorted({run.arm for run in runs}):
        own = [run for run in runs if run.arm == arm]
        for window in WINDOWS:
            for target, given in pairs:
                for measure in measures:
                    if not any(run.has(measure) for run in own):
                        continue
                    rho, interval, by_seed = over_time(
                        own, (measure, "train"), target, given, window
                    )
                    name = NAMES[given] if given else ""
                    rows.append(
                        (arm, measure, NAMES[target], name, window, rho, *interval, len(by_seed))
                    )
    columns = ["arm", "measure", "with", "given", "window", "rho", "low", "high", "seeds"]
    return pd.DataFrame(rows, columns=columns)


def over_time(
    runs: Sequence[Trace], x: Curve, y: Curve, given: Curve | None, window: Window
) -> tuple[float, Interval, dict[int, float]]:
    """Rank correlation of two curves within runs.

    Args:
        runs: Runs of one arm.
        x: (measure, split).
        y: (measure, split).
        given: What to hold fixed.
        window: Which steps to look at.

    Returns:
        Mean over seeds, interval, and seed -> correlation. NaN where no run has both curves.
    """
    values: dict[int, float] = {}
    draws: list[Array] = []
    for run in runs:
        columns = together(run, [x, y, *([given] if given else [])], window)
        rho = partial_rank_correlation(columns[0], columns[1], list(columns[2:]))
        if math.isfinite(rho):
            values[run.seed] = rho
            draws.append(
                correlation_draws(columns[0], columns[1], list(columns[2:]), seed=run.seed)
            )
    if not values:
        return math.nan, (math.nan, math.nan), {}
    rho, interval = correlation_over_seeds(list(values.values()), draws)
    return rho, interval, values


def together(run: Trace, curves: Sequence[Curve], window: Window) -> Array:
    """Values of several curves at the steps that all of them have, ``[curves, points]``."""
    start, stop = bounds(run, window)
    series = [pd.Series(run.get(*each)[1], index=run.get(*each)[0]) for each in curves]
    frame = pd.concat(series, axis=1, join="inner").sort_index()
    steps = frame.index.to_numpy(dtype=np.float64)
    return np.asarray(frame[(steps >= start) & (steps <= stop)].to_numpy(dtype=np.float64).T)


def bounds(run: Trace, window: Window) -> tuple[float, float]:
    """First and last step of a window; an empty one where the run lacks the milestone."""
    if window == "all steps":
        return 0.0, math.inf
    if not run.memorised.found:
        return math.inf, 0.0
    stop = run.onset.step if run.onset.found and window == "plateau" else math.inf
    return run.memorised.step, stop
