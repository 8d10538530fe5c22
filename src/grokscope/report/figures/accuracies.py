"""Accuracy, arm by arm."""

from __future__ import annotations

from grokscope.report.canvas import Canvas, Drawn
from grokscope.report.contents import Study
from grokscope.report.panels import single
from grokscope.report.tables import phases_tables


def accuracies(study: Study, canvas: Canvas) -> Drawn:
    """Training and held-out accuracy of every arm, as in the paper's figures 2 and 4."""
    panels = (
        single("accuracy", "train", "Accuracy, training", "share"),
        single("accuracy", "validation", "Accuracy, held out", "linear"),
    )
    remarks = canvas.compare(study.arms, panels, across=2)
    columns = (
        ("Training accuracy", "accuracy", "train"),
        ("Held-out accuracy", "accuracy", "validation"),
    )
    tables = phases_tables("accuracies", study.arms, columns)
    caption = "How well the training data are fitted, and how the network does on held-out data."
    return Drawn(
        canvas.figure, "Accuracy", caption,
        tables=tables, remarks=("The two vertical axes differ.", *remarks),
    )  # fmt: skip
