"""C3 to C6, C12: what becomes of a network whose collapse is pushed, and the published sweeps.

Everything is a paired comparison with the reference arm, seed by seed. Fixed before looking:

* unchanged: the whole interval lies within 0.03 of accuracy, within a factor of 3 of kappa;
* an intervention on collapse counts as one if it moves NCC by a factor of 2 or more, the whole
  interval; otherwise nothing was put to the test;
* with one seed there is no interval and no verdict, only what was seen.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from grokscope.analysis.claims import rules
from grokscope.analysis.claims.finding import Finding, Verdict, Why, claim
from grokscope.analysis.contrasts import Comparison
from grokscope.analysis.statistics import geometric_ratio

MOVED = 2.0  # factor of NCC
WEAKER = 1.25  # factor of a ratio; less is no weaker
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
def suppressing_collapse(comparisons: Sequence[Comparison]) -> Iterator[Finding]:
    """C3, for each arm: accuracy, then kappa, then whether NCC was moved at all."""
    for comparison in comparisons:
        yield from _pushed(comparison, up=True)


@claim(
    "C4",
    title="Forcing collapse changes nothing else",
    statement="When the features are pushed to cluster by class, the network is as accurate on "
    "held-out data as without.",
    note="Unchanged means the same as for C3. It is put to the test only where NCC fell by a "
    "factor of 2 or more.",
    compares=True,
)
def encouraging_collapse(comparisons: Sequence[Comparison]) -> Iterator[Finding]:
    """C4, for each arm."""
    for comparison in comparisons:
        yield from _pushed(comparison, up=False)


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
def angles_leave_the_simplex(comparisons: Sequence[Comparison]) -> Iterator[Finding]:
    """C5, for each arm."""
    for comparison in comparisons:
        angle = comparison.difference("angle_deviation")
        why, how = _moved(comparison, up=True)
        further = "further from" if not angle.effect < 0 else "closer to"
        yield rules.finding(
            angle,
            pair=comparison,
            unit="degrees",
            verdict=rules.direction(angle.interval, DEGREES),
            reason=f"{comparison.arms}: angles are {abs(angle.effect):.1f} degrees {further} the "
            f"simplex angle{rules.between(angle.interval)}. {how}",
            why=why,
        )


@claim(
    "C6",
    title="Augmentation weakens the penalty on collapse",
    statement="A penalty that keeps the features from clustering by class has less effect when the "
    "training images are augmented.",
    note="The effect is the ratio of NCC to its reference with augmentation, divided by that "
    "without.",
    compares=True,
)
def augmentation_weakens(comparisons: Sequence[Comparison]) -> Iterator[Finding]:
    """C6: each arm with the role ``augmented`` and the ``plain`` one declared just before it."""
    plain = {pair.place: pair for pair in comparisons if pair.contrast.role == "plain"}
    for comparison in comparisons:
        partner = plain.get(comparison.place - 1)
        if comparison.contrast.role != "augmented" or partner is None:
            continue
        augmented, without = comparison.ratio("ncc"), partner.ratio("ncc")
        change = geometric_ratio(augmented.by_seed, without.by_seed)
        low, high = rules.logs(change.interval)
        yield rules.finding(
            change,
            pair=comparison,
            verdict=rules.direction((-high, -low), math.log(WEAKER)),
            unit="times the ratio without",
            reason=f"The penalty multiplies NCC by {without.effect:.3g} without augmentation and "
            f"by {augmented.effect:.3g} with it, {change.effect:.3g} times as much"
            f"{rules.between(change.interval)}",
        )


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
def sweeps(comparisons: Sequence[Comparison]) -> Iterator[Finding]:
    """C12, for each arm, against what the paper saw: its role fails, lower or unchanged."""
    for comparison in comparisons:
        expected = comparison.contrast.role
        if expected not in PHRASES:
            continue  # nothing to compare it with
        seen, settled = _seen(comparison)
        verdict: Verdict = "supported" if seen == expected else "contradicted"
        interval = rules.between(comparison.accuracy.interval)
        yield rules.finding(
            comparison.accuracy,
            pair=comparison,
            verdict=verdict if settled else "undecided",
            reason=f"In the paper it {PHRASES[expected]}; here it {PHRASES[seen]}{interval}",
        )


PHRASES = {
    "fails": "fails to fit the training data",
    "lower": "lowers validation accuracy",
    "unchanged": "leaves validation accuracy unchanged",
    "higher": "raises validation accuracy",
    "unclear": "may or may not change validation accuracy",
}


def _seen(comparison: Comparison) -> tuple[str, bool]:
    """Which of `PHRASES` was seen, and whether that is settled."""
    levels = comparison.arm_levels("accuracy").values()
    runs = len(levels) + len(comparison.diverged)
    failed = len(comparison.diverged) + sum(level < FAILS for level in levels)
    if failed > runs / 2:
        return "fails", runs > 1
    accuracy = comparison.accuracy
    low, high = accuracy.interval
    if len(accuracy.per_seed) == 1:  # no interval: what was seen, without a verdict
        low = high = accuracy.effect
    if rules.within((low, high), rules.MARGIN) == "supported":
        return "unchanged", runs > 1
    if high < -rules.MARGIN or low > rules.MARGIN:
        return ("lower" if high < -rules.MARGIN else "higher"), runs > 1
    return "unclear", False


def _moved(comparison: Comparison, up: bool) -> tuple[Why, str]:
    """Empty if NCC was moved as it was meant to be, else ``not tested``; and a clause on that."""
    collapse = comparison.ratio("ncc")
    low, high = collapse.interval
    how = f"NCC is {rules.times(collapse)}"
    if low >= MOVED if up else high <= 1 / MOVED:
        return "", how
    which = "rose" if up else "fell"
    return "not tested", f"{how}, so it is not shown that it {which} by a factor of 2"


def _pushed(comparison: Comparison, up: bool) -> Iterator[Finding]:
    why, how = _moved(comparison, up)
    accuracy, kappa = comparison.accuracy, comparison.kappa
    yield rules.finding(
        accuracy,
        pair=comparison,
        basis=f"validation accuracy: {comparison.name}",
        verdict=rules.within(accuracy.interval, rules.MARGIN),
        reason=f"{comparison.arms}: validation accuracy changes by {rules.changed(accuracy)}. "
        f"{how}",
        why=why,
    )
    yield rules.finding(
        kappa,
        pair=comparison,
        basis=f"exact κ: {comparison.name}",
        verdict=rules.same_kappa(comparison),
        unit=rules.RATIO,
        reason=f"{comparison.arms}: exact κ is {rules.times(kappa)}. {how}",
        why=why,
    )
