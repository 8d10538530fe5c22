"""What claims have in common: margins, verdicts on intervals, findings on effects, wording."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from grokscope.analysis.claims.finding import Finding, Verdict, Why
from grokscope.analysis.contrasts import Comparison
from grokscope.analysis.quantities import Quantity
from grokscope.analysis.run import Trajectory
from grokscope.analysis.statistics import Effect, Interval

MARGIN = 0.03  # of validation accuracy: less is no change
KAPPA_FACTOR = 3.0  # less is no change of kappa
FITS = 0.99  # training accuracy
LEAST_SEEDS = 2  # fewer decide nothing
ACCURACY, RATIO = "of validation accuracy", "times the reference"


class SeveralArmsError(ValueError):
    """A claim about the course of one arm was asked of several."""


def one_arm(runs: Sequence[Trajectory]) -> None:
    """Refuse several arms: a seed in each of them would count as several seeds.

    Raises:
        SeveralArmsError: If there is more than one; `evaluate_claims` makes it a finding.
    """
    arms = sorted({run.arm for run in runs})
    if len(arms) > 1:
        raise SeveralArmsError(
            f"The claim is about one arm, but there are {', '.join(arms)}; look at one at a time."
        )


def measured(runs: Sequence[Trajectory], quantities: Sequence[Quantity]) -> list[Quantity]:
    """The first of them, on which the headline rests, and those of the others that a run has."""
    first, *others = quantities
    return [first, *(other for other in others if any(run.has(*other) for run in runs))]


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
    if -margin < low and high < margin:
        return "supported"
    return "contradicted" if low > margin or high < -margin else "undecided"


def direction(interval: Interval, margin: float) -> Verdict:
    """Supported: wholly above the margin; contradicted: wholly below it; else undecided."""
    low, high = interval
    return "supported" if low > margin else "contradicted" if high < margin else "undecided"


def logs(interval: Interval) -> Interval:
    """An interval of ratios on a log scale."""
    low, high = (math.log(end) if end > 0 else math.nan for end in interval)
    return low, high


def same_kappa(comparison: Comparison) -> Verdict:
    """Whether exact kappa is within a factor of 3 of the reference's, the whole interval."""
    return within(logs(comparison.kappa.interval), math.log(KAPPA_FACTOR))


def fits(comparison: Comparison) -> bool:
    """Whether every run of the arm that came to the end of the phase fits its training data."""
    levels = comparison.arm_levels("accuracy").values()
    return bool(levels) and not comparison.diverged and all(level >= FITS for level in levels)


def finding(
    effect: Effect,
    *,
    reason: str,
    verdict: Verdict = "undecided",
    unit: str = ACCURACY,
    basis: str = "",
    context: str = "",
    why: Why = "",
    pair: Comparison | None = None,
) -> Finding:
    """A finding on an effect.

    Args:
        effect: What was found, over seeds.
        reason: What was found in words; for a comparison without its full stop.
        verdict: By a rule fixed in advance.
        unit: Of the effect.
        basis: What was measured; for a comparison its name by default.
        context: Where else it was looked at; empty for the claim's first question.
        why: Why it is undecided, whatever the verdict would be; an undecided verdict on an effect
            without an interval is ``underpowered`` by itself.
        pair: The comparison, if it is about one; seeds that it leaves out follow the reason.
    """
    if why:
        verdict = "undecided"
    elif verdict == "undecided":
        why = why_undecided(effect.interval)
    return Finding(
        basis=basis or (pair.name if pair else ""),
        verdict=verdict,
        effect=effect.effect,
        interval=effect.interval,
        unit=unit,
        seeds=len(effect.per_seed),
        per_seed=effect.per_seed,
        reason=f"{reason}.{clause('Left out', pair.left_out)}" if pair else reason,
        context=context,
        why=why,
    )


def untested(basis: str, reason: str, *, unit: str = "", context: str = "") -> Finding:
    """A finding for what could not be tested at all."""
    return finding(
        Effect(), basis=basis, reason=reason, unit=unit, context=context, why="not tested"
    )


def why_undecided(interval: Interval) -> Why:
    """``underpowered`` for an effect that has no interval."""
    return "underpowered" if math.isnan(sum(interval)) else ""


def usable(runs: Sequence[Trajectory]) -> tuple[list[Trajectory], dict[int, str]]:
    """Runs that memorised first and generalised later, and why the other seeds are left out."""
    kept = [run for run in runs if not run.unusable]
    return kept, {run.seed: run.unusable for run in runs if run.unusable}


def clause(what: str, reasons: Mapping[int, str]) -> str:
    """`` Left out: seeds 3, 4 (never generalised).`` for ``Left out``; empty without any."""
    if not reasons:
        return ""
    seeds: dict[str, list[int]] = {}
    for seed, why in sorted(reasons.items()):
        seeds.setdefault(why, []).append(seed)
    return f" {what}: {', '.join(f'{numbered(those)} ({why})' for why, those in seeds.items())}."


def numbered(seeds: Iterable[int]) -> str:
    """``seed 1`` or ``seeds 1, 2``."""
    names = [str(seed) for seed in sorted(seeds)]
    return f"seed{'s' if len(names) > 1 else ''} {', '.join(names)}"


def between(interval: Interval, form: str = ".3g") -> str:
    """`` (95 % interval 0.1 to 0.3)``; says so when there is none."""
    low, high = interval
    if math.isnan(low) or math.isnan(high):
        return " (no interval: too few seeds, or a few that agree exactly)"
    return f" (95 % interval {low:{form}} to {high:{form}})"


def changed(difference: Effect) -> str:
    """``+0.012 (95 % interval +0.003 to +0.021)``."""
    return f"{difference.effect:+.3f}{between(difference.interval, '+.3f')}"


def times(ratio: Effect) -> str:
    """``3.1 times the reference's (95 % interval 2.5 to 4)``."""
    return f"{ratio.effect:.3g} times the reference's{between(ratio.interval)}"
