"""The figures of a report, by name, each with a caption that says in numbers what is seen.

A figure is a function of a `Study` and of whether it is for a narrow screen; it returns a `Drawn`
or raises `MissingMeasureError` when the study lacks what it shows. Add one with
``FIGURES["name"] = function``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from grokscope.report.charts import onset_chart, partial_chart
from grokscope.report.comparison import (
    accuracies,
    collapse_by_arm,
    flatness_by_arm,
    losses_by_arm,
)
from grokscope.report.contents import Drawn, Study
from grokscope.report.curves import WINDOW, Curves, MissingMeasureError, arms, around, before
from grokscope.report.outcomes import outcomes
from grokscope.report.panels import BLUE, GREEN, OCHRE, PURPLE, VERMILION, Line, Plot, both, draw
from grokscope.report.words import count, listed, name_of, number, step, steps_range, the, tick

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DASHED, DOTTED = (0, (5, 1.3)), (0, (1.2, 1.1))
FLATNESS = (
    Line("relative_flatness", "train", "exact κ", GREEN, relative=True),
    Line("relative_flatness_bound", "train", "bound", PURPLE, DASHED, relative=True),
    Line("published_flatness", "train", "published", OCHRE, DOTTED, relative=True),
)
ACCURACY = both("accuracy", "Accuracy", "share")


def grokking(study: Study, narrow: bool = False) -> Drawn:
    """Accuracy, three flatness values and collapse over log steps, as in the paper's Figure 1."""
    columns = arms(study)
    unit = "start" if math.isnan(columns[0].when("memorised")) else "memorisation"
    title = f"Flatness, relative to {unit}{'' if narrow else ' (low = flat)'}"
    plots = (
        ACCURACY,
        Plot(title, FLATNESS, "log", height=1.5, reference=1.0, floor=0.03),
        both("ncc", "Collapse: NCC (low = collapsed)", "log"),
    )
    figure, remarks = draw(columns, plots, narrow)
    told = [_told(curves, named=len(columns) > 1) for curves in columns]
    published = ""
    if any(each.has("published_flatness", "train") for each in columns):
        published = "What the paper's Figure 1 calls relative flatness is the published value."
    reading = _caption(published, _how(columns), *remarks)
    return Drawn(figure, "Accuracy, flatness and collapse", _caption(*told), reading)


def collapse(study: Study, narrow: bool = False) -> Drawn:
    """NC1 to NC4 and the angles between class means, on training and on held-out data."""
    columns = arms(study)
    nc1 = "nc1_pinv" if columns[0].has("nc1_pinv", "train") else "nc1_quotient"
    plots = (
        both(nc1, "NC1: scatter within classes", "log"),
        both("nc2_equinorm", "NC2: means of equal norm"),
        both("nc2_equiangularity", "NC2: means at equal angles"),
        both("nc3_self_duality", "NC3: head against means"),
        both("nc4_agreement", "NC4: nearest mean agrees", "share"),
        both("angle_deviation", "Angle off the simplex, degrees"),
    )
    figure, remarks = draw(columns, plots, narrow, wrap=True)
    told = "All but NC4 are 0 at full collapse; NC4 is 1."
    shown = [plots[0].lines[0], plots[-1].lines[0]]
    falls = [_fall(columns[0], line) for line in shown]
    return Drawn(
        figure, "Neural collapse", _caption(told, *falls), _caption(_how(columns), *remarks)
    )


def confidence(study: Study, narrow: bool = False) -> Drawn:
    """Whether kappa says more than how confident the network is."""
    columns = arms(study)
    needed = (
        Line("relative_flatness", "train", "", GREEN),
        Line("loss", "train", "", GREEN),
    )
    kappa = (
        Line("relative_flatness", "train", "as it is", GREEN),
        Line("relative_flatness_matched", "train", "matched", BLUE, DASHED),
    )
    plots = (
        Plot("Exact κ against training loss", needed, height=1.35, extra=_plateau_scatter),
        Plot("Exact κ at matched training loss", kappa, "log", height=1.35),
        both("logit_scale", "Logit scale"),
        both("loss", "Loss, nats", "log"),
    )
    figure, remarks = draw(columns, plots, narrow, wrap=True)
    rho = [_plateau_rho(columns[0], seed) for seed in columns[0].seeds]
    told = ""
    if any(not math.isnan(each) for each in rho):
        told = (
            "Between memorisation and generalisation the rank correlation of exact κ with the "
            f"training loss is {number(float(np.nanmedian(rho)), 2)} (median of "
            f"{count(len(rho), 'seed')}): near 1, κ there repeats what the loss says."
        )
    return Drawn(figure, "Flatness and confidence", told, _caption(_how(columns), *remarks))


def representativeness(study: Study, narrow: bool = False) -> Drawn:
    """Representativeness and the generalisation gap (the paper's Figure 20)."""
    columns = arms(study)
    parts = (
        Line("generalisation_gap", "validation", "gap", VERMILION),
        Line("representativeness", "validation", "represent.", GREEN, DASHED),
        Line("feature_robustness", "validation", "robustness", OCHRE, DOTTED),
    )
    density = (Line("representativeness_kde", "validation", "KDE", PURPLE),)
    plots = (
        ACCURACY,
        Plot("Generalisation gap and its two terms, nats", parts, "linear", height=1.3),
        Plot("Representativeness, kernel density form", density),
    )
    if not any(columns[0].has(line.measure, line.split) for line in (*parts[1:2], *density)):
        raise MissingMeasureError("representativeness was not measured")
    figure, remarks = draw(columns, plots, narrow)
    told = "The gap is the sum of representativeness and feature robustness."
    falls = [_fall(columns[0], line) for line in (parts[1], *density)]
    return Drawn(
        figure, "Representativeness", _caption(told, *falls), _caption(_how(columns), *remarks)
    )


def onsets(study: Study, narrow: bool = False) -> Drawn:
    """When each quantity begins to change, seed by seed."""
    columns = arms(study)
    figure, order = onset_chart(study.onsets, columns[0], narrow)
    told = f"In order of their medians: {listed(order)}."
    how = "A point is a seed, its line the interval of the onset; the tall tick is the median."
    which = f"Shown: {columns[0].title}." if len(columns) > 1 else ""
    return Drawn(figure, "What moves first", told, _caption(how, which))


def partial_correlations(study: Study, narrow: bool = False) -> Drawn:
    """Correlations as they are and with the training loss held fixed."""
    figure, told = partial_chart(study.correlations, narrow)
    how = "Points are rank correlations, lines their intervals; filled: given what is named."
    return Drawn(figure, "Is it more than the training loss?", told, how)


FIGURES: dict[str, Callable[[Study, bool], Drawn]] = {
    "grokking": grokking,
    "onsets": onsets,
    "collapse": collapse,
    "confidence": confidence,
    "representativeness": representativeness,
    "partial_correlations": partial_correlations,
    "accuracies": accuracies,
    "flatness_by_arm": flatness_by_arm,
    "collapse_by_arm": collapse_by_arm,
    "losses_by_arm": losses_by_arm,
    "outcomes": outcomes,
}


def _told(curves: Curves, named: bool) -> str:
    """What the main figure shows of one arm: milestones, then flatness before and after."""
    parts = ["generalisation was not reached"]
    if not math.isnan(curves.when("generalised")):
        parts = [f"generalised at step {steps_range(curves.reached('generalised'))}"]
    if not math.isnan(curves.when("memorised")):
        memorised = f"training data memorised at step {steps_range(curves.reached('memorised'))}"
        parts.insert(0, memorised)
    sentences = [f"{', '.join(parts)}."]
    levels = {line.measure: _levels(curves, line.measure) for line in FLATNESS}
    for index, when in enumerate(("Just before validation accuracy moves", "At the end")):
        known = [
            (name, pair[index]) for name, pair in levels.items() if not math.isnan(pair[index])
        ]
        if known:
            stands = [f"{the(name)} at {number(level, 2)}" for name, level in known]
            unit = "memorisation" if not math.isnan(curves.when("memorised")) else "the start"
            sentences.append(f"{when}, relative to {unit}: {listed(stands)}.")
    if named:  # several arms: no more than that of each
        return _sentence(f"{curves.title}: {' '.join(sentences)}")
    falls = [_fall(curves, Line("ncc", split, "", "")) for split in ("train", "validation")]
    return _sentence(" ".join(filter(None, [*sentences, *falls])))


def _levels(curves: Curves, measure: str) -> tuple[float, float]:
    """Flatness relative to memorisation: just before generalisation begins, and at the end."""
    if not curves.has(measure, "train"):
        return math.nan, math.nan
    relative = curves.relative(measure, "train")
    plateau = [before(relative[seed], curves.plateau(seed)[1]) for seed in relative]
    began = not math.isnan(curves.when("onset")) or not math.isnan(curves.when("generalised"))
    end = [before(relative[seed], math.inf) for seed in relative]
    return (_median(plateau) if began else math.nan), _median(end)


def _fall(curves: Curves, line: Line) -> str:
    """By how much a quantity fell until generalisation began, and after; empty if unknown."""
    if not curves.has(line.measure, line.split) or math.isnan(curves.when("onset")):
        return ""
    curve = curves.get(line.measure, line.split)
    firsts = [curve[seed].dropna().iloc[0] for seed in curve]
    middles = [before(curve[seed], curves.when("onset", seed)) for seed in curve]
    ends = [around(curve[seed], curves.last_step) for seed in curve]
    first, middle, end = _median(firsts), _median(middles), _median(ends)
    if any(math.isnan(each) for each in (first, middle, end)):
        return ""
    return (
        f"{_sentence(name_of(line.measure, line.split))} goes from {number(first)} at the start to "
        f"{number(middle)} before validation accuracy moves and {number(end)} at the end."
    )


def _how(columns: Sequence[Curves]) -> str:
    """How to read a figure of curves."""
    seeds = max(len(each.seeds) for each in columns)
    lines = "The thin line is as measured, the thick one its"
    if seeds > 1:
        lines = f"Thin lines are the {count(seeds, 'seed')}, thick lines their"
    spans = "No seed reached the milestones, so nothing is shaded."
    if any(not math.isnan(each.when("memorised")) for each in columns):
        medians = " (medians; ticks at the upper edge are seeds)" if seeds > 1 else ""
        spans = (
            "Shaded: from memorisation until validation accuracy moves, and from generalisation "
            f"on{medians}."
        )
    first = {each.first_step() for each in columns}
    start = "Step 0 is" if first == {1} else "The first steps are"
    if len(first) == 1 and first != {1}:
        start = f"Steps before {step(first.pop())} are"
    return f"{lines} running median over {WINDOW} points. {spans} {start} not drawn."


def _plateau_points(curves: Curves, seed: int) -> pd.DataFrame:
    """Loss and kappa of one seed from memorisation until generalisation begins."""
    start, end = curves.plateau(seed)
    both_ = {
        name: curves.get(name, "train").get(seed, pd.Series(dtype=float))
        for name in ("loss", "relative_flatness")
    }
    points = pd.DataFrame(both_).dropna()
    return points[(points.index >= max(start, 1)) & (points.index < end)]


def _plateau_rho(curves: Curves, seed: int) -> float:
    """Rank correlation of kappa and the training loss on the plateau; NaN below four points."""
    if not (curves.has("loss", "train") and curves.has("relative_flatness", "train")):
        return math.nan
    ranks = _plateau_points(curves, seed).rank()
    return float(ranks["loss"].corr(ranks["relative_flatness"])) if len(ranks) > 3 else math.nan


def _plateau_scatter(axes: Axes, curves: Curves) -> str:
    """Kappa against the training loss on the plateau, coloured by step."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    points = pd.concat([_plateau_points(curves, seed) for seed in curves.seeds])
    points = points[(points > 0).all(axis=1)]
    if points.empty:
        axes.set_axis_off()
        return "No point lies between memorisation and generalisation."
    order = np.log10(points.index.to_numpy(dtype=float))
    dots = axes.scatter(
        points["loss"], points["relative_flatness"], c=order, s=13, cmap="viridis_r",
        linewidths=0.3, edgecolors="white", label="train/relative_flatness/plateau",
    )  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis, values in ((axes.xaxis, points["loss"]), (axes.yaxis, points["relative_flatness"])):
        few = values.max() < 60 * values.min()
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,), numticks=6))
        axis.set_major_formatter(FuncFormatter(tick))
        axis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("training loss, nats", labelpad=2)
    bar_axes = axes.inset_axes((1.05, 0.12, 0.035, 0.7))
    bar = axes.figure.colorbar(dots, cax=bar_axes)
    bar.outline.set_visible(False)
    ends = [order.min(), order.max()] if order.max() > order.min() else [order.min()]
    bar.set_ticks(ends, labels=[step(10**each) for each in ends])
    bar_axes.tick_params(length=0, labelsize=7.5, which="both")
    bar_axes.set_title("step", fontsize=7.5, weight="normal", loc="left", pad=6)
    return ""


def _caption(*sentences: str) -> str:
    return " ".join(dict.fromkeys(filter(None, sentences)))


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def _median(values: Sequence[float]) -> float:
    found = [value for value in values if not math.isnan(value)]
    return float(np.median(found)) if found else math.nan
