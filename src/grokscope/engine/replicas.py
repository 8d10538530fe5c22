"""Runs of one shape, trained together: one forward and backward pass for all of them.

The law: each replica equals the solo run of its segment, up to rounding. Every replica keeps its
own `Training`, and with it its data order, interventions and checkpoints; gradients, the
optimiser's step and the measuring are those of parameters stacked along a first axis. The
parameters of a replica's model are views of that stack, so whatever else a solo run does with its
model needs no second form here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from grokscope.engine.alike import TOLERANCE, UnlikeError, check_alike, check_equal
from grokscope.engine.loop import STEPS_PER_TICK, Tick, Training
from grokscope.engine.objective import Outcome
from grokscope.engine.observe import Observer
from grokscope.engine.stacked import StackedOptimizer
from grokscope.engine.state import State, generators
from grokscope.measures.checks import NotFiniteError
from grokscope.probe.trees import stacked
from grokscope.spec import Segment
from grokscope.tasks.task import Task


class Replicas:
    """The training of segments of one shape.

    Args:
        tasks: Model (trained in place) and data of each.
        segments: Which phase each runs.
        states: Where each resumes; None starts from the task's initial model. All at one step.

    Raises:
        UnlikeError: If the runs differ in more than replicas may, or their model cannot be
            batched (it draws random numbers, or looks at values).
    """

    def __init__(
        self, tasks: Sequence[Task], segments: Sequence[Segment], states: Sequence[State | None]
    ) -> None:
        check_alike(tasks, segments, states)
        self.trainings: list[Training] = []
        self.generators: list[dict[str, Tensor]] = []
        for task, segment, state in zip(tasks, segments, states, strict=True):
            self.trainings.append(Training(task, segment, state))
            self.generators.append(generators(task.model))
        self.alive = list(range(len(tasks)))
        models = [task.model for task in tasks]
        self.parameters, self.constants = stack(models)
        # [replicas, penalties]
        self.weights = torch.stack([training.update.weights for training in self.trainings])
        updates = [training.update for training in self.trainings]
        # [2, names, replicas]: what training itself saw; each update has a view.
        self.sums = torch.stack([update.sums for update in updates], dim=-1)
        for update, view in zip(updates, self.sums.unbind(dim=-1), strict=True):
            update.sums = view
        self._batches = [training.batches() for training in self.trainings]
        self._try()
        self.optimizer = StackedOptimizer(updates, list(self.parameters.values()))
        self.observer = Observer(
            tasks,
            segments[0].run.observation,
            stacks={**self.parameters, **self.constants},
            tolerance=TOLERANCE["cuda" if self.weights.is_cuda else "cpu"],
        )

    @property
    def measured_alone(self) -> str:
        """Why replicas are measured one after the other; empty if they are measured at once."""
        return self.observer.alone

    def state(self, place: int) -> State:
        """A copy of one replica's state, as `Training.state`."""
        self.optimizer.hand_out(place)
        state = self.trainings[place].state()
        # Generators are global: a solo run would have found them as it left them, at its start.
        state.tensors.update(
            {key: tensor.clone() for key, tensor in self.generators[place].items()}
        )
        return state

    def run(self) -> Iterator[dict[int, Tick]]:
        """Train to the end of the phase; yields ticks by place, of those that are still running.

        A replica that is no longer finite ends with a tick that says so; the others continue.
        """
        ticks = self._look([place for place in self.alive if self.trainings[place].fresh])
        for training in self.trainings:
            training.task.model.train()
        self._drop_diverged(ticks)
        if ticks:
            yield ticks
        while self.alive and self._step() < self.trainings[0].until:
            ticks = self.advance()
            step = self._step()
            if step in self.trainings[0].points:
                ticks |= self._look([place for place in self.alive if place not in ticks])
            if step % STEPS_PER_TICK == 0:
                ticks |= {place: Tick(step) for place in self.alive if place not in ticks}
            self._drop_diverged(ticks)
            if ticks:
                yield ticks

    def _step(self) -> int:
        return self.trainings[0].step

    def _drop_diverged(self, ticks: Mapping[int, Tick]) -> None:
        self.alive = [
            place for place in self.alive if not (place in ticks and ticks[place].diverged)
        ]

    def _look(self, places: Sequence[int]) -> dict[int, Tick]:
        """Measure some replicas, which are at one step."""
        if not places:
            return {}
        first = self.trainings[0]
        last = first.step == first.until
        measured = self.observer.rows(first.step, first.epoch, places=places, last=last)
        sums = self.sums.permute(2, 0, 1).tolist()  # [replicas, 2, names]
        ticks = {}
        for place, rows in measured.items():
            training = self.trainings[place]
            if isinstance(rows, NotFiniteError):
                ticks[place] = training.diverged()
            else:
                ticks[place] = Tick(training.step, training.with_running(rows, sums[place]))
        return ticks

    def advance(self) -> dict[int, Tick]:
        """One step of all; returns the last ticks of those that a penalty found not finite."""
        drawn = [next(batches) for batches in self._batches]  # before the step counts
        for training in self.trainings:
            training.step += 1
        step = self._step()
        examples = [
            training.update.examples(step, batch)
            for training, batch in zip(self.trainings, drawn, strict=True)
        ]
        inputs, labels = stacked(examples)
        wanted = set(self.trainings[0].update.active(labels, step))
        if len(wanted) > 1:  # a batch of one class has no ncc: then each alone
            gradients, rows, counted, ended = self._apart(step, examples)
        else:
            outcome, gradients = self._gradients(inputs, labels, *wanted)
            rows = list(zip(*outcome.rows, strict=True)) or [()] * len(labels)
            counted = self.trainings[0].update.counted(outcome.values)
            ended = set()
            if outcome.finite is not None:  # alone, penalties check what they are given
                fine = outcome.finite.tolist()
                ended = {place for place in self.alive if not fine[place]}
        kept = [(view, view.clone()) for place in ended for view in self._views(place)]
        for place in ended:
            self.optimizer.leave(place)
        self.sums += counted
        self.optimizer.step(step, gradients)
        for view, before in kept:
            view.copy_(before)
        for place in self.alive:
            if rows[place] and place not in ended:
                self.trainings[place].update.after(step, *rows[place])
        return {place: self.trainings[place].diverged() for place in ended}

    def _views(self, place: int) -> list[Tensor]:
        """All that a step changes of a replica."""
        return [stack.detach()[place] for stack in self.parameters.values()] + [
            self.sums[..., place]
        ]

    def _apart(
        self, step: int, examples: Sequence[tuple[Any, Tensor]]
    ) -> tuple[list[Tensor | None], list[tuple[Tensor, ...]], Tensor, set[int]]:
        """Gradients, rows that count, and what is counted, of each replica by itself."""
        ended, counted = set(), torch.zeros_like(self.sums)
        found: list[list[Tensor | None]] = []
        rows: list[tuple[Tensor, ...]] = []
        for place, training in enumerate(self.trainings):
            update, outcome = training.update, None
            update.optimizer.zero_grad()
            if place in self.alive:
                try:
                    outcome = update.backward(step, *examples[place])
                except NotFiniteError:
                    ended.add(place)
            if outcome is not None:
                counted[..., place] = update.counted(outcome.values)
            found.append([parameter.grad for parameter in update.parameters])
            rows.append(() if outcome is None else outcome.rows)
        gradients: list[Tensor | None] = []
        for stack, column in zip(self.parameters.values(), zip(*found, strict=True), strict=True):
            used = any(gradient is not None for gradient in column)
            zero = torch.zeros_like(stack[0])
            filled = [zero if gradient is None else gradient for gradient in column]
            gradients.append(torch.stack(filled) if used else None)
        return gradients, rows, counted, ended

    def _gradients(
        self, inputs: Any, labels: Tensor, active: Sequence[int]
    ) -> tuple[Outcome, list[Tensor | None]]:
        """Outcomes of all replicas, each tensor with a first axis ``[replicas]``, and gradients.

        Gradients are those of the stacks; None for a parameter that was not used.
        """
        objective = self.trainings[0].update.objective

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
        batch = torch.arange(min(self.trainings[0].batch_size, len(self.trainings[0].task.train)))
        examples = [training.update.examples(1, batch) for training in self.trainings]
        update = self.trainings[0].update
        name = type(self.trainings[0].task.model).__name__
        kept = {key: tensor.clone() for key, tensor in self.constants.items()}
        try:
            inputs, labels = stacked(examples)
            active = min(update.active(labels), key=len)  # those that all have
            self._modes(training=True)
            self._gradients(inputs, labels, active)
            self._modes(training=False)
            together, gradients = self._gradients(inputs, labels, active)
            for place, training in enumerate(self.trainings):
                update = training.update
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


class Solo:
    """One run with the interface of `Replicas`."""

    def __init__(self, training: Training) -> None:
        self.training = training

    def state(self, place: int) -> State:
        """A copy of the state; ``place`` is 0."""
        assert place == 0
        return self.training.state()

    def run(self) -> Iterator[dict[int, Tick]]:
        """Train to the end of the phase."""
        for tick in self.training.run():
            yield {0: tick}


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
