"""Panels of lines over epochs, one line an arm, and the list of arms above them.

Lengths are in inches. An arm's place in its group decides its colour, dashes and marker. Arms that
are one run up to an epoch lie on each other until there: their line is striped in their colours.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from grokscope.report.arms import (
    SAME,
    Arm,
    Span,
    alike,
    blocks,
    ceilings,
    last_epoch,
    phase_ends,
)
from grokscope.report.curves import MissingMeasureError
from grokscope.report.panels import (
    BLUE,
    GREEN,
    GREY,
    INK,
    NARROW,
    PURPLE,
    VERMILION,
    WIDE,
    apart,
    vertical_scale,
)
from grokscope.report.words import SUPERSCRIPTS, listed, name_of, tick

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Style:
    """How an arm is drawn."""

    colour: str
    dashes: Any
    marker: str


# Okabe and Ito's and three dark ones, chosen among others by the least difference of any two under
# simulated colour blindness; all dark enough for text on white.
STYLES = (
    Style(INK, "-", "o"),
    Style(VERMILION, (0, (8, 1.2)), "s"),
    Style(BLUE, (0, (4.5, 1.8)), "^"),
    Style(GREEN, (0, (2, 1.4)), "D"),
    Style(PURPLE, (0, (0.9, 1.2)), "v"),
    Style("#7A4A1E", (0, (7, 1.6, 1, 1.6)), "P"),
    Style("#332288", (0, (4, 1.4, 1, 1.4, 1, 1.4)), "X"),
    Style("#882255", (0, (10, 4)), "*"),
)
LEFT, RIGHT, GAP, BOTTOM = 0.52, 0.16, 0.36, 0.45
TITLE, NOTE = 0.28, 0.14  # above a block's first panels; epochs of the dotted lines
ENTRY, SAMPLE, TEXT = 0.19, 0.32, 8.5  # a row of the list of arms, a line's sample; points
STRIPE = 2.2  # of a line that arms share, in widths of the line
ASIDE = 0.62  # beside panels with a labelled height


@dataclass(frozen=True)
class Panel:
    """One measure of all arms; ``scale`` as of `grokscope.report.panels.Plot`."""

    title: str
    measure: str
    split: str
    scale: str = "auto"
    ceilings: bool = False  # of the published value under a cap


def draw(
    arms: Sequence[Arm], panels: Sequence[Panel], narrow: bool, across: int = 1
) -> tuple[Figure, list[str]]:
    """A block of panels for each group of arms, on the same axes in all of them.

    Args:
        arms: All arms.
        panels: What to draw; what was measured in no arm is left out.
        narrow: For a phone: one panel a row.
        across: Panels a row on a wide figure.

    Returns:
        The figure, and remarks for its caption.

    Raises:
        MissingMeasureError: If no panel can be drawn.
    """
    from matplotlib.ticker import FuncFormatter

    remarks = list(_not_measured(arms, panels))
    panels = [panel for panel in panels if any(_has(arm, panel) for arm in arms)]
    if not panels:
        raise MissingMeasureError("none of its measures was taken")
    groups = blocks(arms)
    across = 1 if narrow else min(across, len(panels))
    aside = ASIDE if any(panel.ceilings for panel in panels) and _any_ceiling(arms) else RIGHT
    figure, grid = sheet(
        groups, len(panels), across, narrow, 1.9 if across > 1 else 1.5, aside, marked=False
    )
    for index, panel in enumerate(panels):
        top, bottom = index < across, index + across >= len(panels)
        own = [arm for arm in arms if _has(arm, panel)]
        curves = [arm.get(panel.measure, panel.split).to_numpy(dtype=float) for arm in own]
        values = np.concatenate([curve.ravel() for curve in curves])
        lines = {arm.name: arm.line(panel.measure, panel.split) for arm in own}
        for block, group in enumerate(groups):
            axes = grid[block * len(panels) + index]
            axes.set_title(panel.title, pad=16 if top and phase_ends(group) else 5)
            remarks += vertical_scale(axes, panel.scale, values)
            _limits(axes, arms, panel, values, lines)
            axes.yaxis.set_major_formatter(FuncFormatter(short_tick))
            _draw_arms(axes, group, panel, lines)
            _epoch_axis(axes, arms, bottom)
            _mark_phase_ends(axes, group, top)
            if panel.ceilings:
                _draw_ceilings(axes, group)
    return figure, list(dict.fromkeys(remarks))


def sheet(
    groups: Sequence[Sequence[Arm]],
    panels: int,
    across: int,
    narrow: bool,
    height: float,
    aside: float,
    marked: bool,
) -> tuple[Figure, list[Axes]]:
    """A figure with a list of arms and rows of axes for each group.

    Args:
        groups: Arms, group by group.
        panels: Axes of a group.
        across: Axes a row.
        narrow: For a phone.
        height: Of an axes.
        aside: To the right of each axes.
        marked: Whether the list shows markers or lines.

    Returns:
        The figure, and the axes group by group, row by row.
    """
    from matplotlib.figure import Figure

    width = NARROW if narrow else WIDE
    rows = math.ceil(panels / across)
    lists = [_entries(group, width - 2 * RIGHT) for group in groups]
    tall = rows * height + (rows - 1) * GAP
    heads = [
        0.08 + ENTRY * (1 + entries[-1][-1]) + TITLE + NOTE * (marked or bool(phase_ends(group)))
        for group, entries in zip(groups, lists, strict=True)
    ]
    total = sum(heads) + len(groups) * (tall + BOTTOM)
    figure = Figure(figsize=(width, total))
    own = (width - across * (LEFT + aside)) / across
    axes, top = [], total
    for entries, head in zip(lists, heads, strict=True):
        _list_arms(figure, entries, top - 0.08 - ENTRY / 2, marked)
        for index in range(panels):
            row, column = divmod(index, across)
            left = column * (LEFT + own + aside) + LEFT
            below = top - head - (row + 1) * height - row * GAP
            axes.append(figure.add_axes((left / width, below / total, own / width, height / total)))
        top -= head + tall + BOTTOM
    return figure, axes


def plain(value: float) -> str:
    """An epoch or a ceiling: to one decimal and no shorter, for these are settings."""
    return f"{round(value, 1):,.10g}"


def short_tick(value: float, _: int = 0) -> str:
    """A number on an axis; large and small ones as ``2·10⁵``, which takes little room."""
    if 1e-3 <= abs(value) < 1e5 or not value:
        return tick(value)
    mantissa, power = f"{value:.2e}".split("e")
    mantissa = mantissa.rstrip("0").rstrip(".")
    ten = f"10{str(int(power)).translate(SUPERSCRIPTS)}"
    return ten if mantissa == "1" else f"{mantissa}·{ten}"


def shown_name(name: str, width: float, size: float = TEXT) -> str:
    """A name as it stands, or its beginning where it is wider than so many inches."""
    if text_width(name, size) <= width:
        return name
    while name and text_width(f"{name}…", size) > width:
        name = name[:-1]
    return f"{name.rstrip()}…"


def text_width(text: str, size: float = TEXT) -> float:
    """Inches that a text takes; without a renderer, so the same for every format."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    return (
        text_to_path.get_text_width_height_descent(text, FontProperties(size=size), False)[0] / 72
    )


def _entries(group: Sequence[Arm], width: float) -> list[tuple[str, Style, float, int]]:
    """(name, style, left, row) of a list of arms that flows within a width."""
    entries, left, row = [], 0.0, 0
    for arm, style in zip(group, STYLES, strict=False):
        name = shown_name(arm.name, width - SAMPLE - 0.06)
        need = SAMPLE + 0.06 + text_width(name)
        if left and left + need > width:
            left, row = 0.0, row + 1
        entries.append((name, style, left, row))
        left += need + 0.2
    return entries


def _list_arms(
    figure: Figure, entries: Sequence[tuple[str, Style, float, int]], top: float, marked: bool
) -> None:
    from matplotlib.lines import Line2D

    inches = figure.dpi_scale_trans
    for name, style, left, row in entries:
        x, y = RIGHT + left, top - ENTRY * row
        line: dict[str, Any] = {"linestyle": style.dashes, "linewidth": 1.9}
        ends = [x, x + SAMPLE]
        if marked:
            line = {"linestyle": "", "marker": style.marker, "markersize": 5.5}
            ends = [x + SAMPLE / 2]
        figure.add_artist(
            Line2D(ends, [y] * len(ends), color=style.colour, transform=inches, **line)
        )
        figure.text(
            x + SAMPLE + 0.06, y, name, color=style.colour, size=TEXT, va="center_baseline",
            transform=inches, parse_math=False,
        )  # fmt: skip


def _draw_arms(
    axes: Axes, group: Sequence[Arm], panel: Panel, lines: Mapping[str, pd.Series]
) -> None:
    """Thin lines for all seeds, then thick ones for the medians on top of them."""
    log = axes.get_yscale() == "log"
    measured = [pair for pair in zip(group, STYLES, strict=False) if pair[0].name in lines]
    for arm, style in measured:
        curve = arm.get(panel.measure, panel.split)
        for seed in curve.columns:
            own = curve[seed].dropna()
            own = own[own > 0] if log else own
            axes.plot(
                own.index, own, color=style.colour, linewidth=0.6, alpha=0.3,
                label=f"{arm.name}/{panel.split}/{panel.measure}/{seed}",
            )  # fmt: skip
    shared = alike(group)
    for arm, style in measured:
        line = lines[arm.name]
        for piece, dashes in _pieces(line[line > 0] if log else line, arm, style, shared):
            axes.plot(
                piece.index, piece, color=style.colour, linestyle=dashes, linewidth=1.9,
                label=f"{arm.name}/{panel.split}/{panel.measure}/median",
                dash_capstyle="butt", solid_capstyle="butt", zorder=3,
            )  # fmt: skip


def _pieces(
    line: pd.Series, arm: Arm, style: Style, shared: Sequence[tuple[float, list[Arm]]]
) -> Iterator[tuple[pd.Series, Any]]:
    """A line as stripes where other arms lie on it, each in turn, then in its own dashes."""
    start = -math.inf
    for epoch, group in sorted(shared, key=lambda each: each[0]):
        if arm not in group:
            continue
        piece = line[(line.index >= start) & (line.index <= epoch * (1 + SAME))]
        place, among = group.index(arm), len(group)
        if len(piece):
            yield piece, ((among - place) * STRIPE, (STRIPE, (among - 1) * STRIPE))
            start = piece.index[-1]
    rest = line[line.index >= start]
    if len(rest) > 1 or math.isinf(start):
        yield rest, style.dashes


def _limits(
    axes: Axes,
    arms: Sequence[Arm],
    panel: Panel,
    values: np.ndarray,
    lines: Mapping[str, pd.Series],
) -> None:
    """The same for every group: all thick lines, ceilings, and nearly all of the thin lines."""
    if panel.scale == "share":
        axes.set_ylim(-0.03, 1.05)
        return
    shown = pd.concat(list(lines.values())).to_numpy()
    log = axes.get_yscale() == "log"
    finite = values[np.isfinite(values)]
    if log:
        finite, shown = finite[finite > 0], shown[shown > 0]
    ends = [*shown, *np.quantile(finite, (0.005, 0.995))]
    if panel.ceilings:
        ends += [height for arm in arms for _, height in ceilings(arm)]
    low, high = float(min(ends)), float(max(ends))
    if log:
        room = (high / low) ** 0.06 if high > low else 1.5
        axes.set_ylim(low / room, high * room)
    elif axes.get_yscale() == "linear":
        room = 0.06 * (high - low) or 0.5
        axes.set_ylim(low - room, high + room)


def _epoch_axis(axes: Axes, arms: Sequence[Arm], labelled: bool) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.set_xlim(0, last_epoch(arms))
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda epoch, _: plain(epoch)))
    axes.tick_params(axis="x", labelbottom=labelled)
    if labelled:
        axes.set_xlabel("epoch", labelpad=2)


def _mark_phase_ends(axes: Axes, group: Sequence[Arm], named: bool) -> None:
    """Dotted lines, with their epochs above where there is room for them."""
    last = axes.get_xlim()[1]
    wide = axes.bbox.width / axes.figure.dpi
    free = 0.0
    for epoch in phase_ends(group):
        axes.axvline(epoch, color=GREY, linewidth=0.8, linestyle=(0, (1, 1.6)), zorder=1,
                     label=f"end of a phase/{plain(epoch)}")  # fmt: skip
        if not named:
            continue
        middle = epoch / last * wide
        for text in (f"epoch {plain(epoch)}", plain(epoch)):
            half = text_width(text, 8) / 2
            if middle - half >= free and middle + half <= wide + RIGHT:
                axes.annotate(
                    text, (epoch, 1), (0, 4), xycoords=("data", "axes fraction"),
                    textcoords="offset points", ha="center", size=8, color="#666666",
                )  # fmt: skip
                free = middle + half + 0.06
                break


def _draw_ceilings(axes: Axes, group: Sequence[Arm]) -> None:
    """A thin line at each ceiling for as long as there is a cap, its height beside the panel."""
    heights: dict[float, Span] = {}
    for arm in group:
        for span, height in ceilings(arm):
            known = heights.get(height, span)
            heights[height] = Span(min(known.start, span.start), max(known.stop, span.stop))
    to_share = axes.transData + axes.transAxes.inverted()
    ordered = sorted(heights)
    wanted = [float(to_share.transform((0, height))[1]) for height in ordered]
    tall = axes.bbox.height / axes.figure.dpi
    places = apart(wanted, 2 * 7.5 * 1.2 / 72 / tall)
    for height, own, place in zip(ordered, wanted, places, strict=True):
        span = heights[height]
        axes.plot([span.start, span.stop], [height, height], color=INK, linewidth=0.7, zorder=2,
                  label=f"ceiling/{plain(height)}")  # fmt: skip
        axes.annotate(
            f"ceiling\n{plain(height)}", (1, own), (5, (place - own) * tall * 72),
            xycoords="axes fraction", textcoords="offset points", size=7.5, va="center",
            color=INK, annotation_clip=False, linespacing=1.0,
        )  # fmt: skip


def _any_ceiling(arms: Sequence[Arm]) -> bool:
    return any(ceilings(arm) for arm in arms)


def _not_measured(arms: Sequence[Arm], panels: Sequence[Panel]) -> Iterator[str]:
    """A sentence on each panel that lacks some arms, or all."""
    for panel in panels:
        missing = [arm.quoted for arm in arms if not _has(arm, panel)]
        if missing:
            where = f" in {listed(missing)}" if len(missing) < len(arms) else ""
            yield f"Not measured: {name_of(panel.measure, panel.split)}{where}."


def _has(arm: Arm, panel: Panel) -> bool:
    return arm.has(panel.measure, panel.split)
