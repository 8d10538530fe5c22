"""Gaussian clusters, and the training loop with every intervention written out by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from grokscope.engine.feed import epoch_order
from grokscope.engine.loop import Training
from grokscope.engine.observe import Row
from grokscope.spec import CustomTask, Observation, Optimizer, Phase, Run, Segment
from grokscope.tasks import Split, Task

OPTIMIZERS = {
    "sgd": Optimizer(name="sgd", lr=0.05, momentum=0.9, weight_decay=0.01),
    "adamw": Optimizer(lr=0.01, weight_decay=0.1),
}
CLASSES = 4


def clusters(model: nn.Module | None = None, examples: int = 44, **changes: object) -> Task:
    """Gaussian clusters and a small network, in double precision."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(examples) % CLASSES
    centres = torch.randn(CLASSES, 5, generator=generator, dtype=torch.float64)
    noise = torch.randn(2, examples, 5, generator=generator, dtype=torch.float64)
    train, held_out = (Split(centres[labels] + 0.7 * each, labels) for each in noise)
    torch.manual_seed(1)
    own = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, CLASSES)).double()
    return replace(Task(model or own, train, held_out), **changes)


def of(*phases: Phase, seed: int = 1, train_examples: int = 1024) -> Segment:
    """A segment whose task is made by hand, with looks after steps 1, 2, 5, 10, 19, 28, ..."""
    looks = Observation(per_decade=3, max_gap=9, train_examples=train_examples)
    run = Run(task=CustomTask(function="made:here"), batch_size=8, phases=phases, observation=looks)
    return run.segments(seed)[-1]


def trained(task: Task, own: Segment) -> list[Row]:
    return [row for tick in Training(task, own).run() for row in tick.rows]


def batches(task: Task, until: int, seed: int = 1, size: int = 8) -> list[Tensor]:
    made: list[Tensor] = []
    while len(made) < until:
        made += epoch_order(len(task.train), seed, len(made) // -(-len(task.train) // size)).split(
            size
        )
    return made[:until]


def always(_: int) -> bool:
    return True


def by_hand(
    phase: Phase,
    task: Task,
    loss_of: Callable[[Tensor, Tensor], Tensor] | None = None,
    penalty_of: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor] | None = None,
    weight: float = 0.0,
    radius: float = 0.0,
    cap: float = math.inf,
    on: Callable[[int], bool] = always,
) -> list[float]:
    """Train a `clusters` task with the plain optimiser; the penalty's value at each step."""
    parameters = list(task.model.parameters())
    kind = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[phase.optimizer.name]
    own = {"momentum": 0.9} if phase.optimizer.name == "sgd" else {"betas": (0.9, 0.98)}
    optimizer = kind(
        parameters,
        phase.optimizer.lr,
        weight_decay=phase.optimizer.weight_decay,
        fused=False,
        **own,
    )
    body, head = task.model[:-1], task.model[-1]
    values = []
    for step, rows in enumerate(batches(task, phase.until), 1):
        inputs, labels = task.train.inputs[rows], task.train.labels[rows]

        def backward(step=step, inputs=inputs, labels=labels) -> float:
            optimizer.zero_grad()
            features = body(inputs)
            logits = features @ head.weight.T + head.bias
            loss = (loss_of or functional.cross_entropy)(logits, labels)
            value = torch.zeros(())
            if penalty_of is not None and on(step):
                value = penalty_of(features, logits, labels, head.weight)
                loss = loss + weight * value
            loss.backward()
            return float(value.detach())

        values.append(backward())
        if radius and on(step):
            gradients = [each.grad.clone() for each in parameters]
            length = math.sqrt(sum(float(each.square().sum()) for each in gradients))
            moves = [radius / length * each for each in gradients]
            with torch.no_grad():
                for each, move in zip(parameters, moves, strict=True):
                    each.add_(move)
            backward()
            with torch.no_grad():
                for each, move in zip(parameters, moves, strict=True):
                    each.sub_(move)
        optimizer.step()
        with torch.no_grad():
            norm = float(head.weight.square().sum().sqrt())
            if norm > cap and on(step):
                head.weight.mul_(cap / norm)
    return values


def smoothed(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy with targets 0.7 + 0.3 / C for the label and 0.3 / C for the others."""
    targets = torch.full_like(logits, 0.3 / CLASSES)
    targets[torch.arange(len(labels)), labels] += 0.7
    return -(targets * logits.log_softmax(-1)).sum(-1).mean()


def cooled(logits: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(logits / 3, labels)


def kappa(features: Tensor, logits: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
    """Relative flatness as the textbook has it."""
    probs = logits.softmax(-1)
    mean = (probs @ weight).square().sum(-1)
    return (features.square().sum(-1) * (probs @ weight.square().sum(-1) - mean)).mean()


def published(features: Tensor, logits: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
    return weight.square().sum() * (1 - (logits / 2).softmax(-1).square().sum(-1)).mean()


def gini(features: Tensor, logits: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
    return (1 - logits.softmax(-1).square().sum(-1)).mean()


def ncc(features: Tensor, logits: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
    """Pair by pair of the classes that the batch has."""
    present = sorted(set(labels.tolist()))
    means = {label: features[labels == label].mean(0) for label in present}
    spread = {
        label: (features[labels == label] - means[label]).square().sum(-1).mean()
        for label in present
    }
    ratios = [
        (spread[a] + spread[b]) / (2 * (means[a] - means[b]).square().sum())
        for a in present
        for b in present
        if a != b
    ]
    return sum(ratios) / len(ratios)
