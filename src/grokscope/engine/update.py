"""One step of training: loss, penalties, the optimiser's update, constraints.

The interventions' own values are added up under their own names; they are never what is plotted.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from inspect import signature

import numpy as np
import torch
from torch import Tensor, nn

from grokscope.interventions import Penalty
from grokscope.interventions.constraints import constrain
from grokscope.interventions.penalties import penalty_value, remember_means
from grokscope.interventions.sharpness import batch_norm_frozen, moved_up
from grokscope.probe.head import find_head
from grokscope.spec import Optimizer, Phase
from grokscope.tasks import Task

BATCH_LOSS = "minibatch_loss"
SUMS, MEMORY = "running_sums", "memory/"


class Update:
    """The steps of one phase.

    Args:
        task: Model (trained in place) and data.
        phase: Optimiser and interventions.
        start: Step at which the phase begins.
        seed: Of what is random within a step, which is augmentation.
    """

    def __init__(self, task: Task, phase: Phase, start: int, seed: int) -> None:
        self.task, self.phase, self.start, self.seed = task, phase, start, seed
        self.parameters = [each for each in task.model.parameters() if each.requires_grad]
        self.optimizer = build_optimizer(self.parameters, phase.optimizer)
        self.head: nn.Linear | None = None
        if phase.penalties or phase.constraints:
            self.head = find_head(task.model)[1]
        if phase.label_smoothing and "label_smoothing" not in signature(task.loss).parameters:
            raise ValueError(
                "the phase has label_smoothing, but the task's loss takes no argument of that name"
            )
        self.names = [BATCH_LOSS, *dict.fromkeys(each.name for each in phase.penalties)]
        # What training itself saw since the last look: sums, and over how many steps.
        device = self.parameters[0].device
        self.sums = torch.zeros(2, len(self.names), dtype=torch.float64, device=device)
        self.memories: dict[int, Tensor] = {}

    def __call__(self, step: int, batch: Tensor) -> None:
        """Make step ``step`` (from 1) on the examples ``batch``.

        Nothing waits for the device but penalties, which look whether values are finite.

        Raises:
            NotFiniteError: If a penalty meets NaN or infinity.
        """
        phase = self.phase
        rate = phase.optimizer.rate(step, self.start, phase.until)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        inputs, labels = self._examples(step, batch)
        features = self._backward(step, inputs, labels)
        sam = phase.sharpness_aware
        if sam is not None and sam.active(step):
            with moved_up(self.parameters, sam.radius), batch_norm_frozen(self.task.model):
                self._backward(step, inputs, labels, count=False)
        self.optimizer.step()
        if features is not None and self.head is not None:
            self._remember(step, features, labels)
            for constraint in phase.constraints:
                if constraint.active(step):
                    constrain(constraint, self.head, features)

    def _examples(self, step: int, batch: Tensor) -> tuple[Tensor, Tensor]:
        inputs, labels = self.task.train.inputs[batch], self.task.train.labels[batch]
        if self.task.augment is None:
            return inputs, labels
        mixed = np.random.SeedSequence([self.seed, step, 1]).generate_state(1, np.uint64)[0]
        generator = torch.Generator().manual_seed(int(mixed >> 1))
        return self.task.augment(inputs, generator), labels

    def _backward(
        self, step: int, inputs: Tensor, labels: Tensor, count: bool = True
    ) -> Tensor | None:
        """Gradients of loss and penalties; returns what the head saw, where that matters."""
        task, phase = self.task, self.phase
        seen: list[Tensor] = []
        with ExitStack() as hooks:
            if self.head is not None:
                watch = self.head.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
                hooks.callback(watch.remove)
            logits = task.model(inputs)
        cooled = logits if phase.temperature == 1 else logits / phase.temperature
        smoothing = {"label_smoothing": phase.label_smoothing} if phase.label_smoothing else {}
        loss = task.loss(cooled, labels, **smoothing)
        values = {BATCH_LOSS: loss.detach()}
        if self.head is not None and not seen:
            raise ValueError(
                f"{type(task.model).__name__} did not call its head {self.head}, so penalties and "
                "constraints would have no effect; call it as a module, self.head(features)"
            )
        features = seen[-1].flatten(0, -2) if seen else None
        if features is not None and self.head is not None:
            flat, own = logits.flatten(0, -2), labels.flatten()
            for place, penalty in enumerate(phase.penalties):
                if penalty.active(step) and _is_defined(penalty, own):
                    weight, memory = self.head.weight, self.memories.get(place)
                    value = penalty_value(penalty, features, flat, own, weight, memory)
                    loss = loss + penalty.weight * value
                    values[penalty.name] = value.detach()
        self.optimizer.zero_grad()
        loss.backward()
        if count:
            places = [place for place, name in enumerate(self.names) if name in values]
            now = torch.stack([values[self.names[place]].double() for place in places])
            self.sums[:, places] += torch.stack([now, torch.ones_like(now)])
        return None if features is None else features.detach()

    def _remember(self, step: int, features: Tensor, labels: Tensor) -> None:
        assert self.head is not None
        for place, penalty in enumerate(self.phase.penalties):
            if penalty.memory and penalty.active(step):
                self.memories[place] = remember_means(
                    self.memories.get(place),
                    features,
                    labels.flatten(),
                    self.head.out_features,
                    penalty.memory,
                )

    def take_means(self) -> dict[str, float]:
        """Means since the last call, by name, and a fresh start; without what was off."""
        sums, counts = self.sums.tolist()
        self.sums = torch.zeros_like(self.sums)
        each = zip(self.names, sums, counts, strict=True)
        return {name: value / count for name, value, count in each if count}

    def state(self) -> dict[str, Tensor]:
        """What the next step depends on beside the model and the optimiser's buffers."""
        memories = {f"{MEMORY}{place}": each.clone() for place, each in self.memories.items()}
        return {SUMS: self.sums.clone(), **memories}

    def restore(self, tensors: dict[str, Tensor], same_phase: bool) -> None:
        """Go on within a phase. A new phase starts with empty sums and memories."""
        if same_phase:
            self.sums = tensors[SUMS].to(self.sums)
            for name, tensor in tensors.items():
                if name.startswith(MEMORY):
                    place = int(name.removeprefix(MEMORY))
                    self.memories[place] = tensor.to(self.sums.device)


def _is_defined(penalty: Penalty, labels: Tensor) -> bool:
    """Whether a batch has the measure: one of a single class has no ncc."""
    return penalty.measure != "ncc" or bool((labels != labels[0]).any())


def build_optimizer(parameters: Sequence[Tensor], settings: Optimizer) -> torch.optim.Optimizer:
    """The optimiser of a phase; fused kernels, which update all parameters in one call."""
    if settings.name == "adamw":
        return torch.optim.AdamW(
            parameters,
            lr=settings.lr,
            betas=settings.betas,
            weight_decay=settings.weight_decay,
            fused=True,
        )
    return torch.optim.SGD(
        parameters,
        lr=settings.lr,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        fused=True,
    )
