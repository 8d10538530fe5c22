"""Penalties: a measure of the batch, times a signed weight, added to the loss.

A positive weight makes the measure smaller, a negative one larger (the paper subtracts lambda
times its measures: there lambda is minus the weight here). Axes as in `grokscope.measures`.
"""

from __future__ import annotations

from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from grokscope import measures
from grokscope.interventions.schedule import Scheduled
from grokscope.measures import ClassMoments
from grokscope.reference import is_reference, load

PenaltyMeasure = Literal[
    "relative_flatness", "relative_flatness_bound", "ncc", "gini", "entropy", "logit_scale"
]
MEASURES: tuple[str, ...] = PenaltyMeasure.__args__  # type: ignore[attr-defined]


class Penalty(Scheduled):
    """``weight`` times a measure of the batch is added to the loss.

    The published penalty of flatness is ``relative_flatness_bound`` with a negative weight,
    ``temperature=2`` and ``normalize_features=True``; FAM is ``relative_flatness`` with a
    positive one.
    """

    measure: str = Field(description=f"{', '.join(MEASURES)}, or file.py:function of your own")
    weight: float = Field(description="added times the measure; negative: maximised")
    temperature: float = Field(1.0, gt=0, description="of the softmax; bound alone")
    normalize_features: bool = Field(False, description="to length 1; bound alone")
    memory: float = Field(0.0, ge=0, lt=1, description="ncc: share of old class means kept a step")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.measure not in MEASURES and not is_reference(self.measure):
            raise ValueError(
                f"measure {self.measure!r} is none of {', '.join(MEASURES)}; your own is "
                "package.module:function or path/to/file.py:function"
            )
        bound = self.measure == "relative_flatness_bound"
        if not bound and (self.temperature != 1.0 or self.normalize_features):
            raise ValueError(
                f"temperature and normalize_features belong to relative_flatness_bound, not to "
                f"{self.measure}"
            )
        if self.memory and self.measure != "ncc":
            raise ValueError(f"memory belongs to ncc, not to {self.measure}")
        return self

    @property
    def name(self) -> str:
        """Under which its value is logged; never that of a measure of the probe."""
        return f"penalty_{self.measure.rpartition(':')[2]}"


def penalty_value(
    penalty: Penalty,
    features: Tensor,
    logits: Tensor,
    labels: Tensor,
    weight: Tensor,
    memory: Tensor | None = None,
) -> Tensor:
    """The measure that a penalty adds, without its weight.

    Args:
        penalty: Which measure, and how.
        features: Inputs of the head, ``[examples, width]``.
        logits: Outputs of the head, ``[examples, classes]``.
        labels: Class indices, ``[examples]``.
        weight: Rows of the head, ``[classes, width]``.
        memory: `remember_means` of the steps before, for an ``ncc`` with memory.

    Returns:
        Scalar, differentiable in features, logits and weight.

    Raises:
        ValueError: As the measure; or if a function of your own returns no scalar tensor.

    Cost: that of the measure on one batch.
    """
    if penalty.measure == "relative_flatness":
        return measures.relative_flatness(features, logits, weight)
    if penalty.measure == "relative_flatness_bound":
        return measures.relative_flatness_bound(
            features, logits, weight, penalty.temperature, penalty.normalize_features
        )
    if penalty.measure == "ncc":
        moments = ClassMoments.from_batch(features, labels, len(weight))
        if memory is None:
            return measures.ncc(moments)
        return measures.ncc(with_memory(moments, memory, penalty.memory))
    if penalty.measure in MEASURES:
        value: Tensor = getattr(measures, penalty.measure)(logits)
        return value
    own = load(penalty.measure)(features, logits, labels, weight)
    if not isinstance(own, Tensor) or own.numel() != 1:
        raise ValueError(f"{penalty.measure} must return a scalar tensor, got {type(own).__name__}")
    return own.squeeze()


def remember_means(
    memory: Tensor | None, features: Tensor, labels: Tensor, classes: int, kept: float
) -> Tensor:
    """Class means over many batches: an exponential average, updated after each step.

    A class that a batch lacks keeps its mean; one seen for the first time starts with the batch's.

    Args:
        memory: Of the step before, ``[classes, width + 1]``; None at first. The last column says
            whether a class has been seen.
        features: Inputs of the head, ``[examples, width]``.
        labels: Class indices, ``[examples]``.
        classes: Number of classes.
        kept: Share of the old mean that is kept.
    """
    moments = ClassMoments.from_batch(features.detach(), labels, classes)
    present = moments.count > 0
    if memory is None:
        memory = moments.mean.new_zeros(classes, features.shape[1] + 1)
    seen = memory[:, -1:] > 0
    share = torch.where(seen, 1 - kept, 1.0) * present[:, None]
    means = memory[:, :-1] + share * (moments.mean - memory[:, :-1])
    return torch.cat([means, (seen | present[:, None]).double()], 1)


def with_memory(moments: ClassMoments, memory: Tensor, kept: float) -> ClassMoments:
    """Moments of a batch about remembered means.

    Class means are the remembered ones moved by the batch's share, so that gradients flow through
    the batch; deviations are taken from there. Small batches then neither fit their own means nor
    set them apart by noise.

    Args:
        moments: Of the batch.
        memory: Of `remember_means`.
        kept: As there.
    """
    seen, present = memory[:, -1] > 0, moments.count > 0
    share = torch.where(seen, 1 - kept, 1.0) * present
    mean = memory[:, :-1] + share[:, None] * (moments.mean - memory[:, :-1])
    # About another centre the squared deviations grow by the squared distance to it.
    shift = (moments.mean - mean).square().sum(dim=-1)
    within = moments.within + moments.count * torch.where(present, shift, 0.0)
    return ClassMoments(moments.count, mean, within)
