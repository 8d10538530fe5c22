"""What a look at a run contains."""

from __future__ import annotations

import math

import torch

from grokscope.engine.observe import Observer, parameter_norm
from grokscope.spec import Observation
from grokscope.tasks import build_task
from small_runs import TASK, resolved

ALWAYS = {
    "accuracy", "loss", "relative_flatness", "relative_flatness_bound", "published_flatness",
    "ncc", "ncc_unbiased", "nc1_pinv", "nc1_quotient", "nc2_equinorm", "nc2_equiangularity",
    "nc3_self_duality", "nc4_agreement", "angle_deviation", "logit_scale", "weight_norm",
    "feature_norm", "collapse_flatness_bound", "collapse_residual",
}  # fmt: skip
ON_TRAINING_DATA = {"feature_robustness", "parameter_norm"}
ON_HELD_OUT_DATA = {
    "generalisation_gap", "feature_robustness", "representativeness", "representativeness_kde",
}  # fmt: skip


def look():
    task = build_task(TASK, resolved(3))
    observer = Observer([task], Observation(train_examples=20, validation_examples=19))
    rows = observer.rows(7, 0.5)[0]
    values = {(row.split, row.measure): row.value for row in rows}
    return task, rows, values


def test_a_look_holds_every_measure_of_both_splits_once():
    _, rows, values = look()
    assert len(values) == len(rows)
    assert {name for split, name in values if split == "train"} >= ALWAYS | ON_TRAINING_DATA
    assert {name for split, name in values if split == "validation"} >= ALWAYS | ON_HELD_OUT_DATA
    assert all(math.isfinite(value) for value in values.values())
    assert {(row.step, row.epoch) for row in rows} == {(7, 0.5)}


def test_accuracy_and_loss_are_those_of_the_first_examples():
    task, _, values = look()
    for split, data, count in (("train", task.train, 20), ("validation", task.validation, 19)):
        with torch.no_grad():
            logits = task.model(data.inputs[:count])[:, 0]
        labels = data.labels[:count, 0]
        assert values[split, "accuracy"] == float((logits.argmax(-1) == labels).double().mean())
        loss = torch.nn.functional.cross_entropy(logits.double(), labels)
        assert math.isclose(values[split, "loss"], float(loss), rel_tol=1e-9)


def test_the_gap_is_the_sum_of_its_parts():
    _, _, values = look()
    gap = values["validation", "loss"] - values["train", "loss"]
    parts = values["validation", "representativeness"] + values["validation", "feature_robustness"]
    assert math.isclose(values["validation", "generalisation_gap"], gap, rel_tol=1e-12)
    assert math.isclose(parts, gap, rel_tol=1e-12)


def test_the_parameter_norm_counts_what_is_trained():
    model = torch.nn.Linear(3, 2)
    whole = math.sqrt(sum(float(each.detach().square().sum()) for each in model.parameters()))
    assert math.isclose(parameter_norm(model), whole, rel_tol=1e-6)
    model.bias.requires_grad_(False)
    assert math.isclose(parameter_norm(model), float(model.weight.norm()), rel_tol=1e-6)
