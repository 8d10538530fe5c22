"""What a claim is, and what its test returns.

A claim is a function of stored runs, or of the comparisons that an experiment declares, under the
decorator `claim`. Ours are the modules beside this one; `grokscope.analysis.claims.evaluate` finds
them, and a user's in ``file.py:name``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from grokscope.analysis.statistics import UNKNOWN, Interval

Verdict = Literal["supported", "contradicted", "undecided"]
Why = Literal["", "not tested", "underpowered", "ambiguous"]
Test = Callable[[Sequence[Any]], Iterable["Finding"]]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The answer to a claim on one basis, that is, by one way of measuring.

    Attributes:
        claim: Such as ``C1``; filled in by the claim.
        basis: What was measured, such as ``relative_flatness``.
        verdict: By a rule fixed in advance.
        effect: The mean over seeds; NaN when there is none.
        interval: 95 % interval of the effect; NaN where seeds are too few for one, or a few agree.
        unit: Of the effect.
        seeds: How many runs the effect rests on.
        per_seed: (seed, effect).
        reason: What was found, with numbers, and which runs were left out and why.
        context: Where else it was looked at, such as "after memorisation"; empty for the claim's
            first question.
        why: Of an undecided finding, where the rule can tell: ``not tested`` (not measured, the
            intervention had no effect, the network does not fit, there was nothing to restore),
            ``underpowered`` (too few seeds for an interval) or ``ambiguous`` (runs contradict each
            other).
    """

    claim: str = ""
    basis: str
    verdict: Verdict
    effect: float = math.nan
    interval: Interval = UNKNOWN
    unit: str = ""
    seeds: int = 0
    per_seed: tuple[tuple[int, float], ...] = ()
    reason: str
    context: str = ""
    why: Why = ""

    def __post_init__(self) -> None:
        for name, value, words in (
            ("verdict", self.verdict, get_args(Verdict)), ("why", self.why, get_args(Why)),
        ):  # fmt: skip
            if value not in words:
                known = ", ".join(word or "empty" for word in words)
                raise ValueError(f"{name} must be one of {known}, got {value!r}")


@dataclass(frozen=True, kw_only=True)
class ClaimReport:
    """A claim with its findings.

    Attributes:
        claim: Such as ``C1``.
        title: The claim in a few words.
        statement: The claim in a sentence.
        headline: The finding that counts.
        others: The same question on other bases, and looked at otherwise.
        note: What to keep in mind when reading the verdict.
        compares: Whether a basis is a pair of arms and not a measure.
    """

    claim: str
    title: str = ""
    statement: str
    headline: Finding
    others: tuple[Finding, ...] = ()
    note: str = ""
    compares: bool = False

    def findings(self, context: str = "") -> list[Finding]:
        """Findings of one context, the headline first."""
        return [finding for finding in (self.headline, *self.others) if finding.context == context]

    @property
    def contexts(self) -> list[str]:
        """Where else it was looked at."""
        return list(dict.fromkeys(finding.context for finding in self.others if finding.context))


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A claim with its test; calling it calls the test.

    Attributes:
        id: Such as ``C1``.
        title: The claim in a few words.
        statement: The claim in a sentence that needs no glossary.
        note: What to keep in mind when reading the verdict.
        test: Takes `Trajectory` objects or, if the claim ``compares``, `Comparison` objects;
            returns findings, the headline first.
        compares: Whether the test takes comparisons of arms.
    """

    id: str
    title: str
    statement: str
    note: str
    test: Test
    compares: bool = False

    def __call__(self, runs: Sequence[Any]) -> list[Finding]:
        findings: list[Any] = list(self.test(runs))
        for finding in findings:
            if not isinstance(finding, Finding):
                kind = type(finding).__name__
                raise TypeError(f"claim {self.id} must return a list of Finding, not of {kind}")
        return findings

    def report(self, findings: Sequence[Finding]) -> ClaimReport:
        """These findings, the headline first, with the claim in words."""
        headline, *others = (replace(finding, claim=self.id) for finding in findings)
        return ClaimReport(
            claim=self.id,
            title=self.title,
            statement=self.statement,
            headline=headline,
            others=tuple(others),
            note=self.note,
            compares=self.compares,
        )


def claim(
    id: str, *, title: str = "", statement: str, note: str = "", compares: bool = False
) -> Callable[[Test], Claim]:
    """Make a function the test of a claim.

    Args:
        id: Such as ``C1``.
        title: The claim in a few words; by default the id.
        statement: The claim in a sentence that needs no glossary.
        note: What to keep in mind when reading the verdict.
        compares: The test takes the comparisons that an experiment declares for the claim
            (`grokscope.analysis.contrasts.Comparison`) instead of its runs
            (`grokscope.analysis.run.Trajectory`).

    Example:
        >>> @claim("mine", statement="Every run generalises.")
        ... def everything_generalises(runs):
        ...     count = sum(run.generalised.found for run in runs)
        ...     verdict = "supported" if count == len(runs) else "contradicted"
        ...     reason = f"{count} of {len(runs)} runs generalise."
        ...     return [Finding(basis="accuracy", verdict=verdict, reason=reason)]
        >>> everything_generalises.statement
        'Every run generalises.'
    """

    def make(test: Test) -> Claim:
        return Claim(
            id=id, title=title or id, statement=statement, note=note, test=test, compares=compares
        )

    return make
