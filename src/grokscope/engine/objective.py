"""What a phase minimises on a batch: the task's loss and the penalties, as one module.

A module, so that `torch.func.functional_call` can give it other parameters: of many runs at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from inspect import signature
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from grokscope.interventions.penalties import penalty_value
from grokscope.measures.checks import values_are_checked, values_are_readable
from grokscope.measures.curvature import as_arguments
from grokscope.measures.record import Batch
from grokscope.probe.rows import IGNORED
from grokscope.spec import Phase
from grokscope.tasks.task import Task

BATCH_LOSS = "minibatch_loss"


class Outcome(NamedTuple):
    """Loss and penalties on one batch."""

    total: Tensor  # what gradients are taken of; scalar
    values: dict[str, Tensor]  # the loss and the penalties, without their weights; detached
    # Inputs of the head, [rows, width], and labels, [rows], of the rows that count; detached.
    # Empty if no intervention needs them.
    rows: tuple[Tensor, ...] = ()
    # Whether what penalties are given is finite, where they can't check it themselves.
    finite: Tensor | None = None


class Objective(nn.Module):
    """Loss plus weighted penalties of a task's model under one phase.

    The loss sees all rows; penalties and constraints see those that the task's look chooses, at
    its head.

    Args:
        task: Its model is a submodule and is called as it is.
        phase: Penalties, label smoothing, temperature.

    Raises:
        ValueError: If the model has no such head, or the phase has label smoothing and the task's
            loss has none.
    """

    def __init__(self, task: Task, phase: Phase) -> None:
        super().__init__()
        self.model, self.loss, self.look, self.phase = task.model, task.loss, task.look, phase
        self.lowered = phase.precision == "bfloat16"
        # In a tuple: a module here would be registered a second time.
        self.heads: tuple[nn.Linear, ...] = ()
        self.ignores = False
        if phase.penalties or phase.constraints:
            self.heads = (task.look.find_head(task.model)[1],)
            labels = task.train.labels
            self.ignores = not labels.is_meta and bool((labels == IGNORED).any())
        if phase.label_smoothing and "label_smoothing" not in signature(task.loss).parameters:
            raise ValueError(
                "the phase has label_smoothing, but the task's loss takes no argument of that name"
            )

    def forward(
        self,
        inputs: Any,
        labels: Tensor,
        *,
        weights: Tensor,
        active: Sequence[int],
        memories: Mapping[int, Tensor],
    ) -> Outcome:
        """Loss and active penalties.

        Args:
            inputs: A batch, as the model takes it.
            labels: Class indices.
            weights: Weights of all penalties of the phase, ``[penalties]``.
            active: Places of the penalties that count now.
            memories: Remembered class means by the place of their penalty.

        Raises:
            ValueError: If the model does not call its head as a module.
        """
        phase, seen = self.phase, []
        positional, keywords = as_arguments(inputs)
        with ExitStack() as hooks:
            for head in self.heads:
                watch = head.register_forward_pre_hook(lambda _, taken: seen.append(taken[0]))
                hooks.callback(watch.remove)
            with self._autocast(labels.device.type):
                logits = self.model(*positional, **keywords)
        logits = logits.float() if self.lowered else logits
        cooled = logits if phase.temperature == 1 else logits / phase.temperature
        smoothing = {"label_smoothing": phase.label_smoothing} if phase.label_smoothing else {}
        total = self.loss(cooled, labels, **smoothing)
        values = {BATCH_LOSS: total.detach()}
        if not self.heads:
            return Outcome(total, values)
        if not seen:
            raise ValueError(
                f"{type(self.model).__name__} did not call its head {self.heads[0]}, so penalties "
                "and constraints would have no effect; call it as a module, self.head(features)"
            )
        batch = self._batch(seen[-1].float() if self.lowered else seen[-1], logits, labels)
        for place in active:
            penalty = phase.penalties[place]
            value = penalty_value(penalty, batch, memories.get(place))
            total = total + weights[place].to(value.dtype) * value
            values[penalty.name] = value.detach()
        finite = None
        if active and not values_are_checked(logits):
            tensors = (batch.features, batch.logits, batch.weight)
            finite = torch.stack([tensor.isfinite().all() for tensor in tensors]).all()
        return Outcome(total, values, (batch.features.detach(), batch.labels), finite)

    def _autocast(self, device: str) -> AbstractContextManager[object]:
        return torch.autocast(device, torch.bfloat16) if self.lowered else nullcontext()

    def _batch(self, features: Tensor, logits: Tensor, labels: Tensor) -> Batch:
        """The rows that count, at the head."""
        head = self.heads[0]
        features, logits, labels = self.look.select(features, logits, labels)
        if self.ignores:
            if not values_are_readable(labels):
                raise ValueError("penalties leave out labels of -100, as many as a batch has")
            counted = labels != IGNORED
            features, logits, labels = features[counted], logits[counted], labels[counted]
        return Batch(features, logits, labels, head.weight, bias=head.bias)
