"""What a worker reports while it trains, and how often."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

PAUSE = 0.2  # seconds between two steps of one segment that are passed on


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
    """Passes on what matters at once, and mere steps of a segment at most five times a second.

    Args:
        callback: Called with what is passed on.
    """

    def __init__(self, callback: Callable[[Progress], None]) -> None:
        self.callback = callback
        self.last: dict[str, float] = {}

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        matters = progress.values or not progress.is_mere_step
        if matters or now - self.last.get(progress.segment, -1.0) > PAUSE:
            self.callback(progress)
            self.last[progress.segment] = now
