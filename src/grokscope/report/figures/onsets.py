"""What moves first."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from grokscope.report.axes import draw_horizontal, step_axis
from grokscope.report.canvas import Canvas, Drawn
from grokscope.report.contents import Study
from grokscope.report.curves import MissingMeasureError
from grokscope.report.overlays import shade
from grokscope.report.sheet import Entry, Top
from grokscope.report.style import BLUE, GREEN, INK, OCHRE, PURPLE, VERMILION, LineStyle
from grokscope.report.tables import Table
from grokscope.report.words import capital, count, name_of, step, steps_range

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARKERS = "os^Dv<>P"
COLOURS = {
    "relative_flatness": GREEN,
    "relative_flatness_bound": PURPLE,
    "published_flatness": OCHRE,
    "memorised": INK,
    "generalisation": INK,
}


def onsets(study: Study, canvas: Canvas) -> Drawn:
    """When each quantity begins to change, seed by seed."""
    arm = study.arms[0]
    rows = study.onsets
    rows = rows[rows["arm"] == arm.name]
    rows = rows.assign(split=rows["split"].fillna(""))
    if rows["step"].isna().all():
        raise MissingMeasureError("no onset was found")
    groups = {
        (str(measure), str(split)): group
        for (measure, split), group in rows.groupby(["measure", "split"], sort=False)
    }
    order = sorted(groups, key=lambda key: _order(groups[key]))
    seeds = sorted(int(seed) for seed in rows["seed"].unique())
    axes = canvas.dots([name_of(*name) for name in order], Top(noted=True, block=_key(seeds)))
    lows = rows[["step", "low"]].to_numpy(dtype=float)
    first = max(1.0, 0.7 * float(np.nanmin(lows[lows > 0])))
    x = step_axis(first, arm.last_step)
    draw_horizontal(axes, x)
    shade(axes, arm, x, named=True)
    for place, name in enumerate(order):
        _draw(axes, place, groups[name], seeds)
    caption = (
        "A point is a seed, its line the 90 % interval of the moment at which the quantity begins "
        "to change for good; the tall tick is the median."
    )
    which = (f"Shown is {arm.name}.",) if len(study.arms) > 1 else ()
    table = _table([(name, groups[name]) for name in order])
    return Drawn(canvas.figure, "What moves first", caption, tables=(table,), remarks=which)


def _order(group: pd.DataFrame) -> float:
    median = float(group["step"].median())
    return math.inf if math.isnan(median) else median


def _key(seeds: list[int]) -> tuple[Entry, ...]:
    if not 1 < len(seeds) <= len(MARKERS):
        return ()
    return tuple(
        Entry(f"seed {seed}", LineStyle("#555555", marker=marker), marked=True)
        for seed, marker in zip(seeds, MARKERS, strict=False)
    )


def _draw(axes: Axes, place: int, group: pd.DataFrame, seeds: list[int]) -> None:
    """A row: seeds below each other, each with its interval."""
    measure, split = str(group["measure"].iloc[0]), str(group["split"].iloc[0])
    colour = COLOURS.get(measure, VERMILION if split == "validation" else BLUE)
    axes.axhline(place, color="#DDDDDD", linewidth=0.6, zorder=0.5)
    for row in group.dropna(subset=["step"]).to_dict("records"):
        index = seeds.index(int(row["seed"]))
        height = place + (index - (len(seeds) - 1) / 2) * min(0.2, 0.6 / len(seeds))
        label = f"{measure}/{split}/{row['seed']}"
        ends = [row["step"] if math.isnan(end) else end for end in (row["low"], row["high"])]
        axes.plot(ends, [height, height], color=colour, linewidth=1.3, alpha=0.6,
                  label=f"{label}/interval", scalex=False, scaley=False)  # fmt: skip
        axes.plot([row["step"]], [height], MARKERS[index % len(MARKERS)], color=colour,
                  markersize=4.2, label=label, scalex=False, scaley=False)  # fmt: skip
    middle = float(group["step"].median())
    if not math.isnan(middle):
        axes.plot([middle, middle], [place - 0.36, place + 0.36], color=colour, linewidth=1,
                  scalex=False, scaley=False)  # fmt: skip


def _table(groups: list[tuple[tuple[str, str], pd.DataFrame]]) -> Table:
    rows = []
    for name, group in groups:
        steps = group["step"].dropna().tolist()
        found = f"{len(steps)} of {count(len(group), 'seed')}"
        rows.append(
            (capital(name_of(*name)), steps_range(steps) if steps else step(math.nan), found)
        )
    headings = ("", "Begins to change at step (median and range)", "Found in")
    return Table("onsets", "In order of their medians", headings, tuple(rows))
