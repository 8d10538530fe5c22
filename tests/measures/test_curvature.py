"""Curvature estimates against full autograd Hessians and the closed form of a linear head."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from cases import HEADS, make_head
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import conv2d, cross_entropy, scaled_dot_product_attention
from torch.nn.utils.parametrizations import spectral_norm

from grokscope.measures.curvature import (
    Estimate,
    estimate_relative_flatness,
    hessian_trace,
    layer_loss,
    top_eigenvalue,
)
from grokscope.measures.flatness import relative_flatness


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def full_hessian(loss_fn, weight: Tensor) -> Tensor:
    """Hessian of a layer viewed as a matrix, ``[out, in, out, in]``."""
    out, width = weight.flatten(1).shape
    hessian = torch.autograd.functional.hessian(loss_fn, weight)
    assert isinstance(hessian, Tensor)
    return hessian.reshape(out, width, out, width)


def kappa_by_definition(loss_fn, weight: Tensor) -> float:
    matrix = weight.flatten(1)
    traces = torch.einsum("sjtj->st", full_hessian(loss_fn, weight))
    return float((matrix @ matrix.mT * traces).sum())


def head_loss(head):
    return lambda weight: cross_entropy(head.features @ weight.mT + head.bias, head.labels)


def convolution():
    """A tiny convolution under a smooth head: its loss and its weight, ``[3, 2, 2, 2]``."""
    generator = seeded(5)
    images = torch.randn(4, 2, 4, 4, generator=generator, dtype=torch.float64)
    readout = torch.randn(3 * 9, 3, generator=generator, dtype=torch.float64)
    weight = torch.randn(3, 2, 2, 2, generator=generator, dtype=torch.float64) / 2

    def loss_fn(weight: Tensor) -> Tensor:
        hidden = torch.tanh(conv2d(images, weight)).flatten(1)
        return cross_entropy(hidden @ readout, torch.tensor([0, 1, 2, 0]))

    return loss_fn, weight


def agrees(estimate: Estimate, truth: float, errors: float = 4.0) -> bool:
    return abs(estimate.value - truth) <= errors * estimate.stderr + 1e-9 * abs(truth) + 1e-12


# Relative flatness --------------------------------------------------------------------------


@pytest.mark.parametrize("head", HEADS)
def test_the_estimate_agrees_with_the_closed_form_of_a_linear_head(head):
    estimate = estimate_relative_flatness(head_loss(head), head.weight, 400, seeded())
    assert agrees(estimate, float(relative_flatness(head.features, head.logits, head.weight)))


def test_the_estimate_for_a_convolution_agrees_with_its_full_hessian():
    loss_fn, weight = convolution()
    truth = kappa_by_definition(loss_fn, weight)
    estimate = estimate_relative_flatness(loss_fn, weight, 1500, seeded(1))
    assert agrees(estimate, truth)
    assert estimate.stderr < 0.25 * abs(truth)


@pytest.mark.parametrize("estimator", [estimate_relative_flatness, hessian_trace])
def test_estimates_are_unbiased_and_their_standard_errors_honest(estimator):
    head = make_head(examples=3, classes=3, width=3, seed=2)
    loss_fn = head_loss(head)
    if estimator is hessian_trace:
        truth = float(torch.einsum("sjsj->", full_hessian(loss_fn, head.weight)))
    else:
        truth = kappa_by_definition(loss_fn, head.weight)
    generator = seeded(3)
    estimates = [estimator(loss_fn, head.weight, 50, generator) for _ in range(80)]
    values = torch.tensor([e.value for e in estimates], dtype=torch.float64)
    errors = torch.tensor([e.stderr for e in estimates], dtype=torch.float64)
    # The mean of 80 estimates is 80 ** 0.5 times as sharp as one.
    assert abs(float(values.mean()) - truth) < 4 * float(values.std()) / math.sqrt(80)
    # z-scores of spread 1: the spread of 80 of them is known to about 8 %.
    assert 0.7 < float(((values - truth) / errors).std()) < 1.35


def test_the_same_generator_gives_the_same_estimate_and_leaves_the_global_one_alone():
    head = make_head()
    state = torch.get_rng_state()
    first = estimate_relative_flatness(head_loss(head), head.weight, 10, seeded(9))
    assert first == estimate_relative_flatness(head_loss(head), head.weight, 10, seeded(9))
    assert torch.equal(state, torch.get_rng_state())


def test_a_loss_linear_in_the_weight_is_flat():
    weight = torch.ones(2, 3)
    for loss_fn in (lambda w: w.sum(), lambda w: (2 * w * weight).mean()):
        assert estimate_relative_flatness(loss_fn, weight, 5).value == 0.0
        assert top_eigenvalue(loss_fn, weight).value == 0.0


def test_estimates_work_inside_no_grad():
    head = make_head()
    with torch.no_grad():
        inside = estimate_relative_flatness(head_loss(head), head.weight, 5, seeded())
    assert inside == estimate_relative_flatness(head_loss(head), head.weight, 5, seeded())


# Trace and top eigenvalue ---------------------------------------------------------------------


def test_the_trace_of_a_diagonal_hessian_is_exact_with_rademacher_vectors():
    scales = torch.tensor([[3.0, -1.0], [0.5, 8.0]], dtype=torch.float64)
    estimate = hessian_trace(lambda w: (scales * w**2).sum() / 2, torch.ones_like(scales), 5)
    assert estimate.value == pytest.approx(10.5, rel=1e-14)
    assert estimate.stderr == pytest.approx(0, abs=1e-14)


@pytest.mark.parametrize("case", [*(param.values[0] for param in HEADS), None])
def test_the_top_eigenvalue_is_that_of_the_full_hessian(case):
    loss_fn, weight = convolution() if case is None else (head_loss(case), case.weight)
    size = weight.numel()
    truth = float(torch.linalg.eigvalsh(full_hessian(loss_fn, weight).reshape(size, size))[-1])
    found = top_eigenvalue(loss_fn, weight, tolerance=1e-6, generator=seeded())
    assert found.value == pytest.approx(truth, rel=1e-8, abs=1e-12)
    assert found.residual <= 1e-5 * max(abs(truth), 1e-12) + 1e-12


def test_the_top_eigenvalue_is_the_largest_not_the_one_of_largest_magnitude():
    scales = torch.tensor([-100.0, -5.0, 2.0], dtype=torch.float64)
    found = top_eigenvalue(lambda w: (scales * w**2).sum() / 2, torch.ones(3).double())
    assert found.value == pytest.approx(2.0, rel=1e-8)


def test_a_search_cut_short_says_so_by_its_residual():
    scales = torch.linspace(1, 2, 300, dtype=torch.float64)
    loss_fn, weight = lambda w: (scales * w**2).sum() / 2, torch.ones(300).double()
    short = top_eigenvalue(loss_fn, weight, max_iterations=3, generator=seeded())
    full = top_eigenvalue(loss_fn, weight, tolerance=1e-8, max_iterations=200, generator=seeded())
    assert short.iterations == 3
    assert short.residual > 1e-2
    assert short.value < 1.99
    assert full.value == pytest.approx(2.0, rel=1e-6)
    # The promise of the residual: a true eigenvalue lies within it.
    assert float((scales - short.value).abs().min()) <= short.residual


# A layer of a model ------------------------------------------------------------------------------


class Net(nn.Module):
    """Convolution, BatchNorm, dropout, head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3)
        self.norm = nn.BatchNorm2d(3)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(12, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.drop(torch.tanh(self.norm(self.conv(images))).flatten(1)))


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    net = Net().double()
    net(torch.randn(8, 1, 4, 4, dtype=torch.float64))  # running statistics that are not 0 and 1
    return net


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    images = torch.randn(5, 1, 4, 4, generator=seeded(4), dtype=torch.float64)
    return images, torch.tensor([0, 1, 2, 3, 0])


def test_the_head_of_a_model_has_the_flatness_of_the_closed_form(net, batch):
    loss_fn, weight = layer_loss(net, "head", cross_entropy, batch)
    net.eval()
    features = torch.tanh(net.norm(net.conv(batch[0]))).flatten(1)
    truth = float(relative_flatness(features, net(batch[0]), net.head.weight).detach())
    torch.testing.assert_close(loss_fn(weight), cross_entropy(net(batch[0]), batch[1]))
    assert agrees(estimate_relative_flatness(loss_fn, weight, 300, seeded()), truth)
    assert kappa_by_definition(loss_fn, weight) == pytest.approx(truth, rel=1e-9)


def test_a_convolution_inside_a_model_agrees_with_its_full_hessian(net, batch):
    loss_fn, weight = layer_loss(net, "conv", cross_entropy, batch)
    truth = kappa_by_definition(loss_fn, weight)
    assert agrees(estimate_relative_flatness(loss_fn, weight, 600, seeded()), truth)


@pytest.mark.parametrize("evaluate", [True, False])
def test_measuring_leaves_the_model_as_it_was(net, batch, evaluate):
    net.norm.eval()  # a mixture of modes, as in fine-tuning with frozen statistics
    net.head.weight.grad = torch.full_like(net.head.weight, 7.0)
    net.conv.bias.requires_grad_(False)
    gradients = [p.grad is None for p in net.parameters()]
    before = copy.deepcopy(net)
    parameters = {name: id(value) for name, value in net.named_parameters()}
    loss_fn, weight = layer_loss(net, "conv", cross_entropy, batch, evaluate=evaluate)
    estimate_relative_flatness(loss_fn, weight, 3, seeded())
    weight.zero_()
    assert parameters == {name: id(value) for name, value in net.named_parameters()}
    for old, new in zip(before.modules(), net.modules(), strict=True):
        assert old.training == new.training
    for old, new in zip(before.state_dict().values(), net.state_dict().values(), strict=True):
        assert torch.equal(old, new)
    for old, new in zip(before.parameters(), net.parameters(), strict=True):
        assert old.requires_grad == new.requires_grad
    assert gradients == [p.grad is None for p in net.parameters()]
    assert torch.equal(net.head.weight.grad, torch.full_like(net.head.weight, 7.0))


def test_batch_statistics_in_training_mode_stay_out_of_the_model(net, batch):
    net.train()
    net.drop.p = 0.0
    running = net.norm.running_mean.clone()
    loss_fn, weight = layer_loss(net, "head", cross_entropy, batch, evaluate=False)
    value = loss_fn(weight)
    assert torch.equal(net.norm.running_mean, running)
    torch.testing.assert_close(value, cross_entropy(net(batch[0]), batch[1]))


def test_modes_are_set_back_when_the_model_fails(net):
    loss_fn, weight = layer_loss(net, "head", cross_entropy, (torch.ones(2, 9, 4, 4), None))
    with pytest.raises(RuntimeError):
        loss_fn(weight)
    assert all(module.training for module in net.modules())


class Attention(nn.Module):
    """One attention layer over keyword inputs, its readout tied to its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.query = nn.Linear(4, 4, bias=False)
        self.readout = nn.Linear(4, 5, bias=False)
        self.readout.weight = self.embed.weight

    def forward(self, tokens: Tensor, scale: float) -> Tensor:
        hidden = self.embed(tokens)
        hidden = scaled_dot_product_attention(self.query(hidden), hidden, hidden)
        return scale * self.readout(hidden[:, -1])


def test_attention_has_second_derivatives_and_tied_weights_vary_in_one_place():
    torch.manual_seed(1)
    model = Attention().double()
    inputs = {"tokens": torch.tensor([[0, 1, 2], [3, 4, 0]]), "scale": 1.5}
    targets = torch.tensor([1, 2])
    loss_fn, weight = layer_loss(model, "query", cross_entropy, (inputs, targets))
    truth = kappa_by_definition(loss_fn, weight)
    assert agrees(estimate_relative_flatness(loss_fn, weight, 800, seeded()), truth)

    loss_fn, weight = layer_loss(model, "readout", cross_entropy, (inputs, targets))
    hidden = model.embed(inputs["tokens"])
    features = scaled_dot_product_attention(model.query(hidden), hidden, hidden)[:, -1] * 1.5
    closed = relative_flatness(features, features @ weight.mT, weight)
    assert kappa_by_definition(loss_fn, weight) == pytest.approx(float(closed.detach()), rel=1e-9)


def test_inputs_may_be_several_tensors(net):
    bilinear = nn.Bilinear(2, 3, 4)
    inputs = (torch.ones(5, 2), torch.ones(5, 3))
    loss_fn, weight = layer_loss(bilinear, "", cross_entropy, (inputs, torch.zeros(5).long()))
    expected = cross_entropy(bilinear(*inputs), torch.zeros(5).long())
    torch.testing.assert_close(loss_fn(weight), expected)


# Errors ----------------------------------------------------------------------------------------


PARAMETER = nn.Parameter(torch.ones(2))


def square(weight: Tensor) -> Tensor:
    return weight.square().sum()


@pytest.mark.parametrize("estimator", [estimate_relative_flatness, hessian_trace, top_eigenvalue])
@pytest.mark.parametrize(
    ("loss_fn", "weight", "message"),
    [
        (square, torch.ones(2, 3).bfloat16(), "weight must be float32 or float64"),
        (square, torch.ones(2, 3).long(), "weight must be float32 or float64"),
        (square, torch.ones(0, 3), "non-empty axes"),
        (square, torch.full((2, 3), float("nan")), "weight holds 6 NaN"),
        (lambda w: w.sum(dim=0), torch.ones(2, 3), "must return a scalar tensor"),
        (lambda w: 1.0, torch.ones(2, 3), "must return a scalar tensor, got float"),
        (lambda w: w.sum() / 0, torch.ones(2, 3), r"loss_fn\(weight\) holds 0 NaN and 1 infinite"),
        (lambda w: torch.ones(()), torch.ones(2, 3), "must depend on the weight"),
        (lambda w: square(PARAMETER), torch.ones(2, 3), "must depend on the weight"),
    ],
)
def test_wrong_losses_and_weights_are_refused(estimator, loss_fn, weight, message):
    with pytest.raises(ValueError, match=message):
        estimator(loss_fn, weight)


def test_wrong_settings_are_refused():
    weight = torch.ones(2, 3)
    for estimator in (estimate_relative_flatness, hessian_trace):
        with pytest.raises(ValueError, match="samples must be at least 2"):
            estimator(square, weight, samples=1)
        for wrong in (2.5, 3.0):
            with pytest.raises(ValueError, match=f"samples must be a whole number, got {wrong}"):
                estimator(square, weight, samples=wrong)
    with pytest.raises(ValueError, match=r"pass a matrix \[out, in\]"):
        estimate_relative_flatness(square, torch.ones(3))
    with pytest.raises(ValueError, match="tolerance must be positive"):
        top_eigenvalue(square, weight, tolerance=0.0)
    with pytest.raises(ValueError, match="max_iterations must be positive"):
        top_eigenvalue(square, weight, max_iterations=0)


def test_an_operation_without_second_derivative_is_named():
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, weight):
            ctx.save_for_backward(weight)
            return weight**2

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, grad):
            return 2 * grad * ctx.saved_tensors[0]

    with pytest.raises(RuntimeError, match="without a second derivative"):
        estimate_relative_flatness(lambda w: Once.apply(w).square().sum(), torch.ones(2, 3))


def test_fused_attention_without_second_derivative_is_named():
    states = torch.randn(1, 1, 3, 4, generator=seeded())

    def loss_fn(weight: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return scaled_dot_product_attention(states @ weight, states, states).square().sum()

    with pytest.raises(RuntimeError, match="without a second derivative.*flash"):
        estimate_relative_flatness(loss_fn, torch.eye(4))


def test_wrong_layers_and_batches_are_refused(net, batch):
    with pytest.raises(ValueError, match="'drop' is not a submodule with a weight.*'conv', 'norm'"):
        layer_loss(net, "drop", cross_entropy, batch)
    with pytest.raises(ValueError, match="'fc' is not a submodule"):
        layer_loss(net, "fc", cross_entropy, batch)
    with pytest.raises(ValueError, match="batch must be a pair"):
        layer_loss(net, "head", cross_entropy, batch[0])


def test_a_weight_that_is_computed_is_refused_and_left_alone():
    model = nn.Sequential(nn.Linear(4, 5), spectral_norm(nn.Linear(5, 3), n_power_iterations=1))
    before = {name: each.clone() for name, each in model.state_dict().items()}
    with pytest.raises(
        ValueError, match="'1' is not a submodule with a weight; this model has '0'"
    ):
        layer_loss(model, "1", nn.functional.mse_loss, (torch.ones(2, 4), torch.ones(2, 3)))
    for name, each in model.state_dict().items():
        assert torch.equal(each, before[name]), name
