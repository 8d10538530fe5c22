"""Looks at runs from outside: every measure on frozen subsets of their data, as tidy rows.

One run is measured by the probe. Runs of one shape are measured at once, where their task and model
allow it, and otherwise one after the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from grokscope.measures.checks import NotFiniteError
from grokscope.measures.curvature import as_arguments, modes_kept
from grokscope.probe import Measurement, Probe
from grokscope.probe.head import recorded
from grokscope.probe.idle import idle_taps
from grokscope.probe.rows import IGNORED
from grokscope.probe.trees import Heads, at, stacked
from grokscope.spec import Observation
from grokscope.tasks.task import Split, Task

PREFIX = "model."  # of the names of stacked tensors
TRIED = 8  # examples on which measuring at once is compared with measuring alone


class Row(NamedTuple):
    """One number: where in the run, on which data, which measure."""

    step: int
    epoch: float
    split: str
    measure: str
    value: float


class Observer:
    """Measures the models of tasks on the first examples of their splits.

    Args:
        tasks: The task of one run, or of several of one shape.
        observation: How many examples to measure.
        stacks: For several runs, all tensors of their models by ``model.<name>``, with a first axis
            of runs; those of the models are views of them.
        tolerance: How far a forward pass of all may be from one alone, as a share of its norm.

    Attributes:
        alone: Why runs are measured one after the other; empty if they are measured at once.
        idle: Taps of the model's convolutions that never meet an image, by the name of the weight.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        observation: Observation,
        *,
        stacks: Mapping[str, Tensor] | None = None,
        tolerance: float = 0.0,
    ) -> None:
        self.tasks, self.look, self.model = tasks, tasks[0].look, tasks[0].model
        self.splits: list[dict[str, Split]] = []
        for task in tasks:
            splits = {
                "train": task.train.first(observation.train_examples),
                "validation": task.validation.first(observation.validation_examples),
            }
            self.splits.append(splits if task.test is None else splits | {"test": task.test})
        self.stacks = {name.removeprefix(PREFIX): tensor for name, tensor in (stacks or {}).items()}
        self.idle = idle_taps(self.model, tasks[0].train.first(TRIED).inputs)
        self.alone = "one run"
        if stacks is not None:
            try:
                self._try(tolerance)
                self.alone = ""
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, ValueError) as error:
                self.alone = str(error).strip().splitlines()[0]

    def rows(
        self, step: int, epoch: float, *, places: Sequence[int] = (0,), last: bool = False
    ) -> dict[int, list[Row] | NotFiniteError]:
        """Every measure of the runs at some places; the models are left as they were.

        Held-out data are measured against the training data: the gap, and agreement with the
        nearest class mean of the training data. The test split is measured at the ``last`` step.

        Returns:
            The rows of each run by its place; an error if features or logits are not finite.
        """
        found: dict[int, list[Row] | NotFiniteError] = {}
        measured: dict[int, dict[str, Measurement]] = {place: {} for place in places}
        for split in self.splits[0]:
            if split == "test" and not last:
                continue
            finite = [place for place in places if place not in found]
            for place, measurement in self._measure(finite, split, measured).items():
                if isinstance(measurement, Measurement):
                    measured[place][split] = measurement
                else:
                    found[place] = measurement
        finite = [place for place in places if place not in found]
        norms = {"parameter_norm": self._norms(finite, {})}
        if self.idle:
            norms["trained_parameter_norm"] = self._norms(finite, self.idle)
        for place in finite:
            logged = {name: values[place] for name, values in norms.items()}
            train = {**measured[place].pop("train"), **logged}
            values: dict[str, Mapping[str, float]] = {"train": train, **measured[place]}
            found[place] = [
                Row(step, epoch, split, measure=measure, value=float(value))
                for split, measures in values.items()
                for measure, value in measures.items()
            ]
        return found

    def _measure(
        self, places: Sequence[int], split: str, measured: Mapping[int, Mapping[str, Measurement]]
    ) -> dict[int, Measurement | NotFiniteError]:
        """Measurements of a split, against those of the training data if these are there."""
        references = {place: measured[place].get("train") for place in places}
        if self.alone or len(places) < 2:
            return {place: self._one(place, split, references[place]) for place in places}
        splits = [self.splits[place][split] for place in places]
        known = [reference for reference in references.values() if reference is not None]
        found = self._together(places, splits, known or None)
        return dict(zip(places, found, strict=True))

    def _one(
        self, place: int, split: str, reference: Measurement | None
    ) -> Measurement | NotFiniteError:
        task = self.tasks[place]
        try:
            return task.look(task.model, self.splits[place][split], reference)
        except NotFiniteError as error:
            return error

    def _together(
        self,
        places: Sequence[int],
        splits: Sequence[Split],
        references: Sequence[Measurement] | None = None,
    ) -> list[Measurement | NotFiniteError]:
        """Measurements of several runs in one pass."""
        name, _ = self.look.find_head(self.model)
        stacks = at(self.stacks, places)
        heads = Heads(stacks[f"{name}.weight"], stacks.get(f"{name}.bias"))
        return self.look.together(partial(self._forward, stacks), heads, splits, references)

    def _forward(self, stacks: Mapping[str, Tensor], inputs: Any) -> tuple[Tensor, Tensor]:
        """Inputs and outputs of the heads, each with a first axis of runs."""
        _, head = self.look.find_head(self.model)

        def one(tensors: dict[str, Tensor], inputs: Any) -> tuple[Tensor, Tensor]:
            positional, keywords = as_arguments(inputs)
            with recorded(head) as calls:
                functional_call(self.model, tensors, positional, keywords)
            if len(calls) != 1:
                raise ValueError(f"the head was called {len(calls)} times in one forward pass")
            return calls[0]

        # In evaluation mode: this one model is called for all runs.
        with torch.no_grad(), modes_kept(self.model, evaluate=True):
            features, logits = vmap(one)(dict(stacks), inputs)
        return features, logits

    @torch.no_grad()
    def _norms(self, places: Sequence[int], idle: Mapping[str, Tensor]) -> dict[int, float]:
        """Euclidean norm of all trainable parameters together, without idle taps, of each run."""
        if self.alone or len(places) < 2:
            return {place: parameter_norm(self.tasks[place].model, idle) for place in places}
        names = [name for name, tensor in self.model.named_parameters() if tensor.requires_grad]
        stacks = [without(self.stacks[name], idle.get(name)) for name in names]
        norms = [torch.linalg.vector_norm(stack.flatten(1), dim=1) for stack in stacks]
        totals = torch.stack(norms).double().square().sum(dim=0).sqrt().tolist()
        return {place: totals[place] for place in places}

    def _try(self, tolerance: float) -> None:
        """Measure a few examples both ways; raises a ValueError that says why that fails."""
        name, _ = self.look.find_head(self.model)
        if not all(self.look.is_like(task.look) for task in self.tasks):
            raise ValueError("the looks of the tasks differ: other heads, rows or functions")
        if f"{name}.weight" not in self.stacks:
            raise ValueError(f"the weight of the head {name} is shared or computed")
        for name in self.splits[0]:
            compared = [splits[name] for splits in self.splits]
            sizes = {len(split) for split in compared}
            if len(sizes) > 1:
                raise ValueError(f"the {name} data differ in size: {sorted(sizes)}")
            if any(bool((split.labels == IGNORED).any()) for split in compared):
                raise ValueError(
                    "labels of -100 are left out, and each run may have another number"
                )
        few = [splits["train"].first(TRIED) for splits in self.splits]
        self._together(range(len(self.tasks)), few)
        inputs = stacked([split.inputs for split in few])
        for kind, together in zip(
            ("features", "logits"), self._forward(self.stacks, inputs), strict=True
        ):
            for place, (task, split) in enumerate(zip(self.tasks, few, strict=True)):
                probe = Probe(task.model, self.look.head)
                alone = dict(zip(("features", "logits"), probe.capture(split.inputs), strict=True))
                check_close(kind, together[place], alone[kind], tolerance)


def check_close(kind: str, together: Tensor, alone: Tensor, tolerance: float) -> None:
    """Check that a forward pass of all runs at once gives a run what it has alone."""
    if together.shape != alone.shape:
        raise ValueError(f"of all at once the head has {kind} {tuple(together.shape)}")
    apart = float((together.double() - alone.double()).norm() / alone.double().norm())
    if apart > tolerance:  # not if it has diverged, which its look reports
        raise ValueError(f"a forward pass of all at once differs by {apart:.2g}")


@torch.no_grad()
def parameter_norm(model: nn.Module, idle: Mapping[str, Tensor] | None = None) -> float:
    """Euclidean norm of all trainable parameters together, without taps that are ``idle``."""
    trained: list[Tensor] = [
        without(tensor, (idle or {}).get(name))
        for name, tensor in model.named_parameters()
        if tensor.requires_grad
    ]
    return float(torch.stack(torch._foreach_norm(trained)).double().square().sum().sqrt())


def without(weight: Tensor, idle: Tensor | None) -> Tensor:
    """A weight ``[..., *kernel]`` with zeros in place of its idle taps."""
    return weight if idle is None else weight.masked_fill(idle, 0.0)
