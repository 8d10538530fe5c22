"""The training loop: batches in an order that depends on seed and epoch alone, updates, looks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from grokscope.engine.observe import Observer, Row
from grokscope.engine.state import State, capture, restore
from grokscope.measures.checks import NotFiniteError
from grokscope.spec import Optimizer, Segment
from grokscope.tasks import Task

STEPS_PER_TICK = 10
BATCH_LOSSES = "batch_losses"
ONE = torch.ones((), dtype=torch.float64)


@dataclass(frozen=True)
class Tick:
    """A sign of life: the step reached, and what was measured there, if anything was."""

    step: int
    rows: list[Row] = field(default_factory=list)
    diverged: bool = False


class Training:
    """One segment under way.

    Args:
        task: Model (trained in place) and data.
        segment: Which phase to run, and under which seeds.
        state: Where to go on; None starts from the task's initial model.
    """

    def __init__(self, task: Task, segment: Segment, state: State | None = None) -> None:
        run, phase = segment.run, segment.phase
        self.task = task
        self.segment = segment
        self.optimizer = build_optimizer(list(task.model.parameters()), phase.optimizer)
        self.observer = Observer(task, run.observation)
        self.order_seed = run.seeds.order or 0
        half = -(-len(task.train) // 2)
        self.batch_size = min(run.batch_size, half)
        self.steps_per_epoch = -(-len(task.train) // self.batch_size)
        # Sum and number of the batch losses since the last look: what training itself saw.
        self.batch_losses = torch.zeros(2, dtype=torch.float64)
        self.fresh = state is None
        if state is None:
            self.step = 0
            torch.manual_seed(self.order_seed)
        else:
            self.step = state.step
            self.batch_losses = state.tensors[BATCH_LOSSES].clone()
            restore(state, task.model, self.optimizer, phase.optimizer.name)

    def state(self) -> State:
        """A copy of the present state; valid between two ticks."""
        name = self.segment.phase.optimizer.name
        state = capture(self.step, self.task.model, self.optimizer, name)
        state.tensors[BATCH_LOSSES] = self.batch_losses.clone()
        return state

    def run(self) -> Iterator[Tick]:
        """Train to the end of the phase; yields every few steps and at every measuring point.

        A run whose features or logits are no longer finite ends there, with a tick that says so.
        """
        until = self.segment.phase.until
        points = set(self.segment.run.observation.points(until))
        if self.fresh:  # a state, even one of step 0, was measured when it was made
            yield Tick(0, self.observer.rows(0, 0.0))
        batches = self._batches()
        self.task.model.train()
        while self.step < until:
            self._update(next(batches))
            if self.step in points:
                try:
                    rows = self._look()
                except NotFiniteError:
                    yield Tick(self.step, diverged=True)
                    return
                yield Tick(self.step, rows)
            elif self.step % STEPS_PER_TICK == 0:
                yield Tick(self.step)

    def _update(self, batch: Tensor) -> None:
        """One optimiser step on the examples ``batch``; nothing waits for the device here."""
        phase, task = self.segment.phase, self.task
        self.step += 1
        rate = phase.optimizer.rate(self.step, self.segment.start, phase.until)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = task.loss(task.model(task.train.inputs[batch]), task.train.labels[batch])
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.batch_losses += torch.stack([loss.detach().double(), ONE])

    def _batches(self) -> Iterator[Tensor]:
        """Indices of the coming batches, from the present step on."""
        while True:
            epoch, done = divmod(self.step, self.steps_per_epoch)
            yield from epoch_order(len(self.task.train), self.order_seed, epoch).split(
                self.batch_size
            )[done:]

    def _look(self) -> list[Row]:
        epoch = self.step / self.steps_per_epoch
        total, count = self.batch_losses.tolist()
        self.batch_losses = torch.zeros_like(self.batch_losses)
        # In training mode, while the weights moved: not comparable, so under its own name.
        running = Row(self.step, epoch, "train", "minibatch_loss", total / count)
        return [*self.observer.rows(self.step, epoch), running]


def epoch_order(examples: int, seed: int, epoch: int) -> Tensor:
    """The order of one epoch, ``[examples]``: a function of seed and epoch, nothing else."""
    mixed = int(np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0] >> 1)
    return torch.randperm(examples, generator=torch.Generator().manual_seed(mixed))


def build_optimizer(parameters: list[Tensor], settings: Optimizer) -> torch.optim.Optimizer:
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
