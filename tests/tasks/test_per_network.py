"""Layers of several networks under vmap: to the bit what PyTorch's layers give each alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import (
    functional_call,
    grad,
    jvp,
    replace_all_batch_norm_modules_,
    stack_module_state,
    vmap,
)
from torch.utils._python_dispatch import TorchDispatchMode

from grokscope.tasks.models.resnet import BatchNorm, Convolution, ResNet18

NETWORKS = 3
# Our layer, PyTorch's, and height and width of the images.
LAYERS = {
    "convolution": (Convolution(4, 5, 3), nn.Conv2d(4, 5, 3, padding=1, bias=False), 6),
    "strided": (
        Convolution(4, 5, 7, stride=2),
        nn.Conv2d(4, 5, 7, stride=2, padding=3, bias=False),
        9,
    ),
    "shortcut": (
        Convolution(4, 5, 1, stride=2),
        nn.Conv2d(4, 5, 1, stride=2, bias=False),
        4,
    ),
    "BatchNorm in training": (BatchNorm(4), nn.BatchNorm2d(4), 6),
    "BatchNorm in evaluation": (BatchNorm(4).eval(), nn.BatchNorm2d(4).eval(), 6),
}
FORMATS = [torch.contiguous_format, torch.channels_last]
layers = pytest.mark.parametrize(("ours", "theirs", "size"), LAYERS.values(), ids=list(LAYERS))


def networks(layer, size, dtype=torch.float64):
    """Stacked parameters, stacked buffers and images of several networks."""
    torch.manual_seed(0)
    parameters = {
        name: torch.randn(NETWORKS, *tensor.shape, dtype=dtype, requires_grad=True)
        for name, tensor in layer.named_parameters()
    }
    buffers = {
        name: torch.rand(NETWORKS, *tensor.shape).to(dtype if tensor.is_floating_point() else int)
        for name, tensor in layer.named_buffers()
    }
    images = torch.randn(NETWORKS, 8, 4, size, size, dtype=dtype, requires_grad=True)
    return parameters, buffers, images


def at(tensors, place):
    return {name: tensor[place] for name, tensor in tensors.items()}


def copied(tensors):
    return {name: tensor.clone() for name, tensor in tensors.items()}


def together(layer, parameters, buffers, images):
    return vmap(lambda *given: functional_call(layer, given[:2], given[2]))(
        parameters, buffers, images
    )


def alone(layer, parameters, buffers, images):
    return torch.stack(
        [
            functional_call(layer, (at(parameters, place), at(buffers, place)), images[place])
            for place in range(NETWORKS)
        ]
    )


def derivatives(output, inputs):
    """First derivatives of a loss, and those of the sum of their squares."""
    first = torch.autograd.grad(output.pow(3).sum(), inputs, create_graph=True)
    return first, torch.autograd.grad(sum(each.square().sum() for each in first), inputs)


@layers
@pytest.mark.parametrize("memory_format", FORMATS, ids=["channels first", "channels last"])
def test_values_statistics_and_derivatives_are_to_the_bit_those_of_networks_alone(
    ours, theirs, size, memory_format
):
    parameters, buffers, images = networks(ours, size)
    laid = images.flatten(0, 1).contiguous(memory_format=memory_format).unflatten(0, (NETWORKS, -1))
    mine, other = copied(buffers), copied(buffers)
    output, expected = (
        together(ours, parameters, mine, laid),
        alone(theirs, parameters, other, laid),
    )
    assert torch.equal(output, expected)
    assert all(torch.equal(mine[name], other[name]) for name in buffers)
    inputs = [*parameters.values(), images]
    first, second = derivatives(output, inputs)
    expected_first, expected_second = derivatives(expected, inputs)
    assert all(torch.equal(*pair) for pair in zip(first, expected_first, strict=True))
    # Another memory layout of gradients may change the order of these sums, which are about 1e9.
    torch.testing.assert_close(second, expected_second, rtol=1e-11, atol=1e-6)


@layers
def test_a_network_keeps_the_memory_layout_that_it_has_alone(ours, theirs, size):
    parameters, buffers, images = networks(ours, size)
    for memory_format in FORMATS:
        laid = images.detach().flatten(0, 1).contiguous(memory_format=memory_format)
        output = together(ours, parameters, copied(buffers), laid.unflatten(0, (NETWORKS, -1)))
        assert all(each.is_contiguous(memory_format=memory_format) for each in output)


class Calls(TorchDispatchMode):
    """What PyTorch is asked to compute."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@layers
def test_each_network_takes_the_one_kernel_that_it_takes_alone(ours, theirs, size):
    parameters, buffers, images = networks(ours, size)
    with Calls() as one:
        functional_call(theirs, (at(parameters, 0), at(buffers, 0)), images[0])
    kernels = [name for name in one.names if "conv" in name or "norm" in name]
    with Calls() as all_of_them:
        together(ours, parameters, copied(buffers), images)
    found = [name for name in all_of_them.names if "conv" in name or "norm" in name]
    assert kernels and found == kernels * NETWORKS
    assert "mul" not in all_of_them.names  # BatchNorm's weight is applied by its kernel


@layers
def test_derivatives_taken_within_vmap_or_forward_are_those_of_networks_alone(ours, theirs, size):
    parameters, buffers, images = networks(ours, size)
    parameters = {name: tensor.detach() for name, tensor in parameters.items()}
    images = images.detach()

    def loss(layer):
        return lambda *given: functional_call(layer, given[:2], given[2]).pow(3).sum()

    found = vmap(grad(loss(ours)))(parameters, copied(buffers), images)
    kept = copied(buffers)
    for place in range(NETWORKS):
        wanted = grad(loss(theirs))(at(parameters, place), at(kept, place), images[place])
        for name in parameters:
            torch.testing.assert_close(found[name][place], wanted[name], rtol=1e-11, atol=1e-11)
    direction = torch.randn_like(images)
    _, found = jvp(
        lambda x: together(ours, parameters, copied(buffers), x), (images,), (direction,)
    )
    _, wanted = jvp(
        lambda x: alone(theirs, parameters, copied(buffers), x), (images,), (direction,)
    )
    torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-11)


@layers
def test_networks_may_share_images(ours, theirs, size):
    parameters, buffers, images = networks(ours, size)
    found = vmap(
        lambda *given: functional_call(ours, given, images[0]),
    )(parameters, copied(buffers))
    same = images[:1].expand_as(images)
    wanted = alone(theirs, parameters, copied(buffers), same)
    torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-11)


def test_networks_may_share_weights():
    ours, theirs, size = LAYERS["convolution"]
    parameters, _, images = networks(ours, size)
    shared = {"weight": parameters["weight"][0]}
    found = vmap(lambda x: functional_call(ours, shared, x))(images)
    wanted = torch.stack([functional_call(theirs, shared, x) for x in images])
    torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-11)


def test_statistics_that_networks_would_share_are_refused_as_pytorch_refuses_them():
    layer = BatchNorm(4)
    with pytest.raises(RuntimeError, match="running_mean or running_var"):
        vmap(layer)(torch.randn(NETWORKS, 8, 4, 3, 3))


@layers
def test_a_vmap_may_stand_in_another(ours, theirs, size):
    parameters, buffers, images = networks(ours, size)
    twice = [
        {name: torch.stack([tensor, 2 * tensor]) for name, tensor in tensors.items()}
        for tensors in (parameters, buffers)
    ]
    batches = torch.stack([images, images.square()])

    def inner(parameters, buffers, images):
        return together(ours, parameters, copied(buffers), images)

    found = vmap(inner)(*twice, batches)
    for place in range(2):
        given = [at(tensors, place) for tensors in twice]
        assert torch.equal(found[place], alone(theirs, *map(copied, given), batches[place]))


@layers
def test_autocast_lowers_networks_as_it_lowers_one(ours, theirs, size):
    parameters, buffers, images = networks(ours, size, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = together(ours, parameters, copied(buffers), images)
        wanted = alone(theirs, parameters, copied(buffers), images)
    assert found.dtype == wanted.dtype
    assert torch.equal(found, wanted)


@layers
def test_no_value_is_looked_at(ours, theirs, size):
    parameters, buffers, images = networks(ours, size)
    tensors = [
        {name: tensor.to("meta") for name, tensor in held.items()} for held in (parameters, buffers)
    ]
    found = together(ours, *tensors, images.to("meta"))
    assert found.is_meta
    assert found.shape == alone(theirs, parameters, buffers, images).shape


def test_batchnorm_alone_is_pytorch_s_whatever_its_settings_become():
    def changed(layer, change):
        torch.manual_seed(0)
        change(layer)
        outputs = [layer(torch.randn(8, 4, 3, 3)) for _ in range(2)]
        return [*outputs, layer.eval()(outputs[0]), *layer.state_dict().values()]

    def cumulative(layer):
        layer.momentum = None

    for change in (lambda layer: None, cumulative, replace_all_batch_norm_modules_):
        for mine, other in zip(
            changed(BatchNorm(4), change), changed(nn.BatchNorm2d(4), change), strict=True
        ):
            assert torch.equal(mine, other)


def test_gradients_of_a_whole_network_in_training_are_those_of_the_network_alone():
    networks = []
    for seed in range(NETWORKS):
        torch.manual_seed(seed)
        networks.append(ResNet18(width=8))
    parameters, buffers = stack_module_state(networks)
    images = torch.randn(NETWORKS, 16, 3, 32, 32)
    logits = together(ResNet18(width=8), parameters, buffers, images)
    gradients = torch.autograd.grad(logits.square().sum(), list(parameters.values()))
    for place, network in enumerate(networks):
        expected = network(images[place])
        expected.square().sum().backward()
        assert torch.equal(logits[place], expected)
        assert all(
            torch.equal(buffers[name][place], each) for name, each in network.named_buffers()
        )
        for (name, parameter), found in zip(network.named_parameters(), gradients, strict=True):
            if name.startswith("fc."):  # batched by vmap
                torch.testing.assert_close(found[place], parameter.grad, rtol=1e-5, atol=1e-5)
            else:
                assert torch.equal(found[place], parameter.grad), name


def test_a_network_can_be_compiled_as_one_graph():
    torch.manual_seed(0)
    network, images = ResNet18(width=4), torch.randn(4, 3, 32, 32)
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    assert torch.equal(compiled(images), network(images))
