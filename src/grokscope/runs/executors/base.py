"""What an executor is. The words are those of `concurrent.futures`."""

from __future__ import annotations

from typing import Protocol

from grokscope.runs.progress import Progress
from grokscope.spec import Segment

Job = tuple[Segment, ...]  # segments that one worker runs together


class RunFailedError(RuntimeError):
    """A segment raised, or its worker was lost.

    The message is that of the segment's error, or its traceback; see `describe_failure`.
    """


class Executor(Protocol):
    """Runs jobs in workers."""

    @property
    def free_slots(self) -> int:
        """How many more jobs can be submitted now."""

    @property
    def replicas_per_job(self) -> int:
        """The most segments of one shape that may make one job."""

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
