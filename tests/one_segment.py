"""One segment run in this process, as a worker runs a job of it."""

from __future__ import annotations

from collections.abc import Callable

from grokscope.runs.jobs import Progress
from grokscope.runs.options import RunOptions
from grokscope.runs.store import Store
from grokscope.runs.worker import OPTIONS, run_job
from grokscope.spec import Segment


def run_segment(
    store: Store,
    segment: Segment,
    on_progress: Callable[[Progress], None],
    should_stop: Callable[[], bool],
    *,
    options: RunOptions = OPTIONS,
) -> bool:
    """Run what is missing of a segment that no other process holds; whether it has ended."""
    heard: list[Progress] = []

    def report(progress: Progress) -> None:
        heard.append(progress)
        on_progress(progress)

    run_job(store, (segment,), report, should_stop, options=options)
    assert not any(progress.busy for progress in heard)
    return store.outcome(segment) is not None
