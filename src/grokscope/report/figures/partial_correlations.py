"""Is it more than the training loss?"""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from grokscope.report.axes import Horizontal, draw_horizontal, write
from grokscope.report.canvas import Canvas, Drawn
from grokscope.report.contents import MissingMeasureError, Study
from grokscope.report.overlays import draw_dot
from grokscope.report.sheet import Entry, Top
from grokscope.report.style import BLUE, GREY, TEXT, VERMILION, LineStyle
from grokscope.report.tables import Table, stacked
from grokscope.report.words import capital, correlation, interval, name_of

PLAIN, PARTIAL = LineStyle(VERMILION, marker="o"), LineStyle(BLUE, marker="o")
KEY = (
    Entry("as it is", PLAIN, marked=True),
    Entry("with the training loss held fixed", PARTIAL, marked=True),
)
COLUMNS = ["with", "window", "measure"]


def partial_correlations(study: Study, canvas: Canvas) -> Drawn:
    """Correlations over training time, as they are and with the training loss held fixed."""
    arm = study.arms[0].name
    rows = study.correlations
    rows = rows[(rows["arm"] == arm) & rows["rho"].notna()]
    if rows.empty:
        raise MissingMeasureError("no correlations could be computed")
    names: list[str] = []
    places: dict[tuple[Any, ...], int] = {}
    for block, group in rows.groupby(COLUMNS[:2], sort=False):
        places[block] = len(names)
        names.append("")
        for measure in dict.fromkeys(group["measure"]):
            places[*block, measure] = len(names)
            names.append(name_of(str(measure)))
    axes = canvas.dots(names, Top(block=KEY))
    draw_horizontal(axes, Horizontal(-1.05, 1.05, "rank correlation"))
    axes.axvline(0, color=GREY, linewidth=0.6, zorder=1)
    for row in rows.to_dict("records"):
        place, plain = places[tuple(row[name] for name in COLUMNS)], not row["given"]
        axes.axhline(place, color="#E2E2E2", linewidth=0.6, zorder=0.5)
        style, height = (PLAIN, place - 0.15) if plain else (PARTIAL, place + 0.15)
        label = "/".join(str(row[name]) for name in ("measure", "with", "given", "window"))
        draw_dot(
            axes, height, [row[name] for name in ("rho", "low", "high")], style,
            label=label, hollow=plain,
        )  # fmt: skip
    margin = axes.get_position().x0 * canvas.width * 72  # points to the left of the axes
    for block, place in places.items():
        if len(block) == len(COLUMNS) - 1:
            heading = f"With {name_of(str(block[0]))}, {block[1]}"
            write(axes, heading, (0, place), (8 - margin, -2), size=TEXT, weight="bold",
                  va="center", xycoords=("axes fraction", "data"))  # fmt: skip
    which = (f"Shown is {arm}.",) if len(study.arms) > 1 else ()
    caption = (
        "Rank correlations over the looks of a run, with their 95 % intervals: what is left of "
        "each once the training loss is held fixed?"
    )
    title = "Is it more than the training loss?"
    return Drawn(canvas.figure, title, caption, tables=(_table(rows),), remarks=which)


def _table(rows: pd.DataFrame) -> Table:
    """Every correlation, plain and partial side by side."""
    body = []
    for (target, window, measure), group in rows.groupby(COLUMNS, sort=False):
        cells = []
        for partial in (False, True):
            found = group[(group["given"] != "") == partial]
            values = next(found[["rho", "low", "high"]].itertuples(index=False), (math.nan,) * 3)
            between = interval(values[1], values[2], correlation)
            cells.append(stacked(correlation(values[0]), between))
        body.append((capital(name_of(str(measure))), f"{name_of(str(target))}\n{window}", *cells))
    headings = ("", "With", "As it is", "With the training loss held fixed")
    return Table("partial_correlations", "Rank correlations", headings, body)
