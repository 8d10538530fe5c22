"""What a claim returns, and the table of those that can be tested."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from grokscope.analysis.contrasts import Comparison, comparisons
from grokscope.analysis.milestones import Trace, traces
from grokscope.analysis.statistics import UNKNOWN, Interval
from grokscope.spec import Experiment

Verdict = Literal["supported", "contradicted", "undecided"]


@dataclass(frozen=True)
class Finding:
    """The answer to a claim on one basis, that is, by one way of measuring.

    Attributes:
        claim: Such as ``C1``.
        basis: What was measured, such as ``relative_flatness``.
        verdict: By a rule fixed in advance.
        effect: The mean over seeds; NaN when there is none.
        interval: 95 % interval of the effect; NaN where seeds are too few for one, or a few agree.
        unit: Of the effect.
        seeds: How many runs the effect rests on.
        per_seed: (seed, effect).
        reason: What was found, with numbers, and which runs were left out and why.
        context: Where else it was looked at, such as "after memorisation"; empty for the claim's
            own question.
    """

    claim: str
    basis: str
    verdict: Verdict
    effect: float
    interval: Interval
    unit: str
    seeds: int
    per_seed: tuple[tuple[int, float], ...]
    reason: str
    context: str = ""


@dataclass(frozen=True)
class ClaimReport:
    """A claim with its findings.

    Attributes:
        claim: Such as ``C1``.
        statement: The claim in a sentence.
        headline: The finding that counts.
        others: The same question on other bases, and looked at otherwise.
        note: What to keep in mind when reading the verdict.
        compares: Whether a basis is a pair of arms and not a measure.
    """

    claim: str
    statement: str
    headline: Finding
    others: tuple[Finding, ...] = ()
    note: str = ""
    compares: bool = False

    def findings(self, context: str = "") -> list[Finding]:
        """Findings of one context, the headline first."""
        return [each for each in (self.headline, *self.others) if each.context == context]

    @property
    def contexts(self) -> list[str]:
        """Where else it was looked at."""
        return list(dict.fromkeys(each.context for each in self.others if each.context))


@dataclass(frozen=True)
class Claim:
    """A registered claim: its test returns findings, the headline first.

    It takes runs, or, if the claim ``compares``, the comparisons that an experiment declares.
    """

    id: str
    statement: str
    note: str
    test: Callable[[Sequence[Any]], list[Finding]]
    compares: bool = False


CLAIMS: dict[str, Claim] = {}
Test = Callable[[Sequence[Trace]], list[Finding]]
ContrastTest = Callable[[Sequence[Comparison]], list[Finding]]


def claim(id: str, statement: str, note: str = "") -> Callable[[Test], Test]:
    """Register a function as the test of a claim.

    Args:
        id: Such as ``C1``; a second registration is an error.
        statement: The claim in a sentence.
        note: What to keep in mind when reading the verdict.
    """

    def register(test: Test) -> Test:
        if id in CLAIMS:
            raise ValueError(f"claim {id} is registered already")
        CLAIMS[id] = Claim(id, statement, note, test)
        return test

    return register


def claim_on_contrasts(
    id: str, statement: str, note: str = ""
) -> Callable[[ContrastTest], ContrastTest]:
    """Register a function of comparisons as the test of a claim; arguments as of `claim`."""

    def register(test: ContrastTest) -> ContrastTest:
        if id in CLAIMS:
            raise ValueError(f"claim {id} is registered already")
        CLAIMS[id] = Claim(id, statement, note, test, compares=True)
        return test

    return register


def evaluate_claims(
    metrics: pd.DataFrame,
    claims: Sequence[str],
    arm: str | None = None,
    experiment: Experiment | None = None,
) -> list[ClaimReport]:
    """Test claims on stored runs.

    Args:
        metrics: Tidy frame ``arm, seed, step, split, measure, value``.
        claims: Ids, in the order wanted.
        arm: Look at this arm alone.
        experiment: Its contrasts, for claims that compare arms.

    Returns:
        A report for each claim; one about the course of one arm is undecided when there are
        several.

    Raises:
        ValueError: For a claim that is not registered, an arm without rows, or missing columns.

    Cost: about half a second a seed and claim, for a hundred measuring points.
    """
    unknown = [each for each in claims if each not in CLAIMS]
    if unknown:
        known = ", ".join(CLAIMS)
        raise ValueError(f"no test for {', '.join(unknown)}; there are tests for {known}")
    runs = traces(metrics, arm)
    return [_report(CLAIMS[each], runs, experiment) for each in claims]


def _report(own: Claim, runs: Sequence[Trace], experiment: Experiment | None) -> ClaimReport:
    if not own.compares:
        try:
            return _made(own, own.test(runs))
        except SeveralArmsError as error:
            return _made(own, [undecided(own.id, "", "", str(error))])
    declared = comparisons(experiment, runs, own.id) if experiment is not None else []
    made = [each for each in declared if each.comparable or each.diverged]
    reason = "No seed has come to the end of the phase in both arms."
    missing = [undecided(own.id, each.name, "", reason) for each in declared if each not in made]
    if not declared:
        missing = [undecided(own.id, "", "", "The experiment compares no arms for it.")]
    found = [*(own.test(made) if made else []), *missing]
    reason = "No contrast has the role that this claim asks for; see its test."
    return _made(own, found or [undecided(own.id, "", "", reason)])


def _made(own: Claim, findings: Sequence[Finding]) -> ClaimReport:
    headline, *others = findings
    return ClaimReport(own.id, own.statement, headline, tuple(others), own.note, own.compares)


class SeveralArmsError(ValueError):
    """A claim about the course of one arm was given the runs of several."""


def one_arm(runs: Sequence[Trace]) -> None:
    """Refuse several arms: a seed in each of them would count as several seeds.

    Raises:
        SeveralArmsError: If there is more than one; `evaluate_claims` makes it a finding.
    """
    arms = sorted({run.arm for run in runs})
    if len(arms) > 1:
        raise SeveralArmsError(
            f"It is about one arm, but there are {', '.join(arms)}; look at one at a time."
        )


def undecided(id: str, basis: str, unit: str, reason: str, context: str = "") -> Finding:
    """A finding for what could not be tested at all."""
    return Finding(id, basis, "undecided", math.nan, UNKNOWN, unit, 0, (), reason, context)


def by_seed(values: Mapping[int, float]) -> tuple[tuple[int, float], ...]:
    """Effects by seed, finite ones alone, in the order of seeds."""
    return tuple((seed, values[seed]) for seed in sorted(values) if math.isfinite(values[seed]))


def usable(runs: Sequence[Trace]) -> tuple[list[Trace], str]:
    """Runs that memorised first and generalised later, and a clause on the others."""
    kept = [run for run in runs if not run.unusable]
    return kept, excluded({run.seed: run.unusable for run in runs if run.unusable})


def excluded(reasons: Mapping[int, str]) -> str:
    """`` Left out: seed 3 (never generalised).``; empty without any."""
    if not reasons:
        return ""
    named = ", ".join(f"seed {seed} ({why})" for seed, why in sorted(reasons.items()))
    return f" Left out: {named}."


def between(interval: Interval) -> str:
    """`` (95 % interval 0.1 to 0.3)``; says so when there is none."""
    low, high = interval
    if math.isnan(low) or math.isnan(high):
        return " (no interval: too few seeds, or a few that all agree)"
    return f" (95 % interval {low:.3g} to {high:.3g})"
