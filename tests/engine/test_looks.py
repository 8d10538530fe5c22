"""Replicas measured at once, against each measured alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from together import (
    DIGITS,
    SGD,
    alone,
    assert_same_rows,
    double,
    phase,
    rows_of,
    segment,
    together,
)
from torch import Tensor, nn

from grokscope.measures import relative_flatness
from grokscope.probe import Probe
from grokscope.spec import Phase, Segment
from grokscope.tasks import Look, Split, Task
from made_clusters import clusters, of
from small_runs import TASK, run

SHORT = Phase(until=6, optimizer=SGD)


def made_clusters(_: Segment) -> Task:
    return clusters()


def by_seed(*phases: Phase, **changes: object) -> list[Segment]:
    return [segment(*(phases or (phase(until=12),)), seed=seed, **changes) for seed in (1, 2, 3)]


def words(_: Segment) -> Task:
    """One label for each position."""
    torch.manual_seed(0)
    tokens = torch.randint(6, (40, 3))
    split = Split(tokens, (tokens + 1) % 6)
    return Task(nn.Sequential(nn.Embedding(6, 5), nn.Linear(5, 6)).double(), split, split)


class Summed(nn.Module):
    """Takes a mapping of two tensors, and one more, by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(5, 8), nn.Linear(8, 4)

    def forward(self, pair: dict[str, Tensor], shift: Tensor) -> Tensor:
        return self.head(self.body(pair["left"] + pair["right"][0] + shift).tanh())


def trees(_: Segment) -> Task:
    """`clusters`, whose inputs are the sum of three parts in a tree."""
    task = clusters()

    def in_parts(split: Split) -> Split:
        left = split.inputs.sin()
        inputs = {"pair": {"left": left, "right": (split.inputs - left - 1,)}}
        return Split(inputs | {"shift": torch.ones_like(left)}, split.labels)

    torch.manual_seed(1)
    return Task(Summed().double(), in_parts(task.train), in_parts(task.validation))


def longest(features: Tensor, logits: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
    return features.norm(dim=-1).mean() + labels.double().mean()


EXTRA = Look(extra={"longest": longest, "constant": lambda *_: torch.tensor(2.5)})


def with_extra(_: Segment) -> Task:
    return clusters(look=EXTRA)


MEASURED_AT_ONCE = {
    "two answers": (by_seed(), double),
    "one answer": (by_seed(task=TASK.model_copy(update={"answers": 1})), double),
    "images, and a test set": (
        [
            run(
                6,
                phases=(SHORT,),
                task=DIGITS.model_copy(update={"validation_from": "train"}),
            ).segments(seed)[-1]
            for seed in (1, 2)
        ],
        double,
    ),
    "a task of somebody": ([of(SHORT, seed=seed) for seed in (1, 2)], made_clusters),
    "a label for each position": ([of(SHORT, seed=seed) for seed in (1, 2)], words),
    "a tuple and a mapping of inputs": ([of(SHORT, seed=seed) for seed in (1, 2)], trees),
    "measures of somebody": ([of(SHORT, seed=seed) for seed in (1, 2)], with_extra),
}


@pytest.mark.parametrize(
    ("segments", "make"), MEASURED_AT_ONCE.values(), ids=MEASURED_AT_ONCE.keys()
)
def test_replicas_are_measured_at_once_with_the_values_of_each_alone(monkeypatch, segments, make):
    expected = [rows_of(alone(each, make)[1]) for each in segments]

    def not_asked(*_: object) -> None:
        raise AssertionError("a replica was measured by itself")

    monkeypatch.setattr(Probe, "measure", not_asked)
    replicas, ticks = together(segments, make)
    assert replicas.observer.alone == ""
    for place, rows in enumerate(expected):
        assert_same_rows(rows_of(ticks[place]), rows, rtol=1e-6, atol=1e-8)
    splits = {row.split for row in expected[0]}
    assert ("test" in splits) == (make(segments[0]).test is not None)


@pytest.mark.parametrize("at_once", [7, 20, 10_000])
def test_a_forward_pass_of_few_examples_gives_the_same(monkeypatch, at_once):
    segments = by_seed(phase(until=3))
    monkeypatch.setattr("grokscope.probe.look.TOGETHER", at_once)
    _, ticks = together(segments)
    for place, each in enumerate(segments):
        assert_same_rows(rows_of(ticks[place]), rows_of(alone(each)[1]), rtol=1e-6, atol=1e-8)


class Tied(nn.Module):
    """A head that shares its weight with another layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(5, 4, bias=False), nn.Linear(5, 4)
        self.head.weight = self.first.weight

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(inputs + self.first(inputs).sum(-1, keepdim=True).tanh())


def function_of_a_split(model: nn.Module, split: Split, reference):
    return Look()(model, split, reference).including(examples_seen=float(len(split)))


def tied(_: Segment) -> Task:
    torch.manual_seed(0)
    return clusters(Tied().double())


def with_function(_: Segment) -> Task:
    with pytest.warns(DeprecationWarning, match="called look="):
        return clusters(measure=function_of_a_split)


def with_functions_of_its_own(own: Segment) -> Task:
    """Each holds what only its own run should see."""
    seed = own.run.seeds.order
    return clusters(look=Look(extra={"mine": lambda features, *_: features.mean() + seed}))


def with_a_look_at_values(_: Segment) -> Task:
    return clusters(look=LOOKING)


def looking(features: Tensor, logits: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
    return features.mean() * len(labels.unique())


LOOKING = Look(extra={"looking": looking})


def ignoring(_: Segment) -> Task:
    task = clusters()
    return replace(task, validation=ignored(task.validation), train=ignored(task.train))


def ignored(split: Split) -> Split:
    """With every fifth label left out."""
    labels = torch.where(torch.arange(len(split)) % 5 == 0, -100, split.labels)
    return Split(split.inputs, labels)


def of_unlike_sizes(own: Segment) -> Task:
    task = clusters()
    return replace(task, validation=task.validation.first(20 + own.run.seeds.order))


MEASURED_ALONE = {
    "in its own way": with_function,
    "other heads, rows or functions": with_functions_of_its_own,
    "vmap": with_a_look_at_values,
    "labels of -100": ignoring,
    "shared or computed": tied,
    "differ in size": of_unlike_sizes,
}


@pytest.mark.parametrize(("why", "make"), MEASURED_ALONE.items(), ids=MEASURED_ALONE.keys())
def test_what_cannot_be_measured_at_once_is_measured_alone_and_says_why(why, make):
    segments = [of(SHORT, seed=seed) for seed in (1, 2)]
    replicas, ticks = together(segments, make)
    assert why in replicas.observer.alone
    for place, each in enumerate(segments):
        rows = rows_of(alone(each, make)[1])
        assert_same_rows(rows_of(ticks[place]), rows, rtol=1e-6, atol=1e-8)


def test_a_replica_that_is_not_finite_at_its_first_look_ends_there_alone():
    def made(each: Segment) -> Task:
        task = clusters()
        if each.run.seeds.order == 2:
            with torch.no_grad():
                next(task.model.parameters()).fill_(float("nan"))
        return task

    segments = [of(SHORT, seed=seed) for seed in (1, 2, 3)]
    replicas, ticks = together(segments, made)
    assert replicas.observer.alone == ""
    assert [(tick.step, tick.diverged) for tick in ticks[1]] == [(0, True)]
    for place in (0, 2):
        rows = rows_of(alone(segments[place], made)[1])
        assert_same_rows(rows_of(ticks[place]), rows, rtol=1e-6, atol=1e-8)


def test_looking_leaves_models_in_training_and_their_statistics_alone():
    def made(_: Segment) -> Task:
        torch.manual_seed(0)
        return clusters(nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 4)).double())

    segments = [of(SHORT, seed=seed) for seed in (1, 2)]
    replicas, _ = together(segments, made)
    before = [replicas.state(place).tensors for place in (0, 1)]
    assert all(
        isinstance(rows, list) for rows in replicas.observer.rows(0, 0.0, places=[0, 1]).values()
    )
    for place, training in enumerate(replicas.trainings):
        assert all(module.training for module in training.task.model.modules())
        after = replicas.state(place).tensors
        for name, tensor in before[place].items():
            assert torch.equal(after[name], tensor), name


def test_measures_of_somebody_are_those_of_the_rows_that_count():
    """Alone and at once, on the probe's own rows, by hand."""
    task = with_extra(of(SHORT))
    measured = task.look(task.model, task.train)
    with torch.no_grad():
        features = task.model[:-1](task.train.inputs)
    expected = features.norm(dim=-1).mean() + task.train.labels.double().mean()
    assert measured["longest"] == pytest.approx(float(expected), rel=1e-12)
    assert measured["constant"] == 2.5
    logits, weight = task.model[-1](features), task.model[-1].weight
    kappa = float(relative_flatness(features, logits, weight).detach())
    assert measured["relative_flatness"] == pytest.approx(kappa, rel=1e-12)
    rows = rows_of(alone(of(SHORT), with_extra)[1])
    assert {row.split for row in rows if row.measure == "longest"} == {"train", "validation"}


def test_labels_of_minus_100_do_not_count():
    task, part = ignoring(of(SHORT)), torch.arange(44) % 5 != 0
    measured = task.look(task.model, task.train)
    expected = task.look(task.model, Split(task.train.inputs[part], task.train.labels[part]))
    assert measured.examples == int(part.sum())
    assert dict(measured) == pytest.approx(dict(expected), rel=1e-12)


def test_inputs_in_a_tree_are_those_of_one_tensor():
    """The same network, told in one tensor: the same rows."""

    def whole(each: Segment) -> Task:
        task = trees(each)
        body, head = task.model.body, task.model.head
        plain = clusters()
        return Task(nn.Sequential(body, nn.Tanh(), head), plain.train, plain.validation)

    own, expected = alone(of(SHORT), trees)[1], alone(of(SHORT), whole)[1]
    assert_same_rows(rows_of(own), rows_of(expected), rtol=1e-9, atol=1e-11)
