"""What a panel shows, and the one way to draw it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from grokscope.analysis.level import Array, Curve
from grokscope.analysis.run import Arm
from grokscope.report.arms import Part
from grokscope.report.axes import Horizontal, Vertical, draw_axes, vertical_axis
from grokscope.report.curves import MissingMeasureError, curves_of
from grokscope.report.overlays import Mark
from grokscope.report.style import BLUE, DASHED, THICK, THIN, VERMILION, LineStyle
from grokscope.report.words import SPLITS, listed, name_of, quoted, the, tick

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DENSE = 0.9  # width of a line among very many
PLAIN = LineStyle(BLUE)


@dataclass(frozen=True)
class Series:
    """A measure on one split, and how it looks among others in a panel.

    Attributes:
        measure: As in the metrics.
        split: ``train`` or ``validation``.
        label: In words; empty: that of the measure.
        style: Colour and dashes where a panel shows several.
    """

    measure: str
    split: str = "train"
    label: str = ""
    style: LineStyle = PLAIN


@dataclass(frozen=True)
class Panel:
    """What a panel shows.

    Attributes:
        title: Above it.
        series: Its lines; where arms are the lines, one.
        scale: Of the vertical axis: ``log``, ``linear``, ``share`` (0 to 1) or ``auto``.
        height: In units of a usual panel.
        relative: Each run in units of its value at memorisation.
        floor: Of a log axis; what lies below is cut off, and a remark says so.
        marks: Labelled heights, where arms are the lines.
        draw: Draws a column's panel instead, axes and all: (axes, arm).
    """

    title: str
    series: tuple[Series, ...]
    scale: str = "auto"
    height: float = 1.0
    relative: bool = False
    floor: float = 0.0
    marks: tuple[Mark, ...] = ()
    draw: Callable[[Axes, Arm], None] | None = None

    def shown(self, arms: Sequence[Arm]) -> tuple[Series, ...]:
        """Those of its lines that were measured in one of the arms."""
        return tuple(
            line for line in self.series if any(arm.has(line.measure, line.split) for arm in arms)
        )


def single(measure: str, split: str, title: str, scale: str = "auto") -> Panel:
    """A panel of one measure on one split.

    Args:
        measure: As in the metrics.
        split: ``train`` or ``validation``.
        title: Above the panel.
        scale: As of `Panel`.
    """
    return Panel(title, (Series(measure, split),), scale)


def both(measure: str, title: str, scale: str = "auto") -> Panel:
    """A panel of one measure on training and on held-out data.

    Args:
        measure: As in the metrics.
        title: Above the panel.
        scale: As of `Panel`.
    """
    lines = (
        Series(measure, "train", SPLITS["train"], LineStyle(BLUE)),
        Series(measure, "validation", SPLITS["validation"], LineStyle(VERMILION, DASHED)),
    )
    return Panel(title, lines, scale)


@dataclass(frozen=True)
class Strand:
    """A line as it is drawn: thin for each seed, thick for their running median."""

    name: str  # arm, split and measure
    seeds: Sequence[Curve]
    median: Curve
    style: LineStyle  # colour and dashes
    pace: float = 1.0  # steps in the unit of the horizontal axis
    parts: Sequence[Part] = ()  # stretches of the median that other arms lie on
    dense: bool = False  # one of very many: a thinner line, without its seeds


def draw_panel(
    axes: Axes, strands: Sequence[Strand], x: Horizontal, y: Vertical, *,
    labelled: bool = True, named: bool = True,
) -> None:  # fmt: skip
    """Draw lines into a panel: the seeds thin, their running medians thick on top of them."""
    from matplotlib.collections import LineCollection

    draw_axes(axes, x, y, labelled=labelled, named=named)
    for strand in strands:
        if not strand.dense:
            seeds = [_visible(curve, strand.pace, x, y) for curve in strand.seeds]
            axes.add_collection(
                LineCollection(
                    [np.column_stack(points) for points in seeds], colors=strand.style.colour,
                    linewidths=THIN, alpha=0.3, zorder=2, label=f"{strand.name}/seeds",
                ),
                autolim=False,
            )  # fmt: skip
    dense = [strand for strand in strands if strand.dense]
    if dense:
        medians = [_visible(strand.median, strand.pace, x, y) for strand in dense]
        axes.add_collection(
            LineCollection(
                [np.column_stack(points) for points in medians], linewidths=DENSE, zorder=3,
                colors=[strand.style.colour for strand in dense], label="dense",
            ),
            autolim=False,
        )  # fmt: skip
    for strand in (strand for strand in strands if not strand.dense):
        for curve, dashes in _pieces(strand):
            axes.plot(
                *_visible(curve, strand.pace, x, y), color=strand.style.colour, linestyle=dashes,
                linewidth=THICK, label=f"{strand.name}/median", dash_capstyle="butt",
                solid_capstyle="round", zorder=3
            )  # fmt: skip


def fitted(
    panel: Panel, arms: Sequence[Arm]
) -> tuple[dict[Arm, list[Strand]], Vertical, list[str]]:
    """A panel's lines for each arm, a vertical axis for all of them, and what it cannot show."""
    strands: dict[Arm, list[Strand]] = {arm: [] for arm in arms}
    for arm in arms:
        for line in panel.shown([arm]):
            seeds, median = curves_of(arm, line.measure, line.split, relative=panel.relative)
            name = f"{arm.name}/{line.split}/{line.measure}"
            strands[arm].append(Strand(name, seeds, median, line.style))
    lines = [strand for found in strands.values() for strand in found]
    y = vertical_axis(
        panel.scale,
        np.concatenate([curve.values for strand in lines for curve in strand.seeds]),
        np.concatenate([strand.median.values for strand in lines]),
        include=[mark.height for mark in panel.marks] + [1.0] * panel.relative, floor=panel.floor,
    )  # fmt: skip
    remarks = [f"{panel.title}: {text}" for text in y.remarks]
    below = [
        the(strand.name.rpartition("/")[2])
        for strand in lines
        if panel.floor and (strand.median.values < panel.floor).any()
    ]
    if below:
        names = listed(list(dict.fromkeys(below)))
        remarks.append(
            f"{panel.title}: values of {names} below {tick(panel.floor)} are off the axis."
        )
    return strands, y, remarks if panel.draw is None else []


def _visible(curve: Curve, pace: float, x: Horizontal, y: Vertical) -> tuple[Array, Array]:
    """The part of a curve that has a place on the axes: none at 0 on a logarithmic one."""
    shown = np.ones(len(curve.steps), dtype=bool)
    if x.log:
        shown &= curve.steps > 0
    if y.scale == "log":
        shown &= curve.values > 0
    return curve.steps[shown] / pace, curve.values[shown]


def _pieces(strand: Strand) -> Iterator[tuple[Curve, Any]]:
    """The median in stripes where other arms lie on it, each in turn, then in its own dashes."""
    steps, values = strand.median
    start = 0
    for part in strand.parts:
        stop = int(np.searchsorted(steps, part.until, side="right"))
        if stop > start:
            yield Curve(steps[start:stop], values[start:stop]), part.dashes
            start = stop - 1  # no gap between the pieces
    if len(steps) - start > 1 or not strand.parts:
        yield Curve(steps[start:], values[start:]), strand.style.dashes


def exploded(panels: Sequence[Panel]) -> Iterator[Panel]:
    """A panel for each line of the panels."""
    for panel in (panel for panel in panels if panel.draw is None):
        for line in panel.series:
            label = line.label or name_of(line.measure)
            title = panel.title if len(panel.series) == 1 else f"{panel.title}: {label}"
            yield replace(panel, title=title, series=(line,))


def measured(arms: Sequence[Arm], panels: Sequence[Panel]) -> list[Panel]:
    """Those of the panels that have something to show.

    Raises:
        MissingMeasureError: If there is none.
    """
    found = [panel for panel in panels if panel.shown(arms)]
    if not found:
        raise MissingMeasureError("none of its measures was taken")
    return found


def not_measured(arms: Sequence[tuple[str, Arm]], panels: Sequence[Panel]) -> Iterator[str]:
    """A sentence on each line that was not measured, or not in all arms."""
    for line in (line for panel in panels for line in panel.series):
        missing = [quoted(name) for name, arm in arms if not arm.has(line.measure, line.split)]
        if missing:
            where = f" in {listed(missing)}" if len(missing) < len(arms) else ""
            yield f"Not measured: {name_of(line.measure, line.split)}{where}."
