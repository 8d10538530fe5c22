"""What a plan will take in time and disk, by the finished segments of its store."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from grokscope.runs.plan import Plan
from grokscope.runs.store import Finished, Store


@dataclass(frozen=True)
class Estimate:
    """What is left to do.

    Attributes:
        seconds: By the clock, with so many workers; None if a kind of task has not finished any
            segment in this store.
        disk: Bytes of the segments that are missing; None likewise.
        unknown: The kinds of task that nothing is known of.
    """

    seconds: float | None
    disk: float | None
    unknown: tuple[str, ...]


def estimate(plan: Plan, store: Store, workers: int) -> Estimate:
    """Time and disk of what is missing, each kind of task by its own finished segments.

    A chain of phases is never faster than its phases one after the other.
    """
    past: dict[str, list[Finished]] = {}
    for each in store.finished():
        past.setdefault(each.kind, []).append(each)
    missing = plan.missing()
    unknown = sorted({each.run.task.kind for each in missing} - past.keys())
    if unknown:
        return Estimate(None, None, tuple(unknown))
    chains: dict[str, float] = {}
    work = disk = 0.0
    for segment in missing:  # parents before children
        known = past[segment.run.task.kind]
        pace = sum(each.seconds for each in known) / sum(each.steps for each in known)
        own = (segment.phase.until - plan.entries[segment.id].step) * pace
        parent = segment.parent
        chains[segment.id] = own + (chains.get(parent.id, 0.0) if parent else 0.0)
        work += own
        disk += sum(each.bytes for each in known) / len(known)
    return Estimate(max(work / workers, *chains.values()) if chains else 0.0, disk, ())


def runs_summary(plan: Plan) -> str:
    """``240 runs: 180 finished, 3 to resume, 57 new``; a run is an arm with a seed."""
    states = Counter(state for _, _, state in run_states(plan))
    order = ("finished", "diverged", "to resume", "new")
    noun = "run" if states.total() == 1 else "runs"
    return f"{states.total():,} {noun}: " + ", ".join(
        f"{states[each]:,} {each}" for each in order if states[each]
    )


def run_states(plan: Plan) -> list[tuple[str, int, str]]:
    """Arm, seed and state of every run."""
    return [
        (arm, seed, _state([plan.entries[each.id].status for each in chain]))
        for arm, seed, chain in plan.experiment.runs()
    ]


def _state(statuses: list[str]) -> str:
    if "diverged" in statuses:
        return "diverged"
    kinds = set(statuses)
    if kinds == {"finished"}:
        return "finished"
    return "new" if kinds == {"new"} else "to resume"
