"""What a check is: a function named by a sentence, which finds one number that has a limit."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.gpu.session import Session

NEEDS_GPU = "needs a GPU"


@dataclass(frozen=True)
class Found:
    """What a check found.

    Attributes:
        measured: The number; the check passes if it is at most ``limit``.
        limit: What is allowed.
        unit: What the number counts.
        details: The number by case, or what else a reader needs.
    """

    measured: float
    limit: float
    unit: str
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        return self.measured <= self.limit  # false for NaN


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        function: What finds the number.
        needs_gpu: Whether it says nothing on a CPU.
    """

    function: Callable[[Session], Found]
    needs_gpu: bool

    @property
    def name(self) -> str:
        """The sentence that holds if it passes."""
        return self.function.__name__.replace("_", " ")

    @property
    def meaning(self) -> str:
        """What it would mean if it failed."""
        return " ".join((inspect.getdoc(self.function) or "").split())

    def __call__(self, session: Session) -> dict[str, Any]:
        """Make it: an entry of ``checks.json``."""
        if self.needs_gpu and not session.on_gpu:
            entry: dict[str, Any] = {"status": "skipped", "reason": NEEDS_GPU}
        else:
            found = self.function(session)
            status = "passed" if found.passed else "failed"
            entry = {"status": status, "reason": "" if found.passed else self.meaning}
            entry |= asdict(found)
        return entry | {"meaning": self.meaning}


def check(*, needs_gpu: bool = False) -> Callable[[Callable[[Session], Found]], Check]:
    """Make a check of a function whose docstring says what a failure would mean."""
    return lambda function: Check(function, needs_gpu)


def count(names: dict[str, list[str]], unit: str = "tensors that differ") -> Found:
    """Found: how many things are wrong, by case; none may be."""
    wrong = {case: found for case, found in names.items() if found}
    return Found(sum(map(len, wrong.values())), 0, unit, wrong)


def worst(by_case: dict[str, float], limit: float, unit: str) -> Found:
    """Found: the largest of the numbers of several cases."""
    return Found(max(by_case.values()), limit, unit, by_case)
