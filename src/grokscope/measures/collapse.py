r"""Neural collapse: how tightly classes cluster, and how regularly their means are arranged.

Everything comes from `ClassMoments`, so it can be computed from parts, and is float64. Classes
without examples are left out. Axes: ``classes`` (C, those present), ``width`` (d). Means are
centred at the mean of the class means, so that every class counts the same.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from grokscope.measures.checks import (
    check_features,
    check_head_of_means,
    check_head_shapes,
    check_labels,
    check_logits,
    reduce_examples,
    values_are_readable,
)
from grokscope.measures.flatness import squared_distances
from grokscope.measures.moments import ClassMoments

NCC_REDUCTIONS = ("mean", "sum", "none")
# An estimated squared distance between means is corrected down to this share of it, not further.
LEAST_SHARE = 0.05
# Above so many classes, distances between means always come from inner products (in float64).
PAIRWISE_CLASSES = 1024
# Elements of a float64 temporary for more classes: 32 MiB.
PAIR_ELEMENTS = 2**22
# Squared distances of means below this share of the largest square come from differences.
CLOSE = 1e-3


def ncc(moments: ClassMoments, reduction: str = "mean", unbiased: bool = False) -> Tensor:
    r"""Class-distance normalised variance (CDNV), which the paper calls NCC; low is collapsed.

    .. math:: \mathrm{NCC} = \operatorname{mean}_{c \ne c'}
              \frac{V_c + V_{c'}}{2\, \|\mu_c - \mu_{c'}\|^2}, \qquad
              V_c = \frac{1}{n_c} \sum_{i: y_i = c} \|\phi_i - \mu_c\|^2

    Few examples per class make the plain value too low, twice over: deviations are taken from a
    mean that was fitted to them, and fitted means lie further apart than the true ones.
    ``unbiased`` divides by :math:`n_c - 1`, subtracts :math:`V_c / n_c + V_{c'} / n_{c'}` from the
    squared distance (but leaves at least a twentieth of it: behind that there is only noise), and
    leaves out classes with a single example. Numerator and denominator are then unbiased each;
    their ratio is nearly so.

    Args:
        moments: Class moments of the features.
        reduction: "mean" over ordered pairs, the value that is plotted in the paper; "sum", the
            sum over ordered pairs with :math:`V_c` a sum, as Definition 3.1 is written; "none",
            the matrix of pairs.
        unbiased: Whether to correct for few examples per class; not with "sum".

    Returns:
        Scalar, or ``[classes, classes]`` with zeros on the diagonal and for classes left out;
        no unit. Infinite if two class means coincide. Differentiable in the features.

    Raises:
        ValueError: If fewer than two classes have examples (two each when ``unbiased``), or for
            an unknown reduction.

    Cost: O(classes^2 * width), independent of the number of examples; above 1,024 classes pairs
    are summed in pieces of 32 MiB (but for "none").
    Source: Galanti et al., ICLR 2022; Han et al., NeurIPS 2025, Definition 3.1.
    """
    if reduction not in NCC_REDUCTIONS:
        known = ", ".join(map(repr, NCC_REDUCTIONS))
        raise ValueError(f"reduction must be one of {known}, got {reduction!r}.")
    if unbiased and reduction == "sum":
        raise ValueError(
            'reduction "sum" is the literal Definition 3.1, which has no unbiased form; '
            'use reduction="mean" with unbiased=True.'
        )
    least = 2 if unbiased else 1
    counted = moments.count >= least
    if values_are_readable(moments.count) and int(counted.sum()) < 2:
        raise ValueError(
            f"ncc needs at least two classes with {least} or more examples each, but there are "
            f"{int(counted.sum())}; pass more examples, or moments of several batches added up."
        )
    variance = moments.within if reduction == "sum" else moments.within / moments.count.clamp(min=1)
    excess = None
    if unbiased:
        variance = moments.within / (moments.count - 1).clamp(min=1)
        excess = variance / moments.count.clamp(min=1)
    if reduction == "none" or len(counted) <= PAIRWISE_CLASSES:
        pairs = counted[:, None] & counted[None, :]
        pairs = pairs & ~torch.eye(len(counted), dtype=torch.bool, device=pairs.device)
        distances = _distances_of_means(moments.mean, pairs)
        ratio = _ratios(distances, pairs, (variance, variance), (excess, excess))
        if reduction == "none":
            return ratio
        total = ratio.sum()
    else:
        total = _sum_of_ratios(moments.mean, counted, variance, excess)
    if reduction == "sum":
        return total
    number = counted.sum()
    return total / (number * (number - 1))


def _sum_of_ratios(
    means: Tensor, counted: Tensor, variance: Tensor, excess: Tensor | None
) -> Tensor:
    """The sum over all pairs of many classes, some rows at a time."""
    total = variance.new_zeros(())
    centred = means - means.mean(dim=0)
    square = centred.square().sum(dim=-1)
    every = torch.arange(len(counted), device=counted.device)
    for rows in every.split(max(1, PAIR_ELEMENTS // len(counted))):
        squares = square.index_select(0, rows)[:, None] + square[None, :]
        distances = torch.addmm(squares, centred.index_select(0, rows), centred.mT, alpha=-2)
        pairs = counted.index_select(0, rows)[:, None] & counted[None, :]
        pairs = pairs & (rows[:, None] != every[None, :])
        own = None if excess is None else excess.index_select(0, rows)
        variances = (variance.index_select(0, rows), variance)
        total = total + _ratios(distances.clamp(min=0), pairs, variances, (own, excess)).sum()
    return total


def _ratios(
    distances: Tensor,
    pairs: Tensor,
    variances: tuple[Tensor, Tensor],
    excess: tuple[Tensor | None, Tensor | None],
) -> Tensor:
    """Variance over squared distance, 0 where there is no pair; of rows and of columns each."""
    if excess[0] is not None and excess[1] is not None:
        corrected = distances - (excess[0][:, None] + excess[1][None, :])
        distances = torch.maximum(corrected, LEAST_SHARE * distances)
    # Masked before the division: 0 / 0 would put NaN into the gradient.
    apart = pairs & (distances > 0)
    spread = 0.5 * variances[0][:, None] + 0.5 * variances[1][None, :]
    ratio = spread / torch.where(apart, distances, math.inf)
    return ratio.masked_fill(pairs ^ apart, math.inf)


def neural_collapse(
    moments: ClassMoments, weight: Tensor, bias: Tensor | None = None
) -> dict[str, Tensor]:
    r"""Distances from neural collapse NC1 to NC3, by name; all but the angle are 0 at collapse.

    With :math:`\Sigma_W` the scatter within classes per example, :math:`\Sigma_B` that of the
    centred class means :math:`m_c = \mu_c - \mu_G` per class:

    - ``nc1_pinv``: :math:`\operatorname{Tr}(\Sigma_W \Sigma_B^+) / C`; only if the moments have a
      scatter matrix (`nc1_pinv` computes it from features without one);
    - ``nc1_quotient``: :math:`\operatorname{Tr} \Sigma_W / \operatorname{Tr} \Sigma_B`;
    - ``nc2_equinorm``: standard deviation over mean of :math:`\|m_c\|`;
    - ``nc2_equiangularity``: standard deviation over pairs of the cosines of :math:`m_c`;
    - ``nc2_etf_distance``: Frobenius distance between the Gram matrix of :math:`m_c` and that of a
      simplex, both scaled to norm 1;
    - ``nc3_self_duality``: Frobenius distance between the centred rows of the head and the
      :math:`m_c`, both scaled to norm 1;
    - ``nc4_means``: share of class means that the head does not assign to their own class;
    - ``mean_class_angle``: mean angle between two :math:`m_c`, degrees;
    - ``angle_deviation``: mean absolute distance of those angles from the simplex's
      :math:`\arccos(-1/(C-1))`, degrees.

    The third published form of NC1 is `ncc`. NC4 on examples is `nc4_agreement`.

    Args:
        moments: Class moments of the features.
        weight: Rows of the head, ``[classes, width]``. Their mean is removed: it changes neither
            the function nor the loss.
        bias: Offsets of the head, ``[classes]``.

    Returns:
        Scalars by name, float64, differentiable.

    Raises:
        ValueError: If weight or bias do not fit the moments, or fewer than two classes have
            examples.

    Cost: O(classes^2 * width) and, with a scatter matrix, O(classes * width^2).
    Source: Papyan, Han and Donoho, PNAS 2020 (NC1 to NC4); Zhu et al., NeurIPS 2021 (distance to
    the simplex's Gram matrix); Hui, Belkin and Nakkiran 2022 (the quotient).
    """
    check_head_of_means(moments.mean, weight, bias)
    return collapse_of(*moments.of_present_classes(), weight, bias)


def collapse_of(
    present: ClassMoments, index: Tensor, weight: Tensor, bias: Tensor | None
) -> dict[str, Tensor]:
    """`neural_collapse`, unchecked, of the moments of the classes ``index``, all present."""
    classes = len(index)
    means = present.mean - present.mean.mean(dim=0)
    rows = weight.double()[index]
    norms = torch.linalg.vector_norm(means, dim=-1)
    gram = means @ means.mT
    simplex = torch.eye(classes).to(gram) - 1 / classes
    off = ~torch.eye(classes, dtype=torch.bool, device=gram.device)
    cosines = (gram / (norms[:, None] * norms[None, :]))[off]
    # At 0 and 180 degrees the angle has no derivative: clamped short of there, it is 0.
    edge = 1 - torch.finfo(cosines.dtype).eps
    angles = torch.rad2deg(torch.arccos(cosines.clamp(-edge, edge)))
    centred = rows - rows.mean(dim=0)
    logits = present.mean @ weight.double().mT
    if bias is not None:
        logits = logits + bias.double()
    values = {}
    if present.scatter is not None:
        spread = present.scatter / present.count.sum()
        inverse = _inverse_of_means(present.mean)
        values["nc1_pinv"] = (inverse * (spread @ inverse)).sum()
    values |= {
        "nc1_quotient": present.within.sum() / present.count.sum() * classes / norms.square().sum(),
        "nc2_equinorm": norms.std(correction=0) / norms.mean(),
        "nc2_equiangularity": cosines.std(correction=0),
        "nc2_etf_distance": _norm(gram / _norm(gram) - simplex / _norm(simplex)),
        "nc3_self_duality": _norm(centred / _norm(centred) - means / _norm(means)),
        "nc4_means": (logits.argmax(dim=-1) != index).double().mean(),
        "mean_class_angle": angles.mean(),
        "angle_deviation": (angles - simplex_angle(classes)).abs().mean(),
    }
    return values


def nc1_pinv(features: Tensor, labels: Tensor, moments: ClassMoments) -> Tensor:
    r""":math:`\operatorname{Tr}(\Sigma_W \Sigma_B^+) / C` without any ``width x width`` matrix.

    The pseudo-inverse lives on the span of the centred class means, so that deviations are
    projected there first. Equals the value of `neural_collapse` on moments with scatter.

    Args:
        features: Inputs of the head, ``[examples, width]``.
        labels: Class indices, ``[examples]``.
        moments: Moments of these examples.

    Returns:
        Scalar, float64, no unit; 0 at collapse.

    Raises:
        ValueError: If the arguments do not fit, or fewer than two classes have examples.

    Cost: O(examples * width * classes + classes^2 * width).
    Source: Papyan, Han and Donoho, PNAS 2020.
    """
    check_features(features)
    check_labels(labels, len(moments.count), examples=features.shape[0])
    check_head_shapes(features, moments.mean)
    present, _ = moments.of_present_classes()
    return nc1_of(features, labels, moments, present)


def nc1_of(
    features: Tensor, labels: Tensor, moments: ClassMoments, present: ClassMoments
) -> Tensor:
    """`nc1_pinv`, unchecked; ``present`` are the moments of the classes that there are."""
    deviation = features.double() - moments.mean.index_select(0, labels.long())
    return (deviation @ _inverse_of_means(present.mean)).square().sum() / features.shape[0]


def nc4_agreement(
    features: Tensor, logits: Tensor, moments: ClassMoments, reduction: str = "mean"
) -> Tensor:
    """NC4: does the head decide as the nearest class mean does? 1 at collapse.

    Args:
        features: Inputs of the head, ``[examples, width]``.
        logits: Outputs of the head, ``[examples, classes]``.
        moments: Whose class means to compare with; usually those of the training data.
        reduction: "mean", "sum" (so that parts add up), or "none": 1 or 0 for each example.

    Returns:
        Scalar, or ``[examples]``, float64: a share of the examples. Not differentiable.

    Raises:
        ValueError: If the arguments do not fit, or fewer than two classes have a mean.

    Cost: O(examples * classes * width). Source: Papyan, Han and Donoho, PNAS 2020.
    """
    check_features(features)
    check_logits(logits)
    check_head_shapes(features, moments.mean)
    if logits.shape != (len(features), len(moments.count)):
        raise ValueError(
            f"logits has shape {tuple(logits.shape)} but there are {len(features)} examples and "
            f"{len(moments.count)} classes; pass what the same forward pass gave."
        )
    agreed = agreement_of(features, logits, *moments.of_present_classes())
    return reduce_examples(agreed, reduction)


def agreement_of(features: Tensor, logits: Tensor, present: ClassMoments, index: Tensor) -> Tensor:
    """`nc4_agreement` of each example, unchecked, with the means of the classes ``index``."""
    # argmin |phi - mu|^2 = argmin |mu|^2 - 2 phi mu, both seen from the mean of the means.
    centre = present.mean.mean(dim=0)
    means = present.mean - centre
    score = means.square().sum(dim=-1) - 2 * (features.double() - centre) @ means.mT
    nearest = index[score.argmin(dim=-1)]
    return (nearest == logits.argmax(dim=-1)).double()


def simplex_angle(num_classes: int) -> float:
    """Angle between two corners of the regular simplex seen from its centre.

    Args:
        num_classes: Corners, at least 2.

    Returns:
        ``arccos(-1 / (num_classes - 1))`` in degrees. Cost: O(1).

    Raises:
        ValueError: If there are fewer than two corners: there is no angle then.
    """
    if num_classes < 2:
        raise ValueError(f"num_classes must be at least 2, got {num_classes!r}.")
    return math.degrees(math.acos(-1 / (num_classes - 1)))


def _distances_of_means(means: Tensor, pairs: Tensor) -> Tensor:
    """Squared distances; from inner products where that costs no digits, else from differences."""
    if len(means) <= PAIRWISE_CLASSES and not values_are_readable(means):
        return squared_distances(means)
    centred = means - means.mean(dim=0)
    square = centred.square().sum(dim=-1)
    distances = torch.addmm(square[:, None] + square[None, :], centred, centred.mT, alpha=-2)
    if len(means) > PAIRWISE_CLASSES:
        return distances.clamp(min=0)
    # The relative error is about 1e-16 * |m|^2 / distance: below 1e-12 for pairs this far apart.
    far = distances.detach() > CLOSE * square.detach().max()
    return distances if bool((far | ~pairs).all()) else squared_distances(means)


def _inverse_of_means(means: Tensor) -> Tensor:
    r"""Pseudo-inverse of the centred means, ``[width, classes]``.

    With M the centred means :math:`\Sigma_B^+ / C = M^+ (M^+)^T`, so that NC1 is
    :math:`\operatorname{Tr}((M^+)^T \Sigma_W M^+)`.
    """
    # Centring leaves rounding errors the size of the means in directions that do not exist.
    rounding = max(means.shape) * torch.finfo(means.dtype).eps * _norm(means.detach())
    inverse = torch.linalg.pinv(
        means - means.mean(dim=0), atol=rounding, rtol=torch.zeros_like(rounding)
    )
    # Means that all coincide span nothing: NaN, where the pseudo-inverse would say "collapsed".
    return torch.where(inverse.any(), inverse, math.nan)


def _norm(matrix: Tensor) -> Tensor:
    return torch.linalg.matrix_norm(matrix)
