"""A tidy frame of metrics taken apart into the curves of its runs, without a loop over rows."""

from __future__ import annotations

import math
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
        key *= len(names) + 1
        key += codes
        key += 1
    steps, values = (metrics[name].to_numpy(dtype=np.float64) for name in ("step", "value"))
    epochs = metrics["epoch"].to_numpy(dtype=np.float64) if "epoch" in metrics else None
    order = np.argsort(key, kind="stable")
    if ((np.diff(steps[order]) < 0) & (np.diff(key[order]) == 0)).any():
        order = np.lexsort((steps, key))  # stable, too: of equal steps the last row stays last
    key, steps, values = key[order], steps[order], values[order]
    kept = np.isfinite(values)
    kept[:-1] &= (np.diff(key) != 0) | (np.diff(steps) != 0)
    for codes, _ in coded:
        if len(codes) and codes.min() < 0:
            kept &= codes[order] >= 0
    if not kept.all():
        key, steps, values, order = key[kept], steps[kept], values[kept], order[kept]
    bounds = [0, *(np.flatnonzero(np.diff(key)) + 1).tolist(), len(key)] if len(key) else []
    first = order[bounds[:-1]]
    named = [[names[code] for code in codes[first].tolist()] for codes, names in coded]
    runs: dict[tuple[str, int], dict[tuple[str, str], Curve]] = {}
    pace: dict[tuple[str, int], float] = {}
    for (start, stop), arm, seed, measure, split in zip(pairwise(bounds), *named, strict=True):
        run = (str(arm), int(seed))
        if run not in runs:
            runs[run] = {}
            pace[run] = _pace(steps[start:stop], epochs, order[start:stop])
        runs[run][str(measure), str(split)] = Curve(steps[start:stop], values[start:stop])
    return [Measured(*run, runs[run], pace[run]) for run in sorted(runs)]


def _coded(column: pd.Series) -> tuple[NDArray[Any], list[Any]]:
    """A number for each row, and what the numbers stand for; -1 where there is nothing."""
    import pandas as pd

    if isinstance(column.dtype, pd.CategoricalDtype):
        return column.cat.codes.to_numpy(), list(column.cat.categories)
    codes, names = pd.factorize(column)
    return codes, list(names)


def _pace(steps: Array, epochs: Array | None, rows: NDArray[np.int64]) -> float:
    """Steps in an epoch, from the looks after the first step."""
    if epochs is None:
        return math.nan
    later = (steps > 0) & (epochs[rows] > 0)
    return float(np.median(steps[later] / epochs[rows[later]])) if later.any() else math.nan
