"""One look at a run from outside: every measure on the frozen subsets, as tidy rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from grokscope.spec import Observation
from grokscope.tasks import Split, Task


class Row(NamedTuple):
    """One number: where in the run, on which data, which measure."""

    step: int
    epoch: float
    split: str
    measure: str
    value: float


class Observer:
    """Measures a task's model on the first examples of its splits.

    Args:
        task: Model, data and how to measure.
        observation: How many examples.
    """

    def __init__(self, task: Task, observation: Observation) -> None:
        self.task = task
        self.train: Split = task.train.first(observation.train_examples)
        self.validation: Split = task.validation.first(observation.validation_examples)

    def rows(self, step: int, epoch: float, last: bool = False) -> list[Row]:
        """Every measure now, on the test split only at the last look; the model is left as it was.

        Held-out data are measured against the training data: the gap, and agreement with the
        nearest class mean of the training data.
        """
        model = self.task.model
        train = self.task.measure(model, self.train, None)
        values: dict[str, Mapping[str, float]] = {
            "train": {**train, "parameter_norm": parameter_norm(model)},
            "validation": self.task.measure(model, self.validation, train),
        }
        if last and self.task.test is not None:
            values["test"] = self.task.measure(model, self.task.test, train)
        return rows_of(step, epoch, values)


def rows_of(step: int, epoch: float, values: Mapping[str, Mapping[str, float]]) -> list[Row]:
    """Rows of measures by split."""
    return [
        Row(step, epoch, split, measure, float(value))
        for split, measures in values.items()
        for measure, value in measures.items()
    ]


@torch.no_grad()
def parameter_norm(model: nn.Module) -> float:
    """Euclidean norm of all trainable parameters together."""
    parameters: list[Tensor] = [each for each in model.parameters() if each.requires_grad]
    return float(torch.stack(torch._foreach_norm(parameters)).double().square().sum().sqrt())
