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
from dataclasses import replace

from grokscope.analysis.claims.finding import Finding, Verdict, between, claim
from grokscope.analysis.claims.rules import (
    ACCURACY,
    MARGIN,
    RATIO,
    arms_of,
    direction,
    finding,
    same_kappa,
    within,
)
from grokscope.analysis.contrasts import Comparison
from grokscope.analysis.statistics import Paired, mean_of, paired_difference

MOVED = 2.0  # factor of NCC
DEGREES = 5.0  # a smaller change of the mean angle is none
FAILS = 0.5  # training accuracy below which a network has not learnt


@claim(
    "C3",
    title="Preventing collapse changes nothing else",
    statement="When the features are kept from clustering by class, the network is as accurate on "
    "held-out data, and as flat, as without.",
    note="Unchanged means that the whole interval lies within 0.03 of accuracy, or within a factor "
    "of 3 of kappa. It is put to the test only where NCC rose by a factor of 2 or more.",
    compares=True,
)
def suppressing_collapse(comparisons: Sequence[Comparison]) -> list[Finding]:
    """C3, for each arm: accuracy, then kappa, then whether NCC was moved at all."""
    return [answer for pair in comparisons for answer in _pushed(pair, up=True)]


@claim(
    "C4",
    title="Forcing collapse changes nothing else",
    statement="When the features are pushed to cluster by class, the network is as accurate on "
    "held-out data as without.",
    note="Unchanged means the same as for C3. It is put to the test only where NCC fell by a "
    "factor of 2 or more.",
    compares=True,
)
def encouraging_collapse(comparisons: Sequence[Comparison]) -> list[Finding]:
    """C4, for each arm."""
    return [answer for pair in comparisons for answer in _pushed(pair, up=False)]


@claim(
    "C5",
    title="Without collapse, class means leave the simplex",
    statement="When the features are kept from clustering by class, the means of the classes no "
    "longer lie at equal angles from each other.",
    note="The effect is the mean distance from the simplex angle, minus that of the reference; "
    "less than 5 degrees is no change. It is put to the test only where NCC rose by a factor of 2 "
    "or more.",
    compares=True,
)
def angles_leave_the_simplex(comparisons: Sequence[Comparison]) -> list[Finding]:
    """C5, for each arm."""
    findings = []
    for comparison in comparisons:
        angle = comparison.difference("angle_deviation")
        moved, how = _moved(comparison, up=True)
        further = "further from" if not angle.effect < 0 else "closer to"
        findings.append(
            finding(
                comparison,
                angle,
                unit="degrees",
                verdict=direction(angle.interval, DEGREES) if moved else "undecided",
                reason=f"{arms_of(comparison)}: angles are {abs(angle.effect):.1f} degrees "
                f"{further} the simplex angle{between(angle.interval)}. {how}",
                why="" if moved else "not tested",
            )
        )
    return findings


@claim(
    "C6",
    title="Augmentation weakens the penalty on collapse",
    statement="A penalty that keeps the features from clustering by class has less effect when the "
    "training images are augmented.",
    note="The effect is the ratio of NCC to its reference with augmentation, divided by that "
    "without.",
    compares=True,
)
def augmentation_weakens(comparisons: Sequence[Comparison]) -> list[Finding]:
    """C6: each arm with the role ``augmented`` and the ``plain`` one declared just before it."""
    plain = {pair.place: pair for pair in comparisons if pair.contrast.role == "plain"}
    findings = []
    for comparison in comparisons:
        partner = plain.get(comparison.place - 1)
        if comparison.contrast.role != "augmented" or partner is None:
            continue
        augmented, without = (_logs(pair.ratio("ncc")) for pair in (comparison, partner))
        weaker = paired_difference(augmented, without)
        low, high = weaker.interval
        change = replace(
            weaker,
            effect=math.exp(weaker.effect),
            interval=(math.exp(low), math.exp(high)),
            per_seed=tuple((seed, math.exp(value)) for seed, value in weaker.per_seed),
        )
        ratios = [math.exp(mean_of(list(logs.values()))) for logs in (without, augmented)]
        reason = (
            f"The penalty multiplies NCC by {ratios[0]:.3g} without augmentation and by "
            f"{ratios[1]:.3g} with it, {change.effect:.3g} times as much"
            f"{between(change.interval)}"
        )
        findings.append(
            finding(
                comparison,
                change,
                verdict=direction((-high, -low), math.log(1.25)),
                unit="times the ratio without",
                reason=reason,
            )
        )
    return findings


@claim(
    "C12",
    title="The sweeps look as in the paper",
    statement="Stronger and weaker penalties, and higher and lower caps on the last layer, have "
    "the effects that the paper's figures 6, 7, 11 and 12 show.",
    note="A network fails if its training accuracy is below 0.5, or it diverges, in most seeds. "
    "Lower means lower validation accuracy by more than 0.03. The paper has one seed for each "
    "value; a verdict needs two.",
    compares=True,
)
def sweeps(comparisons: Sequence[Comparison]) -> list[Finding]:
    """C12, for each arm, against what the paper saw: its role fails, lower or unchanged."""
    findings = []
    for comparison in comparisons:
        expected = comparison.contrast.role
        if expected not in PHRASES:
            continue  # nothing to compare it with
        accuracy = comparison.difference("accuracy", "validation")
        seen, verdict = _seen(comparison, accuracy)
        if verdict == "supported" and seen != expected:
            verdict = "contradicted"
        reason = (
            f"In the paper it {PHRASES[expected]}; here it {PHRASES[seen]}"
            f"{between(accuracy.interval)}"
        )
        findings.append(
            finding(comparison, accuracy, verdict=verdict, unit=ACCURACY, reason=reason)
        )
    return findings


PHRASES = {
    "fails": "fails to fit the training data",
    "lower": "lowers validation accuracy",
    "unchanged": "leaves validation accuracy unchanged",
    "higher": "raises validation accuracy",
    "unclear": "may or may not change validation accuracy",
}


def _seen(comparison: Comparison, accuracy: Paired) -> tuple[str, Verdict]:
    """Which of `PHRASES` was seen, and whether it is settled (``supported``)."""
    levels = [level for level in comparison.arm_levels("accuracy").values() if level == level]
    runs = len(levels) + len(comparison.diverged)
    failed = len(comparison.diverged) + sum(level < FAILS for level in levels)
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


def _moved(comparison: Comparison, up: bool) -> tuple[bool, str]:
    """Whether NCC was moved as it was meant to be, and a clause that says so."""
    collapse = comparison.ratio("ncc")
    low, high = collapse.interval
    moved = low >= MOVED if up else high <= 1 / MOVED
    how = f"NCC is {collapse.effect:.3g} times the reference's{between(collapse.interval)}"
    which = "rose" if up else "fell"
    return moved, how if moved else f"{how}, so it is not shown that it {which} by a factor of 2"


def _pushed(comparison: Comparison, up: bool) -> list[Finding]:
    moved, how = _moved(comparison, up)
    accuracy = comparison.difference("accuracy", "validation")
    kappa = comparison.ratio("relative_flatness")

    def answer(what: str, paired: Paired, unchanged: Verdict, change: str) -> Finding:
        return finding(
            comparison, paired, basis=f"{what}: {comparison.name}",
            verdict=unchanged if moved else "undecided",
            unit=ACCURACY if paired is accuracy else RATIO,
            reason=f"{arms_of(comparison)}: {what} {change}{between(paired.interval)}. {how}",
            why="" if moved else "not tested",
        )  # fmt: skip

    same = within(accuracy.interval, MARGIN)
    times = f"is {kappa.effect:.3g} times the reference's"
    return [
        answer("validation accuracy", accuracy, same, f"changes by {accuracy.effect:+.3f}"),
        answer("exact κ", kappa, same_kappa(comparison), times),
    ]


def _logs(ratio: Paired) -> dict[int, float]:
    return {seed: math.log(value) for seed, value in ratio.per_seed}
