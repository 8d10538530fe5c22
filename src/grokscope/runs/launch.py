"""Run the missing segments of an experiment, on this machine or on a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable

from grokscope.runs.jobs import Executor, Progress, RunFailedError
from grokscope.runs.options import RunOptions
from grokscope.runs.plan import Plan
from grokscope.runs.scheduler import Scheduler, ignoring_interrupts, run_all
from grokscope.runs.store import Store
from grokscope.spec import Experiment

__all__ = ["RunFailedError", "RunOptions", "launch"]


def launch(
    experiment: Experiment,
    store: Store,
    options: RunOptions,
    on_progress: Callable[[Progress], None],
    *,
    notify: Callable[[str], None] = print,
) -> bool:
    """Run every missing segment; returns whether all are finished now.

    Several processes may do so on one store: each segment is run by one of them.

    Args:
        experiment: What to run; it is saved in the store.
        store: Where results go.
        options: Workers, threads, device, checkpoints.
        on_progress: Called in this process with every worker's progress.
        notify: Called with a sentence when there is nothing left but to wait for another process.

    Raises:
        RunFailedError: If a segment raised, after the others have been stopped with a checkpoint.
        KeyboardInterrupt: Passed on after the workers have left their checkpoints.
    """
    store.save_experiment(experiment)
    missing = Plan(experiment, store).missing()
    if not missing:
        return True
    executor = _executor(store, options, len(missing))
    try:
        run_all(Scheduler(missing, store, executor.options), executor, on_progress, notify)
    finally:
        with ignoring_interrupts():  # checkpoints are left, however often Ctrl-C comes
            executor.shutdown()
    return not Plan(experiment, store).missing()


def _executor(store: Store, options: RunOptions, segments: int) -> Executor:
    if options.on == "ray":
        from grokscope.runs.executors.ray import RayExecutor

        return RayExecutor(store, options)
    from grokscope.runs.executors.local import LocalExecutor

    return LocalExecutor(store, options, segments)
