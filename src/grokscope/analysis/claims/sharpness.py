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
from collections.abc import Sequence

from grokscope.analysis.claims.registry import Finding, Verdict, between, claim_on_contrasts
from grokscope.analysis.claims.rules import (
    ACCURACY,
    FITS,
    KAPPA_FACTOR,
    MARGIN,
    RATIO,
    direction,
    finding,
    same_kappa,
    says,
)
from grokscope.analysis.contrasts import Comparison
from grokscope.analysis.statistics import mean_of, paired_difference

# A sharp network that is as good speaks against the claim, one that is worse for it.
AGAINST: dict[Verdict, Verdict] = {
    "supported": "contradicted",
    "contradicted": "supported",
    "undecided": "undecided",
}
PENALTY, RIVAL = "penalty", "rival"


@claim_on_contrasts(
    "C7",
    "Suppressing flatness lowers validation accuracy while training accuracy still reaches 1.",
    "It is put to the test where the network still fits the training data and exact kappa is three "
    "times the reference's or more, the whole interval. The published value stands beside.",
)
def suppressing_flatness(made: Sequence[Comparison]) -> list[Finding]:
    """C7, for each arm: accuracy, and how sharp the network is."""
    found = []
    for own in made:
        accuracy, kappa = own.difference("accuracy", "validation"), own.ratio("relative_flatness")
        published = own.ratio("published_penalty")
        verdict: Verdict = "undecided"
        if fits(own) and kappa.interval[0] >= KAPPA_FACTOR:
            verdict = direction((-accuracy.interval[1], -accuracy.interval[0]), MARGIN)
        reason = (
            f"{says(own)}: {trained(own)}; validation accuracy changes by "
            f"{accuracy.effect:+.3f}{between(accuracy.interval)}; exact kappa is "
            f"{kappa.effect:.3g} times the reference's{between(kappa.interval)}, the published "
            f"value {published.effect:.3g} times"
        )
        found.append(finding("C7", own.name, verdict, accuracy, ACCURACY, reason, own))
    return found


@claim_on_contrasts(
    "C8",
    "Removing the regulariser restores validation accuracy (delayed generalisation).",
    "There is something to restore only where accuracy was lower by more than 0.03 before. What "
    "the change of optimiser does by itself, the arms that keep the penalty, and the reference "
    "with the same change, must tell.",
)
def removal_restores(made: Sequence[Comparison]) -> list[Finding]:
    """C8: each arm at the end of a phase, and at the end of the one before, where it was pushed."""
    found = []
    for own in made:
        accuracy = own.difference("accuracy", "validation")
        low = math.nan
        if own.before is not None:
            low = own.before.difference("accuracy", "validation").interval[1]
        verdict: Verdict = "undecided"
        blocked = ""
        if low < -MARGIN:
            # Restored: no longer lower than the reference by more than the margin.
            shifted = (accuracy.interval[0] + MARGIN, accuracy.interval[1] + MARGIN)
            verdict = direction(shifted, 0.0)
        else:
            blocked = "; it is not shown that accuracy was lower before the removal"
        reason = (
            f"{says(own)}, at the end: {trained(own)}; validation accuracy differs by "
            f"{accuracy.effect:+.3f}{between(accuracy.interval)}{blocked}"
        )
        found.append(finding("C8", own.name, verdict, accuracy, ACCURACY, reason, own))
    return found


@claim_on_contrasts(
    "C13",
    "The effect of the published penalty is due to flatness.",
    "Contradicted if a rival that fits and leaves kappa within a factor of 3 lowers accuracy as "
    "much; supported if the penalty lowers it, fits, has raised kappa by that factor, and no rival "
    "lowers it. Logit scales stand beside: an arm at another confidence is no match.",
)
def due_to_flatness(made: Sequence[Comparison]) -> list[Finding]:
    """C13: arms with the role ``penalty`` beside those with the role ``rival``."""
    penalties = [each for each in made if each.contrast.role == PENALTY]
    rivals = [each for each in made if each.contrast.role == RIVAL]
    found = []
    for own in penalties:
        accuracy = own.difference("accuracy", "validation")
        verdict: Verdict = "undecided"
        reason = f"{says(own)}: {_effects(own)}"
        if not accuracy.interval[1] < -MARGIN:  # NaN, too
            reason += ". It is not shown to lower accuracy, so there is no effect to explain"
        elif alike := [rival.name for rival in rivals if _does_as_much(rival, own)]:
            verdict = "contradicted"
            reason += f". As much without a sharper head: {', '.join(alike)}"
        elif fits(own) and own.ratio("relative_flatness").interval[0] >= KAPPA_FACTOR:
            changes = [each.difference("accuracy", "validation").interval for each in rivals]
            if rivals and all(change[0] > -MARGIN for change in changes):
                verdict = "supported"
        found.append(finding("C13", own.name, verdict, accuracy, ACCURACY, reason, own))
    for own in rivals:
        accuracy = own.difference("accuracy", "validation")
        reason = f"{says(own)}: {_effects(own)}"
        found.append(finding("C13", own.name, "undecided", accuracy, ACCURACY, reason, own))
    return found


@claim_on_contrasts(
    "C14",
    "Flatness is necessary: no sharp network generalises.",
    "A counterexample fits the training data, is sharp (kappa at matched training loss three "
    "times the reference's or more, the whole interval) and generalises as well (validation "
    "accuracy not lower by 0.03). One is enough; their absence proves nothing. An arm's interval "
    "is not corrected for the number of arms.",
)
def no_sharp_network_generalises(made: Sequence[Comparison]) -> list[Finding]:
    """C14, for each arm, the one nearest to a counterexample first; then on plain kappa."""
    matched = [_counterexample(own, "relative_flatness_matched", "") for own in made]
    order = ("contradicted", "supported", "undecided")
    matched.sort(key=lambda each: order.index(each.verdict))
    plain = [_counterexample(own, "relative_flatness", "kappa as it is") for own in made]
    return [*matched, *plain]


def _counterexample(own: Comparison, measure: str, context: str) -> Finding:
    kappa = own.ratio(measure)
    seeds = [seed for seed, _ in kappa.per_seed]  # the same for both halves of the question
    accuracy = own.difference("accuracy", "validation", seeds)
    sharp = kappa.interval[0] >= KAPPA_FACTOR
    verdict: Verdict = "undecided"
    if fits(own) and sharp:
        verdict = AGAINST[direction(accuracy.interval, -MARGIN)]
    name = "kappa at matched loss" if measure.endswith("matched") else "exact kappa"
    measured = "is known in no seed"
    if seeds:
        measured = (
            f"is {kappa.effect:.3g} times the reference's{between(kappa.interval)}; validation "
            f"accuracy differs by {accuracy.effect:+.3f}{between(accuracy.interval)}"
        )
    reason = f"{says(own)}: {trained(own)}; {name} {measured}; {_scales(own)}"
    without = sorted(own.pairs.keys() - {*seeds, *own.diverged, *own.unfinished})
    if seeds and without:
        reason += f". Without {name}: seed {', '.join(map(str, without))}"
    made = finding("C14", own.name, verdict, kappa, RATIO, reason, own)
    return Finding(**{**vars(made), "context": context})


def fits(own: Comparison) -> bool:
    """Whether every run of the arm that came to the end of the phase fits its training data."""
    levels = [each for each in own.own("accuracy").values() if math.isfinite(each)]
    return bool(levels) and not own.diverged and all(each >= FITS for each in levels)


def trained(own: Comparison) -> str:
    """The arm's training accuracy, and whether that is a fit."""
    level = mean_of(list(own.own("accuracy").values()))
    if math.isnan(level):
        return "no run came to the end of the phase"
    return f"training accuracy {level:.3f}{'' if fits(own) else ', and not every seed fits'}"


def _does_as_much(rival: Comparison, penalty: Comparison) -> bool:
    """Whether a rival fits, leaves kappa as it is, and lowers accuracy as much as the penalty."""
    lowers = rival.difference("accuracy", "validation").interval[1] < -MARGIN
    more = paired_difference(
        rival.own("accuracy", "validation"), penalty.own("accuracy", "validation")
    )
    alike = same_kappa(rival) == "supported"
    return fits(rival) and lowers and more.interval[1] < MARGIN and alike


def _scales(own: Comparison) -> str:
    pairs = own.levels("logit_scale").values()
    here, there = mean_of([pair[0] for pair in pairs]), mean_of([pair[1] for pair in pairs])
    return f"logit scale {here:.3g} against {there:.3g}"


def _effects(own: Comparison) -> str:
    accuracy, kappa = own.difference("accuracy", "validation"), own.ratio("relative_flatness")
    return (
        f"{trained(own)}; validation accuracy changes by {accuracy.effect:+.3f}"
        f"{between(accuracy.interval)} and exact kappa to {kappa.effect:.3g} times"
        f"{between(kappa.interval)}; {_scales(own)}"
    )
