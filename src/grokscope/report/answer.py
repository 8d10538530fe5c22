"""The answer of a page, in sentences that need no glossary, and how to read its figures."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from grokscope.analysis.claims import SMOKE_TEST, ClaimReport
from grokscope.analysis.level import LAST_PART, LEAST_LOOKS, NEAR
from grokscope.analysis.milestones import GENERALISED, MEMORISED
from grokscope.analysis.run import Arm
from grokscope.report import words
from grokscope.report.arms import MOST_LINES, alike, blocks, reference_of, too_many, when
from grokscope.report.contents import Study
from grokscope.report.curves import WINDOW
from grokscope.report.overlays import reached
from grokscope.report.tables import Compared

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_ARMS = 6  # named one by one in the answer
SIGNS = {1: "higher", -1: "lower"}
MOST_ENDED = 6  # runs that ended early, named one by one
WHY = {
    "not tested": "These runs do not put it to the test.",
    "underpowered": "More seeds or held-out examples would be needed to tell.",
    "ambiguous": "These runs speak neither clearly for it nor clearly against it.",
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
        return [Sentence(SMOKE_TEST)]
    if not rows:
        return [Sentence("Nothing has been measured yet.")]
    if study.claims:
        return [_on_claim(report) for report in study.claims]
    arms = [row[0].arm for row in rows]
    return [Sentence(text) for text in (_differences(rows) if len(arms) > 1 else _course(arms[0]))]


def _on_claim(report: ClaimReport) -> Sentence:
    finding = report.headline
    parts = [f"claim {report.claim}"]
    if finding.seeds:
        parts[0] += f", {words.numeral(finding.seeds, 'seed')}"
    if finding.verdict == "undecided" and finding.why in WHY:
        parts.append(WHY[finding.why].rstrip("."))
    other = _otherwise(report)
    aside = ". ".join(words.capital(part) for part in [*parts, *other])
    return Sentence(report.statement, finding.verdict, f"{aside}.")


def _otherwise(report: ClaimReport) -> list[str]:
    """In how many of the other comparisons, or by how many other measures, it is not the same.

    What rests on no seed, not measured or not of this run, is not another basis.
    """
    others = [finding for finding in report.findings()[1:] if finding.seeds]
    differ = [finding for finding in others if finding.verdict != report.headline.verdict]
    if not differ:
        return []
    where, what = ("in", "comparison") if report.compares else ("by", "measure")
    counts = Counter(finding.verdict for finding in differ)
    parts = [
        f"{where} {words.numeral(amount, f'other {what}')} it is {verdict}"
        for verdict, amount in counts.items()
    ]
    return [words.listed(parts)]


def _differences(rows: Sequence[Sequence[Compared]]) -> Iterator[str]:
    """What sets the arms apart from the reference: intervals that exclude zero."""
    arms = [row[0].arm for row in rows]
    reference = words.quoted(reference_of(arms).name)
    others = [row for row in rows if any(cell.paired is not None for cell in row)]
    if all(len(arm.runs) < 2 for arm in arms):
        yield (
            "With one seed there are no intervals, so nothing can be said about what sets the arms "
            "apart; the table shows where each ended."
        )
        return
    if len(others) > MOST_ARMS:
        yield _counted(others, reference)
        return
    for row in others:
        found = [_in_words(cell) for cell in row if cell.sign]
        name = words.quoted(row[0].arm.name)
        if found:
            yield (
                f"Compared with {reference}, {name} ends with {words.listed(found)}. All else lies "
                "within the scatter of the seeds."
            )
        else:
            yield (
                f"Between {reference} and {name} nothing differs by more than the scatter of the "
                "seeds."
            )


def _in_words(cell: Compared) -> str:
    name = words.in_plain(cell.measure, cell.split)
    return f"a {SIGNS[cell.sign]} {name} of {cell.text} ({cell.effect})"


def _counted(rows: Sequence[Sequence[Compared]], reference: str) -> str:
    """Measure by measure, in how many arms it is higher or lower than in the reference."""
    parts = []
    for cells in zip(*rows, strict=True):
        signs = Counter(cell.sign for cell in cells)
        directions = [f"{name} in {signs[sign]}" for sign, name in SIGNS.items() if signs[sign]]
        if directions:
            name = words.in_plain(cells[0].measure, cells[0].split)
            parts.append(f"{name} is {words.listed(directions)}")
    return (
        f"Compared with {reference}, of {len(rows)} arms: {'; '.join(parts) or 'none differs'}. "
        "All else lies within the scatter of the seeds."
    )


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
    labels = {
        str(artist.get_label()).partition("/")[0]
        for figure in figures
        for axes in figure.axes
        for artist in (*axes.patches, *axes.lines)
    }
    seeds = max(len(arm.runs) for arm in arms)
    thin = "Thin lines are single seeds, thick lines their"
    guide = [
        f"{thin if seeds > 1 else 'The thin line is the measurement, the thick one its'} running "
        f"median over {WINDOW} looks of one phase.",
        *(_spans(study) if "memorised" in labels else ()),
    ]
    if "end of a phase" in labels:
        guide.append("Dotted vertical lines mark where a phase ends.")
    guide += _shared(arms)
    guide += _ended(arms)
    if too_many(arms):
        guide.append(
            f"{len(arms)} arms are more than lines can be told apart: each is one line, the median "
            f"of its seeds, coloured by its place in the table of arms; {_reference(arms)} is "
            "black."
        )
    elif len(blocks(arms)) > 1:
        guide.append(
            f"A panel shows {MOST_LINES} arms at most, so figures of arms have {len(blocks(arms))} "
            f"groups of panels on the same axes, with {_reference(arms)} in each."
        )
    guide.append(
        f"A level at the end is the median of the looks in the last {_fraction(LAST_PART)} of a "
        f"phase, or of the plateau between memorising and generalising; when memorised, of the "
        f"{NEAR} looks around that step; fewer than {LEAST_LOOKS} looks have none. Over seeds, "
        "tables give the median. Levels at the end that a figure does not list are in the table "
        "of arms."
    )
    return guide


def _spans(study: Study) -> Iterator[str]:
    columns = [column.arm for column in study.columns()]
    text = (
        "Shaded, in figures over steps: from memorisation (training accuracy "
        f"{MEMORISED} for good) until held-out accuracy begins to rise"
    )
    if any(reached(arm, "generalised") for arm in columns):
        text += f", and from where it has generalised ({GENERALISED} for good) on"
    yield (
        f"{text}. Spans are medians over the seeds that came there; ticks at the upper edge are "
        "seeds. Step 0 and the first few steps are not drawn."
    )


def _shared(arms: Sequence[Arm]) -> Iterator[str]:
    if too_many(arms):
        return
    sentences: dict[str, None] = {}
    for group in blocks(arms):
        for step, alikes in alike(group):
            names = words.listed([words.quoted(arm.name) for arm in alikes])
            sentences[f"Striped: {names}, which are one run until {when(alikes[0], step)}."] = None
    yield from sentences


def _ended(arms: Sequence[Arm]) -> Iterator[str]:
    ended = [
        f"{words.quoted(arm.name)}, seed {seed}, at step {step:,.0f}"
        for arm in arms
        for seed, step in arm.ended_early.items()
    ]
    if len(ended) > MOST_ENDED:
        runs = sum(len(arm.runs) for arm in arms)
        yield f"{len(ended)} of {words.count(runs, 'run')} have not come to their last step."
    elif ended:
        yield f"Not come to their last step: {'; '.join(ended)}."


def _reference(arms: Sequence[Arm]) -> str:
    return words.quoted(reference_of(arms).name)


def _fraction(part: float) -> str:
    return {0.2: "fifth"}.get(part, f"{words.number(100 * part)} %")
