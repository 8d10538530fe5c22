"""The generalisation gap: what robustness explains of it, and representativeness, the rest.

The clouds between training and held-out data are those of `grokscope.measures.robustness`. The loss
over them is the training loss of all examples and the rise that a sample of them shows, so that
the parts always add up to the gap, and only the rise has the error of the sample. Axes:
``examples`` (n), ``classes`` (C), ``width`` (d).
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from grokscope.measures.checks import check_labels, check_logits
from grokscope.measures.confidence import LOSS, cross_entropy_of
from grokscope.measures.record import Batch, Measure
from grokscope.measures.robustness import (
    FEATURE_ROBUSTNESS,
    KDE_BANDWIDTH,
    KERNEL_ROBUSTNESS,
    feature_robustness,
    kernel_robustness,
)


def representativeness(
    features: Tensor,
    logits: Tensor,
    labels: Tensor,
    weight: Tensor,
    held_out_loss: Tensor | float,
    delta: float | None = None,
    samples: int = 4,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Held-out loss minus the loss over clouds around the training features; 0 is best.

    Args:
        features: Inputs of the head on training data, ``[examples, width]``.
        logits: Outputs of the head there, bias included, ``[examples, classes]``.
        labels: Class indices, ``[examples]``.
        weight: Rows of the head, ``[classes, width]``.
        held_out_loss: Mean cross-entropy on held-out data, in nats.
        delta: As in `feature_robustness`.
        samples: As in `feature_robustness`.
        generator: As in `feature_robustness`.

    Returns:
        Scalar in nats: what the clouds around the training features miss of the distribution.

    Raises:
        ValueError: As `feature_robustness`.

    Cost: that of `feature_robustness`. Source: Petzka et al., NeurIPS 2021, equation 2.

    Example:
        >>> features, labels = torch.eye(2), torch.arange(2)
        >>> value = representativeness(features, features, labels, torch.eye(2), 0.0)
        >>> bool(value < 0)
        True
    """
    robustness = feature_robustness(
        features, logits, labels, weight, delta=delta, samples=samples, generator=generator
    )
    return decompose_gap(logits, labels, held_out_loss, robustness).representativeness


def representativeness_kde(
    features: Tensor,
    logits: Tensor,
    labels: Tensor,
    weight: Tensor,
    held_out_loss: Tensor | float,
    bandwidth: float = KDE_BANDWIDTH,
    samples: int = 4,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The same with a Gaussian kernel density of the training features, as the paper has it.

    The paper gives bandwidth 1.0 and a weight of 0.02 per sample, which is 1/n for n = 50, and not
    the estimator. Here every training example has weight 1/n and keeps its label throughout its
    kernel. The bandwidth is in the unit of the features, so rescaling them changes the value.

    Args:
        features: Inputs of the head on training data, ``[examples, width]``.
        logits: Outputs of the head there, bias included, ``[examples, classes]``.
        labels: Class indices, ``[examples]``.
        weight: Rows of the head, ``[classes, width]``.
        held_out_loss: Mean cross-entropy on held-out data, in nats.
        bandwidth: As in `kernel_robustness`.
        samples: As in `kernel_robustness`.
        generator: As in `kernel_robustness`.

    Returns:
        Scalar in nats.

    Raises:
        ValueError: As `kernel_robustness`.

    Cost: that of `kernel_robustness`. Source: Han et al., NeurIPS 2025, appendix D.

    Example:
        >>> features, labels = torch.eye(2), torch.arange(2)
        >>> value = representativeness_kde(features, features, labels, torch.eye(2), 0.0)
        >>> bool(value < 0)
        True
    """
    robustness = kernel_robustness(
        features, logits, labels, weight, bandwidth=bandwidth, samples=samples, generator=generator
    )
    return decompose_gap(logits, labels, held_out_loss, robustness).representativeness


class GapDecomposition(NamedTuple):
    """The generalisation gap and its two parts, in nats: the first is the sum of the others.

    Attributes:
        gap: Held-out loss minus training loss.
        robustness: Loss over the clouds minus training loss.
        representativeness: Held-out loss minus loss over the clouds.
    """

    gap: Tensor
    robustness: Tensor
    representativeness: Tensor


def decompose_gap(
    logits: Tensor, labels: Tensor, held_out_loss: Tensor | float, robustness: Tensor
) -> GapDecomposition:
    """Split the generalisation gap at the clouds around the training features.

    Args:
        logits: Outputs of the head on training data, bias included, ``[examples, classes]``.
        labels: Class indices, ``[examples]``.
        held_out_loss: Mean cross-entropy on held-out data, in nats.
        robustness: Of `feature_robustness` or `kernel_robustness` on the training data.

    Returns:
        Gap, robustness and representativeness, scalars in nats.

    Raises:
        ValueError: If logits and labels do not fit.

    Cost: O(examples * classes). Source: Petzka et al., NeurIPS 2021.

    Example:
        >>> logits, labels = torch.zeros(4, 2), torch.tensor([0, 1, 0, 1])
        >>> parts = decompose_gap(logits, labels, held_out_loss=1.0, robustness=torch.tensor(0.25))
        >>> round(float(parts.representativeness), 4)  # 1 - ln 2 - 0.25
        0.0569
    """
    check_logits(logits)
    check_labels(labels, logits.shape[1], examples=len(logits))
    train_loss = cross_entropy_of(logits.to(robustness.dtype), labels).mean()
    held_out = torch.as_tensor(held_out_loss, dtype=robustness.dtype, device=robustness.device)
    gap = held_out - train_loss
    return GapDecomposition(gap, robustness, gap - robustness)


def _gap(batch: Batch) -> Tensor:
    return batch.values["loss"] - batch.reference["loss"]


_of_gap = partial(
    Measure,
    unit="nats",
    direction="near 0 is representative",
    range="any",
    cost="O(1)",
    source="Petzka et al., NeurIPS 2021, equation 2",
    needs=("reference", "training memory"),
)
RECORDS = (
    _of_gap(
        name="generalisation_gap",
        direction="low is good",
        formula="E_held − E_train",
        needs=("reference",),
        evaluate=_gap,
        parts=(LOSS,),
    ),
    _of_gap(
        name="representativeness",
        formula="generalisation gap − feature robustness",
        evaluate=lambda batch: _gap(batch) - batch.reference["feature_robustness"],
        parts=(LOSS, FEATURE_ROBUSTNESS),
    ),
    _of_gap(
        name="representativeness_kde",
        title="representativeness (KDE)",
        formula="E_held − mean E_{ξ∼N(0, I)} ℓ(φ + ξ)",
        source="Han et al., NeurIPS 2025, appendix D",
        note="The bandwidth is 1 in the unit of the features, so rescaling them changes the value.",
        evaluate=lambda batch: _gap(batch) - batch.reference["kernel_robustness"],
        parts=(LOSS, FEATURE_ROBUSTNESS, KERNEL_ROBUSTNESS),
    ),
)
