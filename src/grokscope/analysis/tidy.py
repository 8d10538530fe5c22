"""A tidy frame of metrics taken apart into the curves of its runs, without a loop over rows."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from grokscope.analysis.level import Array, Curve
from grokscope.analysis.trajectory import Trajectory

if TYPE_CHECKING:
    import pandas as pd

KEYS = ["arm", "seed", "measure", "split"]


def runs_of(metrics: pd.DataFrame) -> list[Trajectory]:
    """The runs of a frame, by arm and seed.

    Args:
        metrics: ``arm, seed, step, epoch, split, measure, value``, its rows in any order; ``epoch``
            may be missing. Of repeated looks the last one counts; values that are not finite are
            left out.

    Raises:
        ValueError: If other columns are missing.

    Cost: O(rows) where rows come run by run, as from a store; about a second for four million.
    """
    missing = [name for name in (*KEYS, "step", "value") if name not in metrics]
    if missing:
        raise ValueError(f"metrics lacks the columns {', '.join(missing)}")
    key = metrics.groupby(KEYS, observed=True, sort=False).ngroup().to_numpy()
    steps, values = (metrics[name].to_numpy(dtype=np.float64) for name in ("step", "value"))
    epochs = metrics["epoch"].to_numpy(dtype=np.float64) if "epoch" in metrics else None
    order = np.argsort(key, kind="stable")
    if ((np.diff(steps[order]) < 0) & (np.diff(key[order]) == 0)).any():
        order = np.lexsort((steps, key))  # stable, too: of equal steps the last row stays last
    key, steps, values = key[order], steps[order], values[order]
    kept = np.isfinite(values) & (key >= 0)
    kept[:-1] &= (np.diff(key) != 0) | (np.diff(steps) != 0)
    key, steps, values, order = key[kept], steps[kept], values[kept], order[kept]
    bounds = np.flatnonzero(np.diff(key, prepend=-1, append=-1)).tolist()
    names = metrics[KEYS].iloc[order[bounds[:-1]]].itertuples(index=False)
    curves: dict[tuple[str, int], dict[tuple[str, str], Curve]] = {}
    pace: dict[tuple[str, int], float] = {}
    for (start, stop), (arm, seed, measure, split) in zip(pairwise(bounds), names, strict=True):
        run = (str(arm), int(seed))
        if run not in curves:
            curves[run] = {}
            pace[run] = _pace(steps[start:stop], epochs, order[start:stop])
        curves[run][str(measure), str(split)] = Curve(steps[start:stop], values[start:stop])
    return [Trajectory(*run, curves[run], steps_per_epoch=pace[run]) for run in sorted(curves)]


def _pace(steps: Array, epochs: Array | None, rows: NDArray[np.int64]) -> float:
    """Steps in an epoch, from the looks after the first step."""
    if epochs is None:
        return math.nan
    later = (steps > 0) & (epochs[rows] > 0)
    return float(np.median(steps[later] / epochs[rows[later]])) if later.any() else math.nan
