"""Which segments of an experiment are finished, which are missing, and how long those take."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from grokscope.runs.store import SegmentCost, Store
from grokscope.spec import Experiment, Segment

Status = Literal["finished", "diverged", "to resume", "new"]


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
        return self.status in ("to resume", "new")

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


@dataclass(frozen=True)
class Estimate:
    """What is left to do.

    Attributes:
        seconds: Wall-clock seconds with so many workers; None if nothing is known of a kind of
            task.
        disk: Bytes of the segments that are missing; None likewise.
        unknown: The kinds of task of which no segment has finished in the folder.
    """

    seconds: float | None
    disk: float | None
    unknown: tuple[str, ...] = ()


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
        states = Counter[str](
            entry.status
            for entry in self.entries.values()
            if not (entry.is_missing and self.is_cut_off(entry.segment))
        )
        return _counted("segment", len(self.entries), states)

    def runs_summary(self) -> str:
        """``240 runs: 180 finished, 3 to resume, 57 new``; a run is an arm with a seed."""
        states = Counter[str](state for _, _, state in self.run_states())
        return _counted("run", states.total(), states)

    def run_states(self) -> list[tuple[str, int, Status]]:
        """Arm, seed and state of every run."""
        return [
            (arm, seed, _run_state({self.entries[segment.id].status for segment in chain}))
            for arm, seed, chain in self.experiment.runs()
        ]

    def estimate(self, workers: int = 1) -> Estimate:
        """Time and disk of what is missing, estimated from the segments that have finished.

        Each kind of task is judged by its finished segments in the plan or, where there are none,
        by those of other experiments in the folder. A chain of phases takes at least as long as
        its phases one after another.

        Args:
            workers: How many segments run at the same time.
        """
        missing = self.missing()
        kinds = {segment.run.task.kind for segment in missing}
        costs = self._costs(kinds)
        if unknown := sorted(kinds - costs.keys()):
            return Estimate(None, None, tuple(unknown))
        chains: dict[str, float] = {}  # seconds from the first missing segment to this one's end
        work = disk = 0.0
        for segment in missing:  # parents before children
            known = costs[segment.run.task.kind]
            per_step = sum(cost.seconds for cost in known) / sum(cost.steps for cost in known)
            seconds = self.entries[segment.id].steps_left * per_step
            parent = segment.parent
            chains[segment.id] = seconds + (chains.get(parent.id, 0.0) if parent else 0.0)
            work += seconds
            disk += sum(cost.disk for cost in known) / len(known)
        return Estimate(max([work / workers, *chains.values()]), disk)

    def _costs(self, kinds: Collection[str]) -> dict[str, list[SegmentCost]]:
        """What finished segments took, by the kind of their task."""
        found: dict[str, list[SegmentCost]] = {}
        for entry in self.entries.values():
            if entry.segment.run.task.kind in kinds and not entry.is_missing:
                cost = self.store.cost(entry.segment)
                if cost is not None:
                    found.setdefault(cost.task_kind, []).append(cost)
        unknown = set(kinds) - found.keys()
        if unknown:
            for cost in self.store.other_costs(self.entries.keys()):
                if cost.task_kind in unknown:
                    found.setdefault(cost.task_kind, []).append(cost)
        return found


def _planned(segment: Segment, users: tuple[tuple[str, int], ...], store: Store) -> PlannedSegment:
    end = store.outcome(segment)
    if end is not None:
        status: Status = "diverged" if end.diverged else "finished"
        return PlannedSegment(segment, users, status, step=end.step, seconds=end.seconds)
    step = store.checkpoint_step(segment)
    if step is not None:
        return PlannedSegment(segment, users, "to resume", step=step)
    return PlannedSegment(segment, users, "new", step=segment.start)


def _run_state(states: set[Status]) -> Status:
    """The state of a run whose segments are in these states."""
    if "diverged" in states:
        return "diverged"
    return states.pop() if len(states) == 1 else "to resume"


def _counted(noun: str, total: int, states: Mapping[str, int]) -> str:
    parts = [f"{states[state]:,} {state}" for state in get_args(Status) if states.get(state)]
    return f"{total:,} {noun if total == 1 else f'{noun}s'}: {', '.join(parts)}"
