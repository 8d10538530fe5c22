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

The functions move all examples that they are given, in new directions each time. A look moves a
sample, the same examples in the same directions at every look, on every device and for every
network, so that its values differ by what the networks do. It takes no more than `EXAMPLES`
examples, drawn once from however many there are: over the mean that is a standard error of a 90th
of the standard deviation between examples.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from grokscope.measures.checks import (
    check_labels,
    check_positive,
    checked_head,
    common_dtype,
    in_full_precision,
    reduce_examples,
)
from grokscope.measures.confidence import cross_entropy_of
from grokscope.measures.pieces import rows_of
from grokscope.measures.record import Batch, Measure

KDE_BANDWIDTH = 1.0  # of the paper, appendix D
EXAMPLES = 8192  # of a look that are moved, at most
DIRECTIONS = 2  # pairs for each of them
# Numbers of noise of a look, 16 MiB in float32. Where examples are wider than 256, several share
# a direction, but no fewer than `LEAST_NOISE` directions are drawn.
NOISE = 2**22
LEAST_NOISE = 256


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
    features, logits, weight = _checked((features, logits, weight), labels, samples)
    radius = natural_delta(*features.shape) if delta is None else delta
    radii = radius * torch.linalg.vector_norm(features, dim=-1)
    moves = (
        (radii / torch.linalg.vector_norm(moved, dim=-1))[:, None] * (moved @ weight.mT)
        for moved in _noise(features, samples, generator)
    )
    return reduce_examples(_mean_rise(logits, labels, moves), reduction)


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
    features, logits, weight = _checked((features, logits, weight), labels, samples)
    noise = _noise(features, samples, generator)
    moves = (bandwidth * (moved @ weight.mT) for moved in noise)
    return reduce_examples(_mean_rise(logits, labels, moves), reduction)


def _checked(
    head: tuple[Tensor, Tensor, Tensor], labels: Tensor, samples: int
) -> tuple[Tensor, ...]:
    features, logits, weight = checked_head(*head)
    check_labels(labels, logits.shape[1], examples=len(features))
    check_positive("samples", samples)
    if not hasattr(samples, "__index__"):
        raise ValueError(f"samples must be a whole number, got {samples!r}.")
    return features, logits, weight


def _noise(like: Tensor, samples: int, generator: torch.Generator | None) -> Iterator[Tensor]:
    """Standard normal displacements, ``[examples, width]``, as often as there are samples."""
    device = like.device if generator is None else generator.device
    for _ in range(samples):
        noise = torch.randn(like.shape, generator=generator, device=device, dtype=like.dtype)
        yield noise.to(like.device)


def _mean_rise(logits: Tensor, labels: Tensor, moves: Iterable[Tensor]) -> Tensor:
    """Mean of loss(logits +- move) - loss(logits) over moves ``[examples, classes]``."""
    # The moves are made in here: autocast would make them in half precision.
    with in_full_precision(logits):
        before = cross_entropy_of(logits, labels)
        total, number = torch.zeros_like(before), 0
        for move in moves:
            rises = (cross_entropy_of(logits + sign * move, labels) for sign in (1, -1))
            total, number = total + 0.5 * sum(rises), number + 1
        return total / number - before


@lru_cache(maxsize=8)
def _frozen_examples(examples: int, device: torch.device) -> Tensor | None:
    """Which examples of a look are moved, in rising order; None if that is all of them."""
    if examples <= EXAMPLES:
        return None
    # Drawn: examples at equal distances may all be of one class.
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode(False):  # kept, also for those who take gradients
        chosen = torch.randperm(examples, generator=generator)[:EXAMPLES]
        return chosen.sort().values.to(device)


@lru_cache(maxsize=4)
def _frozen_noise(
    rows: int, width: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, ...]:
    """Pairs of opposite displacements of a look, ``[rows, width]`` each.

    Drawn on the host and in float32 for every device and dtype.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode(False):
        noise = torch.randn(DIRECTIONS, rows, width, generator=generator, dtype=torch.float32)
        return tuple(noise.to(device, dtype))


class _Sample(NamedTuple):
    """The examples of a look that are moved.

    Attributes:
        lengths: Of their features, ``[examples]``.
        logits: ``[examples, classes]``.
        labels: ``[examples]``.
        moves: How logits move when features move by the noise, ``[examples, classes]`` for each
            pair.
        noise: How far that is, ``[examples]`` for each pair.
    """

    lengths: Tensor
    logits: Tensor
    labels: Tensor
    moves: list[Tensor]
    noise: list[Tensor]


def _sample(batch: Batch) -> _Sample:
    logits, labels = batch.logits, batch.labels
    index = _frozen_examples(len(labels), labels.device)
    if index is None:
        features = batch.features
    else:
        features = rows_of(batch.parts, index)
        logits, labels = logits.index_select(0, index), labels.index_select(0, index)
    features, logits = common_dtype(features, logits)
    examples, width = features.shape
    rows = min(examples, max(LEAST_NOISE, NOISE // (DIRECTIONS * width)))
    noise = _frozen_noise(rows, width, features.dtype, features.device)
    weight = batch.weight.to(features)
    times = -(-examples // rows)
    with in_full_precision(logits):
        return _Sample(
            lengths=torch.linalg.vector_norm(features, dim=-1),
            logits=logits,
            labels=labels,
            moves=[(moved @ weight.mT).repeat(times, 1)[:examples] for moved in noise],
            noise=[
                torch.linalg.vector_norm(moved, dim=-1).repeat(times)[:examples] for moved in noise
            ],
        )


def _feature_robustness(batch: Batch) -> Tensor:
    if "feature_robustness" in batch.reference:  # that of the training data
        return batch.reference["feature_robustness"]
    sample = batch.shared(_sample)
    radii = natural_delta(len(batch.labels), batch.weight.shape[1]) * sample.lengths
    moves = (
        (radii / length)[:, None] * move
        for length, move in zip(sample.noise, sample.moves, strict=True)
    )
    return _mean_rise(sample.logits, sample.labels, moves).mean()


def _kernel_robustness(batch: Batch) -> Tensor:
    if "kernel_robustness" in batch.reference:
        return batch.reference["kernel_robustness"]
    sample = batch.shared(_sample)
    moves = (KDE_BANDWIDTH * move for move in sample.moves)
    return _mean_rise(sample.logits, sample.labels, moves).mean()


FEATURE_ROBUSTNESS = Measure(
    name="feature_robustness",
    unit="nats",
    direction="low is robust",
    range="≥ 0, but for the noise of two pairs of directions",
    formula="mean E_A ℓ(φ + δ A φ) − ℓ(φ), δ = n^(−1 / (4 + d))",
    cost="O(m C d), m = min(n, 8,192)",
    source="Petzka et al., NeurIPS 2021",
    note="Of the training data, also on held-out data. About δ² κ / (2 d) for small δ. Of more "
    "than 8,192 examples a fixed sample of that size is moved, in directions that are always the "
    "same; the standard error of its mean is a 90th of the standard deviation between examples.",
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
