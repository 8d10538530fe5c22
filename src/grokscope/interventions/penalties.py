"""Penalties: a measure of the batch, times a signed weight, added to the loss.

A positive weight makes the measure smaller, a negative one larger (the paper subtracts lambda
times its measures: there lambda is minus the weight here). Axes as in `grokscope.measures`.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from grokscope import measures
from grokscope.interventions.settings import Penalty
from grokscope.measures.checks import check_head, common_dtype, in_full_precision
from grokscope.measures.moments import ClassMoments
from grokscope.measures.record import Batch, records
from grokscope.reference import is_reference, load


def penalty_value(penalty: Penalty, batch: Batch, memory: Tensor | None = None) -> Tensor:
    """The measure that a penalty adds, without its weight: a differentiable scalar.

    Args:
        penalty: The measure and its settings.
        batch: Features, logits and labels of the rows that count, and the head.
        memory: Result of `remember_means` after the steps before, or an `empty_memory`, for an
            ``ncc`` with memory.

    Raises:
        ValueError: As the measure; or if a function of your own returns no scalar tensor.

    Cost: that of the measure on one batch.
    """
    features, logits, weight = batch.features, batch.logits, batch.weight
    if penalty.measure == "relative_flatness_bound":
        return measures.relative_flatness_bound(
            features,
            logits,
            weight,
            temperature=penalty.temperature,
            normalize_features=penalty.normalize_features,
        )
    if penalty.measure == "ncc":
        moments = ClassMoments.from_batch(features, batch.labels, len(weight))
        if memory is None:
            return measures.ncc(moments)
        return measures.ncc(with_memory(moments, memory, penalty.memory))
    if is_reference(penalty.measure):
        value = load(penalty.measure)(features, logits, batch.labels, weight)
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise ValueError(
                f"{penalty.measure} must return a scalar tensor, got {type(value).__name__}"
            )
        return value.squeeze()
    check_head(features, logits, weight)
    evaluate = records()[penalty.measure].evaluate
    assert evaluate is not None  # a penalty's settings see to it
    features, logits, weight = common_dtype(features, logits, weight)
    with in_full_precision(features):
        return evaluate(replace(batch, features=features, logits=logits, weight=weight)).mean()


def needs_classes(penalty: Penalty) -> bool:
    """Whether a penalty is not defined on a batch of a single class."""
    record = records().get(penalty.measure)
    return record is not None and bool(record.needs)


def empty_memory(weight: Tensor) -> Tensor:
    """The memory of class means at first, for a head with rows ``[classes, width]``: no class seen.

    A memory is ``[classes, width + 1]``, float64; its last column says whether a class was seen.
    """
    classes, width = weight.shape
    return torch.zeros(classes, width + 1, dtype=torch.float64, device=weight.device)


def remember_means(memory: Tensor, moments: ClassMoments, kept: float) -> Tensor:
    """Class means over many batches: an exponential average, updated after each step.

    A class that a batch lacks keeps its mean; one seen for the first time starts with the batch's.
    ``kept`` is the share of the old mean that stays. No gradients flow through it.
    """
    present, mean = moments.count > 0, moments.mean.detach()
    seen = memory[:, -1:] > 0
    share = torch.where(seen, 1 - kept, 1.0) * present[:, None]
    means = memory[:, :-1] + share * (mean - memory[:, :-1])
    return torch.cat([means, (seen | present[:, None]).double()], 1)


def with_memory(moments: ClassMoments, memory: Tensor, kept: float) -> ClassMoments:
    """Moments of a batch about remembered means.

    Class means are the remembered ones moved by the batch's share, so that gradients flow through
    the batch; deviations are taken from there. Small batches then neither fit their own means nor
    set them apart by noise. Arguments as in `remember_means`.
    """
    seen, present = memory[:, -1] > 0, moments.count > 0
    share = torch.where(seen, 1 - kept, 1.0) * present
    mean = memory[:, :-1] + share[:, None] * (moments.mean - memory[:, :-1])
    # About another centre the squared deviations grow by the squared distance to it.
    shift = (moments.mean - mean).square().sum(dim=-1)
    within = moments.within + moments.count * torch.where(present, shift, 0.0)
    return ClassMoments(moments.count, mean, within)
