"""What the arms of one figure have in common: groups that share a panel, styles, phases.

Arms are those of `grokscope.analysis.run`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from grokscope.analysis.level import Span
from grokscope.analysis.run import REFERENCE, Arm
from grokscope.report.axes import Horizontal
from grokscope.report.style import ARM_STYLES, LineStyle, gradient
from grokscope.report.words import count, plain, quoted, seeds

MOST_LINES = len(ARM_STYLES)  # arms that can be told apart in one panel
MOST_GROUPS = 4  # of them; more arms share one panel, coloured by their place
SAME = 1e-9  # relative; epochs are quotients
STRIPE = 2.2  # of a line that arms share, in widths of the line


def reference_of(arms: Sequence[Arm]) -> Arm:
    """The arm named ``baseline``, or the first."""
    return next((arm for arm in arms if arm.name == REFERENCE), arms[0])


def too_many(arms: Sequence[Arm]) -> bool:
    """Whether there are more arms than groups of panels can tell apart."""
    return len(arms) - 1 > MOST_GROUPS * (MOST_LINES - 1)


def blocks(arms: Sequence[Arm]) -> list[list[Arm]]:
    """The arms in groups of about as many, the reference first in each; all of them are drawn."""
    reference = reference_of(arms)
    others = [arm for arm in arms if arm is not reference]
    if too_many(arms):
        return [[reference, *others]]
    count = max(1, math.ceil(len(others) / (MOST_LINES - 1)))
    size = max(1, math.ceil(len(others) / count))
    starts = range(0, max(1, len(others)), size)
    return [[reference, *others[start : start + size]] for start in starts]


def styles_of(group: Sequence[Arm]) -> list[LineStyle]:
    """The style of each arm of a group."""
    if len(group) > MOST_LINES:
        return [ARM_STYLES[0], *gradient(len(group) - 1)]
    return list(ARM_STYLES[: len(group)])


def epoch_axis(arms: Sequence[Arm]) -> tuple[Horizontal, dict[str, float]]:
    """A linear axis for all arms, of epochs where they are known; arm -> steps in its unit."""
    pace = {arm.name: arm.steps_per_epoch for arm in arms}
    known = all(0 < steps < math.inf for steps in pace.values())
    if not known:
        pace = dict.fromkeys(pace, 1.0)
    last = max(arm.last_step / pace[arm.name] for arm in arms)
    return Horizontal(0.0, max(last, 1.0), "epoch" if known else "optimiser step"), pace


def phase_ends(arms: Sequence[Arm], pace: Mapping[str, float], last: float) -> list[float]:
    """Where a phase of an arm ends, ascending; not where the axis does."""
    kept: list[float] = []
    for stop in sorted(phase.stop / pace[arm.name] for arm in arms for phase in arm.phases):
        again = kept and math.isclose(stop, kept[-1])
        if not again and stop < last * (1 - SAME):
            kept.append(stop)
    return kept


def when(arm: Arm, step: float) -> str:
    """A step within a sentence, in epochs of the arm where they are known: "epoch 30"."""
    pace = arm.steps_per_epoch
    return f"step {step:,.0f}" if math.isnan(pace) else f"epoch {plain(step / pace)}"


def why_no_level(arm: Arm, measure: str, split: str, at: int | Span = -1) -> str:
    """Why no run of an arm has a level at the end of a phase, as a clause; empty if one has."""
    reasons: dict[str, list[int]] = {}
    for seed, run in arm.runs.items():
        reasons.setdefault(run.why_no_level(measure, split, at), []).append(seed)
    if "" in reasons:
        return ""
    if len(arm.diverged) == len(arm.runs):
        runs = f"{len(arm.runs)} of {count(len(arm.runs), 'seed')}"
        return f"{quoted(arm.name)} diverged in {runs}, so it has no final level"
    named = [f"{seeds(found)}: {why}" for why, found in reasons.items()]
    return f"{quoted(arm.name)} has no final level ({'; '.join(named)})"


@dataclass(frozen=True)
class Part:
    """A stretch of a line that other arms lie on, drawn as stripes in turn."""

    until: float  # step
    place: int
    among: int

    @property
    def dashes(self) -> tuple[float, tuple[float, float]]:
        """Offset and lengths that leave the other arms their turn."""
        return (self.among - self.place) * STRIPE, (STRIPE, (self.among - 1) * STRIPE)


def alike(arms: Sequence[Arm]) -> list[tuple[float, list[Arm]]]:
    """Arms that are one run up to a step, the last such step first."""
    common = {
        frozenset((one.name, other.name)): one.common_until(other)
        for one, other in combinations(arms, 2)
    }
    found: list[tuple[float, list[Arm]]] = []
    for step in sorted({until for until in common.values() if until > 0}, reverse=True):
        for arm in arms:
            group = [
                other
                for other in arms
                if other is arm or common[frozenset((arm.name, other.name))] >= step
            ]
            if len(group) > 1 and all(group != known for _, known in found):
                found.append((step, group))
    return found


def parts_of(arms: Sequence[Arm]) -> dict[str, list[Part]]:
    """Arm -> the stretches of its lines that it shares with others, ascending."""
    parts: dict[str, list[Part]] = {}
    for step, group in sorted(alike(arms), key=lambda pair: pair[0]):
        for place, arm in enumerate(group):
            parts.setdefault(arm.name, []).append(Part(step, place, len(group)))
    return parts


def chunks(items: Sequence[Any], size: int) -> list[list[Any]]:
    """Items in lists of so many, the last one shorter."""
    return [list(items[start : start + size]) for start in range(0, len(items), size)]
