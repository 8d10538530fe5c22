"""Taps that never meet an image, against gradients that are zero whatever the values are."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from grokscope.probe.idle import idle_taps

# A layer, and the size of its input.
LAYERS = [
    (nn.Conv2d(2, 3, 3, padding=1), (1, 1)),
    (nn.Conv2d(2, 3, 3, padding=1), (1, 4)),
    (nn.Conv2d(2, 3, 3, stride=2, padding=1), (2, 2)),
    (nn.Conv2d(2, 3, 3, stride=2, padding=1), (2, 3)),
    (nn.Conv2d(2, 3, 3, padding=1), (2, 2)),
    (nn.Conv2d(2, 3, 3, padding="same"), (1, 2)),
    (nn.Conv2d(2, 3, (2, 4), padding="same"), (1, 1)),
    (nn.Conv2d(2, 3, 3, padding="valid"), (3, 3)),
    (nn.Conv2d(2, 3, 3, padding=2, dilation=2), (2, 3)),
    (nn.Conv2d(2, 3, 5, stride=4, padding=2), (3, 6)),  # not only at the rim
    (nn.Conv2d(2, 4, 3, padding=1, groups=2), (1, 1)),
    (nn.Conv2d(2, 3, 3, padding=1, padding_mode="replicate"), (1, 1)),
    (nn.Conv2d(2, 3, (3, 5), (2, 3), padding=(1, 2)), (2, 1)),
    (nn.Conv1d(2, 3, 5, padding=2), (2,)),
    (nn.Conv3d(2, 3, 3, padding=1), (1, 2, 1)),
]


@pytest.mark.parametrize(("layer", "size"), LAYERS, ids=str)
def test_taps_are_idle_where_no_image_gives_a_gradient(layer, size):
    torch.manual_seed(0)
    images = torch.randn(20, 2, *size)
    output = layer(images)
    (gradient,) = torch.autograd.grad((output * torch.randn_like(output)).sum(), [layer.weight])
    zero = (gradient == 0).all(dim=0).all(dim=0)
    found = idle_taps(layer, images)
    assert set(found) == ({"weight"} if zero.any() else set())
    if zero.any():
        assert torch.equal(found["weight"], zero)


def test_a_weight_is_idle_only_where_it_is_in_all_of_its_calls():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(1, 1, 3, padding=1)
            self.second = nn.Conv2d(1, 1, 3, padding=1)
            self.second.weight = self.first.weight

        def forward(self, x):
            return self.first(x[..., :1, :]) + self.second(input=x[..., :1])

    found = idle_taps(Twice(), torch.randn(1, 1, 2, 2))
    assert found["first.weight"].tolist() == [[True, False, True], [False] * 3, [True, False, True]]


def test_weights_have_the_names_that_they_have_in_a_wrapped_model():
    layer = nn.Conv2d(1, 2, 3, padding=1)
    for wrapped in (nn.DataParallel(layer), torch.compile(layer)):
        (name,) = idle_taps(wrapped, torch.randn(4, 1, 1, 1))
        assert wrapped.get_parameter(name) is layer.weight


def test_a_unit_that_is_never_active_is_not_idle():
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Conv2d(2, 2, 3, padding=1))
    nn.init.constant_(model[0].bias, -1e3)
    assert not idle_taps(model, torch.randn(4, 1, 5, 5))


def test_the_model_is_left_as_it_was_and_is_not_called_without_convolutions():
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.Dropout())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    generator = torch.get_rng_state()
    images = torch.randn(4, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    assert idle_taps(model, images)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)
    assert model.training and not model[0]._forward_pre_hooks
    calls = []
    plain = nn.Linear(2, 2)
    plain.register_forward_hook(lambda *_: calls.append(1))
    assert not idle_taps(plain, torch.randn(4, 2)) and not calls


@pytest.mark.parametrize(("kernel", "length"), [(3, 1), (5, 2), (3, 2)])
def test_of_a_layer_that_pads_in_its_forward_nothing_is_known(kernel, length):
    class Causal(nn.Conv1d):
        def forward(self, x):
            return super().forward(nn.functional.pad(x, (self.kernel_size[0] - 1, 0)))

    assert idle_taps(Causal(1, 2, kernel), torch.randn(4, 1, length)) == {}
