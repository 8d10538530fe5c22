"""C10: does collapse imply flatness, as Proposition 5.3 says?

Three checks. Trained networks, the headline: for them the bound says something only where its
assumptions hold, and there it is counted, seed by seed, whether kappa keeps to it. Then two grids
that don't depend on the run: exactly collapsed heads with centred features, as the proof has
them, and the same with features that are not centred.
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
    one_arm,
    undecided,
)
from grokscope.analysis.correlations import together
from grokscope.analysis.curve import Array
from grokscope.analysis.milestones import Trace
from grokscope.analysis.statistics import bootstrap_interval, mean_of, robust_level

UNIT = "decades between bound and kappa"
ASSUMED = 0.1  # collapse_residual up to which NC1 to NC4 and Lemma A.1 count as met
FINAL_POINTS = 9
LEAST_SEEDS = 2
ROUNDING = 1e-9  # of kappa
SMALLEST = 1e-300  # stands for values that underflow

CLASSES = (2, 3, 5, 10, 97)
RADII = (0.5, 1.0, 4.0)
GAPS = (0.01, 0.1, 1.0, 5.0, 20.0, 50.0)  # logit of the own class above the others
OFFSETS = (1.0, 3.0, 10.0, 100.0)  # distance of the global mean from the origin, in radii


@claim(
    "C10",
    "Collapse implies flatness: under NC1 to NC4 Proposition 5.3 bounds kappa.",
    "The effect is log10(bound / kappa): negative where the bound is broken. Trained networks "
    "count where its assumptions are met; exact simplex heads are the same in every run. "
    "Collapse without a large head scale does not make the bound small.",
)
def collapse_implies_flatness(runs: Sequence[Trace]) -> list[Finding]:
    """C10 on trained networks (the headline), and on exact heads, centred and not."""
    one_arm(runs)
    return [_trained(runs), _exact(), _off_centre()]


def exact_slack(classes: int, radius: float, gap: float, offset: float = 0.0) -> float:
    """log10(bound / kappa) of one exactly collapsed head, in float64.

    The features are the class means: a simplex of the given radius about a global mean that is
    orthogonal to it, so that Lemma A.1 holds with a bias of zero.

    Args:
        classes: k, at least 2.
        radius: M.
        gap: Logit of the own class above the others, lambda * M^2 * k / (k - 1).
        offset: Length of the global mean, in radii.
    """
    import torch

    from grokscope.measures.flatness import relative_flatness
    from grokscope.measures.theory import collapse_flatness_bound

    scale = gap * (classes - 1) / (classes * radius**2)
    corner = math.sqrt(classes / (classes - 1)) * radius
    simplex = corner * (torch.eye(classes, dtype=torch.float64) - 1 / classes)
    features = simplex + offset * radius / math.sqrt(classes)
    weight = scale * simplex
    # The global mean does not reach the logits; leaving it out keeps them free of its rounding.
    logits = simplex @ weight.T
    kappa = float(relative_flatness(features, logits, weight))
    bound = float(collapse_flatness_bound(scale, radius, classes))
    return math.log10(max(bound, SMALLEST) / max(kappa, SMALLEST))


def _exact() -> Finding:
    grid = [(k, radius, gap) for k in CLASSES for radius in RADII for gap in GAPS]
    slack = {each: exact_slack(*each) for each in grid}
    tightest = min(slack, key=lambda each: slack[each])
    low, high = slack[tightest], max(slack.values())
    broken = sum(each < -ROUNDING for each in slack.values())
    k, radius, gap = tightest
    reason = (
        f"On {len(grid)} exactly collapsed heads with centred features ({CLASSES[0]} to "
        f"{CLASSES[-1]} classes) the bound is broken by {broken or 'none'}; it is tightest, at "
        f"{10**low:.3g} times kappa, with {k} classes, radius {radius:g} and logit gap {gap:g}."
    )
    verdict: Verdict = "contradicted" if broken else "supported"
    return Finding("C10", "exact simplex heads", verdict, low, (low, high), UNIT, 0, (), reason)


def _off_centre() -> Finding:
    grid = [(k, 1.0, gap, offset) for k in CLASSES for gap in GAPS for offset in OFFSETS]
    slack = {each: exact_slack(*each) for each in grid}
    low, high = min(slack.values()), max(slack.values())
    broken = [each for each, value in slack.items() if value < -ROUNDING]
    if not broken:
        reason = f"With a global mean of up to {OFFSETS[-1]:g} radii the bound holds throughout."
        return Finding(
            "C10", "exact simplex heads, off-centre", "supported", low, (low, high), UNIT, 0, (),
            reason,
        )  # fmt: skip
    k, _, gap, offset = min(broken, key=lambda each: (each[3], each[0]))
    reason = (
        f"NC1 to NC4 say nothing about the length of the global mean, kappa grows with it and the "
        f"bound does not: of {len(grid)} collapsed heads {len(broken)} break the bound, the first "
        f"at a global mean of {offset:g} radii ({k} classes, logit gap {gap:g})."
    )
    return Finding(
        "C10", "exact simplex heads, off-centre", "contradicted", low, (low, high), UNIT, 0, (),
        reason,
    )  # fmt: skip


def _trained(runs: Sequence[Trace]) -> Finding:
    basis = "trained networks"
    names = ("relative_flatness", "collapse_flatness_bound", "collapse_residual")
    measured = [run for run in runs if all(run.has(name) for name in names)]
    if not measured:
        return undecided("C10", basis, UNIT, "Kappa, bound and residual were not measured.")
    slack, residual = {}, {}
    for run in measured:
        kappa, bound, left = (_final(*run.get(name)) for name in names)
        slack[run.seed] = math.log10(max(bound, SMALLEST) / max(kappa, SMALLEST))
        residual[run.seed] = left
    met = [seed for seed, left in residual.items() if left <= ASSUMED]
    counted = {seed: slack[seed] for seed in met} if met else slack
    effect, interval = (
        mean_of(list(counted.values())),
        bootstrap_interval(list(counted.values())),
    )
    held, points = _whenever(measured)
    during = (
        f" Over all measuring points at which the assumptions are met, it holds at {held} of "
        f"{points}."
        if points
        else " At no measuring point are the assumptions met."
    )
    typical = float(np.median(list(residual.values())))
    if not met:
        below = sum(value >= 0 for value in slack.values())
        reason = (
            f"Assumptions not met: their residual at the end is {typical:.2g} (met from "
            f"{ASSUMED:g} down), so the bound says nothing here; kappa lies below it in {below} "
            f"of {len(slack)} seeds all the same.{during}"
        )
        verdict: Verdict = "undecided"
    else:
        below = sum(slack[seed] >= 0 for seed in met)
        reason = (
            f"Assumptions met at the end in {len(met)} of {len(slack)} seeds; there kappa lies "
            f"below the bound in {below}, at {10**-effect:.2g} times it{between(interval)}.{during}"
        )
        verdict = "undecided"
        if len(met) >= LEAST_SEEDS:
            verdict = "supported" if below == len(met) else "undecided" if below else "contradicted"
    return Finding(
        "C10", basis, verdict, effect, interval, UNIT, len(counted), by_seed(counted), reason
    )


def _final(steps: Array, values: Array) -> float:
    return robust_level(steps, values, -math.inf, math.inf, last=FINAL_POINTS)


def _whenever(runs: Sequence[Trace]) -> tuple[int, int]:
    """At how many points the bound holds, of those at which its assumptions are met."""
    held = points = 0
    for run in runs:
        kappa, bound, left = together(
            run,
            [
                ("relative_flatness", "train"),
                ("collapse_flatness_bound", "train"),
                ("collapse_residual", "train"),
            ],
            "all steps",
        )
        met = left <= ASSUMED
        held += int((kappa[met] <= bound[met] * (1 + ROUNDING)).sum())
        points += int(met.sum())
    return held, points
