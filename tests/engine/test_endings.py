"""What is left of a run that a penalty found not finite, against the run just before that step."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from grokscope.engine.loop import Tick, Training
from grokscope.engine.observe import Row
from grokscope.interventions import LogitScaleCap, Penalty, SharpnessAware
from grokscope.spec import Phase
from grokscope.tasks import Task
from made_clusters import OPTIMIZERS, clusters, of


@pytest.mark.parametrize(
    "penalty",
    [
        Penalty(measure="gini", weight=0.1, stop=5),
        Penalty(measure="ncc", weight=0.1, memory=0.9, stop=8),
    ],
)
def test_a_run_that_has_ended_stays_as_it_was(penalty):
    """NaN in step 5, the first penalty's last one; only the look after step 9 tells the end."""
    calls: list[int] = []

    def augment(inputs: Tensor, _: torch.Generator) -> Tensor:
        calls.append(1)
        return inputs * math.nan if len(calls) == 5 else inputs

    caps = (LogitScaleCap(cap=0.5),)
    phase = Phase(until=30, optimizer=OPTIMIZERS["adamw"], penalties=(penalty,), constraints=caps)
    made = Training(clusters(augment=augment), of(phase))
    assert list(made.run())[-1].step == 5
    assert len(calls) == 9
    calls.clear()
    before = Training(clusters(augment=augment), of(phase))
    before.advance(4)
    found, expected = made.state().tensors, before.state().tensors
    for name, tensor in expected.items():
        if name.startswith(("model/", "optimizer/", "memory/")):
            assert torch.equal(found[name], tensor), name
    assert any(name.startswith("memory/") for name in expected) == (penalty.memory > 0)


def test_a_second_pass_of_sam_that_is_not_finite_ends_the_run_as_the_first_does():
    """The move up is so long that the features overflow there, and only there."""

    class Exponential(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.exp()

    def task() -> Task:
        torch.manual_seed(3)
        return clusters(nn.Sequential(nn.Linear(5, 8), Exponential(), nn.Linear(8, 4)).double())

    sam = SharpnessAware(radius=1e4, start=4)
    penalties = (Penalty(measure="relative_flatness", weight=0.1),)
    phase = Phase(until=30, optimizer=OPTIMIZERS["sgd"], penalties=penalties, sharpness_aware=sam)
    made = Training(task(), of(phase))
    assert list(made.run())[-1] == Tick(5, [Row(5, 5 / 6, "train", "diverged", 1.0)], True)
    before = Training(task(), of(phase))
    before.advance(4)
    found, expected = made.state().tensors, before.state().tensors
    for name, tensor in expected.items():
        if name.startswith(("model/", "optimizer/")):
            assert torch.equal(found[name], tensor), name
