"""Data and model together: what is trained, and how it is looked at.

A task is a function that returns a `Task`. Ours are built from their settings by `build_task`;
yours from ``package.module:function`` or ``file.py:function``.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.nn import functional

from grokscope.probe import Measurement, Probe
from grokscope.spec import CustomTask, ModularArithmetic, Seeds
from grokscope.spec import Task as TaskSettings

__all__ = ["Split", "Task", "build_task", "import_function"]


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


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy in nats over all labels, ``[..., classes]`` against ``[...]``."""
    return functional.cross_entropy(logits.flatten(0, -2), labels.flatten())


def measure(model: nn.Module, split: Split, reference: Measurement | None = None) -> Measurement:
    """What the probe says of the model on a split, in evaluation mode."""
    return Probe(model).measure([(split.inputs, split.labels)], reference)


@dataclass(frozen=True)
class Task:
    """A model with its data.

    Args:
        model: Maps a batch of inputs to logits.
        train: Training examples, in an order that does not matter: the loop shuffles.
        validation: Held-out examples; the first ones are the frozen subset that is measured.
        loss: Of logits and labels; mean cross-entropy unless said otherwise.
        measure: How the probe looks at the model on a split.
    """

    model: nn.Module
    train: Split
    validation: Split
    loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy
    measure: Callable[[nn.Module, Split, Measurement | None], Measurement] = measure


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
        return _custom_task(settings, seeds)


def _custom_task(settings: CustomTask, seeds: Seeds) -> Task:
    function = import_function(settings.function)
    arguments = dict(settings.arguments)
    if "seed" in inspect.signature(function).parameters:
        arguments.setdefault("seed", seeds.split)
    try:
        inspect.signature(function).bind(**arguments)
    except TypeError as error:
        raise ValueError(f"task.arguments do not fit {settings.function}: {error}") from error
    task = function(**arguments)
    if not isinstance(task, Task):
        raise ValueError(
            f"{settings.function} returned {type(task).__name__}; it must return a grokscope Task"
        )
    return task


def import_function(reference: str) -> Callable[..., object]:
    """The object that ``package.module:name`` or ``path/to/file.py:name`` refers to.

    Raises:
        ValueError: If the reference has another form, or there is no such file, module or name.
    """
    source, colon, name = reference.rpartition(":")
    if not colon or not source or not name:
        raise ValueError(f"{reference!r}: write package.module:name or path/to/file.py:name")
    try:
        module = _import_file(Path(source)) if source.endswith(".py") else _import_name(source)
    except (ModuleNotFoundError, FileNotFoundError) as error:
        raise ValueError(f"{reference!r}: {error}") from error
    if not hasattr(module, name):
        public = [each for each in vars(module) if not each.startswith("_")]
        raise ValueError(f"{reference!r}: {source} has no {name!r}; it has {', '.join(public)}")
    return getattr(module, name)


def _import_name(name: str) -> ModuleType:
    return importlib.import_module(name)


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    specification = importlib.util.spec_from_file_location(path.stem, path)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module
