"""Representativeness and the generalisation gap."""

from __future__ import annotations

from grokscope.report.canvas import Canvas, Drawn
from grokscope.report.contents import MissingMeasureError, Study
from grokscope.report.panels import Panel, Series, both
from grokscope.report.style import DASHED, DOTTED, GREEN, OCHRE, PURPLE, VERMILION, LineStyle
from grokscope.report.tables import course_tables

PARTS = (
    Series("generalisation_gap", "validation", "gap", LineStyle(VERMILION)),
    Series("representativeness", "validation", "representativeness", LineStyle(GREEN, DASHED)),
    Series("feature_robustness", "validation", "robustness", LineStyle(OCHRE, DOTTED)),
)
DENSITY = Series("representativeness_kde", "validation", "by kernel density", LineStyle(PURPLE))


def representativeness(study: Study, canvas: Canvas) -> Drawn:
    """Representativeness and the generalisation gap, as in the paper's Figure 20."""
    columns = study.columns()
    shown = (PARTS[1], DENSITY)
    if not any(column.arm.has(line.measure, line.split) for column in columns for line in shown):
        raise MissingMeasureError("representativeness was not measured")
    panels = (
        both("accuracy", "Accuracy", "share"),
        Panel("Generalisation gap, nats", PARTS, "linear", height=1.3),
        Panel("Representativeness, by kernel density", (DENSITY,)),
    )
    remarks = canvas.columns(study, panels)
    caption = (
        "The gap between held-out and training loss is the sum of two terms: how badly the "
        "training features represent the data, and how much the loss rises around them."
    )
    measures = [(line.measure, line.split) for line in (*PARTS, DENSITY)]
    tables = course_tables("representativeness", columns, measures)
    return Drawn(canvas.figure, "Representativeness", caption, tables=tables, remarks=remarks)
