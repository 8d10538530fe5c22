"""What a run is, as data: frozen, validated, hashable, written as YAML.

An `Experiment` asks a question of several *arms*; an arm is a `Run`: a task, seeds and a list of
*phases*. A phase says until which step training continues and with which optimiser. Run and seed
together make a chain of `Segment`, one for each phase; a segment's id is the hash of everything
that precedes it and of itself, so arms that begin alike share their first segments.
"""

from grokscope.settings import Settings
from grokscope.spec.experiment import Contrast, Experiment, PaperValue
from grokscope.spec.run import Observation, Optimizer, Phase, Run, Seeds, Segment
from grokscope.spec.sweep import sweep
from grokscope.spec.tasks import CustomTask, Images, ModularArithmetic, Operation, Task
from grokscope.spec.text import explain, override, read_experiment, read_run, to_yaml, with_seeds

__all__ = [
    "Contrast",
    "CustomTask",
    "Experiment",
    "Images",
    "ModularArithmetic",
    "Observation",
    "Operation",
    "Optimizer",
    "PaperValue",
    "Phase",
    "Run",
    "Seeds",
    "Segment",
    "Settings",
    "Task",
    "explain",
    "override",
    "read_experiment",
    "read_run",
    "sweep",
    "to_yaml",
    "with_seeds",
]


def __dir__() -> list[str]:
    return __all__
