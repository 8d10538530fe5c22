"""Runs of one shape, trained together: one forward and backward pass for all of them.

The law: each replica equals the solo run of its segment, up to rounding. Every replica keeps its
own `Training`, and with it its data order, interventions and checkpoints; gradients, the
optimiser's step and the measuring are those of parameters stacked along a first axis. The
parameters of a replica's model are views of that stack, so whatever else a solo run does with its
model needs no second form here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from grokscope.engine.alike import TOLERANCE, UnlikeError, check_alike, check_equal
from grokscope.engine.feed import Feed, FeedRow
from grokscope.engine.graphs import Launcher
from grokscope.engine.loop import Tick, start
from grokscope.engine.objective import Outcome
from grokscope.engine.observe import Observer
from grokscope.engine.precision import products_in
from grokscope.engine.stacked import StackedOptimizer
from grokscope.engine.state import State
from grokscope.engine.update import Kind, note_end
from grokscope.measures.checks import NotFiniteError, unchecked_values
from grokscope.probe.trees import stacked, take
from grokscope.spec import Segment
from grokscope.tasks.task import Task


class _Pass(NamedTuple):
    """Forward and backward of all replicas in one step."""

    gradients: Sequence[Tensor | None]  # of the stacks; None where a parameter was not used
    rows: Sequence[tuple[Tensor, ...]]  # features and labels of the rows that count, of each
    counted: Tensor  # [2, names, replicas]
    finite: Tensor | None  # what penalties are given, [replicas]; None without penalties


class Replicas:
    """The training of segments of one shape.

    Args:
        tasks: Model (trained in place) and data of each.
        segments: Which phase each runs.
        states: Where each resumes; None starts from the task's initial model. All at one step.
        graphs: Whether steps are captured as CUDA graphs where that is possible.

    Raises:
        UnlikeError: If the runs differ in more than replicas may, or their model cannot be
            batched (it draws random numbers, or looks at values).
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        segments: Sequence[Segment],
        states: Sequence[State | None],
        *,
        graphs: bool = True,
    ) -> None:
        check_alike(tasks, segments, states)
        self.trainings, self.generators = start(tasks, segments, states, graphs=graphs)
        self.alive = list(range(len(tasks)))
        self.step = self.trainings[0].step  # of all that have not ended
        models = [task.model for task in tasks]
        self.parameters, self.constants = stack(models)
        # [replicas, penalties]
        self.weights = torch.stack([training.update.weights for training in self.trainings])
        self.updates = [training.update for training in self.trainings]
        # What training itself saw, [2, names, replicas], and which have ended at which step,
        # [replicas]; each update has a view.
        self.sums = torch.stack([update.sums for update in self.updates], dim=-1)
        self.ended = torch.stack([update.ended for update in self.updates])
        self.ended_at = torch.stack([update.ended_at for update in self.updates])
        for place, update in enumerate(self.updates):
            update.sums = self.sums[..., place]
            update.ended, update.ended_at = self.ended[place], self.ended_at[place]
        self._try()
        self.optimizer = StackedOptimizer(self.updates, list(self.parameters.values()))
        first = self.trainings[0]
        self.feed = Feed(
            [training.order for training in self.trainings],
            [self.trainings[group.first].rate for group in self.optimizer.groups],
            (first.step, first.until),
            self.weights.device,
            augmentations=[task.augmentation for task in tasks],
        )
        # Of data that all share, batches are drawn at once.
        same = all(task.train is tasks[0].train for task in tasks)
        self.one_gather = same and all(task.augmentation is None for task in tasks)
        self.launcher = Launcher(self.weights.device, graphs)
        for training in self.trainings:
            training.launcher = self.launcher
        self.observer = Observer(
            tasks,
            segments[0].run.observation,
            stacks={**self.parameters, **self.constants},
            tolerance=TOLERANCE["cuda" if self.weights.is_cuda else "cpu"],
        )

    def facts(self, _place: int) -> dict[str, object]:
        """How steps were launched and runs measured, for ``environment.json``."""
        alone = self.observer.alone
        facts = {"together": "vmap"} | self.launcher.facts()
        return facts | ({"measured_alone": alone} if alone else {})

    def state(self, place: int) -> State:
        """A copy of one replica's state, as `Training.state`."""
        training = self.trainings[place]
        with self.launcher.here():
            # A step that is not finite is counted by the run, but not by the optimiser.
            ahead = self.step - training.step + (int(training.update.ended_at) > 0)
            self.optimizer.hand_out(place, ahead)
            state = training.state()
        # Generators are global: a solo run would have found them as it left them, at its start.
        state.tensors.update(
            {key: tensor.clone() for key, tensor in self.generators[place].items()}
        )
        return state

    def run(self) -> Iterator[dict[int, Tick]]:
        """Train to the end of the phase; yields ticks by place, of those that are still running.

        A replica that is no longer finite ends with a tick that says so; the others continue.
        """
        first = self.trainings[0]
        if first.fresh:
            yield self._without_diverged(self._look())
        while self.alive and self.step < first.until:
            leader = self.trainings[self.alive[0]]
            self.advance(leader.next_stop() - leader.step)
            ticks = {} if first.on_gpu and not leader.at_point else self._ends()
            if leader.at_point:
                ticks |= self._look([place for place in self.alive if place not in ticks])
            else:
                ticks |= {place: Tick(leader.step) for place in self.alive if place not in ticks}
            yield self._without_diverged(ticks)

    def _without_diverged(self, ticks: dict[int, Tick]) -> dict[int, Tick]:
        """These ticks; runs that have ended with theirs are no longer among the living."""
        self.alive = [place for place in self.alive if not ticks[place].diverged]
        return ticks

    def _ends(self) -> dict[int, Tick]:
        """The last ticks of replicas that a penalty found not finite."""
        with self.launcher.here():
            ended_at = self.ended_at.tolist()
        ticks = {}
        for place in self.alive:
            if ended_at[place]:
                self.trainings[place].step = ended_at[place]
                ticks[place] = self.trainings[place].diverged()
        return ticks

    def _look(self, places: Sequence[int] | None = None) -> dict[int, Tick]:
        """Measure some replicas, which are at one step; None: all that are running."""
        places = self.alive if places is None else places
        if not places:
            return {}
        first = self.trainings[places[0]]
        with self.launcher.here():
            last = first.step == first.until
            measured = self.observer.rows(first.step, first.epoch, places=places, last=last)
            sums = self.sums.permute(2, 0, 1).tolist()  # [replicas, 2, names]
        ticks = {}
        for place, rows in measured.items():
            training = self.trainings[place]
            if isinstance(rows, NotFiniteError):
                ticks[place] = training.diverged()
            else:
                with self.launcher.here():
                    ticks[place] = Tick(training.step, training.with_running(rows, sums[place]))
        return ticks

    def advance(self, steps: int = 1) -> None:
        """Make so many steps of all, or those that are left; nothing waits for a GPU."""
        with self.launcher.here():
            for _ in range(min(steps, self.trainings[0].until - self.step)):
                batches = self.feed.prepare(self.step + 1)
                self.step += 1
                kinds = tuple(
                    update.kind(self.step, batch)
                    for update, batch in zip(self.updates, batches, strict=True)
                )
                self.launcher(kinds, partial(self._make_step, kinds))
        for place in self.alive:
            self.trainings[place].step = self.step

    def _make_step(self, kinds: Sequence[Kind]) -> None:
        """One step of kinds that differ in caps, or in which penalties their batches have."""
        row = self.feed.next(kinds[0].size)
        precision = self.trainings[0].segment.phase.precision
        with unchecked_values(), products_in(precision, self.weights.device):
            inputs, labels = self._examples(row)
            if len({kind.active for kind in kinds}) > 1:  # a batch of one class has no ncc
                passed = self._apart(kinds, inputs, labels)
            else:
                passed = self._at_once(kinds[0].active, inputs, labels)
            self._apply(kinds, row, passed)

    def _examples(self, row: FeedRow) -> tuple[Any, Tensor]:
        """Inputs and labels of all replicas, ``[replicas, batch, ...]``."""
        if self.one_gather:
            train = self.trainings[0].task.train
            return take(train.inputs, row.examples), train.labels[row.examples]
        inputs, labels = stacked(
            [update.examples(row.of_run(place)) for place, update in enumerate(self.updates)]
        )
        return inputs, labels

    def _at_once(self, active: Sequence[int], inputs: Any, labels: Tensor) -> _Pass:
        """Forward and backward of all in one program."""
        outcome, gradients = self._gradients(inputs, labels, active)
        rows = list(zip(*outcome.rows, strict=True)) or [()] * len(labels)
        return _Pass(gradients, rows, self.updates[0].counted(outcome.values), outcome.finite)

    def _apart(self, kinds: Sequence[Kind], inputs: Any, labels: Tensor) -> _Pass:
        """Forward and backward of each by itself."""
        found: list[list[Tensor | None]] = []
        outcomes = []
        for place, update in enumerate(self.updates):
            batch = take(inputs, place), labels[place]
            outcomes.append(update.backward(kinds[place].active, *batch))
            found.append([parameter.grad for parameter in update.parameters])
        gradients: list[Tensor | None] = []
        for stack, column in zip(self.parameters.values(), zip(*found, strict=True), strict=True):
            used = any(gradient is not None for gradient in column)
            zero = torch.zeros_like(stack[0])
            filled = [zero if gradient is None else gradient for gradient in column]
            gradients.append(torch.stack(filled) if used else None)
        counted = [
            update.counted(outcome.values)
            for update, outcome in zip(self.updates, outcomes, strict=True)
        ]
        fine = torch.ones_like(self.ended[0], dtype=torch.bool)
        finite = [fine if outcome.finite is None else outcome.finite for outcome in outcomes]
        rows = [outcome.rows for outcome in outcomes]
        return _Pass(gradients, rows, torch.stack(counted, dim=-1), torch.stack(finite))

    def _apply(self, kinds: Sequence[Kind], row: FeedRow, passed: _Pass) -> None:
        """Finish a step as `Update` does it, of all."""
        stopped, counted = None, passed.counted
        if self.weights.numel():  # there are penalties
            if passed.finite is not None:
                note_end(passed.finite, row.step, self.ended, self.ended_at)
            stopped = self.ended > 0
            counted = torch.where(stopped, 0.0, counted)
        self.sums.add_(counted)
        self.optimizer.step(row.rate, passed.gradients, stopped)
        for place, update in enumerate(self.updates):
            if passed.rows[place]:
                of_place = None if stopped is None else stopped[place]
                update.after(kinds[place], *passed.rows[place], stopped=of_place)

    def _gradients(
        self, inputs: Any, labels: Tensor, active: Sequence[int]
    ) -> tuple[Outcome, list[Tensor | None]]:
        """Outcomes of all replicas, each tensor with a first axis ``[replicas]``, and gradients.

        Gradients are those of the stacks; None for a parameter that was not used.
        """
        objective = self.updates[0].objective

        def one(
            tensors: Mapping[str, Tensor], weights: Tensor, examples: tuple[Any, Tensor]
        ) -> dict[str, Any]:
            keywords = {"weights": weights, "active": active, "memories": {}}
            outcome = functional_call(objective, dict(tensors), examples, keywords)
            # vmap returns nothing but tensors.
            return {name: part for name, part in outcome._asdict().items() if part is not None}

        tensors = {**self.parameters, **self.constants}
        outcome = Outcome(**vmap(one)(tensors, self.weights, (inputs, labels)))
        parameters = list(self.parameters.values())
        gradients = torch.autograd.grad(outcome.total.sum(), parameters, allow_unused=True)
        # Contiguous: fused optimisers on the CPU ignore strides.
        return outcome, [
            None if gradient is None else gradient.contiguous() for gradient in gradients
        ]

    def _try(self) -> None:
        """Compare all at once with each run alone on one batch, before any work is done.

        In evaluation mode, where BatchNorm does not amplify rounding; training mode must only run.
        """
        batch = torch.arange(self.trainings[0].order.batch_size)
        examples = [
            (take(training.task.train.inputs, batch), training.task.train.labels[batch])
            for training in self.trainings
        ]
        name = type(self.trainings[0].task.model).__name__
        kept = {key: tensor.clone() for key, tensor in self.constants.items()}
        try:
            inputs, labels = stacked(examples)
            active = min((update.possible(batch) for update in self.updates), key=len)
            self._modes(training=True)
            self._gradients(inputs, labels, active)
            self._modes(training=False)
            together, gradients = self._gradients(inputs, labels, active)
            for place, update in enumerate(self.updates):
                total = update.outcome(*examples[place], active).total
                alone = torch.autograd.grad(total, update.parameters, allow_unused=True)
                parts = [None if stack is None else stack[place] for stack in gradients]
                check_equal(name, (together.total[place], *parts), (total, *alone))
        except (torch.OutOfMemoryError, UnlikeError):
            raise
        except (RuntimeError, ValueError) as error:
            why = str(error).strip().splitlines()[0]
            raise UnlikeError(f"{name} can't be trained in replicas: {why}") from error
        finally:
            self._modes(training=True)
            for key, tensor in self.constants.items():
                tensor.copy_(kept[key])

    def _modes(self, training: bool) -> None:
        for replica in self.trainings:
            replica.task.model.train(training)


def stack(models: Sequence[nn.Module]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Stack the tensors of models of one form, and turn those of each model into views.

    Returns:
        Trainable parameters ``[replicas, ...]`` and all else (frozen parameters, buffers), by the
        names that they have in an `Objective`.
    """
    parameters: dict[str, Tensor] = {}
    constants: dict[str, Tensor] = {}
    held = [dict([*model.named_parameters(), *model.named_buffers()]) for model in models]
    for name, first in held[0].items():
        whole = torch.stack([tensors[name].detach() for tensors in held])
        for tensors, view in zip(held, whole.unbind(), strict=True):
            tensors[name].data = view
        if first.requires_grad:
            parameters[f"model.{name}"] = whole.requires_grad_()
        else:
            constants[f"model.{name}"] = whole
    return parameters, constants
