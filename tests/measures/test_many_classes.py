"""NCC of more classes than fit into one matrix of pairs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from grokscope.measures import ClassMoments, class_distances, ncc


def batch() -> tuple[Tensor, Tensor]:
    """Forty classes, of which one is missing and one has a single example."""
    labels = torch.arange(120) % 40
    labels[labels == 7] = 8
    labels[labels == 9] = 10
    labels[0] = 9
    generator = torch.Generator().manual_seed(0)
    return torch.randn(120, 6, generator=generator, dtype=torch.float64), labels


@pytest.mark.parametrize("elements", [1, 100, 333, 10_000])
@pytest.mark.parametrize(
    ("reduction", "unbiased"), [("mean", False), ("mean", True), ("sum", False)]
)
def test_pairs_in_pieces_add_up_to_those_of_one_matrix(monkeypatch, elements, reduction, unbiased):
    features, labels = batch()

    def value_and_gradient() -> tuple[Tensor, Tensor]:
        own = features.clone().requires_grad_()
        value = ncc(ClassMoments.from_batch(own, labels, 40), reduction, unbiased)
        return value, torch.autograd.grad(value, own)[0]

    whole = value_and_gradient()
    monkeypatch.setattr(class_distances, "PAIRWISE_CLASSES", 1)
    monkeypatch.setattr(class_distances, "PAIR_ELEMENTS", elements)
    for got, expected in zip(value_and_gradient(), whole, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


def test_means_that_coincide_are_infinite_in_pieces_too(monkeypatch):
    monkeypatch.setattr(class_distances, "PAIRWISE_CLASSES", 1)
    features = torch.tensor([[1.0], [-1.0], [1.0], [-1.0], [5.0]])
    moments = ClassMoments.from_batch(features, torch.tensor([0, 0, 1, 1, 2]), 3)
    assert float(ncc(moments)) == float("inf")


def test_no_temporary_is_a_matrix_of_all_pairs():
    classes, largest = 3_000, []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if isinstance(result, Tensor):
                largest.append(result.numel())
            return result

    labels = torch.arange(2 * classes) % classes
    moments = ClassMoments.from_batch(torch.randn(2 * classes, 4), labels, classes)
    with Watch():
        ncc(moments)
    assert max(largest) <= class_distances.PAIR_ELEMENTS < classes**2
