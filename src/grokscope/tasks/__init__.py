"""Data and model together: what is trained, and how it is looked at.

A task is a function that returns a `Task`. Ours are built from their settings by `build_task`;
yours from ``package.module:function`` or ``file.py:function``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from grokscope.probe import Measurement
from grokscope.reference import load
from grokscope.spec import CustomTask, Images, ModularArithmetic, Seeds
from grokscope.spec import Task as TaskSettings
from grokscope.tasks.looks import Look

__all__ = ["Look", "Split", "Task", "build_task", "check_task"]


@dataclass(frozen=True)
class Split:
    """Examples held in memory: ``inputs [n, ...]`` and integer ``labels [n, ...]``."""

    inputs: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if len(self.inputs) != len(self.labels):
            raise ValueError(f"{len(self.inputs)} inputs do not match {len(self.labels)} labels")
        if len(self.labels) < 2:
            raise ValueError(f"a split needs at least 2 examples, but has {len(self.labels)}")

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, count: int) -> Split:
        """The first ``count`` examples, or all where there are fewer."""
        return Split(self.inputs[:count], self.labels[:count])

    def to(self, device: torch.device) -> Split:
        return Split(self.inputs.to(device), self.labels.to(device))


class Loss(Protocol):
    """A loss of logits ``[..., classes]`` and labels ``[...]``; a scalar tensor."""

    def __call__(self, logits: Tensor, labels: Tensor, /) -> Tensor: ...


def cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy in nats over all labels, ``[..., classes]`` against ``[...]``."""
    return functional.cross_entropy(
        logits.flatten(0, -2), labels.flatten(), label_smoothing=label_smoothing
    )


measure = Look()


@dataclass(frozen=True)
class Task:
    """A model with its data.

    Args:
        model: Maps a batch of inputs to logits.
        train: Training examples, in an order that does not matter: the loop shuffles.
        validation: Held-out examples; the first ones are the frozen subset that is measured.
        loss: Of logits and labels; mean cross-entropy unless said otherwise. Label smoothing is
            passed by that name, where a phase asks for it.
        measure: How the probe looks at the model on a split. A `Look` can look at many replicas
            at once; another function is called for one after the other.
        test: Examples that decide nothing: measured at the end of each phase alone.
        augment: Changes a batch of training inputs; takes it and a generator on the CPU.
    """

    model: nn.Module
    train: Split
    validation: Split
    loss: Loss = cross_entropy
    measure: Callable[[nn.Module, Split, Measurement | None], Measurement] = measure
    test: Split | None = None
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None

    def to(self, device: torch.device) -> Task:
        """The task with its model and all of its data there."""
        return replace(
            self,
            model=self.model.to(device),
            train=self.train.to(device),
            validation=self.validation.to(device),
            test=None if self.test is None else self.test.to(device),
        )


def build_task(settings: TaskSettings, seeds: Seeds) -> Task:
    """Make the task that the settings describe; randomness comes from ``seeds`` alone.

    Raises:
        ValueError: If the settings contradict each other, or a custom function cannot be found,
            does not take the arguments or returns something else.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds.initialisation or 0)
        if isinstance(settings, ModularArithmetic):
            from grokscope.tasks.modular import modular_arithmetic

            return modular_arithmetic(settings, split_seed=seeds.split or 0)
        if isinstance(settings, Images):
            from grokscope.tasks.images import images

            return images(settings, split_seed=seeds.split or 0)
        return _custom_task(settings, seeds)


def check_task(settings: TaskSettings) -> None:
    """Look for what is wrong with a task before work starts.

    Images are read, and so decoded once, before several processes want them.

    Raises:
        ValueError: If a custom function cannot be found or does not take the arguments; if images
            cannot be read, or are fewer than asked for.
    """
    if isinstance(settings, CustomTask):
        _custom_function(settings)
    if isinstance(settings, Images):
        from grokscope.tasks.images import images

        images(settings, split_seed=0)


def _custom_function(settings: CustomTask) -> Callable[..., object]:
    function = load(settings.function)
    if not callable(function):
        raise ValueError(f"{settings.function} is {type(function).__name__}, not a function")
    try:
        inspect.signature(function).bind(**{**_seed(function, 0), **settings.arguments})
    except TypeError as error:
        raise ValueError(f"task.arguments do not fit {settings.function}: {error}") from error
    return function


def _custom_task(settings: CustomTask, seeds: Seeds) -> Task:
    function = _custom_function(settings)
    task = function(**{**_seed(function, seeds.split), **settings.arguments})
    if not isinstance(task, Task):
        raise ValueError(
            f"{settings.function} returned {type(task).__name__}; it must return a grokscope Task"
        )
    return task


def _seed(function: Callable[..., object], seed: int | None) -> dict[str, int | None]:
    """The seed of the split, for functions that take one."""
    return {"seed": seed} if "seed" in inspect.signature(function).parameters else {}
