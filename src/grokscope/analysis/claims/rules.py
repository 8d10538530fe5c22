"""What claims that compare arms have in common: margins, verdicts on intervals, wording."""

from __future__ import annotations

import math

from grokscope.analysis.claims.registry import Finding, Verdict
from grokscope.analysis.contrasts import Comparison
from grokscope.analysis.statistics import Interval, Paired

MARGIN = 0.03  # of validation accuracy: less is no change
KAPPA_FACTOR = 3.0  # less is no change of kappa
FITS = 0.99  # training accuracy
ACCURACY, RATIO = "of validation accuracy", "times the reference"


def within(interval: Interval, margin: float) -> Verdict:
    """Supported: wholly within ± margin; contradicted: wholly outside; else undecided."""
    low, high = interval
    if math.isnan(low) or math.isnan(high):
        return "undecided"
    if -margin < low and high < margin:
        return "supported"
    return "contradicted" if low > margin or high < -margin else "undecided"


def direction(interval: Interval, margin: float) -> Verdict:
    """Supported: wholly above the margin; contradicted: wholly below it; else undecided."""
    low, high = interval
    if math.isnan(low) or math.isnan(high):
        return "undecided"
    return "supported" if low > margin else "contradicted" if high < margin else "undecided"


def logs(interval: Interval) -> Interval:
    """An interval of ratios on a log scale."""
    return tuple(math.log(each) if each > 0 else math.nan for each in interval)  # type: ignore[return-value]


def says(own: Comparison) -> str:
    """Arm and reference, for a sentence."""
    return f"{own.contrast.arm} against {own.contrast.against}"


def left_out(own: Comparison) -> str:
    """A clause on runs that are not at the end of the phase; empty without any."""
    clauses = []
    for seeds, why in ((own.diverged, "diverged"), (own.unfinished, "unfinished")):
        if seeds:
            clauses.append(f" Left out: seed {', '.join(map(str, seeds))} ({why}).")
    return "".join(clauses)


def same_kappa(own: Comparison) -> Verdict:
    """Whether exact kappa is within a factor of 3 of the reference's, the whole interval."""
    return within(logs(own.ratio("relative_flatness").interval), math.log(KAPPA_FACTOR))


def finding(
    id: str, basis: str, verdict: Verdict, paired: Paired, unit: str, reason: str, own: Comparison
) -> Finding:
    """A finding on one comparison; runs that were left out are named behind the reason."""
    return Finding(
        id, basis, verdict, paired.effect, paired.interval, unit, len(paired.per_seed),
        paired.per_seed, f"{reason}.{left_out(own)}",
    )  # fmt: skip
