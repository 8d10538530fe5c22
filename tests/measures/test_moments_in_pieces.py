"""Class moments computed in pieces, in reused memory, under other transforms: the same numbers."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from exact_moments import CASES, assert_equal, exact_moments, normal
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

from grokscope.measures import pieces as module
from grokscope.measures.checks import NotFiniteError
from grokscope.measures.moments import ClassMoments

CPU = torch.device("cpu")


@pytest.mark.parametrize("elements", [1, 9, 25, 1000])
@pytest.mark.parametrize(("labels", "classes", "width"), CASES)
def test_a_batch_in_pieces_has_the_same_moments_and_gradients(
    monkeypatch, elements, labels, classes, width
):
    labels = torch.tensor(labels)
    features = (normal(len(labels), width) + 3).requires_grad_()

    def moments_and_gradient() -> tuple[ClassMoments, Tensor]:
        moments = ClassMoments.from_batch(features, labels, classes, scatter=True)
        total = moments.within.square().sum() + moments.scatter.sum() + moments.mean.cos().sum()
        return moments, torch.autograd.grad(total, features)[0]

    whole, gradient = moments_and_gradient()
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", elements)
    pieces, gradient_of_pieces = moments_and_gradient()
    assert_equal(pieces, whole)
    assert_equal(pieces, exact_moments(features.detach(), labels, classes), atol=1e-24)
    torch.testing.assert_close(gradient_of_pieces, gradient)


@pytest.mark.parametrize("elements", [9, 25, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("scatter", [False, True])
def test_buffers_are_reused_without_a_trace(monkeypatch, elements, dtype, scatter):
    """Where nothing is differentiated, memory is reused; the numbers are the same."""
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", elements)
    features = (normal(50, 4) + 3).to(dtype)
    labels = torch.arange(50) % 7
    kept = features.clone()
    reused = ClassMoments.from_batch(features, labels, 8, scatter)
    watched = ClassMoments.from_batch(features.clone().requires_grad_(), labels, 8, scatter)
    assert torch.equal(features, kept)
    for name in ("count", "mean", "scatter") if scatter else ("count", "mean"):
        assert torch.equal(getattr(reused, name), getattr(watched, name).detach()), name
    torch.testing.assert_close(reused.within, watched.within.detach(), rtol=1e-14, atol=0)


def test_results_do_not_lie_in_the_memory_that_is_reused():
    labels = torch.arange(50) % 7
    first = ClassMoments.from_batch(normal(50, 4), labels, 7, scatter=True)
    ClassMoments.from_batch(100 * normal(50, 4, seed=1), labels, 7, scatter=True)
    assert_equal(first, exact_moments(normal(50, 4), labels, 7), atol=1e-24)


def test_threads_do_not_share_the_memory_that_is_reused():
    labels = torch.arange(3000) % 7
    batches = [normal(3000, 40, seed=seed) + 100 * seed for seed in range(4)]
    alone = [ClassMoments.from_batch(batch, labels, 7) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        every = pool.map(lambda i: ClassMoments.from_batch(batches[i % 4], labels, 7), range(80))
        for i, moments in enumerate(every):
            assert torch.equal(moments.within, alone[i % 4].within)
            assert torch.equal(moments.mean, alone[i % 4].mean)
        others = {
            tensor.data_ptr()
            for pair in pool.map(lambda _: module._workspace.pair(2, 3, CPU), range(8))
            for tensor in pair
        }
    mine = module._workspace.pair(2, 3, CPU)
    assert {tensor.data_ptr() for tensor in mine}.isdisjoint(others)
    again = module._workspace.pair(2, 3, CPU)
    assert [tensor.data_ptr() for tensor in again] == [tensor.data_ptr() for tensor in mine]


def test_memory_made_in_inference_mode_serves_outside_of_it():
    labels = torch.arange(50) % 7

    def inside_then_outside() -> ClassMoments:  # a new thread: nothing has been made yet
        with torch.inference_mode():
            ClassMoments.from_batch(normal(50, 4), labels, 7)
        return ClassMoments.from_batch(normal(50, 4), labels, 7, scatter=True)

    with ThreadPoolExecutor(1) as pool:
        moments = pool.submit(inside_then_outside).result()
    assert_equal(moments, exact_moments(normal(50, 4), labels, 7), atol=1e-24)


@pytest.mark.parametrize("watched", [False, True])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("row", range(8))
def test_one_value_that_is_not_finite_is_found_in_any_row(row, value, watched):
    """Also in the first and in the only example of a class."""
    features, labels = normal(8, 3), torch.tensor([0, 0, 1, 1, 1, 3, 4, 4])
    features[row, 1] = value
    with pytest.raises(NotFiniteError, match=r"features holds [01] NaN and [01] infinite of 24"):
        ClassMoments.from_batch(features.requires_grad_(watched), labels, 5)


def test_finite_values_whose_squares_overflow_are_not_refused():
    moments = ClassMoments.from_batch(1e200 * normal(8, 3), torch.arange(8) % 3, 3)
    assert moments.mean.isfinite().all()
    assert not moments.within.isfinite().any()


def test_forward_mode_derivatives_are_those_of_backward_mode():
    features, direction, labels = normal(10, 3), normal(10, 3, seed=1), torch.arange(10) % 3

    def within(features: Tensor) -> Tensor:
        return ClassMoments.from_batch(features, labels, 3).within.sin().sum()

    with forward_ad.dual_level():
        dual = within(forward_ad.make_dual(features, direction))
        forward = forward_ad.unpack_dual(dual).tangent
    gradient = torch.autograd.functional.jacobian(within, features)
    torch.testing.assert_close(forward, (gradient * direction).sum())


@pytest.mark.parametrize("watched", [False, True])
def test_no_float64_temporary_is_larger_than_a_chunk(monkeypatch, watched):
    sizes = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if isinstance(result, Tensor) and result.dtype == torch.float64:
                sizes.append(result.shape)
            return result

    monkeypatch.setattr(module, "CHUNK_ELEMENTS", 100)
    features, labels = normal(500, 5).float(), torch.arange(500) % 3
    with Watch():
        ClassMoments.from_batch(features.requires_grad_(watched), labels, 3, scatter=True)
    of_features = [shape for shape in sizes if len(shape) == 2]
    assert of_features
    assert max(shape.numel() for shape in of_features) == 100
