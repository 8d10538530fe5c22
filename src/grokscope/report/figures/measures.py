"""Measures of the user's own."""

from __future__ import annotations

from grokscope.report.canvas import Canvas, Drawn
from grokscope.report.contents import MissingMeasureError, Study
from grokscope.report.panels import single
from grokscope.report.tables import extra_measures, levels_table
from grokscope.report.words import SPLITS, capital, name_of, title_of


def measures(study: Study, canvas: Canvas) -> Drawn:
    """Every measure that is not grokscope's, a panel each, with the arms as lines."""
    arms = study.arms
    found = extra_measures(arms)
    if not found:
        raise MissingMeasureError("the runs have no measure that is not grokscope's")
    panels = [
        single(measure, split, f"{capital(title_of(measure))}, {SPLITS.get(split, split)}")
        for measure, split in found
    ]
    remarks = canvas.compare(arms, panels, across=2)
    columns = [(capital(name_of(*key)), *key) for key in found]
    table = levels_table("measures", "Other measures at the end", arms, columns)
    caption = "Measures that were added to this experiment."
    return Drawn(canvas.figure, "Other measures", caption, tables=(table,), remarks=remarks)
