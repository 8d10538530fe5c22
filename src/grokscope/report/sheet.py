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
NOTE, HEAD, XLABEL = 0.15, 0.42, 0.44  # a note above axes; a column's heading; a labelled axis
TITLE = 9.0  # points


@dataclass(frozen=True)
class Entry:
    """An entry of a key: a sample of a line or a marker, and its name."""

    name: str
    style: LineStyle
    marked: bool = False


@dataclass(frozen=True)
class Top:
    """What stands above axes, from the lowest to the highest."""

    title: str = ""  # in bold; the axes are labelled so, too
    key: tuple[Entry, ...] = ()  # of the lines, behind the title
    noted: bool = False  # room for notes, which whoever draws the axes writes
    titled: bool = True  # whether the title is written; not beside axes of the same
    column: tuple[str, str] = ("", "")  # heading and subheading of the column that the axes begin
    block: tuple[Entry, ...] = ()  # key of the block that they begin, over the full width

    def title_height(self, width: float) -> float:
        """The room that note, title and key take above axes that are so wide."""
        title = 0.1 + LINE * _lines(self.title, self.key, width) if self.title else 0.04
        return NOTE * self.noted + title


@dataclass(frozen=True)
class Row:
    """A row of axes."""

    height: float  # of the axes
    tops: Sequence[Top] = (Top(),)  # what stands above each of them
    below: float = XLABEL  # room for the horizontal axis


class Sheet:
    """Axes in rows, from top to bottom: ``grid`` on a matplotlib ``figure``."""

    def __init__(
        self, rows: Sequence[Row], width: float, *,
        across: int = 1, aside: float = RIGHT, left: float = LEFT,
    ) -> None:  # fmt: skip
        from matplotlib.figure import Figure

        self.full = width - LEFT - RIGHT
        self.cell = (width - across * (left + aside)) / across
        above = [max(self._height(top, row) for top in row.tops) for row in rows]
        total = 2 * EDGE + sum(above) + sum(row.height + row.below for row in rows)
        self.figure = Figure(figsize=(width, total))
        self.grid: list[list[Axes]] = []
        upper = total - EDGE
        for row, room in zip(rows, above, strict=True):
            upper -= room
            self.grid.append([])
            for place, top in enumerate(row.tops):
                start = place * (left + self.cell + aside) + left
                bottom = (upper - row.height) / total
                size = self.cell / width, row.height / total
                axes = self.figure.add_axes((start / width, bottom, *size), label=top.title)
                self.grid[-1].append(axes)
                self._write_top(top, row, (start, upper))
            upper -= row.height + row.below

    def _room(self, row: Row) -> float:
        """How wide a title may be: a row of axes that show the same has only one."""
        same = not all(top.titled for top in row.tops)
        return self.full if same else self.cell

    def _height(self, top: Top, row: Row) -> float:
        block = 0.08 + LINE * _lines("", top.block, self.full) if top.block else 0
        return top.title_height(self._room(row)) + HEAD * any(top.column) + block

    def _write_top(self, top: Top, row: Row, corner: tuple[float, float]) -> None:
        """Write what stands above axes with this upper left corner."""
        left, upper = corner
        room = self._room(row)
        over = upper + top.title_height(room)
        if any(top.column):
            wide = self.cell + LEFT - 0.1
            heading, subheading = top.column
            heading = shortened(heading, wide, HEADING, bold=True)
            self._write(left, over + 0.2, heading, size=HEADING, weight="bold", va="bottom")
            subheading = shortened(subheading, wide, SMALL)
            self._write(left, over + 0.05, subheading, size=SMALL, color=FAINT, va="bottom")
        raised = over + LINE * (_lines("", top.block, self.full) - 0.5)
        self._key(top.block, LEFT, raised, width=self.full)
        if top.title and top.titled:
            baseline = upper + NOTE * top.noted + 0.07
            baseline += LINE * (_lines(top.title, top.key, room) - 1)
            title = shortened(top.title, room, TITLE, bold=True)
            self._write(left, baseline, title, size=TITLE, weight="bold", va="bottom")
            self._key(top.key, left, baseline + 0.055, width=room, indent=_behind(title))

    def _key(
        self, entries: Sequence[Entry], left: float, top: float, *, width: float, indent: float = 0
    ) -> None:
        """Write entries line by line, the first line indented."""
        from matplotlib.lines import Line2D

        for entry, (name, start, line) in zip(entries, _flow(entries, width, indent), strict=True):
            x, y = left + start, top - LINE * line
            look: dict[str, Any] = {"linestyle": entry.style.dashes, "linewidth": THICK}
            ends = [x, x + SAMPLE]
            if entry.marked:
                look = {"linestyle": "", "marker": entry.style.marker, "markersize": 5.5}
                ends = [x + _sample(entry) / 2]
            look |= {"color": entry.style.colour, "transform": self.figure.dpi_scale_trans}
            self.figure.add_artist(Line2D(ends, [y] * len(ends), **look))
            x += _sample(entry) + 0.06
            self._write(x, y, name, color=entry.style.colour, va="center_baseline")

    def _write(self, x: float, y: float, text: str, **look: Any) -> None:
        look = {"size": TEXT, "color": INK, **look}
        self.figure.text(x, y, text, transform=self.figure.dpi_scale_trans, **look)


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
