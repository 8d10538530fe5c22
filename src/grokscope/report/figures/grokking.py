"""The main figure of a grokking run."""

from __future__ import annotations

from grokscope.report.canvas import Canvas, Drawn
from grokscope.report.contents import Study
from grokscope.report.overlays import reached
from grokscope.report.panels import Panel, Series, both
from grokscope.report.style import DASHED, DOTTED, GREEN, OCHRE, PURPLE, LineStyle
from grokscope.report.tables import course_tables

FLATNESS = (
    Series("relative_flatness", "train", "exact κ", LineStyle(GREEN)),
    Series("relative_flatness_bound", "train", "its bound", LineStyle(PURPLE, DASHED)),
    Series("published_flatness", "train", "published value", LineStyle(OCHRE, DOTTED)),
)
MEASURES = (
    *((line.measure, line.split) for line in FLATNESS),
    ("ncc", "train"),
    ("ncc", "validation"),
)


def grokking(study: Study, canvas: Canvas) -> Drawn:
    """Accuracy, three flatness values and collapse over steps, as in the paper's Figure 1."""
    columns = study.columns()
    memorised = any(reached(column.arm, "memorised") for column in columns)
    title = f"Sharpness, relative to {'memorisation' if memorised else 'start'}"
    panels = (
        both("accuracy", "Accuracy", "share"),
        Panel(title, FLATNESS, "log", height=1.4, relative=True, floor=0.03),
        both("ncc", "NCC (low = collapsed)", "log"),
    )
    remarks = canvas.columns(study, panels)
    published = any(column.arm.has("published_flatness") for column in columns)
    if published and study.cites_paper:
        remarks = ("What the paper's Figure 1 calls relative flatness is the published value.",
                   *remarks)  # fmt: skip
    caption = (
        "First the training data are memorised, later the network generalises; below, how sharp "
        "the last layer is, and how tightly the features of a class lie together, on the same "
        "steps."
    )
    tables = course_tables("grokking", columns, MEASURES)
    title = "Accuracy, flatness and collapse"
    return Drawn(canvas.figure, title, caption, tables=tables, remarks=remarks)
