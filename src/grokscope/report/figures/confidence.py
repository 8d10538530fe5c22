"""Whether kappa says more than how confident the network is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from grokscope.analysis.correlations import plateau_correlation, plateau_points
from grokscope.analysis.level import Array
from grokscope.analysis.run import Arm
from grokscope.report.axes import Horizontal, Vertical, draw_axes, vertical_axis
from grokscope.report.canvas import Canvas, Drawn
from grokscope.report.contents import Column, Study
from grokscope.report.panels import Panel, Series, both
from grokscope.report.style import BLUE, DASHED, GREEN, LineStyle
from grokscope.report.tables import Table, stacked
from grokscope.report.words import correlation, interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

EXACT, MATCHED = (
    Series("relative_flatness", "train", "as it is", LineStyle(GREEN)),
    Series("relative_flatness_matched", "train", "at matched loss", LineStyle(BLUE, DASHED)),
)


def confidence(study: Study, canvas: Canvas) -> Drawn:
    """Kappa against the training loss and at matched loss, the logit scale, and the loss."""
    columns = study.columns()
    panels = [
        Panel("Exact κ, nats", (EXACT, MATCHED), "log", height=1.2),
        both("logit_scale", "Logit scale, nats"),
        both("loss", "Loss, nats", "log"),
    ]
    clouds = {column.arm: _cloud(column.arm) for column in columns}
    points = np.concatenate(list(clouds.values()), axis=1)
    if points.shape[1]:
        kappa, loss, _ = points
        x = Horizontal(loss.min() / 1.2, loss.max() * 1.2, "training loss, nats", log=True)
        draw = partial(_scatter, clouds=clouds, x=x, y=vertical_axis("log", kappa, kappa))
        title = "κ against the loss, on the plateau (dark = late)"
        panels.insert(0, Panel(title, (EXACT,), height=1.2, draw=draw))
    remarks = canvas.columns(study, panels, wrap=True)
    caption = (
        "κ falls when a network becomes more confident, however sharp it is. At matched loss "
        "confidence is the same everywhere, so what changes there is something else."
    )
    return Drawn(
        canvas.figure, "Flatness and confidence", caption, tables=_tables(columns), remarks=remarks
    )


def _cloud(arm: Arm) -> Array:
    """Kappa, training loss and step of all seeds on the plateau, ``[3, points]``; all positive."""
    found = [plateau_points(run) for run in arm.runs.values()]
    rows = [np.vstack([points.values, points.steps]) for points in found if len(points.steps)]
    cloud = np.concatenate(rows, axis=1) if rows else np.empty((3, 0))
    return np.asarray(cloud[:, (cloud > 0).all(axis=0)])


def _scatter(axes: Axes, arm: Arm, *, clouds: dict[Arm, Array], x: Horizontal, y: Vertical) -> None:
    """Kappa against the training loss on the plateau, coloured by step."""
    kappa, loss, steps = clouds[arm]
    draw_axes(axes, x, y)
    axes.scatter(
        loss, kappa, c=np.log10(steps), s=13, cmap="viridis_r", linewidths=0.3,
        edgecolors="white", label="train/relative_flatness/plateau", zorder=3,
    )  # fmt: skip


def _tables(columns: Sequence[Column]) -> list[Table]:
    """Seed by seed, the rank correlation of kappa with the training loss on the plateau."""
    found = {
        column.title: plateau_correlation(list(column.arm.runs.values())) for column in columns
    }
    rows = []
    for seed in sorted({seed for known in found.values() for seed in known.by_seed}):
        values = [known.by_seed.get(seed, math.nan) for known in found.values()]
        rows.append((f"seed {seed}", *map(correlation, values)))
    if not rows:
        return []
    means = [
        stacked(correlation(known.effect), interval(*known.interval, correlation))
        for known in found.values()
    ]
    note = (
        "From memorisation until generalisation begins. Near 1, κ repeats there what the training "
        "loss says."
    )
    headings = ("", *(found if len(found) > 1 else ["Rank correlation"]))
    title = "Rank correlation of κ and the training loss on the plateau"
    return [Table("plateau", title, headings, [*rows, ("mean", *means)], note=note)]
