r"""Class-distance normalised variance: how far classes scatter against how far they lie apart.

Everything comes from `ClassMoments`, so it can be computed from parts, and is float64. Classes
without examples are left out. Axes: ``classes`` (C, those present), ``width`` (d).
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from grokscope.measures.checks import check_reduction, values_are_checked
from grokscope.measures.moments import ClassMoments
from grokscope.measures.record import Batch, Measure
from grokscope.measures.row_variance import squared_distances

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

    Example:
        >>> features, labels = torch.tensor([[0.0], [2], [9], [11]]), torch.tensor([0, 0, 1, 1])
        >>> moments = ClassMoments.from_batch(features, labels, num_classes=2)
        >>> round(float(ncc(moments)), 4)  # variances 1 and 1, means 9 apart
        0.0123
    """
    check_reduction(reduction)
    if unbiased and reduction == "sum":
        raise ValueError(
            'reduction "sum" is the literal Definition 3.1, which has no unbiased form; '
            'use reduction="mean" with unbiased=True.'
        )
    least = 2 if unbiased else 1
    counted = moments.count >= least
    if values_are_checked(moments.count) and int(counted.sum()) < 2:
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
    index = torch.arange(len(counted), device=counted.device)
    for rows in index.split(max(1, PAIR_ELEMENTS // len(counted))):
        squares = square.index_select(0, rows)[:, None] + square[None, :]
        distances = torch.addmm(squares, centred.index_select(0, rows), centred.mT, alpha=-2)
        pairs = counted.index_select(0, rows)[:, None] & counted[None, :]
        pairs = pairs & (rows[:, None] != index[None, :])
        of_rows = None if excess is None else excess.index_select(0, rows)
        variances = (variance.index_select(0, rows), variance)
        total = total + _ratios(distances.clamp(min=0), pairs, variances, (of_rows, excess)).sum()
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


def _distances_of_means(means: Tensor, pairs: Tensor) -> Tensor:
    """Squared distances; from inner products where that costs no digits, else from differences."""
    if len(means) <= PAIRWISE_CLASSES and not values_are_checked(means):
        return squared_distances(means)
    centred = means - means.mean(dim=0)
    square = centred.square().sum(dim=-1)
    distances = torch.addmm(square[:, None] + square[None, :], centred, centred.mT, alpha=-2)
    if len(means) > PAIRWISE_CLASSES:
        return distances.clamp(min=0)
    # The relative error is about 1e-16 * |m|^2 / distance: below 1e-12 for pairs this far apart.
    far = distances.detach() > CLOSE * square.detach().max()
    return distances if bool((far | ~pairs).all()) else squared_distances(means)


def _moments(batch: Batch) -> ClassMoments:
    """Those of the classes that are present, where these are known without a look at values."""
    return batch.moments if batch.index is None else batch.present[0]


_of_distances = partial(
    Measure,
    symbol="NCC",
    direction="low is collapsed",
    range="≥ 0",
    cost="O(n d + C² d)",
    differentiable=True,
)
RECORDS = (
    _of_distances(
        name="ncc",
        title="NCC",
        formula="mean_{c≠c′} (V_c + V_c′) / (2 |μ_c − μ_c′|²)",
        source="Galanti et al., ICLR 2022; Han et al., NeurIPS 2025, Definition 3.1",
        note="Too low with few examples per class; it does not see the scale of the head.",
        needs=("classes",),
        evaluate=lambda batch: ncc(_moments(batch)),
    ),
    _of_distances(
        name="ncc_unbiased",
        title="NCC, unbiased",
        formula="NCC with V_c / (n_c − 1) and distances less V_c / n_c + V_c′ / n_c′",
        source="Galanti et al., ICLR 2022, corrected for few examples",
        note="Leaves out classes with a single example.",
        needs=("repeated classes",),
        evaluate=lambda batch: ncc(_moments(batch), unbiased=True),
    ),
)
