"""Milestones and onsets of all runs as frames: a row for each run, or for each onset."""

from __future__ import annotations

import pandas as pd

from grokscope.analysis.quantities import COLLAPSE, FLATNESS, REPRESENTATIVENESS
from grokscope.analysis.run import Results

MOVING = (*COLLAPSE, *FLATNESS, *REPRESENTATIVENESS)  # the rows of `onset_table`


def plateau_table(results: Results) -> pd.DataFrame:
    """Milestones of every run, in steps, NaN where not reached.

    Args:
        results: What has run; of a tidy frame ``Results.from_metrics(frame)``.

    Returns:
        ``arm, seed, memorised, onset, generalised, stable_after``; the last is the share of the
        looks after validation accuracy was first reached, even if it was lost for good, at which
        it stayed at 0.9 or above.
    """
    columns = ["arm", "seed", "memorised", "onset", "generalised", "stable_after"]
    rows = []
    for run in Results.of(results).runs:
        steps = (run.memorised.step, run.onset.step, run.generalised.step)
        rows.append((run.arm, run.seed, *steps, 1 - run.fell_again))
    return pd.DataFrame(rows, columns=columns)


def onset_table(results: Results) -> pd.DataFrame:
    """Onsets of the lasting falls of what was measured, beside memorising and generalising.

    Args:
        results: What has run; of a tidy frame ``Results.from_metrics(frame)``.

    Returns:
        ``arm, measure, split, seed, step, low, high``; NaN where there is no onset.

    Cost: about 20 ms for each onset, for its interval.
    """
    rows = []
    for run in Results.of(results).runs:
        found = {("memorised", ""): run.memorised, ("generalisation", ""): run.onset}
        found |= {moved: run.fall(*moved) for moved in MOVING if run.has(*moved)}
        for (measure, split), onset in found.items():
            rows.append((run.arm, measure, split, run.seed, onset.step, *onset.interval))
    return pd.DataFrame(rows, columns=["arm", "measure", "split", "seed", "step", "low", "high"])
