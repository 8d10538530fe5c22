"""Jobs: what one worker runs together, what it reports meanwhile, and what an executor is.

The words are those of `concurrent.futures`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from grokscope.runs.options import RunOptions
from grokscope.spec import Segment

PAUSE = 0.2  # seconds between two steps of one segment that are passed on

Job = tuple[Segment, ...]  # segments that one worker runs together


class RunFailedError(RuntimeError):
    """A segment raised, or its worker was lost.

    The message is that of the segment's error, or its traceback; see `describe_failure`.
    """


@dataclass(frozen=True)
class Progress:
    """What happened to one segment.

    Attributes:
        segment: Its id.
        step: The step that it is at.
        values: Latest value of each measure, by ``split/measure``.
        finished: Whether its end is stored.
        diverged: Whether it ended because its features or logits were no longer finite.
        busy: Whether another process holds it.
        failure: The error that ended it; empty without one.
    """

    segment: str
    step: int
    values: dict[str, float] = field(default_factory=dict)
    finished: bool = False
    diverged: bool = False
    busy: bool = False
    failure: str = ""

    @property
    def is_mere_step(self) -> bool:
        """Whether it says no more than how far the segment is; values may come with it."""
        return self == Progress(self.segment, self.step, self.values)


class Throttle:
    """Passes on what matters at once, and mere steps of a segment only now and then.

    Args:
        callback: Called with what is passed on.
        pause: Seconds between two mere steps of one segment, at least.
    """

    def __init__(self, callback: Callable[[Progress], None], pause: float = PAUSE) -> None:
        self.callback, self.pause = callback, pause
        self.last: dict[str, float] = {}

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        matters = progress.values or not progress.is_mere_step
        if matters or now - self.last.get(progress.segment, -self.pause) >= self.pause:
            self.callback(progress)
            self.last[progress.segment] = now


class Executor(Protocol):
    """Runs jobs in workers."""

    @property
    def free_slots(self) -> int:
        """How many more jobs can be submitted now."""

    @property
    def options(self) -> RunOptions:
        """How jobs are run: how many segments one may have, and whether of different shapes."""

    def submit(self, job: Job) -> None:
        """Start a job; the parents of its segments are finished."""

    def poll(self) -> list[Progress]:
        """Wait a moment; the progress since the last call, in order."""

    def done(self) -> list[Job]:
        """Jobs that have ended since the last call, all of whose progress has been polled.

        Raises:
            RunFailedError: If the worker of a job was lost.
        """

    def shutdown(self) -> None:
        """Ask the workers to stop and wait until they have left their checkpoints."""
