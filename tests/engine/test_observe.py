"""What a look at a run contains."""

from __future__ import annotations

import math

import torch

from grokscope.engine.observe import Observer, parameter_norm
from grokscope.spec import Observation
from grokscope.tasks import Split, Task, build_task
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


def small_images(seed: int, size: int) -> Task:
    """A network of one convolution, of 3x3 with a stride of 2."""
    torch.manual_seed(seed)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 3, 3, stride=2, padding=1),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(3, 2),
    )
    data = Split(torch.randn(12, 1, size, size), torch.arange(12) % 2)
    return Task(model, data, data)


def norms(rows) -> dict[str, float]:
    return {row.measure: row.value for row in rows if row.measure.endswith("parameter_norm")}


def test_weights_that_only_multiply_padding_are_left_out_of_the_trained_norm():
    task = small_images(0, size=2)
    kernel = task.model[0].weight.detach()
    found = norms(Observer([task], Observation()).rows(0, 0.0)[0])
    whole = parameter_norm(task.model)
    idle = float(kernel.square().sum() - kernel[:, :, 1:, 1:].square().sum())
    assert math.isclose(found["parameter_norm"], whole, rel_tol=1e-6)
    assert math.isclose(found["trained_parameter_norm"], math.sqrt(whole**2 - idle), rel_tol=1e-6)
    task.model(task.train.inputs).square().sum().backward()
    assert (task.model[0].weight.grad[:, :, 0] == 0).all()
    assert torch.equal(task.model[0].weight.detach(), kernel)


def test_where_a_gradient_reaches_every_weight_there_is_one_norm():
    task = small_images(0, size=4)
    assert list(norms(Observer([task], Observation()).rows(0, 0.0)[0])) == ["parameter_norm"]


def test_replicas_have_the_norms_that_each_has_alone():
    tasks = [small_images(seed, size=2) for seed in range(3)]
    names = dict(tasks[0].model.named_parameters())
    stacks = {
        f"model.{name}": torch.stack([task.model.get_parameter(name).detach() for task in tasks])
        for name in names
    }
    together = Observer(tasks, Observation(), stacks=stacks, tolerance=1e-5)
    assert not together.alone
    rows = together.rows(0, 0.0, places=(0, 2))
    for place in (0, 2):
        alone = norms(Observer([tasks[place]], Observation()).rows(0, 0.0)[0])
        assert norms(rows[place]).keys() == alone.keys() and len(alone) == 2
        for name, value in alone.items():
            assert math.isclose(norms(rows[place])[name], value, rel_tol=1e-6)
