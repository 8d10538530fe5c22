"""Whatever an experiment refers to is looked up before work starts, as a wrong name costs a run."""

from __future__ import annotations

import inspect
from collections.abc import Iterable

from grokscope.interventions import Penalty
from grokscope.reference import is_reference, load
from grokscope.spec import Experiment, Segment
from grokscope.tasks import check_task

PENALTY_ARGUMENTS = ("features", "logits", "labels", "weight")


def check_tasks(segments: Iterable[Segment]) -> None:
    """Look for what is wrong with the tasks of segments that are to be run.

    Raises:
        ValueError: As `check_task`.
    """
    tasks = {segment.run.task.model_dump_json(): segment.run.task for segment in segments}
    for task in tasks.values():
        check_task(task)


def check_penalties(experiment: Experiment) -> None:
    """Load the penalties that are given by reference, in every phase of every arm.

    Raises:
        ValueError: If one cannot be loaded or called with features, logits, labels and weight;
            names the arm and the phase.
    """
    checked: set[str] = set()
    for arm, run in experiment.arms.items():
        for number, phase in enumerate(run.phases):
            for place, penalty in enumerate(phase.penalties):
                if not is_reference(penalty.measure) or penalty.measure in checked:
                    continue
                try:
                    _check_penalty(penalty)
                except ValueError as error:
                    where = f"arms.{arm}.phases.{number}.penalties.{place}.measure"
                    raise ValueError(f"{where}: {error}") from error
                checked.add(penalty.measure)


def _check_penalty(penalty: Penalty) -> None:
    function = load(penalty.measure)
    wanted = ", ".join(PENALTY_ARGUMENTS)
    if not callable(function):
        raise ValueError(
            f"{penalty.measure} is of type {type(function).__name__}, not a function of ({wanted})"
        )
    try:
        inspect.signature(function).bind(*PENALTY_ARGUMENTS)
    except TypeError as error:
        raise ValueError(f"{penalty.measure} must take ({wanted}): {error}") from error
