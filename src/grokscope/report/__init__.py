"""Reports: a `Study` becomes one self-contained page and its figures.

`grokscope.report.study.collect` reads a folder of results, `write_report` writes the page. A figure
is one file in `grokscope.report.figures`, or a user's ``file.py:name``: a function of a `Study` and
a `Canvas` that returns a `Drawn`.
"""

from __future__ import annotations

from grokscope.report.canvas import Canvas, Drawn
from grokscope.report.contents import Counterpart, MissingMeasureError, Study
from grokscope.report.figures import find_figure, list_figures
from grokscope.report.page import write_report
from grokscope.report.panels import Panel, Series
from grokscope.report.tables import Table

__all__ = [
    "Canvas",
    "Counterpart",
    "Drawn",
    "MissingMeasureError",
    "Panel",
    "Series",
    "Study",
    "Table",
    "find_figure",
    "list_figures",
    "write_report",
]
