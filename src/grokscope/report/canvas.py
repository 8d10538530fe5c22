"""The canvas of a figure: which panel stands where.

A figure is a function of a study and a canvas. It asks the canvas for `columns` (a column for each
arm, measures as lines), for `compare` (arms as lines), for a chart of `dots` or, to draw by itself,
for a bare `sheet`. Arms share their axes in all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from grokscope.analysis.run import Arm
from grokscope.report.arms import (
    blocks,
    chunks,
    epoch_axis,
    parts_of,
    phase_ends,
    styles_of,
    too_many,
)
from grokscope.report.axes import Horizontal, Vertical, first_step, step_axis
from grokscope.report.contents import THIS_RUN, Column, Study
from grokscope.report.overlays import Mark, draw_marks, mark_ends, reached, shade
from grokscope.report.panels import (
    Panel,
    Strand,
    draw_panel,
    exploded,
    fitted,
    measured,
    not_measured,
)
from grokscope.report.sheet import LEFT, RIGHT, XLABEL, Entry, Row, Sheet, Top
from grokscope.report.style import GREY, INK, NARROW, WIDE, text_width
from grokscope.report.tables import Table
from grokscope.report.words import name_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_COLUMNS = 12  # arms that are drawn as columns; more become lines
PANEL, DOTS = 1.5, 0.36  # heights of a panel and of a row of a chart of dots, in inches
GAP = 0.12  # below a panel whose horizontal axis is named further down
ASIDE = 0.66  # beside panels with labelled heights


@dataclass(frozen=True)
class Drawn:
    """A figure with what is said of it.

    Attributes:
        figure: That of the canvas.
        title: Its headline.
        caption: What is seen, in a sentence or two; the figure's text alternative, too.
        tables: The numbers.
        remarks: What holds for this figure alone, a sentence each.
    """

    figure: Figure
    title: str
    caption: str
    tables: Sequence[Table] = field(default=(), kw_only=True)
    remarks: Sequence[str] = field(default=(), kw_only=True)


@dataclass(frozen=True)
class Cell:
    """A panel in its place."""

    panel: Panel
    top: Top
    draw: Callable[..., None]  # (axes, top=what stands above them, labelled=below, too)
    labelled: bool = False  # whether its horizontal axis is named


class Canvas:
    """What figures are drawn on.

    Args:
        narrow: For a phone: one panel a row, text no smaller.
    """

    def __init__(self, narrow: bool = False) -> None:
        self.narrow = narrow
        self.width = NARROW if narrow else WIDE
        self._sheet: Sheet | None = None

    @property
    def figure(self) -> Figure:
        """The matplotlib figure, once something was laid out.

        Raises:
            ValueError: If nothing was.
        """
        if self._sheet is None:
            raise ValueError("the canvas is empty: call its sheet, columns or compare first")
        return self._sheet.figure

    def sheet(
        self, rows: Sequence[Row], *, across: int = 1, aside: float = RIGHT, left: float = LEFT
    ) -> Sheet:
        """Lay out rows of axes.

        Args:
            rows: From top to bottom.
            across: Axes in a full row.
            aside: Room to the right of each, in inches.
            left: Room to their left, in inches.
        """
        self._sheet = Sheet(rows, self.width, across=across, aside=aside, left=left)
        return self._sheet

    def dots(self, names: Sequence[str], top: Top) -> Axes:
        """Lay out a chart of dots, with a row for each name, the first on top at height 0.

        Args:
            names: Of the rows; an empty one is a heading that the figure writes itself.
            top: What stands above it.
        """
        most = 1.45 if self.narrow else 2.6
        names = [
            name if text_width(name) <= most else name.replace(" (", "\n(", 1) for name in names
        ]
        left = 0.16 + max(text_width(line) for name in names for line in name.split("\n"))
        row = Row(DOTS * len(names), (top,))
        (axes,) = self.sheet([row], left=min(left, most + 0.2)).grid[0]
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_yticks(range(len(names)), labels=names)
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", colors=INK)
        return axes

    def columns(
        self, study: Study, panels: Sequence[Panel], *, wrap: bool = False
    ) -> tuple[str, ...]:
        """Panels over steps: a row for each panel, a column for each arm and the counterpart.

        Args:
            study: Whose arms.
            panels: What to draw; what was not measured in any arm is left out.
            wrap: With one arm and room enough, two panels side by side.

        Returns:
            Remarks, a sentence each.

        Raises:
            MissingMeasureError: If none of the panels can be drawn.
        """
        columns = study.columns()
        if len(columns) > MOST_COLUMNS:
            return self.compare(study.arms, list(exploded(panels)))
        arms = [column.arm for column in columns]
        named = [
            ("this run" if column.title == THIS_RUN else column.title, column.arm)
            for column in columns
        ]
        remarks = list(not_measured(named, panels))
        horizontal = _step_axes(columns)
        cells: dict[Column, list[Cell]] = {column: [] for column in columns}
        for panel in measured(arms, panels):
            strands, y, unseen = fitted(panel, arms)
            remarks += unseen
            for column, x in horizontal.items():
                arm, top = column.arm, Top(panel.title, _key(panel, arms))
                draw = partial(_draw_column, arm=arm, panel=panel, strands=strands[arm], x=x, y=y)
                cells[column].append(Cell(panel, top, draw))
        across = 1 if self.narrow else 2
        if wrap and len(columns) == 1:
            rows = _block(chunks(cells[columns[0]], across))
        else:
            across = min(across, len(columns))
            rows = []
            for block in chunks(columns, across):
                body = [list(row) for row in zip(*(cells[column] for column in block), strict=True)]
                if len(columns) > 1:
                    heads = [(column.title, column.subtitle) for column in block]
                    body[0] = [
                        replace(cell, top=replace(cell.top, column=head))
                        for cell, head in zip(body[0], heads, strict=True)
                    ]
                rows += _block(body, same=True)
        self._draw(rows, across)
        return tuple(dict.fromkeys(remarks))

    def compare(
        self, arms: Sequence[Arm], panels: Sequence[Panel], *, across: int = 1
    ) -> tuple[str, ...]:
        """Panels in which arms are the lines, over epochs; a panel for each measure.

        At most eight arms share a panel; more make more rows of panels on the same axes, with the
        reference in each. Very many arms share one panel, coloured by their place.

        Args:
            arms: All arms.
            panels: What to draw, one line each; what was measured in no arm is left out.
            across: Panels side by side on a wide figure.

        Returns:
            Remarks, a sentence each.

        Raises:
            MissingMeasureError: If none of the panels can be drawn.
        """
        remarks = list(not_measured([(arm.name, arm) for arm in arms], panels))
        panels = measured(arms, panels)
        across = 1 if self.narrow else min(across, len(panels))
        x, pace = epoch_axis(arms)
        found = [(panel, *fitted(panel, arms)) for panel in panels]
        remarks += [text for *_, unseen in found for text in unseen]
        rows = []
        for group in blocks(arms):
            looks = _looks(group)
            ends = phase_ends(group, pace, x.last)
            cells = []
            for panel, strands, y, _ in found:
                lines = [
                    replace(strand, pace=pace[arm.name], **look)
                    for arm, look in looks.items()
                    for strand in strands[arm][:1]
                ]
                draw = partial(_draw_arms, strands=lines, x=x, y=y, ends=ends)
                marks = [mark.over(pace[arm.name]) for arm in group for mark in panel.marks
                         if mark.arm == arm.name]  # fmt: skip
                cells.append(Cell(panel, Top(panel.title), partial(draw, marks=marks)))
            key = arms_key(group) if len(arms) > 1 else ()
            cells[0] = replace(cells[0], top=replace(cells[0].top, block=key))
            rows += _block(chunks(cells, across), noted=bool(ends))
        marked = any(panel.marks for panel in panels)
        self._draw(rows, across, aside=ASIDE if marked else RIGHT, tall=1.25 if across > 1 else 1.0)
        return tuple(dict.fromkeys(remarks))

    def _draw(
        self, cells: Sequence[Sequence[Cell]], across: int, *, aside: float = RIGHT, tall: float = 1
    ) -> None:
        """Lay rows of cells out and draw them."""
        rows = []
        for line in cells:
            height = PANEL * tall * max(cell.panel.height for cell in line)
            labelled = any(cell.labelled or cell.panel.draw is not None for cell in line)
            rows.append(Row(height, [cell.top for cell in line], XLABEL if labelled else GAP))
        grid = self.sheet(rows, across=across, aside=aside).grid
        for line, places in zip(cells, grid, strict=True):
            for cell, axes in zip(line, places, strict=True):
                cell.draw(axes, top=cell.top, labelled=cell.labelled)


def arms_key(group: Sequence[Arm], *, marked: bool = False) -> tuple[Entry, ...]:
    """Names of the arms, as lines or marked by points; of very many only some."""
    styles = styles_of(group)
    entries = [Entry(arm.name, style, marked) for arm, style in zip(group, styles, strict=True)]
    if too_many(group):  # the reference, the first, a middle one and the last
        entries = [entries[0], entries[1], entries[len(entries) // 2], entries[-1]]
    return tuple(entries)


def _block(
    rows: Sequence[Sequence[Cell]], *, noted: bool = True, same: bool = False
) -> list[list[Cell]]:
    """Rows with notes above the first, and names of axes where no other panel lies below.

    Where the panels of a row are the same, the first alone has title and vertical axis.
    """
    below = [len(row) for row in rows[1:]] + [0]
    finished = []
    for row, beneath in zip(rows, below, strict=True):
        finished.append([
            replace(
                cell, labelled=beneath < len(row),
                top=replace(cell.top, noted=noted and row is rows[0],
                            titled=not same or cell is row[0]),
            )
            for cell in row
        ])  # fmt: skip
    return finished


def _draw_column(
    axes: Axes, *, arm: Arm, panel: Panel, strands: Sequence[Strand],
    x: Horizontal, y: Vertical, top: Top, labelled: bool,
) -> None:  # fmt: skip
    if panel.draw is not None:
        panel.draw(axes, arm)
        return
    draw_panel(axes, strands, x, y, labelled=labelled, named=top.titled)
    shade(axes, arm, x, named=top.noted)
    if panel.relative:
        axes.axhline(1.0, color=GREY, linewidth=0.6, zorder=1)


def _draw_arms(
    axes: Axes, *, strands: Sequence[Strand], x: Horizontal, y: Vertical,
    ends: Sequence[float], marks: Sequence[Mark], top: Top, labelled: bool,
) -> None:  # fmt: skip
    draw_panel(axes, strands, x, y, labelled=labelled)
    mark_ends(axes, ends, x, named=top.noted)
    draw_marks(axes, marks)


def _key(panel: Panel, arms: Sequence[Arm]) -> tuple[Entry, ...]:
    """Names of a panel's lines; none where there is but one and the title says what it is."""
    if len(panel.series) < 2:
        return ()
    return tuple(
        Entry(line.label or name_of(line.measure), line.style) for line in panel.shown(arms)
    )


def _looks(group: Sequence[Arm]) -> dict[Arm, dict[str, Any]]:
    """What the line of each arm looks like within a group."""
    many = too_many(group)
    parts = {} if many else parts_of(group)
    return {
        arm: {"style": style, "parts": parts.get(arm.name, ()), "dense": many and arm != group[0]}
        for arm, style in zip(group, styles_of(group), strict=True)
    }


def _step_axes(columns: Sequence[Column]) -> dict[Column, Horizontal]:
    """An axis of steps for each column: the arms of one run share theirs."""
    axes: dict[bool, Horizontal] = {}
    for beside in {column.beside for column in columns}:
        arms = [column.arm for column in columns if column.beside is beside]
        steps = [step for arm in arms for step in reached(arm, "memorised").values()]
        memorised = float(np.median(steps)) if steps else math.nan
        last = max(arm.last_step for arm in arms)
        axes[beside] = step_axis(first_step(memorised), last, memorised)
    return {column: axes[column.beside] for column in columns}
