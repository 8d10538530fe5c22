"""Runs trained together and alone, and how they are compared."""

from __future__ import annotations

import torch

from grokscope.engine.loop import Training
from grokscope.engine.replicas import Replicas
from grokscope.interventions import Penalty
from grokscope.spec import Images, Optimizer, Phase, Segment
from grokscope.tasks import Task, build_task
from small_runs import run

SGD = Optimizer(name="sgd", lr=0.05, momentum=0.9)
ADAMW = Optimizer(lr=1e-2, weight_decay=0.5, warmup_steps=3)
FLAT = Penalty(measure="relative_flatness", weight=0.01)
PUBLISHED = Penalty(
    measure="relative_flatness_bound", weight=-0.02, temperature=2.0, normalize_features=True
)
DIGITS = Images(source="digits", train_examples=60, validation_examples=40, stem="cifar", width=4)


def double(segment: Segment) -> Task:
    """The segment's task in float64, where rounding is far below what a mistake would show."""
    task = build_task(segment.run.task, segment.run.seeds)
    task.model.double()
    return task


def together(segments: list[Segment], make=double, states=None):
    tasks = [make(each) for each in segments]
    replicas = Replicas(tasks, segments, states or [None] * len(segments))
    ticks: list[list] = [[] for _ in segments]
    for told in replicas.run():
        for place, tick in told.items():
            ticks[place].append(tick)
    return replicas, ticks


def alone(segment: Segment, make=double, state=None):
    training = Training(make(segment), segment, state)
    return training, list(training.run())


def rows_of(ticks) -> list:
    return [row for tick in ticks for row in tick.rows]


def assert_same_rows(own, expected, rtol: float, atol: float) -> None:
    assert [row[:4] for row in own] == [row[:4] for row in expected]
    torch.testing.assert_close(
        torch.tensor([row.value for row in own], dtype=torch.float64),
        torch.tensor([row.value for row in expected], dtype=torch.float64),
        rtol=rtol,
        atol=atol,
        equal_nan=True,
    )


def assert_same_states(own, expected, rtol: float = 1e-7, atol: float = 1e-9) -> None:
    assert (own.step, own.optimizer) == (expected.step, expected.optimizer)
    assert own.tensors.keys() == expected.tensors.keys()
    for name, tensor in expected.tensors.items():
        torch.testing.assert_close(own.tensors[name], tensor, rtol=rtol, atol=atol, msg=name)


def phase(until: int = 120, **changes: object) -> Phase:
    return Phase(until=until, **({"optimizer": ADAMW} | changes))


def segment(*phases: Phase, seed: int = 1, **changes: object) -> Segment:
    return run(30, phases=phases, **changes).segments(seed)[-1]
