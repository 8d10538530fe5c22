"""ResNet's convolution against `nn.Conv2d`: the same function, whatever the size of the image."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import functional_call, vmap

from grokscope.tasks.models.resnet import Convolution

# (kernel, stride, height, width), and whether the output has one position.
SHAPES = [
    ((3, 1, 1, 1), True),
    ((3, 2, 1, 1), True),
    ((3, 2, 2, 2), True),
    ((3, 2, 1, 2), True),
    ((3, 3, 3, 2), True),  # the third row is out of reach
    ((1, 1, 1, 1), True),
    ((1, 2, 2, 2), True),
    ((7, 2, 1, 1), True),
    ((7, 2, 2, 1), True),
    ((7, 5, 5, 3), True),
    ((3, 1, 2, 2), False),
    ((3, 1, 1, 2), False),
    ((3, 2, 3, 3), False),
    ((3, 2, 2, 3), False),
    ((3, 1, 8, 8), False),
    ((1, 2, 3, 3), False),
    ((7, 2, 9, 9), False),
]
ONE_POSITION = [shape for shape, one in SHAPES if one]
FORMATS = [torch.contiguous_format, torch.channels_last]


def pair(shape, dtype=torch.float64):
    """Our layer, torch's with the same weight, and images."""
    torch.manual_seed(0)
    kernel, stride, height, width = shape
    ours = Convolution(3, 4, kernel, stride)
    theirs = nn.Conv2d(3, 4, kernel, stride, padding=kernel // 2, bias=False)
    theirs.load_state_dict(ours.state_dict())
    return ours.to(dtype), theirs.to(dtype), torch.randn(5, 3, height, width, dtype=dtype)


def derivatives(layer, images, second: bool):
    """Output, and gradients by image and weight; also of a square of these gradients."""
    images = images.clone().requires_grad_()
    output = layer(images)
    loss = output.pow(3).sum()
    first = torch.autograd.grad(loss, [images, layer.weight], create_graph=second)
    if not second:
        return [output, *first]
    squared = sum(gradient.square().sum() for gradient in first)
    return [output, *first, *torch.autograd.grad(squared, [images, layer.weight])]


@pytest.mark.parametrize("memory_format", FORMATS, ids=["channels first", "channels last"])
@pytest.mark.parametrize("shape", [shape for shape, _ in SHAPES], ids=str)
def test_it_is_torch_s_convolution_with_both_derivatives(shape, memory_format):
    ours, theirs, images = pair(shape)
    images = images.contiguous(memory_format=memory_format)
    for mine, other in zip(
        derivatives(ours, images, True), derivatives(theirs, images, True), strict=True
    ):
        assert mine.shape == other.shape
        torch.testing.assert_close(mine, other, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("shape", "one"), SHAPES, ids=str)
def test_one_position_takes_no_convolution_and_several_take_one(shape, one):
    ours, _, images = pair(shape)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        output = ours(images)
    convolved = any("conv" in event.name for event in profile.events())
    assert (output.shape[-2:] == (1, 1)) is one
    assert convolved is not one


@pytest.mark.parametrize("shape", [shape for shape, _ in SHAPES], ids=str)
def test_networks_that_are_batched_get_what_each_gets_alone(shape):
    ours, theirs, _ = pair(shape)
    weights = torch.randn(3, *ours.weight.shape, dtype=torch.float64, requires_grad=True)
    images = torch.randn(3, 5, 3, *shape[2:], dtype=torch.float64, requires_grad=True)

    def one(weight, images):
        return functional_call(ours, {"weight": weight}, images)

    together = vmap(one)(weights, images)
    alone = torch.stack(
        [
            functional_call(theirs, {"weight": weight}, batch)
            for weight, batch in zip(weights, images, strict=True)
        ]
    )
    torch.testing.assert_close(together, alone, rtol=1e-11, atol=1e-11)
    for mine, other in zip(
        torch.autograd.grad(together.pow(3).sum(), [weights, images]),
        torch.autograd.grad(alone.pow(3).sum(), [weights, images]),
        strict=True,
    ):
        torch.testing.assert_close(mine, other, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("shape", ONE_POSITION, ids=str)
def test_autocast_lowers_it_as_it_lowers_a_convolution(shape):
    ours, theirs, images = pair(shape, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        mine, other = derivatives(ours, images, False), derivatives(theirs, images, False)
    assert mine[0].dtype == other[0].dtype == torch.bfloat16
    assert [each.dtype for each in mine[1:]] == [torch.float32] * 2
    for one, another in zip(mine, other, strict=True):
        largest = float(another.detach().float().abs().max())
        torch.testing.assert_close(one.float(), another.float(), rtol=0.05, atol=0.03 * largest)


@pytest.mark.parametrize("shape", [shape for shape, _ in SHAPES], ids=str)
def test_no_value_is_looked_at(shape):
    ours, theirs, images = pair(shape)
    ours, theirs, images = ours.to("meta"), theirs.to("meta"), images.to("meta")
    output = ours(images)
    output.sum().backward()
    assert output.shape == theirs(images).shape
    assert output.is_meta and ours.weight.grad.is_meta


@pytest.mark.parametrize("shape", ONE_POSITION, ids=str)
def test_an_image_without_a_batch_is_taken_as_torch_takes_it(shape):
    ours, theirs, images = pair(shape)
    torch.testing.assert_close(ours(images[0]), theirs(images[0]), rtol=1e-11, atol=1e-11)


def test_its_weights_are_drawn_and_named_as_torch_s_are():
    torch.manual_seed(3)
    ours = Convolution(5, 6, 3, 2).state_dict()
    torch.manual_seed(3)
    theirs = nn.Conv2d(5, 6, 3, 2, padding=1, bias=False).state_dict()
    assert list(ours) == list(theirs) == ["weight"]
    assert torch.equal(ours["weight"], theirs["weight"])
