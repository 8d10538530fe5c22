"""The training loop: batches in an order that depends on seed and epoch alone, updates, looks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from grokscope.engine.observe import Observer, Row
from grokscope.engine.state import State, capture, restore
from grokscope.engine.update import Update
from grokscope.measures.checks import NotFiniteError
from grokscope.spec import Segment
from grokscope.tasks.task import Task

STEPS_PER_TICK = 10


@dataclass(frozen=True)
class Tick:
    """Progress: the step reached, and what was measured there, if anything was."""

    step: int
    rows: list[Row] = field(default_factory=list)
    diverged: bool = False


class Training:
    """The training of one segment.

    Args:
        task: Model (trained in place) and data.
        segment: Which phase to run, and under which seeds.
        state: Where to resume; None starts from the task's initial model.
    """

    def __init__(self, task: Task, segment: Segment, state: State | None = None) -> None:
        run, phase = segment.run, segment.phase
        self.task = task
        self.segment = segment
        self.update = Update(task, phase, segment.start, run.seeds.order or 0)
        self.observer = Observer([task], run.observation)
        self.order_seed = run.seeds.order or 0
        half = -(-len(task.train) // 2)
        self.batch_size = min(run.batch_size, half)
        self.steps_per_epoch = -(-len(task.train) // self.batch_size)
        self.until = phase.until
        self.points = set(run.observation.points(phase.until))
        self.fresh = state is None
        if state is None:
            self.step = 0
            torch.manual_seed(self.order_seed)
        else:
            self.step = state.step
            restore(state, task.model, self.update.optimizer, phase.optimizer.name)
            self.update.restore(state.tensors, same_phase=state.step > segment.start)

    def state(self) -> State:
        """A copy of the present state; valid between two ticks."""
        name = self.segment.phase.optimizer.name
        state = capture(self.step, self.task.model, self.update.optimizer, name)
        state.tensors.update(self.update.state())
        return state

    def run(self) -> Iterator[Tick]:
        """Train to the end of the phase; yields every few steps and at every measuring point.

        A run whose features or logits are no longer finite ends there, with a tick that says so.
        """
        yield from self.first()
        batches = self.batches()
        while self.step < self.until:
            rows: list[Row] = []
            try:
                batch = next(batches)  # before the step counts: epochs are told by it
                self.step += 1
                self.update(self.step, batch)
                if self.step in self.points:
                    rows = self.look()
            except NotFiniteError:
                yield self.diverged()
                return
            if rows or self.step % STEPS_PER_TICK == 0:
                yield Tick(self.step, rows)

    def first(self) -> Iterator[Tick]:
        """Get ready; yields what was measured, if the run begins here."""
        if self.fresh:  # a state, even one of step 0, was measured when it was made
            yield Tick(0, self.look())
        self.task.model.train()

    def diverged(self) -> Tick:
        """The end of a run that is no longer finite."""
        ended = Row(self.step, self.epoch, "train", measure="diverged", value=1.0)
        return Tick(self.step, [ended], diverged=True)

    def batches(self) -> Iterator[Tensor]:
        """Indices of the coming batches, from the present step on."""
        while True:
            epoch, done = divmod(self.step, self.steps_per_epoch)
            order = epoch_order(len(self.task.train), self.order_seed, epoch)
            # On the device at once: an index from the host would be waited for at every step.
            yield from order.to(self.task.train.labels.device).split(self.batch_size)[done:]

    @property
    def epoch(self) -> float:
        """How often the training data have been seen."""
        return self.step / self.steps_per_epoch

    def look(self) -> list[Row]:
        """What there is to measure at this step."""
        rows = self.observer.rows(self.step, self.epoch, last=self.step == self.until)[0]
        if isinstance(rows, NotFiniteError):
            raise rows
        return self.with_running(rows, self.update.sums.tolist())

    def with_running(self, rows: list[Row], sums: list[list[float]]) -> list[Row]:
        """Rows of a look, with what training itself saw since the last one, whose sums these are.

        Training mode, moving weights: not comparable with measures, so it has names of its own.
        """
        return rows + [
            Row(self.step, self.epoch, "train", measure=name, value=value)
            for name, value in self.update.take_means(sums).items()
        ]


def epoch_order(examples: int, seed: int, epoch: int) -> Tensor:
    """The order of one epoch, ``[examples]``: a function of seed and epoch, nothing else."""
    mixed = int(np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0] >> 1)
    return torch.randperm(examples, generator=torch.Generator().manual_seed(mixed))
