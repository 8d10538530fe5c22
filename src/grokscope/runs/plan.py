"""Which segments of an experiment are there, which can go on, which are missing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from grokscope.runs.store import Store
from grokscope.spec import Experiment, Segment

Status = Literal["finished", "diverged", "stopped", "new"]


@dataclass(frozen=True)
class Entry:
    """One segment of the plan; several arms may use it."""

    segment: Segment
    users: tuple[tuple[str, int], ...]  # (arm, seed)
    status: Status
    step: int
    seconds: float

    @property
    def missing(self) -> bool:
        return self.status in ("stopped", "new")

    @property
    def label(self) -> str:
        """What a reader calls it: arm, seed and, in a chain, the phase."""
        (arm, seed), *others = self.users
        phases = len(self.segment.run.phases)
        shared = f" (+{len(others)})" if others else ""
        phase = f", phase {phases}" if phases > 1 else ""
        return f"{arm}{shared}, seed {seed}{phase}"


class Plan:
    """An experiment held against a store.

    Args:
        experiment: What is asked for.
        store: What is there.
    """

    def __init__(self, experiment: Experiment, store: Store) -> None:
        self.experiment = experiment
        users: dict[str, list[tuple[str, int]]] = {}
        segments: dict[str, Segment] = {}
        for arm, seed, chain in experiment.runs():
            for segment in chain:
                segments[segment.id] = segment
                users.setdefault(segment.id, []).append((arm, seed))
        self.entries = {
            key: _entry(segment, tuple(users[key]), store) for key, segment in segments.items()
        }

    def missing(self) -> list[Segment]:
        """Segments still to be run, parents before children; none after a divergence."""
        return [
            entry.segment
            for entry in self.entries.values()
            if entry.missing and not self.is_cut_off(entry.segment)
        ]

    def is_cut_off(self, segment: Segment) -> bool:
        """Whether a segment before this one diverged, so that this one will never run."""
        parent = segment.parent
        if parent is None:
            return False
        return self.entries[parent.id].status == "diverged" or self.is_cut_off(parent)

    def summary(self) -> str:
        """One line: how many segments are finished, to resume, new."""
        missing = {segment.id for segment in self.missing()}
        counts = {
            "finished": sum(entry.status == "finished" for entry in self.entries.values()),
            "diverged": sum(entry.status == "diverged" for entry in self.entries.values()),
            "to resume": sum(
                entry.status == "stopped" and key in missing for key, entry in self.entries.items()
            ),
            "new": sum(
                entry.status == "new" and key in missing for key, entry in self.entries.items()
            ),
        }
        parts = [f"{count} {what}" for what, count in counts.items() if count]
        noun = "segment" if len(self.entries) == 1 else "segments"
        return f"{len(self.entries)} {noun}: {', '.join(parts)}"

    def seconds_left(self) -> float | None:
        """Work still to be done in seconds of one process; None before anything has finished."""
        done = [entry for entry in self.entries.values() if entry.seconds and not entry.missing]
        steps = sum(entry.step - entry.segment.start for entry in done)
        if not steps or not self.missing():
            return None
        left = sum(
            segment.phase.until - self.entries[segment.id].step for segment in self.missing()
        )
        return left * sum(entry.seconds for entry in done) / steps


def _entry(segment: Segment, users: tuple[tuple[str, int], ...], store: Store) -> Entry:
    outcome = store.outcome(segment)
    if outcome is not None:
        status: Status = "diverged" if outcome.diverged else "finished"
        return Entry(segment, users, status, outcome.step, outcome.seconds)
    step = store.checkpoint_step(segment)
    if step is not None:
        return Entry(segment, users, "stopped", step, 0.0)
    return Entry(segment, users, "new", segment.start, 0.0)
