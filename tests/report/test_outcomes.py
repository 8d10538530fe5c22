"""The scatter of outcomes, and how figures of arms are laid out and named."""

from __future__ import annotations

import io
import statistics
from collections.abc import Iterator
from dataclasses import replace
from html import escape
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_arms import DIVERGED, LAST, PHASES, REMOVAL, SEEDS, arms_study, naive_level
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from grokscope.report import Study, write_report
from grokscope.report.arms import arms_of, blocks
from grokscope.report.contents import Drawn
from grokscope.report.curves import MissingMeasureError
from grokscope.report.figures import FIGURES
from grokscope.report.lines import shown_name, text_width
from grokscope.report.panels import STYLE
from grokscope.report.words import number

NAMES = ("accuracies", "flatness_by_arm", "collapse_by_arm", "losses_by_arm", "outcomes")
KAPPA = "relative_flatness_matched"
HOSTILE = 'a<b>&"$x_1$" \\alpha % that goes on and on, and then a little further than fits'
MANY = (*PHASES, "cap 5", HOSTILE, "smoothing", "gini", "entropy", "logit scale", "clamp", "flat")


@pytest.fixture(autouse=True)
def style() -> Iterator[None]:
    """As `write_report` draws."""
    with rc_context(STYLE):
        yield


@pytest.fixture(scope="module")
def whole() -> Study:
    return arms_study()


def points(drawing: Drawn) -> dict[str, tuple[float, float, bool]]:
    """Arm/seed -> kappa, accuracy, filled."""
    found = {}
    for axes in drawing.figure.axes:
        for line in axes.lines:
            if "/" in (label := str(line.get_label())):
                (x,), (y,) = np.asarray(line.get_xdata()), np.asarray(line.get_ydata())
                found[label] = float(x), float(y), line.get_markerfacecolor() != "white"
    return found


def ends(study: Study, measure: str, split: str) -> dict[str, float]:
    """Arm/seed -> level at the end, computed naively."""
    return {
        f"{arm}/{seed}": value
        for arm, phases in PHASES.items()
        for seed, value in naive_level(
            study, arm, measure, split, REMOVAL if len(phases) > 1 else 0, LAST
        ).items()
    }


def test_every_run_that_came_to_its_end_is_a_point(whole: Study) -> None:
    drawing = FIGURES["outcomes"](whole, False)
    kappa, accuracy = ends(whole, KAPPA, "train"), ends(whole, "accuracy", "validation")
    shown = points(drawing)
    assert {name: each[0] for name, each in shown.items()} == pytest.approx(kappa)
    assert {name: each[1] for name, each in shown.items()} == pytest.approx(accuracy)
    ((arm, seed), epoch) = next(iter(DIVERGED.items()))
    assert len(shown) == len(PHASES) * len(SEEDS) - 1
    assert f"Not drawn: {arm}, seed {seed} (ended at epoch {epoch})." in drawing.reading


def test_runs_that_do_not_fit_their_training_data_are_hollow(whole: Study) -> None:
    drawing = FIGURES["outcomes"](whole, False)
    training = ends(whole, "accuracy", "train")
    hollow = {name for name, value in training.items() if value < 0.99}
    assert {name for name, (*_, filled) in points(drawing).items() if not filled} == hollow
    assert f"Hollow: {len(hollow)} runs with a training accuracy below 0.99" in drawing.reading


def test_the_caption_counts_sharp_networks_that_generalise(whole: Study) -> None:
    drawing = FIGURES["outcomes"](whole, False)
    kappa, accuracy = ends(whole, KAPPA, "train"), ends(whole, "accuracy", "validation")
    training = ends(whole, "accuracy", "train")
    base = [f"baseline/{seed}" for seed in SEEDS]
    sharp = 10 * statistics.median(kappa[each] for each in base)
    good = statistics.median(accuracy[each] for each in base)
    passed = [x for x in kappa if kappa[x] >= sharp and accuracy[x] >= good - 0.02]
    fitting = [each for each in passed if training[each] >= 0.99]
    assert 0 < len(fitting) < len(passed)
    caption = drawing.caption
    assert f"{len(passed)} of {len(kappa) - 3} other runs are at least 10 times as sharp" in caption
    assert f"exact κ at matched loss {number(sharp / 10)}" in caption
    assert f"within 0.02 of its median held-out accuracy of {number(good)} or above" in caption
    assert f"Of these, {len(fitting)} fit the training data: cap 20 (3 of 3 seeds)." in caption
    (axes,) = drawing.figure.axes
    (line,) = [each for each in axes.lines if each.get_label() == "reference"]
    assert list(np.asarray(line.get_ydata())) == pytest.approx([good, good])
    (region,) = axes.collections
    corner = region.get_paths()[0].get_extents().min
    assert corner == pytest.approx([sharp, good - 0.02])


def test_without_kappa_at_matched_loss_kappa_itself_is_shown_and_named(whole: Study) -> None:
    frame = whole.metrics
    plain = replace(whole, metrics=frame[frame.measure != KAPPA])
    drawing = FIGURES["outcomes"](plain, False)
    expected = ends(whole, "relative_flatness", "train")
    assert {name: each[0] for name, each in points(drawing).items()} == pytest.approx(expected)
    assert drawing.caption.startswith("Exact κ at matched loss was not measured: shown is exact κ")
    assert drawing.figure.axes[0].get_xlabel().startswith("exact κ, nats")


def test_what_has_no_point_is_named(whole: Study) -> None:
    frame = whole.metrics.copy()
    kappa = (frame.measure == KAPPA) & (frame.step > 40)
    frame.loc[kappa & (frame.arm == "cap 20") & (frame.seed == 1), "value"] = 0.0
    frame = frame[~(kappa & (frame.arm == "cap alone"))]
    drawing = FIGURES["outcomes"](replace(whole, metrics=frame), False)
    assert "cap 20, seed 1 (κ is 0)" in drawing.reading
    for seed in SEEDS:
        assert f"cap alone, seed {seed} (not measured)" in drawing.reading
    assert len(points(drawing)) == len(PHASES) * len(SEEDS) - 5


def test_without_a_baseline_the_first_arm_is_the_reference() -> None:
    study = arms_study(("cap alone", "cap 20"))
    drawing = FIGURES["outcomes"](study, False)
    assert "3 of 3 other runs are at least 10 times as sharp as cap alone" in drawing.caption
    assert "times that of cap alone" in FIGURES["flatness_by_arm"](study, False).caption


def test_a_baseline_that_has_not_ended_compares_nothing(whole: Study) -> None:
    frame = whole.metrics
    part = frame[(frame.arm != "baseline") | (frame.epoch <= 30)]
    drawing = FIGURES["outcomes"](replace(whole, metrics=part), False)
    assert "No run of baseline came to its end, so nothing is compared." in drawing.caption
    assert len(points(drawing)) == (len(PHASES) - 1) * len(SEEDS) - 1


@pytest.mark.parametrize(
    ("name", "lost"),
    [
        ("accuracies", ("accuracy",)),
        ("flatness_by_arm", ("relative_flatness", "published")),
        ("collapse_by_arm", ("ncc", "angle")),
        ("losses_by_arm", ("loss", "logit", "minibatch")),
        ("outcomes", ("relative_flatness",)),
        ("outcomes", ("accuracy",)),
    ],
)
def test_a_figure_without_its_measures_says_that_they_are_missing(
    whole: Study, name: str, lost: tuple[str, ...]
) -> None:
    frame = whole.metrics[~whole.metrics.measure.str.startswith(lost)]
    with pytest.raises(MissingMeasureError, match=r"not measured|none of its measures"):
        FIGURES[name](replace(whole, metrics=frame), False)
    with pytest.raises(MissingMeasureError, match="nothing has been measured"):
        FIGURES[name](replace(whole, metrics=whole.metrics.iloc[:0]), False)


def test_a_measure_that_some_arms_lack_is_named_and_the_rest_is_drawn(whole: Study) -> None:
    frame = whole.metrics
    frame = frame[(frame.measure != "angle_deviation")]
    frame = frame[(frame.measure != "ncc") | (frame.split == "train") | (frame.arm != "cap 20")]
    drawing = FIGURES["collapse_by_arm"](replace(whole, metrics=frame), False)
    assert len(drawing.figure.axes) == 2
    assert "Not measured: NCC (held out) in cap 20." in drawing.reading
    assert "Not measured: deviation from the simplex angle (training)." in drawing.reading


def texts(figure: Figure) -> list[Text]:
    """All that is written outside the axes' ticks."""
    found = [*figure.texts]
    for axes in figure.axes:
        found += [*axes.texts, axes.xaxis.label, axes._left_title]
    return [text for text in found if text.get_text() and text.get_visible()]


def tick_labels(axes: Axes) -> Iterator[Text]:
    """Of the ticks that are drawn: within the limits."""
    for axis, limits in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
        for place, label in zip(axis.get_majorticklocs(), axis.get_majorticklabels(), strict=False):
            if limits[0] <= place <= limits[1] and label.get_text() and label.get_visible():
                yield label


@pytest.mark.parametrize("narrow", [False, True], ids=["wide", "narrow"])
@pytest.mark.parametrize("arms", [("baseline",), tuple(PHASES), MANY], ids=len)
@pytest.mark.parametrize("name", NAMES)
def test_no_text_is_cut_or_lies_on_another(name: str, arms: tuple[str, ...], narrow: bool) -> None:
    figure = FIGURES[name](arms_study(arms, (1,)), narrow).figure
    assert (figure.get_figwidth() < 5) == narrow
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    ticks = [label for axes in figure.axes for label in tick_labels(axes)]
    boxes = [text.get_window_extent(renderer) for text in texts(figure)]
    for box in (*boxes, *(each.get_window_extent(renderer) for each in ticks)):
        assert figure.bbox.x0 - 1 <= box.x0 < box.x1 <= figure.bbox.x1 + 1
        assert figure.bbox.y0 - 1 <= box.y0 < box.y1 <= figure.bbox.y1 + 1
    for one, other in combinations(boxes, 2):
        wide = min(one.x1, other.x1) - max(one.x0, other.x0)
        tall = min(one.y1, other.y1) - max(one.y0, other.y0)
        assert wide <= 1 or tall <= 2


def test_more_arms_make_more_rows_and_none_is_left_out() -> None:
    study = arms_study(MANY, (1,))
    groups = [[arm.name for arm in group] for group in blocks(arms_of(study))]
    assert [len(group) for group in groups] == [6, 6, 6]
    assert all(group[0] == "baseline" for group in groups)
    assert sorted(name for group in groups for name in group[1:]) == sorted(set(MANY[1:]))
    drawing = FIGURES["accuracies"](study, False)
    medians = [
        {str(line.get_label()) for line in axes.lines if str(line.get_label()).endswith("/median")}
        for axes in drawing.figure.axes
    ]
    assert [len(each) for each in medians] == [6] * 6
    for place in (0, 1):
        assert len({axes.get_ylim() for axes in drawing.figure.axes[place::2]}) == 1
    assert "16 arms are more than one panel can show, so there are 3 groups" in drawing.reading


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    study = arms_study(("baseline", HOSTILE), (1,))
    figure = FIGURES["accuracies"](study, False).figure
    assert HOSTILE in [text.get_text() for text in figure.texts]
    assert all(not text.get_parse_math() for text in figure.texts)
    names = ("flatness_by_arm", "outcomes")
    page = write_report(replace(study, figures=names), tmp_path).read_text(encoding="utf-8")
    assert escape(HOSTILE, quote=False).split('"')[0] in page
    assert "<b>" not in page
    assert {each.stem for each in (tmp_path / "figures").iterdir()} == set(names)


def test_a_name_is_shortened_only_as_far_as_it_must_be() -> None:
    assert shown_name("baseline", 2) == "baseline"
    short = shown_name(HOSTILE, 2)
    assert short.endswith("…")
    assert HOSTILE.startswith(short[:-1])
    assert 1.8 < text_width(short) <= 2


@pytest.mark.parametrize("name", NAMES)
def test_the_same_study_gives_the_same_bytes(whole: Study, name: str) -> None:
    def written() -> bytes:
        drawing = FIGURES[name](replace(whole, metrics=whole.metrics.copy()), False)
        buffer = io.BytesIO()
        drawing.figure.savefig(buffer, format="svg", metadata={"Date": None})
        return buffer.getvalue() + drawing.caption.encode()

    assert written() == written()


def test_the_order_of_rows_and_a_categorical_arm_change_nothing(whole: Study) -> None:
    frame = whole.metrics.sample(frac=1, random_state=1)
    shuffled = replace(whole, metrics=frame.assign(arm=pd.Categorical(frame["arm"])))
    for name in ("flatness_by_arm", "outcomes"):
        one, other = FIGURES[name](whole, False), FIGURES[name](shuffled, False)
        assert (one.caption, one.reading) == (other.caption, other.reading)
