"""How curves become panels: colours, axes over log steps, shaded spans, labels beside the lines.

Colours are Okabe and Ito's, darkened where they carry text; lines that could be confused differ
in their dashes too, so that a grey print still tells them apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from grokscope.report.curves import Curves, MissingMeasureError, running_median
from grokscope.report.words import SPLITS, name_of, number, tick

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, VERMILION, GREEN, PURPLE, OCHRE, INK, GREY = (
    "#0072B2", "#C24E00", "#00785A", "#A8528A", "#A86E00", "#222222", "#707070",
)  # fmt: skip
MEMORISED, GENERALISED = "#F1EADC", "#DDEDF3"
STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 5,
    "axes.titley": 1.0,  # a fixed place: searching for one measures every tick label
    "axes.labelsize": 8.5,
    "axes.edgecolor": "#888888",
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.minor.width": 0.4,
    "ytick.minor.width": 0.4,
    "text.color": INK,
    "axes.unicode_minus": True,
    "svg.fonttype": "path",
    "svg.hashsalt": "grokscope",
    "pdf.fonttype": 42,
    "path.simplify": True,
}
WIDE, NARROW = 7.0, 3.75  # inches; the narrow form is for phones, its text no smaller
LEFT, RIGHT, TOP, BOTTOM, GAP = 0.47, 0.92, 0.44, 0.45, 0.40  # inches around the panels


@dataclass(frozen=True)
class Line:
    """A measure to draw: thin for each seed, thick for the running median over them."""

    measure: str
    split: str
    label: str
    colour: str
    dashes: Any = "-"
    relative: bool = False


@dataclass(frozen=True)
class Plot:
    """A panel: its title, what it shows, and its vertical scale.

    ``scale`` is ``log``, ``linear``, ``share`` (0 to 1) or ``auto``.
    """

    title: str
    lines: tuple[Line, ...]
    scale: str = "auto"
    height: float = 1.0
    reference: float | None = None
    floor: float | None = None  # of a log axis; what lies below is named in the caption
    extra: Callable[[Axes, Curves], str] | None = None  # draws instead of lines; returns a remark


def both(measure: str, title: str, scale: str = "auto") -> Plot:
    """A panel of one measure on training and on held-out data."""
    lines = (
        Line(measure, "train", SPLITS["train"], BLUE),
        Line(measure, "validation", SPLITS["validation"], VERMILION, (0, (5, 1.3))),
    )
    return Plot(title, lines, scale)


def draw(
    columns: Sequence[Curves], plots: Sequence[Plot], narrow: bool = False, wrap: bool = False
) -> tuple[Figure, list[str]]:
    """Panels over log steps: a row for each plot, a column for each arm.

    Args:
        columns: The arms.
        plots: What to draw; what was not measured in any arm is left out.
        narrow: For a phone.
        wrap: With one arm and room enough, two plots side by side.

    Returns:
        The figure, and remarks for its caption.

    Raises:
        MissingMeasureError: If none of the plots can be drawn.
    """
    remarks: dict[str, None] = {}
    plots = [plot for plot in plots if any(_has(plot, each) for each in columns)]
    if not plots:
        raise MissingMeasureError("none of its measures was taken")
    two = wrap and not narrow and len(columns) == 1
    cells = [(plot, curves) for plot in plots for curves in columns]
    across = 2 if two else len(columns)
    heights = [each.height for each in plots[:: 2 if two else 1]]
    headed = len(columns) > 1
    own_axis = any(each.extra is not None for each in plots)
    figure, grid = sheet(heights, across, narrow, headed, GAP + 0.3 * own_axis)
    for index, axes in enumerate(grid):
        if index >= len(cells):
            axes.set_axis_off()
            continue
        plot, curves = cells[index]
        first_row, bottom = index < across, index + across >= len(cells)
        remarks |= dict.fromkeys(panel(axes, plot, curves))
        if plot.extra is None:
            step_axis(axes, curves, labelled=bottom)
            named = first_row and not wrap
            shade(axes, curves, named)
            if named:
                axes.set_title(plot.title, pad=16)
        if headed and first_row:
            axes.annotate(
                curves.title, (0, 1), (0, 34), xycoords="axes fraction",
                textcoords="offset points", weight="bold", size=10,
            )  # fmt: skip
    return figure, list(remarks)


def sheet(
    heights: Sequence[float], across: int, narrow: bool, headed: bool, gap: float
) -> tuple[Figure, list[Axes]]:
    """A figure with axes in rows of the given heights (in units of 1.45 inches), row by row.

    Placed by hand: a layout engine would draw everything once more for each format.
    """
    from matplotlib.figure import Figure

    width = NARROW if narrow and across == 1 else max(WIDE, 3.9 * across)
    left, right = (LEFT - 0.02, RIGHT - 0.16) if narrow else (LEFT, RIGHT)
    top = TOP + 0.22 * headed
    sizes = [1.45 * height for height in heights]
    total = top + sum(sizes) + gap * (len(sizes) - 1) + BOTTOM
    panel_width = (width - across * (left + right)) / across
    figure = Figure(figsize=(width, total))
    axes = []
    below = total - top
    for size in sizes:
        below -= size
        for column in range(across):
            start = column * (left + panel_width + right) + left
            box = (start / width, below / total, panel_width / width, size / total)
            axes.append(figure.add_axes(box))
        below -= gap
    return figure, axes


def panel(axes: Axes, plot: Plot, curves: Curves) -> list[str]:
    """Draw one plot of one arm; returns remarks for the caption."""
    axes.set_title(plot.title)
    if plot.extra is not None:
        return list(filter(None, [plot.extra(axes, curves)]))
    remarks, drawn = [], []
    for line in plot.lines:
        try:
            read = curves.relative if line.relative else curves.get
            drawn.append((line, read(line.measure, line.split)))
        except MissingMeasureError:
            remarks.append(f"Not measured: {name_of(line.measure, line.split)}.")
    values = np.concatenate([curve.to_numpy().ravel() for _, curve in drawn] or [np.empty(0)])
    remarks += vertical_scale(axes, plot.scale, values)
    ends = []
    for line, curve in drawn:
        # A step of 0 has no place on a log axis; nor has a value that is not positive.
        shown = curve[curve.index > 0]
        shown = shown.where(shown > 0) if axes.get_yscale() == "log" else shown
        ends.append((line, thick(axes, shown, line)))
    if plot.reference is not None:
        axes.axhline(plot.reference, color=GREY, linewidth=0.6, zorder=1)
    if ends:
        medians = pd.concat([median for _, median in ends])
        _limits(axes, plot.scale, medians.to_numpy(), values)
        remarks += _floored(axes, plot, ends)
    end_labels(axes, ends)
    return remarks


def thick(axes: Axes, curve: pd.DataFrame, line: Line) -> pd.Series:
    """Thin lines for the seeds, a thick one for their running median, which is returned."""
    key = f"{line.split}/{line.measure}"
    for seed in curve.columns:
        own = curve[seed].dropna()
        axes.plot(
            own.index, own, color=line.colour, linewidth=0.6, alpha=0.3, label=f"{key}/{seed}"
        )
    median = running_median(curve).dropna()
    axes.plot(
        median.index, median, color=line.colour, linestyle=line.dashes, linewidth=1.9,
        label=f"{key}/median", solid_capstyle="round",
    )  # fmt: skip
    return median


def end_labels(axes: Axes, ends: Sequence[tuple[Line, pd.Series]]) -> None:
    """Each line's label beside its end, in its colour; moved apart where they would overlap."""
    ends = [(line, median) for line, median in ends if len(median)]
    # One line of text, as a share of the axes' height.
    tall = axes.bbox.height / axes.figure.dpi  # inches
    need = 8.5 * 1.25 / 72 / tall
    axes.get_ylim()  # settles limits that are still to be found, or transData would be off
    low, high = axes.transAxes.transform((0, 0))[1], axes.transAxes.transform((0, 1))[1]
    wanted = []
    for line, median in ends:
        y = axes.transData.transform((1, median.iloc[-1]))[1]
        wanted.append((min(max((y - low) / (high - low), 0.02), 0.97), line))
    wanted.sort(key=lambda each: each[0])
    places = apart([place for place, _ in wanted], need)
    for (own, line), place in zip(wanted, places, strict=True):
        axes.annotate(
            line.label, (1, own), (9, (place - own) * tall * 72), xycoords="axes fraction",
            textcoords="offset points", color=line.colour, va="center", annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": line.colour, "linewidth": 0.6,
                        "shrinkA": 0.5, "shrinkB": 1, "relpos": (0, 0.5)},
        )  # fmt: skip


def apart(places: Sequence[float], need: float) -> list[float]:
    """Ascending places in [0, 1], moved as little as needed to be ``need`` apart."""
    moved = list(places)
    for _ in range(50):
        for i in range(len(moved) - 1):
            lack = need - (moved[i + 1] - moved[i])
            if lack > 1e-9:
                moved[i] -= lack / 2
                moved[i + 1] += lack / 2
        shift = max(0.0, moved[-1] - 0.97) if moved else 0.0
        moved = [place - shift for place in moved]
    return moved


def step_axis(axes: Axes, curves: Curves, labelled: bool) -> None:
    """A log axis of steps, the same for all panels of an arm."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    axes.set_xscale("log")
    first = curves.first_step()
    last = max(curves.last_step, 2 * first)
    axes.set_xlim(first, last)
    room = axes.bbox.width / axes.figure.dpi / math.log10(last / first)  # inches a decade
    subs = (1.0, 2.0, 5.0) if room > 1.6 else (1.0, 3.0) if room > 0.9 else (1.0,)
    axes.xaxis.set_major_locator(LogLocator(subs=subs, numticks=8))
    axes.xaxis.set_major_formatter(FuncFormatter(tick))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="x", which="both", labelbottom=labelled)
    if labelled:
        axes.set_xlabel("optimiser step", labelpad=2)
    else:
        axes.xaxis.set_minor_locator(NullLocator())  # ticks are most of the time it takes to draw


def shade(axes: Axes, curves: Curves, named: bool) -> None:
    """Shade from memorisation to the onset of generalisation, and from its completion on.

    Medians over the seeds; a small tick at the upper edge for each seed's own step.
    """
    memorised, generalised = curves.when("memorised"), curves.when("generalised")
    starts = [curves.when("onset"), generalised, float(curves.last_step)]
    ends = next(step for step in starts if not math.isnan(step))
    spans = [("memorised", memorised, ends, MEMORISED)]
    spans.append(("generalised", generalised, float(curves.last_step), GENERALISED))
    low, high = axes.get_xlim()
    names: list[tuple[str, float, float]] = []
    for name, start, end, colour in spans:
        if math.isnan(start) or end <= start:
            continue
        axes.axvspan(start, end, color=colour, linewidth=0, zorder=0, label=name)
        for step in curves.reached(name):
            if not math.isnan(step):
                axes.axvline(step, 0.965, 1, color=GREY, linewidth=0.7, zorder=1)
        if named:
            begin, middle = (
                max(0.0, math.log(max(each, low) / low) / math.log(high / low))
                for each in (start, math.sqrt(start * end))
            )
            names.append((name, begin, middle))
    need = 0.55 / (axes.bbox.width / axes.figure.dpi)  # of such a name, as a share of the width
    for place, (name, begin, middle) in enumerate(names):
        at, side = middle, "center"
        if middle - begin < need / 2:  # too narrow: it begins with its span and leans out of it
            at, side = begin, "left"
        after = names[place + 1][1] if place + 1 < len(names) else math.inf
        if at + need * (0.5 if side == "center" else 1) > after:  # but not into the next one
            at, side = after - 0.02, "right"
        axes.annotate(
            name, (at, 1), (0, 4), xycoords="axes fraction", textcoords="offset points", ha=side,
            size=8, color="#666666",
        )  # fmt: skip


def vertical_scale(axes: Axes, scale: str, values: np.ndarray) -> list[str]:
    """Choose and set the y scale; returns remarks on what it cannot show."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    finite = values[np.isfinite(values)]
    positive = finite[finite > 0]
    if scale == "auto":
        scale = "linear"
        if len(positive) and len(positive) == len(finite):
            scale = "log" if positive.max() > 20 * positive.min() else "linear"
        elif len(finite) and np.abs(finite).max() > 100 * max(np.median(np.abs(finite)), 1e-12):
            scale = "symlog"
    if scale == "log" and not len(positive):
        scale = "linear"
    remarks = []
    if scale == "log":
        axes.set_yscale("log")
        few = positive.max() < 60 * positive.min()
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,), numticks=6))
        axes.yaxis.set_minor_formatter(NullFormatter())
        hidden = len(finite) - len(positive)
        if hidden:
            verb = "is" if hidden == 1 else "are"
            remarks.append(f"Not positive, so not on the log axis, {verb} {hidden:,} values.")
    elif scale == "symlog":
        linear = float(np.median(np.abs(finite[finite != 0])))
        axes.set_yscale("symlog", linthresh=linear)
        remarks.append(f"The axis is linear within ±{number(linear)} and logarithmic beyond.")
    else:
        axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(FuncFormatter(tick))
    return remarks


def _limits(axes: Axes, scale: str, shown: np.ndarray, values: np.ndarray) -> None:
    """Limits that a single spike cannot stretch: the thick lines, and nearly all thin values."""
    if scale == "share":
        axes.set_ylim(-0.03, 1.05)
        return
    finite = values[np.isfinite(values)]
    if axes.get_yscale() == "log":
        finite = finite[finite > 0]
    if axes.get_yscale() == "symlog" or not len(shown) or not len(finite):
        return
    low = min(shown.min(), np.quantile(finite, 0.005))
    high = max(shown.max(), np.quantile(finite, 0.995))
    if axes.get_yscale() == "log":
        room = (high / low) ** 0.06 if high > low else 1.5
        axes.set_ylim(low / room, high * room)
    else:
        room = 0.06 * (high - low) or 0.5
        axes.set_ylim(low - room, high + room)


def _floored(axes: Axes, plot: Plot, ends: Sequence[tuple[Line, pd.Series]]) -> list[str]:
    """Raise the lower limit to the plot's floor; says what goes off the axis, and when."""
    low, high = axes.get_ylim()
    if plot.floor is None or axes.get_yscale() != "log" or low >= plot.floor:
        return []
    axes.set_ylim(plot.floor, high)
    remarks = []
    for line, median in ends:
        below = median.index[median < plot.floor]
        if len(below):
            remarks.append(
                f"Off the axis, below {number(plot.floor)}: {name_of(line.measure)} at steps "
                f"{below[0]:,} to {below[-1]:,}."
            )
    return remarks


def _has(plot: Plot, curves: Curves) -> bool:
    """Whether anything of the plot was measured in this arm; all of it, if it draws by itself."""
    measured = [curves.has(line.measure, line.split) for line in plot.lines]
    return all(measured) if plot.extra is not None else any(measured)
