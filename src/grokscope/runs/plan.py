"""Which segments of an experiment are finished, which can resume, which are missing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from grokscope.runs.store import Store
from grokscope.spec import Experiment, Segment

Status = Literal["finished", "diverged", "stopped", "new"]
STATES = ("finished", "diverged", "to resume", "new")  # of a run, or of a segment to be run


@dataclass(frozen=True)
class PlannedSegment:
    """One segment of the plan; several arms may use it.

    Attributes:
        segment: What is to be run.
        users: (arm, seed) of every run that uses it.
        status: What the store has of it.
        step: The step that it has come to.
        seconds: Seconds of work; 0 until it has ended.
    """

    segment: Segment
    users: tuple[tuple[str, int], ...]
    status: Status
    step: int
    seconds: float = 0.0

    @property
    def is_missing(self) -> bool:
        return self.status in ("stopped", "new")

    @property
    def steps_left(self) -> int:
        return self.segment.phase.until - self.step

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
        store: What has been run.
    """

    def __init__(self, experiment: Experiment, store: Store) -> None:
        self.experiment, self.store = experiment, store
        users: dict[str, list[tuple[str, int]]] = {}
        segments: dict[str, Segment] = {}
        for arm, seed, chain in experiment.runs():
            for segment in chain:
                segments[segment.id] = segment
                users.setdefault(segment.id, []).append((arm, seed))
        self.entries = {
            name: _planned(segment, tuple(users[name]), store) for name, segment in segments.items()
        }

    def missing(self) -> list[Segment]:
        """Segments still to be run, parents before children; none after a divergence."""
        return [
            entry.segment
            for entry in self.entries.values()
            if entry.is_missing and not self.is_cut_off(entry.segment)
        ]

    def is_cut_off(self, segment: Segment) -> bool:
        """Whether a segment before this one diverged, so that this one will never run."""
        parent = segment.parent
        if parent is None:
            return False
        return self.entries[parent.id].status == "diverged" or self.is_cut_off(parent)

    def summary(self) -> str:
        """``4 segments: 2 finished, 1 to resume, 1 new``."""
        states = Counter(
            "to resume" if entry.status == "stopped" else entry.status
            for entry in self.entries.values()
            if not (entry.is_missing and self.is_cut_off(entry.segment))
        )
        return _counted("segment", len(self.entries), states)

    def runs_summary(self) -> str:
        """``240 runs: 180 finished, 3 to resume, 57 new``; a run is an arm with a seed."""
        states = Counter(state for _, _, state in self.run_states())
        return _counted("run", states.total(), states)

    def run_states(self) -> list[tuple[str, int, str]]:
        """Arm, seed and state of every run."""
        return [
            (arm, seed, _run_state(self.entries[segment.id].status for segment in chain))
            for arm, seed, chain in self.experiment.runs()
        ]


def _planned(segment: Segment, users: tuple[tuple[str, int], ...], store: Store) -> PlannedSegment:
    end = store.outcome(segment)
    if end is not None:
        status: Status = "diverged" if end.diverged else "finished"
        return PlannedSegment(segment, users, status, step=end.step, seconds=end.seconds)
    step = store.checkpoint_step(segment)
    if step is not None:
        return PlannedSegment(segment, users, "stopped", step=step)
    return PlannedSegment(segment, users, "new", step=segment.start)


def _run_state(statuses: Iterable[Status]) -> str:
    kinds = set(statuses)
    if "diverged" in kinds:
        return "diverged"
    if kinds == {"finished"}:
        return "finished"
    return "new" if kinds == {"new"} else "to resume"


def _counted(noun: str, total: int, states: Mapping[str, int]) -> str:
    parts = [f"{states[state]:,} {state}" for state in STATES if states.get(state)]
    return f"{total:,} {noun if total == 1 else f'{noun}s'}: {', '.join(parts)}"
