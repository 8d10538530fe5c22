"""Three values of flatness, arm by arm."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from grokscope.analysis.claims.rules import KAPPA_FACTOR
from grokscope.analysis.level import Span
from grokscope.analysis.run import Arm
from grokscope.report.arms import reference_of
from grokscope.report.canvas import Canvas, Drawn
from grokscope.report.contents import Study
from grokscope.report.overlays import Mark
from grokscope.report.panels import Panel, Series, single
from grokscope.report.tables import Table, levels_table
from grokscope.report.words import number, plain, quoted, times

AT_CEILING = 0.95  # share of the ceiling from which on the published value sits at it
VALUE, KAPPA = "published_penalty", "relative_flatness"


def flatness_by_arm(study: Study, canvas: Canvas) -> Drawn:
    """Exact kappa, its bound and the published value of every arm, defined alike in all phases."""
    arms = study.arms
    marks = tuple(
        Mark(arm.name, span, height, f"ceiling\n{plain(height)}")
        for arm in arms
        for span, height in ceilings(arm)
    )
    panels = (
        single(KAPPA, "train", "Exact κ, training, nats (low = flat)", "log"),
        single("relative_flatness_bound", "train", "Bound on κ, training, nats", "log"),
        Panel("Published value, training", (Series(VALUE),), marks=marks),
    )
    remarks = canvas.compare(arms, panels)
    columns = (
        ("Bound on κ", "relative_flatness_bound", "train"),
        ("Published value", VALUE, "train"),
    )
    tables = [levels_table("flatness_by_arm", "Flatness at the end", arms, columns)]
    rows = list(_ceiling_rows(arms))
    if rows:
        tables.append(_ceiling_table(rows, reference_of(arms)))
    caption = "How sharp the last layer is: exactly, and by an upper bound."
    if any(arm.has(VALUE) for arm in arms):
        caption += (
            " The published value is how unsure the network is, times the size of its last layer."
        )
    return Drawn(canvas.figure, "Flatness", caption, tables=tables, remarks=remarks)


def ceilings(arm: Arm) -> list[tuple[Span, float]]:
    """When an arm's head is capped, and what the published value cannot exceed then."""
    if math.isnan(arm.classes):
        return []
    return [(span, cap**2 * (1 - 1 / arm.classes)) for span, cap in arm.caps()]


def _ceiling_table(rows: Sequence[tuple[str, ...]], reference: Arm) -> Table:
    note = (
        "The ceiling is cap² (1 − 1/C) for C classes: the head's norm at its cap, the softmax "
        f"uniform. At the ceiling: at {AT_CEILING:.0%} of it or more. Exact κ follows if it is "
        f"{KAPPA_FACTOR:g} times that of {quoted(reference.name)} or more at the same epoch."
    )
    headings = (
        "Arm", "Epoch", "Published value", "Its ceiling", "Share", "Exact κ, times reference",
        "What that says",
    )  # fmt: skip
    title = "Where the penalty ends: the published value and its ceiling"
    return Table("ceilings", title, headings, tuple(rows), note=note)


def _ceiling_rows(arms: Sequence[Arm]) -> Iterator[tuple[str, ...]]:
    """Whether the published value sits at its ceiling where the penalty ends, and kappa follows."""
    reference = reference_of(arms)
    for arm in arms:
        penalised = arm.penalised()
        span = penalised or arm.phases[-1]
        heights = [height for capped, height in ceilings(arm) if capped.stop >= span.stop]
        value = arm.level(VALUE, "train", span)
        if not heights or math.isnan(value):
            continue
        share = value / heights[-1]
        ratio = math.nan if arm is reference else arm.ratio(reference, KAPPA, "train", span).effect
        epoch = span.stop / arm.steps_per_epoch
        yield (
            arm.name, plain(epoch), number(value), plain(heights[-1]), _percent(share),
            times(ratio), _reading(share, ratio, penalised=penalised is not None),
        )  # fmt: skip


def _reading(share: float, ratio: float, *, penalised: bool) -> str:
    if not penalised:
        return "a cap without a penalty"
    if share < AT_CEILING:
        return "below its ceiling"
    if math.isnan(ratio):
        return "at its ceiling"
    follows = "follows" if ratio >= KAPPA_FACTOR else "does not follow"
    return f"at its ceiling, and exact κ {follows}"


def _percent(share: float) -> str:
    return f"{number(100 * share)} %" if share >= 0.01 else "below 1 %"
