"""Class moments in exact fractions, and cases to compute them for."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from torch import Tensor

from grokscope.measures.moments import ClassMoments


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def exact_moments(features: Tensor, labels: Tensor, num_classes: int) -> ClassMoments:
    """The definition in loops over classes and samples, in fractions: nothing is rounded."""
    samples = [[Fraction(x) for x in row] for row in features.tolist()]
    width = features.shape[1]
    counts, means, withins = [], [], []
    scatter = [[Fraction(0)] * width for _ in range(width)]
    for c in range(num_classes):
        own = [x for x, label in zip(samples, labels.tolist(), strict=True) if label == c]
        mean = [sum(x[j] for x in own) / max(len(own), 1) for j in range(width)]
        counts.append(float(len(own)))
        means.append([float(m) for m in mean])
        within = Fraction(0)
        for x in own:
            deviation = [x[j] - mean[j] for j in range(width)]
            within += sum(a * a for a in deviation)
            for i in range(width):
                for j in range(width):
                    scatter[i][j] += deviation[i] * deviation[j]
        withins.append(float(within))
    arrays = (counts, means, withins, [[float(x) for x in row] for row in scatter])
    return ClassMoments(*(torch.tensor(array, dtype=torch.float64) for array in arrays))


def assert_equal(got: ClassMoments, expected: ClassMoments, rtol=1e-12, atol=1e-25):
    torch.testing.assert_close(got.count, expected.count, rtol=0, atol=0)
    torch.testing.assert_close(got.mean, expected.mean, rtol=1e-15, atol=1e-14)
    torch.testing.assert_close(got.within, expected.within, rtol=rtol, atol=atol)
    assert (got.scatter is None) == (expected.scatter is None)
    if got.scatter is not None and expected.scatter is not None:
        # Entries of a scatter matrix cancel: errors are relative to its largest entry.
        atol += rtol * float(expected.scatter.detach().abs().max())
        torch.testing.assert_close(got.scatter, expected.scatter, rtol=rtol, atol=atol)


CASES = [
    pytest.param([0, 1, 2, 0, 1, 2, 0], 3, 2, id="three classes"),
    pytest.param([0, 4, 4, 0, 0], 6, 3, id="missing classes"),
    pytest.param([2, 0, 1], 3, 4, id="one example of each class"),
    pytest.param([1, 1, 1, 0], 2, 1, id="one feature"),
    pytest.param([1, 1, 1, 1], 3, 2, id="a single class"),
    pytest.param([1], 2, 3, id="one example"),
]
