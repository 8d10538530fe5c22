"""Tables of the page: of arms, of milestones, of the paper's values; figures bring their own.

A cell is text; what follows a line break in it is set small, below the rest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from grokscope.analysis.milestones import FELL_AGAIN, GENERALISED, MEMORISED
from grokscope.analysis.run import MILESTONES, Arm, At
from grokscope.analysis.statistics import Effect
from grokscope.report import words
from grokscope.report.arms import reference_of, when
from grokscope.report.overlays import reached

if TYPE_CHECKING:
    from grokscope.report.contents import Column

Columns = Sequence[tuple[str, str, str]]  # (heading, measure, split)
MOST_ROWS = 12  # runs that the table of milestones names one by one


@dataclass(frozen=True)
class Table:
    """A table on the page.

    Attributes:
        name: Of the element on the page, without "table-".
        title: Above it.
        headings: Of the columns.
        rows: Cells as text; the first names the row.
        note: Below it.
    """

    name: str
    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = field(default="", kw_only=True)


@dataclass(frozen=True)
class Compared:
    """An arm's level of a measure beside the reference's."""

    measure: str
    split: str
    arm: Arm
    paired: Effect | None  # seed by seed against the reference; None for the reference itself

    @property
    def text(self) -> str:
        """The level as text."""
        return _level(self.arm, self.measure, self.split)

    @property
    def known(self) -> bool:
        """Whether the paired effect has an interval, or several seeds agree that it is none."""
        if self.paired is None:
            return False
        effects = [effect for _, effect in self.paired.per_seed]
        same = len(effects) > 1 and set(effects) == {self.same}
        return same or not math.isnan(sum(self.paired.interval))

    @property
    def same(self) -> float:
        """The effect of no effect: one of a ratio, zero of a difference."""
        return 1.0 if words.by_ratio(self.measure) else 0.0

    @property
    def sign(self) -> int:
        """1 or -1 where the whole interval is above or below no effect; else 0."""
        low, high = self.paired.interval if self.paired else (self.same, self.same)
        return int(low > self.same) - int(high < self.same)

    @property
    def effect(self) -> str:
        """The paired difference or ratio as text; empty without one."""
        if self.paired is None or math.isnan(self.paired.effect):
            return ""
        form = words.times if words.by_ratio(self.measure) else words.signed
        return form(self.paired.effect)

    @property
    def change(self) -> str:
        """The same with its interval."""
        if self.paired is None or not self.effect:
            return ""
        form = words.number if words.by_ratio(self.measure) else words.signed
        return words.with_interval(self.effect, self.paired.interval, form)


def extra_measures(arms: Sequence[Arm]) -> list[tuple[str, str]]:
    """A user's own measures, (measure, split), in the order in which they were measured."""
    keys = (key for arm in arms for run in arm.runs.values() for key in run.curves)
    return [key for key in dict.fromkeys(keys) if words.is_extra(key[0])]


def compared(arms: Sequence[Arm]) -> list[list[Compared]]:
    """For each arm its final levels beside those of the reference, a user's own measures last."""
    reference = reference_of(arms)
    known = [key for key in words.PLAIN if any(arm.has(*key) for arm in arms)]
    measures = known + extra_measures(arms)
    rows = []
    for arm in arms:
        row = []
        for measure, split in measures:
            compare = arm.ratio if words.by_ratio(measure) else arm.difference
            paired = None if arm is reference else compare(reference, measure, split)
            row.append(Compared(measure, split, arm, paired))
        rows.append(row)
    return rows


def arms_table(rows: Sequence[Sequence[Compared]]) -> Table:
    """The final level of each measure in each arm, and what differs from the reference."""
    arms = [row[0].arm for row in rows]
    headings = [words.capital(words.name_of(cell.measure, cell.split)) for cell in rows[0]]
    note = "Medians over seeds of each run's level at the end."
    if len(arms) > 1:
        note += (
            f" In small print what sets the arm apart from {words.quoted(reference_of(arms).name)},"
            " seed by seed, with its 95 % interval: a difference, or a ratio (×) of quantities "
            "that span orders of magnitude."
        )
    body = [
        (arm.name, *(stacked(cell.text, cell.change) for cell in row), f"{_seeds(row)}")
        for arm, row in zip(arms, rows, strict=True)
    ]
    title = "Arms at the end" if len(arms) > 1 else "At the end"
    return Table("arms", title, ("Arm", *headings, "Seeds"), body, note=note)


def _seeds(row: Sequence[Compared]) -> int:
    """How many seeds have a level."""
    levels = (cell.arm.levels(cell.measure, cell.split).values() for cell in row)
    return max(sum(level == level for level in found) for found in levels)


def levels_table(
    name: str, title: str, rows: Sequence[Arm] | Sequence[tuple[Arm, At]], columns: Columns
) -> Table:
    """Levels of some measures arm by arm, at the end or where a row says.

    What was measured in no arm is left out.
    """
    places = [row if isinstance(row, tuple) else (row, -1) for row in rows]
    known = [column for column in columns if any(arm.has(*column[1:]) for arm, _ in places)]
    body = [
        (arm.name, *(_level(arm, measure, split, at=at) for _, measure, split in known))
        for arm, at in places
    ]
    return Table(name, title, ("Arm", *(heading for heading, *_ in known)), body)


def phases_tables(name: str, arms: Sequence[Arm], columns: Columns) -> list[Table]:
    """Levels where a phase of some arms ends and another follows, beside the reference there."""
    reference = reference_of(arms)
    ends: dict[float, dict[Arm, At]] = {}
    for arm in arms:
        for span in arm.phases[:-1]:
            ends.setdefault(span.stop, {})[arm] = span
    tables = []
    for stop, spans in sorted(ends.items()):
        if reference not in spans:
            spans = {reference: next(iter(spans.values())), **spans}
        title = f"At {when(reference, stop)}, where a phase ends"
        table = levels_table(f"{name}-{stop:.0f}", title, list(spans.items()), columns)
        if any(cell != words.DASH for row in table.rows for cell in row[1:]):
            tables.append(table)
    return tables


def course_tables(
    name: str, columns: Sequence[Column], measures: Sequence[tuple[str, str]]
) -> list[Table]:
    """Levels in the course of training, a table for each column of a figure."""
    tables = []
    for place, column in enumerate(columns, start=1):
        arm = column.arm
        at: dict[str, At | None] = {"At the start": None}
        if reached(arm, "memorised"):
            at["When memorised"] = "memorised"
            if reached(arm, "onset"):
                at["Before generalisation begins"] = "before onset"
        at["At the end"] = -1
        rows = [
            (words.capital(words.name_of(*key)), *(_course(arm, key, look) for look in at.values()))
            for key in measures
            if arm.has(*key)
        ]
        title, suffix = (column.title, f"-{place}") if len(columns) > 1 else ("In numbers", "")
        small = any("\n" in cell for row in rows for cell in row)
        note = "In small print: times the level when memorised (median over seeds of the ratio)."
        if rows:
            tables.append(Table(f"{name}{suffix}", title, ("", *at), rows, note=note * small))
    return tables


def _course(arm: Arm, key: tuple[str, str], at: At | None) -> str:
    """An arm's level, and what it is relative to memorisation where that makes sense."""
    if at is None:
        starts = [run.curve(*key).values[0] for run in arm.runs.values() if run.has(*key)]
        return words.number(float(np.median(starts)))
    text = words.number(arm.level(*key, at))
    if at == "memorised" or not words.by_ratio(key[0]):
        return text
    units, levels = arm.levels(*key, "memorised"), arm.levels(*key, at)
    ratios = [levels[seed] / units[seed] for seed in units if units[seed] > 0]
    known = [ratio for ratio in ratios if ratio == ratio]
    return stacked(text, words.times(float(np.median(known)))) if known else text


def milestones_table(arms: Sequence[Arm]) -> Table | None:
    """When runs memorised and generalised: seed by seed, or arm by arm where there are many runs.

    None where no run came to a milestone that several arms would be compared by.
    """
    if len(arms) > 1 and not any(reached(arm, name) for arm in arms for name in MILESTONES[1:]):
        return None
    headings = ["Memorised", "Generalisation begins", "Generalised", "Stayed up"]
    note = (
        f"In optimiser steps. Memorised: training accuracy reaches {MEMORISED} for good. "
        "Generalisation begins: held-out accuracy leaves its plateau. Generalised: it reaches "
        f"{GENERALISED} for good. Stayed up: the share of later looks at {FELL_AGAIN} or more."
    )
    if len(arms) > 1 or len(arms[0].runs) > MOST_ROWS:
        rows = [(arm.name, *_summary(arm, words.steps_range)) for arm in arms]
        return Table("milestones", "Milestones", ("Arm", *headings), rows, note=note)
    rows = []
    for seed, run in arms[0].runs.items():
        steps = [words.step(run.milestone(name).step) for name in MILESTONES]
        rows.append((f"seed {seed}", *steps, _percent(1 - run.fell_again)))
    if len(rows) > 1:
        rows.append(("median", *_summary(arms[0], lambda steps: words.step(_median(steps)))))
    return Table("milestones", "Milestones", ("", *headings), rows, note=note)


def _summary(arm: Arm, form: Callable[[Sequence[float]], str]) -> Iterator[str]:
    """Medians of an arm's milestones, and how many seeds came there if not all did."""
    for name in MILESTONES:
        steps = list(reached(arm, name).values())
        some = 0 < len(steps) < len(arm.runs)
        yield stacked(form(steps), f"{len(steps)} of {len(arm.runs)} seeds" if some else "")
    stayed = [1 - run.fell_again for run in arm.runs.values() if run.fell_again == run.fell_again]
    yield _percent(_median(stayed))


def _median(values: Sequence[float]) -> float:
    return float(np.median(values)) if len(values) else math.nan


def _percent(share: float) -> str:
    return words.DASH if math.isnan(share) else f"{share:.0%}"


def _level(arm: Arm, measure: str, split: str, *, at: At = -1) -> str:
    form = words.share if measure.endswith("accuracy") else words.number
    return form(arm.level(measure, split, at))


def stacked(above: str, below: str) -> str:
    """A cell with small print below it, if there is any."""
    return f"{above}\n{below}" if below else above
