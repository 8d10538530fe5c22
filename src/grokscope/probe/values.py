"""The measures of a head as functions of tensors alone: plainly for one network, vmapped for many.

A *block* is what the head saw and said on some examples: features ``[n, d]``, logits ``[n, c]``,
labels ``[n]``; here in float64, but for the labels. Nothing here looks at a value.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from grokscope.measures.checks import common_dtype
from grokscope.measures.collapse import agreement_of, nc1_of, ncc
from grokscope.measures.confidence import cross_entropy_of, entropy_of, margin_of, scale_of
from grokscope.measures.flatness import gini_impurity, row_variance
from grokscope.measures.moments import ClassMoments
from grokscope.measures.robustness import feature_robustness, kernel_robustness
from grokscope.measures.theory import CollapseAssumptions

ELEMENTS = 2**22  # of one float64 temporary: 32 MiB
MATCHED_LOSS = 0.1  # nats: the loss at which confidence is matched, well fitted and not saturated
MATCHED_TOLERANCE = 1e-6
PUBLISHED_TEMPERATURE = 2.0
DIRECTIONS = 2  # pairs of displacements for each example; seeded, the same at every measurement


class Block(NamedTuple):
    """Some examples: features ``[n, d]``, logits ``[n, c]``, labels ``[n]``."""

    features: Tensor
    logits: Tensor
    labels: Tensor

    def wide(self) -> Block:
        """In float64."""
        return Block(self.features.double(), self.logits.double(), self.labels)


def sums_of(block: Block, weight: Tensor) -> dict[str, Tensor]:
    """Sums over the examples of a block of all that is a mean over examples."""
    features, logits, labels = block
    square = features.square().sum(dim=-1)
    impurity = gini_impurity(logits)
    total = weight.square().sum()
    each = {
        "accuracy": (logits.argmax(dim=-1) == labels).double(),
        "loss": cross_entropy_of(logits, labels),
        "relative_flatness": square * row_variance(logits, weight),
        "relative_flatness_bound": total * square * impurity,
        "published_penalty": total * gini_impurity(logits / PUBLISHED_TEMPERATURE),
        "logit_scale": scale_of(logits),
        "margin": margin_of(logits, labels),
        "entropy": entropy_of(logits),
        "gini": impurity,
        "feature_norm": square.sqrt(),
    }
    return {name: values.sum() for name, values in each.items()}


def agreed_of(block: Block, means: ClassMoments, index: Tensor) -> Tensor:
    """How many examples the head decides as the nearest of the means of the classes ``index``."""
    return agreement_of(block.features, block.logits, means, index).sum()


def ncc_of(present: ClassMoments, unbiased: bool) -> dict[str, Tensor]:
    """NCC of the classes there are; ``unbiased`` too, if two of them have several examples."""
    values = {"ncc": ncc(present)}
    if unbiased:
        values["ncc_unbiased"] = ncc(present, unbiased=True)
    return values


def spread_of(
    block: Block, moments: ClassMoments, present: ClassMoments, index: Tensor, own: bool
) -> dict[str, Tensor]:
    """What needs the examples again, and the moments; with ``own``, NC4 against their own means."""
    values = {"nc1_pinv": nc1_of(block.features, block.labels, moments, present)}
    if own:
        agreed = agreed_of(block.wide(), present, index)
        values["nc4_agreement"] = agreed / len(block.labels)
    return values


def collapse_numbers(numbers: Sequence[float], classes: int) -> dict[str, float]:
    """The numbers of `assumptions_of` by name."""
    met = CollapseAssumptions.of(numbers, classes)
    return {
        "collapse_scale": met.scale,
        "collapse_radius": met.radius,
        "collapse_offset": met.offset,
        "collapse_residual": met.residual,
        "collapse_flatness_bound": met.bound,
    }


def may_match(accuracy: float) -> bool:
    """Whether a temperature may give `MATCHED_LOSS`: a wrong answer costs ln 2 at any."""
    return (1 - accuracy) * math.log(2) < MATCHED_LOSS


def matched_of(block: Block, weight: Tensor, temperature: Tensor | float) -> Tensor:
    """Kappa of the network whose head is divided by a temperature, scalar."""
    features, logits, _ = block.wide()
    length = features.square().sum(dim=-1)
    return (length * row_variance(logits / temperature, weight / temperature)).mean()


def robustness_of(block: Block, weight: Tensor) -> Tensor:
    """Robustness on spheres and under Gaussian kernels, ``[2]``."""
    generator = torch.Generator(block.features.device).manual_seed(0)
    features, logits = common_dtype(block.features, block.logits)
    arguments = (features, logits, block.labels, weight.to(features))
    own = feature_robustness(*arguments, samples=DIRECTIONS, generator=generator)
    kernel = kernel_robustness(*arguments, samples=DIRECTIONS, generator=generator)
    return torch.stack([own, kernel])
