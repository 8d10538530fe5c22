"""A tidy frame of metrics taken apart into the curves of its runs, without a loop over rows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from grokscope.analysis.level import Array, Curve

if TYPE_CHECKING:
    import pandas as pd

KEYS = ("arm", "seed", "measure", "split")
COLUMNS = (*KEYS, "step", "value")


class Measured(NamedTuple):
    """What was measured of one run.

    Attributes:
        arm: Its arm.
        seed: Its seed.
        curves: (measure, split) -> curve; finite and ascending.
        steps_per_epoch: Optimiser steps in an epoch; NaN where the frame does not say.
    """

    arm: str
    seed: int
    curves: dict[tuple[str, str], Curve]
    steps_per_epoch: float


def curves_of(metrics: pd.DataFrame) -> list[Measured]:
    """The runs of a frame, by arm and seed.

    Args:
        metrics: ``arm, seed, step, epoch, split, measure, value``, its rows in any order; ``epoch``
            may be missing. Of repeated looks the last one counts; values that are not finite are
            left out.

    Raises:
        ValueError: If other columns are missing.

    Cost: O(rows) where rows come run by run, as from a store; about a second for four million.
    """
    missing = [name for name in COLUMNS if name not in metrics]
    if missing:
        raise ValueError(f"metrics lacks the columns {', '.join(missing)}")
    coded = [_coded(metrics[name]) for name in KEYS]
    key = np.zeros(len(metrics), dtype=np.int64)
    for codes, names in coded:
        key = key * max(len(names), 1) + codes
    steps, values = (metrics[name].to_numpy(dtype=np.float64) for name in ("step", "value"))
    epochs = metrics["epoch"].to_numpy(dtype=np.float64) if "epoch" in metrics else None
    order = np.argsort(key, kind="stable")
    again = key[order][1:] == key[order][:-1]
    if (np.diff(steps[order])[again] < 0).any():
        order = np.lexsort((steps, key))  # stable, too: of equal steps the last row stays last
    repeated = (np.diff(key[order]) == 0) & (np.diff(steps[order]) == 0)
    order = order[~np.append(repeated, False)] if len(order) else order
    known = np.logical_and.reduce([codes[order] >= 0 for codes, _ in coded])
    order = order[known & np.isfinite(values[order])]
    runs: dict[tuple[str, int], dict[tuple[str, str], Curve]] = {}
    pace: dict[tuple[str, int], float] = {}
    key, steps, values = key[order], steps[order], values[order]
    for start, stop in _groups(key):
        row = order[start]
        arm, seed, measure, split = (names[codes[row]] for codes, names in coded)
        run = (str(arm), int(seed))
        curve = Curve(steps[start:stop], values[start:stop])
        runs.setdefault(run, {})[str(measure), str(split)] = curve
        if epochs is not None and not math.isfinite(pace.get(run, math.nan)):
            pace[run] = _pace(curve.steps, epochs[order[start:stop]])
    return [
        Measured(arm, seed, curves, pace.get((arm, seed), math.nan))
        for (arm, seed), curves in sorted(runs.items(), key=lambda item: item[0])
    ]


def _coded(column: pd.Series) -> tuple[NDArray[Any], list[Any]]:
    """A number for each row, and what the numbers stand for; -1 where there is nothing."""
    import pandas as pd

    if isinstance(column.dtype, pd.CategoricalDtype):
        return column.cat.codes.to_numpy(dtype=np.int64), list(column.cat.categories)
    codes, names = pd.factorize(column)
    return codes, list(names)


def _groups(key: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """First and last index (exclusive) of each stretch of equal keys."""
    edges = np.flatnonzero(np.diff(key)) + 1
    return pairwise([0, *edges.tolist(), len(key)] if len(key) else [])


def _pace(steps: Array, epochs: Array) -> float:
    """Steps in an epoch, from the looks after the first step."""
    later = (steps > 0) & (epochs > 0)
    return float(np.median(steps[later] / epochs[later])) if later.any() else math.nan
