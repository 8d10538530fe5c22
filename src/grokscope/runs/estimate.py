"""How long the rest of a plan takes and how much disk it needs, computed in this one place."""

from __future__ import annotations

from dataclasses import dataclass

from grokscope.runs.plan import Plan
from grokscope.runs.store import SegmentCost


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


def estimate(plan: Plan, workers: int = 1) -> Estimate:
    """Time and disk of what is missing, estimated from the segments that have finished.

    Each kind of task is judged by its finished segments in the plan or, where there are none, by
    those of other experiments in the folder. A chain of phases takes at least as long as its
    phases one after another.

    Args:
        plan: What is finished and what is missing.
        workers: How many segments run at the same time.
    """
    missing = plan.missing()
    kinds: set[str] = {segment.run.task.kind for segment in missing}
    finished = _finished(plan, kinds)
    unknown = sorted(kinds - finished.keys())
    if unknown:
        return Estimate(None, None, tuple(unknown))
    chains: dict[str, float] = {}  # seconds from the first missing segment to the end of this one
    work = disk = 0.0
    for segment in missing:  # parents before children
        costs = finished[segment.run.task.kind]
        per_step = sum(cost.seconds for cost in costs) / sum(cost.steps for cost in costs)
        seconds = plan.entries[segment.id].steps_left * per_step
        parent = segment.parent
        chains[segment.id] = seconds + (chains.get(parent.id, 0.0) if parent else 0.0)
        work += seconds
        disk += sum(cost.disk for cost in costs) / len(costs)
    return Estimate(max(work / workers, *chains.values()) if chains else 0.0, disk)


def _finished(plan: Plan, kinds: set[str]) -> dict[str, list[SegmentCost]]:
    """What finished segments took, by the kind of their task; empty when no kind is asked for."""
    found: dict[str, list[SegmentCost]] = {}
    for entry in plan.entries.values():
        if entry.segment.run.task.kind in kinds and not entry.is_missing:
            cost = plan.store.cost(entry.segment)
            if cost is not None:
                found.setdefault(cost.task_kind, []).append(cost)
    unknown = kinds - found.keys()
    if unknown:
        for cost in plan.store.other_costs(plan.entries.keys()):
            if cost.task_kind in unknown:
                found.setdefault(cost.task_kind, []).append(cost)
    return found
