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

from grokscope.analysis.claims.finding import (
    Finding,
    Verdict,
    between,
    by_seed,
    claim,
    excluded,
    one_arm,
    undecided,
)
from grokscope.analysis.correlations import together
from grokscope.analysis.run import Trajectory
from grokscope.analysis.statistics import bootstrap_interval, mean_of

UNIT = "decades between bound and kappa"
ASSUMED = 0.1  # collapse_residual up to which NC1 to NC4 and Lemma A.1 count as met
LEAST_SEEDS = 2
ROUNDING = 1e-9  # of kappa
SMALLEST = 1e-300  # stands for values that underflow

CLASSES = (2, 3, 5, 10, 97)
RADII = (0.5, 1.0, 4.0)
GAPS = (0.01, 0.1, 1.0, 5.0, 20.0, 50.0)  # logit of the right class above the others
OFFSETS = (1.0, 3.0, 10.0, 100.0)  # distance of the global mean from the origin, in radii


MEASURES = ("relative_flatness", "collapse_flatness_bound", "collapse_residual")


@claim(
    "C10",
    title="Collapse implies flatness",
    statement="A network whose features have collapsed to one point for each class is also flat, "
    "as flat as Proposition 5.3 of the paper says.",
    note="The effect is log10(bound / kappa), negative where the bound is broken. Trained networks "
    "count where the assumptions of the proposition are met; the exact heads are the same "
    "whichever run is looked at. Collapse with a small head does not make the bound small.",
)
def collapse_implies_flatness(runs: Sequence[Trajectory]) -> list[Finding]:
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
        gap: Logit of the right class above the others, lambda * M^2 * k / (k - 1).
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
    slack = {head: exact_slack(*head) for head in grid}
    tightest = min(slack, key=lambda head: slack[head])
    low, high = slack[tightest], max(slack.values())
    broken = sum(value < -ROUNDING for value in slack.values())
    k, radius, gap = tightest
    reason = (
        f"On {len(grid)} exactly collapsed heads with centred features ({CLASSES[0]} to "
        f"{CLASSES[-1]} classes) {broken or 'none'} break the bound; it is tightest, at "
        f"{10**low:.3g} times kappa, with {k} classes, radius {radius:g} and logit gap {gap:g}."
    )
    verdict: Verdict = "contradicted" if broken else "supported"
    return _on_heads("exact simplex heads", verdict, (low, high), reason)


def _off_centre() -> Finding:
    grid = [(k, 1.0, gap, offset) for k in CLASSES for gap in GAPS for offset in OFFSETS]
    slack = {head: exact_slack(*head) for head in grid}
    ends = min(slack.values()), max(slack.values())
    broken = [head for head, value in slack.items() if value < -ROUNDING]
    basis = "exact simplex heads, off-centre"
    if not broken:
        reason = f"With a global mean of up to {OFFSETS[-1]:g} radii the bound holds throughout."
        return _on_heads(basis, "supported", ends, reason)
    k, _, gap, offset = min(broken, key=lambda head: (head[3], head[0]))
    reason = (
        "NC1 to NC4 say nothing about the length of the global mean. Kappa grows with it and the "
        f"bound does not: {len(broken)} of {len(grid)} collapsed heads break the bound, the first "
        f"at a global mean of {offset:g} radii ({k} classes, logit gap {gap:g})."
    )
    return _on_heads(basis, "contradicted", ends, reason)


def _on_heads(basis: str, verdict: Verdict, ends: tuple[float, float], reason: str) -> Finding:
    """A finding on a grid of heads: the least slack, with the least and the greatest."""
    return Finding(
        basis=basis, verdict=verdict, effect=ends[0], interval=ends, unit=UNIT,
        reason=reason,
    )  # fmt: skip


def _trained(runs: Sequence[Trajectory]) -> Finding:
    basis = "trained networks"
    measured = [run for run in runs if all(run.has(name) for name in MEASURES)]
    if not measured:
        reason = "Kappa, the bound and the residual of its assumptions were not measured."
        return undecided(basis, reason, unit=UNIT)
    without = {run.seed: _without_level(run) for run in measured if _without_level(run)}
    ended = [run for run in measured if run.seed not in without]
    if not ended:
        reason = f"No run has a level at its end.{excluded(without)}"
        return undecided(basis, reason, unit=UNIT)
    slack, residual = {}, {}
    for run in ended:
        kappa, bound, residual[run.seed] = (run.level(name) for name in MEASURES)
        slack[run.seed] = math.log10(max(bound, SMALLEST) / max(kappa, SMALLEST))
    met = [seed for seed, value in residual.items() if value <= ASSUMED]
    counted = {seed: slack[seed] for seed in met} if met else slack
    effect = mean_of(list(counted.values()))
    interval = bootstrap_interval(list(counted.values()))
    below = sum(value >= 0 for value in counted.values())
    verdict: Verdict = "undecided"
    if met:
        reason = (
            f"The assumptions are met at the end in {len(met)} of {len(slack)} seeds; there kappa "
            f"lies below the bound in {below}, at {10**-effect:.2g} times the bound"
            f"{between(interval)}."
        )
        if len(met) >= LEAST_SEEDS:
            verdict = "supported" if below == len(met) else "undecided" if below else "contradicted"
    else:
        typical = float(np.median(list(residual.values())))
        reason = (
            f"The assumptions are not met: their residual at the end is {typical:.2g}, where "
            f"{ASSUMED:g} or less is asked for, so the bound says nothing here. Kappa lies below "
            f"it in {below} of {len(slack)} seeds all the same."
        )
    return Finding(
        basis=basis, verdict=verdict, effect=effect, interval=interval, unit=UNIT,
        seeds=len(counted), per_seed=by_seed(counted),
        reason=f"{reason}{_throughout(measured)}{excluded(without)}",
        why="" if verdict != "undecided" else "not tested" if not met else
        "underpowered" if len(met) < LEAST_SEEDS else "ambiguous",
    )  # fmt: skip


def _without_level(run: Trajectory) -> str:
    return next(filter(None, (run.why_no_level(name) for name in MEASURES)), "")


def _throughout(runs: Sequence[Trajectory]) -> str:
    """At how many looks the bound holds, of those at which its assumptions are met."""
    held = looks = 0
    for run in runs:
        quantities = [(name, "train") for name in MEASURES]
        kappa, bound, residual = together(run, quantities, "all steps").values
        met = residual <= ASSUMED
        held += int((kappa[met] <= bound[met] * (1 + ROUNDING)).sum())
        looks += int(met.sum())
    if not looks:
        return " At no look are the assumptions met."
    return f" Of the {looks} looks at which the assumptions are met, the bound holds at {held}."
