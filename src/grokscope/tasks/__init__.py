"""Data and model together: what is trained, and how it is looked at.

A task is a function that returns a `Task`. Ours are built from their settings by `build_task`;
yours from ``package.module:function`` or ``file.py:function``.
"""

from __future__ import annotations

import warnings
from typing import Any

from grokscope.probe import Look
from grokscope.tasks.build import build_task, check_task
from grokscope.tasks.task import Augmentation, Split, Task

__all__ = ["Augmentation", "Look", "Split", "Task", "build_task", "check_task"]


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    """Names that have moved; they work for one version."""
    if name != "measure":
        raise AttributeError(f"module 'grokscope.tasks' has no attribute {name!r}")
    message = "grokscope.tasks.measure is grokscope.tasks.Look() now."
    warnings.warn(message, DeprecationWarning, stacklevel=2)
    return Look()
