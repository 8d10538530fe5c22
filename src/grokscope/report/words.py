"""Numbers and names as people read them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

MINUS, DASH = "\u2212", "\u2013"
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")

NAMES = {
    "accuracy": "accuracy",
    "angle_deviation": "deviation from the simplex angle",
    "feature_robustness": "feature robustness",
    "generalisation": "generalisation begins",
    "generalisation_gap": "generalisation gap",
    "generalised": "validation accuracy is there",
    "logit_scale": "logit scale",
    "loss": "loss",
    "memorised": "training data memorised",
    "nc1_pinv": "NC1, within-class scatter",
    "nc1_quotient": "NC1, quotient of traces",
    "nc2_equiangularity": "NC2, equiangularity",
    "nc2_equinorm": "NC2, equinorm",
    "nc2_etf_distance": "NC2, distance to the simplex",
    "nc3_self_duality": "NC3, self-duality",
    "nc4_agreement": "NC4, agreement",
    "ncc": "NCC",
    "ncc_unbiased": "NCC, unbiased",
    "onset": "generalisation begins",
    "published_flatness": "published value",
    "relative_flatness": "exact κ",
    "relative_flatness_bound": "bound on κ",
    "relative_flatness_matched": "exact κ at matched loss",
    "representativeness": "representativeness",
    "representativeness_kde": "representativeness (KDE)",
}
SPLITS = {"train": "training", "validation": "held out"}


def name_of(measure: str, split: str = "") -> str:
    """A measure's name in words, with the split where one is given."""
    measure, held_out, _ = measure.partition(" (held out)")
    split = split or ("validation" if held_out else "")
    name = NAMES.get(measure, measure.replace("_", " "))
    return f"{name} ({SPLITS.get(split, split)})" if split else name


def the(measure: str) -> str:
    """A basis of a claim within a sentence: "exact κ", but "the published value"."""
    article = measure in ("relative_flatness_bound", "published_flatness")
    return ("the " if article else "") + name_of(measure)


def number(value: Any, digits: int = 3) -> str:
    """Three significant digits, thousands separators, a real minus sign; text stays text.

    ``331000`` is 331,000, ``-0.0123`` is −0.0123, ``4.2e-7`` is 4.2 × 10⁻⁷, NaN and None a dash.
    """
    if value is None:
        return DASH
    if isinstance(value, str | bool):
        return str(value)
    try:
        value = float(value)
    except (TypeError, ValueError):
        return str(value)
    if math.isnan(value):
        return DASH
    sign = MINUS if value < 0 else ""
    size = abs(value)
    if math.isinf(size):
        return f"{sign}∞"
    if size == 0:
        return "0"
    mantissa, exponent = f"{size:.{digits - 1}e}".split("e")
    power = int(exponent)
    if power < -4 or power >= 7:
        mantissa = mantissa.rstrip("0").rstrip(".")
        return f"{sign}{mantissa} × 10{str(power).translate(SUPERSCRIPTS)}"
    rounded = float(f"{mantissa}e{exponent}")
    return f"{sign}{rounded:,.{max(0, digits - 1 - power)}f}"


def typeset(text: str) -> str:
    """A sentence with real minus signs before its numbers."""
    return re.sub(r"(?<![\w.])-(?=[\d.])", MINUS, text)


def tick(value: float, _: int = 0) -> str:
    """A number on an axis: no zeros that say nothing."""
    text = number(value)
    return text.rstrip("0").rstrip(".") if "." in text and "×" not in text else text


def step(value: Any) -> str:
    """A step with thousands separators, not rounded; "not reached" where there is none."""
    return "not reached" if value is None or math.isnan(value) else f"{round(value):,}"


def interval(low: float, high: float) -> str:
    """``low to high``; nothing where neither is known."""
    if math.isnan(low) and math.isnan(high):
        return ""
    return f"{number(low)} to {number(high)}"


def steps_range(values: Iterable[float]) -> str:
    """Median step of some seeds, with the lowest and highest: ``458 (440 to 481)``."""
    found = sorted(value for value in values if not math.isnan(value))
    if not found:
        return "not reached"
    half = len(found) // 2
    median = found[half] if len(found) % 2 else (found[half - 1] + found[half]) / 2
    spread = f" ({step(found[0])} to {step(found[-1])})" if found[0] != found[-1] else ""
    return f"{step(median)}{spread}"


def count(amount: int, one: str, many: str = "") -> str:
    """``1 seed``, ``3 seeds``."""
    return f"{amount:,} {one if amount == 1 else many or one + 's'}"


def listed(items: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return " and ".join((", ".join(items[:-1]), items[-1])) if len(items) > 1 else "".join(items)


def answer(claims: Sequence[Any]) -> list[str]:
    """One or two sentences: which claims hold, and which turn on how flatness is measured.

    Args:
        claims: Reports as of `grokscope.analysis.claims`.
    """
    if not claims:
        return ["No claim was tested in this run."]
    by_verdict = {
        verdict: [each.claim for each in claims if each.headline.verdict == verdict]
        for verdict in ("supported", "contradicted", "undecided")
    }
    parts = [
        f"{listed(ids)} {'is' if len(ids) == 1 else 'are'} {verdict}"
        for verdict, ids in by_verdict.items()
        if ids
    ]
    first = f"Of {count(len(claims), 'claim')} tested{_with_seeds(claims)}: {'; '.join(parts)}."
    turning = [_turns(each) for each in claims]
    return [first, *(sentence for sentence in turning if sentence)]


def _with_seeds(claims: Sequence[Any]) -> str:
    """`` with 3 seeds``, or `` with 1 to 3 seeds`` where claims differ; empty without any."""
    seeds = sorted({each.headline.seeds for each in claims} - {0})
    if not seeds:
        return ""
    least = f"{seeds[0]:,} to " if len(seeds) > 1 else ""
    return f" with {least}{count(seeds[-1], 'seed')}"


def _turns(report: Any) -> str:
    """The sentence on a claim whose verdict depends on the basis; empty when it does not.

    What rests on no seed, not measured or not of this run, is no other basis.
    """
    findings = [each for each in report.findings() if each.seeds]
    if len({each.verdict for each in findings}) <= 1:
        return ""
    what, by, name, between = "what is measured", "by", the, ", "
    if report.compares:  # names of arms hold commas themselves
        what, by, name, between = "the arm", "in", "“{}”".format, "; "
    parts = []
    for verdict in dict.fromkeys(each.verdict for each in findings):
        bases = [name(each.basis) for each in findings if each.verdict == verdict]
        parts.append(f"{verdict} {by} {listed(bases)}")
    return f"{report.claim} depends on {what}: {between.join(parts)}."
