"""Runs of one shape, trained together: one forward and backward pass for all of them.

The law: each replica equals the solo run of its segment, up to rounding. Every replica keeps its
own `Training`, and with it its data order, optimiser, interventions and measuring; only the
gradients come from one pass over parameters that are stacked along a first axis. The parameters of
a replica's model are views of that stack, so whatever a solo run does with its model, from the
optimiser's step to a checkpoint, needs no second form here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from grokscope.engine.looks import Looks
from grokscope.engine.loop import STEPS_PER_TICK, Tick, Training
from grokscope.engine.objective import Outcome
from grokscope.engine.state import State, generators
from grokscope.measures.checks import NotFiniteError
from grokscope.spec import Segment
from grokscope.tasks import Task

# What may differ between replicas of one phase, beside the seeds: it acts on each alone.
OWN = {"optimizer", "constraints"}
# How far loss and gradients may be apart, in shares of their norm: GPUs round products to TF32.
TOLERANCE = {"cpu": 1e-3, "cuda": 0.1}


class UnlikeError(ValueError):
    """Runs that cannot be trained together; each can be trained alone."""


def shape_of(segment: Segment) -> str | None:
    """What segments have in common that can be trained together; None for one that cannot be.

    Alike are the task (its seeds aside), the batch size, when and what is measured, where the
    phase begins and ends, and its penalties but for their weights. Optimisers and caps may differ.
    Sharpness-aware steps and penalties that remember class means are not batched, nor is bfloat16:
    autocast treats a batched operation otherwise than the same one alone.
    """
    run, phase = segment.run, segment.phase
    if phase.sharpness_aware is not None or any(each.memory for each in phase.penalties):
        return None
    if phase.precision != "float32":
        return None
    settings = phase.model_dump(mode="json", exclude=OWN)
    for penalty in settings["penalties"]:
        del penalty["weight"]
    capped = bool(phase.constraints)  # they need the head's input
    parts = [run.task.kind, run.task.model_dump(mode="json"), run.batch_size, segment.start]
    watched = run.observation.model_dump(mode="json")
    return json.dumps([*parts, watched, settings, capped], sort_keys=True)


class Replicas:
    """Segments of one shape under way.

    Args:
        tasks: Model (trained in place) and data of each.
        segments: Which phase each runs.
        states: Where each goes on; None starts from the task's initial model. All at one step.

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
        self._batches = [training.batches() for training in self.trainings]
        self._try()
        tolerance = TOLERANCE["cuda" if self.weights.is_cuda else "cpu"]
        self.looks = Looks(self.trainings, self.parameters, self.constants, tolerance)

    def state(self, place: int) -> State:
        """A copy of one replica's state, as `Training.state`."""
        state = self.trainings[place].state()
        # Generators are global: a solo run would have found them as it left them, at its start.
        state.tensors.update({key: own.clone() for key, own in self.generators[place].items()})
        return state

    def run(self) -> Iterator[dict[int, Tick]]:
        """Train to the end of the phase; yields ticks by place, of those that are still running.

        A replica that is no longer finite says so in a last tick; the others go on.
        """
        ticks = self._look([place for place in self.alive if self.trainings[place].fresh])
        for training in self.trainings:
            training.task.model.train()
        self._bury(ticks)
        if ticks:
            yield ticks
        while self.alive and self._step() < self.trainings[0].until:
            ticks = self.advance()
            step = self._step()
            if step in self.trainings[0].points:
                ticks |= self._look([place for place in self.alive if place not in ticks])
            if step % STEPS_PER_TICK == 0:
                ticks |= {place: Tick(step) for place in self.alive if place not in ticks}
            self._bury(ticks)
            if ticks:
                yield ticks

    def _step(self) -> int:
        return self.trainings[0].step

    def _bury(self, ticks: Mapping[int, Tick]) -> None:
        self.alive = [
            place for place in self.alive if not (place in ticks and ticks[place].diverged)
        ]

    def _look(self, places: Sequence[int]) -> dict[int, Tick]:
        """Measure some replicas, which are at one step."""
        if self.looks.alone or len(places) < 2:
            return {place: self._look_alone(place) for place in places}
        return {
            place: self.trainings[place].diverged() if rows is None else Tick(self._step(), rows)
            for place, rows in self.looks.rows(places).items()
        }

    def _look_alone(self, place: int) -> Tick:
        training = self.trainings[place]
        try:
            return Tick(training.step, training.look())
        except NotFiniteError:
            return training.diverged()

    def advance(self) -> dict[int, Tick]:
        """One step of all; returns the last ticks of those that a penalty found not finite."""
        drawn = [next(each) for each in self._batches]  # before the step counts
        for training in self.trainings:
            training.step += 1
        step = self._step()
        examples = [
            training.update.examples(step, batch)
            for training, batch in zip(self.trainings, drawn, strict=True)
        ]
        wanted = {
            training.update.active(step, labels)
            for training, (_, labels) in zip(self.trainings, examples, strict=True)
        }
        if len(wanted) > 1:  # a batch of one class has no ncc: then each alone
            return self._advance_apart(drawn)
        (active,) = wanted
        inputs, labels = (torch.stack(each) for each in zip(*examples, strict=True))
        outcome, own = self._gradients(inputs, labels, active)
        values, features = outcome.values, outcome.features
        ended: dict[int, Tick] = {}
        if outcome.finite is not None:  # alone, penalties look whether they are given finite values
            fine = outcome.finite.tolist()
            ended = {
                place: self.trainings[place].diverged() for place in self.alive if not fine[place]
            }
        seen = [value.unbind() for value in values.values()]
        for place in self.alive:
            if place in ended:
                continue
            update = self.trainings[place].update
            for parameter, gradient in zip(update.parameters, own, strict=True):
                parameter.grad = None if gradient is None else gradient[place]
            of_this = dict(zip(values, (each[place] for each in seen), strict=True))
            seen_by_head = None if features is None else features[place]
            update.apply(step, labels[place], of_this, seen_by_head)
        return ended

    def _advance_apart(self, drawn: Sequence[Tensor]) -> dict[int, Tick]:
        ended = {}
        for place in self.alive:
            training = self.trainings[place]
            try:
                training.update(training.step, drawn[place])
            except NotFiniteError:
                ended[place] = training.diverged()
        return ended

    def _gradients(
        self, inputs: Tensor, labels: Tensor, active: Sequence[int]
    ) -> tuple[Outcome, list[Sequence[Tensor] | None]]:
        """Outcomes of all replicas, each tensor with a first axis ``[replicas]``, and gradients.

        Gradients are by parameter, then by replica; None for a parameter that was not used.
        """
        outcome = self._objectives(inputs, labels, active)
        parameters = list(self.parameters.values())
        gradients = torch.autograd.grad(outcome.total.sum(), parameters, allow_unused=True)
        # Contiguous: fused optimisers on the CPU take no heed of strides.
        return outcome, [None if each is None else each.contiguous().unbind() for each in gradients]

    def _objectives(self, inputs: Tensor, labels: Tensor, active: Sequence[int]) -> Outcome:
        objective = self.trainings[0].update.objective

        def one(
            parameters: Mapping[str, Tensor],
            constants: Mapping[str, Tensor],
            weights: Tensor,
            inputs: Tensor,
            labels: Tensor,
        ) -> dict[str, Any]:
            arguments: tuple[object, ...] = (inputs, labels, weights, active, {})
            outcome = functional_call(objective, {**parameters, **constants}, arguments)
            # vmap takes tensors alone.
            return {name: each for name, each in outcome._asdict().items() if each is not None}

        outcomes = vmap(one)(self.parameters, self.constants, self.weights, inputs, labels)
        return Outcome(
            outcomes["total"], outcomes["values"], outcomes.get("features"), outcomes.get("finite")
        )

    def _try(self) -> None:
        """Compare all with each alone on a batch, so that a refusal comes before work.

        In evaluation mode, where BatchNorm does not amplify rounding; training mode must only run.
        """
        batch = torch.arange(min(self.trainings[0].batch_size, len(self.trainings[0].task.train)))
        examples = [each.update.examples(1, batch) for each in self.trainings]
        inputs, labels = (torch.stack(each) for each in zip(*examples, strict=True))
        defined = [
            set(each.update.defined(own)) for each, own in zip(self.trainings, labels, strict=True)
        ]
        active = tuple(sorted(set.intersection(*defined)))
        name = type(self.trainings[0].task.model).__name__
        kept = {key: tensor.clone() for key, tensor in self.constants.items()}
        try:
            self._modes(training=True)
            self._gradients(inputs, labels, active)
            self._modes(training=False)
            together, gradients = self._gradients(inputs, labels, active)
            for place, (training, given) in enumerate(zip(self.trainings, examples, strict=True)):
                update = training.update
                total = update.objective(*given, update.weights, active, {}).total
                own = torch.autograd.grad(total, update.parameters, allow_unused=True)
                ours = [None if each is None else each[place] for each in gradients]
                _check_equal(name, (together.total[place], *ours), (total, *own))
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
        for each in self.trainings:
            each.task.model.train(training)


def _check_equal(
    name: str, together: Sequence[Tensor | None], alone: Sequence[Tensor | None]
) -> None:
    """Check that loss and gradients of a replica are those of its run alone.

    Raises:
        UnlikeError: If they differ by more than rounding.
    """
    used = [each is not None for each in alone]
    if used != [each is not None for each in together]:
        raise UnlikeError(f"{name} can't be trained in replicas: other parameters are used alone")
    pairs = [
        (ours.detach().double().flatten(), theirs.detach().double().flatten())
        for ours, theirs in zip(together, alone, strict=True)
        if ours is not None and theirs is not None
    ]
    own, expected = (torch.cat(each) for each in zip(*pairs, strict=True))
    if not bool(expected.isfinite().all()):
        return  # it has diverged, and will be told so
    apart = float((own - expected).norm() / expected.norm().clamp(min=1e-12))
    most = TOLERANCE["cuda" if together[0].is_cuda else "cpu"]  # type: ignore[union-attr]
    if not apart <= most:
        raise UnlikeError(
            f"{name} can't be trained in replicas: loss and gradients of all at once differ from "
            f"those of each alone by {apart:.2g} of their size"
        )


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


def check_alike(
    tasks: Sequence[Task], segments: Sequence[Segment], states: Sequence[State | None]
) -> None:
    """Check that runs can be trained together, before anything is built.

    Raises:
        UnlikeError: Saying in what they differ.
    """
    shapes = {shape_of(segment) for segment in segments}
    if None in shapes:
        raise UnlikeError(
            "sharpness-aware steps, penalties with a memory and bfloat16 are not batched; train "
            "each alone"
        )
    if len(shapes) > 1:
        raise UnlikeError(
            "replicas may differ in seeds, optimiser, caps and the weights of penalties alone, but "
            f"segments {', '.join(each.id for each in segments)} differ in more"
        )
    steps = {
        segment.start if state is None else state.step
        for segment, state in zip(segments, states, strict=True)
    }
    if len(steps) > 1:
        raise UnlikeError(f"replicas must be at one step, but are at {sorted(steps)}")
    sizes = {len(task.train) for task in tasks}
    if len(sizes) > 1:
        raise UnlikeError(f"replicas need equally many training examples, not {sorted(sizes)}")
    if any(task.loss is not tasks[0].loss for task in tasks):
        raise UnlikeError("replicas need one loss, the same function; these tasks have their own")
    forms = {
        tuple(
            (name, tensor.shape, tensor.dtype, tensor.requires_grad)
            for name, tensor in [*task.model.named_parameters(), *task.model.named_buffers()]
        )
        for task in tasks
    }
    if len(forms) > 1:
        raise UnlikeError("replicas need models with the same parameters, of the same shapes")


def stack(models: Sequence[nn.Module]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Stack the tensors of models, and make each model's own views of the stacks.

    Args:
        models: Of one form.

    Returns:
        Trainable parameters ``[replicas, ...]`` and all else (frozen parameters, buffers), by the
        names that they have in an `Objective`.
    """
    parameters: dict[str, Tensor] = {}
    constants: dict[str, Tensor] = {}
    tensors = [dict([*model.named_parameters(), *model.named_buffers()]) for model in models]
    for name, first in tensors[0].items():
        stacked = torch.stack([own[name].detach() for own in tensors])
        for own, view in zip(tensors, stacked.unbind(), strict=True):
            own[name].data = view
        if first.requires_grad:
            parameters[f"model.{name}"] = stacked.requires_grad_()
        else:
            constants[f"model.{name}"] = stacked
    return parameters, constants
