"""The canvas of a figure: how its panels are laid out.

A figure is a function of a study and a canvas. It asks the canvas for `columns` (a column for each
arm, measures as lines), for `compare` (arms as lines) or, to draw by itself, for a bare `sheet`.
Arms share their axes in all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from grokscope.analysis.run import Arm
from grokscope.report.cells import Cell, Cells, by_arm, by_column
from grokscope.report.contents import Study
from grokscope.report.panels import Panel, draw_panel, exploded, measured
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
from grokscope.report.style import INK, NARROW, WIDE, text_width
from grokscope.report.tables import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_COLUMNS = 12  # arms that are drawn as columns; more become lines
PANEL = 1.5  # height of a panel, in inches
ROW = 0.36  # of a chart of dots
XLABEL = 0.44  # below the last panel of a column
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
    tables: tuple[Table, ...] = field(default=(), kw_only=True)
    remarks: tuple[str, ...] = field(default=(), kw_only=True)


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
        """Write a key above axes, over the full width.

        Args:
            axes: Of the sheet.
            entries: Of the key.
            raised: How far above the axes its last line ends, in inches.
        """
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
        if len(columns) > MOST_COLUMNS:
            return self.compare(study.arms, list(exploded(panels)))
        across = 1 if self.narrow else 2
        wrap = wrap and len(columns) == 1
        across = across if wrap else min(across, len(columns))
        rows, remarks = by_column(columns, panels, across, wrap=wrap)
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
        across = 1 if self.narrow else min(across, len(measured(arms, panels)))
        rows, remarks = by_arm(arms, panels, across)
        marked = any(panel.marks for panel in panels)
        self._draw(rows, across, aside=ASIDE if marked else RIGHT, tall=1.25 if across > 1 else 1.0)
        return tuple(dict.fromkeys(remarks))

    def inches(self, axes: Axes) -> float:
        """How wide a panel is."""
        return float(axes.get_position().width) * self.width

    def _draw(self, rows: Cells, across: int, *, aside: float = RIGHT, tall: float = 1) -> None:
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
        alone = any(cell.panel.draw is not None for cell in cells)
        below = XLABEL if alone or any(cell.labelled for cell in cells) else GAP
        height = PANEL * tall * max(cell.panel.height for cell in cells)
        return Row(height, len(cells), above, below)
