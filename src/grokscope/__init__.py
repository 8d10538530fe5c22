"""grokscope: what does a network need in order to generalise?

``grokscope.measures`` holds pure functions on tensors, ``Probe`` measures any classifier, and the
command ``grokscope run`` runs the experiments.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from grokscope import measures
    from grokscope.probe import Measurement, Probe
    from grokscope.tasks import Split, Task

__version__ = "0.1.0"
__all__ = ["Measurement", "Probe", "Split", "Task", "__version__", "measures"]

_HOMES = {
    "Measurement": "grokscope.probe",
    "Probe": "grokscope.probe",
    "Split": "grokscope.tasks",
    "Task": "grokscope.tasks",
}


def __getattr__(name: str) -> Any:
    """Import what needs torch when it is first asked for: ``grokscope --help`` must be quick."""
    import importlib

    if name == "measures":
        return importlib.import_module("grokscope.measures")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'grokscope' has no attribute {name!r}")
