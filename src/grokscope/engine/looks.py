"""Looks at replicas: all of them measured at once, where their task's way of looking allows it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from grokscope.engine.loop import Training
from grokscope.engine.observe import Row, rows_of
from grokscope.measures.curvature import modes_kept
from grokscope.probe import Measurement, Probe
from grokscope.probe.head import find_head
from grokscope.probe.together import Heads
from grokscope.tasks import Look, Split

PREFIX = "model."  # of the names of stacked tensors
TRIED = 8  # examples on which looking together is compared with looking alone


class Looks:
    """Measures replicas at one step.

    Args:
        trainings: Of all replicas.
        parameters: Stacked, ``[replicas, ...]``, by ``model.<name>``.
        constants: All else that the models hold, stacked.
        tolerance: How far a forward pass of all may be from one alone, as a share of its norm.

    Attributes:
        alone: Why replicas are measured one after the other; empty if they are not.
    """

    def __init__(
        self,
        trainings: Sequence[Training],
        parameters: Mapping[str, Tensor],
        constants: Mapping[str, Tensor],
        tolerance: float,
    ) -> None:
        self.trainings = trainings
        self.trained = dict(parameters)
        held = chain(parameters.items(), constants.items())
        self.stacks = {key.removeprefix(PREFIX): each for key, each in held}
        self.model = trainings[0].task.model
        self.alone = ""
        try:
            self._try(tolerance)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError) as error:
            self.alone = str(error).strip().splitlines()[0]

    def rows(self, places: Sequence[int]) -> dict[int, list[Row] | None]:
        """What there is to measure now of some replicas; None of those that are not finite."""
        found: dict[int, list[Row] | None] = dict.fromkeys(places)
        train = self._measured(places, lambda each: each.observer.train, None)
        validation = self._measured(list(train), lambda each: each.observer.validation, train)
        measured = {"train": train, "validation": validation}
        first = self.trainings[places[0]]
        if first.step == first.until and first.task.test is not None:
            measured["test"] = self._measured(list(validation), _test, train)
        fine = list(list(measured.values())[-1])
        if not fine:
            return found
        norms = self._norms(fine)
        sums = torch.stack([self.trainings[place].update.sums for place in fine]).tolist()
        for place, norm, own in zip(fine, norms, sums, strict=True):
            training = self.trainings[place]
            values: dict[str, Mapping[str, float]] = {
                split: each[place] for split, each in measured.items()
            }
            values["train"] = {**values["train"], "parameter_norm": norm}
            rows = rows_of(training.step, training.epoch, values)
            found[place] = training.with_running(rows, own)
        return found

    def _measured(
        self,
        places: Sequence[int],
        split_of: Callable[[Training], Split],
        references: Mapping[int, Measurement] | None,
    ) -> dict[int, Measurement]:
        if not places:
            return {}
        look = self.trainings[0].task.measure
        assert isinstance(look, Look)
        stacks = self._of(places)
        splits = [split_of(self.trainings[place]) for place in places]
        given = None if references is None else [references[place] for place in places]
        # In evaluation mode: of this one model, which is called for all.
        with torch.no_grad(), modes_kept(self.model, evaluate=True):
            measured = look.together(
                lambda inputs: self._forward(stacks, inputs), self._heads(stacks), splits, given
            )
        return {
            place: own
            for place, own in zip(places, measured, strict=True)
            if isinstance(own, Measurement)
        }

    def _forward(self, stacks: Mapping[str, Tensor], inputs: Tensor) -> tuple[Tensor, Tensor]:
        """What the heads see and say, each with a first axis of networks."""
        _, head = self._head()

        def one(tensors: dict[str, Tensor], inputs: Tensor) -> tuple[Tensor, Tensor]:
            calls: list[tuple[Tensor, Tensor]] = []
            watch = head.register_forward_hook(
                lambda _, given, output: calls.append((given[0], output))
            )
            try:
                functional_call(self.model, tensors, (inputs,))
            finally:
                watch.remove()
            if len(calls) != 1:
                raise ValueError(f"the head was called {len(calls)} times in one forward pass")
            return calls[0]

        features, logits = vmap(one)(dict(stacks), inputs)
        return features, logits

    def _head(self) -> tuple[str, nn.Linear]:
        look = self.trainings[0].task.measure
        assert isinstance(look, Look)
        return find_head(self.model, look.head)

    def _heads(self, stacks: Mapping[str, Tensor]) -> Heads:
        name, head = self._head()
        bias = None if head.bias is None else stacks[f"{name}.bias"]
        return Heads(stacks[f"{name}.weight"], bias)

    def _of(self, places: Sequence[int]) -> dict[str, Tensor]:
        if len(places) == len(self.trainings):
            return self.stacks
        index = torch.tensor(places, device=next(iter(self.stacks.values())).device)
        return {name: each.index_select(0, index) for name, each in self.stacks.items()}

    @torch.no_grad()
    def _norms(self, places: Sequence[int]) -> list[float]:
        """Euclidean norm of all trainable parameters together, of each replica."""
        each = [torch.linalg.vector_norm(own.flatten(1), dim=1) for own in self.trained.values()]
        norms = torch.stack(each).double().square().sum(dim=0).sqrt().tolist()
        return [norms[place] for place in places]

    def _try(self, tolerance: float) -> None:
        """Look at a few examples both ways.

        Raises:
            ValueError: If replicas cannot be measured together; says why.
        """
        looks = [training.task.measure for training in self.trainings]
        look = looks[0]
        if not isinstance(look, Look) or any(type(each) is not type(look) for each in looks):
            raise ValueError("the task measures its model in its own way")
        name, _ = self._head()
        if f"{name}.weight" not in self.stacks:
            raise ValueError(f"the weight of the head {name} is shared or computed")
        tested = [each.task.test for each in self.trainings]
        for sizes in (
            {len(each.observer.validation) for each in self.trainings},
            {None if each is None else len(each) for each in tested},
        ):
            if len(sizes) > 1:
                raise ValueError(f"held-out data differ in size: {sizes}")
        splits = [each.observer.train.first(TRIED) for each in self.trainings]
        passes: list[tuple[Tensor, Tensor]] = []

        def kept(inputs: Tensor) -> tuple[Tensor, Tensor]:
            passes.append(self._forward(self.stacks, inputs))
            return passes[-1]

        with torch.no_grad(), modes_kept(self.model, evaluate=True):
            look.together(kept, self._heads(self.stacks), splits)
        for index in (0, 1):
            together = torch.cat([each[index] for each in passes], dim=1)
            for own, training, split in zip(together, self.trainings, splits, strict=True):
                alone = Probe(training.task.model, look.head).capture(split.inputs)[index]
                if own.shape != alone.shape:
                    raise ValueError(f"of all at once the head gives {tuple(own.shape)}")
                apart = float((own.double() - alone.double()).norm() / alone.double().norm())
                if apart > tolerance:  # not where it has diverged: then it will be told so
                    raise ValueError(f"a forward pass of all at once differs by {apart:.2g}")


def _test(training: Training) -> Split:
    assert training.task.test is not None
    return training.task.test
