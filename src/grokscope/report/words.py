"""Numbers and names as people read them."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from numbers import Real
from typing import Any

MINUS, DASH = "\u2212", "\u2013"
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")

# Milestones and bases of claims that are no measures.
OTHERS = {
    "memorised": "training data memorised",
    "onset": "generalisation begins",
    "generalisation": "generalisation begins",
    "generalised": "generalised",
}
SPLITS = {"train": "training", "validation": "held out"}
ARTICLE = ("relative_flatness_bound", "published_flatness", "published_penalty", "logit_scale")
# What takes values that lie orders of magnitude apart: judged by ratios, drawn on log axes.
BY_RATIO = re.compile(r"(relative_flatness|published_|ncc|nc1_|loss$|minibatch_loss).*")

# What the answer of a page calls a measure, in words that need no glossary; and the columns of the
# table of arms, where they were measured.
PLAIN = {
    ("accuracy", "train"): "training accuracy",
    ("accuracy", "validation"): "held-out accuracy",
    ("loss", "train"): "training loss",
    ("relative_flatness", "train"): "sharpness of the last layer (exact κ)",
    ("relative_flatness_matched", "train"): "sharpness at equal training loss (κ at matched loss)",
    ("ncc", "train"): "spread of the features within classes (NCC)",
    ("logit_scale", "train"): "size of the outputs (logit scale)",
}


def title_of(measure: str) -> str:
    """What a measure is called in words; of a user's measure its name."""
    from grokscope.measures import record_of

    return record_of(measure).title


def is_extra(measure: str) -> bool:
    """Whether a measure is a user's, and none of grokscope's."""
    from grokscope.measures import records

    return measure not in records() and not measure.startswith("penalty_")


def by_ratio(measure: str) -> bool:
    """Whether two levels of a measure are compared by their ratio, and not by their difference."""
    return BY_RATIO.fullmatch(measure) is not None


def name_of(measure: str, split: str = "") -> str:
    """A measure, a milestone or the basis of a claim, which may end in " (held out)", in words."""
    measure, held_out, _ = measure.partition(" (held out)")
    split = split or ("validation" if held_out else "")
    name = OTHERS.get(measure) or title_of(measure)
    return f"{name} ({SPLITS.get(split, split)})" if split else name


def in_plain(measure: str, split: str) -> str:
    """A measure in words that need no glossary; a user's by its name."""
    return PLAIN.get((measure, split)) or name_of(measure, split)


def the(measure: str) -> str:
    """A measure within a sentence: "exact κ", but "the published value"."""
    return ("the " if measure in ARTICLE else "") + name_of(measure)


def number(value: Any, digits: int = 3) -> str:
    """Three significant digits, thousands separators, a real minus sign; text stays text.

    ``331000`` is 331,000, ``-0.0123`` is −0.0123, ``4.2e-7`` is 4.2 × 10⁻⁷, NaN and None a dash.
    """
    if value is None or value != value:
        return DASH
    if isinstance(value, bool) or not isinstance(value, Real):
        return str(value)
    value = float(value)
    sign = MINUS if value < 0 else ""
    size = abs(value)
    if math.isinf(size):
        return f"{sign}∞"
    if size == 0:
        return "0"
    mantissa, exponent = f"{size:.{digits - 1}e}".split("e")
    power = int(exponent)
    if power < -4 or power >= 7:
        return f"{sign}{_trimmed(mantissa)} × {_ten(power)}"
    rounded = float(f"{mantissa}e{exponent}")
    return f"{sign}{rounded:,.{max(0, digits - 1 - power)}f}"


def typeset(text: str) -> str:
    """A sentence with real minus signs before its numbers."""
    return re.sub(r"(?<![\w.])-(?=[\d.])", MINUS, text)


def tick(value: float) -> str:
    """A number on an axis: no zeros that say nothing."""
    text = number(value)
    return text if "×" in text else _trimmed(text)


def short_tick(value: float) -> str:
    """A number on an axis; large and small ones as ``2·10⁵``, which takes little room."""
    if 1e-3 <= abs(value) < 1e5 or not value:
        return tick(value)
    mantissa, power = f"{abs(value):.2e}".split("e")
    factor = "" if float(mantissa) == 1 else f"{_trimmed(mantissa)}·"
    return f"{MINUS if value < 0 else ''}{factor}{_ten(int(power))}"


def _trimmed(text: str) -> str:
    return text.rstrip("0").rstrip(".") if "." in text else text


def _ten(power: int) -> str:
    return f"10{str(power).translate(SUPERSCRIPTS)}"


def plain(value: float) -> str:
    """An epoch or a setting: to one decimal and no shorter, for it is not a measurement."""
    return f"{round(value, 1):,.10g}"


def signed(value: float) -> str:
    """A difference with its sign, to three decimals where it is below one: ``+0.003``."""
    if math.isnan(value):
        return DASH
    text = f"{abs(value):.3f}" if abs(value) < 1 else number(abs(value))
    return f"{MINUS if value < 0 else '+'}{text}"


def correlation(value: float) -> str:
    """A correlation, to two decimals: ``−0.97``."""
    return DASH if math.isnan(value) else f"{value:.2f}".replace("-", MINUS)


def share(value: float) -> str:
    """An accuracy, to three decimals: ``0.475``."""
    return DASH if math.isnan(value) else f"{value:.3f}"


def times(value: float) -> str:
    """A ratio: ``1.58×``."""
    return DASH if math.isnan(value) else f"{number(value)}×"


def step(value: Any) -> str:
    """A step with thousands separators, not rounded; "not reached" where there is none."""
    return "not reached" if value is None or math.isnan(value) else f"{round(value):,}"


def interval(low: float, high: float, form: Callable[[float], str] = number) -> str:
    """``low to high``; nothing where neither is known."""
    if math.isnan(low) and math.isnan(high):
        return ""
    return f"{form(low)} to {form(high)}"


def with_interval(
    text: str, ends: tuple[float, float], form: Callable[[float], str] = number
) -> str:
    """A number with its interval behind it, where that is known: ``1.58× (1.5 to 1.7)``."""
    between = interval(*ends, form)
    return f"{text} ({between})" if between else text


def steps_range(values: Iterable[float]) -> str:
    """Median step of some seeds, with the lowest and highest: ``458 (440 to 481)``."""
    found = sorted(value for value in values if not math.isnan(value))
    if not found:
        return "not reached"
    spread = f" ({step(found[0])} to {step(found[-1])})" if found[0] != found[-1] else ""
    return f"{step(statistics.median(found))}{spread}"


def count(amount: int, one: str, many: str = "") -> str:
    """``1 seed``, ``3 seeds``."""
    return f"{amount:,} {one if amount == 1 else many or one + 's'}"


def listed(items: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return " and ".join((", ".join(items[:-1]), items[-1])) if len(items) > 1 else "".join(items)


def seeds(found: Sequence[int]) -> str:
    """``seed 1``, ``seeds 1, 2 and 3``."""
    return f"seed{'' if len(found) == 1 else 's'} {listed([*map(str, found)])}"


NUMERALS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def numeral(amount: int, one: str, many: str = "") -> str:
    """``one seed``, ``five seeds``, ``12 seeds``: a count within a sentence."""
    text = count(amount, one, many)
    return f"{NUMERALS[amount]} {text.partition(' ')[2]}" if amount < len(NUMERALS) else text


def capital(text: str) -> str:
    """A sentence with a capital letter in front."""
    return text[:1].upper() + text[1:]


def quoted(name: str) -> str:
    """An arm's name within a sentence: in quotation marks where it would blend with the rest."""
    name = " ".join(name.split())
    signs = any(sign in name for sign in (",", ";", ":", " and "))
    return f"“{name}”" if signs or name[:1].isdigit() else name
