"""SAM's step up and back, and BatchNorm that does not see it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from grokscope.interventions.sharpness import batch_norm_frozen, moved_up


def test_the_step_up_has_the_radius_and_the_direction_of_the_gradient():
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.randn(3, 2)), nn.Parameter(torch.randn(5))]
    before = [each.detach().clone() for each in parameters]
    sum((each**3).sum() for each in parameters).backward()
    gradient = torch.cat([(3 * each**2).flatten() for each in before])
    with moved_up(parameters, radius=0.3):
        moved = torch.cat(
            [(a - b).flatten() for a, b in zip(parameters, before, strict=True)]
        ).detach()
        torch.testing.assert_close(moved, 0.3 * gradient / gradient.norm())
    assert all(torch.equal(a, b) for a, b in zip(parameters, before, strict=True))


def test_weights_come_back_even_when_the_second_pass_fails():
    weight = nn.Parameter(torch.ones(2))
    weight.sum().backward()
    with pytest.raises(ZeroDivisionError), moved_up([weight], radius=1.0):
        _ = 1 / 0
    assert torch.equal(weight, torch.ones(2))


def test_what_has_no_gradient_is_not_moved():
    moving, still = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    moving.sum().backward()
    with moved_up([moving, still], radius=1.0):
        assert torch.equal(still, torch.ones(2))
        assert not torch.equal(moving, torch.ones(2))


def test_running_statistics_stand_still_and_the_batch_still_normalises():
    layer = nn.BatchNorm1d(3)
    layer(torch.randn(8, 3))
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    with batch_norm_frozen(nn.Sequential(layer)):
        output = layer(5 + 7 * torch.randn(100, 3))
    assert abs(float(output.detach().mean())) < 1e-5
    assert all(torch.equal(before[key], value) for key, value in layer.state_dict().items())
    layer(torch.randn(8, 3))
    assert int(layer.num_batches_tracked) == int(before["num_batches_tracked"]) + 1
    assert not torch.equal(layer.running_mean, before["running_mean"])
