r"""Feature robustness, representativeness, and the generalisation gap as their sum.

Petzka et al. (2021) put a small cloud around each training example's features and read the
generalisation gap off in two steps: from the examples to their clouds (*feature robustness*: how
much the loss rises when features move a little), and from the clouds to held-out data
(*representativeness*: what the clouds miss of the distribution):

.. math:: \underbrace{E_{held} - E_{train}}_{gap} =
          \underbrace{E_{cloud} - E_{train}}_{robustness} +
          \underbrace{E_{held} - E_{cloud}}_{representativeness}

The cloud of Petzka et al. is :math:`\phi + \delta A \phi` with a random orthogonal A: a sphere
whose radius is a share :math:`\delta` of :math:`|\phi|`. Kernel density estimation puts a Gaussian
of fixed width there. Axes: ``examples`` (n), ``classes`` (C), ``width`` (d). Differentiable; half
precision is computed in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from grokscope.measures.checks import (
    check_head,
    check_labels,
    check_logits,
    check_positive,
    check_reduction,
    common_dtype,
    reduce_examples,
)
from grokscope.measures.confidence import cross_entropy_of

KDE_BANDWIDTH = 1.0  # of the paper, appendix D


def natural_delta(examples: int, width: int) -> float:
    """Cloud radius :math:`n^{-1/(4+d)}`, in units of the features' length.

    The rate at which kernel density estimates of n points in d dimensions do best; Petzka et al.
    (NeurIPS 2021, Theorem 6) choose it for their bound.

    Args:
        examples: n, at least 1.
        width: d.

    Returns:
        A share of the features' length. Cost: O(1).
    """
    return float(examples ** (-1.0 / (4.0 + width)))


def feature_robustness(
    features: Tensor,
    logits: Tensor,
    labels: Tensor,
    weight: Tensor,
    delta: float | None = None,
    samples: int = 4,
    generator: torch.Generator | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Mean increase of the cross-entropy when features move by ``delta`` of their length.

    .. math:: \mathbb{E}_A\, \ell(\phi + \delta A \phi) - \ell(\phi), \qquad A \in O(d)
              \text{ uniformly random}

    For small delta it is :math:`\delta^2 \kappa / (2 d)`. A uniformly random orthogonal matrix
    takes a vector to a uniformly random direction, so that is what is drawn, for each example and
    in opposite pairs: what is odd in delta cancels within a pair.

    Args:
        features: Inputs of the head, ``[examples, width]``.
        logits: Outputs of the head, bias included, ``[examples, classes]``.
        labels: Class indices, ``[examples]``.
        weight: Rows of the head, ``[classes, width]``.
        delta: Radius in units of each example's ``|features|``; `natural_delta` if None.
        samples: Pairs of directions for each example.
        generator: Source of randomness; the default generator of the device if None.
        reduction: "mean", "sum", or "none" for one value per example.

    Returns:
        Scalar, or ``[examples]``, in nats; lower is more robust, and the mean over directions is
        never negative for cross-entropy.

    Raises:
        ValueError: If the arguments do not describe one linear head, or a setting is not positive.

    Cost: O(samples * examples * width * classes). Source: Petzka et al., NeurIPS 2021.
    """
    check_reduction(reduction)
    check_head(features, logits, weight)
    check_labels(labels, logits.shape[1], examples=len(features))
    radius = natural_delta(*features.shape) if delta is None else delta
    check_positive("delta", radius)
    features, logits, weight = common_dtype(features, logits, weight)
    length = torch.linalg.vector_norm(features, dim=-1, keepdim=True)

    def cloud() -> Tensor:
        direction = _normal(features, generator)
        direction = direction / torch.linalg.vector_norm(direction, dim=-1, keepdim=True)
        return radius * length * direction

    return reduce_examples(_loss_increase(cloud, logits, labels, weight, samples), reduction)


def kernel_robustness(
    features: Tensor,
    logits: Tensor,
    labels: Tensor,
    weight: Tensor,
    bandwidth: float = KDE_BANDWIDTH,
    samples: int = 4,
    generator: torch.Generator | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Mean increase of the cross-entropy over a Gaussian kernel around each example's features.

    .. math:: \mathbb{E}_{\xi \sim N(0, I)}\, \ell(\phi + h \xi) - \ell(\phi)

    Args:
        features: Inputs of the head, ``[examples, width]``.
        logits: Outputs of the head, bias included, ``[examples, classes]``.
        labels: Class indices, ``[examples]``.
        weight: Rows of the head, ``[classes, width]``.
        bandwidth: h, in the unit of the features.
        samples: Pairs of opposite displacements for each example.
        generator: Source of randomness; the default generator of the device if None.
        reduction: "mean", "sum", or "none" for one value per example.

    Returns:
        Scalar, or ``[examples]``, in nats.

    Raises:
        ValueError: If the arguments do not describe one linear head, or a setting is not positive.

    Cost: O(samples * examples * width * classes).
    Source: Han et al., NeurIPS 2025, appendix D, which gives bandwidth 1.0.
    """
    check_reduction(reduction)
    check_head(features, logits, weight)
    check_labels(labels, logits.shape[1], examples=len(features))
    check_positive("bandwidth", bandwidth)
    features, logits, weight = common_dtype(features, logits, weight)

    def cloud() -> Tensor:
        return bandwidth * _normal(features, generator)

    return reduce_examples(_loss_increase(cloud, logits, labels, weight, samples), reduction)


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
    """
    robustness = feature_robustness(features, logits, labels, weight, delta, samples, generator)
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
    """
    robustness = kernel_robustness(features, logits, labels, weight, bandwidth, samples, generator)
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
    """
    check_logits(logits)
    check_labels(labels, logits.shape[1], examples=len(logits))
    train_loss = cross_entropy_of(logits.to(robustness.dtype), labels).mean()
    held_out = torch.as_tensor(held_out_loss, dtype=robustness.dtype, device=robustness.device)
    gap = held_out - train_loss
    return GapDecomposition(gap, robustness, gap - robustness)


def _loss_increase(
    cloud: Callable[[], Tensor], logits: Tensor, labels: Tensor, weight: Tensor, samples: int
) -> Tensor:
    """Mean of loss(phi +- cloud) - loss(phi) over pairs of displacements, ``[examples]``."""
    check_positive("samples", samples)
    if not hasattr(samples, "__index__"):
        raise ValueError(f"samples must be a whole number, got {samples!r}.")
    with torch.autocast(device_type=logits.device.type, enabled=False):
        before = cross_entropy_of(logits, labels)
        total = torch.zeros_like(before)
        for _ in range(samples):
            moved = cloud() @ weight.mT
            total = total + 0.5 * sum(
                cross_entropy_of(logits + sign * moved, labels) for sign in (1, -1)
            )
        return total / samples - before


def _normal(like: Tensor, generator: torch.Generator | None) -> Tensor:
    device = like.device if generator is None else generator.device
    noise = torch.randn(like.shape, generator=generator, device=device, dtype=like.dtype)
    return noise.to(like.device)
