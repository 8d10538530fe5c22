"""Tables of the page: of arms, of milestones, of the paper's values; figures bring their own.

A cell is text; what follows a line break in it is set small, below the rest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from grokscope.analysis.level import Span
from grokscope.analysis.milestones import FELL_AGAIN, GENERALISED, MEMORISED
from grokscope.analysis.run import MILESTONES, Arm, At
from grokscope.analysis.statistics import Effect
from grokscope.report import words
from grokscope.report.arms import reference_of
from grokscope.report.overlays import reached

if TYPE_CHECKING:
    from grokscope.report.contents import Column

# Columns of the table of arms, where they were measured; a user's measures come behind them.
FINAL = (
    ("accuracy", "train"),
    ("accuracy", "validation"),
    ("loss", "train"),
    ("relative_flatness", "train"),
    ("relative_flatness_matched", "train"),
    ("ncc", "train"),
    ("logit_scale", "train"),
)
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
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = field(default="", kw_only=True)


@dataclass(frozen=True)
class Compared:
    """An arm's level of a measure beside the reference's."""

    measure: str  # what was measured
    split: str  # on which data
    arm: Arm  # whose level
    level: float  # the median over seeds, at the end
    paired: Effect | None  # seed by seed against the reference; None for the reference itself

    @property
    def text(self) -> str:
        """The level as text."""
        return _level(self.measure, self.level)

    @property
    def differs(self) -> bool:
        """Whether the interval of the difference excludes zero, or that of the ratio one."""
        if self.paired is None:
            return False
        low, high = self.paired.interval
        same = 1.0 if words.by_ratio(self.measure) else 0.0
        return low > same or high < same

    @property
    def change(self) -> str:
        """The paired difference or ratio with its interval, as text; empty without one."""
        if self.paired is None or math.isnan(self.paired.effect):
            return ""
        how = words.number if words.by_ratio(self.measure) else words.signed
        effect = (
            words.times(self.paired.effect)
            if words.by_ratio(self.measure)
            else words.signed(self.paired.effect)
        )
        between = words.interval(*self.paired.interval, how)
        return f"{effect} ({between})" if between else effect


def final_measures(arms: Sequence[Arm]) -> list[tuple[str, str]]:
    """What the table of arms shows: (measure, split), a user's own measures last."""
    known = [key for key in FINAL if any(arm.has(*key) for arm in arms)]
    return known + extra_measures(arms)


def extra_measures(arms: Sequence[Arm]) -> list[tuple[str, str]]:
    """A user's own measures, (measure, split), in the order in which they were measured."""
    found = dict.fromkeys(
        key
        for arm in arms
        for run in arm.runs.values()
        for key in run.curves
        if words.is_extra(key[0])
    )
    return list(found)


def compared(arms: Sequence[Arm]) -> list[list[Compared]]:
    """For each arm its final levels beside those of the reference."""
    reference, measures = reference_of(arms), final_measures(arms)
    return [
        [_compared(arm, reference, measure, split) for measure, split in measures] for arm in arms
    ]


def _compared(arm: Arm, reference: Arm, measure: str, split: str) -> Compared:
    compare = arm.ratio if words.by_ratio(measure) else arm.difference
    paired = None if arm is reference else compare(reference, measure, split)
    level = arm.level(measure, split)
    return Compared(measure, split, arm, level=level, paired=paired)


def arms_table(rows: Sequence[Sequence[Compared]]) -> Table:
    """The final level of each measure in each arm, and what differs from the reference."""
    arms = [row[0].arm for row in rows]
    reference = reference_of(arms)
    headings = [words.capital(words.name_of(cell.measure, cell.split)) for cell in rows[0]]
    note = "Medians over seeds of each run's level at the end."
    if len(arms) > 1:
        note += (
            f" In small print what sets the arm apart from {words.quoted(reference.name)}, seed by "
            "seed, with its 95 % interval: a difference, or a ratio (×) of quantities that span "
            "orders of magnitude."
        )
    body = [
        (
            arm.name,
            *(_stacked(cell.text, cell.change) for cell in row),
            f"{len(arm.runs)}",
        )
        for arm, row in zip(arms, rows, strict=True)
    ]
    title = "Arms at the end" if len(arms) > 1 else "At the end"
    return Table("arms", title, ("Arm", *headings, "Seeds"), tuple(body), note=note)


def levels_table(
    name: str, title: str, arms: Sequence[Arm], columns: Sequence[tuple[str, str, str]]
) -> Table:
    """Levels of some measures at the end, arm by arm."""
    known = [column for column in columns if any(arm.has(*column[1:]) for arm in arms)]
    rows = [
        (arm.name, *(_level(measure, arm.level(measure, split)) for _, measure, split in known))
        for arm in arms
    ]
    return Table(name, title, ("Arm", *(heading for heading, *_ in known)), tuple(rows))


def phases_tables(
    name: str, arms: Sequence[Arm], columns: Sequence[tuple[str, str, str]]
) -> list[Table]:
    """Levels where a phase of some arms ends and another follows, beside the reference there."""
    reference = reference_of(arms)
    ends: dict[float, list[tuple[Arm, Span]]] = {}
    for arm in arms:
        for span in arm.phases[:-1]:
            ends.setdefault(span.stop, []).append((arm, span))
    tables = []
    for stop, found in sorted(ends.items()):
        if reference not in [arm for arm, _ in found]:
            found.insert(0, (reference, found[0][1]))
        rows = [
            (arm.name, *(_level(measure, arm.level(measure, split, span))
                         for _, measure, split in columns))
            for arm, span in found
        ]  # fmt: skip
        pace = reference.steps_per_epoch
        where = (
            f"step {words.step(stop)}" if math.isnan(pace) else f"epoch {words.plain(stop / pace)}"
        )
        headings = ("Arm", *(heading for heading, *_ in columns))
        title = f"At {where}, where a phase ends"
        tables.append(Table(f"{name}-{stop:.0f}", title, headings, tuple(rows)))
    return tables


def course_tables(
    name: str, columns: Sequence[Column], measures: Sequence[tuple[str, str]]
) -> list[Table]:
    """Levels in the course of training, a table for each column of a figure."""
    tables = []
    for place, column in enumerate(columns):
        arm = column.arm
        at: dict[str, At | None] = {"At the start": None, "At the end": -1}
        if reached(arm, "memorised"):
            at = {"At the start": None, "When memorised": "memorised"}
            if reached(arm, "onset"):
                at["Before generalisation begins"] = "before onset"
            at["At the end"] = -1
        rows = [
            (
                words.capital(words.name_of(*key)),
                *(_course(arm, key, where) for where in at.values()),
            )
            for key in measures
            if arm.has(*key)
        ]
        if rows:
            title = column.title if len(columns) > 1 else "In numbers"
            suffix = f"-{place + 1}" if len(columns) > 1 else ""
            small = any("\n" in cell for row in rows for cell in row)
            note = "In small print: times the level when memorised." if small else ""
            tables.append(Table(f"{name}{suffix}", title, ("", *at), tuple(rows), note=note))
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
    return _stacked(text, words.times(float(np.median(known)))) if known else text


def milestones_table(arms: Sequence[Arm]) -> Table | None:
    """When runs memorised and generalised: seed by seed, or arm by arm where there are many runs.

    None where no run came to a milestone that several arms would be compared by.
    """
    later = [reached(arm, name) for arm in arms for name in MILESTONES[1:]]
    if len(arms) > 1 and not any(later):
        return None
    runs = sum(len(arm.runs) for arm in arms)
    headings = ("Memorised", "Generalisation begins", "Generalised", "Stayed up")
    note = (
        f"In optimiser steps. Memorised: training accuracy reaches {MEMORISED} for good. "
        "Generalisation begins: held-out accuracy leaves its plateau. Generalised: it reaches "
        f"{GENERALISED} for good. Stayed up: the share of later looks at {FELL_AGAIN} or more."
    )
    if len(arms) > 1 or runs > MOST_ROWS:
        rows = tuple((arm.name, *_summary(arm, words.steps_range)) for arm in arms)
        return Table("milestones", "Milestones", ("Arm", *headings), rows, note=note)
    (arm,) = arms
    body = [
        (
            f"seed {seed}",
            *(words.step(run.milestone(name).step) for name in MILESTONES),
            words.DASH if math.isnan(run.fell_again) else f"{1 - run.fell_again:.0%}",
        )
        for seed, run in arm.runs.items()
    ]
    if len(body) > 1:
        body.append(("median", *_summary(arm, lambda steps: words.step(_median(steps)))))
    return Table("milestones", "Milestones", ("", *headings), tuple(body), note=note)


def _summary(arm: Arm, form: Callable[[Sequence[float]], str]) -> Iterator[str]:
    """Medians of an arm's milestones, and how many seeds came there if not all did."""
    for name in MILESTONES:
        steps = list(reached(arm, name).values())
        some = 0 < len(steps) < len(arm.runs)
        yield _stacked(form(steps), f"{len(steps)} of {len(arm.runs)} seeds" if some else "")
    stayed = [1 - run.fell_again for run in arm.runs.values() if run.fell_again == run.fell_again]
    yield f"{_median(stayed):.0%}" if stayed else words.DASH


def _median(values: Sequence[float]) -> float:
    return float(np.median(values)) if len(values) else math.nan


def _level(measure: str, level: float) -> str:
    return words.share(level) if measure.endswith("accuracy") else words.number(level)


def _stacked(above: str, below: str) -> str:
    return f"{above}\n{below}" if below else above
