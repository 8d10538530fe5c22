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

from grokscope.analysis.claims.finding import Finding, Verdict, claim
from grokscope.analysis.claims.rules import (
    ACCURACY,
    MARGIN,
    RATIO,
    arms_of,
    between,
    changed,
    compared,
    direction,
    logs,
    same_kappa,
    times,
    within,
)
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
    return _pushed(comparisons, up=True)


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
    return _pushed(comparisons, up=False)


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
        moved, how = _moved(comparison, up=True)
        further = "further from" if not angle.effect < 0 else "closer to"
        yield compared(
            comparison,
            angle,
            unit="degrees",
            verdict=direction(angle.interval, DEGREES) if moved else "undecided",
            reason=f"{arms_of(comparison)}: angles are {abs(angle.effect):.1f} degrees "
            f"{further} the simplex angle{between(angle.interval)}. {how}",
            why="" if moved else "not tested",
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
        low, high = logs(change.interval)
        yield compared(
            comparison,
            change,
            verdict=direction((-high, -low), math.log(WEAKER)),
            unit="times the ratio without",
            reason=f"The penalty multiplies NCC by {without.effect:.3g} without augmentation and "
            f"by {augmented.effect:.3g} with it, {change.effect:.3g} times as much"
            f"{between(change.interval)}",
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
        interval = between(comparison.accuracy.interval)
        yield compared(
            comparison,
            comparison.accuracy,
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
    if within((low, high), MARGIN) == "supported":
        return "unchanged", runs > 1
    if high < -MARGIN or low > MARGIN:
        return ("lower" if high < -MARGIN else "higher"), runs > 1
    return "unclear", False


def _moved(comparison: Comparison, up: bool) -> tuple[bool, str]:
    """Whether NCC was moved as it was meant to be, and a clause that says so."""
    collapse = comparison.ratio("ncc")
    low, high = collapse.interval
    moved = low >= MOVED if up else high <= 1 / MOVED
    how = f"NCC is {times(collapse)}"
    which = "rose" if up else "fell"
    return moved, how if moved else f"{how}, so it is not shown that it {which} by a factor of 2"


def _pushed(comparisons: Sequence[Comparison], up: bool) -> Iterator[Finding]:
    for comparison in comparisons:
        moved, how = _moved(comparison, up)
        accuracy, kappa = comparison.accuracy, comparison.kappa
        for what, effect, unit, unchanged, change in (
            (
                "validation accuracy",
                accuracy,
                ACCURACY,
                within(accuracy.interval, MARGIN),
                f"changes by {changed(accuracy)}",
            ),
            ("exact κ", kappa, RATIO, same_kappa(comparison), f"is {times(kappa)}"),
        ):
            yield compared(
                comparison,
                effect,
                basis=f"{what}: {comparison.name}",
                verdict=unchanged if moved else "undecided",
                unit=unit,
                reason=f"{arms_of(comparison)}: {what} {change}. {how}",
                why="" if moved else "not tested",
            )
