"""C7, C8, C13, C14: is it flatness that a network needs?

Paired comparisons at the end of a phase, seed by seed. Fixed before looking:

* a network fits if its training accuracy is 0.99 or more, in every seed;
* lower, or restored, is by 0.03 of validation accuracy, the whole interval;
* sharp is an exact kappa of three times the reference's or more, the whole interval. The verdicts
  of C14 rest on kappa at matched training loss: kappa falls with confidence alone.

Each interval is at 95 % for its own arm, not corrected for how many arms were looked at.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from grokscope.analysis.claims import rules
from grokscope.analysis.claims.finding import Finding, Verdict, Why, claim
from grokscope.analysis.contrasts import Comparison
from grokscope.analysis.statistics import Effect, over_seeds, paired_difference

PENALTY, RIVAL = "penalty", "rival"


@claim(
    "C7",
    title="A sharp network is less accurate",
    statement="A network that is kept from becoming flat still fits its training data, but is less "
    "accurate on held-out data.",
    note="It is put to the test where the network still fits the training data and exact kappa is "
    "three times the reference's or more, the whole interval. The published value is shown "
    "alongside.",
    compares=True,
)
def suppressing_flatness(comparisons: Sequence[Comparison]) -> Iterator[Finding]:
    """C7, for each arm: accuracy, and how sharp the network is."""
    for comparison in comparisons:
        accuracy, kappa = comparison.accuracy, comparison.kappa
        published = comparison.ratio("published_penalty")
        shown = f", the published value {published.effect:.3g} times" if published.per_seed else ""
        low, high = accuracy.interval
        yield rules.finding(
            accuracy,
            pair=comparison,
            reason=f"{comparison.arms}: {trained(comparison)}; validation accuracy changes by "
            f"{rules.changed(accuracy)}; exact kappa is {rules.times(kappa)}{shown}",
            verdict=rules.direction((-high, -low), rules.MARGIN),
            why=_why_untested(comparison, kappa),
        )


@claim(
    "C8",
    title="Lifting the penalty restores accuracy",
    statement="Once the penalty against flatness is lifted, accuracy on held-out data recovers: "
    "the network generalises, only later.",
    note="There is something to restore only where accuracy was lower by more than 0.03 before. "
    "The arms that keep the penalty, and the reference with the same change of optimiser, show "
    "what that change does by itself.",
    compares=True,
)
def removal_restores(comparisons: Sequence[Comparison]) -> Iterator[Finding]:
    """C8: each arm at the end of a phase, and at the end of the one before, where it was pushed."""
    for comparison in comparisons:
        accuracy, before = comparison.accuracy, comparison.before
        lower = before is not None and before.accuracy.interval[1] < -rules.MARGIN
        blocked = "" if lower else "; it is not shown that accuracy was lower before the removal"
        yield rules.finding(
            accuracy,
            pair=comparison,
            reason=f"{comparison.arms}, at the end: {trained(comparison)}; validation accuracy "
            f"differs by {rules.changed(accuracy)}{blocked}",
            # Restored: no longer lower than the reference by more than the margin.
            verdict=rules.direction(accuracy.interval, -rules.MARGIN),
            why="" if lower else "not tested",
        )


@claim(
    "C13",
    title="The published penalty works through flatness",
    statement="The published penalty lowers accuracy because it makes the network sharp, and not "
    "because it keeps the network unsure of its answers.",
    note="Contradicted if a rival penalty that fits and leaves kappa within a factor of 3 lowers "
    "accuracy as much; supported if the penalty lowers it, fits, has raised kappa by that factor, "
    "and no rival lowers it. Logit scales are shown alongside: an arm at another confidence is not "
    "a match.",
    compares=True,
)
def due_to_flatness(comparisons: Sequence[Comparison]) -> Iterator[Finding]:
    """C13: arms with the role ``penalty`` beside those with the role ``rival``."""
    rivals = [pair for pair in comparisons if pair.contrast.role == RIVAL]
    for pair in comparisons:
        if pair.contrast.role == PENALTY:
            yield _explained(pair, rivals)
    for rival in rivals:
        yield rules.finding(rival.accuracy, pair=rival, reason=_effects(rival))


def _explained(penalty: Comparison, rivals: Sequence[Comparison]) -> Finding:
    """Whether sharpness, or what a rival does as well, explains the effect of a penalty."""
    accuracy = penalty.accuracy
    verdict: Verdict = "undecided"
    why: Why = ""
    reason = _effects(penalty)
    if not accuracy.interval[1] < -rules.MARGIN:  # NaN, too
        reason += ". It is not shown to lower accuracy, so there is no effect to explain"
        why = rules.why_undecided(accuracy.interval) or "not tested"
    elif alike := [rival.name for rival in rivals if _does_as_much(rival, penalty)]:
        verdict = "contradicted"
        reason += f". As much without a sharper head: {', '.join(alike)}"
    else:
        why = _why_untested(penalty, penalty.kappa)
        if rivals and all(rival.accuracy.interval[0] > -rules.MARGIN for rival in rivals):
            verdict = "supported"
    return rules.finding(accuracy, pair=penalty, verdict=verdict, reason=reason, why=why)


@claim(
    "C14",
    title="No sharp network generalises",
    statement="Flatness is necessary: no network that is much sharper than the reference is as "
    "accurate on held-out data.",
    note="A counterexample fits the training data, is sharp (kappa at matched training loss three "
    "times the reference's or more, the whole interval) and generalises as well (validation "
    "accuracy not lower by 0.03). One is enough; their absence proves nothing. An arm's interval "
    "is not corrected for the number of arms.",
    compares=True,
)
def no_sharp_network_generalises(comparisons: Sequence[Comparison]) -> list[Finding]:
    """C14, for each arm, the one nearest to a counterexample first; then on plain kappa."""
    matched = [_counterexample(pair, "relative_flatness_matched", "") for pair in comparisons]
    order = ("contradicted", "supported", "undecided")
    matched.sort(key=lambda finding: order.index(finding.verdict))
    plain = [_counterexample(pair, "relative_flatness", "kappa as it is") for pair in comparisons]
    return [*matched, *plain]


def _counterexample(comparison: Comparison, measure: str, context: str) -> Finding:
    kappa = comparison.ratio(measure)
    seeds = kappa.by_seed.keys()  # the same for both halves of the question
    changes = comparison.accuracy.by_seed
    accuracy = over_seeds({seed: changes[seed] for seed in seeds & changes.keys()})
    verdict: Verdict = "undecided"
    if rules.is_counterexample(kappa.interval[0], accuracy.interval[0]):
        verdict = "contradicted"
    elif accuracy.interval[1] < -rules.MARGIN:
        verdict = "supported"
    name = "kappa at matched loss" if measure.endswith("matched") else "exact kappa"
    without = comparison.pairs.keys() - seeds - comparison.left_out.keys()
    if seeds:
        differs = f"validation accuracy differs by {rules.changed(accuracy)}"
        found = f"{name} is {rules.times(kappa)}; {differs}"
        missing = f". Without {name}: {rules.numbered(without)}" if without else ""
    else:
        no_level = comparison.why_no_level(measure, "it") or "it is not positive"
        found, missing = f"{name} cannot be compared ({no_level})", ""
    return rules.finding(
        kappa,
        pair=comparison,
        verdict=verdict,
        unit=rules.RATIO,
        reason=f"{comparison.arms}: {trained(comparison)}; {found}; {_scales(comparison)}{missing}",
        context=context,
        why=_why_untested(comparison, kappa),
    )


def trained(comparison: Comparison) -> str:
    """The arm's training accuracy, and whether that is a fit."""
    level = comparison.arm.level("accuracy", at=comparison.span)
    if math.isnan(level):
        return "no run has a level at the end of the phase"
    fitted = "" if rules.fits(comparison) else " (not every seed fits)"
    return f"training accuracy {level:.3f}{fitted}"


def _why_untested(comparison: Comparison, kappa: Effect) -> Why:
    """Why an arm is no test: it does not fit, is not sharp, or has no interval to tell."""
    if not rules.fits(comparison):
        return "not tested"
    sharp = kappa.interval[0] >= rules.KAPPA_FACTOR
    return "" if sharp else rules.why_undecided(kappa.interval) or "not tested"


def _does_as_much(rival: Comparison, penalty: Comparison) -> bool:
    """Whether a rival fits, leaves kappa as it is, and lowers accuracy as much as the penalty."""
    lowers = rival.accuracy.interval[1] < -rules.MARGIN
    more = paired_difference(
        rival.arm_levels("accuracy", "validation"), penalty.arm_levels("accuracy", "validation")
    )
    alike = rules.same_kappa(rival) == "supported"
    return rules.fits(rival) and lowers and more.interval[1] < rules.MARGIN and alike


def _scales(comparison: Comparison) -> str:
    arm, reference = (
        side.level("logit_scale", at=comparison.span)
        for side in (comparison.arm, comparison.reference)
    )
    return f"logit scale {arm:.3g} against {reference:.3g}"


def _effects(comparison: Comparison) -> str:
    return (
        f"{comparison.arms}: {trained(comparison)}; validation accuracy changes by "
        f"{rules.changed(comparison.accuracy)} and exact kappa to "
        f"{rules.times(comparison.kappa)}; {_scales(comparison)}"
    )
