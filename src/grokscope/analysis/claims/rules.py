"""What claims that compare arms have in common: margins, verdicts on intervals, wording."""

from __future__ import annotations

import math

from grokscope.analysis.claims.finding import Finding, Verdict, Why, why_undecided
from grokscope.analysis.contrasts import Comparison
from grokscope.analysis.statistics import Interval, Paired

MARGIN = 0.03  # of validation accuracy: less is no change
KAPPA_FACTOR = 3.0  # less is no change of kappa
FITS = 0.99  # training accuracy
ACCURACY, RATIO = "of validation accuracy", "times the reference"


def is_counterexample(kappa_ratio: float, accuracy_difference: float) -> bool:
    """Whether a network is sharp and as accurate: a counterexample to the need for flatness.

    It counts only if the network fits its training data besides (`FITS`).

    Args:
        kappa_ratio: Its kappa at matched training loss over the reference's.
        accuracy_difference: Its validation accuracy minus the reference's.
    """
    return kappa_ratio >= KAPPA_FACTOR and accuracy_difference > -MARGIN


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
    low, high = (math.log(end) if end > 0 else math.nan for end in interval)
    return low, high


def same_kappa(comparison: Comparison) -> Verdict:
    """Whether exact kappa is within a factor of 3 of the reference's, the whole interval."""
    return within(logs(comparison.ratio("relative_flatness").interval), math.log(KAPPA_FACTOR))


def fits(comparison: Comparison) -> bool:
    """Whether every run of the arm that came to the end of the phase fits its training data."""
    levels = [level for level in comparison.arm_levels("accuracy").values() if level == level]
    return bool(levels) and not comparison.diverged and all(level >= FITS for level in levels)


def arms_of(comparison: Comparison) -> str:
    """Arm and reference, for a sentence."""
    return f"{comparison.contrast.arm} against {comparison.contrast.against}"


def numbered(seeds: list[int]) -> str:
    """``seed 1`` or ``seeds 1, 2``."""
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def left_out(comparison: Comparison) -> str:
    """A clause on runs that are not at the end of the phase; empty without any."""
    cases = ((comparison.diverged, "diverged"), (comparison.unfinished, "unfinished"))
    return "".join(f" Left out: {numbered(seeds)} ({why})." for seeds, why in cases if seeds)


def finding(
    comparison: Comparison,
    paired: Paired,
    *,
    verdict: Verdict,
    unit: str,
    reason: str,
    basis: str = "",
    context: str = "",
    why: Why = "",
) -> Finding:
    """A finding on one comparison; runs that were left out are named after the reason."""
    undecided = verdict == "undecided"
    return Finding(
        basis=basis or comparison.name,
        verdict=verdict,
        effect=paired.effect,
        interval=paired.interval,
        unit=unit,
        seeds=len(paired.per_seed),
        per_seed=paired.per_seed,
        reason=f"{reason}.{left_out(comparison)}",
        context=context,
        why=(why or why_undecided(verdict, paired.interval)) if undecided else "",
    )
