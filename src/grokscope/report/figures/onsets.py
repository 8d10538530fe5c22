"""What moves first."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from grokscope.report.axes import draw_horizontal, step_axis
from grokscope.report.canvas import Canvas, Drawn
from grokscope.report.contents import MissingMeasureError, Study
from grokscope.report.overlays import draw_dot, shade
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
    found = rows.groupby(["measure", "split"], sort=False)
    # In the order of their medians; what has none comes last.
    order = found["step"].median().sort_values(kind="stable").index
    groups = {(str(measure), str(split)): found.get_group((measure, split))
              for measure, split in order}  # fmt: skip
    seeds = sorted(int(seed) for seed in rows["seed"].unique())
    axes = canvas.dots([name_of(*name) for name in groups], Top(noted=True, block=_key(seeds)))
    lows = rows[["step", "low"]].to_numpy(dtype=float)
    first = max(1.0, 0.7 * float(np.nanmin(lows[lows > 0])))
    x = step_axis(first, arm.last_step)
    draw_horizontal(axes, x)
    shade(axes, arm, x, named=True)
    for place, group in enumerate(groups.values()):
        _draw(axes, place, group, seeds)
    caption = (
        "A point is a seed, its line the 90 % interval of the moment at which the quantity begins "
        "to change for good; the tall tick is the median."
    )
    which = (f"Shown is {arm.name}.",) if len(study.arms) > 1 else ()
    table = _table(groups)
    return Drawn(canvas.figure, "What moves first", caption, tables=(table,), remarks=which)


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
        style = LineStyle(colour, marker=MARKERS[index % len(MARKERS)])
        label = f"{measure}/{split}/{row['seed']}"
        draw_dot(axes, height, (row["step"], row["low"], row["high"]), style, label=label)
    middle = float(group["step"].median())
    if not math.isnan(middle):
        axes.plot([middle] * 2, [place - 0.36, place + 0.36], color=colour, linewidth=1)


def _table(groups: dict[tuple[str, str], pd.DataFrame]) -> Table:
    rows = []
    for name, group in groups.items():
        steps = group["step"].dropna().tolist()
        found = f"{len(steps)} of {count(len(group), 'seed')}"
        rows.append(
            (capital(name_of(*name)), steps_range(steps) if steps else step(math.nan), found)
        )
    headings = ("", "Begins to change at step (median and range)", "Found in")
    return Table("onsets", "In order of their medians", headings, tuple(rows))
