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

import numpy as np

from grokscope.analysis.claims.registry import (
    Finding,
    Verdict,
    between,
    by_seed,
    claim,
    excluded,
    one_arm,
    undecided,
    usable,
)
from grokscope.analysis.curve import Scale
from grokscope.analysis.milestones import LEAST_FALL, Trace, fall_onset
from grokscope.analysis.onset import FRACTION, Onset
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

# (basis, measure, split); the first of each is the headline.
COLLAPSE = (
    ("ncc", "ncc", "train"),
    ("ncc (held out)", "ncc", "validation"),
    ("ncc_unbiased", "ncc_unbiased", "train"),
    ("ncc_unbiased (held out)", "ncc_unbiased", "validation"),
)
FLATNESS = (
    ("relative_flatness", "relative_flatness", "train"),
    ("relative_flatness_bound", "relative_flatness_bound", "train"),
    ("published_flatness", "published_flatness", "train"),
    ("relative_flatness_matched", "relative_flatness_matched", "train"),
)
REPRESENTATIVENESS = (
    ("representativeness", "representativeness", "validation"),
    ("representativeness_kde", "representativeness_kde", "validation"),
)


@claim(
    "C1",
    "In grokking NCC falls during memorisation, before validation accuracy rises.",
    "The effect is log10 of the ratio of the two onsets; positive: NCC falls first. During "
    "memorisation: its onset must lie before training accuracy reaches 0.99 as well. A run in "
    "which NCC has no lasting fall speaks against the claim.",
)
def collapse_comes_first(runs: Sequence[Trace]) -> list[Finding]:
    """C1: the onset of the lasting NCC fall against that of generalisation."""
    one_arm(runs)
    return [_order(runs, *each) for each in _measured(runs, COLLAPSE)]


@claim(
    "C2",
    "In grokking relative flatness stays high during memorisation and falls when "
    "generalisation begins.",
    "The effect is the share of the log fall, from the highest level around memorisation to the "
    "end, that came before validation accuracy began to move: 0 is the claim, 1 its opposite. "
    "High: the median over the whole plateau lies below that level by less than 0.4 of the fall, "
    "too. A run without a lasting fall speaks against the claim.",
)
def flatness_waits(runs: Sequence[Trace]) -> list[Finding]:
    """C2, for exact kappa, the bound, the published value and kappa at matched confidence."""
    one_arm(runs)
    return [_waits("C2", runs, *each, "log") for each in _measured(runs, FLATNESS)]


@claim(
    "C11",
    "Representativeness improves only when generalisation begins.",
    "The effect is the share of the improvement, towards zero, that came before validation "
    "accuracy began to move; the median over the whole plateau must not have improved much "
    "either. A run without a lasting improvement speaks against the claim.",
)
def representativeness_waits(runs: Sequence[Trace]) -> list[Finding]:
    """C11, by the decomposition of the gap and by kernel density."""
    one_arm(runs)
    bases = _measured(runs, REPRESENTATIVENESS)
    return [_waits("C11", runs, *each, "linear") for each in bases]


def _measured(
    runs: Sequence[Trace], bases: Sequence[tuple[str, str, str]]
) -> list[tuple[str, str, str]]:
    """The headline basis in any case, the others where they were measured."""
    return [
        each for each in bases if each == bases[0] or any(run.has(each[1], each[2]) for run in runs)
    ]


def _order(runs: Sequence[Trace], basis: str, measure: str, split: str) -> Finding:
    kept, left_out = usable(runs)
    kept = [run for run in kept if run.has(measure, split)]
    onsets = {run.seed: fall_onset(*run.get(measure, split), "log") for run in kept}
    against = {seed: each.reason for seed, each in onsets.items() if not each.found}
    left_out = _against(against) + left_out
    found = [run for run in kept if onsets[run.seed].found]
    if not found:
        return undecided("C1", basis, LEAD, f"No run shows both onsets.{left_out}")
    leads, interval = _lead({r.seed: (onsets[r.seed], r.onset) for r in found})
    before, during = _lead({r.seed: (onsets[r.seed], r.memorised) for r in found})
    effect = mean_of(list(leads.values()))
    first = sum(each > 0 for each in leads.values())
    inside = sum(each >= 0 for each in before.values())
    ratios = [10**each for each in (mean_of(list(before.values())), *during)]
    sign = 1 if effect > 0 else -1
    factor = f"{10 ** abs(effect):.2g} times {'fewer' if effect > 0 else 'more'} steps"
    factors = sorted(10 ** (sign * each) for each in interval)
    reason = (
        f"NCC begins to fall after {factor} than validation accuracy takes to move"
        f"{between((factors[0], factors[1]))}, first in {first} of {len(found)} seeds: at step "
        f"{_typical([onsets[r.seed].step for r in found])} against "
        f"{_typical([r.onset.step for r in found])}; in {inside} before training accuracy reaches "
        f"0.99, which takes {ratios[0]:.2g} times as many steps{between((ratios[1], ratios[2]))}"
        f".{left_out}"
    )
    verdict = _sign(interval, len(found))
    if verdict == "supported" and (against or not during[0] > 0):
        verdict = "undecided"
    return Finding("C1", basis, verdict, effect, interval, LEAD, len(found), by_seed(leads), reason)


def _lead(onsets: Mapping[int, tuple[Onset, Onset]]) -> tuple[dict[int, float], Interval]:
    """By how many decades the first of two onsets comes first, by seed, and the interval."""
    leads = {seed: float(lead_lag(a.step, b.step)) for seed, (a, b) in onsets.items()}
    draws = [lead_lag(*paired_draws(a.draws, b.draws)) for a, b in onsets.values()]
    return leads, bootstrap_interval(list(leads.values()), draws)


def _waits(
    id: str, runs: Sequence[Trace], basis: str, measure: str, split: str, scale: Scale
) -> Finding:
    kept, left_out = usable(runs)
    missing = {run.seed: "not measured" for run in kept if not run.has(measure, split)}
    falls = {
        run.seed: describe_fall(run, measure, split, scale)
        for run in kept
        if run.has(measure, split)
    }
    left_out += excluded(missing)
    if not falls:
        return undecided(id, basis, SHARE, f"No run can tell.{left_out}")
    found = {seed: each for seed, each in falls.items() if math.isfinite(each.share)}
    if len(found) < LEAST_SEEDS and len(falls) >= LEAST_SEEDS:
        return _does_not_fall(id, basis, falls, scale, left_out)
    against = {seed: each.why for seed, each in falls.items() if each.why}
    left_out = _against(against) + left_out
    if not found:
        return undecided(id, basis, SHARE, f"No lasting fall.{left_out}")
    shares = {seed: each.share for seed, each in found.items()}
    share = bootstrap_interval(list(shares.values()), [f.share_draws for f in found.values()])
    places = [each.position for each in found.values()]
    place = bootstrap_interval(places, [each.position_draws for each in found.values()])
    levels = [each.plateau_share for each in found.values()]
    level = bootstrap_interval(levels, [each.plateau_share_draws for each in found.values()])
    verdict = _verdict(share, mean_of(places), place, len(found))
    if verdict == "supported" and (against or not level[1] < HALF - SLACK):
        verdict = "undecided"
    mean = mean_of(list(shares.values()))
    plateau = [each.plateau for each in found.values()]
    held = (
        f"on the plateau it is at {np.median(plateau):.2g} times its highest level"
        if scale == "log"
        else f"on the plateau it is {np.median(plateau):+.2g} from its worst level"
    )
    size = float(np.median([each.size for each in found.values()]))
    total = f"{10**size:.3g}-fold fall" if scale == "log" else f"fall by {size:.3g}"
    used = [run for run in kept if run.seed in found]
    reason = (
        f"{mean:.0%} of its {total} came before validation accuracy began to move"
        f"{between(share)}; {held}, {mean_of(levels):.0%} of the fall below it{between(level)}. "
        "Its lasting fall begins at step "
        f"{_typical([each.first.step for each in found.values()])}, the steepest stage at "
        f"{_typical([each.largest.step for each in found.values()])}; memorised at "
        f"{_typical([run.memorised.step for run in used])}, generalisation begins at "
        f"{_typical([run.onset.step for run in used])} ({len(found)} seeds).{left_out}"
    )
    return Finding(id, basis, verdict, mean, share, SHARE, len(found), by_seed(shares), reason)


def _does_not_fall(
    id: str, basis: str, falls: dict[int, Fall], scale: Scale, left_out: str
) -> Finding:
    """Two or more runs, and at most one with a lasting fall: is that no fall, or only noise?

    Judged from the plateau's median to the end: the highest level is an extreme, and an extreme
    of noise lies above the end of a curve that never fell.
    """
    remaining = [each.remaining for each in falls.values()]
    interval = bootstrap_interval(remaining)
    # On a linear scale no size is small by itself; then absence of evidence stays just that.
    flat = scale == "log" and interval[1] < LEAST_FALL
    mean = mean_of(remaining)
    change = f"a factor of {10**mean:.2g}" if scale == "log" else f"{mean:.2g}"
    against = {seed: each.why for seed, each in falls.items() if each.why}
    reason = (
        f"No onset of a lasting fall is found in {len(against)} of {len(falls)} seeds; its level "
        f"at the end lies {change} below its median on the plateau.{_against(against)}{left_out}"
    )
    verdict: Verdict = "contradicted" if flat else "undecided"
    return Finding(
        id, basis, verdict, math.nan, (math.nan, math.nan), SHARE, len(falls), (), reason
    )


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


def _typical(steps: Sequence[float]) -> str:
    """Median of some steps, in words."""
    finite = [each for each in steps if math.isfinite(each)]
    return f"{np.median(finite):,.0f}" if finite else "none"
