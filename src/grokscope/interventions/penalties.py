"""Penalties: a measure of the batch, times a signed weight, added to the loss.

A positive weight makes the measure smaller, a negative one larger (the paper subtracts lambda
times its measures: there lambda is minus the weight here). Axes as in `grokscope.measures`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from grokscope import measures
from grokscope.interventions.settings import MEASURES, Penalty
from grokscope.measures import ClassMoments
from grokscope.reference import load


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
