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

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from grokscope.engine.loop import STEPS_PER_TICK, Tick, Training
from grokscope.engine.state import GENERATOR, State
from grokscope.measures.checks import NotFiniteError
from grokscope.spec import Segment
from grokscope.tasks import Task

# What may differ between replicas of one phase, beside the seeds: it acts on each alone.
OWN = {"optimizer", "constraints"}


class UnlikeError(ValueError):
    """Runs that cannot be trained together; each can be trained alone."""


def shape_of(segment: Segment) -> str | None:
    """What segments have in common that can be trained together; None for one that cannot be.

    Alike are the task (its seeds aside), the batch size, when and what is measured, where the
    phase begins and ends, and its penalties but for their weights. Optimisers and caps may differ.
    Sharpness-aware steps and penalties that remember class means are not batched.
    """
    run, phase = segment.run, segment.phase
    if phase.sharpness_aware is not None or any(each.memory for each in phase.penalties):
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
        self.generators: list[Tensor] = []
        for task, segment, state in zip(tasks, segments, states, strict=True):
            self.trainings.append(Training(task, segment, state))
            self.generators.append(torch.get_rng_state())
        self.alive = list(range(len(tasks)))
        models = [task.model for task in tasks]
        self.parameters, self.constants = stack(models)
        # [replicas, penalties]
        self.weights = torch.stack([training.update.weights for training in self.trainings])
        self._batches = [training.batches() for training in self.trainings]
        self._try()

    def state(self, place: int) -> State:
        """A copy of one replica's state, as `Training.state`."""
        state = self.trainings[place].state()
        # The generator is global: a solo run would have found it as it left it, at its start.
        state.tensors[GENERATOR] = self.generators[place].clone()
        return state

    def run(self) -> Iterator[dict[int, Tick]]:
        """Train to the end of the phase; yields ticks by place, of those that are still running.

        A replica that is no longer finite says so in a last tick; the others go on.
        """
        firsts = [list(training.first()) for training in self.trainings]
        if any(firsts):
            yield {place: ticks[0] for place, ticks in enumerate(firsts) if ticks}
        while self.alive and self._step() < self.trainings[0].until:
            ticks = self.advance()
            step = self._step()
            for place in self.alive:
                if place not in ticks and step in self.trainings[place].points:
                    ticks[place] = self._look(place)
            if step % STEPS_PER_TICK == 0:
                ticks |= {place: Tick(step) for place in self.alive if place not in ticks}
            self.alive = [
                place for place in self.alive if not (place in ticks and ticks[place].diverged)
            ]
            if ticks:
                yield ticks

    def _step(self) -> int:
        return self.trainings[0].step

    def _look(self, place: int) -> Tick:
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
        total, values, features = self._objectives(inputs, labels, active)
        gradients = torch.autograd.grad(total.sum(), list(self.parameters.values()))
        # Fused optimisers on the CPU take no heed of strides.
        own = [gradient.contiguous().unbind() for gradient in gradients]
        ended: dict[int, Tick] = {}
        if active:  # solo, every penalty looks whether it is given finite values
            finite = total.isfinite() & features.flatten(1).isfinite().all(1)
            fine = finite.tolist()
            ended = {
                place: self.trainings[place].diverged() for place in self.alive if not fine[place]
            }
        seen = [value.unbind() for value in values.values()]
        for place in self.alive:
            if place in ended:
                continue
            update = self.trainings[place].update
            for parameter, gradient in zip(update.parameters, own, strict=True):
                parameter.grad = gradient[place]
            of_this = dict(zip(values, (each[place] for each in seen), strict=True))
            kept = features[place] if features.numel() else None
            update.apply(step, labels[place], of_this, kept)
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

    def _objectives(
        self, inputs: Tensor, labels: Tensor, active: Sequence[int]
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Of all replicas: total ``[r]``, values ``[r]`` by name, features ``[r, rows, width]``."""
        objective = self.trainings[0].update.objective

        def one(
            parameters: Mapping[str, Tensor],
            constants: Mapping[str, Tensor],
            weights: Tensor,
            inputs: Tensor,
            labels: Tensor,
        ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
            arguments: tuple[object, ...] = (inputs, labels, weights, active, {})
            outcome = functional_call(objective, {**parameters, **constants}, arguments)
            features = outcome.features
            nothing = outcome.total.new_empty(0)
            return outcome.total, outcome.values, nothing if features is None else features

        return vmap(one)(self.parameters, self.constants, self.weights, inputs, labels)

    def _try(self) -> None:
        """Compare all with each alone on a few examples, so that a refusal comes before work."""
        few = torch.arange(min(2, len(self.trainings[0].task.train)))
        examples = [each.update.examples(1, few) for each in self.trainings]
        kept = {name: tensor.clone() for name, tensor in self.constants.items()}
        name = type(self.trainings[0].task.model).__name__
        try:
            with torch.no_grad():
                alone = []
                for training, given in zip(self.trainings, examples, strict=True):
                    training.task.model.train()
                    update = training.update
                    alone.append(update.objective(*given, update.weights, (), {}).total)
                self._reset(kept)
                inputs, labels = (torch.stack(each) for each in zip(*examples, strict=True))
                together, _, _ = self._objectives(inputs, labels, ())
        except (RuntimeError, ValueError) as error:
            why = str(error).strip().splitlines()[0]
            raise UnlikeError(f"{name} can't be trained in replicas: {why}") from error
        finally:
            self._reset(kept)
        if not torch.allclose(together, torch.stack(alone), rtol=1e-3, atol=1e-4):
            raise UnlikeError(
                f"{name} can't be trained in replicas: the losses of all at once, "
                f"{together.tolist()}, are not those of each alone, {torch.stack(alone).tolist()}"
            )

    def _reset(self, constants: Mapping[str, Tensor]) -> None:
        for name, tensor in self.constants.items():
            tensor.copy_(constants[name])


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
            "sharpness-aware steps and penalties with a memory are not batched; train each alone"
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
    forms = {
        tuple(
            (name, tensor.shape, tensor.dtype) for name, tensor in task.model.state_dict().items()
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
