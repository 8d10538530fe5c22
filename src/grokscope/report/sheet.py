"""A sheet: axes in rows, with titles and keys above them. Lengths are in inches.

Placed by hand: a layout engine would draw everything once more for each format. Keys flow within
the width like words in a line, so no label lies on another or on a line.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from grokscope.report.style import (
    FAINT,
    HEADING,
    INK,
    SMALL,
    TEXT,
    THICK,
    LineStyle,
    shortened,
    text_width,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LEFT, RIGHT, EDGE = 0.56, 0.26, 0.06  # beside axes; around the figure
LINE, SAMPLE, BETWEEN = 0.19, 0.26, 0.15  # a line of a key; a sample of a line; between entries
GAP, NOTE, HEAD = 0.12, 0.15, 0.42  # below inner panels; a note above one; a column's heading
TITLE = 9.0  # points


@dataclass(frozen=True)
class Row:
    """A row of axes."""

    height: float  # of the axes
    cells: int = 1  # how many there are, from the left
    above: float = 0.3  # room for titles and keys
    below: float = 0.5  # room for the horizontal axis


@dataclass(frozen=True)
class Entry:
    """An entry of a key: a sample of a line or a marker, and its name."""

    name: str
    style: LineStyle
    marked: bool = False


class Sheet:
    """Axes in rows.

    Attributes:
        figure: The matplotlib figure.
        grid: Its axes, row by row.
    """

    def __init__(
        self, rows: Sequence[Row], width: float, *,
        across: int = 1, aside: float = RIGHT, left: float = LEFT,
    ) -> None:  # fmt: skip
        from matplotlib.figure import Figure

        total = 2 * EDGE + sum(row.above + row.height + row.below for row in rows)
        self.figure = Figure(figsize=(width, total))
        self.width, self.total = width, total
        self.left = left
        cell = (width - across * (left + aside)) / across
        self.grid: list[list[Axes]] = []
        top = total - EDGE
        for row in rows:
            bottom = top - row.above - row.height
            lefts = [place * (left + cell + aside) + left for place in range(row.cells)]
            self.grid.append(
                [
                    self.figure.add_axes(
                        (start / width, bottom / total, cell / width, row.height / total)
                    )
                    for start in lefts
                ]
            )
            top = bottom - row.below

    def title(
        self, axes: Axes, title: str, key: Sequence[Entry] = (), *, width: float, raised: float = 0
    ) -> None:
        """Write a panel's title, and the key of its lines behind it."""
        left, _, top = self._corner(axes)
        baseline = top + raised + 0.07 + LINE * (_lines(title, key, width) - 1)
        title = shortened(title, width, TITLE, bold=True)
        self._write(left, baseline, title, size=TITLE, weight="bold", va="bottom")
        self._key(key, _behind(title), (left, baseline + 0.055, width))

    def key(self, axes: Axes, entries: Sequence[Entry], raised: float) -> None:
        """Write a key that belongs to a whole block of panels, over the full width."""
        top = self._corner(axes)[2]
        lines = _lines("", entries, self.width - LEFT - RIGHT)
        where = (LEFT, top + raised + LINE * (lines - 0.5), self.width - LEFT - RIGHT)
        self._key(entries, 0.0, where)

    def head(self, axes: Axes, title: str, subtitle: str, raised: float) -> None:
        """Write the heading of a column."""
        left, right, top = self._corner(axes)
        room = right - left + LEFT - 0.1
        title = shortened(title, room, HEADING, bold=True)
        self._write(left, top + raised + 0.2, title, size=HEADING, weight="bold", va="bottom")
        subtitle = shortened(subtitle, room, SMALL)
        self._write(left, top + raised + 0.05, subtitle, size=SMALL, color=FAINT, va="bottom")

    def _key(
        self, entries: Sequence[Entry], start: float, where: tuple[float, float, float]
    ) -> None:
        """Entries from the left and top of (left, top, width), the first line indented."""
        from matplotlib.lines import Line2D

        left, top, width = where
        for entry, (name, indent, line) in zip(entries, _flow(entries, width, start), strict=True):
            x, y = left + indent, top - LINE * line
            look: dict[str, Any] = {"linestyle": entry.style.dashes, "linewidth": THICK}
            ends = [x, x + SAMPLE]
            if entry.marked:
                look = {"linestyle": "", "marker": entry.style.marker, "markersize": 5.5}
                ends = [x + _sample(entry) / 2]
            self.figure.add_artist(
                Line2D(
                    ends, [y] * len(ends), color=entry.style.colour,
                    transform=self.figure.dpi_scale_trans, **look,
                )
            )  # fmt: skip
            x += _sample(entry) + 0.06
            self._write(x, y, name, color=entry.style.colour, va="center_baseline")

    def _write(self, x: float, y: float, text: str, **look: Any) -> None:
        look = {"size": TEXT, "color": INK, **look}
        self.figure.text(x, y, text, transform=self.figure.dpi_scale_trans, **look)

    def _corner(self, axes: Axes) -> tuple[float, float, float]:
        """Left, right and top of a panel."""
        box = axes.get_position()
        return box.x0 * self.width, box.x1 * self.width, box.y1 * self.total


def panel_width(width: float, across: int, aside: float = RIGHT) -> float:
    """How wide an axes is."""
    return (width - across * (LEFT + aside)) / across


def title_height(title: str, key: Sequence[Entry], width: float) -> float:
    """The room that a title with its key takes above a panel."""
    return 0.1 + LINE * _lines(title, key, width)


def key_height(key: Sequence[Entry], width: float) -> float:
    """The room that the key of a block takes."""
    return 0.08 + LINE * _lines("", key, width - LEFT - RIGHT)


def _behind(title: str) -> float:
    return text_width(title, TITLE, bold=True) + BETWEEN if title else 0.0


def _lines(title: str, key: Sequence[Entry], width: float) -> int:
    placed = _flow(key, width, _behind(title))
    return 1 + (placed[-1][2] if placed else 0)


def _flow(entries: Sequence[Entry], width: float, start: float) -> list[tuple[str, float, int]]:
    """(name, indent, line) of each entry; the first line begins at ``start``."""
    placed = []
    left, line = start, 0
    for entry in entries:
        sample = _sample(entry) + 0.06
        name = shortened(" ".join(entry.name.split()), width - sample)
        need = sample + text_width(name)
        if left and left + need > width:
            left, line = 0.0, line + 1
        placed.append((name, left, line))
        left += need + BETWEEN
    return placed


def _sample(entry: Entry) -> float:
    return 0.12 if entry.marked else SAMPLE
