r"""Proposition 5.3: collapse implies flatness. Both sides, the slack, and the assumptions.

Under NC1 to NC4 with k classes, means at radius :math:`M` about the global mean :math:`\mu_G` and
rows :math:`w_c = \lambda (\mu_c - \mu_G)`, the logit of the own class leads every other by the
*gap* :math:`x = \lambda M^2 k / (k - 1)`, and

.. math:: \kappa = \lambda^2 M^2 (M^2 + \|\mu_G\|^2) \frac{k}{k-1}\, (1 - \|p\|^2)
          \;\le\; \frac{\lambda^2 k^3 M^4 e^{-x}}{(1 + (k-1) e^{-x})^2}
          \quad \text{if } \|\mu_G\|^2 \le (k - 1) M^2

The first equation is exact. For centred features the bound exceeds it by a factor
:math:`k^2 / (2 + (k-2) e^{-x})` between k and :math:`k^2/2`. NC1 to NC4 do not restrict
:math:`\mu_G`: far off the centre the bound is broken (`tests/measures/test_theory.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from grokscope.measures.checks import check_at_least_two_classes, check_head_of_means
from grokscope.measures.moments import ClassMoments
from grokscope.measures.record import Batch, Measure


def collapse_flatness_bound(
    scale: Tensor | float, radius: Tensor | float, num_classes: int
) -> Tensor:
    r"""Right side of Proposition 5.3: the bound on kappa of an exactly collapsed head.

    Args:
        scale: :math:`\lambda`, at least 0; scalar or any shape that broadcasts with ``radius``.
        radius: :math:`M`, at least 0.
        num_classes: k.

    Returns:
        The bound in nats, float64, of the broadcast shape; decays like :math:`e^{-\lambda}`.

    Raises:
        ValueError: For a negative or non-finite scale or radius, or fewer than two classes.

    Cost: O(1). Source: Han et al., NeurIPS 2025, Proposition 5.3.

    Example:
        >>> scales = torch.tensor([1.0, 4.0])
        >>> bounds = collapse_flatness_bound(scales, radius=2.0, num_classes=3)
        >>> bool(bounds[1] < bounds[0])
        True
    """
    check_at_least_two_classes("num_classes", num_classes)
    return _bound(_not_negative("scale", scale), _not_negative("radius", radius), num_classes)


def collapsed_relative_flatness(
    scale: Tensor | float,
    radius: Tensor | float,
    num_classes: int,
    offset: Tensor | float = 0.0,
) -> Tensor:
    r"""Left side of Proposition 5.3: kappa of an exactly collapsed head, in closed form.

    Args:
        scale: :math:`\lambda`, at least 0.
        radius: :math:`M`, at least 0.
        num_classes: k.
        offset: Length of the global mean in radii, :math:`\|\mu_G\| / M`; the global mean is
            taken to be orthogonal to the centred class means.

    Returns:
        Kappa in nats, float64; free of cancellation where the softmax is nearly one-hot.

    Raises:
        ValueError: For a negative or non-finite argument, or fewer than two classes.

    Cost: O(1). Source: the formula above.

    Example:
        >>> kappa = collapsed_relative_flatness(scale=1.0, radius=2.0, num_classes=3)
        >>> bool(kappa <= collapse_flatness_bound(scale=1.0, radius=2.0, num_classes=3))
        True
    """
    check_at_least_two_classes("num_classes", num_classes)
    scale, radius = _not_negative("scale", scale), _not_negative("radius", radius)
    offset = _not_negative("offset", offset)
    k = num_classes
    decay = torch.exp(-_gap(scale, radius, k))
    impurity = (k - 1) * decay * (2 + (k - 2) * decay) / (1 + (k - 1) * decay).square()
    front = scale.square() * radius.pow(4) * (1 + offset.square()) * k / (k - 1)
    return front * impurity


@dataclass(frozen=True)
class CollapseAssumptions:
    """What Proposition 5.3 assumes of a trained head, and how far it is from it.

    All residuals are relative, 0 where the assumption is met.

    Attributes:
        scale: Lambda, by least squares of the centred rows on the centred class means.
        radius: M, root mean square distance of the class means from their mean.
        num_classes: k, classes with examples.
        within: NC1: root mean square distance of features to their class mean, in radii.
        equinorm: NC2: standard deviation of the distances of the class means, in radii.
        equiangularity: NC2: root mean square of ``cos + 1 / (k - 1)`` over pairs of means.
        self_duality: NC3: what is left of the centred rows after ``scale * means``, relative to
            the rows.
        lemma: Lemma A.1: standard deviation over classes of
            ``scale * (mu_j - mu_G) mu_G + b_j``, in units of the logit gap.
        offset: Length of the global mean in radii. NC1 to NC4 allow any; the bound does not.
    """

    scale: float
    radius: float
    num_classes: int
    within: float
    equinorm: float
    equiangularity: float
    self_duality: float
    lemma: float
    offset: float

    @classmethod
    def of(cls, numbers: Sequence[float], num_classes: int) -> CollapseAssumptions:
        """From scale, radius, and the residuals in the order of the attributes."""
        scale, radius, *residuals = numbers
        return cls(scale, radius, num_classes, *residuals)

    @property
    def residual(self) -> float:
        """The largest residual of NC1 to NC3 and Lemma A.1 (NC4 follows from these).

        NaN where one is undefined: all rows zero, or class means that coincide.
        """
        parts = (self.within, self.equinorm, self.equiangularity, self.self_duality, self.lemma)
        return math.nan if any(map(math.isnan, parts)) else max(parts)

    @property
    def bound(self) -> float:
        """Proposition 5.3's bound at this scale and radius; it holds where the residual is 0.

        NaN where the class means coincide, as in a network that has died: there is no scale.
        """
        if math.isnan(self.scale) or math.isnan(self.radius):
            return math.nan
        return float(collapse_flatness_bound(max(self.scale, 0.0), self.radius, self.num_classes))


def collapse_assumptions(
    moments: ClassMoments, weight: Tensor, bias: Tensor | None = None
) -> CollapseAssumptions:
    """Check the assumptions of Proposition 5.3 on a trained head.

    Args:
        moments: Class moments of the features.
        weight: Rows of the head, ``[classes, width]``; their mean is removed.
        bias: Offsets of the head, ``[classes]``; zero if None.

    Returns:
        Scale, radius and the residual of each assumption, as plain numbers.

    Raises:
        ValueError: If weight or bias do not fit the moments, or fewer than two classes have
            examples.

    Cost: O(classes^2 * width). Source: Han et al., NeurIPS 2025, Proposition 5.3 and Lemma A.1.

    Example:
        >>> corners, labels = torch.eye(3), torch.arange(3)
        >>> moments = ClassMoments.from_batch(corners, labels, num_classes=3)
        >>> round(collapse_assumptions(moments, weight=2 * corners).scale, 4)
        2.0
    """
    check_head_of_means(moments.mean, weight, bias)
    present, index = moments.of_present_classes()
    scale, radius, *residuals = assumptions_of(present, index, weight, bias).tolist()
    return CollapseAssumptions(scale, radius, len(index), *residuals)


def assumptions_of(
    present: ClassMoments, index: Tensor, weight: Tensor, bias: Tensor | None
) -> Tensor:
    """The numbers of `collapse_assumptions`, unchecked, of the moments of the classes ``index``."""
    k = len(index)
    centre = present.mean.mean(dim=0)
    means = present.mean - centre
    rows = weight.detach().double()[index]
    rows = rows - rows.mean(dim=0)
    norms = torch.linalg.vector_norm(means, dim=-1)
    radius = norms.square().mean().sqrt()
    scale = (rows * means).sum() / means.square().sum()
    cosines = means @ means.mT / (norms[:, None] * norms[None, :])
    off = ~torch.eye(k, dtype=torch.bool, device=cosines.device)
    offsets = scale * means @ centre
    if bias is not None:
        offsets = offsets + bias.detach().double()[index]
    gap = scale.abs() * radius.square() * k / (k - 1)
    return torch.stack(
        [
            scale,
            radius,
            (present.within.sum() / present.count.sum()).sqrt() / radius,
            norms.std(correction=0) / radius,
            (cosines[off] + 1 / (k - 1)).square().mean().sqrt(),
            torch.linalg.matrix_norm(rows - scale * means) / torch.linalg.matrix_norm(rows),
            offsets.std(correction=0) / gap,
            torch.linalg.vector_norm(centre) / radius,
        ]
    )


def _bound(scale: Tensor, radius: Tensor, num_classes: int) -> Tensor:
    """`collapse_flatness_bound`, unchecked."""
    decay = torch.exp(-_gap(scale, radius, num_classes))
    front = scale.square() * radius.pow(4) * num_classes**3
    return front * decay / (1 + (num_classes - 1) * decay).square()


def _gap(scale: Tensor, radius: Tensor, num_classes: int) -> Tensor:
    return scale * radius.square() * num_classes / (num_classes - 1)


def _not_negative(name: str, value: Tensor | float) -> Tensor:
    tensor = torch.as_tensor(value, dtype=torch.float64)
    if not bool((tensor.isfinite() & (tensor >= 0)).all()):
        raise ValueError(f"{name} must be finite and not negative, got {value!r}.")
    return tensor


def _assumptions(batch: Batch) -> Tensor:
    return assumptions_of(*batch.present, batch.weight, batch.bias)


def _bound_of_head(batch: Batch) -> Tensor:
    scale, radius = batch.shared(_assumptions)[:2]
    return _bound(scale.clamp(min=0), radius, len(batch.present[1]))


# All of them are computed together.
_of_proposition = partial(
    Measure,
    range="≥ 0",
    cost="O(n d + C² d)",
    source="Han et al., NeurIPS 2025, Proposition 5.3",
    needs=("classes",),
)
RECORDS = (
    _of_proposition(
        name="collapse_scale",
        symbol="λ",
        range="any",
        formula="λ of the least squares fit W ≈ λ M, both centred",
        evaluate=lambda batch: batch.shared(_assumptions)[0],
    ),
    _of_proposition(
        name="collapse_radius",
        symbol="M",
        formula="√ mean |m_c|², m_c = μ_c − mean μ",
        evaluate=lambda batch: batch.shared(_assumptions)[1],
    ),
    _of_proposition(
        name="collapse_offset",
        formula="|mean μ| / M",
        note="The proposition holds up to √(C − 1).",
        evaluate=lambda batch: batch.shared(_assumptions)[-1],
    ),
    _of_proposition(
        name="collapse_residual",
        direction="low is collapsed",
        formula="the largest relative residual of NC1 to NC3 and Lemma A.1",
        note="Where it is 0, the bound of Proposition 5.3 holds.",
        evaluate=lambda batch: batch.shared(_assumptions)[2:-1].amax(),  # NaN if one is undefined
    ),
    _of_proposition(
        name="collapse_flatness_bound",
        title="bound on κ of Proposition 5.3",
        unit="nats",
        direction="low is flat",
        formula="λ² C³ M⁴ e⁻ˣ / (1 + (C − 1) e⁻ˣ)², x = λ M² C / (C − 1)",
        note="Of an exactly collapsed head with this λ and M.",
        evaluate=_bound_of_head,
    ),
)
