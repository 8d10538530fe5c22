"""The answer of a page, in sentences that need no glossary, and how to read its figures."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from grokscope.analysis.claims import ClaimReport
from grokscope.analysis.level import LAST_PART, LEAST_LOOKS, NEAR
from grokscope.analysis.milestones import GENERALISED, MEMORISED
from grokscope.analysis.run import Arm
from grokscope.report import words
from grokscope.report.arms import (
    MOST_LINES,
    alike,
    blocks,
    reference_of,
    too_many,
    when,
    why_no_level,
)
from grokscope.report.contents import Study
from grokscope.report.overlays import reached
from grokscope.report.panels import WINDOW
from grokscope.report.tables import Compared

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_ARMS = 6  # named one by one in the answer
SIGNS = {1: "higher", -1: "lower"}
MOST_ENDED = 6  # runs that ended early, named one by one
REST = " All else that has an interval lies within the scatter of the seeds."
NOT_JUDGED = "Not judged: "  # how the reason of a claim begins that could not be put to the test
WHY = {
    "not tested": "These runs do not put it to the test",
    "underpowered": "More seeds or held-out examples would be needed to tell",
    "ambiguous": "These runs speak neither clearly for it nor clearly against it",
}


@dataclass(frozen=True)
class Sentence:
    """A sentence of the answer."""

    text: str  # in words
    verdict: str = ""  # on a claim; empty where there is none
    aside: str = ""  # what stands behind it in small print


def answer(study: Study, rows: Sequence[Sequence[Compared]]) -> list[Sentence]:
    """What was found: the claims in words or, without any, what sets the arms apart."""
    if study.smoke_test:
        return []  # the page says so at its top
    if not rows:
        return [Sentence("Nothing has been measured yet.")]
    if study.claims:
        return [_on_claim(report) for report in study.claims]
    arms = [row[0].arm for row in rows]
    return [Sentence(text) for text in (_differences(rows) if len(arms) > 1 else _course(arms[0]))]


def is_judged(report: ClaimReport) -> bool:
    """Whether a claim could be put to the test: it was found, and its test did not fail."""
    return not report.headline.reason.startswith(NOT_JUDGED)


def _on_claim(report: ClaimReport) -> Sentence:
    finding = report.headline
    if not is_judged(report):
        why = finding.reason.removeprefix(NOT_JUDGED)
        lost = "there is no file" in why or "ModuleNotFoundError" in why
        hint = " Run the report from the folder that holds its code." if lost else ""
        return Sentence(f"The claim {report.title} was not judged: {why}{hint}")
    seeds = f", {words.numeral(finding.seeds, 'seed')}" if finding.seeds else ""
    parts = [f"claim {report.claim}{seeds}"]
    if finding.verdict == "undecided" and finding.why in WHY:
        parts.append(WHY[finding.why])
    # What rests on no seed, not measured or not of this run, is not another basis.
    verdicts = Counter(other.verdict for other in report.findings()[1:] if other.seeds)
    where, what = ("in", "comparison") if report.compares else ("by", "measure")
    differ = [
        f"{where} {words.numeral(amount, f'other {what}')} it is {verdict}"
        for verdict, amount in verdicts.items()
        if verdict != finding.verdict
    ]
    parts += [words.listed(differ)] if differ else []
    aside = ". ".join(words.capital(part) for part in parts)
    return Sentence(report.statement, finding.verdict, f"{aside}.")


def _differences(rows: Sequence[Sequence[Compared]]) -> Iterator[str]:
    """What sets the arms apart from the reference: intervals that exclude zero."""
    reference = reference_of([row[0].arm for row in rows])
    others = [row for row in rows if row[0].arm is not reference]
    if all(len(row[0].arm.runs) < 2 for row in rows):
        yield (
            "With one seed there are no intervals, so nothing can be said about what sets the arms "
            "apart; the table shows where each ended."
        )
        return
    if len(others) > MOST_ARMS:
        known = [row for row in others if any(cell.known for cell in row)]
        if known:
            yield _counted(known, words.quoted(reference.name))
        others = [row for row in others if row not in known]
    yield from (_against(row, reference) for row in others)


def _against(row: Sequence[Compared], reference: Arm) -> str:
    """What sets an arm apart from the reference, or why nothing can be said."""
    arm, (measure, split) = row[0].arm, (row[0].measure, row[0].split)
    name, other = words.quoted(arm.name), words.quoted(reference.name)
    if not any(cell.effect for cell in row):
        reasons = (why_no_level(side, measure, split, arm.phases[-1]) for side in (arm, reference))
        why = next(filter(None, reasons), "no seed has a level in both")
        return f"Nothing is compared between {other} and {name}: {why}."
    if not any(cell.known for cell in row):
        return f"What sets {name} apart from {other} cannot be told from so few seeds."
    found = [_in_words(cell) for cell in row if cell.sign]
    if not found:
        what = "nothing" + " with an interval" * (not all(cell.known for cell in row))
        return f"Between {other} and {name} {what} differs by more than the scatter of the seeds."
    text = f"Compared with {other}, {name} differs at the end: {words.listed(found)}."
    return text + REST * any(cell.known and not cell.sign for cell in row)


def _in_words(cell: Compared) -> str:
    name = words.in_plain(cell.measure, cell.split)
    return f"the {name} is {SIGNS[cell.sign]} ({cell.text}, {cell.effect})"


def _counted(rows: Sequence[Sequence[Compared]], reference: str) -> str:
    """Measure by measure, in how many arms it is higher or lower than in the reference."""
    parts = []
    for cells in zip(*rows, strict=True):
        signs = Counter(cell.sign for cell in cells)
        directions = [f"{name} in {signs[sign]}" for sign, name in SIGNS.items() if signs[sign]]
        if directions:
            name = words.in_plain(cells[0].measure, cells[0].split)
            parts.append(f"{name} is {words.listed(directions)}")
    found = "; ".join(parts) or "none differs"
    return f"Compared with {reference}, of {len(rows)} arms: {found}.{REST}"


def _course(arm: Arm) -> Iterator[str]:
    """Where the runs of a single arm ended, and whether they generalised late."""
    seeds = words.count(len(arm.runs), "seed")
    known = [
        f"{name} accuracy {words.share(level)}"
        for name, split in (("training", "train"), ("held-out", "validation"))
        if not math.isnan(level := arm.level("accuracy", split))
    ]
    if known:
        yield f"At the end: {words.listed(known)} (median of {seeds})."
    else:
        yield "The runs have too few looks at their end to say where they stand."
    steps = reached(arm, "generalised")
    if steps:
        yield (
            f"{len(steps)} of {seeds} generalised (held-out accuracy {GENERALISED} for good), at "
            f"step {words.steps_range(steps.values())}."
        )
    elif arm.has("accuracy", "validation"):
        yield f"No seed reached a held-out accuracy of {GENERALISED} for good."


def reading_guide(study: Study, figures: Sequence[Figure]) -> list[str]:
    """How to read the figures: what holds for all of them, said once."""
    arms = study.measured
    if not arms or not figures:
        return []
    artists = [
        artist
        for figure in figures
        for axes in figure.axes
        for artist in (*axes.patches, *axes.lines)
    ]
    labels = {str(artist.get_label()).partition("/")[0] for artist in artists}
    several = any(len(arm.runs) > 1 for arm in arms)
    thin = (
        "Thin lines are single seeds, thick lines their"
        if several
        else "The thin line is the measurement, the thick one its"
    )
    reference = words.quoted(reference_of(arms).name)
    guide = [f"{thin} running median over {WINDOW} looks of one phase."]
    if "memorised" in labels:
        guide.append(_spans(study))
    if "end of a phase" in labels:
        guide.append("Dotted vertical lines mark where a phase ends.")
    guide += _shared(arms)
    guide += _ended(arms)
    if too_many(arms):
        guide.append(
            f"{len(arms)} arms are more than lines can be told apart: each is one line, the median "
            f"of its seeds, coloured by its place in the table of arms; {reference} is black."
        )
    elif len(blocks(arms)) > 1:
        guide.append(
            f"A panel shows {MOST_LINES} arms at most, so figures of arms have {len(blocks(arms))} "
            f"groups of panels on the same axes, with {reference} in each."
        )
    last = {0.2: "fifth"}.get(LAST_PART, f"{words.number(100 * LAST_PART)} %")
    guide.append(
        f"A level at the end is the median of the looks in the last {last} of a phase, or of the "
        f"plateau between memorising and generalising; when memorised, of the {NEAR} looks around "
        f"that step; fewer than {LEAST_LOOKS} looks have none. Over seeds, tables give the median. "
        "Levels at the end that a figure does not list are in the table of arms."
    )
    return guide


def _spans(study: Study) -> str:
    text = (
        "Shaded, in figures over steps: from memorisation (training accuracy "
        f"{MEMORISED} for good) until held-out accuracy begins to rise"
    )
    if any(reached(column.arm, "generalised") for column in study.columns()):
        text += f", and from where it has generalised ({GENERALISED} for good) on"
    return (
        f"{text}. Spans are medians over the seeds that came there; ticks at the upper edge are "
        "seeds. Step 0 and the first few steps are not drawn."
    )


def _shared(arms: Sequence[Arm]) -> list[str]:
    """Which arms are drawn as stripes; a sentence may hold for several groups of panels."""
    pairs = [] if too_many(arms) else [pair for group in blocks(arms) for pair in alike(group)]
    sentences = [
        f"Striped: {words.listed([words.quoted(arm.name) for arm in group])}, which are one run "
        f"until {when(group[0], step)}."
        for step, group in pairs
    ]
    return list(dict.fromkeys(sentences))


def _ended(arms: Sequence[Arm]) -> Iterator[str]:
    ended = [
        f"{words.quoted(arm.name)}, seed {seed}, at step {step:,.0f}"
        for arm in arms
        for seed, step in arm.ended_early.items()
    ]
    if len(ended) > MOST_ENDED:
        runs = sum(len(arm.runs) for arm in arms)
        yield f"{len(ended)} of {words.count(runs, 'run')} did not reach their last step."
    elif ended:
        yield f"Did not reach their last step: {'; '.join(ended)}."
