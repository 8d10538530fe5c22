"""Tasks from their settings: ours by kind, yours from a function."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import torch

from grokscope.reference import load
from grokscope.spec import CustomTask, Images, ModularArithmetic, Seeds
from grokscope.spec import Task as TaskSettings
from grokscope.tasks.task import Task


def build_task(settings: TaskSettings, seeds: Seeds) -> Task:
    """Build the task that the settings describe; randomness comes from ``seeds`` alone.

    Args:
        settings: Which task.
        seeds: Of the initialisation and of the split, without None.

    Returns:
        The task, on the CPU.

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

    Args:
        settings: Which task.

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
