"""C15: does NCC go with generalisation, and does it more than its rivals?

A correlation is called strong from 0.7 on, in the direction that the claim expects. Supported:
the whole interval is that strong; contradicted: none of it is; undecided otherwise. Final levels
are correlated over six runs or more: the interval over fewer is far too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from grokscope.analysis.claims.finding import (
    Finding,
    Verdict,
    between,
    by_seed,
    claim,
    undecided,
    why_undecided,
)
from grokscope.analysis.correlations import (
    TRAINING_LOSS,
    VALIDATION_ACCURACY,
    Quantity,
    Window,
    over_time,
)
from grokscope.analysis.run import Trajectory
from grokscope.analysis.statistics import (
    LEAST_PAIRS,
    Interval,
    correlation_interval,
    rank_correlation,
)

STRONG = 0.7
LEAST_SEEDS = 2
LEAST_RUNS = LEAST_PAIRS  # fewer have no interval
UNIT = "rank correlation"
OVER_RUNS = "final levels over runs"


@dataclass(frozen=True)
class Rival:
    """What may go with generalisation, and the sign expected where generalisation is good."""

    basis: str
    quantity: Quantity
    sign: int


RIVALS = (
    Rival("ncc", ("ncc", "train"), -1),
    Rival("ncc (held out)", ("ncc", "validation"), -1),
    Rival("relative_flatness", ("relative_flatness", "train"), -1),
    Rival("relative_flatness_bound", ("relative_flatness_bound", "train"), -1),
    Rival("published_flatness", ("published_flatness", "train"), -1),
    Rival("relative_flatness_matched", ("relative_flatness_matched", "train"), -1),
    Rival("logit_scale", ("logit_scale", "train"), 1),
    Rival("training loss", TRAINING_LOSS, -1),
)


@claim(
    "C15",
    title="Collapse goes with generalisation",
    statement="The more tightly the features cluster by class, the more accurate the network is on "
    "held-out data, although it could be as accurate without.",
    note="Strong means a rank correlation of 0.7 or more in the expected direction, over all looks "
    "at a run. Whatever only rises or only falls in training correlates over time, so compare it "
    "with its rivals, after memorisation, and given training loss. Whether collapse is necessary "
    "is for interventions to tell (C3 to C5).",
)
def collapse_goes_with_generalisation(runs: Sequence[Trajectory]) -> list[Finding]:
    """C15, for NCC and its rivals: over time, after memorisation, given the loss, over runs."""
    rivals = [
        rival
        for rival in RIVALS
        if rival is RIVALS[0] or any(run.has(*rival.quantity) for run in runs)
    ]
    findings = [_over_time(runs, rival, "all steps") for rival in rivals]
    findings += [_over_time(runs, rival, "after memorisation") for rival in rivals]
    findings += [
        _over_time(runs, rival, "after memorisation", TRAINING_LOSS)
        for rival in rivals
        if rival.quantity != TRAINING_LOSS
    ]
    if len(runs) >= LEAST_RUNS:
        findings += [_over_runs(runs, rival) for rival in rivals]
    return findings


def _over_time(
    runs: Sequence[Trajectory], rival: Rival, window: Window, fixed: Quantity | None = None
) -> Finding:
    context: str = "" if window == "all steps" else window
    context += ", given training loss" if fixed else ""
    arms = {run.arm for run in runs}
    if len(arms) > 1:
        reason = f"There are {len(arms)} arms; look at one at a time."
        return undecided(rival.basis, reason, unit=UNIT, context=context)
    rho, interval, values = over_time(
        runs, rival.quantity, VALIDATION_ACCURACY, fixed=fixed, window=window
    )
    if not values:
        reason = f"No run has it at enough looks ({window})."
        return undecided(rival.basis, reason, unit=UNIT, context=context)
    verdict = _strong(interval, rival.sign) if len(values) >= LEAST_SEEDS else "undecided"
    spread = ", ".join(f"{value:.2f}" for _, value in by_seed(values))
    where = "over all steps" if window == "all steps" else window
    held = " with the rank of training loss held fixed" if fixed else ""
    reason = (
        f"The rank correlation is {rho:.2f}{between(interval)} {where}{held}, by seed {spread}; "
        f"it is expected to be {'negative' if rival.sign < 0 else 'positive'}, and strong from "
        f"{rival.sign * STRONG:+.1f} on."
    )
    return Finding(
        basis=rival.basis, verdict=verdict, effect=rho, interval=interval, unit=UNIT,
        seeds=len(values), per_seed=by_seed(values), reason=reason, context=context,
        why="underpowered" if len(values) < LEAST_SEEDS else why_undecided(verdict, interval),
    )  # fmt: skip


def _over_runs(runs: Sequence[Trajectory], rival: Rival) -> Finding:
    pairs = np.array(
        [[run.level(*rival.quantity), run.level(*VALIDATION_ACCURACY)] for run in runs]
    )
    pairs = pairs[np.isfinite(pairs).all(axis=1)]
    rho = rank_correlation(pairs[:, 0], pairs[:, 1])
    if not math.isfinite(rho):
        reason = f"Too few of the runs have a final level ({len(pairs)}), or they do not vary."
        return undecided(rival.basis, reason, unit=UNIT, context=OVER_RUNS)
    interval = correlation_interval(rho, len(pairs))
    verdict = _strong(interval, rival.sign)
    reason = (
        f"The rank correlation of final levels is {rho:.2f}{between(interval)} over {len(pairs)} "
        "runs."
    )
    return Finding(
        basis=rival.basis, verdict=verdict, effect=rho, interval=interval, unit=UNIT,
        seeds=len({run.seed for run in runs}), reason=reason, context=OVER_RUNS,
        why=why_undecided(verdict, interval),
    )  # fmt: skip


def _strong(interval: Interval, sign: int) -> Verdict:
    """The verdict on an interval, turned so that the expected direction is positive."""
    low, high = sorted(sign * end for end in interval)
    if not (math.isfinite(low) and math.isfinite(high)):
        return "undecided"
    return "supported" if low >= STRONG else "contradicted" if high < STRONG else "undecided"
