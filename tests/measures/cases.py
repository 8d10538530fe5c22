"""Linear heads that feed the tests of the measures: one line here tests a new head everywhere."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor


@dataclass(frozen=True)
class Head:
    """What a linear head sees and says, in float64."""

    features: Tensor
    weight: Tensor
    bias: Tensor
    labels: Tensor

    @property
    def logits(self) -> Tensor:
        return self.features @ self.weight.mT + self.bias


def make_head(
    examples: int = 6,
    classes: int = 3,
    width: int = 4,
    scale: float = 1.0,
    offset: float = 0.0,
    seed: int = 0,
) -> Head:
    """A random head; ``scale`` multiplies the rows, ``offset`` is added to all of them."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    features = normal(examples, width)
    weight = scale * normal(classes, width) + offset
    labels = torch.randint(0, classes, (examples,), generator=generator)
    return Head(features, weight, normal(classes), labels)


HEADS = [
    pytest.param(make_head(), id="three classes"),
    pytest.param(make_head(classes=2), id="two classes"),
    pytest.param(make_head(width=1), id="one feature"),
    pytest.param(make_head(examples=1), id="one example"),
    pytest.param(make_head(classes=9, width=5), id="more classes than examples"),
    pytest.param(make_head(scale=0.0), id="all rows zero"),
    pytest.param(make_head(scale=8.0), id="confident"),
    pytest.param(make_head(offset=30.0), id="rows with a common offset"),
]
