"""The canvas of a figure: how its panels are laid out.

A figure is a function of a study and a canvas. It asks the canvas for `columns` (a column for each
arm, measures as lines), for `compare` (arms as lines) or, to draw by itself, for a bare `sheet`.
Arms share their axes in all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

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
from grokscope.report.overlays import draw_marks, mark_ends, reached, shade
from grokscope.report.panels import (
    Panel,
    Strand,
    axis_of,
    cut_off,
    draw_panel,
    exploded,
    measured,
    not_measured,
    strands_of,
)
from grokscope.report.sheet import (
    GAP,
    HEAD,
    LEFT,
    NOTE,
    RIGHT,
    Entry,
    Row,
    Sheet,
    key_height,
    panel_width,
    title_height,
)
from grokscope.report.style import GREY, INK, NARROW, WIDE, text_width
from grokscope.report.tables import Table
from grokscope.report.words import name_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from grokscope.report.contents import Column, Study

MOST_COLUMNS = 12  # arms that are drawn as columns; more become lines
PANEL = 1.5  # height of a panel, in inches
ROW = 0.36  # of a chart of dots
XLABEL = 0.44  # below the last panel of a column
ASIDE = 0.66  # beside panels with labelled heights


@dataclass(frozen=True)
class Cell:
    """A panel in its place.

    Attributes:
        panel: What it shows.
        strands: Its lines.
        x: Its horizontal axis.
        y: Its vertical axis.
        over: Draws what lies over or under the lines; takes the axes, their width, and whether
            it may write above them.
        arm: Of a figure of columns.
        key: Of its lines, behind the title.
        heading: Title and subtitle of the column that it begins.
        arms: Key of the block that it begins.
        noted: Whether there is something to write above it.
        labelled: Whether its horizontal axis is named.
        titled: Whether title and vertical axis are; not beside a panel of the same.
    """

    panel: Panel
    strands: Sequence[Strand]
    x: Horizontal
    y: Vertical
    over: Callable[..., None]
    arm: Arm | None = None
    key: tuple[Entry, ...] = ()
    heading: tuple[str, str] = ("", "")
    arms: tuple[Entry, ...] = ()
    noted: bool = False
    labelled: bool = False
    titled: bool = True


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
    tables: tuple[Table, ...] = ()
    remarks: tuple[str, ...] = ()


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

    def dots(self, names: Sequence[str], *, above: float, below: float = XLABEL) -> Axes:
        """Lay out a chart of dots, with a row for each name, the first on top at height 0.

        Args:
            names: Of the rows; an empty one is a heading that the figure writes itself.
            above: Room above, in inches.
            below: Room below, in inches.
        """
        most = 1.45 if self.narrow else 2.6
        names = [
            name if text_width(name) <= most else name.replace(" (", "\n(", 1) for name in names
        ]
        left = 0.16 + max(text_width(line) for name in names for line in name.split("\n"))
        height = ROW * len(names)
        (axes,) = self.sheet([Row(height, 1, above, below)], left=min(left, most + 0.2)).grid[0]
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_yticks(range(len(names)), labels=names)
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", colors=INK)
        return axes

    def key(self, axes: Axes, entries: Sequence[Entry], raised: float) -> None:
        """Write a key above axes, over the full width; arguments as of `Sheet.key`."""
        assert self._sheet is not None
        self._sheet.key(axes, entries, raised)

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
        arms = [column.arm for column in columns]
        remarks = list(not_measured([(c.title, c.arm) for c in columns], panels))
        panels = measured(arms, panels)
        if len(columns) > MOST_COLUMNS:
            return self.compare(study.arms, list(exploded(panels)))
        horizontal = _step_axes(columns)
        cells = {}
        for panel in panels:
            strands = {column: tuple(strands_of(column.arm, panel)) for column in columns}
            lines = [line for found in strands.values() for line in found]
            y = axis_of(panel, [line.curves for line in lines])
            remarks += cut_off(panel, y, lines) if panel.draw is None else ()
            key = _key(panel, arms)
            for column in columns:
                over = partial(_over_column, column.arm, panel, horizontal[column])
                cells[column, panel] = Cell(
                    panel, strands[column], horizontal[column], y, over, column.arm, key
                )
        if wrap and len(columns) == 1:
            across = 1 if self.narrow else 2
            rows = chunks([cells[columns[0], panel] for panel in panels], across)
            rows = _ends(rows, wrapped=True)
        else:
            across = 1 if self.narrow else min(2, len(columns))
            rows = []
            for block in chunks(columns, across):
                body = [[cells[column, panel] for column in block] for panel in panels]
                if len(columns) > 1:
                    heads = [(column.title, column.subtitle) for column in block]
                    body[0] = [
                        replace(cell, heading=head)
                        for cell, head in zip(body[0], heads, strict=True)
                    ]
                rows += _ends(body)
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
        x, pace = epoch_axis(arms)
        across = 1 if self.narrow else min(across, len(panels))
        strands = {
            panel: {arm: next(strands_of(arm, panel)) for arm in arms if panel.shown([arm])}
            for panel in panels
        }
        vertical = {}
        for panel, found in strands.items():
            vertical[panel] = axis_of(panel, [line.curves for line in found.values()])
            remarks += cut_off(panel, vertical[panel], list(found.values()))
        rows: list[list[Cell]] = []
        for group in blocks(arms):
            dressed = _dressed(group, pace)
            ends = phase_ends(group, pace, x.last)
            over = partial(_over_arms, {arm.name for arm in group}, ends, x, pace)
            body = chunks(
                [
                    Cell(
                        panel,
                        [dress(strands[panel][arm]) for arm, dress in dressed.items()
                         if arm in strands[panel]],
                        x, vertical[panel], partial(over, panel),
                    )
                    for panel in panels
                ],
                across,
            )  # fmt: skip
            body[0][0] = replace(body[0][0], arms=arms_key(group))
            rows += _ends(body, noted=bool(ends), wrapped=True)
        marked = any(panel.marks for panel in panels)
        self._draw(rows, across, aside=ASIDE if marked else RIGHT, tall=1.25 if across > 1 else 1.0)
        return tuple(dict.fromkeys(remarks))

    def inches(self, axes: Axes) -> float:
        """How wide a panel is."""
        return float(axes.get_position().width) * self.width

    def _draw(
        self, rows: Sequence[Sequence[Cell]], across: int, *, aside: float = RIGHT, tall: float = 1
    ) -> None:
        """Lay the cells out and draw them."""
        width = panel_width(self.width, across, aside)
        sheet = self.sheet(
            [self._row(cells, width, tall) for cells in rows], across=across, aside=aside
        )
        for cells, line in zip(rows, sheet.grid, strict=True):
            room = self._room(cells, width)
            for cell, axes in zip(cells, line, strict=True):
                note = NOTE * cell.noted
                above = note + title_height(cell.panel.title, cell.key, room)
                if any(cell.heading):
                    sheet.head(axes, *cell.heading, above)
                if cell.arms:
                    sheet.key(axes, cell.arms, above)
                if cell.titled:
                    sheet.title(axes, cell.panel.title, cell.key, width=room, raised=note)
                axes.set_label(cell.panel.title)
                if cell.panel.draw is not None and cell.arm is not None:
                    cell.panel.draw(axes, cell.arm, width)
                    continue
                draw_panel(
                    axes, cell.strands, cell.x, cell.y,
                    width=width, labelled=cell.labelled, named=cell.titled,
                )  # fmt: skip
                cell.over(axes, width, named=cell.noted)

    def _room(self, cells: Sequence[Cell], width: float) -> float:
        """How wide a title may be: a row of panels that are the same has only one."""
        return width if all(cell.titled for cell in cells) else self.width - LEFT - RIGHT

    def _row(self, cells: Sequence[Cell], width: float, tall: float) -> Row:
        room = self._room(cells, width)
        above = max(title_height(cell.panel.title, cell.key, room) for cell in cells)
        above += NOTE * any(cell.noted for cell in cells)
        above += HEAD * any(any(cell.heading) for cell in cells)
        above += sum(key_height(cell.arms, self.width) for cell in cells if cell.arms)
        own = any(cell.panel.draw is not None for cell in cells)
        below = XLABEL if own or any(cell.labelled for cell in cells) else GAP
        height = PANEL * tall * max(cell.panel.height for cell in cells)
        return Row(height, len(cells), above, below)


def _ends(
    rows: Sequence[Sequence[Cell]], *, noted: bool = True, wrapped: bool = False
) -> list[list[Cell]]:
    """Rows of a block, with notes above the first and names of axes below the last.

    Args:
        rows: The block.
        noted: Whether there are notes.
        wrapped: Each panel is another one; otherwise the panels of a row are the same, and the
            first alone has title and vertical axis.
    """
    below = [len(row) for row in rows[1:]] + [0]
    return [
        [
            replace(
                cell, noted=noted and row is rows[0], titled=wrapped or cell is row[0],
                labelled=beneath < len(row),
            )
            for cell in row
        ]
        for row, beneath in zip(rows, below, strict=True)
    ]  # fmt: skip


def _over_column(
    arm: Arm, panel: Panel, x: Horizontal, axes: Axes, width: float, *, named: bool
) -> None:
    shade(axes, arm, x, width, named=named)
    if panel.relative:
        axes.axhline(1.0, color=GREY, linewidth=0.6, zorder=1)


def _over_arms(
    names: set[str], ends: Sequence[float], x: Horizontal, pace: Mapping[str, float],
    panel: Panel, axes: Axes, width: float, *, named: bool,
) -> None:  # fmt: skip
    mark_ends(axes, ends, x, width, named=named)
    draw_marks(axes, [mark for mark in panel.marks if mark.arm in names], pace)


def _key(panel: Panel, arms: Sequence[Arm]) -> tuple[Entry, ...]:
    """Names of a panel's lines; none where there is but one and the title says what it is."""
    shown = panel.shown(arms)
    if len(panel.series) < 2:
        return ()
    return tuple(Entry(line.label or name_of(line.measure), line.style) for line in shown)


def arms_key(group: Sequence[Arm]) -> tuple[Entry, ...]:
    """Names of the arms; of very many the reference, the first, a middle one and the last."""
    entries = [Entry(arm.name, style) for arm, style in zip(group, styles_of(group), strict=True)]
    if too_many(group):
        entries = [entries[0], entries[1], entries[len(entries) // 2], entries[-1]]
    return tuple(entries)


def _dressed(
    group: Sequence[Arm], pace: Mapping[str, float]
) -> dict[Arm, Callable[[Strand], Strand]]:
    """Arm -> what gives its lines their look within a group."""
    dense = too_many(group)
    parts = {} if dense else parts_of(group)
    return {
        arm: partial(
            replace, style=style, pace=pace[arm.name], parts=tuple(parts.get(arm.name, ())),
            dense=dense and arm is not group[0],
        )
        for arm, style in zip(group, styles_of(group), strict=True)
    }  # fmt: skip


def _step_axes(columns: Sequence[Column]) -> dict[Column, Horizontal]:
    """An axis of steps for each column: the arms of one run share theirs."""
    axes: dict[Column, Horizontal] = {}
    for beside in (False, True):
        arms = [column.arm for column in columns if column.beside is beside]
        if not arms:
            continue
        steps = [step for arm in arms for step in reached(arm, "memorised").values()]
        memorised = float(np.median(steps)) if steps else math.nan
        last = max(run.last_step for arm in arms for run in arm.runs.values())
        axis = step_axis(first_step(memorised), last, memorised)
        axes |= {column: axis for column in columns if column.beside is beside}
    return axes
