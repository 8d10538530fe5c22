"""A model is measured in any surroundings, and is afterwards what it was before."""

from __future__ import annotations

import copy
import pickle
import random

import numpy as np
import pytest
import torch
from probe_models import CASES, ResNet, X, Y, mlp, normal
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.utils.data import DataLoader, TensorDataset

from grokscope.probe import Probe, measure_tensors


def everything(model: nn.Module) -> dict[str, object]:
    """What a model is: modes, parameters, buffers, gradients, hooks; tensors with their ids."""
    return {
        "modes": {name: module.training for name, module in model.named_modules()},
        "hooks": {
            name: [len(getattr(module, kind)) for kind in vars(nn.Module()) if "hooks" in kind]
            for name, module in model.named_modules()
        },
        "requires grad": {name: each.requires_grad for name, each in model.named_parameters()},
        "identity": {name: id(each) for name, each in model.state_dict(keep_vars=True).items()},
        "values": {name: each.tolist() for name, each in model.state_dict().items()},
        "gradients": {
            name: (id(each.grad), None if each.grad is None else each.grad.tolist())
            for name, each in model.named_parameters()
        },
    }


@pytest.mark.parametrize("memory", [0, 2**30])
@pytest.mark.parametrize("case", CASES)
def test_a_model_in_the_middle_of_training_is_left_as_it_was_found(case, memory):
    model = case.model()
    case.loss(model).backward()
    parameters = list(model.parameters())
    parameters[0].requires_grad_(False)
    parameters[1].grad = None
    for module in list(model.modules())[1::3]:  # some layers frozen, as in fine-tuning
        module.training = False
    model.register_forward_hook(lambda *_: None)
    model.get_submodule(case.head).register_forward_pre_hook(lambda *_: None)
    before, random_state = everything(model), torch.get_rng_state()
    probe = Probe(model, memory=memory)
    reference = probe.measure([case.batch, case.batch])
    probe.measure([case.batch], reference)
    probe.capture(case.inputs)
    assert everything(model) == before
    assert torch.equal(torch.get_rng_state(), random_state)


def test_a_measurement_that_fails_leaves_no_trace_either():
    model = mlp().double()
    before, random_state = everything(model), torch.get_rng_state()
    for wrong in ((X, Y + 7), (X * torch.nan, Y), (X[:, :2], Y)):
        with pytest.raises((ValueError, RuntimeError)):
            Probe(model).measure([(X, Y), wrong])
    assert everything(model) == before
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.is_grad_enabled()


class Noisy(nn.Module):
    """Draws random numbers in evaluation mode, too."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(nn.functional.dropout(x, 0.5, training=True))


@pytest.mark.parametrize("make", [mlp, Noisy])
def test_shuffling_loaders_and_dropout_do_not_move_the_random_numbers(make):
    model = make().double()
    loader = DataLoader(TensorDataset(X, Y), batch_size=4, shuffle=True)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    expected = torch.randn(3)
    torch.set_rng_state(states[0])
    first = Probe(model).measure(loader)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[1:]
    assert dict(Probe(model).measure(loader)) == dict(first)
    assert torch.equal(torch.randn(3), expected)


class Dropped(nn.Module):
    """A weight of which half is dropped while training."""

    def forward(self, weight: Tensor) -> Tensor:
        return nn.functional.dropout(weight, 0.5, self.training)


@pytest.mark.parametrize("kind", ["spectral norm", "weight dropout"])
def test_a_head_whose_weight_is_computed_is_measured_as_it_evaluates(kind):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double().train()
    if kind == "spectral norm":
        parametrizations.spectral_norm(model[2], n_power_iterations=1)
    else:
        parametrize.register_parametrization(model[2], "weight", Dropped())
    before, random_state = everything(model), torch.get_rng_state()
    measured = Probe(model).measure([(X, Y)])
    assert everything(model) == before
    assert torch.equal(torch.get_rng_state(), random_state)
    model.eval()
    features = model[:2](X)
    expected = means_by_torch(features, model[2](features), Y, model[2].weight)
    assert {name: measured[name] for name in expected} == pytest.approx(expected)


def test_training_with_looks_at_it_is_training_without():
    def train(looks: bool) -> list[Tensor]:
        torch.manual_seed(3)
        model = ResNet()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        images, labels = normal(12, 3, 6, 6).float(), torch.arange(12) % 3
        loader = DataLoader(TensorDataset(images, labels), batch_size=4, shuffle=True)
        for _ in range(2):
            for inputs, answers in loader:
                optimizer.zero_grad()
                noise = nn.functional.dropout(inputs, 0.1)
                nn.functional.cross_entropy(model(noise), answers).backward()
                if looks:
                    Probe(model).measure(loader)
                optimizer.step()
        return list(model.state_dict().values())

    for one, other in zip(train(looks=True), train(looks=False), strict=True):
        assert torch.equal(one, other)


# Surroundings ---------------------------------------------------------------------------------


def means_by_torch(features: Tensor, logits: Tensor, labels: Tensor, weight: Tensor) -> dict:
    phi, z, w = features.double(), logits.double(), weight.detach().double()
    p = z.softmax(-1)
    variance = p @ w.square().sum(-1) - (p @ w).square().sum(-1)
    return {
        "loss": nn.functional.cross_entropy(z, labels).item(),
        "accuracy": (z.argmax(-1) == labels).double().mean().item(),
        "relative_flatness": (phi.square().sum(-1) * variance).mean().item(),
    }


def assert_float64_measures(measured, features, logits, model) -> None:
    """Whatever the forward pass was computed in, the measures of it lose nothing."""
    expected = means_by_torch(features, logits, Y, model[4].weight)
    assert {name: measured[name] for name in expected} == pytest.approx(expected, rel=1e-9)
    outside = dict(measure_tensors(features, logits, Y, model[4]))
    assert dict(measured) == pytest.approx(outside, rel=1e-9, nan_ok=True)


def test_under_autocast_the_forward_pass_is_half_precision_and_the_measures_are_not():
    model = mlp()
    with torch.autocast("cpu", torch.bfloat16):
        measured = Probe(model).measure([(X.float(), Y)])
        features, logits = Probe(model).capture(X.float())
        assert torch.is_autocast_enabled("cpu")
    assert logits.dtype == torch.bfloat16
    assert_float64_measures(measured, features, logits, model)
    plain = Probe(model).measure([(X.float(), Y)])
    assert measured["relative_flatness"] == pytest.approx(plain["relative_flatness"], rel=0.05)
    assert measured["feature_robustness"] == pytest.approx(plain["feature_robustness"], rel=0.05)


def test_half_precision_features_are_those_numbers_and_the_head_is_not_rounded_to_them():
    model = mlp()
    with torch.autocast("cpu", torch.bfloat16):
        features, logits = Probe(model).capture(X.float())
    half = measure_tensors(features, logits, Y, model[4])
    single = measure_tensors(features.float(), logits.float(), Y, model[4])
    assert dict(half) == pytest.approx(dict(single), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_a_model_of_any_dtype_is_measured_in_float64(dtype):
    model = mlp().to(dtype)
    measured = Probe(model).measure([(X.to(dtype), Y)])
    features, logits = Probe(model).capture(X.to(dtype))
    assert features.dtype == logits.dtype == dtype
    assert_float64_measures(measured, features, logits, model)
    assert measured.moments.mean.dtype == torch.float64


@pytest.mark.parametrize("surroundings", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_gradients_may_be_on_off_or_impossible(surroundings):
    model = mlp().double()
    expected = Probe(model).measure([(X, Y)])
    with surroundings():
        probe = Probe(copy.deepcopy(model))
        reference = probe.measure([(X, Y)])
        assert dict(reference) == dict(expected)
    # What was measured inside is of use outside.
    assert pickle.loads(pickle.dumps(reference)) == expected
    inside, outside = (Probe(model).measure([(X, -Y + 2)], each) for each in (reference, expected))
    assert inside == outside
    assert not reference.moments.mean.requires_grad


def test_no_graph_is_built():
    model, seen = mlp().double(), []
    model.register_forward_hook(lambda *_: seen.append(torch.is_grad_enabled()))
    Probe(model).measure([(X, Y)])
    assert seen == [False]


def test_inputs_that_need_gradients_get_none():
    inputs = X.clone().requires_grad_()
    measured = Probe(mlp().double()).measure([(inputs, Y)])
    assert inputs.grad is None
    assert not measured.moments.within.requires_grad
