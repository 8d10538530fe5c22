"""Proposition 5.3 against Hessians of collapsed heads that are built row by row."""

from __future__ import annotations

import itertools
import math
from dataclasses import asdict, dataclass, replace
from decimal import Decimal, localcontext

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis.strategies import floats, integers
from torch import Tensor
from torch.nn.functional import cross_entropy

from grokscope.measures.flatness import relative_flatness
from grokscope.measures.moments import ClassMoments
from grokscope.measures.theory import (
    CollapseAssumptions,
    collapse_assumptions,
    collapse_flatness_bound,
    collapsed_relative_flatness,
)

RESIDUALS = ("within", "equinorm", "equiangularity", "self_duality", "lemma")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@dataclass(frozen=True)
class Trained:
    """A head with the features it sees."""

    features: Tensor
    labels: Tensor
    weight: Tensor
    bias: Tensor

    @property
    def logits(self) -> Tensor:
        return self.features @ self.weight.mT + self.bias

    @property
    def assumptions(self) -> CollapseAssumptions:
        moments = ClassMoments.from_batch(self.features, self.labels, len(self.weight))
        return collapse_assumptions(moments, self.weight, self.bias)


def collapsed(
    classes: int = 4,
    scale: float = 1.0,
    radius: float = 1.0,
    offset: float = 0.0,
    aside: float = 1.0,
    seed: int = 0,
) -> Trained:
    """NC1 to NC4 and Lemma A.1 hold exactly; two examples a class.

    The global mean lies at ``offset`` radii: a share ``aside`` of it orthogonal to the class
    means, the rest among them.
    """
    axes = torch.linalg.qr(normal(classes + 2, classes + 2, seed=seed)).Q
    corners = torch.eye(classes, dtype=torch.float64) - 1 / classes
    means = radius * (corners / corners.norm(dim=1)[:, None]) @ axes[:classes]
    among = means[0] / radius
    centre = offset * radius * (aside * axes[-1] + math.sqrt(1 - aside**2) * among)
    labels = torch.arange(2 * classes) % classes
    bias = 0.7 - scale * means @ centre  # Lemma A.1: the same for all classes
    return Trained((means + centre)[labels], labels, scale * means, bias)


def kappa_by_definition(head: Trained) -> float:
    """Sum over pairs of rows of their inner product times the trace of their Hessian block."""

    def loss(weight: Tensor) -> Tensor:
        return cross_entropy(head.features @ weight.mT + head.bias, head.labels)

    hessian = torch.autograd.functional.hessian(loss, head.weight, vectorize=True)
    return sum(
        float(head.weight[s] @ head.weight[t] * hessian[s, :, t, :].trace())
        for s, t in itertools.product(range(len(head.weight)), repeat=2)
    )


# Both sides -----------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 3, 5, 8])
@pytest.mark.parametrize(
    ("offset", "aside"), [(0.0, 1.0), (0.7, 1.0), (3.0, 1.0), (3.0, 0.0), (1.5, 0.6)]
)
def test_kappa_of_a_collapsed_head_is_that_of_its_hessian_wherever_the_global_mean_lies(
    classes, offset, aside
):
    for scale, radius in ((0.3, 1.0), (1.0, 2.0), (6.0, 0.8)):
        expected = kappa_by_definition(collapsed(classes, scale, radius, offset, aside))
        kappa = collapsed_relative_flatness(scale, radius, classes, offset)
        assert float(kappa) == pytest.approx(expected, rel=1e-9)


@settings(max_examples=40, deadline=None)
@given(
    classes=integers(2, 6),
    gap=floats(1e-6, 12.0),
    radius=floats(0.1, 5.0),
    share=floats(0.0, 1.0),
    aside=floats(0.0, 1.0),
)
def test_the_bound_holds_while_the_global_mean_is_within_root_k_minus_one_radii(
    classes, gap, radius, share, aside
):
    scale = gap * (classes - 1) / classes / radius**2
    offset = share * math.sqrt(classes - 1)
    kappa = kappa_by_definition(collapsed(classes, scale, radius, offset, aside))
    bound = float(collapse_flatness_bound(scale, radius, classes))
    assert kappa <= bound * (1 + 1e-9)
    assert float(collapsed_relative_flatness(scale, radius, classes, offset)) == pytest.approx(
        kappa, rel=1e-8, abs=0
    )


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_far_off_the_centre_a_collapsed_head_breaks_the_bound(classes):
    offset = 1.01 * math.sqrt(classes - 1)
    head = collapsed(classes, scale=0.001, offset=offset)
    assert head.assumptions.residual < 1e-9
    assert kappa_by_definition(head) > float(collapse_flatness_bound(0.001, 1.0, classes))
    # Further off it breaks at any scale: the bound is worth k^2 / 2 at most.
    head = collapsed(classes, scale=5.0, offset=classes)
    assert kappa_by_definition(head) > float(collapse_flatness_bound(5.0, 1.0, classes))


@pytest.mark.parametrize("classes", [2, 3, 7])
@pytest.mark.parametrize("scale", [0.01, 1.0, 4.0])
def test_the_bound_is_k_to_half_k_squared_times_what_a_centred_head_has(classes, scale):
    ratio = float(collapse_flatness_bound(scale, 1.3, classes)) / kappa_by_definition(
        collapsed(classes, scale, 1.3)
    )
    decay = math.exp(-scale * 1.3**2 * classes / (classes - 1))
    assert ratio == pytest.approx(classes**2 / (2 + (classes - 2) * decay), rel=1e-9)
    assert classes * (1 - 1e-9) <= ratio <= classes**2 / 2 * (1 + 1e-9)


def test_with_the_scale_of_the_head_kappa_decays_exponentially():
    # Past the peak one unit of lambda divides kappa / lambda^2 by exp(M^2 k / (k - 1)).
    classes, radius = 5, 1.5
    rate = radius**2 * classes / (classes - 1)
    measured, predicted, bounds = [], [], []
    for scale in (20.0, 21.0):
        head = collapsed(classes, scale, radius, offset=1.0)
        measured.append(float(relative_flatness(head.features, head.logits, head.weight)))
        predicted.append(float(collapsed_relative_flatness(scale, radius, classes, offset=1.0)))
        bounds.append(float(collapse_flatness_bound(scale, radius, classes)))
    assert predicted == pytest.approx(measured, rel=1e-9)
    for values in (measured, predicted, bounds):
        assert math.log(values[0] / values[1]) == pytest.approx(
            rate - 2 * math.log(21 / 20), rel=1e-9
        )


@pytest.mark.parametrize("scale", [0.0, 1e-8, 1.0, 60.0, 400.0])
@pytest.mark.parametrize("classes", [2, 3, 1000])
def test_both_sides_keep_their_digits_where_the_softmax_is_saturated(classes, scale):
    radius, offset = 1.25, 0.5
    with localcontext() as context:
        context.prec = 600
        k, size, m2, o2 = (Decimal(x) for x in (classes, scale, radius**2, offset**2))
        decay = (-size * m2 * k / (k - 1)).exp()
        own, other = (x / (1 + (k - 1) * decay) for x in (Decimal(1), decay))
        # Rows lie at squared distance 2 lambda^2 M^2 k / (k - 1), all pairs of them.
        variance = size**2 * m2 * k / (k - 1) * (1 - own**2 - (k - 1) * other**2)
        kappa = float(m2 * (1 + o2) * variance)
        bound = float(size**2 * k**3 * m2**2 * decay / (1 + (k - 1) * decay) ** 2)
    got = collapsed_relative_flatness(scale, radius, classes, offset)
    assert got.dtype == torch.float64
    # The exponent is rounded: its error, at most 1e-16 of it, is relative in the result.
    assert float(got) == pytest.approx(kappa, rel=1e-12, abs=0)
    assert float(collapse_flatness_bound(scale, radius, classes)) == pytest.approx(
        bound, rel=1e-12, abs=0
    )


def test_both_sides_broadcast_and_have_exact_derivatives():
    scale = torch.tensor([[0.1], [1.0], [7.0]], dtype=torch.float64, requires_grad=True)
    radius = torch.tensor([0.5, 2.0], dtype=torch.float64, requires_grad=True)

    def sides(scale: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
        return (
            collapse_flatness_bound(scale, radius, 6),
            collapsed_relative_flatness(scale, radius, 6, offset=0.3),
        )

    together = sides(scale, radius)
    for i, j in itertools.product(range(3), range(2)):
        alone = sides(float(scale[i, 0].detach()), float(radius[j].detach()))
        for many, one in zip(together, alone, strict=True):
            assert many.shape == (3, 2)
            torch.testing.assert_close(many[i, j].detach(), one)
    assert torch.autograd.gradcheck(sides, (scale, radius))


# Assumptions ----------------------------------------------------------------------------------


def assumptions_by_definition(head: Trained) -> dict[str, float]:
    """The attributes, one by one, in loops."""
    x, y = head.features.numpy(), head.labels.numpy()
    classes = sorted(set(y.tolist()))
    k = len(classes)
    means = {c: x[y == c].mean(axis=0) for c in classes}
    centre = sum(means.values()) / k
    spokes = {c: means[c] - centre for c in classes}
    rows = {c: head.weight[c].numpy() for c in classes}
    rows = {c: row - sum(rows.values()) / k for c, row in rows.items()}
    lengths = [math.sqrt(s @ s) for s in spokes.values()]
    radius = math.sqrt(sum(a * a for a in lengths) / k)
    stacked = [np.concatenate(list(vectors.values())) for vectors in (spokes, rows)]
    scale = float(np.linalg.lstsq(stacked[0][:, None], stacked[1], rcond=None)[0][0])
    apart = [
        spokes[a] @ spokes[b] / math.sqrt((spokes[a] @ spokes[a]) * (spokes[b] @ spokes[b]))
        + 1 / (k - 1)
        for a, b in itertools.permutations(classes, 2)
    ]
    left = sum(float(((rows[c] - scale * spokes[c]) ** 2).sum()) for c in classes)
    shared = [scale * spokes[c] @ centre + float(head.bias[c]) for c in classes]
    return {
        "scale": scale,
        "radius": radius,
        "num_classes": k,
        "within": math.sqrt(sum(((v - means[c]) ** 2).sum() for v, c in zip(x, y, strict=True))
                            / len(x)) / radius,
        "equinorm": float(np.std(lengths)) / radius,
        "equiangularity": math.sqrt(sum(a * a for a in apart) / len(apart)),
        "self_duality": math.sqrt(left / sum(float((row**2).sum()) for row in rows.values())),
        "lemma": float(np.std(shared)) / (abs(scale) * radius**2 * k / (k - 1)),
        "offset": math.sqrt(centre @ centre) / radius,
    }  # fmt: skip


@pytest.mark.parametrize(("classes", "seen"), [(2, 2), (5, 5), (9, 4)])
def test_of_any_head_the_assumptions_are_checked_as_they_are_defined(classes, seen):
    labels = torch.arange(20) ** 2 % 11 % seen + (classes - seen)
    features = normal(20, 6) + normal(classes, 6, seed=1)[labels] + 1
    head = Trained(features, labels, normal(classes, 6, seed=2) + 4, normal(classes, seed=3))
    got = asdict(head.assumptions)
    assert got == pytest.approx(assumptions_by_definition(head), rel=1e-10, abs=1e-12)
    assert all(type(value) in (int, float) for value in got.values())
    assert head.assumptions.residual == max(got[name] for name in RESIDUALS)


@pytest.mark.parametrize("aside", [0.0, 1.0])
@pytest.mark.parametrize("offset", [0.0, 2.0, 50.0])
@pytest.mark.parametrize("classes", [2, 4, 20])
def test_a_collapsed_head_meets_all_assumptions_and_shows_its_scale(classes, offset, aside):
    head = collapsed(classes, scale=2.5, radius=0.4, offset=offset, aside=aside)
    common = normal(head.weight.shape[1], seed=4)  # one vector added to all rows
    for same in (head, replace(head, weight=head.weight + common, bias=head.bias - 3)):
        found = same.assumptions
        assert found.residual < 1e-12 * max(1, offset)
        assert (found.scale, found.radius, found.num_classes) == pytest.approx((2.5, 0.4, classes))
        assert found.offset == pytest.approx(offset, abs=1e-12)
        assert found.bound == pytest.approx(
            float(collapse_flatness_bound(2.5, 0.4, classes)), rel=1e-12
        )


def with_noise(head: Trained) -> tuple[Trained, float]:
    # The two examples of each class move apart: its mean stays.
    away = normal(head.features.shape[1])
    signs = torch.ones(8).double().index_fill(0, torch.arange(4), -1)[:, None]
    return replace(head, features=head.features + signs * away), float(away.norm()) / 2.0


def with_a_square_of_means(head: Trained) -> tuple[Trained, float]:
    square = torch.zeros(4, 6, dtype=torch.float64)
    square[[0, 1, 2, 3], [0, 0, 1, 1]] = torch.tensor([2.0, -2.0, 2.0, -2.0]).double()
    # Two pairs of four are opposite (cosine -1), four are at right angles; a simplex has -1/3.
    expected = math.sqrt((2 * (2 / 3) ** 2 + 4 * (1 / 3) ** 2) / 6)
    return Trained(square[head.labels], head.labels, 1.5 * square, 0 * head.bias), expected


def with_turned_rows(head: Trained) -> tuple[Trained, float]:
    # Along the global mean, orthogonal to all class means, and without a common part.
    aside = head.features.mean(dim=0) / head.features.mean(dim=0).norm()
    signs = torch.tensor([1.0, -1.0, 1.0, -1.0]).double()
    length, added = float(head.weight.square().sum()), 4 * 0.5**2
    turned = replace(head, weight=head.weight + 0.5 * signs[:, None] * aside)
    return turned, math.sqrt(added / (length + added))


def with_another_bias(head: Trained) -> tuple[Trained, float]:
    change = torch.tensor([0.5, -0.5, 0.5, -0.5]).double()
    return replace(head, bias=head.bias + change), 0.5 / (1.5 * 2.0**2 * 4 / 3)


@pytest.mark.parametrize(
    ("name", "perturb"),
    [
        ("within", with_noise),
        ("equiangularity", with_a_square_of_means),
        ("self_duality", with_turned_rows),
        ("lemma", with_another_bias),
    ],
)
def test_each_violation_moves_its_own_residual_and_no_other(name, perturb):
    head, expected = perturb(collapsed(4, scale=1.5, radius=2.0, offset=1.0))
    found = head.assumptions
    assert getattr(found, name) == pytest.approx(expected, rel=1e-9)
    assert found.residual == getattr(found, name)
    for other in set(RESIDUALS) - {name}:
        assert getattr(found, other) == pytest.approx(0, abs=1e-12), other
    assert (found.scale, found.radius) == pytest.approx((1.5, 2.0))


def test_a_longer_class_mean_breaks_equinorm_and_a_shift_only_the_offset():
    head = collapsed(4, scale=1.5, radius=2.0)
    longer = replace(head, features=head.features * (1 + (head.labels == 2).double()[:, None]))
    assert longer.assumptions.equinorm > 0.2
    assert longer.assumptions.within < 1e-12
    across = torch.linalg.svd(head.weight).Vh[-1]  # orthogonal to all means
    shifted = replace(head, features=head.features + 6 * across).assumptions
    assert shifted.residual < 1e-12
    assert shifted.offset == pytest.approx(3.0)
    # Among the means it must be balanced by the biases, or Lemma A.1 fails.
    along = replace(head, features=head.features + head.weight[0]).assumptions
    assert along.offset == pytest.approx(1.5)
    assert along.lemma > 0.1


def test_the_residual_of_an_undefined_assumption_is_not_a_number():
    head = collapsed(4, offset=1.0)
    assert math.isnan(replace(head, weight=0 * head.weight).assumptions.residual)
    assert math.isnan(replace(head, features=torch.ones(8, 6)).assumptions.residual)


def test_rows_that_point_away_from_their_means_have_a_negative_scale_and_no_bound():
    head = collapsed(4, scale=1.5)
    opposed = replace(head, weight=-head.weight).assumptions
    assert opposed.scale == pytest.approx(-1.5)
    assert opposed.residual < 1e-12
    assert opposed.bound == 0
    bias = head.bias + torch.tensor([0.5, -0.5, 0.5, -0.5])
    broken = replace(head, weight=-head.weight, bias=bias).assumptions
    assert broken.lemma == pytest.approx(0.5 / (1.5 * 4 / 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_heads_of_any_precision_that_still_train_can_be_checked(dtype):
    exact = collapsed(4, scale=1.5, radius=2.0, offset=1.0)
    tensors = [t.to(dtype).requires_grad_() for t in (exact.features, exact.weight, exact.bias)]
    head = Trained(tensors[0], exact.labels, tensors[1], tensors[2])
    rounded = Trained(tensors[0].detach().double(), exact.labels, *(
        t.detach().double() for t in tensors[1:]))  # fmt: skip
    expected = assumptions_by_definition(rounded)
    assert asdict(head.assumptions) == pytest.approx(expected, rel=1e-9, abs=1e-12)


# Errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf, torch.tensor([1.0, -1e-9])])
@pytest.mark.parametrize("name", ["scale", "radius", "offset"])
def test_settings_that_no_head_can_have_are_refused_by_name(name, value):
    settings = {"scale": 1.0, "radius": 1.0, "num_classes": 3} | {name: value}
    for side in (collapse_flatness_bound, collapsed_relative_flatness):
        if name == "offset" and side is collapse_flatness_bound:
            continue
        with pytest.raises(ValueError, match=f"{name} must be finite and not negative, got"):
            side(**settings)
        with pytest.raises(ValueError, match="num_classes describes 1 class"):
            side(1.0, 1.0, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight": normal(4, 5)}, r"weight has .* \(4, 5\) but the moments have \(4, 6\)"),
        ({"weight": normal(4, 6) * math.nan}, "weight holds 24 NaN"),
        ({"bias": normal(3)}, "bias has 3 entries but weight has 4 rows.*same head"),
        ({"labels": torch.zeros(8, dtype=torch.long)}, "only 1 class.* have examples"),
    ],
)
def test_heads_that_do_not_fit_the_moments_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(collapsed(4), **changes).assumptions  # noqa: B018


def test_a_dead_network_has_no_collapse_scale_and_no_bound():
    features, labels = torch.ones(12, 4, dtype=torch.float64), torch.arange(12) % 3
    found = collapse_assumptions(ClassMoments.from_batch(features, labels, 3), torch.randn(3, 4))
    assert math.isnan(found.bound)
