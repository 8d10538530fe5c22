"""Neural collapse over a run."""

from __future__ import annotations

from grokscope.report.canvas import Canvas, Drawn
from grokscope.report.contents import Study
from grokscope.report.panels import both
from grokscope.report.tables import course_tables


def collapse(study: Study, canvas: Canvas) -> Drawn:
    """NC1 to NC4 and the angles between class means, on training and on held-out data."""
    columns = study.columns()
    exact = any(column.arm.has("nc1_pinv") for column in columns)
    nc1 = "nc1_pinv" if exact else "nc1_quotient"
    panels = (
        both(nc1, "NC1: scatter within classes", "log"),
        both("nc2_equinorm", "NC2: means of equal norm"),
        both("nc2_equiangularity", "NC2: means at equal angles"),
        both("nc3_self_duality", "NC3: head against means"),
        both("nc4_agreement", "NC4: nearest mean agrees", "share"),
        both("angle_deviation", "Angle off the simplex, degrees"),
    )
    remarks = canvas.columns(study, panels, wrap=True)
    caption = (
        "The four signs of neural collapse, and how far the angles between class means are from "
        "equal. All are 0 at full collapse but NC4, which is 1."
    )
    measures = [(panel.series[0].measure, "train") for panel in panels]
    tables = course_tables("collapse", columns, measures)
    return Drawn(canvas.figure, "Neural collapse", caption, tables=tables, remarks=remarks)
