"""Which missing segments can be started now, whoever then runs them: this machine or a cluster."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol

from grokscope.runs.store import Store
from grokscope.runs.worker import Progress
from grokscope.spec import Segment

Job = tuple[Segment, ...]  # segments that one process runs together
POLL = 0.5  # seconds between looks at a segment that another process holds


class Crew(Protocol):
    """Who runs jobs."""

    @property
    def free(self) -> int:
        """How many more jobs can be started now."""

    def start(self, job: Job) -> None:
        """Start a job; its parents are finished."""

    def listen(self) -> list[Progress]:
        """Wait a moment; what was said since the last call, in order."""

    def leave(self) -> list[Job]:
        """Jobs that have ended since the last call, all of whose progress was heard.

        Raises:
            RunFailedError: If one ended otherwise than by itself.
        """


class RunFailedError(RuntimeError):
    """At least one segment raised; the message is its error's, or its traceback (`told_of`)."""


class Schedule:
    """Segments in the order of their tree: a child starts when its parent is finished.

    What another process on the same store is running is left to it, and taken over where its lease
    runs out.

    Args:
        segments: What is missing, parents before children.
        store: Where results are.
        replicas: Segments of one shape that may make one job.
    """

    def __init__(self, segments: Iterable[Segment], store: Store, replicas: int = 1) -> None:
        self.waiting = {segment.id: segment for segment in segments}
        self.running: dict[str, Job] = {}
        self.cut: set[str] = set()  # diverged, or after one that did: never to be waited for
        self.store, self.replicas = store, replicas
        self.looked: dict[str, float] = {}  # when a segment was last seen with another process

    @property
    def done(self) -> bool:
        return not self.waiting and not self.running

    @property
    def elsewhere(self) -> int:
        """How many segments other processes are running."""
        return len(self.looked)

    def next(self, free: int) -> tuple[list[Job], list[Progress]]:
        """Jobs to start now, and the ends of segments that other processes have finished."""
        ready: list[Segment] = []
        news: list[Progress] = []
        room = free * max(self.replicas, 1)
        for segment in list(self.waiting.values()):
            parent = segment.parent
            if parent is not None and (parent.id in self.waiting or parent.id in self.running):
                continue
            if parent is not None and parent.id in self.cut:
                self._drop(segment)
                self.cut.add(segment.id)
                continue
            if len(ready) < room and self._is_mine(segment, news):
                ready.append(segment)
        jobs = self._jobs(ready, free)
        for job in jobs:
            for segment in job:
                self._drop(segment)
                self.running[segment.id] = job
        return jobs, news

    def hear(self, progress: Progress, segment: Segment | None = None) -> None:
        """Take in what a worker said of a segment."""
        if progress.diverged:
            self.cut.add(progress.segment)
        if progress.busy and segment is not None:
            self.running.pop(segment.id, None)
            self.waiting[segment.id] = segment
            self.looked[segment.id] = time.monotonic()

    def ended(self, job: Job) -> None:
        """The process of a job is done; what a later job of the same segments does is its own."""
        for segment in job:
            if self.running.get(segment.id) is job:
                del self.running[segment.id]

    def _drop(self, segment: Segment) -> None:
        del self.waiting[segment.id]
        self.looked.pop(segment.id, None)

    def _is_mine(self, segment: Segment, news: list[Progress]) -> bool:
        """Whether a segment that could start is free; notes what others made of it."""
        now = time.monotonic()
        if now - self.looked.get(segment.id, -POLL) < POLL:
            return False
        outcome = self.store.outcome(segment)
        if outcome is not None:
            self._drop(segment)
            if outcome.diverged:
                self.cut.add(segment.id)
            news.append(
                Progress(segment.id, outcome.step, finished=True, diverged=outcome.diverged)
            )
            return False
        if self.store.is_free(segment):
            return True
        self.looked[segment.id] = now
        return False

    def _jobs(self, ready: list[Segment], free: int) -> list[Job]:
        """Segments of one shape together, but rather in every free place one than all in one."""
        if self.replicas <= 1 or not ready:
            return [(segment,) for segment in ready[:free]]
        from grokscope.engine.alike import shape_of

        shapes: dict[str, list[Segment]] = {}
        for segment in ready:
            shapes.setdefault(shape_of(segment) or segment.id, []).append(segment)
        size = min(self.replicas, -(-len(ready) // free)) if free else 1
        jobs = [
            tuple(alike[first : first + size])
            for alike in shapes.values()
            for first in range(0, len(alike), size)
        ]
        return jobs[:free]


@contextmanager
def ignoring_interrupts() -> Iterator[None]:
    """Let Ctrl-C pass without effect, where that can be said: in the main thread."""
    try:
        previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    except ValueError:
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def work_off(
    schedule: Schedule,
    crew: Crew,
    report: Callable[[Progress], None],
    tell: Callable[[str], None],
) -> None:
    """Run all that a schedule holds.

    Args:
        schedule: What to run.
        crew: Who runs it.
        report: Called with all progress, in this process.
        tell: Called with a sentence when there is nothing to do but to wait for others.

    Raises:
        RunFailedError: If a segment raised or its process was lost.
    """
    jobs: dict[str, Segment] = {}
    told = False
    while not schedule.done:
        started, news = schedule.next(crew.free)
        for job in started:
            jobs |= {segment.id: segment for segment in job}
            crew.start(job)
        for progress in news:
            report(progress)
        if schedule.elsewhere and not schedule.running and not told:
            told = True
            noun = "segment" if schedule.elsewhere == 1 else "segments"
            tell(
                f"Waiting for {schedule.elsewhere} {noun} that another process is running on this "
                "folder; what it leaves, if it stops, is taken over."
            )
        for progress in crew.listen():
            if progress.failure:
                raise RunFailedError(progress.failure)
            schedule.hear(progress, jobs.get(progress.segment))
            if not progress.busy:
                report(progress)
        for job in crew.leave():
            schedule.ended(job)
