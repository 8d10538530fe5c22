"""Claims of the paper as tests: each is a function of the stored runs that returns a verdict.

Rules and thresholds are constants of these modules, fixed before outcomes were looked at.
"""

from grokscope.analysis.claims import association, collapse, interventions, sharpness, timing
from grokscope.analysis.claims.registry import (
    CLAIMS,
    Claim,
    ClaimReport,
    Finding,
    Verdict,
    claim,
    evaluate_claims,
)

__all__ = [
    "CLAIMS",
    "Claim",
    "ClaimReport",
    "Finding",
    "Verdict",
    "association",
    "claim",
    "collapse",
    "evaluate_claims",
    "interventions",
    "sharpness",
    "timing",
]
