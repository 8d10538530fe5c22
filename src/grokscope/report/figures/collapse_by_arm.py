"""Collapse, arm by arm."""

from __future__ import annotations

from grokscope.report.canvas import Canvas, Drawn
from grokscope.report.contents import Study
from grokscope.report.panels import single
from grokscope.report.tables import levels_table


def collapse_by_arm(study: Study, canvas: Canvas) -> Drawn:
    """NCC on training and on held-out data, and the angles between class means, of every arm."""
    panels = (
        single("ncc", "train", "NCC, training (low = collapsed)", "log"),
        single("ncc", "validation", "NCC, held out", "log"),
        single("angle_deviation", "train", "Angle off the simplex, training, degrees", "linear"),
    )
    remarks = canvas.compare(study.arms, panels)
    columns = (
        ("NCC, held out", "ncc", "validation"),
        ("Angle off the simplex, degrees", "angle_deviation", "train"),
    )
    table = levels_table("collapse_by_arm", "Collapse at the end", study.arms, columns)
    caption = (
        "How tightly the features of a class lie together, and how far the class means are from "
        "lying at equal angles."
    )
    return Drawn(canvas.figure, "Collapse", caption, tables=(table,), remarks=remarks)
