"""What a phase minimises on a batch: the task's loss and the penalties, as one module.

A module, so that `torch.func.functional_call` can give it other parameters: of many runs at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from inspect import signature
from typing import NamedTuple

import torch
from torch import Tensor, nn

from grokscope.interventions.penalties import penalty_value
from grokscope.measures.checks import values_are_readable
from grokscope.probe.head import find_head
from grokscope.spec import Phase
from grokscope.tasks import Task

BATCH_LOSS = "minibatch_loss"


class Outcome(NamedTuple):
    """Of one batch.

    Attributes:
        total: What gradients are taken of; scalar.
        values: The loss and the penalties, without their weights, by name; detached.
        features: Inputs of the head, ``[rows, width]``, detached; None where nothing needs them.
        finite: Whether what penalties are given is finite, where they can't look themselves.
    """

    total: Tensor
    values: dict[str, Tensor]
    features: Tensor | None
    finite: Tensor | None = None


class Objective(nn.Module):
    """Loss plus weighted penalties of a task's model under one phase.

    Args:
        task: Its model is a submodule and is called as it is.
        phase: Penalties, label smoothing, temperature.

    Raises:
        ValueError: If the phase has label smoothing and the task's loss has none.
    """

    def __init__(self, task: Task, phase: Phase) -> None:
        super().__init__()
        self.model, self.loss, self.phase = task.model, task.loss, phase
        self.lowered = phase.precision == "bfloat16"
        needed = bool(phase.penalties or phase.constraints)
        # In a tuple: a module here would be registered a second time.
        self.heads: tuple[nn.Linear, ...] = (find_head(task.model)[1],) if needed else ()
        if phase.label_smoothing and "label_smoothing" not in signature(task.loss).parameters:
            raise ValueError(
                "the phase has label_smoothing, but the task's loss takes no argument of that name"
            )

    def forward(
        self,
        inputs: Tensor,
        labels: Tensor,
        weights: Tensor,
        active: Sequence[int],
        memories: dict[int, Tensor],
    ) -> Outcome:
        """Loss and active penalties.

        Args:
            inputs: Of the model.
            labels: Class indices.
            weights: Of all penalties of the phase, ``[penalties]``.
            active: Places of the penalties that count now.
            memories: Remembered class means by the place of their penalty.
        """
        phase, seen = self.phase, []
        with ExitStack() as hooks:
            for head in self.heads:
                watch = head.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
                hooks.callback(watch.remove)
            with torch.autocast(inputs.device.type, torch.bfloat16, enabled=self.lowered):
                logits = self.model(inputs)
        logits = logits.float() if self.lowered else logits
        cooled = logits if phase.temperature == 1 else logits / phase.temperature
        smoothing = {"label_smoothing": phase.label_smoothing} if phase.label_smoothing else {}
        total = self.loss(cooled, labels, **smoothing)
        values = {BATCH_LOSS: total.detach()}
        if not self.heads:
            return Outcome(total, values, None)
        head = self.heads[0]
        if not seen:
            raise ValueError(
                f"{type(self.model).__name__} did not call its head {head}, so penalties and "
                "constraints would have no effect; call it as a module, self.head(features)"
            )
        features: Tensor = seen[-1].flatten(0, -2)
        features = features.float() if self.lowered else features
        flat, own = logits.flatten(0, -2), labels.flatten()
        for place in active:
            penalty, memory = phase.penalties[place], memories.get(place)
            value = penalty_value(penalty, features, flat, own, head.weight, memory)
            total = total + weights[place].to(value.dtype) * value
            values[penalty.name] = value.detach()
        finite = None
        if active and not values_are_readable(logits):
            given = (features, flat, head.weight)
            finite = torch.stack([each.isfinite().all() for each in given]).all()
        return Outcome(total, values, features.detach(), finite)
