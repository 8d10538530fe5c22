"""One run: the curves of an arm under one seed, with its levels and milestones.

What is computed from the curves is computed once and kept. Steps count optimiser updates; the rule
for a level is that of `grokscope.analysis.level`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np

from grokscope.analysis.curve import Scale
from grokscope.analysis.level import (
    Curve,
    Span,
    level_around,
    level_at_end,
    level_before,
    looks_at_end,
    too_few_looks,
)
from grokscope.analysis.milestones import (
    fall_onset,
    generalisation_onset,
    generalisation_step,
    lost_again,
    memorisation_step,
    unusable,
)
from grokscope.analysis.onset import Onset, Stage, no_onset

MILESTONES = ("memorised", "onset", "generalised")
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
        self._levels: dict[tuple[str, str, At], float] = {}
        self._falls: dict[tuple[str, str, Scale, Stage], Onset] = {}

    def curve(self, measure: str, split: str = "train") -> Curve:
        """The curve of a measure; empty where it was not measured."""
        return self.curves.get((measure, split), NOTHING)

    def has(self, measure: str, split: str = "train") -> bool:
        """Whether the measure has a finite value on that split."""
        return (measure, split) in self.curves

    def level(self, measure: str, split: str = "train", at: At = -1) -> float:
        """Where a measure stands; NaN with too few looks, or where the run did not get there."""
        key = (measure, split, at)
        if key not in self._levels:
            self._levels[key] = self._level(self.curve(measure, split), at)
        return self._levels[key]

    def _level(self, curve: Curve, at: At) -> float:
        if isinstance(at, str):
            before, _, milestone = at.rpartition(" ")
            step = self.milestone(milestone).step
            return level_before(curve, step) if before else level_around(curve, step)
        span = self.span(at)
        return level_at_end(curve, span) if self.reached(span.stop) else math.nan

    def span(self, at: int | Span) -> Span:
        """The phase of that index, or the span itself."""
        return self.phases[at] if isinstance(at, int) else at

    def why_no_level(self, measure: str, split: str = "train", at: int | Span = -1) -> str:
        """Why a measure has no level at the end of a phase, as a clause; empty if it has one."""
        span = self.span(at)
        if not math.isnan(self.level(measure, split, at)):
            return ""
        if not self.reached(span.stop):
            return f"{'diverged' if self.diverged else 'ended'} at step {self.last_step:,.0f}"
        if not self.has(measure, split):
            return "not measured"
        return too_few_looks(len(looks_at_end(self.curve(measure, split), span)))

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
            return no_onset("it never memorised")
        return generalisation_onset(*self.curve("accuracy", "validation"), self.memorised.step)

    @cached_property
    def generalised(self) -> Onset:
        """When validation accuracy reaches 0.95 for good."""
        return generalisation_step(*self.curve("accuracy", "validation"))

    @cached_property
    def fell_again(self) -> float:
        """Share of later looks at which a generalised network was lost, even for good."""
        return lost_again(*self.curve("accuracy", "validation"))

    @cached_property
    def unusable(self) -> str:
        """Why the run says nothing about the order of events; empty when it does."""
        validation = self.curve("accuracy", "validation")
        return unusable(self.memorised, self.onset, self.generalised, validation)

    def fall(
        self, measure: str, split: str = "train", *, scale: Scale = "log", stage: Stage = "first"
    ) -> Onset:
        """Onset of the lasting fall of a measure, or of its steepest stage; see `fall_onset`."""
        key = (measure, split, scale, stage)
        if key not in self._falls:
            self._falls[key] = fall_onset(*self.curve(measure, split), scale, stage)
        return self._falls[key]
