r"""Neural collapse: how tightly classes cluster, and how regularly their means are arranged.

Everything comes from `ClassMoments`, so it can be computed from parts, and is float64. Classes
without examples are left out. Axes: ``classes`` (C, those present), ``width`` (d). Means are
centred at the mean of the class means, so that every class counts the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from grokscope.measures.checks import (
    check_head_of_means,
    check_labels,
    check_logits,
    check_matrix,
    check_width,
    is_differentiated,
    reduce_examples,
)
from grokscope.measures.mean_span import inverse_of_means, span_of
from grokscope.measures.moments import ClassMoments
from grokscope.measures.pieces import CHUNK_ELEMENTS, deviations
from grokscope.measures.record import Batch, Measure

PAPYAN = "Papyan, Han and Donoho, PNAS 2020"


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

    Example:
        >>> corners, labels = torch.eye(3), torch.arange(3)
        >>> moments = ClassMoments.from_batch(corners, labels, num_classes=3)
        >>> round(float(neural_collapse(moments, weight=corners)["mean_class_angle"]))
        120
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
        inverse = inverse_of_means(present.mean)
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

    Example:
        >>> features, labels = torch.eye(3).repeat(2, 1), torch.arange(3).repeat(2)
        >>> moments = ClassMoments.from_batch(features, labels, num_classes=3)
        >>> float(nc1_pinv(features, labels, moments))
        0.0
    """
    check_matrix("features", features, "examples", "width")
    check_labels(labels, len(moments.count), examples=features.shape[0])
    check_width(features, moments.mean)
    present, _ = moments.of_present_classes()
    return nc1_of(features, labels, moments, present)


def nc1_of(
    features: Tensor, labels: Tensor, moments: ClassMoments, present: ClassMoments
) -> Tensor:
    """`nc1_pinv`, unchecked; ``present`` are the moments of the classes that there are."""
    inverse = inverse_of_means(present.mean)
    total = inverse.new_zeros(())
    for _, deviation in deviations(features, moments.mean, labels.long()):
        total = total + (deviation @ inverse).square().sum()
    return total / features.shape[0]


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

    Example:
        >>> features, labels = torch.eye(3), torch.arange(3)
        >>> moments = ClassMoments.from_batch(features, labels, num_classes=3)
        >>> float(nc4_agreement(features, logits=features, moments=moments))
        1.0
    """
    check_matrix("features", features, "examples", "width")
    check_logits(logits)
    check_width(features, moments.mean)
    if logits.shape != (len(features), len(moments.count)):
        raise ValueError(
            f"logits has shape {tuple(logits.shape)} but there are {len(features)} examples and "
            f"{len(moments.count)} classes; pass what the same forward pass gave."
        )
    agreed = agreement_of(features, logits, *moments.of_present_classes())
    return reduce_examples(agreed, reduction)


def agreement_of(features: Tensor, logits: Tensor, present: ClassMoments, index: Tensor) -> Tensor:
    """`nc4_agreement` of each example, unchecked, with the means of the classes ``index``.

    Classes without examples are never the nearest.
    """
    # argmin |phi - mu|^2 = argmin |mu|^2 - 2 phi mu, both seen from the mean of the means.
    counted = present.count > 0
    centre = present.mean.sum(dim=0) / counted.sum()
    means = present.mean - centre
    square = means.square().sum(dim=-1).masked_fill(~counted, math.inf)
    nearest = [
        (square - 2 * seen @ means.mT).argmin(dim=-1) for _, seen in deviations(features, centre)
    ]
    return (index[torch.cat(nearest)] == logits.argmax(dim=-1)).double()


def simplex_angle(num_classes: int) -> float:
    """Angle between two corners of the regular simplex seen from its centre.

    Args:
        num_classes: Corners, at least 2.

    Returns:
        ``arccos(-1 / (num_classes - 1))`` in degrees. Cost: O(1).

    Raises:
        ValueError: If there are fewer than two corners: there is no angle then.

    Example:
        >>> round(simplex_angle(3)), round(simplex_angle(2))
        (120, 180)
    """
    if num_classes < 2:
        raise ValueError(f"num_classes must be at least 2, got {num_classes!r}.")
    return math.degrees(math.acos(-1 / (num_classes - 1)))


def _norm(matrix: Tensor) -> Tensor:
    return torch.linalg.matrix_norm(matrix)


def _collapse(batch: Batch) -> dict[str, Tensor]:
    return collapse_of(*batch.present, batch.weight, batch.bias)


def _nc1_pinv(batch: Batch) -> Tensor:
    if batch.moments.scatter is not None:
        return batch.shared(_collapse)["nc1_pinv"]
    if is_differentiated(batch.parts[0]):  # the span has no derivative where its lengths are equal
        return nc1_of(batch.features, batch.labels, batch.moments, batch.present[0])
    span = batch.shared(span_of)
    # Means that all coincide span nothing: NaN, as for the pseudo-inverse.
    ratio = span.deviations / torch.where(span.scale.isinf().all(), math.nan, span.scale)
    return ratio.square_().sum() / len(ratio)


def _nc4_agreement(batch: Batch) -> Tensor:
    if batch.training is not None or is_differentiated(batch.parts[0]):
        return agreement_of(batch.features, batch.logits, *(batch.training or batch.present))
    means, index = batch.shared(span_of).means, batch.present[1]
    gram = means @ means.mT
    # argmin |phi - mu|^2 as in `agreement_of`, with phi the mean of its class and a deviation.
    half = 0.5 * gram.diagonal() - gram
    place = torch.searchsorted(index, batch.labels.contiguous())
    rows = max(1, CHUNK_ELEMENTS // len(means))
    nearest = [
        (half[here] - seen @ means.mT).argmin(dim=-1)
        for seen, here in zip(
            batch.shared(span_of).deviations.split(rows), place.split(rows), strict=True
        )
    ]
    return (index[torch.cat(nearest)] == batch.logits.argmax(dim=-1)).double()


def _named(name: str) -> Callable[[Batch], Tensor]:
    """One of the values of `neural_collapse`, all of which are computed together."""
    return lambda batch: batch.shared(_collapse)[name]


_of_means = partial(
    Measure,
    direction="low is collapsed",
    range="≥ 0",
    cost="O(n d + C² d)",
    source=PAPYAN,
    needs=("classes",),
    differentiable=True,
)
RECORDS = (
    _of_means(
        name="nc1_pinv",
        title="NC1, within-class scatter",
        symbol="NC1",
        formula="Tr(Σ_W Σ_B⁺) / C",
        cost="O(n C d + C² d), streamed O(n d²)",
        evaluate=_nc1_pinv,
    ),
    _of_means(
        name="nc1_quotient",
        title="NC1, quotient of traces",
        symbol="NC1",
        formula="Tr Σ_W / Tr Σ_B",
        source="Hui, Belkin and Nakkiran 2022",
        evaluate=_named("nc1_quotient"),
    ),
    _of_means(
        name="nc2_equinorm",
        title="NC2, equinorm",
        symbol="NC2",
        formula="std |m_c| / mean |m_c|, m_c = μ_c − mean μ",
        evaluate=_named("nc2_equinorm"),
    ),
    _of_means(
        name="nc2_equiangularity",
        title="NC2, equiangularity",
        symbol="NC2",
        formula="std_{c≠c′} cos(m_c, m_c′)",
        evaluate=_named("nc2_equiangularity"),
    ),
    _of_means(
        name="nc2_etf_distance",
        title="NC2, distance to the simplex",
        symbol="NC2",
        formula="‖M Mᵀ / ‖M Mᵀ‖ − S / ‖S‖‖, S = I − 11ᵀ / C",
        source="Zhu et al., NeurIPS 2021",
        evaluate=_named("nc2_etf_distance"),
    ),
    _of_means(
        name="nc3_self_duality",
        title="NC3, self-duality",
        symbol="NC3",
        range="0 to 2",
        formula="‖W / ‖W‖ − M / ‖M‖‖, both centred",
        evaluate=_named("nc3_self_duality"),
    ),
    _of_means(
        name="nc4_means",
        title="NC4, means on the wrong side",
        symbol="NC4",
        unit="share",
        range="0 to 1",
        formula="share of class means that the head does not assign to their class",
        evaluate=_named("nc4_means"),
        differentiable=False,
    ),
    _of_means(
        name="nc4_agreement",
        title="NC4, agreement",
        symbol="NC4",
        unit="share",
        direction="high is collapsed",
        range="0 to 1",
        formula="mean [argmax z = argmin_c |φ − μ_c|]",
        cost="O(n C d)",
        note="On held-out data with the class means of the training data.",
        needs=("training classes",),
        evaluate=_nc4_agreement,
        differentiable=False,
    ),
    _of_means(
        name="mean_class_angle",
        title="mean angle between class means",
        unit="degrees",
        direction="arccos(−1 / (C − 1)) is collapsed",
        range="0 to 180",
        formula="mean_{c≠c′} ∠(m_c, m_c′)",
        evaluate=_named("mean_class_angle"),
    ),
    _of_means(
        name="angle_deviation",
        title="deviation from the simplex angle",
        unit="degrees",
        range="0 to 180",
        formula="mean_{c≠c′} |∠(m_c, m_c′) − arccos(−1 / (C − 1))|",
        source="Han et al., NeurIPS 2025, Figure 3",
        evaluate=_named("angle_deviation"),
    ),
)
