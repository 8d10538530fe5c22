"""What has run, read once: every run's curves with its milestones, by arm and seed.

A `Trajectory` is one run: an arm under one seed. An `Arm` holds its trajectories, `Results` the
arms. Claims, tables, figures and captions ask these, so that a number is the same wherever it
stands. Steps count optimiser updates.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from grokscope.analysis.level import Span, quick_median
from grokscope.analysis.statistics import Effect, geometric_ratio, paired_difference
from grokscope.analysis.tidy import runs_of
from grokscope.analysis.trajectory import MILESTONES, At, Trajectory

if TYPE_CHECKING:
    import pandas as pd

    from grokscope.interventions.settings import Scheduled
    from grokscope.runs.store import Store
    from grokscope.spec import Experiment, Phase, Run

__all__ = ["MILESTONES", "REFERENCE", "Arm", "At", "Results", "Trajectory"]

REFERENCE = "baseline"  # the arm that others are compared with, where there is one of this name
CLASSES = {"cifar10": 10, "cifar-10": 10, "digits": 10}  # of a source, where none was measured


class Arm:
    """The runs of one arm, by seed.

    Args:
        name: As in the experiment.
        runs: Its trajectories; they take the phases of the arm.
        settings: What was run; None where only the numbers are known, and everything up to the last
            step of any run counts as one phase.
    """

    def __init__(self, name: str, runs: Sequence[Trajectory], settings: Run | None = None) -> None:
        self.name, self.settings = name, settings
        self.runs = {run.seed: run for run in runs}
        self.last_step = max((run.last_step for run in runs), default=0.0)
        self.phases = _phases(settings) or (Span(0.0, self.last_step),)
        for run in runs:
            run.phases = self.phases

    def has(self, measure: str, split: str = "train") -> bool:
        """Whether a run of the arm has the measure."""
        return any(run.has(measure, split) for run in self.runs.values())

    def levels(self, measure: str, split: str = "train", at: At = -1) -> dict[int, float]:
        """Seed -> level, as `Trajectory.level`; NaN for a run that has none."""
        return {seed: run.level(measure, split, at) for seed, run in self.runs.items()}

    def level(self, measure: str, split: str = "train", at: At = -1) -> float:
        """The median over seeds of their levels; NaN without one."""
        levels = [level for level in self.levels(measure, split, at).values() if level == level]
        return quick_median(np.array(levels)) if levels else math.nan

    def difference(self, other: Arm, measure: str, split: str = "train", at: At = -1) -> Effect:
        """Levels of this arm minus those of another at the same step, seed by seed.

        Args:
            other: The reference.
            measure: What to compare.
            split: On which data.
            at: As of `Trajectory.level`; a phase is one of this arm's.
        """
        return paired_difference(*self._both(other, measure, split, at))

    def ratio(self, other: Arm, measure: str, split: str = "train", at: At = -1) -> Effect:
        """Levels of this arm over those of another, averaged on a log scale.

        Of seeds in which both are positive; arguments as of `difference`.
        """
        both = self._both(other, measure, split, at)
        positive = [{seed: level for seed, level in side.items() if level > 0} for side in both]
        return geometric_ratio(*positive)

    def _both(self, other: Arm, measure: str, split: str, at: At) -> list[dict[int, float]]:
        """Levels of this arm and of another at the same place."""
        at = self.phases[at] if isinstance(at, int) else at
        return [arm.levels(measure, split, at) for arm in (self, other)]

    @property
    def steps_per_epoch(self) -> float:
        """Optimiser steps in one pass over the training data; NaN if not known."""
        known = [run.steps_per_epoch for run in self.runs.values()]
        known = [steps for steps in known if math.isfinite(steps)]
        return quick_median(np.array(known)) if known else math.nan

    @property
    def classes(self) -> float:
        """Number of classes, as measured or as known of the data; NaN where it is not."""
        for split in ("train", "validation"):
            measured = [run.curve("classes", split).values for run in self.runs.values()]
            if any(len(values) for values in measured):
                return float(max(values.max() for values in measured if len(values)))
        source = str(getattr(self.settings and self.settings.task, "source", ""))
        return CLASSES.get(source.rstrip("/").rpartition("/")[2].lower(), math.nan)

    @property
    def diverged(self) -> list[int]:
        """Seeds whose run ended because features or logits were no longer finite."""
        return [seed for seed, run in self.runs.items() if run.diverged]

    @property
    def ended_early(self) -> dict[int, float]:
        """Seed -> last step of the runs that have not come to the end of the last phase."""
        stop = self.phases[-1].stop
        return {s: run.last_step for s, run in self.runs.items() if not run.reached(stop)}

    def caps(self) -> list[tuple[Span, float]]:
        """When the head's Frobenius norm is capped, and at what."""
        return [
            (span, constraint.cap)
            for phase, settings in self._conditions()
            for constraint in settings.constraints
            if constraint.kind == "frobenius"
            for span in _while_on(constraint, phase)
        ]

    def penalised(self) -> Span | None:
        """The last phase with a penalty, up to where the penalty ends; None without one."""
        found = None
        for phase, settings in self._conditions():
            penalties = [penalty for penalty in settings.penalties if penalty.weight]
            stops = [span.stop for penalty in penalties for span in _while_on(penalty, phase)]
            if stops:
                found = Span(phase.start, max(stops))
        return found

    def common_until(self, other: Arm) -> float:
        """Up to which step two arms are the same run; 0 if they differ from the start."""
        if self.settings is None or other.settings is None:
            return 0.0
        common = 0.0
        if _differ(self.settings, other.settings, "phases"):
            return common
        for (span, phase), (other_span, other_phase) in zip(
            self._conditions(), other._conditions(), strict=False
        ):
            if _differ(phase, other_phase, "until"):
                break
            if span.stop != other_span.stop:
                # A schedule that ends elsewhere differs from the start; a constant one does not.
                constant = phase.optimizer.schedule == "constant"
                return min(span.stop, other_span.stop) if constant else common
            common = span.stop
        return common

    def _conditions(self) -> Iterator[tuple[Span, Phase]]:
        """Each phase with its settings."""
        phases = () if self.settings is None else self.settings.phases
        return zip(self.phases, phases, strict=False)


class Results:
    """All that has run of an experiment.

    Args:
        arms: In the order of the experiment.
        experiment: What was asked; None where only the numbers are known.
        folder: Where it lies; no code in there is run.
    """

    def __init__(
        self, arms: Sequence[Arm], experiment: Experiment | None = None, folder: Path | None = None
    ) -> None:
        self.arms = {arm.name: arm for arm in arms}
        self.experiment, self.folder = experiment, folder

    @classmethod
    def read(cls, store: Store) -> Results:
        """What lies in a folder of results.

        Raises:
            FileNotFoundError: If nothing was run there.
            ValueError: If a file is damaged; names it.
        """
        experiment = store.experiment()
        found = cls.from_metrics(store.metrics(experiment), experiment)
        found.folder = store.folder
        return found

    @classmethod
    def from_metrics(cls, metrics: pd.DataFrame, experiment: Experiment | None = None) -> Results:
        """Runs and arms of a tidy frame; of repeated looks the last one counts.

        Args:
            metrics: ``arm, seed, step, epoch, split, measure, value``; ``epoch`` may be missing.
            experiment: The phases of its arms, and their order.

        Raises:
            ValueError: If other columns are missing.
        """
        settings = {} if experiment is None else dict(experiment.arms)
        by_arm: dict[str, list[Trajectory]] = {name: [] for name in settings}
        for run in runs_of(metrics):
            by_arm.setdefault(run.arm, []).append(run)
        arms = [Arm(name, runs, settings.get(name)) for name, runs in by_arm.items()]
        return cls(arms, experiment)

    @classmethod
    def of(cls, results: Results | pd.DataFrame) -> Results:
        """Results as they are; those of a tidy frame with a warning, for one version."""
        if isinstance(results, Results):
            return results
        warnings.warn(
            "pass Results.from_metrics(frame) instead of a frame.", DeprecationWarning, stacklevel=3
        )
        return cls.from_metrics(results)

    @property
    def runs(self) -> list[Trajectory]:
        """Every run, arm by arm."""
        return [run for arm in self.arms.values() for run in arm.runs.values()]

    @property
    def reference(self) -> Arm | None:
        """The arm named ``baseline``, or else the first; None without arms."""
        return self.arms.get(REFERENCE) or next(iter(self.arms.values()), None)

    def only(self, arm: str) -> Results:
        """The results of one arm alone.

        Raises:
            ValueError: If there is none of this name; says which there are.
        """
        if arm not in self.arms:
            raise ValueError(f"there is no arm {arm!r}; there are: {', '.join(self.arms)}")
        return Results([self.arms[arm]], self.experiment, self.folder)


def _phases(settings: Run | None) -> tuple[Span, ...]:
    stops = [] if settings is None else [float(phase.until) for phase in settings.phases]
    return tuple(Span(*pair) for pair in zip([0.0, *stops], stops, strict=False))


def _while_on(setting: Scheduled, phase: Span) -> list[Span]:
    """The part of a phase in which a scheduled intervention is on; none if it never is."""
    stop = phase.stop if setting.stop is None else min(phase.stop, float(setting.stop))
    span = Span(max(phase.start, float(setting.start)), stop)
    return [span] if span.start < span.stop else []


def _differ(settings: Run | Phase, others: Run | Phase, but: str) -> bool:
    """Whether settings differ in anything else than this one."""
    return settings.model_copy(update={but: getattr(others, but)}) != others
