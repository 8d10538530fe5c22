"""Class moments against exact fractions, and against themselves computed in parts."""

from __future__ import annotations

import functools
import itertools
import math
import operator
import warnings
from dataclasses import FrozenInstanceError

import pytest
import torch
from exact_moments import CASES, assert_equal, exact_moments, normal
from hypothesis import given, settings
from hypothesis.strategies import integers, lists, sampled_from, tuples
from torch import Tensor

from grokscope.measures.moments import ClassMoments

# Definition ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("labels", "classes", "width"), CASES)
def test_moments_are_those_of_loops_over_classes_and_samples(labels, classes, width):
    labels = torch.tensor(labels)
    features = normal(len(labels), width)
    truth = exact_moments(features, labels, classes)
    got = ClassMoments.from_batch(features, labels, classes, scatter=True)
    assert_equal(got, truth)
    assert_equal(ClassMoments.of(features, labels, classes, scatter=True), truth)
    assert ClassMoments.from_batch(features, labels, classes).scatter is None


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_labels_of_any_integer_dtype_count_alike(dtype):
    labels = torch.tensor([3, 0, 1, 3, 3])
    features = normal(5, 2)
    got = ClassMoments.from_batch(features, labels.to(dtype), 4, scatter=True)
    assert_equal(got, exact_moments(features, labels, 4))


def test_the_trace_of_the_scatter_is_the_sum_of_what_lies_within():
    features, labels = 3 * normal(50, 7) + 5, torch.arange(50) % 6
    moments = ClassMoments.from_batch(features, labels, 8, scatter=True)
    torch.testing.assert_close(moments.scatter.trace(), moments.within.sum())
    torch.testing.assert_close(moments.scatter, moments.scatter.mT, rtol=1e-14, atol=1e-13)
    assert (torch.linalg.eigvalsh(moments.scatter) > 0).all()


# Parts and whole ----------------------------------------------------------------------------

# Each example: its label among five (the fifth is rare, the sixth never seen) and its part.
EXAMPLES = lists(tuples(sampled_from([0, 0, 0, 1, 1, 2, 3, 4]), integers(0, 3)), min_size=1,
                 max_size=12)  # fmt: skip


def parts_of(features: Tensor, labels: Tensor, parts: Tensor) -> list[ClassMoments]:
    return [
        ClassMoments.from_batch(features[parts == p], labels[parts == p], 6, scatter=True)
        for p in parts.unique()
    ]


@settings(max_examples=60, deadline=None)
@given(examples=EXAMPLES, offset=sampled_from([0.0, 10.0, 1e4]), seed=integers(0, 10_000))
def test_moments_of_any_parts_add_up_to_those_of_the_whole(examples, offset, seed):
    labels, assigned = torch.tensor(examples).unbind(dim=1)
    features = normal(len(labels), 2, seed=seed) + offset
    parts = parts_of(features, labels, assigned)
    truth = exact_moments(features, labels, 6)
    # One rounding of a mean, squared, is what an offset may leave behind.
    tolerance = {"rtol": 1e-12 + 1e-14 * offset, "atol": 1e-25 + 1e-29 * offset**2}
    assert_equal(functools.reduce(operator.add, parts), truth, **tolerance)
    assert_equal(functools.reduce(operator.add, reversed(parts)), truth, **tolerance)


@settings(max_examples=40, deadline=None)
@given(sizes=tuples(*[integers(1, 6)] * 3), seed=integers(0, 10_000))
def test_the_order_and_the_grouping_of_a_sum_do_not_matter(sizes, seed):
    labels = torch.randint(0, 4, (sum(sizes),), generator=torch.Generator().manual_seed(seed))
    features = normal(len(labels), 3, seed=seed) + labels[:, None] ** 2
    parts = torch.repeat_interleave(torch.arange(3), torch.tensor(sizes))
    a, b, c = parts_of(features, labels, parts)
    truth = exact_moments(features, labels, 6)
    for total in ((a + b) + c, a + (b + c), (c + a) + b, b + (c + a)):
        assert_equal(total, truth)


def test_classes_that_one_side_lacks_come_from_the_other():
    features = normal(7, 3) + 1e6
    labels = torch.tensor([0, 0, 0, 1, 2, 2, 0])
    left = ClassMoments.from_batch(features[:3], labels[:3], 4, scatter=True)
    right = ClassMoments.from_batch(features[3:6], labels[3:6], 4, scatter=True)
    for total in (left + right, right + left):
        assert total.count.tolist() == [3, 1, 2, 0]
        torch.testing.assert_close(total.mean[0], left.mean[0], rtol=0, atol=0)
        torch.testing.assert_close(total.mean[1:], right.mean[1:], rtol=0, atol=0)
        torch.testing.assert_close(total.within, left.within + right.within, rtol=0, atol=0)
        torch.testing.assert_close(total.scatter, left.scatter + right.scatter, rtol=0, atol=0)


# Precision ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "offset", "spread"),
    [
        (torch.float32, 1e4, 1e-2),
        (torch.float32, 3e7, 4.0),
        (torch.float64, 1e8, 1e-2),
        (torch.float16, 1e3, 1.0),
        (torch.bfloat16, 300.0, 4.0),
        (torch.float16, 0.0, 6e4 / 5),
    ],
)
def test_a_tiny_variance_at_a_large_offset_is_exact(dtype, offset, spread):
    features = (offset + spread * normal(60, 2)).to(dtype)
    labels = torch.arange(60) % 3
    truth = exact_moments(features, labels, 3)
    whole = ClassMoments.from_batch(features, labels, 3, scatter=True)
    assert whole.mean.dtype == whole.within.dtype == whole.scatter.dtype == torch.float64
    # Means are rounded to float64. Of that a whole feels the square, a merged shift the thing.
    rounding = 1.1e-16 * offset / spread
    assert_equal(whole, truth, rtol=1e-13 + 4 * rounding**2)
    parts = parts_of(features, labels, torch.arange(60) // 20)
    merged = functools.reduce(operator.add, parts)
    rtol = 1e-13 + 4 * rounding
    torch.testing.assert_close(merged.within[:3], truth.within, rtol=rtol, atol=0)
    torch.testing.assert_close(merged.scatter, truth.scatter, rtol=rtol, atol=rtol * 60 * spread**2)


def test_the_mean_of_many_examples_is_known_to_its_last_digits():
    features, labels = normal(20_000, 2) + 1e8, torch.arange(20_000) % 2
    got = ClassMoments.from_batch(features, labels, 2).mean
    for c, column in itertools.product(range(2), range(2)):
        expected = math.fsum(features[labels == c, column].tolist()) / 10_000
        assert float(got[c, column]) == pytest.approx(expected, rel=3e-16)


def test_a_million_steps_of_merging_do_not_drift():
    # Doubling merges 2^20 copies of one batch: counts and scatter scale, the means stay.
    features, labels = normal(8, 2) + 100, torch.arange(8) % 2
    truth = exact_moments(features, labels, 2)
    total = ClassMoments.from_batch(features, labels, 2, scatter=True)
    for _ in range(20):
        total = total + total
    torch.testing.assert_close(total.count, truth.count * 2**20, rtol=0, atol=0)
    torch.testing.assert_close(total.mean, truth.mean, rtol=1e-15, atol=0)
    torch.testing.assert_close(total.within, truth.within * 2**20, rtol=1e-12, atol=0)
    torch.testing.assert_close(total.scatter, truth.scatter * 2**20, rtol=1e-11, atol=0)


def test_autocast_does_not_lower_the_precision():
    features, labels = normal(30, 8).float(), torch.arange(30) % 3
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = ClassMoments.from_batch(features, labels, 3, scatter=True)
        doubled = inside + inside
    truth = exact_moments(features, labels, 3)
    assert_equal(inside, truth)
    torch.testing.assert_close(doubled.within, 2 * truth.within)


# Derivatives ----------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", [[0, 1, 2, 0, 1, 1], [0, 3, 3, 0, 0, 0], [1, 1, 1, 1, 1, 0]])
def test_first_and_second_derivatives_are_exact(labels):
    labels = torch.tensor(labels)

    def whole(features: Tensor) -> tuple[Tensor, ...]:
        moments = ClassMoments.from_batch(features, labels, 4, scatter=True)
        return moments.mean, moments.within, moments.scatter

    def merged(features: Tensor) -> tuple[Tensor, ...]:
        head = ClassMoments.from_batch(features[:2], labels[:2], 4, scatter=True)
        total = head + ClassMoments.from_batch(features[2:], labels[2:], 4, scatter=True)
        return total.mean, total.within, total.scatter

    features = (normal(6, 2) + 1).requires_grad_()
    for function in (whole, merged):
        assert torch.autograd.gradcheck(function, (features,))
        assert torch.autograd.gradgradcheck(function, (features,))


@pytest.mark.parametrize("shared_labels", [True, False])
def test_many_networks_at_once_have_the_moments_and_gradients_of_each_alone(shared_labels):
    features = normal(3, 10, 2)
    labels = torch.randint(0, 4, (3, 10), generator=torch.Generator().manual_seed(0))
    labels = labels[0] if shared_labels else labels

    def spread(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        moments = ClassMoments.of(features, labels, 5)
        return moments.within.square().sum() + moments.mean.sin().sum(), moments.count

    both = torch.func.grad_and_value(spread, has_aux=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # "performance drop": one network after the other
        axes = (0, None) if shared_labels else (0, 0)
        gradients, (values, counts) = torch.func.vmap(both, in_dims=axes)(features, labels)
    for i in range(3):
        alone = features[i].clone().requires_grad_()
        value, count = spread(alone, labels if shared_labels else labels[i])
        torch.testing.assert_close(values[i], value)
        torch.testing.assert_close(counts[i], count)
        torch.testing.assert_close(gradients[i], torch.autograd.grad(value, alone)[0])


# Immutable --------------------------------------------------------------------------------------


def test_moments_do_not_change_when_anything_else_does():
    features, labels = normal(6, 2), torch.arange(6) % 2
    truth = exact_moments(features, labels, 2)
    moments = ClassMoments.from_batch(features, labels, 2, scatter=True)
    assert moments.without_scatter().scatter is None
    total = moments + moments
    for tensor in (total.count, total.mean, total.within, total.scatter):
        tensor.zero_()
    features.zero_()
    labels.zero_()
    assert_equal(moments, truth)
    for name in ("count", "mean", "within", "scatter"):
        with pytest.raises(FrozenInstanceError):
            setattr(moments, name, torch.zeros(2))


def test_moments_move_to_another_device():
    moments = ClassMoments.from_batch(normal(6, 2), torch.arange(6) % 2, 2, scatter=True)
    for one in (moments, moments.without_scatter()):
        moved = one.to(torch.device("meta"))
        assert moved.count.is_meta and moved.mean.is_meta and moved.within.is_meta
        assert (moved.scatter is None) == (one.scatter is None)
        assert one.mean.device.type == "cpu"


# Present classes --------------------------------------------------------------------------------


def test_present_classes_are_those_that_were_seen_and_nothing_else_changes():
    features, labels = normal(6, 3), torch.tensor([5, 1, 1, 5, 2, 5])
    moments = ClassMoments.from_batch(features, labels, 7, scatter=True)
    present, index = moments.of_present_classes()
    assert index.tolist() == [1, 2, 5]
    renamed = torch.tensor([2, 0, 0, 2, 1, 2])
    assert_equal(present, exact_moments(features, renamed, 3))


@pytest.mark.parametrize("labels", [[1, 1, 1], [0]])
def test_a_single_class_is_nothing_to_compare(labels):
    moments = ClassMoments.from_batch(normal(len(labels), 2), torch.tensor(labels), 3)
    with pytest.raises(ValueError, match="only 1 class.*pass more examples, or moments"):
        moments.of_present_classes()


# Errors -----------------------------------------------------------------------------------------

FEATURES, LABELS = normal(6, 4), torch.arange(6) % 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": FEATURES[0]}, r"features must have shape \[examples, width\].*flatten"),
        ({"features": FEATURES[:0]}, "features must not be empty.*at least one example"),
        ({"features": FEATURES.long()}, r"features must be of a floating dtype.*features.float"),
        ({"features": FEATURES.numpy()}, r"features must be a torch.Tensor.*torch.as_tensor"),
        ({"features": FEATURES / 0}, "features holds 0 NaN and 24 infinite of 24.*earlier step"),
        ({"labels": LABELS[:4]}, "labels has 4 entries for 6 examples.*one label per example"),
        ({"labels": LABELS.double()}, r"labels must be class indices.*labels.long\(\)"),
        ({"labels": LABELS[:, None]}, r"labels must have shape \[examples\].*flatten"),
        ({"labels": LABELS.tolist()}, "labels must be a torch.Tensor.*convert them"),
        ({"labels": LABELS - 100}, r"labels must lie in \[0, 2\].*-100 to -98; drop ignored"),
        ({"num_classes": 2}, r"labels must lie in \[0, 1\] for 2 classes.*check the head"),
        ({"num_classes": 1}, "num_classes describes 1 class.*two rows"),
        ({"labels": LABELS.to("meta")}, r"one device, got features on cpu, labels on meta.*\.to"),
    ],
)
def test_wrong_arguments_are_refused_by_name(changes, message):
    good = {"features": FEATURES, "labels": LABELS, "num_classes": 3}
    with pytest.raises(ValueError, match=message):
        ClassMoments.from_batch(**(good | changes))


@pytest.mark.parametrize(
    ("features", "classes", "scatter", "message"),
    [
        (FEATURES, 4, False, r"\(3, 4\) and \(4, 4\) do not add up.*same head"),
        (FEATURES[:, :2], 3, False, r"\(3, 4\) and \(3, 2\) do not add up.*same head"),
        (FEATURES, 3, True, r"only one .* scatter matrix.*scatter=True, or .*without_scatter\(\)"),
    ],
)
def test_moments_of_different_heads_do_not_add_up(features, classes, scatter, message):
    moments = ClassMoments.from_batch(FEATURES, LABELS, 3)
    other = ClassMoments.from_batch(features, LABELS, classes, scatter=scatter)
    with pytest.raises(ValueError, match=message):
        moments + other


def test_sum_adds_moments_up():
    features, labels = torch.randn(9, 3), torch.tensor([0, 1, 2] * 3)
    parts = [ClassMoments.from_batch(features[i::2], labels[i::2], 3) for i in (0, 1)]
    whole = sum(parts)
    assert isinstance(whole, ClassMoments)
    torch.testing.assert_close(whole.mean, ClassMoments.from_batch(features, labels, 3).mean)
