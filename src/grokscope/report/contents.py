"""What a page is made of: a `Study`, which page and figures read and never change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from grokscope.analysis import onset_table, partial_correlations
from grokscope.analysis.claims import ClaimReport
from grokscope.analysis.run import Arm, Results
from grokscope.report.words import count

if TYPE_CHECKING:
    import pandas as pd


class MissingMeasureError(LookupError):
    """What a figure needs was not measured; the message says what, for the reader."""


THIS_RUN = "This run"  # above its column, where a second run is shown alongside


@dataclass(frozen=True)
class Counterpart:
    """A second run of the experiment, drawn alongside."""

    title: str  # what stands above its panels
    results: Results  # its runs


@dataclass(frozen=True)
class Column:
    """An arm as a column of a figure."""

    title: str  # in bold above it
    subtitle: str  # its seeds and steps
    arm: Arm  # what it shows
    beside: bool = False  # whether it is the counterpart's; the arms of one run share their axes


@dataclass(frozen=True)
class Study:
    """An experiment's results, ready to be shown; the same study gives the same page.

    Attributes:
        results: The runs, by arm.
        name: The experiment's name, as ``grokscope run`` takes it.
        title: Headline of the page.
        question: What was asked, in a sentence.
        claims: What `evaluate_claims` found.
        counterpart: A second run to show alongside.
        settings: The experiment's YAML as nested dicts.
        environment: Versions, device and so on; may be nested.
        paper: Rows of (what, the paper's value, the value here).
        cites_paper: Whether the experiment is the paper's.
        figures: Names of the figures to draw, the main one first.
        notes: Warnings and remarks, a sentence each.
        command: How to run this again.
        smoke_test: Whether the preset only shows that everything runs; no verdicts then.
        date: Printed as it stands; nothing is printed when empty.
    """

    results: Results
    name: str = ""
    title: str = ""
    question: str = ""
    claims: Sequence[ClaimReport] = ()
    counterpart: Counterpart | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    paper: Sequence[tuple[str, Any, Any]] = ()
    cites_paper: bool = False
    figures: Sequence[str] = ()
    notes: Sequence[str] = ()
    command: str = ""
    smoke_test: bool = False
    date: str = ""

    @property
    def measured(self) -> list[Arm]:
        """The arms of which something was measured after their first step; may be empty."""
        return [arm for arm in self.results.arms.values() if arm.last_step > 0]

    @property
    def arms(self) -> list[Arm]:
        """The arms to draw, in the order of the experiment.

        Raises:
            MissingMeasureError: If nothing was measured yet.
        """
        if not self.measured:
            raise MissingMeasureError("nothing has been measured yet")
        return self.measured

    def columns(self) -> list[Column]:
        """The arms as columns of a figure, those of the counterpart last.

        Raises:
            MissingMeasureError: If nothing was measured yet.
        """
        columns = [Column(arm.name, _extent(arm), arm) for arm in self.arms]
        if self.counterpart is None:
            return columns
        if len(columns) == 1:
            columns = [Column(THIS_RUN, columns[0].subtitle, columns[0].arm)]
        others = [arm for arm in self.counterpart.results.arms.values() if arm.last_step > 0]
        title = self.counterpart.title
        for arm in others:
            name = title if len(others) == 1 else f"{title}: {arm.name}"
            columns.append(Column(name, _extent(arm), arm, beside=True))
        return columns

    @cached_property
    def onsets(self) -> pd.DataFrame:
        """Onsets with their intervals, which are bootstraps: computed for who draws them."""
        return onset_table(self.results)

    @cached_property
    def correlations(self) -> pd.DataFrame:
        """Correlations over training time, plain and with the loss held fixed."""
        return partial_correlations(self.results)


def _extent(arm: Arm) -> str:
    return f"{count(len(arm.runs), 'seed')}, {arm.last_step:,.0f} steps"
