"""Neural collapse against loops over pairs, numpy, exact simplices and drawn distributions."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis.strategies import floats, integers
from torch import Tensor

from grokscope.measures import class_distances
from grokscope.measures.class_distances import ncc
from grokscope.measures.collapse import nc1_pinv, nc4_agreement, neural_collapse, simplex_angle
from grokscope.measures.moments import ClassMoments

moments_of = ClassMoments.from_batch


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotation(width: int, seed: int = 3) -> Tensor:
    return torch.linalg.qr(normal(width, width, seed=seed)).Q


def simplex(classes: int, width: int, seed: int = 0) -> Tensor:
    """Corners of a regular simplex about 0 at distance 1, ``[classes, width]``, turned about."""
    corners = torch.eye(classes, dtype=torch.float64) - 1 / classes
    return (corners / corners.norm(dim=1)[:, None]) @ rotation(width, seed)[:classes]


def data(examples=30, classes=4, width=5, seed=0, spread=1.0, missing=()) -> tuple[Tensor, Tensor]:
    """Classes around means of their own, uneven in number, on a common offset."""
    labels = torch.arange(examples) ** 2 % 7 % classes
    for c in missing:
        labels[labels == c] = (c + 1) % classes
    means = normal(classes, width, seed=seed + 100) + 2
    return means[labels] + spread * normal(examples, width, seed=seed), labels


def ncc_by_definition(features, labels, reduction="mean") -> float:
    """Loops over ordered pairs of the classes that have examples; V_c a mean, or a sum."""
    groups = {}
    for x, label in zip(features.tolist(), labels.tolist(), strict=True):
        groups.setdefault(label, []).append(np.array(x))
    means = {c: sum(xs) / len(xs) for c, xs in groups.items()}
    spread = {c: sum(float((x - means[c]) @ (x - means[c])) for x in xs)
              for c, xs in groups.items()}  # fmt: skip
    if reduction == "mean":
        spread = {c: v / len(groups[c]) for c, v in spread.items()}
    terms = [
        (spread[a] + spread[b]) / (2 * float((means[a] - means[b]) @ (means[a] - means[b])))
        for a, b in itertools.permutations(groups, 2)
    ]
    return sum(terms) / len(terms) if reduction == "mean" else sum(terms)


DATA = [
    pytest.param(data(), 4, id="four classes"),
    pytest.param(data(classes=2), 2, id="two classes"),
    pytest.param(data(classes=6, missing=(0, 4)), 9, id="missing classes"),
    pytest.param(data(examples=40, classes=7, width=2), 7, id="more classes than width"),
    pytest.param((normal(4, 3), torch.tensor([0, 1, 1, 3])), 4, id="single examples"),
]

# NCC ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("batch", "classes"), DATA)
def test_ncc_is_the_mean_over_ordered_pairs_and_definition_3_1_the_sum(batch, classes):
    moments = moments_of(*batch, classes)
    for reduction in ("mean", "sum"):
        expected = ncc_by_definition(*batch, reduction)
        assert float(ncc(moments, reduction)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize(("batch", "classes"), DATA[:4])
def test_the_matrix_of_pairs_holds_each_pair_of_classes_alone(batch, classes, unbiased):
    features, labels = batch
    pairs = ncc(moments_of(features, labels, classes), "none", unbiased=unbiased)
    assert pairs.shape == (classes, classes)
    for a, b in itertools.product(range(classes), repeat=2):
        if a == b or not {a, b} <= set(labels.tolist()):
            assert pairs[a, b] == 0
        else:
            both = (labels == a) | (labels == b)
            alone = moments_of(features[both], (labels[both] == a).long(), 2)
            torch.testing.assert_close(pairs[a, b], ncc(alone, unbiased=unbiased))


def test_the_unbiased_value_is_its_formula_with_a_floor():
    features, labels = data(examples=12, classes=3, spread=0.5)
    n, v, terms = {}, {}, []
    for c in range(3):
        own = features[labels == c]
        n[c], v[c] = len(own), float(own.var(dim=0, correction=1).sum())
    for a, b in itertools.permutations(range(3), 2):
        gap = float((features[labels == a].mean(0) - features[labels == b].mean(0)).square().sum())
        gap = max(gap - v[a] / n[a] - v[b] / n[b], 0.05 * gap)
        terms.append((v[a] + v[b]) / (2 * gap))
    value = float(ncc(moments_of(features, labels, 3), unbiased=True))
    assert value == pytest.approx(sum(terms) / 6, rel=1e-12)
    # Means closer than noise: the corrected distance would be negative, a twentieth is left.
    noise, two = normal(4, 50).repeat_interleave(2, dim=0), torch.arange(8) % 2
    noise += 0.01 * two[:, None]
    plain = ncc_by_definition(noise, two) * 4 / 3  # n / (n - 1)
    assert float(ncc(moments_of(noise, two, 2), unbiased=True)) == pytest.approx(20 * plain)


@pytest.mark.parametrize(
    ("classes", "truth", "plain", "left"), [(10, 0.53, 0.36, 0.03), (100, 0.50, 0.05, 0.09)]
)
def test_unbiased_ncc_is_right_on_small_batches_where_the_plain_one_is_far_too_low(
    classes, truth, plain, left
):
    width, examples, batches = 64, 64, 300
    means = normal(classes, width, seed=1)
    gaps = torch.pdist(means).square()
    means = means * ((width / gaps).mean() / truth).sqrt()
    generator = torch.Generator().manual_seed(2)
    values = []
    for seed in range(batches):
        labels = torch.randint(0, classes, (examples,), generator=generator)
        features = means[labels] + normal(examples, width, seed=seed)
        moments = moments_of(features, labels, classes)
        values.append((float(ncc(moments)), float(ncc(moments, unbiased=True))))
    average = np.mean(values, axis=0)
    assert average[0] == pytest.approx(plain, abs=0.01)
    assert average[1] == pytest.approx(truth, rel=left)  # a ratio of unbiased parts is not quite


@settings(max_examples=30, deadline=None)
@given(scale=floats(1e-3, 1e3), shift=floats(-100, 100), seed=integers(0, 1000))
def test_turning_shifting_or_scaling_the_features_leaves_ncc_unchanged(scale, shift, seed):
    features, labels = data(classes=6, missing=(2,), seed=seed)
    moved = scale * (features @ rotation(5, seed) + shift)
    for reduction, unbiased in (("mean", False), ("mean", True), ("sum", False), ("none", False)):
        before = ncc(moments_of(features, labels, 6), reduction, unbiased)
        after = ncc(moments_of(moved, labels, 6), reduction, unbiased)
        torch.testing.assert_close(after, before, rtol=1e-8, atol=0)


def test_collapsed_classes_have_no_ncc_and_coinciding_means_an_infinite_one():
    labels = torch.arange(12) % 4
    exact = moments_of(simplex(4, 6)[labels] + 3, labels, 5)
    for reduction, unbiased in (("mean", False), ("sum", False), ("mean", True)):
        assert float(ncc(exact, reduction, unbiased)) == pytest.approx(0, abs=1e-28)
    signs = torch.tensor([1.0, 1.0, -1.0, -1.0])[:, None]
    for size, unbiased in itertools.product((1.0, 0.0), (False, True)):  # 0: a dead network
        coinciding = moments_of(size * signs, torch.tensor([0, 1, 0, 1]), 3)
        assert float(ncc(coinciding, unbiased=unbiased)) == math.inf


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize(("batch", "classes"), DATA[:4])
def test_many_classes_by_matrix_products_equal_few_by_differences(
    monkeypatch, batch, classes, unbiased
):
    def value_and_gradient() -> tuple[Tensor, Tensor]:
        features = batch[0].clone().requires_grad_()
        value = ncc(moments_of(features, batch[1], classes), "none", unbiased)
        return value, torch.autograd.grad(value.square().sum(), features)[0]

    few = value_and_gradient()
    monkeypatch.setattr(class_distances, "PAIRWISE_CLASSES", 1)
    for got, expected in zip(value_and_gradient(), few, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


# As a penalty ---------------------------------------------------------------------------------


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize(("batch", "classes"), DATA[:4])
def test_the_derivatives_of_ncc_are_exact(batch, classes, unbiased):
    features, labels = batch[0][:12].clone().requires_grad_(), batch[1][:12]

    def penalty(features: Tensor) -> Tensor:
        return ncc(moments_of(features, labels, classes), unbiased=unbiased)

    assert torch.autograd.gradcheck(penalty, (features,))
    assert torch.autograd.gradgradcheck(penalty, (features,))


@pytest.mark.parametrize("kind", ["noise", "collapsed", "dead"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_as_a_penalty_it_has_finite_gradients_whatever_classes_a_batch_lacks(dtype, kind):
    labels = torch.tensor([7, 2, 2, 7, 7, 4, 9, 9])
    exact = simplex(10, 16)[labels]
    features = {"noise": normal(8, 16), "collapsed": exact, "dead": 0 * exact}[kind]
    for reduction, unbiased in (("mean", False), ("mean", True), ("sum", False)):
        leaf = features.to(dtype).requires_grad_()
        value = ncc(moments_of(leaf, labels, 100), reduction, unbiased)
        (gradient,) = torch.autograd.grad(value, leaf)
        assert gradient.dtype == dtype
        assert gradient.isfinite().all()
        assert bool(gradient.abs().max() > 1e-6) == (kind == "noise")


def test_many_networks_at_once_have_the_penalties_of_each_alone():
    features, labels = normal(3, 12, 4), torch.arange(36).reshape(3, 12) ** 2 % 13 % 6

    def penalty(features: Tensor, labels: Tensor) -> Tensor:
        return ncc(ClassMoments.from_batch(features, labels, 8))

    together = torch.func.vmap(torch.func.grad(penalty))(features, labels)
    for one, label, gradient in zip(features, labels, together, strict=True):
        leaf = one.clone().requires_grad_()
        torch.testing.assert_close(gradient, torch.autograd.grad(penalty(leaf, label), leaf)[0])


# NC1 to NC4 -----------------------------------------------------------------------------------


def collapse_by_definition(features, labels, weight, bias) -> dict[str, float]:
    """Loops and numpy; the pseudo-inverse is numpy's, the cosines are taken one by one."""
    x, y = features.numpy(), labels.numpy()
    classes = sorted(set(y.tolist()))
    means = np.array([x[y == c].mean(axis=0) for c in classes])
    centred = means - means.mean(axis=0)
    within = sum(np.outer(v - means[classes.index(c)], v - means[classes.index(c)])
                 for v, c in zip(x, y.tolist(), strict=True)) / len(x)  # fmt: skip
    between = sum(np.outer(m, m) for m in centred) / len(classes)
    pairs = list(itertools.permutations(range(len(classes)), 2))
    norms = [math.sqrt(m @ m) for m in centred]
    cosines = [centred[a] @ centred[b] / norms[a] / norms[b] for a, b in pairs]
    angles = np.degrees(np.arccos(np.clip(cosines, -1, 1)))
    gram = np.array([[a @ b for b in centred] for a in centred])
    etf = np.eye(len(classes)) - 1 / len(classes)
    rows = weight.numpy()[classes] - weight.numpy()[classes].mean(axis=0)
    wrong = [np.argmax(weight.numpy() @ m + bias.numpy()) != c
             for m, c in zip(means, classes, strict=True)]  # fmt: skip
    norm = np.linalg.norm
    return {
        "nc1_pinv": np.trace(within @ np.linalg.pinv(between, rcond=1e-9)) / len(classes),
        "nc1_quotient": np.trace(within) / np.trace(between),
        "nc2_equinorm": np.std(norms) / np.mean(norms),
        "nc2_equiangularity": np.std(cosines),
        "nc2_etf_distance": norm(gram / norm(gram) - etf / norm(etf)),
        "nc3_self_duality": norm(rows / norm(rows) - centred / norm(centred)),
        "nc4_means": np.mean(wrong),
        "mean_class_angle": np.mean(angles),
        "angle_deviation": np.mean(np.abs(angles - np.degrees(np.arccos(-1 / (len(classes) - 1))))),
    }


def assert_alike(values, expected):
    """Angles near 180 degrees, and they alone, are known to half the digits of a cosine."""
    assert values.keys() == expected.keys()
    for name, value in values.items():
        error = 3e-6 if "angle" in name else 1e-14
        assert float(value) == pytest.approx(float(expected[name]), rel=1e-9, abs=error), name


def head_for(features, classes, seed=50) -> tuple[Tensor, Tensor]:
    return normal(classes, features.shape[1], seed=seed), normal(classes, seed=seed + 1)


@pytest.mark.parametrize(("batch", "classes"), DATA)
def test_neural_collapse_is_what_loops_and_numpy_say(batch, classes):
    weight, bias = head_for(batch[0], classes)
    values = neural_collapse(moments_of(*batch, classes, scatter=True), weight, bias)
    expected = collapse_by_definition(*batch, weight, bias)
    assert_alike(values, expected)
    without = neural_collapse(moments_of(*batch, classes), weight, bias)
    assert set(values) - set(without) == {"nc1_pinv"}


@pytest.mark.parametrize(("classes", "angle"), [(2, 180), (3, 120), (4, 109.4712206), (10**9, 90)])
def test_the_angle_of_the_simplex_is_that_of_the_segment_the_triangle_and_the_tetrahedron(
    classes, angle
):
    assert simplex_angle(classes) == pytest.approx(angle, abs=1e-6)


@pytest.mark.parametrize(("classes", "seen"), [(2, 2), (3, 3), (10, 10), (10, 6)])
def test_a_collapsed_head_is_at_distance_zero_and_at_the_angle_of_the_simplex(classes, seen):
    labels = torch.arange(3 * seen) % seen
    means = simplex(seen, 12)
    features = 5 * means[labels] + normal(12)
    weight = torch.cat([0.3 * means, normal(classes - seen, 12)]) + 7
    bias = torch.cat([-0.3 * means @ normal(12), normal(classes - seen) - 1e3])
    values = neural_collapse(moments_of(features, labels, classes, scatter=True), weight, bias)
    angle = math.degrees(math.acos(-1 / (seen - 1)))
    assert_alike(values, dict.fromkeys(values, 0.0) | {"mean_class_angle": angle})


@pytest.mark.parametrize("offset", [0.0, 1.0, 1e2, 1e4])
@pytest.mark.parametrize(("batch", "classes"), DATA)
def test_nc1_needs_no_scatter_matrix_and_does_not_see_a_common_offset(batch, classes, offset):
    expected = collapse_by_definition(*batch, *head_for(batch[0], classes))["nc1_pinv"]
    features = batch[0] + offset
    moments = moments_of(features, batch[1], classes, scatter=True)
    from_scatter = neural_collapse(moments, normal(classes, features.shape[1]))["nc1_pinv"]
    from_features = nc1_pinv(features, batch[1], moments.without_scatter())
    assert float(from_scatter) == pytest.approx(expected, rel=1e-9 * max(offset, 1))
    assert float(from_features) == pytest.approx(expected, rel=1e-9 * max(offset, 1))


def test_means_that_all_coincide_have_no_nc1():
    features, labels = torch.full((6, 3), 0.1), torch.arange(6) % 3
    moments = moments_of(features, labels, 3, scatter=True)
    assert nc1_pinv(features, labels, moments).isnan()
    assert neural_collapse(moments, torch.eye(3))["nc1_pinv"].isnan()


@pytest.mark.parametrize(("batch", "classes"), DATA)
def test_turning_and_shifting_changes_no_distance_from_collapse(batch, classes):
    features, labels = batch
    weight, bias = head_for(features, classes)
    before = neural_collapse(moments_of(features, labels, classes, True), weight, bias)
    turn = rotation(features.shape[1])
    turned = moments_of(features @ turn, labels, classes, True)
    shifted = moments_of(features + 3, labels, classes, True)
    common = weight + normal(features.shape[1], seed=9)  # one vector added to all rows
    for after in (
        neural_collapse(turned, weight @ turn, bias),
        neural_collapse(shifted, weight, bias - 3 * weight.sum(dim=1)),
        neural_collapse(moments_of(features, labels, classes, True), common, bias),
    ):
        assert_alike(after, before)


def test_every_distance_from_collapse_has_exact_derivatives():
    labels = torch.arange(9) % 3
    weight = normal(4, 5, seed=1).requires_grad_()

    def values(features: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        all_of_them = neural_collapse(moments_of(features, labels, 4, True), weight)
        all_of_them["features alone"] = nc1_pinv(features, labels, moments_of(features, labels, 4))
        return tuple(value for name, value in all_of_them.items() if name != "nc4_means")

    assert torch.autograd.gradcheck(values, (normal(9, 5).requires_grad_(), weight))
    for exact in (simplex(3, 5)[labels], simplex(3, 5)[labels][:, :1] * torch.ones(5)):
        leaf = exact.clone().requires_grad_()
        gradients = torch.autograd.grad(sum(values(leaf, weight)), leaf)[0]
        assert gradients.isfinite().all()


# NC4 on examples ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("batch", "classes"), DATA)
def test_nc4_is_whether_the_head_picks_the_nearest_mean(batch, classes, dtype):
    features, labels = batch[0].to(dtype), batch[1]
    weight, bias = head_for(features, classes)
    held_out = (3 * normal(40, features.shape[1], seed=8) + 2).to(dtype)
    logits = held_out.double() @ weight.mT + bias
    means = {c: features[labels == c].double().mean(dim=0) for c in set(labels.tolist())}
    nearest = [min(means, key=lambda c: float((x - means[c]).norm())) for x in held_out.double()]
    expected = [float(c == z.argmax()) for c, z in zip(nearest, logits, strict=True)]
    moments = moments_of(features, labels, classes)
    assert nc4_agreement(held_out, logits, moments, "none").tolist() == expected
    assert float(nc4_agreement(held_out, logits, moments)) == pytest.approx(np.mean(expected))
    assert float(nc4_agreement(held_out, logits, moments, "sum")) == sum(expected)
    assert 0 < sum(expected) < 40


# Errors ---------------------------------------------------------------------------------------

FEATURES, LABELS = data()
MOMENTS, WEIGHT, BIAS = moments_of(FEATURES, LABELS, 4), normal(4, 5), normal(4)
LOGITS = FEATURES @ WEIGHT.mT
LONELY = moments_of(FEATURES[:3], torch.tensor([0, 0, 1]), 4)
ALONE = moments_of(FEATURES[:3], torch.tensor([2, 2, 2]), 4)


@pytest.mark.parametrize(
    ("measure", "arguments", "message"),
    [
        (ncc, (MOMENTS, "median"), "reduction must be one of 'mean', 'sum', 'none', got 'median'"),
        (ncc, (MOMENTS, "sum", True), 'no unbiased form; use reduction="mean"'),
        (ncc, (ALONE,), "at least two classes with 1 or more .* there are 1; pass more examples"),
        (ncc, (LONELY, "mean", True), "two classes with 2 or more .* there are 1; pass more"),
        (neural_collapse, (MOMENTS, WEIGHT[:3]), r"weight .* \(3, 5\) .* \(4, 5\).*same head"),
        (neural_collapse, (MOMENTS, WEIGHT / 0), "weight holds 0 NaN and 20 infinite"),
        (neural_collapse, (MOMENTS, WEIGHT, BIAS[:2]), "bias has 2 entries but weight has 4 rows"),
        (neural_collapse, (MOMENTS, WEIGHT, WEIGHT), r"bias must have shape \[classes\]"),
        (neural_collapse, (ALONE, WEIGHT), "only 1 class.* have examples.*pass more"),
        (nc1_pinv, (FEATURES[:, :2], LABELS, MOMENTS), "has width 5 but features has width 2"),
        (nc1_pinv, (FEATURES, LABELS[:4], MOMENTS), "labels has 4 entries for 30 examples"),
        (nc1_pinv, (FEATURES, LABELS + 2, MOMENTS), r"labels must lie in \[0, 3\]"),
        (nc1_pinv, (FEATURES * math.nan, LABELS, MOMENTS), "features holds 150 NaN"),
        (nc4_agreement, (FEATURES, LOGITS[:, :3], MOMENTS), r"logits has shape \(30, 3\) .* 4 cl"),
        (nc4_agreement, (FEATURES, LOGITS[:9], MOMENTS), r"shape \(9, 4\).*same forward pass"),
        (nc4_agreement, (FEATURES[:, :2], LOGITS, MOMENTS), "5 but features has width 2"),
        (nc4_agreement, (FEATURES, LOGITS, ALONE), "only 1 class.* have examples"),
        (nc4_agreement, (FEATURES, LOGITS, MOMENTS, "max"), "reduction must be one of"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(measure, arguments, message):
    with pytest.raises(ValueError, match=message):
        measure(*arguments)
