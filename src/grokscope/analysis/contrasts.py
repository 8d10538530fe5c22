"""The comparisons that an experiment declares: two arms, seed by seed, at the end of a phase."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from grokscope.analysis.level import Span
from grokscope.analysis.run import Arm, Results, Trajectory
from grokscope.analysis.statistics import Paired
from grokscope.spec import Contrast


@dataclass(frozen=True)
class Comparison:
    """An arm and its reference at the end of a phase of the arm, run by run.

    Attributes:
        contrast: Which arms, for which claim.
        arm: The arm.
        reference: What it is compared with, at the same step.
        phase: Index of the arm's phase, not negative.
        place: Of the contrast among those that the experiment declares for its claim.
    """

    contrast: Contrast
    arm: Arm
    reference: Arm
    phase: int
    place: int = 0

    @property
    def name(self) -> str:
        """Arm, and what sets the comparison apart from others of it."""
        contrast = self.contrast
        against = "" if contrast.against == "baseline" else f" against {contrast.against}"
        return f"{contrast.arm}{against}{', ' if contrast.label else ''}{contrast.label}"

    @property
    def span(self) -> Span:
        """The phase at whose end the arms are compared, in steps."""
        return self.arm.phases[self.phase]

    @property
    def before(self) -> Comparison | None:
        """The same arms at the end of the phase before; None in the first."""
        return replace(self, phase=self.phase - 1) if self.phase else None

    @property
    def pairs(self) -> dict[int, tuple[Trajectory, Trajectory]]:
        """Seed -> (run of the arm, run of the reference), of seeds that have both."""
        runs, others = self.arm.runs, self.reference.runs
        return {seed: (runs[seed], others[seed]) for seed in sorted(runs.keys() & others.keys())}

    def levels(self, measure: str, split: str = "train") -> dict[int, tuple[float, float]]:
        """Seed -> levels of arm and reference; NaN where a run has none."""
        arm, reference = (
            side.levels(measure, split, self.span) for side in (self.arm, self.reference)
        )
        return {seed: (arm[seed], reference[seed]) for seed in self.pairs}

    def arm_levels(self, measure: str, split: str = "train") -> dict[int, float]:
        """Seed -> level of the arm."""
        return {seed: level for seed, (level, _) in self.levels(measure, split).items()}

    def difference(
        self, measure: str, split: str = "train", seeds: Sequence[int] | None = None
    ) -> Paired:
        """Arm minus reference, of these seeds alone if any are named."""
        return self.arm.difference(self.reference, measure, split, self.span, seeds=seeds)

    def ratio(self, measure: str, split: str = "train") -> Paired:
        """Arm over reference, averaged on a log scale; of seeds in which both are positive."""
        return self.arm.ratio(self.reference, measure, split, self.span)

    @property
    def diverged(self) -> list[int]:
        """Seeds whose run of the arm ended in NaN before the end of the phase."""
        stop = self.span.stop
        return [s for s, (run, _) in self.pairs.items() if run.diverged and not run.reached(stop)]

    @property
    def unfinished(self) -> list[int]:
        """Seeds whose run of arm or reference has not come that far yet."""
        stop = self.span.stop
        return [
            seed
            for seed, pair in self.pairs.items()
            if any(not run.reached(stop) and not run.diverged for run in pair)
        ]

    @property
    def comparable(self) -> bool:
        """Whether a seed has a level in both arms at the end of the phase."""
        return any(math.isfinite(sum(pair)) for pair in self.levels("accuracy").values())

    @property
    def why_not_comparable(self) -> str:
        """Why no seed can be compared, as a sentence; empty if one can."""
        if self.comparable:
            return ""
        if not self.pairs:
            return "No seed has been run in both arms."
        reached = [
            pair for pair in self.pairs.values() if all(run.reached(self.span.stop) for run in pair)
        ]
        if not reached:
            return "No seed has come to the end of the phase in both arms."
        reasons = [run.why_no_level("accuracy", "train", self.span) for run in reached[0]]
        why = next(filter(None, reasons), "no level")
        return f"Training accuracy has no level at the end of the phase: {why}."


def comparisons(results: Results, *claims: str) -> list[Comparison]:
    """The comparisons that an experiment declares for a claim, in its order.

    Args:
        results: What has run; without an experiment, nothing is compared.
        claims: The names that the claim goes by, such as ``C7``.
    """
    experiment = results.experiment
    if experiment is None:
        return []
    contrasts = [
        contrast
        for contrast in experiment.contrasts
        if contrast.claim in claims and {contrast.arm, contrast.against} <= results.arms.keys()
    ]
    return [
        Comparison(
            contrast,
            results.arms[contrast.arm],
            results.arms[contrast.against],
            contrast.phase % len(results.arms[contrast.arm].phases),
            place=place,
        )
        for place, contrast in enumerate(contrasts)
    ]
