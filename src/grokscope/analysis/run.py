"""What has run, read once: every run's curves with its milestones, by arm and seed.

A `Trajectory` is one run: an arm under one seed. An `Arm` holds its trajectories, `Results` the
arms. Claims, tables, figures and captions ask these, so that a number is the same wherever it
stands; the rule for a level is that of `grokscope.analysis.level`. Steps count optimiser updates.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from grokscope.analysis.level import (
    Array,
    Curve,
    Span,
    level_around,
    level_at_end,
    level_before,
)
from grokscope.analysis.milestones import (
    generalisation_onset,
    generalisation_step,
    memorisation_step,
)
from grokscope.analysis.onset import Onset

if TYPE_CHECKING:
    from grokscope.runs.store import Store
    from grokscope.spec import Experiment, Run

REFERENCE = "baseline"  # the arm that others are compared with, where there is one of this name
MILESTONES = ("memorised", "onset", "generalised")
KEYS = ["arm", "seed", "split", "measure", "step"]
NOTHING = Curve(np.empty(0), np.empty(0))

# Where a level is taken: the index of a phase (-1 is the last), a `Span`, the name of a milestone
# (the looks around it) or "before " and that name (the last looks before it).
At = int | str | Span


class Trajectory:
    """One run: the curves of an arm under one seed.

    Args:
        arm: Name of the arm.
        seed: Its seed.
        curves: (measure, split) -> curve; finite and ascending.
        phases: The phases of the arm, in steps; empty where they are not known: then everything
            that was measured counts as one phase.
        steps_per_epoch: Optimiser steps in one pass over the training data; NaN if not known.
    """

    def __init__(
        self,
        arm: str,
        seed: int,
        curves: Mapping[tuple[str, str], Curve],
        *,
        phases: Sequence[Span] = (),
        steps_per_epoch: float = math.nan,
    ) -> None:
        self.arm, self.seed, self.curves = arm, seed, curves
        self.last_step = max((float(curve.steps[-1]) for curve in curves.values()), default=0.0)
        self.phases = tuple(phases) or (Span(0.0, self.last_step),)
        self.steps_per_epoch = steps_per_epoch

    def curve(self, measure: str, split: str = "train") -> Curve:
        """The curve of a measure; empty where it was not measured."""
        return self.curves.get((measure, split), NOTHING)

    def has(self, measure: str, split: str = "train") -> bool:
        """Whether the measure has a finite value on that split."""
        return (measure, split) in self.curves

    def level(self, measure: str, split: str = "train", at: At = -1) -> float:
        """Where a measure stands; NaN with too few looks, or where the run did not get there."""
        curve = self.curve(measure, split)
        if isinstance(at, str):
            before, _, milestone = at.rpartition(" ")
            step = self.milestone(milestone).step
            return level_before(curve, step) if before else level_around(curve, step)
        span = self.phases[at] if isinstance(at, int) else at
        return level_at_end(curve, span) if self.reached(span.stop) else math.nan

    def reached(self, step: float) -> bool:
        """Whether the run was measured at that step or later."""
        return self.last_step >= step

    @property
    def diverged(self) -> bool:
        """Whether the run ended because its features or logits were no longer finite."""
        return self.has("diverged")

    def milestone(self, name: str) -> Onset:
        """A milestone by its name, one of `MILESTONES`."""
        if name not in MILESTONES:
            raise ValueError(f"there is no milestone {name!r}; there are {', '.join(MILESTONES)}")
        found: Onset = getattr(self, name)
        return found

    @cached_property
    def memorised(self) -> Onset:
        """When training accuracy reaches 0.99 for good."""
        return memorisation_step(*self.curve("accuracy"))

    @cached_property
    def onset(self) -> Onset:
        """When validation accuracy leaves its plateau; none without memorisation."""
        if not self.memorised.found:
            nan = math.nan
            return Onset(nan, (nan, nan), nan, nan, False, "it never memorised")
        return generalisation_onset(*self.curve("accuracy", "validation"), self.memorised.step)

    @cached_property
    def generalised(self) -> Onset:
        """When validation accuracy reaches 0.95 for good."""
        return generalisation_step(*self.curve("accuracy", "validation"))


class Arm:
    """The runs of one arm, by seed.

    Args:
        name: As in the experiment.
        runs: Its trajectories.
        settings: What was run; None where only the numbers are known.
    """

    def __init__(self, name: str, runs: Sequence[Trajectory], settings: Run | None = None) -> None:
        self.name, self.settings = name, settings
        self.runs = {run.seed: run for run in runs}
        self.phases = next(iter(self.runs.values())).phases if self.runs else ()

    def has(self, measure: str, split: str = "train") -> bool:
        """Whether a run of the arm has the measure."""
        return any(run.has(measure, split) for run in self.runs.values())

    def levels(self, measure: str, split: str = "train", at: At = -1) -> dict[int, float]:
        """Seed -> level, as `Trajectory.level`; NaN for a run that has none."""
        return {seed: run.level(measure, split, at) for seed, run in self.runs.items()}

    def level(self, measure: str, split: str = "train", at: At = -1) -> float:
        """The median over seeds of their levels; NaN without one."""
        levels = [level for level in self.levels(measure, split, at).values() if level == level]
        return float(np.median(levels)) if levels else math.nan


class Results:
    """All that has run of an experiment.

    Args:
        arms: In the order of the experiment.
        experiment: What was asked; None where only the numbers are known.
    """

    def __init__(self, arms: Sequence[Arm], experiment: Experiment | None = None) -> None:
        self.arms = {arm.name: arm for arm in arms}
        self.experiment = experiment

    @classmethod
    def read(cls, store: Store) -> Results:
        """What lies in a folder of results.

        Raises:
            FileNotFoundError: If nothing was run there.
            ValueError: If a file is damaged; names it.
        """
        experiment = store.experiment()
        return cls.from_metrics(store.metrics(experiment), experiment)

    @classmethod
    def from_metrics(cls, metrics: pd.DataFrame, experiment: Experiment | None = None) -> Results:
        """Runs and arms of a tidy frame; of repeated looks the last one counts.

        Args:
            metrics: ``arm, seed, step, epoch, split, measure, value``; ``epoch`` may be missing.
            experiment: The phases of its arms, and their order.

        Raises:
            ValueError: If other columns are missing.
        """
        missing = [name for name in [*KEYS, "value"] if name not in metrics]
        if missing:
            raise ValueError(f"metrics lacks the columns {', '.join(missing)}")
        settings = {} if experiment is None else dict(experiment.arms)
        grouped = {str(name): group for name, group in metrics.groupby("arm", observed=True)}
        names = [*settings, *(name for name in grouped if name not in settings)]
        arms = []
        for name in names:
            run = settings.get(name)
            runs = list(_runs(name, grouped[name], run)) if name in grouped else []
            arms.append(Arm(name, runs, run))
        return cls(arms, experiment)

    @property
    def runs(self) -> list[Trajectory]:
        """Every run, arm by arm."""
        return [run for arm in self.arms.values() for run in arm.runs.values()]

    @property
    def reference(self) -> Arm | None:
        """The arm named ``baseline``, or else the first; None without arms."""
        return self.arms.get(REFERENCE) or next(iter(self.arms.values()), None)


def _runs(arm: str, metrics: pd.DataFrame, settings: Run | None) -> Iterator[Trajectory]:
    stops = [] if settings is None else [float(phase.until) for phase in settings.phases]
    phases = [Span(*pair) for pair in zip([0.0, *stops[:-1]], stops, strict=True)]
    rows = metrics.drop_duplicates(KEYS, keep="last").sort_values("step", kind="stable")
    rows = rows[np.isfinite(rows["value"].to_numpy(dtype=np.float64))]
    for seed, group in rows.groupby("seed", sort=True):
        curves = {
            (str(measure), str(split)): Curve(_floats(curve["step"]), _floats(curve["value"]))
            for (measure, split), curve in group.groupby(["measure", "split"], observed=True)
        }
        later = group[group["step"] > 0]
        pace = float((later["step"] / later["epoch"]).median()) if "epoch" in later else math.nan
        yield Trajectory(arm, int(str(seed)), curves, phases=phases, steps_per_epoch=pace)


def _floats(column: pd.Series) -> Array:
    return column.to_numpy(dtype=np.float64)
