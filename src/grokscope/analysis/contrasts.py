"""The comparisons that an experiment declares: two arms, seed by seed, at the end of a phase."""

from __future__ import annotations

from dataclasses import dataclass, replace

from grokscope.analysis.level import Span
from grokscope.analysis.run import Arm, Results, Trajectory
from grokscope.analysis.statistics import Effect
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
    def arms(self) -> str:
        """Arm and reference, for a sentence."""
        return f"{self.contrast.arm} against {self.contrast.against}"

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

    def arm_levels(self, measure: str, split: str = "train") -> dict[int, float]:
        """Seed -> level of the arm, of the seeds of `pairs` that have one."""
        levels = self.arm.levels(measure, split, self.span)
        return {seed: levels[seed] for seed in self.pairs if levels[seed] == levels[seed]}

    def difference(self, measure: str, split: str = "train") -> Effect:
        """Arm minus reference."""
        return self.arm.difference(self.reference, measure, split, self.span)

    def ratio(self, measure: str, split: str = "train") -> Effect:
        """Arm over reference, averaged on a log scale; of seeds in which both are positive."""
        return self.arm.ratio(self.reference, measure, split, self.span)

    @property
    def accuracy(self) -> Effect:
        """The difference of validation accuracy."""
        return self.difference("accuracy", "validation")

    @property
    def kappa(self) -> Effect:
        """The ratio of exact kappa."""
        return self.ratio("relative_flatness")

    @property
    def left_out(self) -> dict[int, str]:
        """Seed -> ``diverged`` or ``unfinished``, where a run is not at the end of the phase."""
        stop, missing = self.span.stop, {}
        for seed, pair in self.pairs.items():
            if pair[0].diverged and not pair[0].reached(stop):
                missing[seed] = "diverged"
            elif any(not run.reached(stop) and not run.diverged for run in pair):
                missing[seed] = "unfinished"
        return missing

    @property
    def diverged(self) -> list[int]:
        """Seeds whose run of the arm ended in NaN before the end of the phase."""
        return [seed for seed, why in self.left_out.items() if why == "diverged"]

    def why_no_level(self, measure: str, name: str) -> str:
        """Why no seed has a level of a training measure in both arms; empty if one has.

        Args:
            measure: Such as ``accuracy``.
            name: What to call it in the clause.
        """
        if not self.pairs:
            return "no seed has been run in both arms"
        span = self.span
        reasons = [
            [run.why_no_level(measure, "train", span) for run in pair]
            for pair in self.pairs.values()
            if all(run.reached(span.stop) for run in pair)
        ]
        if not reasons:
            return "no seed has come to the end of the phase in both arms"
        if not all(map(any, reasons)):
            return ""
        why = next(filter(None, reasons[0]))
        return f"{name} has no level at the end of the phase: {why}"


def comparisons(results: Results, *claims: str) -> list[Comparison]:
    """The comparisons that an experiment declares for a claim, in its order.

    Args:
        results: What has run; without an experiment, nothing is compared.
        claims: The names that the claim goes by, such as ``C7``.
    """
    arms, declared = results.arms, results.experiment.contrasts if results.experiment else ()
    contrasts = [
        contrast
        for contrast in declared
        if contrast.claim in claims and {contrast.arm, contrast.against} <= arms.keys()
    ]
    return [
        Comparison(
            contrast,
            arms[contrast.arm],
            arms[contrast.against],
            contrast.phase % len(arms[contrast.arm].phases),
            place=place,
        )
        for place, contrast in enumerate(contrasts)
    ]
