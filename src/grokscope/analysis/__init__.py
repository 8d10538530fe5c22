"""From stored metrics to answers: onsets, effects over seeds, verdicts on claims.

Pandas, numpy and scipy; torch only where a claim checks theory.
"""

from grokscope.analysis.claims import Claim, ClaimReport, Finding, claim, evaluate_claims
from grokscope.analysis.correlations import partial_correlations
from grokscope.analysis.milestones import onset_table, plateau_table
from grokscope.analysis.onset import Onset, detect_crossing, detect_onset

__all__ = [
    "Claim",
    "ClaimReport",
    "Finding",
    "Onset",
    "claim",
    "detect_crossing",
    "detect_onset",
    "evaluate_claims",
    "onset_table",
    "partial_correlations",
    "plateau_table",
]
