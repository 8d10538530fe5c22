"""One arm's metrics as curves over steps, with the milestones of each seed.

A curve is a frame ``[steps, seeds]``. Training spikes, so what is said or drawn in bold is always
a median over neighbouring points and never one checkpoint.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from grokscope.report.words import name_of

if TYPE_CHECKING:
    from grokscope.report.contents import Study

WINDOW = 5  # measuring points under one median; odd
MOST_ARMS = 4  # columns of one figure that stay readable


class MissingMeasureError(LookupError):
    """What a figure needs was not measured; the message says what, for the reader."""


class Curves:
    """The curves of one arm.

    Args:
        title: The arm in words.
        metrics: Its rows of the tidy frame; of repeated points the last one counts.
        milestones: Its rows of `Study.milestones`; may be empty.
    """

    def __init__(self, title: str, metrics: pd.DataFrame, milestones: pd.DataFrame) -> None:
        self.title = title
        self.milestones = milestones
        keys = ["split", "measure", "step", "seed"]
        rows = metrics.drop_duplicates(keys, keep="last").astype({"split": str, "measure": str})
        rows = rows.assign(value=rows["value"].where(np.isfinite(rows["value"])))
        self._groups = {
            (str(split), str(measure)): group
            for (split, measure), group in rows.groupby(["split", "measure"], sort=False)
        }
        self.seeds = sorted(int(seed) for seed in rows["seed"].unique())
        self.last_step = int(rows["step"].max()) if len(rows) else 1

    def get(self, measure: str, split: str) -> pd.DataFrame:
        """Values ``[steps, seeds]``, ascending; not finite ones are NaN.

        Raises:
            MissingMeasureError: If the measure has no finite value on that split.
        """
        if not self.has(measure, split):
            raise MissingMeasureError(f"{name_of(measure, split)} was not measured")
        return (
            self._groups[split, measure]
            .pivot(index="step", columns="seed", values="value")
            .sort_index()
        )

    def has(self, measure: str, split: str) -> bool:
        """Whether the measure has a finite value on that split."""
        group = self._groups.get((split, measure))
        return group is not None and bool(group["value"].notna().any())

    def when(self, milestone: str, seed: Any = None) -> float:
        """The step of a milestone for one seed, or the median of the seeds that reached it."""
        if milestone not in self.milestones:
            return math.nan
        rows = self.milestones
        values = (rows if seed is None else rows[rows["seed"] == seed])[milestone].dropna()
        return float(values.median()) if len(values) else math.nan

    def reached(self, milestone: str) -> list[float]:
        """The steps at which each seed reached a milestone; NaN where it did not."""
        return [self.when(milestone, seed) for seed in self.seeds]

    def relative(self, measure: str, split: str) -> pd.DataFrame:
        """A curve in units of its own value at memorisation, or at its start without one."""
        curve = self.get(measure, split)
        units = {}
        for seed in curve.columns:
            at = self.when("memorised", seed)
            values = curve[seed].dropna()
            unit = values.iloc[0] if math.isnan(at) and len(values) else around(curve[seed], at)
            units[seed] = unit if unit > 0 else math.nan
        return curve / pd.Series(units)

    def plateau(self, seed: Any) -> tuple[float, float]:
        """First step of memorisation and of generalisation; without them all steps after 0."""
        start = self.when("memorised", seed)
        candidates = [self.when(each, seed) for each in ("onset", "generalised")]
        found = [step for step in candidates if not math.isnan(step)]
        return 1 if math.isnan(start) else start, found[0] if found else math.inf

    def first_step(self) -> float:
        """Where a log axis of steps begins: a fortieth of memorisation, as 1, 2 or 5 x 10^k."""
        at = self.when("memorised")
        if math.isnan(at) or at < 80:
            return 1
        power = 10 ** math.floor(math.log10(at / 40))
        return next(float(m * power) for m in (5, 2, 1) if m * power <= at / 40)


def around(curve: pd.Series, at: float) -> float:
    """Median of the points nearest to a step, half a window to each side; NaN without one."""
    values = curve.dropna()
    if math.isnan(at) or not len(values):
        return math.nan
    nearest = int(np.abs(values.index.to_numpy(dtype=float) - at).argmin())
    return float(values.iloc[max(0, nearest - WINDOW // 2) : nearest + WINDOW // 2 + 1].median())


def before(curve: pd.Series, at: float) -> float:
    """Median of the last window of points before a step; NaN without one."""
    values = curve.dropna()
    values = values[values.index < at]
    return float(values.iloc[-WINDOW:].median()) if len(values) else math.nan


def running_median(curve: pd.DataFrame) -> pd.Series:
    """Median of all seeds' values in a centred window of points, at each step."""
    half = WINDOW // 2
    padded = np.pad(curve.to_numpy(dtype=float), ((half, half), (0, 0)), constant_values=math.nan)
    windows = np.lib.stride_tricks.sliding_window_view(padded, WINDOW, axis=0)  # [steps, seeds, W]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a window of NaN alone gives NaN
        values = np.nanmedian(windows.reshape(len(curve), -1), axis=1)
    return pd.Series(values, index=curve.index)


def arms(study: Study) -> list[Curves]:
    """The study's arms, then those of its counterpart; the first `MOST_ARMS` of them.

    Raises:
        MissingMeasureError: If nothing was measured yet.
    """
    found = list(_all_arms(study))[:MOST_ARMS]
    if not found:
        raise MissingMeasureError("nothing has been measured yet")
    return found


def _all_arms(study: Study) -> Iterator[Curves]:
    for source in (study, study.counterpart):
        if source is None:
            continue
        names = [str(name) for name in pd.unique(source.metrics["arm"])]
        for name in names:
            milestones = source.milestones
            if "arm" in milestones:
                milestones = milestones[milestones["arm"] == name]
            title = name
            if source is study and study.counterpart is not None and len(names) == 1:
                title = f"preset {study.settings.get('preset', name)}"
            if source is study.counterpart:
                title = source.title if len(names) == 1 else f"{source.title}: {name}"
            metrics = source.metrics[source.metrics["arm"].astype(str) == name]
            yield Curves(title, metrics, milestones)
