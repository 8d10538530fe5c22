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
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from grokscope.analysis.claims.finding import (
    Finding,
    Verdict,
    Why,
    between,
    by_seed,
    claim,
    excluded,
    one_arm,
    undecided,
    usable,
)
from grokscope.analysis.curve import Scale
from grokscope.analysis.locate import FRACTION
from grokscope.analysis.milestones import LEAST_FALL
from grokscope.analysis.onset import Onset
from grokscope.analysis.run import Trajectory
from grokscope.analysis.stages import Fall, describe_fall
from grokscope.analysis.statistics import (
    Interval,
    bootstrap_interval,
    lead_lag,
    mean_of,
    paired_draws,
)

HALF = 0.5  # share of a fall, and half a plateau: nearer to one end than to the other
SLACK = FRACTION  # of a fall, either side of one half
LEAST_SEEDS = 2
SHARE = "of the fall came before"
LEAD = "decades of steps"


class Basis(NamedTuple):
    """One way of measuring what a claim is about, under the name of its finding."""

    name: str
    measure: str
    split: str


# The first of each is the headline.
COLLAPSE = (
    Basis("ncc", "ncc", "train"),
    Basis("ncc (held out)", "ncc", "validation"),
    Basis("ncc_unbiased", "ncc_unbiased", "train"),
    Basis("ncc_unbiased (held out)", "ncc_unbiased", "validation"),
)
FLATNESS = (
    Basis("relative_flatness", "relative_flatness", "train"),
    Basis("relative_flatness_bound", "relative_flatness_bound", "train"),
    Basis("published_flatness", "published_flatness", "train"),
    Basis("relative_flatness_matched", "relative_flatness_matched", "train"),
)
REPRESENTATIVENESS = (
    Basis("representativeness", "representativeness", "validation"),
    Basis("representativeness_kde", "representativeness_kde", "validation"),
)


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
    one_arm(runs)
    return [_order(runs, basis) for basis in _measured(runs, COLLAPSE)]


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
    one_arm(runs)
    return [_waits(runs, basis, "log") for basis in _measured(runs, FLATNESS)]


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
    one_arm(runs)
    return [_waits(runs, basis, "linear") for basis in _measured(runs, REPRESENTATIVENESS)]


def _measured(runs: Sequence[Trajectory], bases: Sequence[Basis]) -> list[Basis]:
    """The headline basis in any case, the others where they were measured."""
    return [
        basis
        for basis in bases
        if basis == bases[0] or any(run.has(basis.measure, basis.split) for run in runs)
    ]


def _order(runs: Sequence[Trajectory], basis: Basis) -> Finding:
    kept, left_out = usable(runs)
    kept = [run for run in kept if run.has(basis.measure, basis.split)]
    onsets = {run.seed: run.fall(basis.measure, basis.split) for run in kept}
    against = {seed: onset.reason for seed, onset in onsets.items() if not onset.found}
    left_out = _against(against) + left_out
    found = [run for run in kept if onsets[run.seed].found]
    if not found:
        return undecided(basis.name, f"No run shows both onsets.{left_out}", unit=LEAD)
    leads, interval = _lead({run.seed: (onsets[run.seed], run.onset) for run in found})
    before, during = _lead({run.seed: (onsets[run.seed], run.memorised) for run in found})
    effect = mean_of(list(leads.values()))
    first = sum(lead > 0 for lead in leads.values())
    inside = sum(lead >= 0 for lead in before.values())
    sign = 1 if effect > 0 else -1
    low, high = sorted(10 ** (sign * end) for end in interval)
    memorising = 10 ** mean_of(list(before.values()))
    reason = (
        f"NCC starts to fall {10 ** abs(effect):.2g} times {'earlier' if effect > 0 else 'later'} "
        f"(in steps) than validation accuracy starts to rise{between((low, high))}, and first in "
        f"{first} of {len(found)} seeds: at step {_typical([onsets[run.seed] for run in found])}, "
        f"compared with step {_typical([run.onset for run in found])}. In {inside} of "
        f"{len(found)} seeds it starts before training accuracy reaches 0.99, which takes "
        f"{memorising:.2g} times as many steps{between((10 ** during[0], 10 ** during[1]))}."
        f"{left_out}"
    )
    verdict = _sign(interval, len(found))
    why: Why = "underpowered" if not math.isfinite(sum(interval)) else ""
    if verdict == "supported" and (against or not during[0] > 0):
        verdict, why = "undecided", "ambiguous" if against else ""
    return Finding(
        basis=basis.name, verdict=verdict, effect=effect, interval=interval, unit=LEAD,
        seeds=len(found), per_seed=by_seed(leads), reason=reason, why=why,
    )  # fmt: skip


def _lead(onsets: Mapping[int, tuple[Onset, Onset]]) -> tuple[dict[int, float], Interval]:
    """By how many decades the first of two onsets comes first, by seed, and the interval."""
    leads = {seed: float(lead_lag(a.step, b.step)) for seed, (a, b) in onsets.items()}
    draws = [lead_lag(*paired_draws(a.draws, b.draws)) for a, b in onsets.values()]
    return leads, bootstrap_interval(list(leads.values()), draws)


def _waits(runs: Sequence[Trajectory], basis: Basis, scale: Scale) -> Finding:
    kept, left_out = usable(runs)
    measured = [run for run in kept if run.has(basis.measure, basis.split)]
    left_out += excluded({run.seed: "not measured" for run in kept if run not in measured})
    falls = {run.seed: describe_fall(run, basis.measure, basis.split, scale) for run in measured}
    if not falls:
        return undecided(basis.name, f"No run can tell.{left_out}", unit=SHARE)
    found = {seed: fall for seed, fall in falls.items() if math.isfinite(fall.share)}
    if len(found) < LEAST_SEEDS and len(falls) >= LEAST_SEEDS:
        return _does_not_fall(basis, falls, scale, left_out=left_out)
    against = {seed: fall.why for seed, fall in falls.items() if fall.why}
    left_out = _against(against) + left_out
    if not found:
        return undecided(basis.name, f"There is no lasting fall.{left_out}", unit=SHARE)
    shares = {seed: fall.share for seed, fall in found.items()}
    share = bootstrap_interval(list(shares.values()), [f.share_draws for f in found.values()])
    places = [fall.position for fall in found.values()]
    place = bootstrap_interval(places, [fall.position_draws for fall in found.values()])
    levels = [fall.plateau_share for fall in found.values()]
    level = bootstrap_interval(levels, [fall.plateau_share_draws for fall in found.values()])
    verdict = _verdict(share, mean_of(places), place, len(found))
    why: Why = "underpowered" if not math.isfinite(sum(share)) else ""
    if verdict == "supported" and (against or not level[1] < HALF - SLACK):
        verdict, why = "undecided", "ambiguous" if against else ""
    mean = mean_of(list(shares.values()))
    used = [run for run in measured if run.seed in found]
    reason = (
        f"{mean:.0%} of its {_total(found, scale)} came before validation accuracy began to move"
        f"{between(share)}; {_held(found, scale)}, {mean_of(levels):.0%} of the fall below it"
        f"{between(level)}. Its lasting fall begins at step "
        f"{_typical([fall.first for fall in found.values()])}, the steepest stage at step "
        f"{_typical([fall.largest for fall in found.values()])}; memorisation is at step "
        f"{_typical([run.memorised for run in used])}, generalisation begins at step "
        f"{_typical([run.onset for run in used])} ({len(found)} "
        f"seed{'s' if len(found) > 1 else ''}).{left_out}"
    )
    return Finding(
        basis=basis.name, verdict=verdict, effect=mean, interval=share, unit=SHARE,
        seeds=len(found), per_seed=by_seed(shares), reason=reason,
        why=why if verdict == "undecided" else "",
    )  # fmt: skip


def _held(falls: Mapping[int, Fall], scale: Scale) -> str:
    """Where the measure stood on the plateau."""
    level = float(np.median([fall.plateau for fall in falls.values()]))
    if scale == "log":
        return f"on the plateau it is at {level:.2g} times its highest level"
    return f"on the plateau it is {level:+.2g} from its worst level"


def _total(falls: Mapping[int, Fall], scale: Scale) -> str:
    size = float(np.median([fall.size for fall in falls.values()]))
    return f"{10**size:.3g}-fold fall" if scale == "log" else f"fall by {size:.3g}"


def _does_not_fall(
    basis: Basis, falls: Mapping[int, Fall], scale: Scale, *, left_out: str
) -> Finding:
    """Two or more runs, and at most one with a lasting fall: is that no fall, or only noise?

    Judged from the plateau's median to the end: the highest level is an extreme, and an extreme
    of noise lies above the end of a curve that never fell.
    """
    remaining = [fall.remaining for fall in falls.values()]
    interval = bootstrap_interval(remaining)
    # On a linear scale no size is small by itself; then absence of evidence stays just that.
    flat = scale == "log" and interval[1] < LEAST_FALL
    mean = mean_of(remaining)
    change = f"a factor of {10**mean:.2g}" if scale == "log" else f"{mean:.2g}"
    against = {seed: fall.why for seed, fall in falls.items() if fall.why}
    reason = (
        f"No onset of a lasting fall is found in {len(against)} of {len(falls)} seeds; its level "
        f"at the end lies {change} below its median on the plateau.{_against(against)}{left_out}"
    )
    return Finding(
        basis=basis.name, verdict="contradicted" if flat else "undecided", unit=SHARE,
        seeds=len(falls), reason=reason,
    )  # fmt: skip


def _verdict(share: Interval, place: float, place_interval: Interval, seeds: int) -> Verdict:
    if seeds < LEAST_SEEDS or not all(map(math.isfinite, share)):
        return "undecided"
    low, high = place_interval
    elsewhere = high < 1 - HALF or low > 1 + HALF
    if share[0] > HALF + SLACK or elsewhere:
        return "contradicted"
    return "supported" if share[1] < HALF - SLACK and abs(place - 1) <= HALF else "undecided"


def _sign(interval: Interval, seeds: int) -> Verdict:
    """On which side of zero an interval lies; undecided across it, or with one seed."""
    if seeds < LEAST_SEEDS or not all(map(math.isfinite, interval)):
        return "undecided"
    low, high = interval
    return "supported" if low > 0 else "contradicted" if high < 0 else "undecided"


def _against(reasons: Mapping[int, str]) -> str:
    """A clause on usable runs without a fall; empty without any."""
    if not reasons:
        return ""
    named = ", ".join(f"seed {seed} ({why})" for seed, why in sorted(reasons.items()))
    return f" Against the claim, without such a fall: {named}."


def _typical(onsets: Sequence[Onset]) -> str:
    """The median step of some onsets, in words."""
    steps = [onset.step for onset in onsets if math.isfinite(onset.step)]
    return f"{np.median(steps):,.0f}" if steps else "none"
