"""One run: the curves of an arm under one seed, with its levels and milestones.

What is computed from the curves is computed once and kept. Steps count optimiser updates; the rule
for a level is that of `grokscope.analysis.level`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np

from grokscope.analysis import milestones
from grokscope.analysis.level import (
    Array,
    Curve,
    Span,
    level_around,
    level_at_end,
    looks_at_end,
    too_few_looks,
)
from grokscope.analysis.locate import resting_level
from grokscope.analysis.onset import LOST, Onset, Stage, detect_crossing, detect_onset
from grokscope.analysis.quantities import scale_of

MILESTONES = ("memorised", "onset", "generalised")
NOTHING = Curve(np.empty(0), np.empty(0))

# Where a level is taken: at the end of a phase, by its index (-1 is the last), or of a `Span`;
# around a milestone, by its name; or just before it, by "before " and its name, which is at the end
# of the stretch since the milestone that precedes it.
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
        self._falls: dict[tuple[str, str, Stage], Onset] = {}

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
            before, _, name = at.rpartition(" ")
            step = self.milestone(name).step
            if not before:
                return level_around(curve, step)
            return level_at_end(curve, self.stretch(name))
        span = self.span(at)
        return level_at_end(curve, span) if self.reached(span.stop) else math.nan

    def span(self, at: int | Span) -> Span:
        """The phase of that index, or the span itself."""
        return self.phases[at] if isinstance(at, int) else at

    def stretch(self, milestone: str) -> Span:
        """From the milestone that precedes one, or the start, to that one."""
        earlier = MILESTONES[: MILESTONES.index(milestone)][-1:]
        start = self.milestone(earlier[0]).step if earlier else 0.0
        return Span(start, self.milestone(milestone).step)

    def why_no_level(self, measure: str, split: str = "train", at: int | Span = -1) -> str:
        """Why a measure has no level at the end of a phase, as a clause; empty if it has one."""
        span = self.span(at)
        if not math.isnan(self.level(measure, split, at)):
            return ""
        if not self.reached(span.stop):
            return f"{'diverged' if self.diverged else 'is'} at step {self.last_step:,.0f}"
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
        """When training accuracy passes 0.99 for good, single spikes aside; not when it is lost."""
        return detect_crossing(*self.curve("accuracy"), milestones.MEMORISED)

    @cached_property
    def onset(self) -> Onset:
        """When validation accuracy leaves its plateau; none without memorisation.

        The baseline is the plateau's own median, however high: the long shallow stretch at 0.2 to
        0.4 does not count, a lasting rise by a tenth of the way that remains does.
        """
        if not self.memorised.found:
            return Onset(reason="it never memorised")
        return detect_onset(
            *self._validation,
            after=self.memorised.step,
            least_change=milestones.LEAST_RISE,
            margin=milestones.CREEP,
        )

    @cached_property
    def generalised(self) -> Onset:
        """When validation accuracy passes 0.95 for good, spikes aside; not when it is lost."""
        return detect_crossing(*self._validation, milestones.GENERALISED)

    @cached_property
    def fell_again(self) -> float:
        """Of the looks after validation accuracy first reached 0.95, the share below 0.9.

        Whether or not it was lost for good; 0 for a run that stays up, NaN for one that never got
        there.
        """
        steps, values = self._validation
        reached = detect_crossing(steps, values, milestones.GENERALISED, lasting=False, resamples=0)
        return stability(steps, values, reached.step)

    @cached_property
    def unusable(self) -> str:
        """Why the run says nothing about the order of events; empty when it does."""
        memorised, onset, generalised = self.memorised, self.onset, self.generalised
        if not memorised.found:
            lost = memorised.reason == LOST
            return "memorised and lost it again" if lost else "never memorised"
        lost = generalised.reason == LOST
        if not (generalised.found or lost):
            return "never generalised"
        steps, values = self._validation
        # Lost at the very end: too few looks for `LOST`, yet all of those that an onset ends on.
        if lost or (not onset.found and resting_level(values) < milestones.FELL_AGAIN):
            return "generalised and lost it again"
        if not onset.found:
            return "generalised without a plateau"
        plateau = (steps >= memorised.step) & (steps <= onset.step)
        if (
            onset.step < milestones.LEAST_PLATEAU * memorised.step
            or plateau.sum() < milestones.LEAST_PLATEAU_POINTS
        ):
            return "generalised right after memorising"
        return ""

    def fall(self, measure: str, split: str = "train", *, stage: Stage = "first") -> Onset:
        """Onset of the lasting fall of a measure, or of its steepest stage.

        By a factor of 1.5 or more; of representativeness, which has a sign, towards zero.
        """
        key = (measure, split, stage)
        if key not in self._falls:
            steps, values = self.curve(measure, split)
            if scale_of(measure) == "log":
                least = milestones.LEAST_FALL
                found = detect_onset(steps, values, "fall", "log", stage=stage, least_change=least)
            else:
                found = detect_onset(steps, np.abs(values), "fall", stage=stage)
            self._falls[key] = found
        return self._falls[key]

    @property
    def _validation(self) -> Curve:
        return self.curve("accuracy", "validation")


def stability(steps: Array, validation_accuracy: Array, generalised: float) -> float:
    """Share of the looks from a step on at which accuracy was below 0.9; NaN without any."""
    later = validation_accuracy[steps >= generalised]
    return float((later < milestones.FELL_AGAIN).mean()) if len(later) else math.nan
