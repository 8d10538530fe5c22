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

from grokscope.engine.observe import Observer
from grokscope.probe import Probe
from grokscope.spec import Phase, Segment
from grokscope.tasks import Split, Task, measure
from made_clusters import clusters, of
from small_runs import TASK, run

SHORT = Phase(until=6, optimizer=SGD)


def made_clusters(_: Segment) -> Task:
    return clusters()


def by_seed(*phases: Phase, **changes: object) -> list[Segment]:
    return [segment(*(phases or (phase(until=12),)), seed=seed, **changes) for seed in (1, 2, 3)]


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
}


@pytest.mark.parametrize(
    ("segments", "make"), MEASURED_AT_ONCE.values(), ids=MEASURED_AT_ONCE.keys()
)
def test_replicas_are_measured_at_once_with_the_values_of_each_alone(monkeypatch, segments, make):
    expected = [rows_of(alone(each, make)[1]) for each in segments]

    def not_asked(*_: object) -> None:
        raise AssertionError("a replica was measured by itself")

    monkeypatch.setattr(Observer, "rows", not_asked)
    monkeypatch.setattr(Probe, "measure", not_asked)
    replicas, ticks = together(segments, make)
    assert replicas.looks.alone == ""
    for place, rows in enumerate(expected):
        assert_same_rows(rows_of(ticks[place]), rows, rtol=1e-6, atol=1e-8)
    splits = {row.split for row in expected[0]}
    assert ("test" in splits) == (make(segments[0]).test is not None)


@pytest.mark.parametrize("at_once", [7, 20, 10_000])
def test_a_forward_pass_of_few_examples_gives_the_same(monkeypatch, at_once):
    segments = by_seed(phase(until=3))
    monkeypatch.setattr("grokscope.tasks.looks.AT_ONCE", at_once)
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


def own_measure(model: nn.Module, split: Split, reference):
    return measure(model, split, reference).including(examples_seen=float(len(split)))


def words(_: Segment) -> Task:
    """One label for each position."""
    torch.manual_seed(0)
    tokens = torch.randint(6, (40, 3))
    split = Split(tokens, (tokens + 1) % 6)
    return Task(nn.Sequential(nn.Embedding(6, 5), nn.Linear(5, 6)).double(), split, split)


def tied(_: Segment) -> Task:
    torch.manual_seed(0)
    return clusters(Tied().double())


def with_own_measure(_: Segment) -> Task:
    return clusters(measure=own_measure)


def of_unlike_sizes(own: Segment) -> Task:
    task = clusters()
    return replace(task, validation=task.validation.first(20 + own.run.seeds.order))


MEASURED_ALONE = {
    "in its own way": with_own_measure,
    "shared or computed": tied,
    "one label to an example": words,
    "differ in size": of_unlike_sizes,
}


@pytest.mark.parametrize(("why", "make"), MEASURED_ALONE.items(), ids=MEASURED_ALONE.keys())
def test_what_cannot_be_measured_at_once_is_measured_alone_and_says_why(why, make):
    segments = [of(SHORT, seed=seed) for seed in (1, 2)]
    replicas, ticks = together(segments, make)
    assert why in replicas.looks.alone
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
    assert replicas.looks.alone == ""
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
    assert None not in replicas.looks.rows([0, 1]).values()
    for place, training in enumerate(replicas.trainings):
        assert all(module.training for module in training.task.model.modules())
        after = replicas.state(place).tensors
        for name, tensor in before[place].items():
            # What training saw since the last look is taken by a look.
            assert torch.equal(after[name], tensor) or name == "running_sums", name
