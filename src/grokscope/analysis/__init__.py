"""From stored metrics to answers: onsets, effects over seeds, verdicts on claims.

`Results` holds what has run, from a store or a tidy frame (``Results.from_metrics(frame)``); tables
and claims take it. Pandas, numpy and scipy; torch only where a claim checks theory.
"""

from grokscope.analysis.claims import (
    Claim,
    ClaimReport,
    Finding,
    claim,
    evaluate_claims,
    find_claim,
    list_claims,
)
from grokscope.analysis.correlations import partial_correlations
from grokscope.analysis.level import Curve, Span
from grokscope.analysis.onset import Onset, detect_crossing, detect_onset
from grokscope.analysis.run import Arm, Results, Trajectory
from grokscope.analysis.tables import onset_table, plateau_table

__all__ = [
    "Arm",
    "Claim",
    "ClaimReport",
    "Curve",
    "Finding",
    "Onset",
    "Results",
    "Span",
    "Trajectory",
    "claim",
    "detect_crossing",
    "detect_onset",
    "evaluate_claims",
    "find_claim",
    "list_claims",
    "onset_table",
    "partial_correlations",
    "plateau_table",
]
