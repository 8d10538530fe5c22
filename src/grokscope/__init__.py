"""grokscope: what does a network need in order to generalise?

`Probe` measures any classifier; ``grokscope.measures`` holds the measures as functions of tensors;
the command ``grokscope run`` runs the experiments. Public are the names here and those of
``grokscope.measures``, ``grokscope.interventions``, ``grokscope.spec``, ``grokscope.tasks`` and
``grokscope.results``; everything else may move.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from grokscope.version import __version__

if TYPE_CHECKING:
    from grokscope import interventions, measures, results, spec, tasks
    from grokscope.experiments import find_experiment
    from grokscope.measures import Measure
    from grokscope.measures.checks import NotFiniteError
    from grokscope.probe import Look, Measurement, Probe
    from grokscope.tasks import Split, Task

__all__ = [
    "Look",
    "Measure",
    "Measurement",
    "NotFiniteError",
    "Probe",
    "Split",
    "Task",
    "__version__",
    "find_experiment",
    "interventions",
    "measures",
    "results",
    "spec",
    "tasks",
]

_HOMES = {
    "Look": "probe",
    "Measure": "measures",
    "Measurement": "probe",
    "NotFiniteError": "measures.checks",
    "Probe": "probe",
    "Split": "tasks",
    "Task": "tasks",
    "find_experiment": "experiments",
}


def __getattr__(name: str) -> Any:
    """Import what needs torch when it is first asked for: ``grokscope --help`` must be quick."""
    if name in _HOMES:
        return getattr(importlib.import_module(f"grokscope.{_HOMES[name]}"), name)
    if name in __all__:
        return importlib.import_module(f"grokscope.{name}")
    raise AttributeError(f"module 'grokscope' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
