"""Claims found by name, ours or a user's ``file.py:name``, and put to the test on what has run."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from grokscope.analysis.claims.finding import Claim, ClaimReport, Finding
from grokscope.analysis.claims.rules import SeveralArmsError, untested
from grokscope.analysis.contrasts import comparisons
from grokscope.analysis.run import Results
from grokscope.reference import did_you_mean, is_reference, load

YOURS = "path/to/file.py:name"
NOT_JUDGED = "Not judged: "  # begins the reason of a claim that could not be loaded, or failed
SMOKE_TEST = "This is a smoke test: it shows that everything works, so no claim is judged by it."


def list_claims() -> list[Claim]:
    """Our claims, by number."""
    return list(_shipped().values())


def find_claim(name: str, *, outside: Path | None = None) -> Claim:
    """The claim of this name, such as ``C7``, or a user's at ``path/to/file.py:name``.

    Args:
        name: Of the claim.
        outside: The folder of results that it is tested on, from which no code is run.

    Raises:
        ValueError: If there is none, or it cannot be loaded; says why and what there is.
    """
    if is_reference(name):
        found = load(name, outside=outside)
        if not isinstance(found, Claim):
            raise ValueError(
                f"{name} is a {type(found).__name__}, not a claim; put "
                "@grokscope.results.claim(...) above the function"
            )
        return found
    claims = _shipped()
    if name not in claims:
        raise ValueError(
            f"there is no claim {name!r}. {did_you_mean(name.upper(), claims)}There are: "
            f"{', '.join(claims)}; your own is {YOURS}"
        )
    return claims[name]


@cache
def _shipped() -> dict[str, Claim]:
    """Every claim in a module beside this one."""
    package = __name__.rpartition(".")[0]
    modules = pkgutil.iter_modules([str(Path(__file__).parent)])
    values = {
        value
        for module in modules
        for value in vars(importlib.import_module(f"{package}.{module.name}")).values()
        if isinstance(value, Claim)
    }
    claims = {claim.id: claim for claim in sorted(values, key=lambda one: (len(one.id), one.id))}
    if len(claims) < len(values):
        raise ValueError(f"two claims share an id, among {', '.join(claims)}")
    return claims


def evaluate_claims(
    results: Results, claims: Sequence[str] | None = None, *, arm: str | None = None
) -> list[ClaimReport]:
    """Test claims on what has run.

    Args:
        results: Runs, with the experiment whose contrasts answer the claims that compare arms; of
            a tidy frame ``Results.from_metrics(frame)``.
        claims: Names, in the order wanted; None: those of the experiment. Code of a claim that lies
            in the folder of the results is not run.
        arm: Look at this arm alone.

    Returns:
        A report for each claim. One about the course of one arm is undecided when there are
        several; one that cannot be loaded, or a user's that fails, is undecided with a reason that
        begins "Not judged". Nothing for an experiment that is a smoke test.

    Raises:
        ValueError: If there is no such arm.

    Cost: about a tenth of a second a seed for claims on onsets, a few milliseconds a comparison for
    those on contrasts, for a hundred looks.
    """
    results = Results.of(results)
    results = results if arm is None else results.only(arm)
    if getattr(results.experiment, "smoke_test", False):
        return []
    if claims is None:
        claims = () if results.experiment is None else results.experiment.claims
    return [_judged(name, results) for name in claims]


def _judged(name: str, results: Results) -> ClaimReport:
    try:
        claim = find_claim(name, outside=results.folder)
    except ValueError as error:
        headline = replace(untested("", f"{NOT_JUDGED}{error}."), claim=name)
        return ClaimReport(claim=name, title=name, statement=name, headline=headline)
    try:
        findings = _compared(claim, name, results) if claim.compares else claim(results.runs)
        reason = "No run has what this claim looks at."
    except SeveralArmsError as error:
        findings, reason = [], str(error)
    except Exception as error:
        if not is_reference(name):
            raise
        findings, reason = [], f"{NOT_JUDGED}its test failed ({type(error).__name__}: {error})."
    return claim.report(findings or [untested("", reason)])


def _compared(claim: Claim, name: str, results: Results) -> list[Finding]:
    """The findings of a claim on the comparisons that are declared for it."""
    declared = comparisons(results, claim.id, name)
    if not declared:
        return [untested("", "The experiment compares no arms for this claim.")]
    tested, missing = [], []
    for comparison in declared:
        why = comparison.why_no_level("accuracy", "training accuracy")
        if why and not comparison.diverged:
            missing.append(untested(comparison.name, f"{why[0].upper()}{why[1:]}."))
        else:
            tested.append(comparison)
    findings = [*(claim(tested) if tested else []), *missing]
    reason = "No contrast has the role that this claim asks for; its test says which."
    return findings or [untested("", reason)]
