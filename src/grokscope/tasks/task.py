"""Data and model together: what is trained, and how it is looked at."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import InitVar, dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from grokscope.probe import Look, Measurement
from grokscope.probe.trees import map_tensors, take, tensors_of

OwnLook = Callable[[nn.Module, "Split", Measurement | None], Measurement]


@dataclass(frozen=True)
class Split:
    """Examples held in memory.

    Args:
        inputs: What a model is given: a tensor ``[n, ...]``, a tuple of positional or a mapping of
            keyword arguments, each a tensor or a tree of tensors.
        labels: Class indices, ``[n, ...]``; -100 does not count.

    Raises:
        ValueError: If inputs and labels are not equally many, or fewer than two.
    """

    inputs: Any
    labels: Tensor

    def __post_init__(self) -> None:
        sizes = sorted({len(tensor) for tensor in tensors_of(self.inputs)})
        if sizes != [len(self.labels)]:
            found = " and ".join(map(str, sizes)) or "no"
            raise ValueError(f"{found} inputs do not match {len(self.labels)} labels")
        if len(self.labels) < 2:
            raise ValueError(f"a split needs at least 2 examples, but has {len(self.labels)}")

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, count: int) -> Split:
        """The first ``count`` examples, or all if there are fewer."""
        return Split(take(self.inputs, slice(count)), self.labels[:count])

    def to(self, device: torch.device) -> Split:
        """The same examples on another device."""
        inputs = map_tensors(lambda tensor: tensor.to(device), self.inputs)
        return Split(inputs, self.labels.to(device))

    def equals(self, other: Split) -> bool:
        """Whether another split on the same device holds the same examples in the same form."""
        return _same(self.labels, other.labels) and _same(self.inputs, other.inputs)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return self.labels.nbytes + sum(tensor.nbytes for tensor in tensors_of(self.inputs))


def _same(one: Any, other: Any) -> bool:
    """Whether two trees of tensors are the same."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if type(one) is not type(other):
        return False
    if isinstance(one, Mapping):
        return list(one) == list(other) and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, (tuple, list)):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)


class Loss(Protocol):
    """A loss of logits ``[..., classes]`` and labels ``[...]``; a scalar tensor."""

    def __call__(self, logits: Tensor, labels: Tensor, /) -> Tensor: ...


def cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy in nats over all labels, ``[..., classes]`` against ``[...]``."""
    return functional.cross_entropy(
        logits.flatten(0, -2), labels.flatten(), label_smoothing=label_smoothing
    )


class Augmentation(ABC):
    """Changes a batch of training inputs at random; a base class for yours.

    Drawing is apart from applying, so that a step which is captured in a CUDA graph can apply.
    """

    @abstractmethod
    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """What is random for ``count`` examples, ``[count, ...]``, drawn on the CPU."""

    @abstractmethod
    def __call__(self, inputs: Any, drawn: Tensor) -> Any:
        """The changed inputs; a function of its arguments, on their device."""


class _ByGenerator(Augmentation):
    """A function of inputs and a generator as an `Augmentation`: what it draws is a seed."""

    def __init__(self, function: Callable[[Any, torch.Generator], Any]) -> None:
        self.function = function

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        return torch.full((count,), generator.initial_seed())

    def __call__(self, inputs: Any, drawn: Tensor) -> Any:
        return self.function(inputs, torch.Generator().manual_seed(int(drawn[0])))


@dataclass(frozen=True)
class _FunctionLook(Look):
    """The deprecated way of looking: a function of model, split and reference."""

    function: OwnLook | None = None

    def __call__(
        self, model: nn.Module, examples: Any, reference: Measurement | None = None
    ) -> Measurement:
        assert self.function is not None
        return self.function(model, examples, reference)

    def together(self, *_: Any, **__: Any) -> Any:
        raise ValueError("the task measures its model in its own way")


@dataclass(frozen=True)
class Task:
    """A model with its data.

    Args:
        model: Maps a batch of inputs to logits.
        train: Training examples, in any order: the loop shuffles.
        validation: Held-out examples; the first ones are the frozen subset that is measured.
        loss: Of logits and labels; mean cross-entropy by default. Label smoothing is passed by
            that name, if a phase asks for it.
        look: Head, rows that count and measures of your own; penalties, constraints and all
            measurements go by it.
        test: Examples that decide nothing: measured only at the end of each phase.
        augment: Changes a batch of training inputs: an `Augmentation`, or a function of the inputs
            and a generator on the CPU, whose steps can't be captured in a CUDA graph.
        measure: Deprecated: a `Look`, or a function of model, split and reference.
    """

    model: nn.Module
    train: Split
    validation: Split
    loss: Loss = cross_entropy
    look: Look = field(default_factory=Look)
    test: Split | None = None
    augment: Augmentation | Callable[[Any, torch.Generator], Any] | None = None
    measure: InitVar[Look | OwnLook | None] = None

    def __post_init__(self, measure: Look | OwnLook | None) -> None:
        look = measure if measure is not None else self.look
        if measure is not None:
            warnings.warn(
                "Task(measure=...) is called look=... now; it takes a grokscope.tasks.Look, and "
                "measures of your own go into Look(extra={...}).",
                DeprecationWarning,
                stacklevel=3,
            )
        if not isinstance(look, Look):
            look = _FunctionLook(function=look)
        object.__setattr__(self, "look", look)

    @property
    def augmentation(self) -> Augmentation | None:
        """``augment`` as drawing and applying."""
        if self.augment is None or isinstance(self.augment, Augmentation):
            return self.augment
        return _ByGenerator(self.augment)

    def to(self, device: torch.device) -> Task:
        """The task with its model and all of its data on a device."""
        return replace(
            self,
            model=self.model.to(device),
            train=self.train.to(device),
            validation=self.validation.to(device),
            test=None if self.test is None else self.test.to(device),
        )
