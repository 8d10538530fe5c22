"""C15: does NCC go with generalisation, and does it more than its rivals?

A correlation is called strong from 0.7 on, in the direction that the claim expects. Supported:
the whole interval is that strong; contradicted: none of it is; undecided otherwise. Final levels
are correlated over six runs or more: the interval over fewer is far too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from grokscope.analysis import quantities
from grokscope.analysis.claims import rules
from grokscope.analysis.claims.finding import Finding, Verdict, claim
from grokscope.analysis.correlations import Window, over_time
from grokscope.analysis.quantities import TRAINING_LOSS, VALIDATION_ACCURACY, Quantity
from grokscope.analysis.run import Trajectory
from grokscope.analysis.statistics import (
    LEAST_PAIRS,
    Effect,
    Interval,
    correlation_interval,
    rank_correlation,
)

STRONG = 0.7
UNIT = "rank correlation"
OVER_RUNS = "final levels over runs"
LOGIT_SCALE = Quantity("logit_scale")
RIVALS = (*quantities.COLLAPSE, *quantities.FLATNESS, LOGIT_SCALE, TRAINING_LOSS)


@claim(
    "C15",
    title="Collapse goes with generalisation",
    statement="The more tightly the features cluster by class, the more accurate the network is on "
    "held-out data.",
    note="Strong means a rank correlation of 0.7 or more in the expected direction, over all looks "
    "at a run. Whatever only rises or only falls in training correlates over time, so compare it "
    "with its rivals, after memorisation, and given training loss. Whether collapse is necessary "
    "is for interventions to tell (C3 to C5).",
)
def collapse_goes_with_generalisation(runs: Sequence[Trajectory]) -> Iterator[Finding]:
    """C15, for NCC and its rivals: over time, after memorisation, given the loss, over runs."""
    rivals = rules.measured(runs, RIVALS)
    for rival in rivals:
        yield _over_time(runs, rival, "all steps")
    for rival in rivals:
        yield _over_time(runs, rival, "after memorisation")
    for rival in rivals:
        if rival != TRAINING_LOSS:
            yield _over_time(runs, rival, "after memorisation", TRAINING_LOSS)
    if len(runs) >= LEAST_PAIRS:  # fewer have no interval
        yield from (_over_runs(runs, rival) for rival in rivals)


def _over_time(
    runs: Sequence[Trajectory], rival: Quantity, window: Window, fixed: Quantity | None = None
) -> Finding:
    where = "over all steps" if window == "all steps" else window
    context: str = "" if window == "all steps" else window
    context += f", given {fixed.name}" if fixed else ""
    arms = {run.arm for run in runs}
    if len(arms) > 1:
        reason = f"There are {len(arms)} arms; look at one at a time."
        return rules.untested(rival.name, reason, unit=UNIT, context=context)
    found = over_time(runs, rival, VALIDATION_ACCURACY, fixed=fixed, window=window)
    if not found.per_seed:
        reason = f"No run has it at enough looks ({window})."
        return rules.untested(rival.name, reason, unit=UNIT, context=context)
    held = f" with the rank of {fixed.name} held fixed" if fixed else ""
    spread = ", ".join(f"{value:.2f}" for _, value in found.per_seed)
    sign = _sign(rival)
    return rules.finding(
        found,
        basis=rival.name,
        verdict=_strong(found.interval, rival),
        unit=UNIT,
        reason=f"The rank correlation is {found.effect:.2f}{rules.between(found.interval)} {where}"
        f"{held}, by seed {spread}; it is expected to be {'negative' if sign < 0 else 'positive'}, "
        f"and strong from {sign * STRONG:+.1f} on.",
        context=context,
        why="underpowered" if len(found.per_seed) < rules.LEAST_SEEDS else "",
    )


def _over_runs(runs: Sequence[Trajectory], rival: Quantity) -> Finding:
    levels = [[run.level(*rival), run.level(*VALIDATION_ACCURACY)] for run in runs]
    pairs = np.array(levels)[np.isfinite(levels).all(axis=1)]
    rho = rank_correlation(*pairs.T)
    if not math.isfinite(rho):
        reason = f"Too few of the runs have a final level ({len(pairs)}), or they do not vary."
        return rules.untested(rival.name, reason, unit=UNIT, context=OVER_RUNS)
    interval = correlation_interval(rho, len(pairs))
    found = rules.finding(
        Effect(rho, interval),
        basis=rival.name,
        verdict=_strong(interval, rival),
        unit=UNIT,
        reason=f"The rank correlation of final levels is {rho:.2f}{rules.between(interval)} over "
        f"{len(pairs)} runs.",
        context=OVER_RUNS,
    )
    return replace(found, seeds=len({run.seed for run in runs}))


def _sign(rival: Quantity) -> int:
    """That of a correlation with accuracy, where generalisation goes with what is good."""
    return 1 if rival == LOGIT_SCALE else -1


def _strong(interval: Interval, rival: Quantity) -> Verdict:
    """The verdict on an interval, turned so that the expected direction is positive."""
    low, high = sorted(_sign(rival) * end for end in interval)
    return rules.direction((low, high), STRONG)
