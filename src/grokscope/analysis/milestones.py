"""The milestones of one run: memorised, validation accuracy begins to move, generalised, stable.

A `Trace` is one run's curves with its milestones; `plateau_table` and `onset_table` lay them out
for the report. A run without a milestone has NaN there and is never dropped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from grokscope.analysis.curve import WINDOW, Array, Scale
from grokscope.analysis.onset import LOST, Onset, detect_crossing, detect_onset

MEMORISED = 0.99  # training accuracy
GENERALISED = 0.95  # validation accuracy
FELL_AGAIN = 0.9  # validation accuracy below which a generalised network counts as lost
UNSTABLE = 0.05  # share of such points above which a run is called unstable
LEAST_RISE = 0.1  # of validation accuracy; less is no generalisation
CREEP = 0.25  # of the way from plateau to end: how far the plateau may creep and still be one
LEAST_FALL = math.log10(1.5)  # decades; a measure that falls less does not fall
LEAST_PLATEAU = 1.25  # ratio of steps; a shorter plateau cannot tell its two ends apart
LEAST_PLATEAU_POINTS = 5

# What falls or improves, on which data, on which scale: the rows of `onset_table`.
MOVING: tuple[tuple[str, str, Scale], ...] = (
    ("ncc", "train", "log"),
    ("ncc", "validation", "log"),
    ("relative_flatness", "train", "log"),
    ("relative_flatness_bound", "train", "log"),
    ("published_flatness", "train", "log"),
    ("relative_flatness_matched", "train", "log"),
    ("representativeness", "validation", "linear"),
    ("representativeness_kde", "validation", "linear"),
)


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


@dataclass(frozen=True)
class Trace:
    """One run's curves.

    Attributes:
        arm: Its arm.
        seed: Its seed.
        curves: (split, measure) -> (steps, values), finite and ascending.
    """

    arm: str
    seed: int
    curves: dict[tuple[str, str], tuple[Array, Array]] = field(repr=False)

    def get(self, measure: str, split: str = "train") -> tuple[Array, Array]:
        """Steps and values; both empty when the measure was not taken."""
        return self.curves.get((split, measure), (np.empty(0), np.empty(0)))

    def has(self, measure: str, split: str = "train") -> bool:
        """Whether the measure was taken."""
        return (split, measure) in self.curves

    @cached_property
    def memorised(self) -> Onset:
        """When training accuracy is there."""
        return memorisation_step(*self.get("accuracy"))

    @cached_property
    def onset(self) -> Onset:
        """When validation accuracy leaves its plateau; none without memorisation."""
        if not self.memorised.found:
            nan = math.nan
            return Onset(nan, (nan, nan), nan, nan, False, "it never memorised")
        return generalisation_onset(*self.get("accuracy", "validation"), self.memorised.step)

    @cached_property
    def generalised(self) -> Onset:
        """When validation accuracy is there."""
        return generalisation_step(*self.get("accuracy", "validation"))

    @cached_property
    def fell_again(self) -> float:
        """Share of later points at which a generalised network was lost, even for good."""
        steps, accuracy = self.get("accuracy", "validation")
        reached = detect_crossing(steps, accuracy, GENERALISED, lasting=False, resamples=0)
        return stability(steps, accuracy, reached.step)

    @property
    def unusable(self) -> str:
        """Why the run says nothing about the order of events; empty when it does."""
        if not self.memorised.found:
            lost = self.memorised.reason == LOST
            return "memorised and lost it again" if lost else "never memorised"
        steps, accuracy = self.get("accuracy", "validation")
        lost = self.generalised.reason == LOST
        if not (self.generalised.found or lost):
            return "never generalised"
        # Lost at the very end: too few points for `LOST`, yet all of those that an onset ends on.
        end = float(np.median(accuracy[-max(WINDOW, len(accuracy) // 10) :]))
        if lost or (not self.onset.found and end < FELL_AGAIN):
            return "generalised and lost it again"
        if not self.onset.found:
            return "generalised without a plateau"
        start, end = self.memorised.step, self.onset.step
        points = int(((steps >= start) & (steps <= end)).sum())
        if end < LEAST_PLATEAU * start or points < LEAST_PLATEAU_POINTS:
            return "generalised right after memorising"
        return ""


def traces(metrics: pd.DataFrame, arm: str | None = None) -> list[Trace]:
    """The runs of a tidy metrics frame, by arm and seed; of repeated points the last counts.

    Args:
        metrics: ``arm, seed, step, split, measure, value`` and what else there is.
        arm: Only this arm.

    Raises:
        ValueError: If columns are missing, or the arm has no rows.
    """
    keys = ["arm", "seed", "split", "measure", "step"]
    missing = [each for each in [*keys, "value"] if each not in metrics]
    if missing:
        raise ValueError(f"metrics lacks the columns {', '.join(missing)}")
    rows = metrics if arm is None else metrics[metrics["arm"] == arm]
    if arm is not None and rows.empty:
        known = ", ".join(sorted(map(str, metrics["arm"].unique())))
        raise ValueError(f"metrics has no arm {arm!r}; it has: {known}")
    rows = rows.drop_duplicates(keys, keep="last").sort_values("step", kind="stable")
    rows = rows[np.isfinite(rows["value"].to_numpy(dtype=np.float64))]
    found: dict[tuple[str, int], dict[tuple[str, str], tuple[Array, Array]]] = {}
    for (own, seed, split, measure), group in rows.groupby(keys[:4], sort=True, observed=True):
        steps = group["step"].to_numpy(dtype=np.float64)
        values = group["value"].to_numpy(dtype=np.float64)
        run = found.setdefault((str(own), int(str(seed))), {})
        run[str(split), str(measure)] = (steps, values)
    return [Trace(own, seed, curves) for (own, seed), curves in found.items()]


def plateau_table(metrics: pd.DataFrame) -> pd.DataFrame:
    """Milestones of every run, in steps, NaN where not reached.

    Returns:
        ``arm, seed, memorised, onset, generalised, stable_after``; the last is the share of the
        points after validation accuracy first was there, even if it was lost for good, at which
        it stayed at 0.9 or above.
    """
    columns = ["arm", "seed", "memorised", "onset", "generalised", "stable_after"]
    rows = [
        (run.arm, run.seed, run.memorised.step, run.onset.step, run.generalised.step,
         1 - run.fell_again)
        for run in traces(metrics)
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=columns)


def onset_table(
    metrics: pd.DataFrame, moving: Sequence[tuple[str, str, Scale]] = MOVING
) -> pd.DataFrame:
    """Onsets of the lasting fall of every measure, beside those of memorising and generalising.

    Args:
        metrics: Tidy frame.
        moving: (measure, split, scale) of what to look at; what was not measured is left out.

    Returns:
        ``arm, measure, split, seed, step, low, high``; NaN where there is no onset.
    """
    rows = []
    for run in traces(metrics):
        found = {("memorised", ""): run.memorised, ("generalisation", ""): run.onset}
        for measure, split, scale in moving:
            if run.has(measure, split):
                steps, values = run.get(measure, split)
                found[measure, split] = fall_onset(steps, values, scale)
        for (measure, split), onset in found.items():
            rows.append((run.arm, measure, split, run.seed, onset.step, *onset.interval))
    return pd.DataFrame(rows, columns=["arm", "measure", "split", "seed", "step", "low", "high"])


def fall_onset(steps: Array, values: Array, scale: Scale, stage: str = "first") -> Onset:
    """Onset of a fall (``log``: by a factor of 1.5 or more) or, on ``linear``, towards zero."""
    if scale == "log":
        return detect_onset(
            steps, values, "fall", "log",
            stage="largest" if stage == "largest" else "first", least_change=LEAST_FALL,
        )  # fmt: skip
    return detect_onset(
        steps, np.abs(values), "fall", stage="largest" if stage == "largest" else "first"
    )
