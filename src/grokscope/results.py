"""Reading what has run: stores, runs and arms, claims, and the page.

A `Store` is a folder of results. `Results.read(Store(folder))` reads it into arms and runs, whose
levels and milestones are those of claims and figures. With `claim` and `Drawn` a file of yours adds
a claim or a figure to an experiment.
"""

from grokscope.analysis import (
    Onset,
    detect_crossing,
    detect_onset,
    onset_table,
    partial_correlations,
    plateau_table,
)
from grokscope.analysis.claims import (
    Claim,
    ClaimReport,
    Finding,
    claim,
    evaluate_claims,
    find_claim,
    list_claims,
)
from grokscope.analysis.contrasts import Comparison
from grokscope.analysis.level import Curve, Span
from grokscope.analysis.run import Arm, Results, Trajectory
from grokscope.analysis.statistics import Effect
from grokscope.report.canvas import Canvas, Drawn
from grokscope.report.contents import MissingMeasureError, Study
from grokscope.report.figures import find_figure, list_figures
from grokscope.report.page import write_report
from grokscope.report.panels import Panel, both, single
from grokscope.report.study import collect
from grokscope.report.tables import Table
from grokscope.runs.store import Store

__all__ = [
    "Arm",
    "Canvas",
    "Claim",
    "ClaimReport",
    "Comparison",
    "Curve",
    "Drawn",
    "Effect",
    "Finding",
    "MissingMeasureError",
    "Onset",
    "Panel",
    "Results",
    "Span",
    "Store",
    "Study",
    "Table",
    "Trajectory",
    "both",
    "claim",
    "collect",
    "detect_crossing",
    "detect_onset",
    "evaluate_claims",
    "find_claim",
    "find_figure",
    "list_claims",
    "list_figures",
    "onset_table",
    "partial_correlations",
    "plateau_table",
    "single",
    "write_report",
]


def __dir__() -> list[str]:
    return __all__
