"""C15: does NCC go with generalisation, and does it more than its rivals?

A correlation is called strong from 0.7 on, in the direction that the claim expects. Supported:
the whole interval is that strong; contradicted: none of it is; undecided otherwise. Final levels
are correlated over six runs or more: the interval over fewer is far too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from grokscope.analysis.claims.registry import (
    Finding,
    Verdict,
    between,
    by_seed,
    claim,
    undecided,
)
from grokscope.analysis.correlations import (
    TRAINING_LOSS,
    VALIDATION_ACCURACY,
    Curve,
    Window,
    over_time,
)
from grokscope.analysis.milestones import Trace
from grokscope.analysis.statistics import (
    LEAST_PAIRS,
    Interval,
    correlation_interval,
    rank_correlation,
    robust_level,
)

STRONG = 0.7
LEAST_SEEDS = 2
LEAST_RUNS = LEAST_PAIRS  # fewer have no interval
UNIT = "rank correlation"
FINAL_POINTS = 9  # measuring points whose median is a run's final level

# (basis, curve, sign expected where generalisation is good)
RIVALS: tuple[tuple[str, Curve, int], ...] = (
    ("ncc", ("ncc", "train"), -1),
    ("ncc (held out)", ("ncc", "validation"), -1),
    ("relative_flatness", ("relative_flatness", "train"), -1),
    ("relative_flatness_bound", ("relative_flatness_bound", "train"), -1),
    ("published_flatness", ("published_flatness", "train"), -1),
    ("relative_flatness_matched", ("relative_flatness_matched", "train"), -1),
    ("logit_scale", ("logit_scale", "train"), 1),
    ("training loss", TRAINING_LOSS, -1),
)


@claim(
    "C15",
    "NCC correlates strongly with generalisation, though it is not necessary.",
    "Strong is a rank correlation of 0.7 or more in the expected direction, over all measuring "
    "points of a run. Whatever only rises or only falls in training correlates over time: read it "
    "beside the rivals, after memorisation, and given training loss. Whether collapse is "
    "necessary, interventions must tell (C3 to C5).",
)
def collapse_goes_with_generalisation(runs: Sequence[Trace]) -> list[Finding]:
    """C15, for NCC and its rivals: over time, after memorisation, given the loss, over runs."""
    rivals = [each for each in RIVALS if each[0] == "ncc" or any(r.has(*each[1]) for r in runs)]
    findings = [_over_time(runs, *each, None, "all steps") for each in rivals]
    findings += [_over_time(runs, *each, None, "after memorisation") for each in rivals]
    findings += [
        _over_time(runs, *each, TRAINING_LOSS, "after memorisation")
        for each in rivals
        if each[1] != TRAINING_LOSS
    ]
    if len(runs) >= LEAST_RUNS:
        findings += [_over_runs(runs, *each) for each in rivals]
    return findings


def _over_time(
    runs: Sequence[Trace], basis: str, curve: Curve, sign: int, given: Curve | None, window: Window
) -> Finding:
    context: str = "" if window == "all steps" else window
    context += ", given training loss" if given else ""
    arms = sorted({run.arm for run in runs})
    if len(arms) > 1:
        reason = f"There are {len(arms)} arms; look at one at a time."
        return undecided("C15", basis, UNIT, reason, context)
    rho, interval, values = over_time(runs, curve, VALIDATION_ACCURACY, given, window)
    if not values:
        reason = f"No run has it at enough points ({window})."
        return undecided("C15", basis, UNIT, reason, context)
    verdict = _strong(interval, sign) if len(values) >= LEAST_SEEDS else "undecided"
    spread = ", ".join(f"{each:.2f}" for _, each in by_seed(values))
    where = "over all steps" if window == "all steps" else window
    held = " with the rank of training loss held fixed" if given else ""
    reason = (
        f"Rank correlation {rho:.2f}{between(interval)} {where}{held}, by seed {spread}; "
        f"expected {'negative' if sign < 0 else 'positive'}, strong from {sign * STRONG:+.1f} on."
    )
    seeds = by_seed(values)
    return Finding("C15", basis, verdict, rho, interval, UNIT, len(values), seeds, reason, context)


def _over_runs(runs: Sequence[Trace], basis: str, curve: Curve, sign: int) -> Finding:
    context = "final levels over runs"
    pairs = np.array([[_final(run, curve), _final(run, VALIDATION_ACCURACY)] for run in runs])
    pairs = pairs[np.isfinite(pairs).all(axis=1)]
    rho = rank_correlation(pairs[:, 0], pairs[:, 1])
    if not math.isfinite(rho):
        reason = f"The final levels of {len(pairs)} runs do not vary."
        return undecided("C15", basis, UNIT, reason, context)
    interval = correlation_interval(rho, len(pairs))
    reason = (
        f"Rank correlation of final levels {rho:.2f}{between(interval)} over {len(pairs)} runs."
    )
    seeds = len({run.seed for run in runs})
    return Finding(
        "C15", basis, _strong(interval, sign), rho, interval, UNIT, seeds, (), reason, context
    )


def _final(run: Trace, curve: Curve) -> float:
    return robust_level(*run.get(*curve), -math.inf, math.inf, last=FINAL_POINTS)


def _strong(interval: Interval, sign: int) -> Verdict:
    """The verdict on an interval, turned so that the expected direction is positive."""
    low, high = sorted(sign * each for each in interval)
    if not (math.isfinite(low) and math.isfinite(high)):
        return "undecided"
    return "supported" if low >= STRONG else "contradicted" if high < STRONG else "undecided"
