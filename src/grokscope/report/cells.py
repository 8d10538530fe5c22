"""Which panel stands where in a figure: rows of cells, by columns or by arms as lines."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
from grokscope.report.overlays import Mark, draw_marks, mark_ends, reached, shade
from grokscope.report.panels import (
    Panel,
    Strand,
    axis_of,
    cut_off,
    measured,
    not_measured,
    strands_of,
)
from grokscope.report.sheet import Entry
from grokscope.report.style import GREY
from grokscope.report.words import name_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from grokscope.report.contents import Column

Over = Callable[..., None]  # (axes, width in inches, named=whether it may write above them)


@dataclass(frozen=True)
class Cell:
    """A panel in its place."""

    panel: Panel  # what it shows
    strands: Sequence[Strand]  # its lines
    x: Horizontal  # its horizontal axis
    y: Vertical  # its vertical axis
    over: Over = field(kw_only=True)  # draws what lies over or under the lines
    arm: Arm | None = None  # of a figure of columns
    key: tuple[Entry, ...] = ()  # of its lines, behind the title
    heading: tuple[str, str] = ("", "")  # title and subtitle of the column that it begins
    arms: tuple[Entry, ...] = ()  # key of the block that it begins
    noted: bool = False  # whether there is something to write above it
    labelled: bool = False  # whether its horizontal axis is named
    titled: bool = True  # whether title and vertical axis are; not beside a panel of the same


Cells = list[list[Cell]]


def by_column(
    columns: Sequence[Column], panels: Sequence[Panel], across: int, *, wrap: bool
) -> tuple[Cells, list[str]]:
    """A row for each panel and a column for each arm, so many across; more make further blocks.

    Returns:
        Rows of cells, and remarks for the reader.
    """
    arms = [column.arm for column in columns]
    remarks = list(not_measured([(column.title, column.arm) for column in columns], panels))
    horizontal = _step_axes(columns)
    cells: dict[Column, list[Cell]] = {column: [] for column in columns}
    for panel in measured(arms, panels):
        strands = {column: list(strands_of(column.arm, panel)) for column in columns}
        lines = [line for found in strands.values() for line in found]
        y = axis_of(panel, [line.curves for line in lines])
        remarks += cut_off(panel, y, lines) if panel.draw is None else ()
        for column, x in horizontal.items():
            over = partial(_over_column, arm=column.arm, panel=panel, x=x)
            key = _key(panel, arms)
            cell = Cell(panel, strands[column], x, y, over=over, arm=column.arm, key=key)
            cells[column].append(cell)
    if wrap:
        return _named(chunks(cells[columns[0]], across)), remarks
    rows: Cells = []
    for block in chunks(columns, across):
        body = [list(row) for row in zip(*(cells[column] for column in block), strict=True)]
        if len(columns) > 1:
            heads = [(column.title, column.subtitle) for column in block]
            body[0] = [replace(cell, heading=h) for cell, h in zip(body[0], heads, strict=True)]
        rows += _named(body, same=True)
    return rows, remarks


def by_arm(arms: Sequence[Arm], panels: Sequence[Panel], across: int) -> tuple[Cells, list[str]]:
    """A panel for each measure, with arms as lines; a block of rows for each group of arms.

    Returns:
        Rows of cells, and remarks for the reader.
    """
    remarks = list(not_measured([(arm.name, arm) for arm in arms], panels))
    panels = measured(arms, panels)
    x, pace = epoch_axis(arms)
    found = [
        {arm: strand for arm in arms for strand in list(strands_of(arm, panel))[:1]}
        for panel in panels
    ]
    vertical = [
        axis_of(panel, [strand.curves for strand in strands.values()])
        for panel, strands in zip(panels, found, strict=True)
    ]
    for panel, y, strands in zip(panels, vertical, found, strict=True):
        remarks += cut_off(panel, y, list(strands.values()))
    rows: Cells = []
    for group in blocks(arms):
        dressed = _dressed(group, pace)
        ends = phase_ends(group, pace, x.last)
        row = []
        for panel, y, strands in zip(panels, vertical, found, strict=True):
            lines = [dress(strands[arm]) for arm, dress in dressed.items() if arm in strands]
            marks = [mark for mark in panel.marks if mark.arm in {arm.name for arm in group}]
            over = partial(_over_arms, ends=ends, marks=marks, pace=pace, x=x)
            row.append(Cell(panel, lines, x, y, over=over))
        row[0] = replace(row[0], arms=arms_key(group) if len(arms) > 1 else ())
        rows += _named(chunks(row, across), noted=bool(ends))
    return rows, remarks


def arms_key(group: Sequence[Arm], *, marked: bool = False) -> tuple[Entry, ...]:
    """Names of the arms; of very many the reference, the first, a middle one and the last."""
    styles = styles_of(group)
    entries = [Entry(arm.name, style, marked) for arm, style in zip(group, styles, strict=True)]
    if too_many(group):
        entries = [entries[0], entries[1], entries[len(entries) // 2], entries[-1]]
    return tuple(entries)


def _named(rows: Cells, *, noted: bool = True, same: bool = False) -> Cells:
    """Rows of a block, with notes above the first and names of axes below the last."""
    below = [len(row) for row in rows[1:]] + [0]
    return [
        [
            replace(
                cell, noted=noted and row is rows[0], titled=not same or cell is row[0],
                labelled=beneath < len(row),
            )
            for cell in row
        ]
        for row, beneath in zip(rows, below, strict=True)
    ]  # fmt: skip


def _over_column(
    axes: Axes, width: float, *, arm: Arm, panel: Panel, x: Horizontal, named: bool
) -> None:
    shade(axes, arm, x, width, named=named)
    if panel.relative:
        axes.axhline(1.0, color=GREY, linewidth=0.6, zorder=1)


def _over_arms(
    axes: Axes, width: float, *, ends: Sequence[float], marks: Sequence[Mark],
    pace: Mapping[str, float], x: Horizontal, named: bool,
) -> None:  # fmt: skip
    mark_ends(axes, ends, x, width, named=named)
    draw_marks(axes, marks, pace)


def _key(panel: Panel, arms: Sequence[Arm]) -> tuple[Entry, ...]:
    """Names of a panel's lines; none where there is but one and the title says what it is."""
    if len(panel.series) < 2:
        return ()
    return tuple(
        Entry(line.label or name_of(line.measure), line.style) for line in panel.shown(arms)
    )


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
    axes: dict[bool, Horizontal] = {}
    for beside in {column.beside for column in columns}:
        arms = [column.arm for column in columns if column.beside is beside]
        steps = [step for arm in arms for step in reached(arm, "memorised").values()]
        memorised = float(np.median(steps)) if steps else math.nan
        last = max(arm.last_step for arm in arms)
        axes[beside] = step_axis(first_step(memorised), last, memorised)
    return {column: axes[column.beside] for column in columns}
