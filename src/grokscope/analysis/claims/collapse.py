"""C10: does collapse imply flatness, as Proposition 5.3 says?

Three checks. Trained networks, the headline: for them the bound says something only where its
assumptions hold, and there it is counted, seed by seed, whether kappa keeps to it. Then two grids
that don't depend on the run: exactly collapsed heads with centred features, as the proof has
them, and the same with features that are not centred.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

from grokscope.analysis.claims import rules
from grokscope.analysis.claims.finding import Finding, Verdict, Why, claim
from grokscope.analysis.correlations import together
from grokscope.analysis.quantities import Quantity
from grokscope.analysis.run import Trajectory
from grokscope.analysis.statistics import Effect, over_seeds

UNIT = "decades between bound and kappa"
ASSUMED = 0.1  # collapse_residual up to which NC1 to NC4 and Lemma A.1 count as met
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
    rules.one_arm(runs)
    return [
        _trained(runs),
        _on_heads("exact simplex heads", RADII, (0.0,)),
        _on_heads("exact simplex heads, off-centre", (1.0,), OFFSETS),
    ]


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


def _on_heads(basis: str, radii: Sequence[float], offsets: Sequence[float]) -> Finding:
    """A finding on a grid of heads: the least slack, with the least and the greatest."""
    slack = {head: exact_slack(*head) for head in itertools.product(CLASSES, radii, GAPS, offsets)}
    classes, radius, gap, offset = tightest = min(slack, key=lambda head: slack[head])
    least, most = slack[tightest], max(slack.values())
    broken = [offset for (*_, offset), value in slack.items() if value < -ROUNDING]
    first = f", the first at a global mean of {min(broken):g} radii" if broken else ""
    return rules.finding(
        Effect(least, (least, most)),
        basis=basis,
        verdict="contradicted" if broken else "supported",
        unit=UNIT,
        reason=f"Of {len(slack)} exactly collapsed heads ({CLASSES[0]} to {CLASSES[-1]} classes, "
        f"a global mean of {offsets[0]:g} to {offsets[-1]:g} radii) {len(broken) or 'none'} break "
        f"the bound{first}; it is tightest, at {10**least:.3g} times kappa, with {classes} "
        f"classes, radius {radius:g}, logit gap {gap:g} and a global mean of {offset:g} radii. "
        "NC1 to NC4 say nothing about the length of the global mean: kappa grows with it, the "
        "bound does not.",
    )


def _trained(runs: Sequence[Trajectory]) -> Finding:
    basis = "trained networks"
    measured = [run for run in runs if all(run.has(name) for name in MEASURES)]
    if not measured:
        reason = "Kappa, the bound and the residual of its assumptions were not measured."
        return rules.untested(basis, reason, unit=UNIT)
    reasons = {run.seed: [run.why_no_level(name) for name in MEASURES] for run in measured}
    without = {seed: next(filter(None, whys)) for seed, whys in reasons.items() if any(whys)}
    left_out = rules.clause("Left out", without)
    levels = {
        run.seed: [run.level(name) for name in MEASURES]
        for run in measured
        if run.seed not in without
    }
    if not levels:
        return rules.untested(basis, f"No run has a level at its end.{left_out}", unit=UNIT)
    slack = {
        seed: math.log10(max(bound, SMALLEST) / max(kappa, SMALLEST))
        for seed, (kappa, bound, _) in levels.items()
    }
    met = [seed for seed, (*_, residual) in levels.items() if residual <= ASSUMED]
    counted = over_seeds({seed: slack[seed] for seed in met or slack})
    below = sum(value >= 0 for _, value in counted.per_seed)
    verdict: Verdict = "supported" if below else "contradicted"
    why: Why = "ambiguous" if 0 < below < len(met) else ""
    if met:
        why = "underpowered" if len(met) < rules.LEAST_SEEDS else why
        reason = (
            f"The assumptions are met at the end in {len(met)} of {len(slack)} seeds; there kappa "
            f"lies below the bound in {below}, at {10**-counted.effect:.2g} times the bound"
            f"{rules.between(counted.interval)}."
        )
    else:
        why = "not tested"
        typical = float(np.median([residual for *_, residual in levels.values()]))
        reason = (
            f"The assumptions are not met: their residual at the end is {typical:.2g}, where "
            f"{ASSUMED:g} or less is asked for, so the bound says nothing here. Kappa lies below "
            f"it in {below} of {len(slack)} seeds all the same."
        )
    return rules.finding(
        counted,
        basis=basis,
        verdict=verdict,
        unit=UNIT,
        reason=f"{reason}{_throughout(measured)}{left_out}",
        why=why,
    )


def _throughout(runs: Sequence[Trajectory]) -> str:
    """At how many looks the bound holds, of those at which its assumptions are met."""
    held = looks = 0
    for run in runs:
        curves = together(run, [Quantity(name) for name in MEASURES], "all steps")
        kappa, bound, residual = curves.values
        met = residual <= ASSUMED
        held += int((kappa[met] <= bound[met] * (1 + ROUNDING)).sum())
        looks += int(met.sum())
    if not looks:
        return " At no look are the assumptions met."
    return f" Of the {looks} looks at which the assumptions are met, the bound holds at {held}."
