"""Training steps in a lower precision: near the exact ones, and never what is measured."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from grokscope.engine.loop import Training
from grokscope.interventions import LogitScaleCap, Penalty
from grokscope.probe import Probe
from grokscope.spec import Phase
from grokscope.tasks import Split
from made_clusters import OPTIMIZERS, clusters, of


@pytest.mark.parametrize("measure", [None, "relative_flatness", "ncc"])
def test_bfloat16_rounds_the_steps_and_not_the_measures(measure):
    """A step's gradients are near those of float32, not theirs; looks are what the probe says."""
    penalties = (Penalty(measure=measure, weight=0.05),) if measure else ()
    settings = {"optimizer": OPTIMIZERS["sgd"], "penalties": penalties}
    gradients, rows = {}, {}
    for precision in ("float32", "bfloat16"):
        task = clusters()
        task.model.float()
        halves = [task.train, task.validation]
        train, validation = (Split(each.inputs.float(), each.labels) for each in halves)
        task = replace(task, train=train, validation=validation)
        phase = Phase(until=1, precision=precision, **settings)
        training = Training(task, of(phase))
        rows[precision] = [row for tick in training.run() for row in tick.rows]
        gradients[precision] = torch.cat([each.grad.flatten() for each in task.model.parameters()])
        assert all(each.dtype == torch.float32 for each in task.model.parameters())
        measured = Probe(task.model).measure([(train.inputs, train.labels)])
        seen = {row[3]: row[4] for row in rows[precision] if row[0] == 1 and row[2] == "train"}
        assert seen["loss"] == measured["loss"]
        assert seen["relative_flatness"] == measured["relative_flatness"]
    exact, rounded = gradients["float32"], gradients["bfloat16"]
    assert not torch.equal(exact, rounded)
    assert float((exact - rounded).norm() / exact.norm()) < 0.02
    assert rows["float32"][0] == rows["bfloat16"][0]  # the look before the first step


def test_a_cap_on_the_logit_scale_is_met_by_what_a_lowered_network_says():
    task = clusters()
    task.model.float()
    inputs, labels = task.train.inputs.float(), task.train.labels
    task = replace(task, train=Split(inputs, labels), validation=Split(inputs, labels))
    cap = LogitScaleCap(cap=0.01)
    phase = Phase(until=1, precision="bfloat16", optimizer=OPTIMIZERS["sgd"], constraints=(cap,))
    list(Training(task, of(phase)).run())
    assert Probe(task.model).measure([(inputs, labels)])["logit_scale"] < 0.02
