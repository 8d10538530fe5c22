r"""Feature robustness: how much the loss rises when features move a little.

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

import torch
from torch import Tensor

from grokscope.measures.checks import (
    check_labels,
    check_positive,
    checked_head,
    common_dtype,
    reduce_examples,
)
from grokscope.measures.confidence import cross_entropy_of
from grokscope.measures.record import Batch, Measure

KDE_BANDWIDTH = 1.0  # of the paper, appendix D
DIRECTIONS = 2  # pairs for each example at a look; seeded, the same at every look


def natural_delta(examples: int, width: int) -> float:
    """Cloud radius :math:`n^{-1/(4+d)}`, in units of the features' length.

    The rate at which kernel density estimates of n points in d dimensions do best; Petzka et al.
    (NeurIPS 2021, Theorem 6) choose it for their bound.

    Args:
        examples: n, at least 1.
        width: d.

    Returns:
        A share of the features' length. Cost: O(1).

    Example:
        >>> natural_delta(examples=32, width=1)
        0.5
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

    Example:
        >>> features, labels = torch.eye(2), torch.arange(2)
        >>> value = feature_robustness(features, features, labels, weight=torch.eye(2))
        >>> bool(value > 0)
        True
    """
    if delta is not None:
        check_positive("delta", delta)

    def cloud(features: Tensor) -> Tensor:
        radius = natural_delta(*features.shape) if delta is None else delta
        length = torch.linalg.vector_norm(features, dim=-1, keepdim=True)
        direction = _normal(features, generator)
        direction = direction / torch.linalg.vector_norm(direction, dim=-1, keepdim=True)
        return radius * length * direction

    increase = _loss_increase(cloud, (features, logits, weight), labels, samples)
    return reduce_examples(increase, reduction)


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

    Example:
        >>> features, labels = torch.eye(2), torch.arange(2)
        >>> value = kernel_robustness(features, features, labels, weight=torch.eye(2))
        >>> bool(value > 0)
        True
    """
    check_positive("bandwidth", bandwidth)

    def cloud(features: Tensor) -> Tensor:
        return bandwidth * _normal(features, generator)

    increase = _loss_increase(cloud, (features, logits, weight), labels, samples)
    return reduce_examples(increase, reduction)


def _loss_increase(
    cloud: Callable[[Tensor], Tensor],
    head: tuple[Tensor, Tensor, Tensor],
    labels: Tensor,
    samples: int,
) -> Tensor:
    """Mean of loss(phi +- cloud) - loss(phi) over pairs of displacements, ``[examples]``."""
    features, logits, weight = checked_head(*head)
    check_labels(labels, logits.shape[1], examples=len(features))
    check_positive("samples", samples)
    if not hasattr(samples, "__index__"):
        raise ValueError(f"samples must be a whole number, got {samples!r}.")
    with torch.autocast(device_type=logits.device.type, enabled=False):
        before = cross_entropy_of(logits, labels)
        total = torch.zeros_like(before)
        for _ in range(samples):
            moved = cloud(features) @ weight.mT
            total = total + 0.5 * sum(
                cross_entropy_of(logits + sign * moved, labels) for sign in (1, -1)
            )
        return total / samples - before


def _normal(like: Tensor, generator: torch.Generator | None) -> Tensor:
    device = like.device if generator is None else generator.device
    noise = torch.randn(like.shape, generator=generator, device=device, dtype=like.dtype)
    return noise.to(like.device)


def _head_of(batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    features, logits = common_dtype(batch.features, batch.logits)
    return features, logits, batch.labels, batch.weight.to(features)


def _sphere(batch: Batch) -> tuple[Tensor, torch.Generator]:
    """Robustness on spheres, and the generator as it leaves it."""
    generator = torch.Generator(batch.features.device).manual_seed(0)
    return feature_robustness(*_head_of(batch), samples=DIRECTIONS, generator=generator), generator


def _feature_robustness(batch: Batch) -> Tensor:
    known = batch.reference.get("feature_robustness")  # that of the training data
    return batch.shared(_sphere)[0] if known is None else known


def _kernel_robustness(batch: Batch) -> Tensor:
    if "kernel_robustness" in batch.reference:
        return batch.reference["kernel_robustness"]
    _, generator = batch.shared(_sphere)
    return kernel_robustness(*_head_of(batch), samples=DIRECTIONS, generator=generator)


FEATURE_ROBUSTNESS = Measure(
    name="feature_robustness",
    unit="nats",
    direction="low is robust",
    range="≥ 0, but for the noise of two pairs of directions",
    formula="mean E_A ℓ(φ + δ A φ) − ℓ(φ), δ = n^(−1 / (4 + d))",
    cost="O(n C d)",
    source="Petzka et al., NeurIPS 2021",
    note="Of the training data, also on held-out data. About δ² κ / (2 d) for small δ.",
    needs=("training memory",),
    evaluate=_feature_robustness,
)
# Only a part of the KDE form.
KERNEL_ROBUSTNESS = Measure(
    name="kernel_robustness",
    unit="nats",
    needs=("training memory",),
    evaluate=_kernel_robustness,
    parts=(FEATURE_ROBUSTNESS,),
)
RECORDS = (FEATURE_ROBUSTNESS,)
