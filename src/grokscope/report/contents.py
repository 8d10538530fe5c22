"""What a report is made of: a `Study`, plain data that page and figures read and never change.

A figure is a `Drawn`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from grokscope.analysis.claims import ClaimReport

ONSET_COLUMNS = ("arm", "measure", "split", "seed", "step", "low", "high")


def no_onsets() -> pd.DataFrame:
    """An empty frame with the columns of `Study.onsets`."""
    return pd.DataFrame(columns=list(ONSET_COLUMNS))


@dataclass(frozen=True)
class Counterpart:
    """The same experiment in another setting, drawn beside the study's own.

    Attributes:
        title: What stands above its panels, such as "the paper's setting".
        metrics: Tidy frame as in `Study`.
        milestones: As in `Study`; may be empty.
    """

    title: str
    metrics: pd.DataFrame
    milestones: pd.DataFrame = field(default_factory=pd.DataFrame)


@dataclass(frozen=True)
class Study:
    """An experiment's results, ready to be shown. The same study gives the same bytes.

    Attributes:
        name: The experiment's name, as ``grokscope run`` takes it.
        title: Headline of the report.
        question: What was asked, in a sentence.
        metrics: Tidy frame ``arm, seed, step, epoch, split, measure, value``.
        claims: What `grokscope.analysis.claims.evaluate_claims` found.
        milestones: A row for each arm and seed: ``arm, seed, memorised, onset, generalised`` in
            steps, NaN where not reached; further columns are shown in the table alone.
        correlations: ``measure, with, given, window, rho, low, high``; an empty ``given`` is the
            plain correlation.
        onsets: A row for each onset: ``arm, measure, split, seed, step, low, high``; NaN steps
            were not found. ``measure`` is a measure's name, ``memorised`` or ``generalisation``.
        settings: The experiment's YAML as nested dicts.
        environment: Versions, device and so on; may be nested.
        paper: Rows of (what, the paper's value, our value).
        figures: Names of the figures to draw, in `grokscope.report.figures.FIGURES`; the first is
            the main one.
        notes: Warnings and remarks, a sentence each.
        counterpart: The paper's own setting, where it has been run.
        command: How to run this again; derived from name, preset and seeds when empty.
        date: Printed as given; nothing is printed when empty.
    """

    name: str
    title: str
    question: str
    metrics: pd.DataFrame
    claims: Sequence[ClaimReport] = ()
    milestones: pd.DataFrame = field(default_factory=pd.DataFrame)
    correlations: pd.DataFrame = field(default_factory=pd.DataFrame)
    onsets: pd.DataFrame = field(default_factory=no_onsets)
    settings: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    paper: Sequence[tuple[str, Any, Any]] = ()
    figures: Sequence[str] = ()
    notes: Sequence[str] = ()
    counterpart: Counterpart | None = None
    command: str = ""
    date: str = ""


@dataclass(frozen=True)
class Drawn:
    """A figure with its headline, what is seen (its text alternative, too) and how to read it."""

    figure: Figure
    title: str
    caption: str
    reading: str = ""
