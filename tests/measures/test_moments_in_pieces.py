"""Class moments computed in pieces, in reused memory, under other transforms: the same numbers."""

from __future__ import annotations

import pytest
import torch
from exact_moments import CASES, assert_equal, exact_moments, normal
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

from grokscope.measures import moments as module
from grokscope.measures.moments import ClassMoments


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
    """Where nothing is differentiated, memory is reused; the numbers are the same to the bit."""
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", elements)
    features = (normal(50, 4) + 3).to(dtype)
    labels = torch.arange(50) % 7
    kept = features.clone()
    reused = ClassMoments.from_batch(features, labels, 8, scatter)
    watched = ClassMoments.from_batch(features.clone().requires_grad_(), labels, 8, scatter)
    assert torch.equal(features, kept)
    for name in ("count", "mean", "within", "scatter") if scatter else ("count", "mean", "within"):
        assert torch.equal(getattr(reused, name), getattr(watched, name).detach()), name


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
