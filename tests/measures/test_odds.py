"""Odds against the most probable class, in the two ways in which they are computed."""

from __future__ import annotations

import pytest
import torch

from grokscope.measures.flatness import odds_by_mask, runner_up_odds


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_odds_are_the_same_to_the_bit_without_indexing(dtype):
    """As on a GPU, where a gradient by index would sort: values, gradients, ties, saturation."""
    generator = torch.Generator().manual_seed(0)
    logits = 30 * torch.randn(200, 7, generator=generator, dtype=dtype)
    logits[0], logits[1, 2:5], logits[2, 3] = 0.0, 1e4, -1e30
    found, expected = (logits.clone().requires_grad_() for _ in range(2))
    top = found.argmax(dim=-1, keepdim=True)
    gaps, odds = odds_by_mask(found, top)
    plain_gaps, plain_odds, _ = runner_up_odds(expected)
    assert torch.equal(gaps, plain_gaps) and torch.equal(odds, plain_odds)
    for of_gaps, of_odds in ((gaps, odds), (plain_gaps, plain_odds)):
        (of_gaps.clamp(min=-50).square().sum() + of_odds.square().sum()).backward()
    assert torch.equal(found.grad, expected.grad)
