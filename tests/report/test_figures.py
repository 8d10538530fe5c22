"""What is drawn is what was measured."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from made_study import MILESTONES, SEEDS, metrics, milestone_frame, onsets, study
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from grokscope.report import Counterpart
from grokscope.report.curves import MissingMeasureError
from grokscope.report.figures import FIGURES
from grokscope.report.panels import STYLE, apart


@pytest.fixture(autouse=True)
def style() -> Iterator[None]:
    """As `write_report` draws."""
    with rc_context(STYLE):
        yield


def panel(figure: Figure, title: str) -> Axes:
    """The first panel whose title begins so."""
    return next(axes for axes in figure.axes if axes.get_title("left").startswith(title))


def drawn(axes: Axes, label: str) -> tuple[np.ndarray, np.ndarray]:
    line = next(line for line in axes.lines if line.get_label() == label)
    return np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float)


def stored(frame: pd.DataFrame, measure: str, split: str, seed: int) -> dict[int, float]:
    rows = frame[(frame.measure == measure) & (frame.split == split) & (frame.seed == seed)]
    return {int(row.step): float(row.value) for row in rows.itertuples() if row.step > 0}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("title", "measure"), [("Accuracy", "accuracy"), ("Collapse", "ncc")])
def test_thin_lines_are_the_stored_values(title: str, measure: str, seed: int) -> None:
    whole = study()
    axes = panel(FIGURES["grokking"](whole, False).figure, title)
    for split in ("train", "validation"):
        steps, values = drawn(axes, f"{split}/{measure}/{seed}")
        expected = stored(whole.metrics, measure, split, seed)
        assert dict(zip(steps, values, strict=True)) == expected


def test_the_thick_line_is_a_running_median_that_a_spike_does_not_move() -> None:
    frame = metrics()
    steps = sorted(int(each) for each in frame.step.unique() if each > 0)
    spiked = frame.copy()
    at = steps[60]
    one = (spiked.step == at) & (spiked.measure == "ncc") & (spiked.seed == 42)
    spiked.loc[one & (spiked.split == "train"), "value"] = 1e9
    axes = panel(FIGURES["grokking"](study(metrics=spiked), False).figure, "Collapse")
    x, y = drawn(axes, "train/ncc/median")
    curves = [stored(spiked, "ncc", "train", seed) for seed in SEEDS]
    for i in (2, 30, 60, 80):
        window = steps[i - 2 : i + 3]
        expected = statistics.median(curve[each] for curve in curves for each in window)
        assert x[i] == steps[i]
        assert y[i] == pytest.approx(expected)
    assert y.max() < 100
    assert axes.get_ylim()[1] < 1e4


def test_flatness_is_one_at_memorisation_for_every_value() -> None:
    whole = study()
    axes = panel(FIGURES["grokking"](whole, False).figure, "Flatness")
    for measure in ("relative_flatness", "relative_flatness_bound", "published_flatness"):
        for seed in SEEDS:
            steps, values = drawn(axes, f"train/{measure}/{seed}")
            own = stored(whole.metrics, measure, "train", seed)
            nearest = int(np.abs(steps - MILESTONES[seed][0]).argmin())
            window = steps[nearest - 2 : nearest + 3]
            unit = statistics.median(own[int(each)] for each in window)
            assert values == pytest.approx([own[int(each)] / unit for each in steps])


def test_spans_begin_and_end_at_the_median_milestones() -> None:
    axes = panel(FIGURES["grokking"](study(), False).figure, "Flatness")
    spans = {str(each.get_label()): each.get_extents() for each in axes.patches}
    to_steps = axes.transData.inverted()
    ends = {
        name: (to_steps.transform(box.min)[0], to_steps.transform(box.max)[0])
        for name, box in spans.items()
    }
    memorised, onset, generalised = np.median(list(MILESTONES.values()), axis=0)
    assert ends["memorised"] == pytest.approx((memorised, onset), rel=1e-6)
    assert ends["generalised"] == pytest.approx((generalised, 4000), rel=1e-6)


def test_panels_share_one_axis_of_steps() -> None:
    figure = FIGURES["grokking"](study(), False).figure
    assert len({axes.get_xlim() for axes in figure.axes}) == 1


def test_the_caption_tells_the_values_apart() -> None:
    caption = FIGURES["grokking"](study(), False).caption
    assert "memorised at step 458 (440 to 481)" in caption
    assert "generalised at step 3,450 (3,250 to 3,700)" in caption
    for name in ("exact κ", "the bound on κ", "the published value"):
        assert f"{name} at " in caption


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_is_drawn_for_one_seed_and_for_phones(name: str, narrow: bool) -> None:
    drawing = FIGURES[name](study((42,)), narrow)
    assert drawing.figure.axes
    assert drawing.caption
    assert (drawing.figure.get_figwidth() < 5) == narrow


@pytest.mark.parametrize(
    ("name", "lost"),
    [
        ("collapse", ("nc1", "nc2", "nc3", "nc4", "angle")),
        ("representativeness", ("representativeness",)),
        ("grokking", ("accuracy", "ncc", "relative", "published")),
    ],
)
def test_a_figure_without_its_measures_says_that_they_are_missing(
    name: str, lost: tuple[str, ...]
) -> None:
    frame = metrics((1,))
    frame = frame[~frame.measure.str.startswith(lost)]
    with pytest.raises(MissingMeasureError):
        FIGURES[name](study((1,), metrics=frame), False)


def test_a_missing_line_is_named_and_the_rest_is_drawn() -> None:
    frame = metrics()
    frame = frame[frame.measure != "published_flatness"]
    drawing = FIGURES["grokking"](study(metrics=frame), False)
    assert "Not measured: published value (training)." in drawing.reading
    assert len(drawing.figure.axes) == 3
    assert "published" not in drawing.caption


def test_values_that_a_log_axis_cannot_show_are_counted() -> None:
    frame = metrics()
    bad = (frame.measure == "ncc") & (frame.split == "train") & (frame.step.isin([100, 150]))
    frame.loc[bad, "value"] = [0.0, -1.0] * 3
    frame.loc[(frame.measure == "ncc") & (frame.step == 200), "value"] = math.nan
    frame.loc[(frame.measure == "ncc") & (frame.step == 250), "value"] = math.inf
    drawing = FIGURES["grokking"](study(metrics=frame), False)
    assert "Not positive, so not on the log axis, are 6 values." in drawing.reading
    _, values = drawn(panel(drawing.figure, "Collapse"), "train/ncc/1")
    assert np.isfinite(values).all()
    assert (values > 0).all()


def test_without_milestones_flatness_is_relative_to_the_start() -> None:
    drawing = FIGURES["grokking"](study(milestones=milestone_frame().iloc[:0]), False)
    axes = panel(drawing.figure, "Flatness, relative to start")
    assert not axes.patches
    assert "nothing is shaded" in drawing.reading


def test_the_counterpart_is_drawn_beside_on_its_own_steps() -> None:
    other = metrics()
    other["step"] *= 25
    beside = milestone_frame()
    beside[["memorised", "onset", "generalised"]] *= 25
    whole = study(counterpart=Counterpart("the paper's setting", other, beside))
    figure = FIGURES["grokking"](whole, False).figure
    limits = {axes.get_xlim()[1] for axes in figure.axes}
    assert limits == {4000, 100_000}
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert "the paper's setting" in texts


def test_each_arm_has_its_own_column() -> None:
    both = pd.concat([metrics().assign(arm="baseline"), metrics((1,)).assign(arm="penalty")])
    stones = pd.concat([milestone_frame().assign(arm=arm) for arm in ("baseline", "penalty")])
    figure = FIGURES["collapse"](study(metrics=both, milestones=stones), False).figure
    labels = [sum("/median" not in str(x.get_label()) for x in axes.lines) for axes in figure.axes]
    assert len(figure.axes) == 12
    assert labels[0] > labels[1]


def test_onsets_are_drawn_in_order_and_those_not_found_are_counted() -> None:
    frame = onsets()
    drawing = FIGURES["onsets"](study(onsets=frame), False)
    axes = drawing.figure.axes[0]
    for row in frame.dropna().itertuples():
        x, _ = drawn(axes, f"{row.measure}/{row.split}/{row.seed}")
        assert list(x) == [row.step]
        x, _ = drawn(axes, f"{row.measure}/{row.split}/{row.seed}/interval")
        assert list(x) == [row.low, row.high]
    texts = [text.get_text() for text in axes.texts]
    assert "not found in 1 of 3 seeds" in texts
    assert drawing.caption.index("NCC (training)") < drawing.caption.index("exact κ")


def test_correlations_are_drawn_plain_and_given_the_loss() -> None:
    whole = study()
    axes = FIGURES["partial_correlations"](whole, False).figure.axes[0]
    for row in whole.correlations.to_dict("records"):
        label = f"{row['measure']}/{row['with']}/{row['given']}/{row['window']}"
        x, _ = drawn(axes, label)
        assert list(x) == [row["rho"]]


def test_the_scatter_holds_the_plateau_alone() -> None:
    whole = study((42,))
    axes = panel(FIGURES["confidence"](whole, False).figure, "Exact κ against")
    offsets = np.asarray(axes.collections[0].get_offsets())
    memorised, onset, _ = MILESTONES[42]
    loss = stored(whole.metrics, "loss", "train", 42)
    kappa = stored(whole.metrics, "relative_flatness", "train", 42)
    expected = [(loss[each], kappa[each]) for each in loss if memorised <= each < onset]
    assert offsets == pytest.approx(np.array(expected))


def test_labels_are_moved_apart_and_keep_their_order() -> None:
    moved = apart([0.5, 0.5, 0.52, 0.9], 0.1)
    gaps = np.diff(moved)
    assert (gaps >= 0.1 - 1e-6).all()
    assert moved[3] == pytest.approx(0.9, abs=0.02)


def test_the_names_of_the_spans_do_not_overlap():
    beside = study().milestones.assign(memorised=1500.0, onset=2000.0, generalised=2100.0)
    made = replace(study(), milestones=beside)
    drawing = FIGURES["grokking"](made, False)
    renderer = FigureCanvasAgg(drawing.figure).get_renderer()
    boxes = [
        text.get_window_extent(renderer)
        for text in drawing.figure.axes[0].texts
        if text.get_text() in ("memorised", "generalised")
    ]
    assert len(boxes) == 2
    assert not boxes[0].overlaps(boxes[1])
