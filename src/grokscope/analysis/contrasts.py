"""Two arms compared seed by seed, at the end of a phase.

A level is the median over the points in the last fifth of the phase; never one checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from grokscope.analysis.curve import Array
from grokscope.analysis.milestones import Trace
from grokscope.analysis.statistics import Paired, geometric_ratio, paired_difference, robust_level
from grokscope.spec import Contrast, Experiment

LAST_PART = 0.2  # of a phase, over which a level is taken
FEW = 5  # points under one median, where the last part of a phase holds too few


def level(steps: Array, values: Array, start: float, stop: float) -> float:
    """Where a curve stands at the end of a phase.

    Args:
        steps: ``[points]``, ascending.
        values: ``[points]``, finite.
        start: The step at which the phase begins; not part of it.
        stop: The step at which it ends.

    Returns:
        The median over the last fifth of the phase or, where that holds one point or two, over the
        phase's last five. NaN where the curve ends before, or the phase holds fewer than three.
    """
    late = stop - LAST_PART * (stop - start)
    inside = (steps > start) & (steps <= stop)
    if not (steps[inside] >= late).any():
        return math.nan
    found = robust_level(steps, values, late, stop)
    if math.isnan(found):
        found = robust_level(steps[inside], values[inside], start, stop, last=FEW)
    return found


@dataclass(frozen=True)
class Comparison:
    """An arm and its reference, run by run.

    Attributes:
        contrast: Which arms, for which claim.
        pairs: Seed -> (run of the arm, run of the reference).
        start: The step at which the phase begins.
        stop: The step at which it ends.
        place: Of the contrast among those that the experiment declares for its claim.
        before: The same arms at the end of the phase before; None in the first.
    """

    contrast: Contrast
    pairs: dict[int, tuple[Trace, Trace]]
    start: int
    stop: int
    place: int = 0
    before: Comparison | None = None

    @property
    def name(self) -> str:
        """Arm, and what sets the comparison apart from others of it."""
        own = self.contrast
        against = "" if own.against == "baseline" else f" against {own.against}"
        return f"{own.arm}{against}{', ' if own.label else ''}{own.label}"

    def levels(self, measure: str, split: str = "train") -> dict[int, tuple[float, float]]:
        """Seed -> levels of arm and reference; NaN for a run that ended before."""
        return {
            seed: (self._level(own, measure, split), self._level(other, measure, split))
            for seed, (own, other) in self.pairs.items()
        }

    def own(self, measure: str, split: str = "train") -> dict[int, float]:
        """Seed -> level of the arm."""
        return {seed: own for seed, (own, _) in self.levels(measure, split).items()}

    def difference(
        self, measure: str, split: str = "train", seeds: Sequence[int] | None = None
    ) -> Paired:
        """Arm minus reference, of these seeds alone if any are given."""
        levels = self.levels(measure, split)
        if seeds is not None:
            levels = {seed: levels[seed] for seed in seeds}
        return paired_difference(
            {seed: own for seed, (own, _) in levels.items()},
            {seed: other for seed, (_, other) in levels.items()},
        )

    def ratio(self, measure: str, split: str = "train") -> Paired:
        """Arm over reference, averaged on a log scale; of seeds in which both are positive."""
        levels = self.levels(measure, split)
        kept = {seed: pair for seed, pair in levels.items() if min(pair) > 0}
        return geometric_ratio(
            {seed: own for seed, (own, _) in kept.items()},
            {seed: other for seed, (_, other) in kept.items()},
        )

    @property
    def diverged(self) -> list[int]:
        """Seeds whose run of the arm ended in NaN before the end of the phase."""
        return [s for s, (own, _) in self.pairs.items() if self._short(own) and own.has("diverged")]

    @property
    def unfinished(self) -> list[int]:
        """Seeds whose run of arm or reference has not come that far yet."""
        return [
            seed
            for seed, pair in self.pairs.items()
            if any(self._short(run) and not run.has("diverged") for run in pair)
        ]

    @property
    def comparable(self) -> bool:
        """Whether a seed has both arms at the end of the phase."""
        return any(math.isfinite(sum(pair)) for pair in self.levels("accuracy").values())

    def _short(self, run: Trace) -> bool:
        steps, _ = run.get("accuracy")
        return not len(steps) or bool(steps[-1] < self.stop)

    def _level(self, run: Trace, measure: str, split: str) -> float:
        if self._short(run):
            return math.nan
        return level(*run.get(measure, split), self.start, self.stop)


def comparisons(experiment: Experiment, runs: Sequence[Trace], claim: str) -> list[Comparison]:
    """The comparisons that an experiment declares for a claim, in its order.

    Args:
        experiment: Arms, their phases, and contrasts.
        runs: What has run.
        claim: Such as ``C7``.
    """
    by_name = {(run.arm, run.seed): run for run in runs}
    declared = [each for each in experiment.contrasts if each.claim == claim]
    found = []
    for place, contrast in enumerate(declared):
        phases = experiment.arms[contrast.arm].phases
        pairs = {
            seed: (by_name[contrast.arm, seed], by_name[contrast.against, seed])
            for seed in experiment.seeds
            if (contrast.arm, seed) in by_name and (contrast.against, seed) in by_name
        }
        own: Comparison | None = None
        start = 0
        for phase in phases[: contrast.phase % len(phases) + 1]:
            own = Comparison(contrast, pairs, start, phase.until, place, own)
            start = phase.until
        assert own is not None
        found.append(own)
    return found
