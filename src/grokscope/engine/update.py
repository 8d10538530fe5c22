"""One step of training: loss, penalties, the optimiser's update, constraints.

The interventions' own values are added up under their own names; they are never what is plotted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from grokscope.engine.objective import BATCH_LOSS, Objective, Outcome
from grokscope.interventions.constraints import constrain
from grokscope.interventions.penalties import needs_classes, remember_means
from grokscope.interventions.sharpness import batch_norm_frozen, moved_up
from grokscope.measures.moments import ClassMoments
from grokscope.probe.rows import IGNORED
from grokscope.probe.trees import take
from grokscope.spec import Optimizer, Phase
from grokscope.tasks.task import Task

SUMS, MEMORY = "running_sums", "memory/"


class Update:
    """The steps of one phase.

    Args:
        task: Model (trained in place) and data.
        phase: Optimiser and interventions.
        start: Step at which the phase begins.
        seed: Seed of what is random within a step, which is augmentation.
    """

    def __init__(self, task: Task, phase: Phase, start: int, seed: int) -> None:
        self.task, self.phase, self.start, self.seed = task, phase, start, seed
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
        self.memories: dict[int, Tensor] = {}

    def __call__(self, step: int, batch: Tensor) -> None:
        """Make step ``step`` (from 1) on the examples ``batch``.

        Nothing waits for the device except penalties, which check that values are finite.

        Raises:
            NotFiniteError: If a penalty meets NaN or infinity.
        """
        inputs, labels = self.examples(step, batch)
        outcome = self.backward(step, inputs, labels)
        sam = self.phase.sharpness_aware
        if sam is not None and sam.active(step):
            with moved_up(self.parameters, sam.radius), batch_norm_frozen(self.task.model):
                self.backward(step, inputs, labels)
        self.apply(step, outcome)

    def examples(self, step: int, batch: Tensor) -> tuple[Any, Tensor]:
        """Inputs and labels of a batch, augmented if the task does that."""
        inputs, labels = take(self.task.train.inputs, batch), self.task.train.labels[batch]
        if self.task.augment is None:
            return inputs, labels
        mixed = np.random.SeedSequence([self.seed, step, 1]).generate_state(1, np.uint64)[0]
        generator = torch.Generator().manual_seed(int(mixed >> 1))
        return self.task.augment(inputs, generator), labels

    def active(self, labels: Tensor, step: int | None = None) -> list[tuple[int, ...]]:
        """Places of the penalties that count, for batches ``[batches, ...]``.

        Those that are on at a step (None: all) and that a batch has: one of a single class has no
        ncc. Labels are looked at only if that matters.
        """
        on = [
            place
            for place, penalty in enumerate(self.phase.penalties)
            if step is None or penalty.active(step)
        ]
        several = self.several(labels) if self.of_classes & set(on) else [True] * len(labels)
        return [
            tuple(place for place in on if has_several or place not in self.of_classes)
            for has_several in several
        ]

    def several(self, labels: Tensor) -> list[bool]:
        """Whether batches ``[batches, ...]`` have several classes, with one look at the device."""
        # The first axis stays: batches are examples to a selector of rows.
        flat = self.task.look.labels_of(labels.flatten(0, 1)).view(len(labels), -1)
        counted, most = flat != IGNORED, torch.iinfo(flat.dtype).max
        low = flat.masked_fill(~counted, most).amin(dim=1)
        high = flat.masked_fill(~counted, -1).amax(dim=1)
        found: list[bool] = (low < high).tolist()
        return found

    def backward(self, step: int, inputs: Any, labels: Tensor) -> Outcome:
        """Gradients of loss and penalties."""
        (active,) = self.active(labels[None], step)
        outcome = self.outcome(inputs, labels, active, self.memories)
        self.optimizer.zero_grad()
        outcome.total.backward()
        return outcome

    def outcome(
        self,
        inputs: Any,
        labels: Tensor,
        active: Sequence[int] = (),
        memories: Mapping[int, Tensor] | None = None,
    ) -> Outcome:
        """Loss and active penalties on a batch; nothing else changes."""
        outcome: Outcome = self.objective(
            inputs, labels, weights=self.weights, active=active, memories=memories or {}
        )
        return outcome

    def apply(self, step: int, outcome: Outcome) -> None:
        """Finish a step whose gradients are there: count, update, remember, constrain."""
        self.sums += self.counted(outcome.values)
        rate = self.phase.optimizer.rate(step, self.start, self.phase.until)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        if outcome.rows:
            self.after(step, *outcome.rows)

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

    def after(self, step: int, features: Tensor, labels: Tensor) -> None:
        """What follows an optimiser's step: remember means, keep to constraints."""
        head, memories = self.objective.heads[0], self.memories
        for place, penalty in enumerate(self.phase.penalties):
            if penalty.memory and penalty.active(step):
                moments = ClassMoments.from_batch(features, labels, head.out_features)
                memories[place] = remember_means(memories.get(place), moments, penalty.memory)
        for constraint in self.phase.constraints:
            if constraint.active(step):
                constrain(constraint, head, features)

    def take_means(self, sums: list[list[float]]) -> dict[str, float]:
        """Means since the last call, by name, of the present sums; without what was off."""
        self.sums.zero_()  # in place: those of replicas are views
        rows = zip(self.names, *sums, strict=True)
        return {name: value / count for name, value, count in rows if count}

    def state(self) -> dict[str, Tensor]:
        """What the next step depends on besides the model and the optimiser's buffers."""
        memories = {f"{MEMORY}{place}": means.clone() for place, means in self.memories.items()}
        return {SUMS: self.sums.clone(), **memories}

    def restore(self, tensors: dict[str, Tensor], same_phase: bool) -> None:
        """Resume within a phase. A new phase starts with empty sums and memories."""
        if same_phase:
            self.sums = tensors[SUMS].to(self.sums)
            for name, tensor in tensors.items():
                if name.startswith(MEMORY):
                    place = int(name.removeprefix(MEMORY))
                    self.memories[place] = tensor.to(self.sums.device)


def build_optimizer(parameters: Sequence[Tensor], settings: Optimizer) -> torch.optim.Optimizer:
    """The optimiser of a phase; fused kernels, which update all parameters in one call."""
    shared: dict[str, Any] = {"lr": settings.lr, "weight_decay": settings.weight_decay}
    if settings.name == "adamw":
        return torch.optim.AdamW(parameters, betas=settings.betas, fused=True, **shared)
    return torch.optim.SGD(parameters, momentum=settings.momentum, fused=True, **shared)
