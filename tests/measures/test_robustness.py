"""Robustness against quadrature, orthogonal matrices drawn by scipy, kappa, and decimals."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext

import numpy as np
import pytest
import torch
from cases import HEADS, Head, make_head
from hypothesis import given, settings
from hypothesis.strategies import floats, integers, sampled_from
from numpy.polynomial.hermite_e import hermegauss
from scipy.special import roots_jacobi
from scipy.stats import ortho_group
from torch import Tensor
from torch.nn.functional import cross_entropy

from grokscope.measures.flatness import relative_flatness
from grokscope.measures.gap import decompose_gap, representativeness, representativeness_kde
from grokscope.measures.robustness import (
    KDE_BANDWIDTH,
    feature_robustness,
    kernel_robustness,
    natural_delta,
)

BOTH = [feature_robustness, kernel_robustness]
DRAWS = 20_000


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def arguments(head: Head) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return head.features, head.logits, head.labels, head.weight


def many_draws(measure, head: Head, **settings) -> tuple[Tensor, Tensor]:
    """Mean over many clouds, and its standard error, for each example."""
    features, logits, labels = (
        t.repeat_interleave(DRAWS, dim=0) for t in (head.features, head.logits, head.labels)
    )
    draws = measure(
        features, logits, labels, head.weight,
        samples=1, generator=seeded(), reduction="none", **settings,
    ).reshape(len(head.features), DRAWS)  # fmt: skip
    return draws.mean(dim=1), draws.std(dim=1) / math.sqrt(DRAWS)


def assert_within_error(measured: tuple[Tensor, Tensor], truth: Tensor, slack: float = 0.0):
    """Within four and a half standard errors; the errors are small enough to tell things apart."""
    mean, error = measured
    assert (error <= 0.03 * truth).all()
    assert ((mean - truth).abs() <= 4.5 * error + slack * truth + 1e-15).all()


def expected_loss(head: Head, i: int, moves: np.ndarray, chances: np.ndarray) -> float:
    """Loss of example i, averaged over displacements of its features, ``[points, width]``."""
    logits = torch.as_tensor(moves) @ head.weight.mT + head.logits[i]
    losses = cross_entropy(logits, head.labels[i].expand(len(moves)), reduction="none")
    return float(losses @ torch.as_tensor(chances)) / float(chances.sum())


def sphere(head: Head, i: int, delta: float) -> float:
    """Exact mean loss over a sphere, for two classes, or in the plane for any number of them."""
    width = head.features.shape[1]
    radius = delta * float(head.features[i].norm())
    if width == 1:
        return expected_loss(head, i, radius * np.array([[1.0], [-1.0]]), np.ones(2))
    if width == 2:
        angle = np.linspace(0, 2 * np.pi, 400, endpoint=False)
        return expected_loss(
            head, i, radius * np.stack([np.cos(angle), np.sin(angle)], axis=1), np.ones(400)
        )
    # The loss sees the component along the difference of the rows: a Gegenbauer weight.
    t, chances = roots_jacobi(200, (width - 3) / 2, (width - 3) / 2)
    axis = (head.weight[1] - head.weight[0]).numpy()
    return expected_loss(head, i, radius * t[:, None] * axis / np.linalg.norm(axis), chances)


def gaussian(head: Head, i: int, bandwidth: float) -> float:
    """Exact mean loss over a Gaussian: it lives in the span of the rows' differences."""
    basis = torch.linalg.svd(head.weight[1:] - head.weight[0], full_matrices=False).Vh.numpy()
    nodes, chances = hermegauss(100 if len(basis) == 1 else 50)
    grid = np.stack(np.meshgrid(*[nodes] * len(basis)), axis=-1).reshape(-1, len(basis))
    weights = np.prod(np.meshgrid(*[chances] * len(basis)), axis=0).reshape(-1)
    return expected_loss(head, i, bandwidth * grid @ basis, weights)


def increases(head: Head, exact, setting: float) -> Tensor:
    before = cross_entropy(head.logits, head.labels, reduction="none")
    after = [exact(head, i, setting) for i in range(len(head.features))]
    return torch.tensor(after, dtype=torch.float64) - before


# Truth ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("delta", [0.1, 0.7, 3.0])
@pytest.mark.parametrize(
    ("classes", "width"), [(2, 1), (5, 1), (2, 2), (6, 2), (2, 3), (2, 4), (2, 40)]
)
def test_feature_robustness_is_the_mean_rise_of_the_loss_over_a_sphere(classes, width, delta):
    head = make_head(examples=4, classes=classes, width=width, seed=width)
    truth = increases(head, sphere, delta)
    measured = many_draws(feature_robustness, head, delta=delta)
    assert_within_error(measured, truth)
    if width == 1:  # a sphere of two points: nothing is left to chance
        torch.testing.assert_close(measured[0], truth, rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize("bandwidth", [0.2, 1.0, 4.0])
@pytest.mark.parametrize(("classes", "width"), [(2, 1), (2, 6), (3, 2), (3, 5)])
def test_kernel_robustness_is_the_mean_rise_of_the_loss_over_a_gaussian(classes, width, bandwidth):
    head = make_head(examples=4, classes=classes, width=width, seed=width)
    truth = increases(head, gaussian, bandwidth)
    assert_within_error(many_draws(kernel_robustness, head, bandwidth=bandwidth), truth)


@pytest.mark.parametrize("delta", [0.3, 2.0])
def test_random_orthogonal_matrices_raise_the_loss_as_much(delta):
    head = make_head(examples=5, classes=3, width=4)
    drawn = torch.as_tensor(ortho_group.rvs(4, size=DRAWS, random_state=1))
    losses = torch.zeros(DRAWS, 5, dtype=torch.float64)
    for matrices in (drawn, -drawn):  # as likely as each other; half of the noise cancels
        moved = head.features + delta * head.features @ matrices.mT  # one for all examples
        logits = (moved @ head.weight.mT + head.bias).flatten(0, 1)
        labels = head.labels.repeat(DRAWS)
        losses += cross_entropy(logits, labels, reduction="none").reshape(DRAWS, 5) / 2
    truth = losses.mean(dim=0) - cross_entropy(head.logits, head.labels, reduction="none")
    mean, error = many_draws(feature_robustness, head, delta=delta)
    assert_within_error((mean, (error.square() + losses.var(dim=0) / DRAWS).sqrt()), truth)


@pytest.mark.parametrize("head", [*HEADS[:5], *HEADS[6:]])
def test_for_small_clouds_robustness_is_delta_squared_kappa_over_twice_the_width(head):
    delta, width = 1e-3, head.features.shape[1]
    kappa = relative_flatness(head.features, head.logits, head.weight, reduction="none")
    measured = many_draws(feature_robustness, head, delta=delta)
    truth = delta**2 * kappa / (2 * width)
    seen = truth > 1e-12  # below, the loss has too few digits for so small a difference
    assert seen.any()
    # Of relative order delta^2: the next term of the expansion.
    assert_within_error((measured[0][seen], measured[1][seen]), truth[seen], slack=2e-3)


def test_for_narrow_kernels_robustness_is_half_the_trace_over_features():
    head = make_head(examples=4, classes=3, width=4)
    hessians = [
        torch.autograd.functional.hessian(
            lambda x, y=y: cross_entropy(head.weight @ x + head.bias, y), features
        )
        for features, y in zip(head.features, head.labels, strict=True)
    ]
    truth = 0.5 * 0.01**2 * torch.stack([hessian.trace() for hessian in hessians])
    assert_within_error(many_draws(kernel_robustness, head, bandwidth=0.01), truth, slack=2e-3)


@settings(max_examples=60, deadline=None)
@given(
    head=sampled_from([case.values[0] for case in HEADS]),
    setting=floats(1e-4, 30.0),
    samples=integers(1, 4),
    seed=integers(0, 10_000),
)
def test_moving_features_in_opposite_pairs_never_lowers_the_loss(head, setting, samples, seed):
    for measure in BOTH:
        rise = measure(*arguments(head), setting, samples, seeded(seed), "none")
        before = cross_entropy(head.logits, head.labels, reduction="none")
        assert (rise >= -1e-14 * (1 + before)).all()


# Invariance -----------------------------------------------------------------------------------


def test_a_vector_added_to_all_rows_changes_nothing_and_units_only_the_kernel():
    head = make_head()
    added = Head(head.features, head.weight + torch.arange(4.0), head.bias, head.labels)
    scaled = Head(head.features / 10, head.weight * 10, head.bias, head.labels)
    for measure in BOTH:
        before, after, units = (
            measure(*arguments(h), generator=seeded()) for h in (head, added, scaled)
        )
        torch.testing.assert_close(after, before, rtol=1e-10, atol=0)
        same = measure is feature_robustness
        assert (float(units / before) == pytest.approx(1.0, rel=1e-10)) == same


def test_features_of_length_zero_have_no_sphere_around_them():
    head = make_head()
    rise = feature_robustness(0 * head.features, *arguments(head)[1:], delta=2.0, reduction="none")
    torch.testing.assert_close(rise, torch.zeros_like(rise), rtol=0, atol=1e-15)


# The gap --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("measure", "exact", "share", "setting"),
    [(feature_robustness, sphere, representativeness, 0.8),
     (kernel_robustness, gaussian, representativeness_kde, 1.7)],
)  # fmt: skip
def test_the_gap_splits_at_the_loss_over_the_clouds(measure, exact, share, setting):
    head, held_out = make_head(examples=5, classes=2, width=3), 1.25
    train = np.mean([float(cross_entropy(z, y)) for z, y in zip(head.logits, head.labels,
                                                                strict=True)])  # fmt: skip
    clouds = np.mean([exact(head, i, setting) for i in range(5)])
    rise = measure(*arguments(head), setting, 4000, seeded())
    gap, robust, rest = decompose_gap(head.logits, head.labels, held_out, rise)
    assert float(gap) == pytest.approx(held_out - train, rel=1e-12)
    assert float(robust) == pytest.approx(clouds - train, rel=0.02)
    assert float(rest) == pytest.approx(held_out - clouds, abs=0.02 * (clouds - train))
    torch.testing.assert_close(robust + rest, gap)
    for loss in (held_out, torch.tensor(held_out)):
        alone = share(*arguments(head), loss, setting, 4000, seeded())
        assert float(alone) == pytest.approx(held_out - clouds, abs=0.02 * (clouds - train))


@pytest.mark.parametrize(
    ("examples", "width", "delta"), [(256, 4, 0.5), (3**5, 1, 1 / 3), (1, 7, 1.0), (10**12, 8, 0.1)]
)
def test_the_natural_radius_is_that_of_the_best_density_estimate(examples, width, delta):
    assert natural_delta(examples, width) == pytest.approx(delta, rel=1e-12)


def test_clouds_have_the_natural_radius_and_the_papers_bandwidth_unless_told():
    head = make_head(examples=256)  # width 4: radius 1/2
    default, given = (
        feature_robustness(*arguments(head), delta=d, generator=seeded()) for d in (None, 0.5)
    )
    torch.testing.assert_close(default, given)
    assert KDE_BANDWIDTH == 1.0
    default, given = (
        kernel_robustness(*arguments(head), generator=seeded(), **s) for s in ({}, {"bandwidth": 1})
    )
    torch.testing.assert_close(default, given, rtol=0, atol=0)


# Precision ------------------------------------------------------------------------------------


@pytest.mark.parametrize("lead", [0.5, 10.0, 25.0, 80.0])
def test_tiny_losses_in_float32_keep_their_digits(lead):
    # Width 1: the cloud is two points, so that the truth can be written down in decimals.
    features = torch.tensor([[1.5], [-0.75]])
    weight = torch.tensor([[2.0], [-1.0], [0.25]])
    logits = torch.tensor([[lead, 0.0, -1.0], [0.25, lead, 0.0]])
    labels = torch.tensor([0, 1])
    losses, rises = [], []
    with localcontext() as context:
        context.prec = 120

        def loss(z: list[Decimal], label: int) -> Decimal:
            return (1 + sum((x - z[label]).exp() for c, x in enumerate(z) if c != label)).ln()

        for phi, row, y in zip(features.flatten().tolist(), logits.tolist(), [0, 1], strict=True):
            z = [Decimal(x) for x in row]
            moved = [Decimal(phi * w) for w in weight.flatten().tolist()]
            around = [loss([a + s * b for a, b in zip(z, moved, strict=True)], y) for s in (1, -1)]
            losses.append(loss(z, y))
            rises.append(sum(around) / 2 - losses[-1])
    rise = feature_robustness(features, logits, labels, weight, delta=1.0, reduction="none")
    assert rise.dtype == torch.float32
    assert rise.tolist() == pytest.approx([float(r) for r in rises], rel=3e-5, abs=0)
    # The gap, too: a held-out loss three times the training loss leaves two thirds of itself.
    train = float(sum(losses) / 2)
    gap = decompose_gap(logits, labels, 3 * train, rise.mean()).gap
    assert float(gap) == pytest.approx(2 * train, rel=3e-5, abs=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    head = make_head(scale=3.0)
    half = [t.to(dtype) for t in (head.features, head.logits, head.weight)]
    features, logits, weight = half
    for measure in BOTH:
        value = measure(features, logits, head.labels, weight, generator=seeded())
        wide = [t.float() for t in half]
        expected = measure(wide[0], wide[1], head.labels, wide[2], generator=seeded())
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, expected, rtol=0, atol=0)
    rest = representativeness(features, logits, head.labels, weight, 1.0)
    assert rest.dtype == torch.float32


@pytest.mark.parametrize("measure", BOTH)
def test_autocast_does_not_lower_the_precision(measure):
    head = make_head(examples=20, classes=30, width=8)
    single = [t.float() if t.is_floating_point() else t for t in arguments(head)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = measure(*single, generator=seeded())
    torch.testing.assert_close(inside, measure(*single, generator=seeded()), rtol=0, atol=0)


# Randomness, reductions, derivatives ----------------------------------------------------------


@pytest.mark.parametrize("measure", BOTH)
def test_a_generator_is_all_the_randomness_there_is(measure):
    head = make_head()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again, other = (measure(*arguments(head), generator=seeded(s)) for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert first == again
    assert first != other
    unnamed = measure(*arguments(head))
    assert not torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(5)
    assert measure(*arguments(head)) == unnamed


@pytest.mark.parametrize("measure", BOTH)
def test_several_samples_are_the_mean_of_as_many_single_ones(measure):
    head, generator = make_head(), seeded()
    singles = [measure(*arguments(head), 0.5, 1, generator, "none") for _ in range(3)]
    expected = torch.stack(singles).mean(dim=0)
    for reduction, value in (
        ("none", expected), ("mean", expected.mean()), ("sum", expected.sum()),
    ):  # fmt: skip
        got = measure(*arguments(head), 0.5, 3, seeded(), reduction)
        torch.testing.assert_close(got, value)


@pytest.mark.parametrize("measure", BOTH)
def test_the_derivatives_are_exact(measure):
    head = make_head(examples=3, classes=3, width=2)

    def value(features: Tensor, logits: Tensor, weight: Tensor) -> Tensor:
        return measure(features, logits, head.labels, weight, 0.8, 2, seeded())

    leaves = [t.detach().clone().requires_grad_() for t in (*arguments(head)[:2], head.weight)]
    assert torch.autograd.gradcheck(value, tuple(leaves))
    assert torch.autograd.gradgradcheck(value, tuple(leaves))


# Errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": make_head().features[:5]}, "logits has 6 examples but features has 5"),
        ({"features": make_head().features * math.inf}, "features holds 0 NaN and 24 infinite"),
        ({"logits": make_head(classes=2).logits}, "weight has 3 rows .* logits has 2 columns"),
        ({"weight": make_head().weight.mT}, "weight has width 3 but features has width 4"),
        ({"labels": make_head().labels[:5]}, "labels has 5 entries for 6 examples"),
        ({"labels": make_head().labels - 100}, "labels must lie in .* drop ignored"),
        ({"samples": 0}, "samples must be positive"),
        ({"samples": 1.5}, "samples must be a whole number"),
        ({"reduction": "median"}, "reduction must be one of 'mean', 'sum', 'none'"),
    ],
)
@pytest.mark.parametrize("measure", BOTH)
def test_wrong_arguments_are_refused_by_name(measure, changes, message):
    names = ("features", "logits", "labels", "weight")
    good = dict(zip(names, arguments(make_head()), strict=True))
    with pytest.raises(ValueError, match=message):
        measure(**(good | changes))


@pytest.mark.parametrize("setting", [0.0, -1.0, math.nan, math.inf])
def test_clouds_without_a_size_are_refused(setting):
    with pytest.raises(ValueError, match="delta must be positive and finite"):
        feature_robustness(*arguments(make_head()), delta=setting)
    with pytest.raises(ValueError, match="bandwidth must be positive and finite"):
        kernel_robustness(*arguments(make_head()), bandwidth=setting)


def test_a_gap_of_logits_and_labels_that_do_not_fit_is_refused():
    head, robustness = make_head(), torch.tensor(0.1)
    with pytest.raises(ValueError, match="labels has 5 entries for 6 examples"):
        decompose_gap(head.logits, head.labels[:5], 1.0, robustness)
    with pytest.raises(ValueError, match="logits holds 18 NaN"):
        decompose_gap(head.logits * math.nan, head.labels, 1.0, robustness)
