"""Axes and ticks: the one set of rules for all figures.

Ticks are computed here and handed to matplotlib as fixed places with their labels, so that panels
agree, labels do not collide, and no time goes into searching for them. A horizontal axis of steps
is logarithmic until the training data are memorised and linear beyond: what happens early and what
happens late both have room.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from grokscope.analysis.level import Array
from grokscope.report.style import INK, SMALL, text_width
from grokscope.report.words import count, number, short_tick

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.ticker import Locator

LOG_SHARE = 0.42  # of the width of a two-part axis
MOST_TICKS = 6
APART = 0.09  # inches between the labels of a horizontal axis
INSIDE = 1e-9  # relative: a limit is part of the axis


@dataclass(frozen=True)
class Horizontal:
    """A horizontal axis, the same for all panels that are to be compared."""

    first: float  # where it begins
    last: float  # where it ends
    label: str  # what it counts, such as "optimiser step"
    log: bool = False  # whether it is logarithmic, up to ``switch`` if there is one
    switch: float = math.nan  # from where on it is linear; NaN where it is of one kind

    def share(self, value: float) -> float:
        """Where a value lies on the axis, 0 to 1 from left to right."""
        return float(self.forward(np.array([value]))[0])

    def forward(self, values: Array) -> Array:
        """Values as shares of the width."""
        x = np.asarray(values, dtype=float)
        if not self.log:
            return (x - self.first) / (self.last - self.first)
        end = self.last if math.isnan(self.switch) else self.switch
        early = np.log(np.maximum(x, self.first * 1e-6) / self.first) / math.log(end / self.first)
        if math.isnan(self.switch):
            return early
        late = LOG_SHARE + (1 - LOG_SHARE) * (x - self.switch) / (self.last - self.switch)
        return np.where(x <= self.switch, LOG_SHARE * early, late)

    def backward(self, shares: Array) -> Array:
        """The inverse of `forward`."""
        y = np.asarray(shares, dtype=float)
        if not self.log:
            return self.first + y * (self.last - self.first)
        if math.isnan(self.switch):
            return self.first * (self.last / self.first) ** y
        early = self.first * (self.switch / self.first) ** (np.minimum(y, LOG_SHARE) / LOG_SHARE)
        late = self.switch + (y - LOG_SHARE) / (1 - LOG_SHARE) * (self.last - self.switch)
        return np.where(y <= LOG_SHARE, early, late)

    @property
    def text(self) -> str:
        """The label, with how to read the scale."""
        if not self.log:
            return self.label
        if math.isnan(self.switch):
            return f"{self.label} (logarithmic)"
        return f"{self.label} (logarithmic up to {number(self.switch)}, then linear)"

    def ticks(self) -> list[float]:
        """Candidates for ticks, the most important first."""
        if not self.log:
            return linear_ticks(self.first, self.last)
        if math.isnan(self.switch):
            return _by_weight(log_ticks(self.first, self.last, most=12))
        early = [tick for tick in _multiples(self.first, self.switch) if tick < self.switch]
        late = linear_ticks(self.switch, self.last, most=4)
        return [*late, *reversed(early)]


def step_axis(first: float, last: float, switch: float = math.nan) -> Horizontal:
    """An axis of optimiser steps: logarithmic up to a step, linear from there on."""
    last = max(last, 2 * first)
    if not (3 * first <= switch <= last / 1.5):
        switch = math.nan
    return Horizontal(first, last, "optimiser step", log=True, switch=switch)


def first_step(memorised: float) -> float:
    """Where an axis of steps begins: a fortieth of memorisation, as 1, 2 or 5 x 10^k."""
    if math.isnan(memorised) or memorised < 80:
        return 1.0
    power = 10 ** math.floor(math.log10(memorised / 40))
    return next(float(m * power) for m in (5, 2, 1) if m * power <= memorised / 40)


def inches(axes: Axes) -> float:
    """How wide axes are."""
    return float(axes.bbox.width / axes.figure.dpi)


def write(
    axes: Axes, text: str, at: tuple[float, float], offset: tuple[float, float], **look: Any
) -> None:
    """Write small print at a place of axes, in shares of their size, moved by some points."""
    look = {"xycoords": "axes fraction", "size": SMALL, "color": INK, "linespacing": 1.0, **look}
    axes.annotate(text, at, offset, textcoords="offset points", **look)


def draw_horizontal(axes: Axes, axis: Horizontal, *, labelled: bool = True) -> None:
    """Give a panel its horizontal axis."""
    if axis.log:
        axes.set_xscale("function", functions=(axis.forward, axis.backward))
    axes.set_xlim(axis.first, axis.last)
    kept = _with_room(axis, inches(axes))
    axes.set_xticks(kept, labels=[short_tick(tick) if labelled else "" for tick in kept])
    axes.set_xticks([], minor=True)
    if labelled:
        axes.set_xlabel(axis.text, labelpad=3)
    if not math.isnan(axis.switch):
        axes.axvline(axis.switch, color="#BBBBBB", linewidth=0.7, linestyle=(0, (1, 2)), zorder=1)


def _with_room(axis: Horizontal, width: float) -> list[float]:
    """Those of an axis's ticks whose labels have room, the most important first."""
    kept: list[tuple[float, float, float]] = []
    for tick in axis.ticks():
        half = text_width(short_tick(tick), 8) / 2 + APART / 2
        middle = axis.share(tick) * width
        if all(abs(middle - other) >= half + wide for _, other, wide in kept):
            kept.append((tick, middle, half))
    return sorted(tick for tick, *_ in kept)


@dataclass(frozen=True)
class Vertical:
    """A vertical axis, the same for all panels that are to be compared."""

    low: float  # lower limit
    high: float  # upper limit
    scale: str  # ``log`` or ``linear``
    remarks: tuple[str, ...] = ()  # what it cannot show, a sentence each


def vertical_axis(
    scale: str, values: Array, medians: Array, *, include: Iterable[float] = (), floor: float = 0.0
) -> Vertical:
    """Limits and scale that a single spike cannot stretch: all medians, and nearly all values."""
    if scale == "share":
        return Vertical(-0.03, 1.05, "linear")
    finite = values[np.isfinite(values)]
    positive = finite[finite > 0]
    if scale == "auto":
        wide = len(positive) == len(finite) > 0 and positive.max() > 20 * positive.min()
        scale = "log" if wide else "linear"
    if scale == "log" and not len(positive):
        scale = "linear"
    remarks = []
    if scale == "log" and len(positive) < len(finite):
        hidden = count(len(finite) - len(positive), "value is", "values are")
        has = "has" if hidden.startswith("1 ") else "have"
        remarks.append(f"{hidden} not positive and {has} no place on the logarithmic axis.")
    if scale == "log":
        finite, medians = positive, medians[medians > 0]
    if not len(finite):
        return Vertical(0.0, 1.0, "linear")
    ends = [*medians, *np.quantile(finite, (0.005, 0.995)), *include]
    low, high = float(min(ends)), float(max(ends))
    if scale == "log":
        room = (high / low) ** 0.06 if high > low else 1.5
        low, high = max(low / room, floor), high * room
    else:
        room = 0.06 * (high - low) or 0.5
        low, high = low - room, high + room
    return Vertical(low, high, scale, remarks=tuple(remarks))


def draw_axes(
    axes: Axes, x: Horizontal, y: Vertical, *, labelled: bool = True, named: bool = True
) -> None:
    """Give a panel its axes: the horizontal one labelled or not, the vertical one named or not."""
    draw_horizontal(axes, x, labelled=labelled)
    axes.set_yscale(y.scale)
    ticks = (log_ticks if y.scale == "log" else linear_ticks)(y.low, y.high)
    axes.set_ylim(y.low, y.high)
    axes.set_yticks(ticks, labels=[short_tick(tick) if named else "" for tick in ticks])
    axes.set_yticks([], minor=True)


def linear_ticks(low: float, high: float, most: int = MOST_TICKS) -> list[float]:
    """Round numbers within limits, evenly spaced, so many at most."""
    from matplotlib.ticker import MaxNLocator

    return _within(low, high, MaxNLocator(most, steps=[1, 2, 2.5, 5, 10]))


def log_ticks(low: float, high: float, most: int = MOST_TICKS) -> list[float]:
    """Powers of ten within limits, with round numbers between them where there are few."""
    powers = _multiples(low, high)
    if len(powers) > most:
        return powers[:: -(-len(powers) // most)]
    for between in ((1.0, 2.0, 5.0), (1.0, 3.0)):
        ticks = _multiples(low, high, between)
        if 2 <= len(ticks) <= most:
            return ticks
    return powers if len(powers) >= 2 else linear_ticks(low, high, most)


def _multiples(low: float, high: float, between: Sequence[float] = (1.0,)) -> list[float]:
    """Multiples of powers of ten within limits."""
    from matplotlib.ticker import LogLocator

    return _within(low, high, LogLocator(subs=between, numticks=1000))


def _within(low: float, high: float, locator: Locator) -> list[float]:
    """A locator's ticks within limits, which count as part of the axis."""
    first, last = (
        limit + sign * INSIDE * min(high - low, abs(limit))
        for limit, sign in ((low, -1), (high, 1))
    )
    return [float(tick) for tick in locator.tick_values(low, high) if first <= tick <= last]


def _by_weight(ticks: Sequence[float]) -> list[float]:
    """Powers of ten first, then the rest."""
    return sorted(ticks, key=lambda tick: not math.isclose(math.log10(tick) % 1, 0, abs_tol=1e-9))
