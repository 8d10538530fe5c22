"""Figures drawn as `write_report` draws them, and what can be read off them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

from grokscope.report import Canvas, Drawn, Study, Table, find_figure
from grokscope.report.style import RC


def draw(name: str, study: Study, narrow: bool = False) -> Drawn:
    with rc_context(RC):
        return find_figure(name)(study, Canvas(narrow))


def panels(figure: Figure, title: str) -> list[Axes]:
    """The panels whose title begins so."""
    return [axes for axes in figure.axes if str(axes.get_label()).startswith(title)]


def line(axes: Axes, label: str) -> dict[float, float]:
    """x -> y of all lines with that label: a line may be drawn in pieces."""
    points: dict[float, float] = {}
    for drawn in axes.lines:
        if drawn.get_label() == label:
            x, y = np.asarray(drawn.get_xdata(), float), np.asarray(drawn.get_ydata(), float)
            points |= dict(zip(x.tolist(), y.tolist(), strict=True))
    return points


def seeds(axes: Axes, label: str) -> list[dict[float, float]]:
    """x -> y of each seed's thin line."""
    (collection,) = [each for each in axes.collections if each.get_label() == label]
    return [
        dict(zip(segment[:, 0].tolist(), segment[:, 1].tolist(), strict=True))
        for segment in collection.get_segments()
    ]


def spans(axes: Axes) -> dict[str, tuple[float, float]]:
    """Shaded spans by name, in the units of the axis."""
    return {
        str(patch.get_label()): (float(patch.get_x()), float(patch.get_x() + patch.get_width()))
        for patch in axes.patches
    }


def row(table: Table, name: str) -> dict[str, str]:
    """A row by its heading."""
    (cells,) = [cells for cells in table.rows if cells[0] == name]
    return dict(zip(table.headings, cells, strict=True))


def texts(figure: Figure) -> list[Text]:
    """All that is written outside the ticks."""
    found = [*figure.texts]
    for axes in figure.axes:
        found += [*axes.texts, axes.xaxis.label]
    return [text for text in found if text.get_text() and text.get_visible()]


def tick_labels(axes: Axes) -> Iterator[Text]:
    for axis in (axes.xaxis, axes.yaxis):
        for label in axis.get_majorticklabels():
            if label.get_text() and label.get_visible():
                yield label
