"""C3 to C6, C12: what becomes of a network whose collapse is pushed, and the published sweeps.

Everything is a paired comparison with the reference arm, seed by seed. Fixed before looking:

* unchanged: the whole interval lies within 0.03 of accuracy, within a factor of 3 of kappa;
* an intervention on collapse counts as one if it moves NCC by a factor of 2 or more, the whole
  interval; otherwise nothing was put to the test;
* with one seed there is no interval and no verdict, only what was seen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from grokscope.analysis.claims.registry import Finding, Verdict, between, claim_on_contrasts
from grokscope.analysis.claims.rules import (
    ACCURACY,
    MARGIN,
    RATIO,
    direction,
    finding,
    same_kappa,
    says,
    within,
)
from grokscope.analysis.contrasts import Comparison
from grokscope.analysis.statistics import Paired, mean_of, paired_difference

MOVED = 2.0  # factor of NCC
DEGREES = 5.0  # a smaller change of the mean angle is none
FAILS = 0.5  # training accuracy below which a network has not learnt


@claim_on_contrasts(
    "C3",
    "Suppressing collapse leaves accuracy and flatness unchanged.",
    "Unchanged: the whole interval within 0.03 of accuracy, within a factor of 3 of kappa. It is "
    "put to the test only if NCC rose by a factor of 2 or more.",
)
def suppressing_collapse(made: Sequence[Comparison]) -> list[Finding]:
    """C3, for each arm: accuracy, then kappa, then whether NCC was moved at all."""
    return [each for own in made for each in _pushed("C3", own, up=True)]


@claim_on_contrasts(
    "C4",
    "Encouraging collapse leaves generalisation unchanged.",
    "As C3, with NCC lowered by a factor of 2 or more.",
)
def encouraging_collapse(made: Sequence[Comparison]) -> list[Finding]:
    """C4, for each arm."""
    return [each for own in made for each in _pushed("C4", own, up=False)]


@claim_on_contrasts(
    "C5",
    "With NCC suppressed, angles between class means leave the simplex angle.",
    "The effect is the mean distance from the simplex angle, minus that of the reference; less "
    "than 5 degrees is no change. It is put to the test only if NCC rose by a factor of 2 or more.",
)
def angles_leave_the_simplex(made: Sequence[Comparison]) -> list[Finding]:
    """C5, for each arm."""
    found = []
    for own in made:
        angle = own.difference("angle_deviation")
        moved, how = _moved(own, up=True)
        verdict = direction(angle.interval, DEGREES) if moved else "undecided"
        reason = (
            f"{says(own)}: angles are {angle.effect:+.1f} degrees further from the simplex's"
            f"{between(angle.interval)}. {how}"
        )
        found.append(finding("C5", own.name, verdict, angle, "degrees", reason, own))
    return found


@claim_on_contrasts(
    "C6",
    "Augmentation weakens the regulariser of NCC.",
    "The effect is the ratio of NCC to its reference with augmentation, over that without.",
)
def augmentation_weakens(made: Sequence[Comparison]) -> list[Finding]:
    """C6: each arm with the role ``augmented`` and the ``plain`` one declared just before it."""
    plain = {each.place: each for each in made if each.contrast.role == "plain"}
    found = []
    for own in made:
        beside = plain.get(own.place - 1)
        if own.contrast.role != "augmented" or beside is None:
            continue
        here, there = (_logs(each.ratio("ncc")) for each in (own, beside))
        weaker = paired_difference(here, there)
        verdict = direction((-weaker.interval[1], -weaker.interval[0]), math.log(1.25))
        back = Paired(
            math.exp(weaker.effect),
            (math.exp(weaker.interval[0]), math.exp(weaker.interval[1])),
            tuple((seed, math.exp(value)) for seed, value in weaker.per_seed),
            weaker.above,
            weaker.below,
            weaker.sign_probability,
        )
        ratios = [math.exp(mean_of(list(each.values()))) for each in (there, here)]
        reason = (
            f"The regulariser multiplies NCC by {ratios[0]:.3g} without augmentation and by "
            f"{ratios[1]:.3g} with it{between(back.interval)}"
        )
        found.append(finding("C6", own.name, verdict, back, "times the ratio without", reason, own))
    return found


@claim_on_contrasts(
    "C12",
    "The sweeps of strength and cap behave as in the paper's figures 6, 7, 11 and 12.",
    "Fails: training accuracy below 0.5, or NaN, in most seeds. Lower: validation accuracy lower "
    "by more than 0.03. The paper has one seed for each value; a verdict needs two.",
)
def sweeps(made: Sequence[Comparison]) -> list[Finding]:
    """C12, for each arm, against what the paper saw: its role fails, lower or unchanged."""
    found = []
    for own in made:
        accuracy = own.difference("accuracy", "validation")
        seen, verdict = _outcome(own, accuracy)
        expected = own.contrast.role
        if expected not in PHRASES:
            continue  # nothing to hold it against
        if verdict == "supported" and seen != expected:
            verdict = "contradicted"
        reason = (
            f"The paper saw that it {PHRASES[expected]}; here it {PHRASES[seen]}"
            f"{between(accuracy.interval)}"
        )
        found.append(finding("C12", own.name, verdict, accuracy, ACCURACY, reason, own))
    return found


PHRASES = {
    "fails": "fails to fit the training data",
    "lower": "lowers validation accuracy",
    "unchanged": "leaves validation accuracy as it is",
    "higher": "raises validation accuracy",
    "unclear": "changes validation accuracy by an amount that is not settled",
}


def _outcome(own: Comparison, accuracy: Paired) -> tuple[str, Verdict]:
    fits = [each for each in own.own("accuracy").values() if math.isfinite(each)]
    runs = len(fits) + len(own.diverged)
    failed = len(own.diverged) + sum(value < FAILS for value in fits)
    settled: Verdict = "supported" if runs > 1 else "undecided"
    if failed > runs / 2:
        return "fails", settled
    low, high = accuracy.interval
    if len(accuracy.per_seed) == 1:  # no interval: what was seen, without a verdict
        low = high = accuracy.effect
    if within((low, high), MARGIN) == "supported":
        return "unchanged", settled
    if high < -MARGIN or low > MARGIN:
        return ("lower" if high < -MARGIN else "higher"), settled
    return "unclear", "undecided"


def _moved(own: Comparison, up: bool) -> tuple[bool, str]:
    """Whether NCC was moved as it was meant to be, and a clause that says so."""
    collapse = own.ratio("ncc")
    low, high = collapse.interval
    moved = low >= MOVED if up else high <= 1 / MOVED
    how = f"NCC is {collapse.effect:.3g} times the reference's{between(collapse.interval)}"
    which = "rose" if up else "fell"
    return moved, how if moved else f"{how}, so it is not shown that it {which} by a factor of 2"


def _pushed(id: str, own: Comparison, up: bool) -> list[Finding]:
    moved, how = _moved(own, up)
    accuracy, kappa = own.difference("accuracy", "validation"), own.ratio("relative_flatness")
    same = within(accuracy.interval, MARGIN)
    findings = []
    for what, paired, verdict, unit, said in (
        ("validation accuracy", accuracy, same, ACCURACY, f"changes by {accuracy.effect:+.3f}"),
        ("exact κ", kappa, same_kappa(own), RATIO, f"is {kappa.effect:.3g} times the reference's"),
    ):
        reason = f"{says(own)}: {what} {said}{between(paired.interval)}. {how}"
        told = verdict if moved else "undecided"
        findings.append(finding(id, f"{what}: {own.name}", told, paired, unit, reason, own))
    return findings


def _logs(ratio: Paired) -> dict[int, float]:
    return {seed: math.log(value) for seed, value in ratio.per_seed}
