"""What is drawn over a panel: shaded spans, the ends of phases, labelled heights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from grokscope.analysis.level import Span
from grokscope.analysis.run import MILESTONES, Arm
from grokscope.report.axes import Horizontal, inches, write
from grokscope.report.style import (
    FAINT,
    GENERALISED,
    GREY,
    INK,
    MEMORISED,
    SMALL,
    LineStyle,
    text_width,
)
from grokscope.report.words import plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SPANS = (("memorised", MEMORISED), ("generalised", GENERALISED))


@dataclass(frozen=True)
class Mark:
    """A labelled height in a panel that compares arms, drawn with the arm that it belongs to."""

    arm: str  # its name
    span: Span  # the steps over which it holds
    height: float  # in the units of the vertical axis
    text: str  # its label

    def over(self, pace: float) -> Mark:
        """The same in units of so many steps."""
        return replace(self, span=Span(self.span.start / pace, self.span.stop / pace))


def reached(arm: Arm, milestone: str) -> dict[int, float]:
    """Seed -> the step of a milestone; of the seeds that came there alone."""
    steps = {seed: run.milestone(milestone).step for seed, run in arm.runs.items()}
    return {seed: step for seed, step in steps.items() if step == step}


def shade(axes: Axes, arm: Arm, x: Horizontal, *, named: bool) -> None:
    """Shade from memorisation to where generalisation begins, and from where it is complete on.

    Medians over the seeds that came there, and nothing where none did; a small tick at the upper
    edge is a seed. A name says how many seeds came there, unless all did.
    """
    steps = {name: list(reached(arm, name).values()) for name in MILESTONES}
    at = {name: float(np.median(found)) for name, found in steps.items() if found}
    begins = min(at.get("onset", x.last), at.get("generalised", x.last))
    ends = {"memorised": begins, "generalised": x.last}
    names = []
    for name, colour in SPANS:
        if name not in at or ends[name] <= at[name]:
            continue
        axes.axvspan(at[name], ends[name], color=colour, linewidth=0, zorder=0, label=name)
        for step in steps[name]:
            axes.axvline(step, 0.965, 1, color=GREY, linewidth=0.7, zorder=1)
        few = len(steps[name]) < len(arm.runs)
        text = f"{name} ({len(steps[name])} of {len(arm.runs)})" if few else name
        names.append((text, x.share(max(at[name], x.first)), x.share(ends[name])))
    if named:
        _name_spans(axes, names)


def _name_spans(axes: Axes, names: Sequence[tuple[str, float, float]]) -> None:
    """Names above their spans, centred where there is room, never on one another."""
    limit = width = inches(axes)
    for text, start, stop in reversed(names):
        half = text_width(text, SMALL) / 2
        middle = max(min((start + stop) / 2 * width, limit - half), half)
        write(axes, text, (middle / width, 1), (0, 3.5), ha="center", color=FAINT)
        limit = middle - half - 0.08


def mark_ends(axes: Axes, ends: Sequence[float], x: Horizontal, *, named: bool) -> None:
    """Dotted lines where phases end, named above where there is room."""
    free, width = 0.0, inches(axes)
    for end in ends:
        axes.axvline(end, color=GREY, linewidth=0.8, linestyle=(0, (1, 1.6)), zorder=1,
                     label=f"end of a phase/{plain(end)}")  # fmt: skip
        middle = x.share(end) * width
        for text in (f"{x.label} {plain(end)}", plain(end)) if named else ():
            half = text_width(text, SMALL) / 2
            if middle - half >= free and middle + half <= width + 0.1:
                write(axes, text, (middle / width, 1), (0, 3.5), ha="center", color=FAINT)
                free = middle + half + 0.08
                break


def draw_marks(axes: Axes, marks: Sequence[Mark]) -> None:
    """Thin lines at labelled heights; their labels beside the panel, moved apart."""
    found: dict[tuple[float, str], list[Span]] = {}
    for mark in marks:
        found.setdefault((mark.height, mark.text), []).append(mark.span)
    tall = axes.bbox.height / axes.figure.dpi
    to_share = axes.transData + axes.transAxes.inverted()
    ordered = sorted(found)
    shares = [float(to_share.transform((0.5, height))[1]) for height, _ in ordered]
    places = apart(shares, 2 * SMALL * 1.2 / 72 / tall)
    for (height, text), share, place in zip(ordered, shares, places, strict=True):
        spans = found[height, text]
        ends = min(span.start for span in spans), max(span.stop for span in spans)
        axes.plot(ends, [height, height], color=INK, linewidth=0.7, zorder=2,
                  label=f"mark/{plain(height)}")  # fmt: skip
        offset = 5, (place - share) * tall * 72
        write(axes, text, (1, share), offset, va="center", annotation_clip=False)


def apart(places: Sequence[float], need: float) -> list[float]:
    """Ascending places in [0, 1], moved as little as needed to be ``need`` apart."""
    moved = list(places)
    for _ in range(50):
        for index in range(len(moved) - 1):
            lack = need - (moved[index + 1] - moved[index])
            if lack > 1e-9:
                moved[index] -= lack / 2
                moved[index + 1] += lack / 2
        shift = max(0.0, moved[-1] - 0.97) if moved else 0.0
        moved = [place - shift for place in moved]
    return moved


def draw_dot(
    axes: Axes, height: float, values: Sequence[float], style: LineStyle, *,
    label: str, hollow: bool = False,
) -> None:  # fmt: skip
    """A dot for (value, low, high) at a height of a chart of dots, on a line for its interval."""
    value = values[0]
    ends = [value if math.isnan(end) else end for end in values[1:]]
    axes.plot(ends, [height] * 2, color=style.colour, linewidth=1.3, alpha=0.65,
              label=f"{label}/interval")  # fmt: skip
    axes.plot([value], [height], style.marker, color=style.colour, markersize=4.6, label=label,
              markerfacecolor="white" if hollow else style.colour)  # fmt: skip
