"""Claims of the paper as tests: each is a function of the stored runs that returns a verdict.

Rules and thresholds are constants of these modules, fixed before outcomes were looked at. A new
claim is one file here, or a user's ``file.py:name``.
"""

from grokscope.analysis.claims.evaluate import (
    NOT_JUDGED,
    SMOKE_TEST,
    evaluate_claims,
    find_claim,
    list_claims,
)
from grokscope.analysis.claims.finding import Claim, ClaimReport, Finding, Verdict, Why, claim

__all__ = [
    "NOT_JUDGED",
    "SMOKE_TEST",
    "Claim",
    "ClaimReport",
    "Finding",
    "Verdict",
    "Why",
    "claim",
    "evaluate_claims",
    "find_claim",
    "list_claims",
]
