"""Each intervention does what its name says: digits, a small network, the same run without it.

What an intervention acts on is computed here once more, by numpy on the whole training set.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from grokscope.engine.loop import Training
from grokscope.engine.update import Update
from grokscope.interventions import (
    FrobeniusCap,
    LogitScaleCap,
    Penalty,
    SharpnessAware,
    SpectralCap,
)
from grokscope.spec import CustomTask, Observation, Optimizer, Phase, Run
from grokscope.tasks import Split, Task
from grokscope.tasks.image_data import read_images
from single_steps import make_step

SGD = Optimizer(name="sgd", lr=0.1, momentum=0.9)
STEPS = 300


@cache
def splits() -> tuple[Split, Split]:
    pytest.importorskip("sklearn")
    train, test = (read_images("digits", split) for split in ("train", "test"))
    return (
        Split(train.images[:600].float() / 255, train.labels[:600]),
        Split(test.images.float() / 255, test.labels),
    )


def digits() -> Task:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    return Task(model, *splits())


def trained(**interventions: object) -> nn.Module:
    phase = Phase(until=STEPS, optimizer=SGD, **interventions)
    looks = Observation(per_decade=1, max_gap=STEPS, train_examples=100, validation_examples=100)
    run = Run(
        task=CustomTask(function="made:here"), batch_size=64, phases=(phase,), observation=looks
    )
    training = Training(digits(), run.segments(1)[0])
    assert not any(tick.diverged for tick in training.run())
    return training.task.model


def values(model: nn.Module) -> dict[str, float]:
    """What the interventions act on, as the textbooks define it."""
    train, _ = splits()
    with torch.no_grad():
        features = model[:-1](train.inputs).double().numpy()
        logits = model(train.inputs).double().numpy()
    weight, labels = model[-1].weight.detach().double().numpy(), train.labels.numpy()

    def softmax(z: np.ndarray) -> np.ndarray:
        powers = np.exp(z - z.max(1, keepdims=True))
        return powers / powers.sum(1, keepdims=True)

    probs = softmax(logits)
    rows = (weight**2).sum(1)
    within = probs @ rows - ((probs @ weight) ** 2).sum(1)
    means = [features[labels == label].mean(0) for label in range(10)]
    spread = [((features[labels == c] - means[c]) ** 2).sum(1).mean() for c in range(10)]
    ratios = [
        (spread[a] + spread[b]) / (2 * ((means[a] - means[b]) ** 2).sum())
        for a in range(10)
        for b in range(10)
        if a != b
    ]
    return {
        "accuracy": float((logits.argmax(1) == labels).mean()),
        "kappa": float(((features**2).sum(1) * within).mean()),
        "published": float(rows.sum() * (1 - (softmax(logits / 2) ** 2).sum(1)).mean()),
        "ncc": float(np.mean(ratios)),
        "logit_scale": float(logits.std(1).mean()),
        "gini": float((1 - (probs**2).sum(1)).mean()),
        "entropy": float(-(probs * np.log(np.maximum(probs, 1e-300))).sum(1).mean()),
        "frobenius": float(np.sqrt(rows.sum())),
        "spectral": float(np.linalg.svd(weight)[1][0]),
        "sharpness": sharpness(model),
    }


def sharpness(model: nn.Module, radius: float = 0.5) -> float:
    """By how much the training loss rises at a distance along its gradient."""
    train, _ = splits()
    parameters = list(model.parameters())
    loss = functional.cross_entropy(model(train.inputs), train.labels)
    gradients = torch.autograd.grad(loss, parameters)
    length = math.sqrt(sum(float(each.square().sum()) for each in gradients))
    moved = {
        name: each.detach() + radius / length * gradient
        for (name, each), gradient in zip(model.named_parameters(), gradients, strict=True)
    }
    there = torch.func.functional_call(model, moved, train.inputs)
    return float((functional.cross_entropy(there, train.labels) - loss).detach())


@pytest.fixture(scope="module")
def plain() -> dict[str, float]:
    return values(trained())


def penalty(measure: str, weight: float, **settings: object) -> dict[str, object]:
    return {"penalties": (Penalty(measure=measure, weight=weight, **settings),)}


# What is switched on; on what it acts; by which factor at least.
EFFECTS = {
    "kappa down": (penalty("relative_flatness", 1e-2), "kappa", 0.4),
    "kappa up": (penalty("relative_flatness", -3e-4), "kappa", 1.4),
    "the bound down": (penalty("relative_flatness_bound", 1e-3), "kappa", 0.7),
    "the published value up": (
        penalty("relative_flatness_bound", -1e-2, temperature=2.0, normalize_features=True)
        | {"constraints": (FrobeniusCap(cap=9.0),)},
        "published",
        2.0,
    ),
    "ncc down": (penalty("ncc", 1.0), "ncc", 0.7),
    "ncc up": (penalty("ncc", -0.1), "ncc", 1.07),
    "ncc down, with memory": (penalty("ncc", 0.1, memory=0.9), "ncc", 0.9),
    "ncc up, with memory": (penalty("ncc", -0.07, memory=0.5), "ncc", 1.07),
    "gini down": (penalty("gini", 1.0), "gini", 0.6),
    "gini up": (penalty("gini", -1.0), "gini", 5.0),
    "entropy down": (penalty("entropy", 0.5), "entropy", 0.6),
    "entropy up": (penalty("entropy", -0.5), "entropy", 5.0),
    "logit scale down": (penalty("logit_scale", 0.1), "logit_scale", 0.5),
    "logit scale up": (penalty("logit_scale", -0.02), "logit_scale", 1.2),
    "label smoothing": ({"label_smoothing": 0.2}, "logit_scale", 0.4),
    "a high temperature": ({"temperature": 3.0}, "logit_scale", 1.5),
    "SAM": ({"sharpness_aware": SharpnessAware(radius=0.2)}, "sharpness", 0.65),
    "a cap on the scale": ({"constraints": (LogitScaleCap(cap=2.0),)}, "logit_scale", 0.4),
    "a cap on the norm": ({"constraints": (FrobeniusCap(cap=2.0),)}, "frobenius", 0.3),
    "a spectral cap": ({"constraints": (SpectralCap(cap=1.0),)}, "spectral", 0.3),
}


@pytest.mark.parametrize(("interventions", "acts_on", "factor"), EFFECTS.values(), ids=EFFECTS)
def test_an_intervention_does_what_its_name_says(plain, interventions, acts_on, factor):
    assert plain["accuracy"] > 0.99
    changed = values(trained(**interventions))
    assert changed["accuracy"] > 0.9  # not by destroying the network
    if factor < 1:
        assert changed[acts_on] < factor * plain[acts_on]
    else:
        assert changed[acts_on] > factor * plain[acts_on]


CAPS = {
    "frobenius": (FrobeniusCap(cap=2.0), lambda weight, logits: np.sqrt((weight**2).sum())),
    "spectral": (SpectralCap(cap=1.0), lambda weight, logits: np.linalg.svd(weight)[1][0]),
    "logit scale": (LogitScaleCap(cap=1.0), lambda weight, logits: logits.std(1).mean()),
}


@pytest.mark.parametrize(("cap", "size"), CAPS.values(), ids=CAPS)
def test_a_cap_holds_after_every_step(cap, size):
    def sizes(**interventions: object) -> list[float]:
        task = digits()
        update = Update(task, Phase(until=60, optimizer=SGD, **interventions))
        body, head, found = task.model[:-1], task.model[-1], []
        for step in range(1, 61):
            batch = torch.arange(64 * step, 64 * step + 64) % len(task.train)
            with torch.no_grad():
                features = body(task.train.inputs[batch])  # what the head is about to learn from
            make_step(update, step, batch)
            logits = head(features).detach().numpy()
            found.append(float(size(head.weight.detach().double().numpy(), logits)))
        return found

    held, free = sizes(constraints=(cap,)), sizes()
    assert max(held) <= cap.cap * (1 + 1e-5)
    assert sum(each > 0.999 * cap.cap for each in held) > 20  # the cap was in the way
    assert max(free) > 1.5 * cap.cap


def test_two_caps_hold_together():
    caps = (FrobeniusCap(cap=2.0), SpectralCap(cap=0.8))
    model = trained(constraints=caps)
    reached = values(model)
    assert reached["frobenius"] <= 2.0 * (1 + 1e-5)
    assert reached["spectral"] <= 0.8 * (1 + 1e-5)
