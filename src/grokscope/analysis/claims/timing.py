"""C1, C2, C11: what falls before validation accuracy begins to move, and what with it.

C1 asks for an order: NCC begins to fall before training accuracy is there (*during* memorisation),
and before validation accuracy begins to move. Supported: the intervals of both leads lie above
zero. Contradicted: that of the lead over validation accuracy lies below zero.

C2 and C11 ask what falls *when* generalisation begins and not before; neither "when" nor "high"
needs a threshold of ours:

* share: of the whole fall, less than half came before validation accuracy began to move, and
  not by a margin smaller than the tenth of a change that an onset leaves open;
* plateau: the same of the median over the whole plateau, for what fell early and came back just
  before generalisation did not stay high;
* place: its steepest stage is nearer to that moment than to memorisation, on log steps.

Supported: the intervals of both shares lie below 0.4, and the mean place within half a plateau of
its end. Contradicted: the share's interval lies above 0.6, or the place's interval wholly outside;
or the measure does not fall at all.

A run that generalised and was measured, and in which there is no such fall, is evidence against:
one of them, and no claim here is supported, whatever the others say. Undecided: everything else,
and where there is no interval (fewer than two seeds, or fewer than five that all agree).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np

from grokscope.analysis import quantities
from grokscope.analysis.claims import rules
from grokscope.analysis.claims.finding import Finding, Verdict, Why, claim
from grokscope.analysis.level import LEAST_LOOKS, looks_at_end, too_few_looks
from grokscope.analysis.locate import FRACTION
from grokscope.analysis.milestones import LEAST_FALL
from grokscope.analysis.onset import Onset
from grokscope.analysis.quantities import Quantity, scale_of
from grokscope.analysis.run import Trajectory
from grokscope.analysis.stages import Fall, describe_fall, lead
from grokscope.analysis.statistics import Effect, over_draws, over_seeds

HALF = 0.5  # share of a fall, and half a plateau: nearer to one end than to the other
SLACK = FRACTION  # of a fall, either side of one half
SHARE = "of the fall came before"
LEAD = "decades of steps"
AGAINST = "Against the claim, without such a fall"


@claim(
    "C1",
    title="Collapse comes before generalisation",
    statement="In a network that memorises first and generalises later, the features begin to "
    "cluster by class while it memorises, before it becomes accurate on held-out data.",
    note="The effect is log10 of the ratio of the two onsets, positive where NCC falls first. "
    "During memorisation means that NCC starts to fall before training accuracy reaches 0.99, "
    "too. A run in which NCC has no lasting fall speaks against the claim.",
)
def collapse_comes_first(runs: Sequence[Trajectory]) -> list[Finding]:
    """C1: the onset of the lasting NCC fall against that of generalisation."""
    rules.one_arm(runs)
    collapse = rules.measured(runs, (*quantities.COLLAPSE, *quantities.UNBIASED_COLLAPSE))
    return [_order(runs, quantity) for quantity in collapse]


@claim(
    "C2",
    title="Flatness waits for generalisation",
    statement="In a network that memorises first and generalises later, the last layer stays sharp "
    "while it memorises, and becomes flat only when it begins to generalise.",
    note="The effect is the share of the log fall, from the highest level around memorisation to "
    "the end, that came before validation accuracy began to move: 0 is the claim, 1 its opposite. "
    "To stay sharp, the median over the whole plateau must lie below that level by less than 0.4 "
    "of the fall, too. A run without a lasting fall speaks against the claim.",
)
def flatness_waits(runs: Sequence[Trajectory]) -> list[Finding]:
    """C2, for exact kappa, the bound, the published value and kappa at matched confidence."""
    rules.one_arm(runs)
    return [_waits(runs, quantity) for quantity in rules.measured(runs, quantities.FLATNESS)]


@claim(
    "C11",
    title="Representativeness waits for generalisation",
    statement="The features of the training data come to represent those of new data only when the "
    "network begins to generalise.",
    note="The effect is the share of the improvement of representativeness, towards zero, that "
    "came before validation accuracy began to move; the median over the whole plateau must not "
    "have improved much either. A run without a lasting improvement speaks against the claim.",
)
def representativeness_waits(runs: Sequence[Trajectory]) -> list[Finding]:
    """C11, by the decomposition of the gap and by kernel density."""
    rules.one_arm(runs)
    return [
        _waits(runs, quantity) for quantity in rules.measured(runs, quantities.REPRESENTATIVENESS)
    ]


def _order(runs: Sequence[Trajectory], quantity: Quantity) -> Finding:
    kept, unusable = rules.usable(runs)
    onsets = {run.seed: run.fall(*quantity) for run in kept if run.has(*quantity)}
    against = {seed: onset.reason for seed, onset in onsets.items() if not onset.found}
    left_out = rules.clause(AGAINST, against) + rules.clause("Left out", unusable)
    found = [run for run in kept if run.seed in onsets.keys() - against.keys()]
    if not found:
        return rules.untested(quantity.name, f"No run shows both onsets.{left_out}", unit=LEAD)
    ahead = over_draws({run.seed: lead(onsets[run.seed], run.onset) for run in found})
    before = over_draws({run.seed: lead(onsets[run.seed], run.memorised) for run in found})
    first = sum(value > 0 for _, value in ahead.per_seed)
    inside = sum(value >= 0 for _, value in before.per_seed)
    sign, when = (1, "earlier") if ahead.effect > 0 else (-1, "later")
    low, high = sorted(10 ** (sign * end) for end in ahead.interval)
    memorising = before.through(lambda decades: 10**decades)
    reason = (
        f"NCC starts to fall {10 ** abs(ahead.effect):.2g} times {when} (in steps) than "
        f"validation accuracy starts to rise{rules.between((low, high))}, and first in {first} of "
        f"{len(found)} seeds: at step {_typical(onsets[run.seed] for run in found)}, compared with "
        f"step {_typical(run.onset for run in found)}. In {inside} of {len(found)} seeds it starts "
        f"before training accuracy reaches 0.99, which takes {memorising.effect:.2g} times as many "
        f"steps{rules.between(memorising.interval)}.{left_out}"
    )
    why: Why = ""
    verdict = rules.direction(ahead.interval, 0.0)
    if verdict == "supported" and (against or not before.interval[0] > 0):
        verdict, why = "undecided", "ambiguous" if against else ""
    return rules.finding(
        ahead, basis=quantity.name, verdict=verdict, unit=LEAD, reason=reason, why=why
    )


def _waits(runs: Sequence[Trajectory], quantity: Quantity) -> Finding:
    kept, missing = rules.usable(runs)
    missing |= {run.seed: reason for run in kept if (reason := _unmeasured(run, quantity))}
    falls = {run.seed: describe_fall(run, quantity) for run in kept if run.seed not in missing}
    against = {seed: fall.why for seed, fall in falls.items() if fall.why}
    left_out = rules.clause(AGAINST, against) + rules.clause("Left out", missing)
    if not falls:
        return rules.untested(quantity.name, f"No run can tell.{left_out}", unit=SHARE)
    found = {seed: fall for seed, fall in falls.items() if math.isfinite(fall.share.value)}
    if len(found) < rules.LEAST_SEEDS and len(falls) >= rules.LEAST_SEEDS:
        return _does_not_fall(quantity, falls, left_out=left_out)
    if not found:
        return rules.untested(quantity.name, f"There is no lasting fall.{left_out}", unit=SHARE)
    share = over_draws({seed: fall.share for seed, fall in found.items()})
    place = over_draws({seed: fall.position for seed, fall in found.items()})
    plateau = over_draws({seed: fall.plateau_share for seed, fall in found.items()})
    why: Why = ""
    verdict = _verdict(share, place)
    if verdict == "supported" and (against or not plateau.interval[1] < HALF - SLACK):
        verdict, why = "undecided", "ambiguous" if against else ""
    used = [run for run in kept if run.seed in found]
    size, level = _sizes(found.values(), quantity)
    reason = (
        f"{share.effect:.0%} of its {size}, from its highest level around memorisation to its "
        f"last looks, came before validation accuracy began to move"
        f"{rules.between(share.interval)}; on the plateau it is {level}, {plateau.effect:.0%} of "
        f"the fall below it{rules.between(plateau.interval)}. Its lasting fall begins at step "
        f"{_typical(fall.first for fall in found.values())}, the steepest stage at step "
        f"{_typical(fall.largest for fall in found.values())}; memorisation is at step "
        f"{_typical(run.memorised for run in used)}, generalisation begins at step "
        f"{_typical(run.onset for run in used)} ({len(found)} "
        f"seed{'s' if len(found) > 1 else ''}).{left_out}"
    )
    return rules.finding(
        share, basis=quantity.name, verdict=verdict, unit=SHARE, reason=reason, why=why
    )


def _unmeasured(run: Trajectory, quantity: Quantity) -> str:
    """Why a measure is not known at the end of a run's plateau; empty where it is."""
    if not run.has(*quantity):
        return "not measured"
    looks = len(looks_at_end(run.curve(*quantity), run.stretch("onset")))
    return "" if looks >= LEAST_LOOKS else too_few_looks(looks, "plateau")


def _sizes(falls: Collection[Fall], quantity: Quantity) -> tuple[str, str]:
    """The fall in words, and where the measure stood on the plateau."""
    size = float(np.median([fall.size for fall in falls]))
    level = float(np.median([fall.plateau for fall in falls]))
    if scale_of(quantity.measure) == "log":
        return f"{10**size:.3g}-fold fall", f"at {level:.2g} times that level"
    return f"fall by {size:.3g}", f"{-level:.2g} below that level"


def _does_not_fall(quantity: Quantity, falls: Mapping[int, Fall], *, left_out: str) -> Finding:
    """Two or more runs, and at most one with a lasting fall: is that no fall, or only noise?

    Judged from the plateau's median to the end: the highest level is an extreme, and an extreme
    of noise lies above the end of a curve that never fell.
    """
    remaining = over_seeds({seed: fall.remaining for seed, fall in falls.items()})
    log = scale_of(quantity.measure) == "log"
    # On a linear scale no size is small by itself; then absence of evidence stays just that.
    flat = log and remaining.interval[1] < LEAST_FALL
    change = f"a factor of {10**remaining.effect:.2g}" if log else f"{remaining.effect:.2g}"
    without = sum(bool(fall.why) for fall in falls.values())
    return Finding(
        basis=quantity.name,
        verdict="contradicted" if flat else "undecided",
        unit=SHARE,
        seeds=len(falls),
        reason=f"No onset of a lasting fall is found in {without} of {len(falls)} seeds; its level "
        f"at the end lies {change} below its median on the plateau.{left_out}",
    )


def _verdict(share: Effect, place: Effect) -> Verdict:
    (least, most), (low, high) = share.interval, place.interval
    if math.isnan(least + most):
        return "undecided"
    if least > HALF + SLACK or high < 1 - HALF or low > 1 + HALF:
        return "contradicted"
    near = abs(place.effect - 1) <= HALF
    return "supported" if most < HALF - SLACK and near else "undecided"


def _typical(onsets: Iterable[Onset]) -> str:
    """The median step of some onsets, in words."""
    steps = [onset.step for onset in onsets if math.isfinite(onset.step)]
    return f"{np.median(steps):,.0f}" if steps else "none"
