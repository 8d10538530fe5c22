"""Figures in which arms are the lines and epochs the horizontal axis.

Each is a function of a `Study` and of whether it is for a narrow screen, as in
`grokscope.report.figures`. At most eight arms share a panel; more make more rows of panels, the
reference in each, on the same axes. The arms' names stand above, in their colours and dashes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from grokscope.analysis.claims.rules import KAPPA_FACTOR
from grokscope.report.arms import (
    SAME,
    Arm,
    Span,
    alike,
    arms_of,
    blocks,
    ceilings,
    phase_ends,
    reference_of,
)
from grokscope.report.contents import Drawn, Study
from grokscope.report.curves import WINDOW
from grokscope.report.lines import Panel, draw, plain
from grokscope.report.words import count, listed, number

MOST_NAMED = 6  # runs that ended early
AT_CEILING = 0.95  # share of the ceiling from which on the published value sits at it

# What the published value and exact kappa do together, in the order in which it is told.
ALONE = (
    "Where the penalty ends, the published value sits at its ceiling, but exact κ does not follow"
)
FOLLOWS = "Where the penalty ends, the published value sits at its ceiling, and exact κ follows"
SITS = "Where the penalty ends, the published value sits at its ceiling"
BELOW = "Where the penalty ends, the published value is below its ceiling"
WITHOUT = "At the end, under a cap without a penalty, the published value is"
VERDICTS = (ALONE, FOLLOWS, SITS, BELOW, WITHOUT)

Describe = Callable[[Arm, Span], str]


def accuracies(study: Study, narrow: bool = False) -> Drawn:
    """Training and validation accuracy, as in the paper's figures 2 and 4."""
    arms = arms_of(study)
    panels = (
        Panel("Accuracy, training", "accuracy", "train", "share"),
        Panel("Accuracy, held out", "accuracy", "validation", "linear"),
    )
    figure, remarks = draw(arms, panels, narrow, across=2)

    def describe(arm: Arm, span: Span) -> str:
        return _with(_level(arm, "accuracy", "validation", span),
                     _level(arm, "accuracy", "train", span))  # fmt: skip

    told = [
        *_at_phase_ends("held-out (training) accuracy", arms, describe),
        _at_end("held-out (training) accuracy", arms, describe),
    ]
    scales = "The two vertical axes differ."
    return Drawn(figure, "Accuracy, arm by arm", _text(told), _text([_how(arms), scales, *remarks]))


def flatness_by_arm(study: Study, narrow: bool = False) -> Drawn:
    """Exact kappa, its bound and the published value, the same definitions in every phase."""
    arms = arms_of(study)
    panels = (
        Panel("Exact κ, training, nats (low = flat)", "relative_flatness", "train", "log"),
        Panel("Bound on κ, training, nats", "relative_flatness_bound", "train", "log"),
        Panel("Published value, training", "published_penalty", "train", "auto", ceilings=True),
    )
    figure, remarks = draw(arms, panels, narrow)
    reference = reference_of(arms)

    def describe(arm: Arm, span: Span) -> str:
        kappa = _level(arm, "relative_flatness", "train", span)
        ratio = arm.ratio(reference, "relative_flatness", "train", span)
        return _with(kappa, "" if arm is reference or math.isnan(ratio) else f"{number(ratio)}×")

    capped = _ceiling_sentences(arms, reference)
    told = [*capped, _at_end(f"exact κ (times that of {reference.quoted})", arms, describe)]
    rule = ""
    if capped:
        rule = (
            f"At the ceiling: at {AT_CEILING:.0%} of it or more. Exact κ follows if it is "
            f"{KAPPA_FACTOR:g} times that of {reference.quoted} or more at the same epoch. The "
            "ceiling is cap² (1 − 1/C) for C classes: the head's norm at its cap, the softmax "
            "uniform."
        )
    reading = _text([_how(arms), rule, *remarks])
    return Drawn(figure, "Three values of flatness, arm by arm", _text(told), reading)


def collapse_by_arm(study: Study, narrow: bool = False) -> Drawn:
    """NCC on training and on held-out data, and the angles between class means."""
    arms = arms_of(study)
    panels = (
        Panel("NCC, training (low = collapsed)", "ncc", "train", "log"),
        Panel("NCC, held out", "ncc", "validation", "log"),
        Panel("Angle off the simplex, training, degrees", "angle_deviation", "train", "linear"),
    )
    figure, remarks = draw(arms, panels, narrow)

    def describe(arm: Arm, span: Span) -> str:
        ncc = _with(_level(arm, "ncc", "train", span), _level(arm, "ncc", "validation", span))
        angle = _level(arm, "angle_deviation", "train", span)
        return " and ".join(filter(None, [ncc, angle and f"{angle}°"]))

    told = _at_end("training (held-out) NCC and the angle off the simplex", arms, describe)
    return Drawn(figure, "Collapse, arm by arm", told, _text([_how(arms), *remarks]))


def losses_by_arm(study: Study, narrow: bool = False) -> Drawn:
    """Both losses, the logit scale, and the loss on the batches that training saw."""
    arms = arms_of(study)
    panels = (
        Panel("Loss, training, nats", "loss", "train", "log"),
        Panel("Loss, held out, nats", "loss", "validation", "auto"),
        Panel("Logit scale, training, nats", "logit_scale", "train", "auto"),
        Panel("Minibatch loss, nats", "minibatch_loss", "train", "log"),
    )
    figure, remarks = draw(arms, panels, narrow, across=2)

    def describe(arm: Arm, span: Span) -> str:
        loss = _with(_level(arm, "loss", "train", span), _level(arm, "loss", "validation", span))
        scale = _level(arm, "logit_scale", "train", span)
        return " at ".join(filter(None, [loss, scale]))

    told = _at_end("training (held-out) loss, and the logit scale that it is at", arms, describe)
    batches = ""
    if any(arm.has("minibatch_loss", "train") for arm in arms):
        batches = (
            "The minibatch loss is the mean over the steps since the last look, in training mode "
            "while the weights move and without penalties; all else is measured in evaluation mode."
        )
    return Drawn(figure, "Losses, arm by arm", told, _text([_how(arms), batches, *remarks]))


def _ceiling_sentences(arms: Sequence[Arm], reference: Arm) -> list[str]:
    """Whether the published value sits at its ceiling where the penalty ends, and kappa follows.

    Arms that are one run until there share a place in their sentence.
    """
    told: dict[str, dict[str, list[str]]] = {verdict: {} for verdict in VERDICTS}
    for arm in arms:
        span = arm.penalised() or arm.phases[-1]
        heights = [height for on, height in ceilings(arm) if on.stop >= span.stop * (1 - SAME)]
        value = arm.level("published_penalty", "train", span)
        if not heights or math.isnan(value):
            continue
        ceiling = heights[-1]
        kappa = arm.level("relative_flatness", "train", span)
        ratio = arm.ratio(reference, "relative_flatness", "train", span)
        stands = f"epoch {plain(span.stop)}: {number(value)} of {plain(ceiling)}, "
        stands += _percent(value / ceiling)
        if not math.isnan(ratio) and arm is not reference:
            stands += f"; κ {number(ratio)}×"
        elif not math.isnan(kappa):
            stands += f"; κ {number(kappa)}"
        verdict = BELOW
        if value >= AT_CEILING * ceiling:
            compared = not math.isnan(ratio) and arm is not reference
            verdict = (FOLLOWS if ratio >= KAPPA_FACTOR else ALONE) if compared else SITS
        if arm.penalised() is None:
            verdict = WITHOUT
        told[verdict].setdefault(stands, []).append(arm.quoted)
    return [
        f"{verdict}: {listed([f'{listed(names)} ({text})' for text, names in found.items()])}."
        for verdict, found in told.items()
        if found
    ]


def _at_end(what: str, arms: Sequence[Arm], describe: Describe) -> str:
    """What each arm came to at the end of its last phase."""
    told = [(arm.quoted, describe(arm, arm.phases[-1])) for arm in arms]
    known = [f"{name}: {text}" for name, text in told if text]
    open_ = [name for name, text in told if not text]
    sentences = [f"At the end, {what} – {'; '.join(known)}."] if known else []
    if open_:
        sentences.append(f"No run of {listed(open_)} came to its end.")
    return " ".join(sentences)


def _at_phase_ends(what: str, arms: Sequence[Arm], describe: Describe) -> list[str]:
    """What arms had come to where a phase ended, beside the reference at that epoch."""
    reference = reference_of(arms)
    told = []
    for epoch in phase_ends(arms, inner=True):
        groups: dict[str, list[str]] = {}
        spans = [
            (arm, span)
            for arm in arms
            for span in arm.phases[:-1]
            if math.isclose(span.stop, epoch)
        ]
        if reference not in [arm for arm, _ in spans]:
            spans.append((reference, spans[0][1]))
        for arm, span in spans:
            if text := describe(arm, span):
                groups.setdefault(text, []).append(arm.quoted)
        known = [f"{listed(names)}: {text}" for text, names in groups.items()]
        if known:
            told.append(f"At epoch {plain(epoch)}, {what} – {'; '.join(known)}.")
    return told


def _how(arms: Sequence[Arm]) -> str:
    """How to read a figure of lines, and which arms lie on each other or end early."""
    seeds = max(len(arm.ends) for arm in arms)
    lines = "The thin line is as measured, the thick one its"
    if seeds > 1:
        lines = f"Thin lines are the {count(seeds, 'seed')}, thick lines their"
    parts = [f"{lines} running median over {WINDOW} points of one phase."]
    ends = phase_ends(arms)
    if ends:
        each = listed([plain(epoch) for epoch in ends])
        parts.append(f"Dotted: where a phase ends, at epoch {each}.")
    for epoch, group in alike(arms):
        names = listed([arm.quoted for arm in group])
        parts.append(f"Striped: {names}, which are one run until epoch {plain(epoch)}.")
    early = [
        f"{arm.quoted}, seed {seed}, at epoch {plain(end)}"
        for arm in arms
        for seed, end in arm.ends.items()
        if not arm.came_to(arm.phases[-1].stop, seed)
    ]
    if len(early) > MOST_NAMED:  # the report's notes name each
        runs = sum(len(arm.ends) for arm in arms)
        parts.append(f"{len(early)} of {count(runs, 'run')} ended before their last epoch.")
    elif early:
        parts.append(f"Ended before its last epoch: {'; '.join(early)}.")
    if len(blocks(arms)) > 1:
        parts.append(
            f"{len(arms)} arms are more than one panel can show, so there are {len(blocks(arms))} "
            f"groups of rows, {reference_of(arms).quoted} in each, on the same axes."
        )
    parts.append(
        "In the caption a number is the median over seeds of each run's median in the last fifth "
        "of the phase that ends there."
    )
    return " ".join(parts)


def _percent(share: float) -> str:
    return f"{number(100 * share)}%" if share >= 0.01 else "below 1%"


def _level(arm: Arm, measure: str, split: str, span: Span) -> str:
    level = arm.level(measure, split, span)
    return "" if math.isnan(level) else number(level)


def _with(first: str, second: str) -> str:
    """``first (second)``; one of them where the other is not known."""
    return f"{first} ({second})" if first and second else first or (second and f"({second})")


def _text(sentences: Sequence[str]) -> str:
    return " ".join(dict.fromkeys(filter(None, sentences)))
