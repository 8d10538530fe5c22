r"""Relative flatness of a linear head under softmax cross-entropy, and two published stand-ins.

Axes: ``examples`` (n), ``classes`` (C), ``width`` (d). Everything here is differentiable in all
its tensors and stays accurate where the softmax is almost one-hot, which is where trained
networks live. Half precision is computed in float32; float32 and float64 stay as they are.

Saturation. In float32 the smallest normal probability is ``exp(-87.3)``. For a gap between the
two largest logits up to there the relative error is about ``gap * 6e-8``; from 87 to 104 digits
are lost one by one, beyond it every value and gradient is exactly 0. Float64 logits reach 708.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import normalize

from grokscope.measures.checks import (
    check_floating,
    check_head,
    check_positive,
    check_same_examples,
    checked_head,
    common_dtype,
    in_full_precision,
    reduce_examples,
)
from grokscope.measures.record import Batch, Measure
from grokscope.measures.row_variance import row_variance

PUBLISHED_TEMPERATURE = 2.0


def relative_flatness(
    features: Tensor, logits: Tensor, weight: Tensor, reduction: str = "mean"
) -> Tensor:
    r"""Exact relative flatness of a linear head under softmax cross-entropy.

    The double sum over Hessian blocks is a variance of the head's rows:

    .. math:: \kappa = \sum_{s,s'} \langle w_s, w_{s'}\rangle \operatorname{Tr} H_{s,s'}
              = \mathbb{E}_n\, \|\phi_n\|^2 \, \mathrm{Var}_{c \sim p_n}(w_c)

    Adding one vector to all rows, or moving a factor from ``features`` to ``weight``, changes
    nothing.

    Args:
        features: Inputs of the head, ``[examples, width]``.
        logits: Outputs of the head, bias included, ``[examples, classes]``.
        weight: Rows of the head, ``[classes, width]``.
        reduction: "mean" (the definition), "sum", or "none" for one value per example.

    Returns:
        Scalar, or ``[examples]``, in nats; lower is flatter, never negative.

    Raises:
        ValueError: If the arguments do not describe one linear head with finite values.

    Cost: up to 256 classes O(classes^2 * (width + examples)); above, O(examples * classes * width)
    in float64 with temporaries of 8 MiB. Ground truth: `curvature.estimate_relative_flatness`.
    Source: Petzka et al., NeurIPS 2021, Definition 3; the closed form follows from
    :math:`H_{s,s'} = \mathbb{E}_n\, p_s (\delta_{ss'} - p_{s'}) \phi\phi^T`.

    Example:
        >>> features = weight = torch.eye(2)
        >>> logits = features @ weight.T
        >>> round(float(relative_flatness(features, logits, weight)), 4)
        0.3932
    """
    features, logits, weight = checked_head(features, logits, weight)
    with in_full_precision(features):
        length = features.square().sum(dim=-1)
        return reduce_examples(length * row_variance(logits, weight), reduction)


def relative_flatness_bound(
    features: Tensor,
    logits: Tensor,
    weight: Tensor,
    temperature: float = 1.0,
    normalize_features: bool = False,
    reduction: str = "mean",
) -> Tensor:
    r"""Upper bound of relative flatness that the paper plots and regularises.

    .. math:: \|W\|_F^2 \operatorname{Tr} H = \|W\|_F^2 \, \mathbb{E}_n\,
              (1 - \|p_n\|^2) \, \|\phi_n\|^2 \;\ge\; \kappa

    With ``temperature=2`` and ``normalize_features=True`` it is the published penalty. It then
    bounds nothing: it is a confidence penalty times a weight norm, at most
    :math:`\|W\|_F^2 (1 - 1/C)`, and acts on the features through the logits alone.

    Args:
        features: Inputs of the head, ``[examples, width]``.
        logits: Outputs of the head, bias included, ``[examples, classes]``.
        weight: Rows of the head, ``[classes, width]``.
        temperature: Divides the logits inside the softmax.
        normalize_features: Whether each example's features are scaled to length 1.
        reduction: "mean", "sum", or "none" for one value per example.

    Returns:
        Scalar, or ``[examples]``, in nats. Unlike kappa it changes when one vector is added to
        all rows, although the function does not.

    Raises:
        ValueError: If the arguments do not describe one linear head with finite values, or the
            temperature is not positive.

    Cost: O(examples * (classes + width) + classes * width).
    Source: Han et al., NeurIPS 2025, Lemma A.2; Walter et al. 2024.

    Example:
        >>> features = weight = torch.eye(2)
        >>> logits = features @ weight.T
        >>> round(float(relative_flatness_bound(features, logits, weight)), 4)
        0.7864
    """
    check_positive("temperature", temperature)
    features, logits, weight = checked_head(features, logits, weight)
    if normalize_features:
        features = normalize(features, dim=-1)
    spread = gini_impurity(logits / temperature) * features.square().sum(dim=-1)
    return weight.square().sum() * reduce_examples(spread, reduction)


def published_grokking_flatness(features: Tensor, logits: Tensor, weight: Tensor) -> Tensor:
    r"""The value that the paper's code plots as relative flatness in its grokking figure.

    .. math:: \|W\|_F^2 \, \mathbb{E}_n\, \mathrm{Gini}(\mathrm{softmax}(z_c \odot z_{eos}))
              \, (\|\phi_c\|^2 + \|\phi_{eos}\|^2)

    It multiplies the logits at the two answer positions inside one softmax. That is neither
    kappa nor the bound of any loss: no loss has these probabilities. It is here so that the
    published figure can be drawn beside the true one.

    Args:
        features: Inputs of the head at the answer ``c`` and at ``<eos>``,
            ``[examples, 2, width]``.
        logits: Outputs of the head there, ``[examples, 2, classes]``.
        weight: Rows of the head, ``[classes, width]``.

    Returns:
        Scalar, the mean over examples; its unit is that of |W|^2 |phi|^2.

    Raises:
        ValueError: If the arguments are not two positions of one linear head.

    Cost: O(examples * (classes + width) + classes * width).
    Source: published code of Han et al., NeurIPS 2025; its grokking figure.

    Example:
        >>> features, weight = torch.ones(1, 2, 3), torch.zeros(4, 3)
        >>> logits = features @ weight.T
        >>> float(published_grokking_flatness(features, logits, weight))
        0.0
    """
    for name, tensor, axis in (("features", features, "width"), ("logits", logits, "classes")):
        check_floating(name, tensor, ("examples", "2 positions", axis))
        if tensor.shape[1] != 2:
            raise ValueError(
                f"{name} must hold two positions on axis 1 (the answer and <eos>), got "
                f"{tensor.shape[1]}; select them, for example {name}[:, [3, 4]]."
            )
    check_same_examples(features, logits)
    check_head(features.flatten(0, 1), logits.flatten(0, 1), weight)
    features, logits, weight = common_dtype(features, logits, weight)
    impurity = gini_impurity(logits[:, 0] * logits[:, 1])
    return weight.square().sum() * (impurity * features.square().sum(dim=(1, 2))).mean()


def runner_up_odds(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Odds of every class against the most probable one, the latter's own set to 0.

    The sum of these odds is small when the softmax is nearly one-hot, and exact there; one minus
    the largest probability would be 0. Returns ``(gaps, odds, mass)``: logits minus the largest,
    exp of it without the top class, and its sum over classes, ``[..., classes]`` twice and
    ``[..., 1]``.
    """
    top = logits.argmax(dim=-1, keepdim=True)
    gaps = logits - logits.gather(-1, top)
    odds = gaps.exp().scatter(-1, top, 0.0)
    return gaps, odds, odds.sum(dim=-1, keepdim=True)


def gini_impurity(logits: Tensor) -> Tensor:
    """Gini impurity ``1 - |p|^2`` of a softmax, ``[..., classes] -> [...]``, without cancellation.

    It is the sum of ``p_c (1 - p_c)``; for the top class ``1 - p`` is the sum of the others, and
    any other class has ``p <= 1/2``, where ``1 - p`` is safe.
    """
    return _impurity_of(*runner_up_odds(logits)[1:])


def _impurity_of(odds: Tensor, mass: Tensor) -> Tensor:
    others = odds / (1 + mass)
    total = 1 + mass.squeeze(-1)
    return mass.squeeze(-1) / total.square() + (others * (1 - others)).sum(dim=-1)


def squared_length(batch: Batch) -> Tensor:
    """Squared length of each example's features, ``[n]``."""
    if batch.known_lengths is not None:
        return batch.known_lengths.square()
    return batch.features.square().sum(dim=-1)


def squared_weight(batch: Batch) -> Tensor:
    """Squared Frobenius norm of the head's weight."""
    return batch.weight.square().sum()


def _length(batch: Batch) -> Tensor:
    if batch.known_lengths is not None:
        return batch.known_lengths
    return torch.linalg.vector_norm(batch.features, dim=-1)


def odds_of(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """`runner_up_odds` of each example."""
    return runner_up_odds(batch.logits)


def impurity(batch: Batch) -> Tensor:
    """Gini impurity of each example's softmax, ``[n]``."""
    return _impurity_of(*batch.shared(odds_of)[1:])


def _relative_flatness(batch: Batch) -> Tensor:
    return batch.shared(squared_length) * row_variance(batch.logits, batch.weight)


def _bound(batch: Batch) -> Tensor:
    return batch.shared(squared_weight) * batch.shared(squared_length) * batch.shared(impurity)


def _published_penalty(batch: Batch) -> Tensor:
    return batch.shared(squared_weight) * gini_impurity(batch.logits / PUBLISHED_TEMPERATURE)


_of_head = partial(Measure, range="≥ 0", cost="O(n (C + d) + C d)", differentiable=True)
RECORDS = (
    _of_head(
        name="relative_flatness",
        title="exact κ",
        symbol="κ",
        unit="nats",
        direction="low is flat",
        formula="mean |φ|² · Var_{c∼p}(w_c)",
        cost="O(n C² + C² d) up to 256 classes, O(n C d) above",
        source="Petzka et al., NeurIPS 2021, Definition 3",
        note="Falls when confidence rises, and moves under maps that leave the function as it is, "
        "such as a constant feature or one vector added to all features.",
        evaluate=_relative_flatness,
    ),
    _of_head(
        name="relative_flatness_bound",
        title="bound on κ",
        symbol="‖W‖² Tr H",
        unit="nats",
        direction="low is flat",
        range="≥ κ",
        formula="‖W‖² · mean |φ|² · (1 − |p|²)",
        source="Han et al., NeurIPS 2025, Lemma A.2; Walter et al. 2024",
        note="One vector added to all rows of the head changes it, but not the function.",
        evaluate=_bound,
    ),
    _of_head(
        name="published_penalty",
        direction="low is confident or a small head",
        range="0 to ‖W‖² (1 − 1/C)",
        formula="‖W‖² · mean (1 − |softmax(z / 2)|²)",
        cost="O(n C + C d)",
        source="Han et al., NeurIPS 2025, published code",
        note="The bound on features of length 1 at temperature 2. It bounds nothing: it is a "
        "confidence penalty times a weight norm.",
        evaluate=_published_penalty,
    ),
    _of_head(
        name="published_flatness",
        title="published value",
        direction="low is flat in the paper's figure",
        formula="‖W‖² · mean (1 − |softmax(z_c ⊙ z_eos)|²) · (|φ_c|² + |φ_eos|²)",
        source="Han et al., NeurIPS 2025, published code of the grokking figure",
        note="It multiplies the logits of two positions in one softmax, so it is not the flatness "
        "of any loss.",
        needs=("positions",),
        evaluate=lambda batch: published_grokking_flatness(
            batch.features, batch.logits, batch.weight
        ),
        differentiable=False,
    ),
    _of_head(
        name="feature_norm",
        symbol="|φ|",
        formula="mean |φ|",
        cost="O(n d)",
        evaluate=_length,
    ),
    _of_head(
        name="weight_norm",
        symbol="‖W‖",
        formula="‖W‖, the Frobenius norm of the head's weight",
        cost="O(C d)",
        evaluate=lambda batch: torch.linalg.vector_norm(batch.weight),
    ),
)
