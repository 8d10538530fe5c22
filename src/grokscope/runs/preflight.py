"""Whatever a run refers to is looked up before work starts, as a wrong name costs a run."""

from __future__ import annotations

import inspect

from grokscope.interventions import Penalty
from grokscope.reference import is_reference, load
from grokscope.runs.machine import find_device
from grokscope.runs.options import RunOptions
from grokscope.runs.plan import Plan
from grokscope.tasks import check_task

PENALTY_ARGUMENTS = ("features", "logits", "labels", "weight")


def preflight(plan: Plan, options: RunOptions) -> None:
    """Look up the device, the penalties that are given by reference, and the tasks to be run.

    Raises:
        ValueError: If this machine lacks the device; if a penalty cannot be loaded or called with
            features, logits, labels and weight (names the arm and the phase); as `check_task`.
    """
    if options.on == "local":
        find_device(options.device)
    for arm, run in plan.experiment.arms.items():
        for number, phase in enumerate(run.phases):
            for place, penalty in enumerate(phase.penalties):
                try:
                    _check_penalty(penalty)
                except ValueError as error:
                    where = f"arms.{arm}.phases.{number}.penalties.{place}.measure"
                    raise ValueError(f"{where}: {error}") from error
    tasks = {segment.run.task.model_dump_json(): segment.run.task for segment in plan.missing()}
    for task in tasks.values():
        check_task(task)


def _check_penalty(penalty: Penalty) -> None:
    if not is_reference(penalty.measure):
        return
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
