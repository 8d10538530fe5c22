"""Which missing segments can be started now, and the loop that hands them to an executor."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from grokscope.runs.jobs import Executor, Job, Progress, RunFailedError
from grokscope.runs.options import RunOptions
from grokscope.runs.store import Store
from grokscope.spec import Segment

OPTIONS = RunOptions()
POLL = 0.5  # seconds between two looks at a segment that another process holds


class Scheduler:
    """Segments in the order of their tree: a child starts when its parent is finished.

    A segment that another process on the same store is running is left to that process, and taken
    over if its lease runs out.

    Args:
        segments: What is missing, parents before children.
        store: Where results are.
        options: How many segments may make one job, and whether of different shapes.
    """

    def __init__(
        self, segments: Iterable[Segment], store: Store, options: RunOptions = OPTIONS
    ) -> None:
        self.segments = {segment.id: segment for segment in segments}
        self.waiting = dict(self.segments)
        self.running: dict[str, Job] = {}
        self.cut_off: set[str] = set()  # diverged, or after one that did: never to be waited for
        self.store, self.options = store, options
        self.checked: dict[str, float] = {}  # when a segment was last seen with another process

    @property
    def is_done(self) -> bool:
        return not self.waiting and not self.running

    @property
    def busy_elsewhere(self) -> int:
        """How many segments other processes are running."""
        return len(self.checked)

    def next(self, free_slots: int) -> tuple[list[Job], list[Progress]]:
        """Jobs to start now, and the ends of segments that other processes have finished."""
        ready: list[Segment] = []
        news: list[Progress] = []
        room = free_slots * self.options.replicas_per_job
        for segment in list(self.waiting.values()):
            parent = segment.parent
            if parent is not None and (parent.id in self.waiting or parent.id in self.running):
                continue
            if parent is not None and parent.id in self.cut_off:
                self._drop(segment)
                self.cut_off.add(segment.id)
                continue
            if len(ready) < room and self._is_free(segment, news):
                ready.append(segment)
        jobs = self._jobs(ready, free_slots)
        for job in jobs:
            for segment in job:
                self._drop(segment)
                self.running[segment.id] = job
        return jobs, news

    def update(self, progress: Progress) -> None:
        """Take in the progress that a worker reports of a segment."""
        name = progress.segment
        if progress.diverged:
            self.cut_off.add(name)
        if progress.busy:
            self.running.pop(name, None)
            self.waiting[name] = self.segments[name]
            self.checked[name] = time.monotonic()

    def job_done(self, job: Job) -> None:
        """A job has ended; a later job of the same segments, already under way, is kept."""
        for segment in job:
            if self.running.get(segment.id) is job:
                del self.running[segment.id]

    def _drop(self, segment: Segment) -> None:
        del self.waiting[segment.id]
        self.checked.pop(segment.id, None)

    def _is_free(self, segment: Segment, news: list[Progress]) -> bool:
        """Whether a segment that could start is free; adds what other processes made of it."""
        now = time.monotonic()
        if now - self.checked.get(segment.id, -POLL) < POLL:
            return False
        end = self.store.outcome(segment)
        if end is not None:
            self._drop(segment)
            if end.diverged:
                self.cut_off.add(segment.id)
            news.append(Progress(segment.id, end.step, finished=True, diverged=end.diverged))
            return False
        if self.store.is_free(segment):
            return True
        self.checked[segment.id] = now
        return False

    def _jobs(self, ready: list[Segment], free_slots: int) -> list[Job]:
        """Segments that can be trained together, but rather one in every slot than all in one."""
        size = self.options.replicas_per_job
        if size <= 1 or not ready:
            return [(segment,) for segment in ready[:free_slots]]
        size = min(size, -(-len(ready) // free_slots)) if free_slots else 1
        shapes: dict[str, list[Segment]] = {}
        for segment in ready:
            shapes.setdefault(self._shape(segment), []).append(segment)
        jobs = [
            tuple(alike[first : first + size])
            for alike in shapes.values()
            for first in range(0, len(alike), size)
        ]
        return jobs[:free_slots]

    def _shape(self, segment: Segment) -> str:
        """What segments of one job have in common."""
        if self.options.mixes_shapes:
            return ""
        from grokscope.engine.alike import shape_of

        return shape_of(segment) or segment.id


@contextmanager
def ignoring_interrupts() -> Iterator[None]:
    """Let Ctrl-C pass without effect; possible in the main thread only."""
    try:
        previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    except ValueError:
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def run_all(
    scheduler: Scheduler,
    executor: Executor,
    on_progress: Callable[[Progress], None],
    notify: Callable[[str], None],
) -> None:
    """Run everything that a scheduler holds; arguments and errors are those of `launch`."""
    notified = False
    while not scheduler.is_done:
        jobs, news = scheduler.next(executor.free_slots)
        for job in jobs:
            executor.submit(job)
        for progress in news:
            on_progress(progress)
        if scheduler.busy_elsewhere and not scheduler.running and not notified:
            notified = True
            noun = "segment" if scheduler.busy_elsewhere == 1 else "segments"
            notify(
                f"Waiting for {scheduler.busy_elsewhere} {noun} that another process is running "
                "in this folder; if that process stops, its work is taken over."
            )
        for progress in executor.poll():
            if progress.failure:
                raise RunFailedError(progress.failure)
            scheduler.update(progress)
            if not progress.busy:
                on_progress(progress)
        for job in executor.done():
            scheduler.job_done(job)
