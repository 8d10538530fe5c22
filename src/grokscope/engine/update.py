"""One step of training: loss, penalties, the optimiser's update, constraints.

A step works on memory that stays, reads nothing back and does not depend on the host, so that it
can be captured in a CUDA graph and replayed. What the host decides is the step's `Kind`. The
interventions' own values are added up under their own names; they are never what is plotted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from grokscope.engine.feed import FeedRow, rate_dtype
from grokscope.engine.objective import BATCH_LOSS, Objective, Outcome
from grokscope.engine.precision import products_in
from grokscope.interventions.constraints import constrain
from grokscope.interventions.penalties import empty_memory, needs_classes, remember_means
from grokscope.interventions.sharpness import batch_norm_frozen, moved_up
from grokscope.measures.checks import unchecked_values
from grokscope.measures.moments import ClassMoments
from grokscope.probe.rows import IGNORED
from grokscope.probe.trees import take
from grokscope.spec import Optimizer, Phase
from grokscope.tasks.task import Task

SUMS, MEMORY = "running_sums", "memory/"


class Kind(NamedTuple):
    """What decides which operations a step consists of.

    Attributes:
        size: Examples in the batch.
        active: Places of the penalties that count.
        remembered: Places of the penalties whose class means are remembered.
        capped: Places of the constraints that hold.
        sharpness_aware: Whether the gradient is taken where the loss is worst nearby.
    """

    size: int
    active: tuple[int, ...] = ()
    remembered: tuple[int, ...] = ()
    capped: tuple[int, ...] = ()
    sharpness_aware: bool = False


class Update:
    """The steps of one phase.

    Args:
        task: Model (trained in place) and data.
        phase: Optimiser and interventions.

    Attributes:
        ended: 1 from the step on at which a penalty was given NaN or infinity: weights, the
            optimiser's buffers, sums and memories change no more; a scalar on the device.
        ended_at: The number of that step; 0 before.
    """

    def __init__(self, task: Task, phase: Phase) -> None:
        self.task, self.phase = task, phase
        self.parameters = [tensor for tensor in task.model.parameters() if tensor.requires_grad]
        self.optimizer = build_optimizer(self.parameters, phase.optimizer)
        self.objective = Objective(task, phase)
        self.of_classes = {
            place for place, penalty in enumerate(phase.penalties) if needs_classes(penalty)
        }
        self.names = [BATCH_LOSS, *dict.fromkeys(penalty.name for penalty in phase.penalties)]
        # What training itself saw since the last look: sums, and over how many steps.
        device = self.parameters[0].device
        self.sums = torch.zeros(2, len(self.names), dtype=torch.float64, device=device)
        self.masks: dict[frozenset[str], Tensor] = {}  # which of the names there are
        weights = [penalty.weight for penalty in phase.penalties]
        self.weights = torch.tensor(weights, dtype=torch.float64, device=device)
        self.memories = {
            place: empty_memory(self.objective.heads[0].weight)
            for place, penalty in enumerate(phase.penalties)
            if penalty.memory
        }
        self.ended = torch.zeros((), dtype=torch.float32, device=device)
        self.ended_at = torch.zeros((), dtype=torch.int64, device=device)

    @cached_property
    def labels(self) -> Tensor:
        """Labels of the rows that count of each example, ``[examples, rows]``.

        On the host, where the kinds of steps are decided.
        """
        labels = self.task.train.labels
        return self.task.look.labels_of(labels).view(len(labels), -1).cpu()

    def kind(self, step: int, batch: Tensor) -> Kind:
        """The kind of step ``step`` (from 1) on the examples ``batch``, indices on the CPU.

        A batch of a single class has no ncc; labels are looked at only if that matters.
        """
        phase = self.phase
        on = [place for place, penalty in enumerate(phase.penalties) if penalty.active(step)]
        sam = phase.sharpness_aware
        return Kind(
            len(batch),
            self._possible(on, batch),
            tuple(place for place in on if place in self.memories),
            tuple(place for place, cap in enumerate(phase.constraints) if cap.active(step)),
            sharpness_aware=sam is not None and sam.active(step),
        )

    def possible(self, batch: Tensor) -> tuple[int, ...]:
        """Places of all penalties of the phase that are defined on the examples ``batch``."""
        return self._possible(range(len(self.phase.penalties)), batch)

    def _possible(self, places: Sequence[int], batch: Tensor) -> tuple[int, ...]:
        several = not self.of_classes & set(places) or self._has_several_classes(batch)
        return tuple(place for place in places if several or place not in self.of_classes)

    def _has_several_classes(self, batch: Tensor) -> bool:
        labels = self.labels[batch].flatten()
        labels = labels[labels != IGNORED]
        return len(labels) > 0 and bool((labels != labels[0]).any())

    def __call__(self, kind: Kind, row: FeedRow) -> None:
        """Make a step of a kind; nothing waits for the device.

        A penalty that is given NaN or infinity ends the run: from that step on weights, the
        optimiser's buffers and what is remembered stay as they were, and `ended_at` says so.
        """
        phase = self.phase
        with unchecked_values(), products_in(phase.precision, self.sums.device):
            inputs, labels = self.examples(row)
            outcome = self.backward(kind.active, inputs, labels)
            if kind.sharpness_aware and phase.sharpness_aware is not None:
                radius = phase.sharpness_aware.radius
                with moved_up(self.parameters, radius), batch_norm_frozen(self.task.model):
                    second = self.backward(kind.active, inputs, labels)
                if outcome.finite is not None and second.finite is not None:
                    outcome = outcome._replace(finite=outcome.finite & second.finite)
            self._apply(kind, outcome, row)

    def examples(self, row: FeedRow) -> tuple[Any, Tensor]:
        """Inputs and labels of a batch, augmented if the task does that."""
        train, augmentation = self.task.train, self.task.augmentation
        inputs, labels = take(train.inputs, row.examples), train.labels[row.examples]
        if augmentation is None or row.drawn is None:
            return inputs, labels
        return augmentation(inputs, row.drawn), labels

    def backward(self, active: Sequence[int], inputs: Any, labels: Tensor) -> Outcome:
        """Gradients of loss and penalties."""
        outcome = self.outcome(inputs, labels, active)
        self.optimizer.zero_grad()
        outcome.total.backward()
        return outcome

    def outcome(self, inputs: Any, labels: Tensor, active: Sequence[int] = ()) -> Outcome:
        """Loss and active penalties on a batch; nothing else changes."""
        outcome: Outcome = self.objective(
            inputs, labels, weights=self.weights, active=active, memories=self.memories
        )
        return outcome

    def _apply(self, kind: Kind, outcome: Outcome, row: FeedRow) -> None:
        """Finish a step whose gradients are there: count, update, remember, constrain."""
        counted = self.counted(outcome.values)
        stopped = None
        if self.phase.penalties:  # also while they are off: the end may have come before
            if outcome.finite is not None:
                note_end(outcome.finite, row.step, self.ended, self.ended_at)
            stopped = self.ended > 0
            counted = torch.where(stopped, 0.0, counted)
        # The optimiser's kernels leave everything as it was where this is 1.
        self.optimizer.found_inf = None if stopped is None else self.ended  # type: ignore[attr-defined]
        self.sums.add_(counted)
        rate_of(self.optimizer).copy_(row.rate)
        self.optimizer.step()
        if outcome.rows:
            self.after(kind, *outcome.rows, stopped=stopped)

    def counted(self, values: Mapping[str, Tensor]) -> Tensor:
        """Values, and which of them there are, in the order of `names`: ``[2, names, ...]``."""
        # Dense, without an index that the host would have to send.
        there, wide = frozenset(values), self.sums.dtype
        zero = torch.zeros_like(next(iter(values.values())), dtype=wide)
        seen = torch.stack([values.get(name, zero).to(wide) for name in self.names])
        if there not in self.masks:
            self.masks[there] = self.sums.new_tensor([float(name in there) for name in self.names])
        mask = self.masks[there].view(-1, *([1] * zero.dim())).expand_as(seen)
        return torch.stack([seen, mask])

    def after(
        self, kind: Kind, features: Tensor, labels: Tensor, *, stopped: Tensor | None = None
    ) -> None:
        """What follows an optimiser's step: remember means, keep to constraints.

        Args:
            kind: Of the step.
            features: Inputs of the head, ``[rows, width]``.
            labels: ``[rows]``.
            stopped: Whether the run has ended, a scalar; then nothing changes.
        """
        head = self.objective.heads[0]
        for place in kind.remembered:
            memory, kept = self.memories[place], self.phase.penalties[place].memory
            moments = ClassMoments.of(features, labels, head.out_features)
            means = remember_means(memory, moments, kept)
            memory.copy_(means if stopped is None else torch.where(stopped, memory, means))
        for place in kind.capped:
            constrain(self.phase.constraints[place], head, features, stopped=stopped)

    def take_means(self, sums: list[list[float]]) -> dict[str, float]:
        """Means since the last call, by name, of the present sums; without what was off."""
        self.sums.zero_()  # in place: those of replicas are views
        rows = zip(self.names, *sums, strict=True)
        return {name: value / count for name, value, count in rows if count}

    def state(self) -> dict[str, Tensor]:
        """What the next step depends on besides the model and the optimiser's buffers."""
        return {SUMS: self.sums} | {
            f"{MEMORY}{place}": means for place, means in self.memories.items()
        }

    def restore(self, tensors: dict[str, Tensor], same_phase: bool) -> None:
        """Resume within a phase. A new phase starts with empty sums and memories."""
        if same_phase:
            self.sums.copy_(tensors[SUMS])
            for place, memory in self.memories.items():
                if f"{MEMORY}{place}" in tensors:  # as a checkpoint of an earlier version may not
                    memory.copy_(tensors[f"{MEMORY}{place}"])


def note_end(finite: Tensor, step: Tensor, ended: Tensor, ended_at: Tensor) -> None:
    """Note the first step at which something was not finite, in place; each ``[...]``."""
    first = ~finite & (ended == 0)
    ended_at.copy_(torch.where(first, step, ended_at))
    ended.copy_(torch.where(first, 1.0, ended))


def build_optimizer(parameters: Sequence[Tensor], settings: Optimizer) -> torch.optim.Optimizer:
    """The optimiser of a phase; fused kernels, which update all parameters in one call.

    Its learning rate is a tensor on the device, which steps write to, and its buffers are there
    from the start: what a step works on never moves.
    """
    device = parameters[0].device
    shared: dict[str, Any] = {
        "lr": settings.lr,
        "weight_decay": settings.weight_decay,
        "fused": True,
    }
    optimizer: torch.optim.Optimizer
    if settings.name == "adamw":
        optimizer = torch.optim.AdamW(
            parameters, betas=settings.betas, capturable=device.type == "cuda", **shared
        )
        names = ["exp_avg", "exp_avg_sq"]
    else:
        optimizer = torch.optim.SGD(parameters, momentum=settings.momentum, **shared)
        names = ["momentum_buffer"] if settings.momentum else []
    rate = torch.tensor(settings.lr, dtype=rate_dtype(device), device=device)
    optimizer.param_groups[0]["lr"] = rate  # only now: the constructor would look at its value
    for parameter in parameters:
        buffers = {name: torch.zeros_like(parameter, requires_grad=False) for name in names}
        if settings.name == "adamw":
            buffers = {"step": torch.zeros((), dtype=torch.float32, device=device)} | buffers
        optimizer.state[parameter] = buffers
    return optimizer


def rate_of(optimizer: torch.optim.Optimizer) -> Tensor:
    """The tensor from which an optimiser reads its learning rate."""
    rate: Tensor = optimizer.param_groups[0]["lr"]
    return rate
