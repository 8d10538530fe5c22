"""Dot charts: onsets seed by seed, and correlations as they are beside partial ones."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pandas as pd

from grokscope.report.curves import Curves, MissingMeasureError
from grokscope.report.panels import (
    BLUE,
    GREEN,
    GREY,
    INK,
    NARROW,
    OCHRE,
    PURPLE,
    VERMILION,
    WIDE,
    shade,
)  # fmt: skip
from grokscope.report.words import count, name_of, number, tick

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROW, LABELS, MARKERS = 0.36, 2.25, "os^Dv<>P"
COLOURS = {
    "relative_flatness": GREEN,
    "relative_flatness_bound": PURPLE,
    "published_flatness": OCHRE,
    "memorised": INK,
    "generalisation": INK,
    "generalised": INK,
}


def onset_chart(onsets: pd.DataFrame, curves: Curves, narrow: bool) -> tuple[Figure, list[str]]:
    """A row for each onset, a point with its interval for each seed, on a log axis of steps.

    Args:
        onsets: `Study.onsets`; rows of the arm shown, or of all arms when it has none.
        curves: The arm whose milestones are shaded.
        narrow: Names above their rows instead of beside them.

    Returns:
        The figure, and the names in order of their median onset.

    Raises:
        MissingMeasureError: If no onset was found.
    """
    rows = onsets
    if "arm" in rows and (rows["arm"] == curves.title).any():
        rows = rows[rows["arm"] == curves.title]
    rows = rows.assign(split=rows["split"].fillna("") if "split" in rows else "")
    keys = ["measure", "split"]
    if rows.empty or rows["step"].isna().all():
        raise MissingMeasureError("no onset was found")
    median = rows.groupby(keys, sort=False)["step"].median().sort_values(kind="stable")
    ordered = [
        ((str(key[0]), str(key[1])), float(at))
        for key, at in zip(median.index, median, strict=True)
    ]
    figure, axes = _sheet(len(median), narrow, 0.66)
    seeds = sorted(rows["seed"].unique())
    tight = 0.6 if narrow else 1.0  # leaves room for the names above
    for place, ((measure, split), middle) in enumerate(ordered):
        own = rows[(rows["measure"] == measure) & (rows["split"] == split)]
        colour = COLOURS.get(measure, VERMILION if split == "validation" else BLUE)
        for index, seed in enumerate(seeds):
            height = place + (index - (len(seeds) - 1) / 2) * min(0.2, 0.6 / len(seeds)) * tight
            for each in own[own["seed"] == seed].dropna(subset=["step"]).itertuples():
                low, high = (_or(value, each.step) for value in (each.low, each.high))
                axes.plot([low, high], [height, height], color=colour, linewidth=1.3, alpha=0.6,
                          label=f"{measure}/{split}/{seed}/interval")  # fmt: skip
                axes.plot([each.step], [height], MARKERS[index % len(MARKERS)], color=colour,
                          markersize=4.2, label=f"{measure}/{split}/{seed}")  # fmt: skip
        if not math.isnan(middle):
            axes.plot(
                [middle, middle],
                [place - 0.36 * tight, place + 0.36 * tight],
                color=colour,
                linewidth=1,
            )
        lost = int(own["step"].isna().sum())
        note = f"not found in {lost} of {count(len(own), 'seed')}" if lost else ""
        _row(axes, place, name_of(measure, split), narrow, note)
    _step_limits(axes, rows, curves)
    shade(axes, curves, named=True)
    if len(seeds) > 1 and len(seeds) <= len(MARKERS):
        shapes = "○□△◇▽◁▷✚"
        text = "   ".join(f"{shapes[i]} {seed}" for i, seed in enumerate(seeds))
        axes.annotate(f"seed   {text}", (0, 0), (0, -36), xycoords="axes fraction",
                      textcoords="offset points", size=8, color="#555555")  # fmt: skip
    return figure, [name_of(*key) for key in median.dropna().index]


def partial_chart(correlations: pd.DataFrame, narrow: bool) -> tuple[Figure, str]:
    """Correlations of each measure, plain (open) and given another quantity (filled).

    Returns:
        The figure, and a sentence on the largest change.

    Raises:
        MissingMeasureError: If there are no correlations.
    """
    if correlations.empty or correlations["rho"].isna().all():
        raise MissingMeasureError("no correlations were computed")
    rows = correlations.dropna(subset=["rho"]).copy()
    rows["given"] = rows["given"].fillna("").astype(str).replace({"none": "", "nothing": ""})
    if "window" not in rows:
        rows["window"] = ""
    blocks = list(rows.groupby(["with", "window"], sort=False))
    places: list[tuple[float, str, pd.DataFrame]] = []
    headings: list[tuple[float, str]] = []
    at = 0.0
    for (target, window), block in blocks:
        headings.append((at, f"with {name_of(str(target))}" + (f", {window}" if window else "")))
        at += 0.85
        for measure, own in block.groupby("measure", sort=False):
            places.append((at, name_of(str(measure)), own))
            at += 1
        at += 0.35
    figure, axes = _sheet(at - 0.35, narrow, 0.44)
    axes.axvline(0, color=GREY, linewidth=0.6, zorder=1)
    for place, name, own in places:
        _row(axes, place, name, narrow, "")
        for each in own.itertuples():
            partial = each.given != ""
            height, colour = place + (0.15 if partial else -0.15), (BLUE if partial else VERMILION)
            low, high = (_or(value, each.rho) for value in (each.low, each.high))
            label = f"{each.measure}/{own['with'].iloc[0]}/{each.given}/{each.window}"
            axes.plot([low, high], [height] * 2, color=colour, linewidth=1.3, alpha=0.7)
            face = colour if partial else "white"
            axes.plot([_or(each.rho, math.nan)], [height], "o", color=colour, markersize=5,
                      markerfacecolor=face, label=label)  # fmt: skip
    for place, text in headings:
        axes.annotate(text, (0, place), (2, 0), xycoords=("axes fraction", "data"),
                      textcoords="offset points", weight="bold", va="center")  # fmt: skip
    given = [each for each in dict.fromkeys(rows["given"]) if each]
    texts = ["○ as it is", *(f"● given {name_of(each)}" for each in given[:1])]
    for text, colour, x in zip(
        texts, (VERMILION, BLUE), (0, 0.3 if not narrow else 0.36), strict=False
    ):
        axes.annotate(text, (x, 1), (0, 5), xycoords="axes fraction", textcoords="offset points",
                      color=colour)  # fmt: skip
    axes.set_xlim(-1.05, 1.05)
    axes.set_xlabel("rank correlation", labelpad=2)
    from matplotlib.ticker import FuncFormatter

    axes.xaxis.set_major_formatter(FuncFormatter(tick))
    return figure, _largest_change(rows)


def _largest_change(rows: pd.DataFrame) -> str:
    """The measure whose correlation changes most when something is held fixed, in words."""
    keys = ["measure", "with", "window"]
    plain = rows[rows["given"] == ""].set_index(keys)["rho"]
    best, sentence = -1.0, ""
    for each in rows[rows["given"] != ""].to_dict("records"):
        key = tuple(each[name] for name in keys)
        if key in plain.index:
            raw = float(plain.loc[[key]].iloc[0])
            if abs(each["rho"] - raw) > best:
                best = abs(each["rho"] - raw)
                sentence = (
                    f"The largest change: the correlation of {name_of(each['measure'])} with "
                    f"{name_of(each['with'])} goes from {number(raw, 2)} to "
                    f"{number(each['rho'], 2)} given {name_of(each['given'])}."
                )
    return sentence


def _sheet(rows: float, narrow: bool, bottom: float) -> tuple[Figure, Axes]:
    """Axes for rows of dots, the first on top."""
    from matplotlib.figure import Figure

    width, left = (NARROW, 0.15) if narrow else (WIDE, LABELS)
    pitch = ROW * 1.5 if narrow else ROW
    tall = rows * pitch
    total = tall + 0.3 + bottom
    figure = Figure(figsize=(width, total))
    axes = figure.add_axes(
        (left / width, bottom / total, (width - left - 0.5) / width, tall / total)
    )
    axes.set_ylim(rows - 0.5, -0.6)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    return figure, axes


def _row(axes: Axes, place: float, name: str, narrow: bool, note: str) -> None:
    """A row's name and note: beside it, or above its dots on a narrow figure."""
    axes.axhline(place, color="#DDDDDD", linewidth=0.6, zorder=0.5)
    where: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
    if narrow:
        text = f"{name} – {note}" if note else name
        axes.annotate(text, (0, place), (0, 14), va="center", size=8, zorder=5, **where)
        return
    lift = 5 if note else 0
    axes.annotate(name, (0, place), (-6, lift), va="center", ha="right", **where)
    if note:
        axes.annotate(note, (0, place), (-6, -6), va="center", ha="right", size=7.5,
                      color="#666666", **where)  # fmt: skip


def _step_limits(axes: Axes, rows: pd.DataFrame, curves: Curves) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    lows = pd.concat([rows["step"], rows["low"]]).dropna()
    low = max(1.0, min(float(lows[lows > 0].min()) * 0.7, curves.first_step() * 10))
    axes.set_xscale("log")
    axes.set_xlim(low, max(curves.last_step, float(rows[["step", "high"]].max().max())) * 1.05)
    wide = axes.get_xlim()[1] > 60 * low
    axes.xaxis.set_major_locator(LogLocator(subs=(1,) if wide else (1, 2, 5), numticks=8))
    axes.xaxis.set_major_formatter(FuncFormatter(tick))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("optimiser step", labelpad=2)


def _or(value: Any, other: Any) -> float:
    """The value, or the other one where it is missing."""
    return float(other if value is None or math.isnan(value) else value)
