"""What a panel shows, and the one way to draw it.

Training spikes, so what is drawn in bold is always a median over neighbouring looks of one phase,
never a single look: what lies before the end of a phase does not smooth what comes after it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from grokscope.analysis.level import Array, Curve, level_around
from grokscope.analysis.run import Arm, Trajectory
from grokscope.report.arms import Part
from grokscope.report.axes import Horizontal, Vertical, draw_axes, vertical_axis
from grokscope.report.contents import MissingMeasureError
from grokscope.report.overlays import Mark
from grokscope.report.style import BLUE, DASHED, THICK, THIN, VERMILION, LineStyle
from grokscope.report.words import SPLITS, listed, name_of, quoted, the, tick

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WINDOW = 5  # looks under one running median; odd
DENSE = 0.9  # width of a line among very many
PLAIN = LineStyle(BLUE)


@dataclass(frozen=True)
class Series:
    """A measure on one split, and how it looks among others in a panel."""

    measure: str  # as in the metrics
    split: str = "train"  # ``train`` or ``validation``
    label: str = ""  # in words; empty: that of the measure
    style: LineStyle = PLAIN  # colour and dashes where a panel shows several


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
    dense = [strand for strand in strands if strand.dense]
    others = [strand for strand in strands if not strand.dense]
    for strand in others:
        seeds = LineCollection(
            [_visible(curve, strand.pace, x, y) for curve in strand.seeds],
            colors=strand.style.colour, linewidths=THIN, alpha=0.3, zorder=2,
            label=f"{strand.name}/seeds",
        )  # fmt: skip
        axes.add_collection(seeds, autolim=False)
    if dense:
        medians = LineCollection(
            [_visible(strand.median, strand.pace, x, y) for strand in dense],
            colors=[strand.style.colour for strand in dense], linewidths=DENSE, zorder=3,
            label="dense",
        )  # fmt: skip
        axes.add_collection(medians, autolim=False)
    for strand in others:
        for curve, dashes in _pieces(strand):
            axes.plot(
                *_visible(curve, strand.pace, x, y).T, color=strand.style.colour, zorder=3,
                linestyle=dashes, linewidth=THICK, dash_capstyle="butt", solid_capstyle="round",
                label=f"{strand.name}/median",
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


def curves_of(
    arm: Arm, measure: str, split: str, *, relative: bool = False
) -> tuple[list[Curve], Curve]:
    """The curves of the seeds that have a measure, and their running median."""
    runs = [run for run in arm.runs.values() if run.has(measure, split)]
    if not runs:
        raise MissingMeasureError(f"{name_of(measure, split)} was not measured")
    curves = [run.curve(measure, split) for run in runs]
    if relative:
        curves = [
            Curve(curve.steps, curve.values / unit(run, curve))
            for run, curve in zip(runs, curves, strict=True)
        ]
    stops = [phase.stop for phase in arm.phases[:-1]]
    return curves, running_median(curves, stops)


def unit(run: Trajectory, curve: Curve) -> float:
    """A curve's value at memorisation, or at its start without one; NaN if not positive."""
    step = run.memorised.step
    value = float(curve.values[0]) if math.isnan(step) else level_around(curve, step)
    return value if value > 0 else math.nan


def running_median(curves: Sequence[Curve], stops: Sequence[float] = ()) -> Curve:
    """Median of all curves' values in a centred window of looks, phase by phase."""
    steps = np.unique(np.concatenate([curve.steps for curve in curves]))
    values = np.full((len(steps), len(curves)), math.nan)
    for column, curve in enumerate(curves):
        values[np.searchsorted(steps, curve.steps), column] = curve.values
    phases = np.searchsorted(np.asarray(stops, dtype=float), steps)
    pieces = [_windows(values[phases == phase]) for phase in np.unique(phases)]
    medians = np.concatenate(pieces) if pieces else np.empty(0)
    known = np.isfinite(medians)
    return Curve(steps[known], medians[known])


def _windows(values: Array) -> Array:
    """Median over a centred window of rows and all columns, for each row; ``[looks, seeds]``."""
    half = WINDOW // 2
    padded = np.pad(values, ((half, half), (0, 0)), constant_values=math.nan)
    windows = np.lib.stride_tricks.sliding_window_view(padded, WINDOW, axis=0)
    ordered = np.sort(windows.reshape(len(values), -1), axis=1)  # NaN comes last
    count = np.isfinite(ordered).sum(axis=1)
    rows = np.arange(len(values))
    low, high = (ordered[rows, np.maximum(place, 0)] for place in ((count - 1) // 2, count // 2))
    return np.where(count > 0, (low + high) / 2, math.nan)


def _visible(curve: Curve, pace: float, x: Horizontal, y: Vertical) -> Array:
    """The points of a curve that have a place on the axes: none at 0 on a logarithmic one."""
    shown = np.ones(len(curve.steps), dtype=bool)
    if x.log:
        shown &= curve.steps > 0
    if y.scale == "log":
        shown &= curve.values > 0
    return np.column_stack((curve.steps[shown] / pace, curve.values[shown]))


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
    """Those of the panels that have something to show; MissingMeasureError if none has."""
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
