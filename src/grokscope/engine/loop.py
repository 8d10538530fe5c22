"""The training loop: batches in an order that depends on seed and epoch alone, updates, looks."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from grokscope.engine.feed import Feed, Order
from grokscope.engine.graphs import Launcher
from grokscope.engine.observe import Observer, Row
from grokscope.engine.state import State, capture, generators, restore
from grokscope.engine.update import Kind, Update
from grokscope.measures.checks import NotFiniteError
from grokscope.spec import Segment
from grokscope.tasks.task import Task

STEPS_PER_TICK = 10
# On a GPU, where a tick is a pause in enqueuing.
STEPS_PER_TICK_ON_GPU = 64


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
        graphs: Whether steps are captured as CUDA graphs where that is possible.
    """

    def __init__(
        self, task: Task, segment: Segment, state: State | None = None, *, graphs: bool = True
    ) -> None:
        run, phase = segment.run, segment.phase
        self.task, self.segment = task, segment
        self.update = Update(task, phase)
        self.observer = Observer([task], run.observation)
        self.order = Order(len(task.train), batch_size_of(segment, task), run.seeds.order or 0)
        self.until = phase.until
        self.points = run.observation.points(phase.until)
        self.fresh = state is None
        if state is None:
            self.step = 0
            torch.manual_seed(self.order.seed)
        else:
            self.step = state.step
            restore(state, task.model, self.update.optimizer, phase.optimizer.name)
            self.update.restore(state.tensors, same_phase=state.step > segment.start)
        device = self.update.sums.device
        self.on_gpu = device.type == "cuda"
        self.rate = partial(phase.optimizer.rate, start=segment.start, until=self.until)
        span = self.step, self.until
        self.feed = Feed([self.order], [self.rate], span, device, augmentations=[task.augmentation])
        task.model.train()
        self.launcher = Launcher(device, graphs)
        self._failed = False  # whether code of the user's found NaN or infinity

    @property
    def epoch(self) -> float:
        """How often the training data have been seen."""
        return self.step / self.order.steps_per_epoch

    def state(self) -> State:
        """A copy of the present state; valid between two ticks."""
        name = self.segment.phase.optimizer.name
        with self.launcher.here():
            more = self.update.state()
            return capture(self.step, self.task.model, self.update.optimizer, name, more=more)

    def run(self) -> Iterator[Tick]:
        """Train to the end of the phase; yields every few steps and at every measuring point.

        A run whose features or logits are no longer finite ends there, with a tick that says so.
        """
        if self.fresh:  # a state, even one of step 0, was measured when it was made
            tick = self.arrive()
            yield tick
            if tick.diverged:
                return
        while self.step < self.until:
            self.advance(self.next_stop() - self.step)
            tick = self.arrive()
            yield tick
            if tick.diverged:
                return

    def next_stop(self) -> int:
        """The next step at which there is something to say."""
        per_tick = STEPS_PER_TICK_ON_GPU if self.on_gpu else STEPS_PER_TICK
        return min(self.next_point(), self.step - self.step % per_tick + per_tick)

    @property
    def at_point(self) -> bool:
        """Whether the present step is one at which to measure."""
        return self.step == self.points[bisect_right(self.points, self.step) - 1]

    def next_point(self) -> int:
        """The next step at which to measure, or the last one."""
        place = bisect_right(self.points, self.step)
        return self.points[place] if place < len(self.points) else self.until

    def advance(self, steps: int) -> None:
        """Make so many steps, or those that are left, without a look; nothing waits for a GPU."""
        with self.launcher.here():
            for _ in range(min(steps, self.until - self.step)):
                (batch,) = self.feed.prepare(self.step + 1)
                self.step += 1
                kind = self.update.kind(self.step, batch)
                try:
                    self.launcher(kind, partial(self._make_step, kind))
                except NotFiniteError:
                    self._failed = True
                    return

    def _make_step(self, kind: Kind) -> None:
        """One step of a kind, all of it on the device."""
        row = self.feed.next(kind.size).of_run(0)
        self.update(kind, row._replace(rate=row.rate[0]))

    def arrive(self) -> Tick:
        """What there is to say at the present step: a look at a measuring point, or the end."""
        if self._failed:
            return self.diverged()
        if self.on_gpu and not self.at_point:
            return Tick(self.step)  # whether the run has ended would have to be waited for
        with self.launcher.here():
            ended_at = int(self.update.ended_at)
        if ended_at:
            self.step = ended_at
            return self.diverged()
        try:
            return Tick(self.step, self.look() if self.at_point else [])
        except NotFiniteError:
            return self.diverged()

    def diverged(self) -> Tick:
        """The end of a run that is no longer finite."""
        ended = Row(self.step, self.epoch, "train", measure="diverged", value=1.0)
        return Tick(self.step, [ended], diverged=True)

    def look(self) -> list[Row]:
        """What there is to measure at this step."""
        with self.launcher.here():
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


def start(
    tasks: Sequence[Task],
    segments: Sequence[Segment],
    states: Sequence[State | None],
    *,
    graphs: bool,
) -> tuple[list[Training], list[dict[str, Tensor]]]:
    """Trainings of several segments, and for each the global generators as it would find them."""
    trainings, found = [], []
    for task, segment, state in zip(tasks, segments, states, strict=True):
        trainings.append(Training(task, segment, state, graphs=graphs))
        found.append(generators(task.model))
    return trainings, found


def batch_size_of(segment: Segment, task: Task) -> int:
    """The batch size of a run: at most half of the training examples."""
    return min(segment.run.batch_size, -(-len(task.train) // 2))
