"""Constraints hold after they were applied, and leave alone what already meets them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from grokscope.interventions import FrobeniusCap, LogitScaleCap, SpectralCap
from grokscope.interventions.constraints import constrain


def made(scale: float = 5.0):
    torch.manual_seed(0)
    head, features = nn.Linear(6, 4).double(), torch.randn(20, 6, dtype=torch.float64)
    with torch.no_grad():
        head.weight.mul_(scale)
    return head, features


def sizes(head: nn.Linear, features: torch.Tensor) -> dict[str, float]:
    """By numpy, on the plain matrix."""
    weight = head.weight.detach().numpy()
    logits = features.numpy() @ weight.T + head.bias.detach().numpy()
    return {
        "frobenius": float(np.sqrt((weight**2).sum())),
        "spectral": float(np.linalg.svd(weight)[1][0]),
        "logit_scale": float(logits.std(axis=1).mean()),
    }


@pytest.mark.parametrize("kind", [FrobeniusCap, SpectralCap, LogitScaleCap])
def test_a_cap_is_met_exactly_where_it_was_exceeded(kind):
    head, features = made()
    before = head.weight.detach().clone()
    name = kind(cap=1).kind
    cap = 0.6 * sizes(head, features)[name]
    constrain(kind(cap=cap), head, features)
    assert sizes(head, features)[name] == pytest.approx(cap)
    ratio = head.weight / before
    torch.testing.assert_close(ratio, ratio[0, 0].expand_as(ratio))  # scaled, not turned


@pytest.mark.parametrize("kind", [FrobeniusCap, SpectralCap, LogitScaleCap])
def test_a_cap_that_is_met_changes_no_bit(kind):
    head, features = made()
    before = [each.detach().clone() for each in head.parameters()]
    cap = 1.01 * sizes(head, features)[kind(cap=1).kind]
    constrain(kind(cap=cap), head, features)
    assert all(torch.equal(a, b) for a, b in zip(before, head.parameters(), strict=True))


def test_the_published_projection_leaves_the_bias_alone():
    head, features = made()
    bias = head.bias.detach().clone()
    constrain(FrobeniusCap(cap=0.1), head, features)
    assert torch.equal(head.bias, bias)


def test_a_head_of_zeros_meets_every_cap():
    head, features = made(0.0)
    constrain(FrobeniusCap(cap=1), head, features)
    assert torch.equal(head.weight, torch.zeros(4, 6, dtype=torch.float64))


def test_a_cap_must_be_positive():
    with pytest.raises(ValueError, match="greater than 0"):
        FrobeniusCap(cap=0)
