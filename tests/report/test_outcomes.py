"""The scatter of outcomes, and how figures of arms are laid out and named."""

from __future__ import annotations

import io
import statistics
from html import escape
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from drawing import draw, row, texts, tick_labels
from made_arms import DIVERGED, LAST, PHASES, REMOVAL, SEEDS, STEPS, arms_study, naive_level
from made_study import beside, study
from made_study import metrics as made_metrics
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from grokscope.report import Drawn, MissingMeasureError, Study, write_report
from grokscope.report.answer import reading_guide
from grokscope.report.arms import blocks
from grokscope.report.style import RC, shortened, text_width
from grokscope.report.words import number, share

NAMES = ("accuracies", "flatness_by_arm", "collapse_by_arm", "losses_by_arm", "outcomes")
BY_STEPS = (
    "grokking", "onsets", "collapse", "confidence", "representativeness", "partial_correlations",
)  # fmt: skip
KAPPA = "relative_flatness_matched"
HOSTILE = 'a<b>&"$x_1$" \\alpha % that goes on and on, and then a little further than fits'
MANY = (*PHASES, "cap 5", HOSTILE, "smoothing", "gini", "entropy", "logit scale", "clamp", "flat")


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
    drawing = draw("outcomes", whole)
    kappa, accuracy = ends(whole, KAPPA, "train"), ends(whole, "accuracy", "validation")
    shown = points(drawing)
    assert {name: each[0] for name, each in shown.items()} == pytest.approx(kappa)
    assert {name: each[1] for name, each in shown.items()} == pytest.approx(accuracy)
    ((arm, seed), epoch) = next(iter(DIVERGED.items()))
    assert len(shown) == len(PHASES) * len(SEEDS) - 1
    assert f"Not drawn: {arm}, seed {seed} (is at step {epoch * STEPS})." in drawing.remarks


def test_runs_that_do_not_fit_their_training_data_are_hollow(whole: Study) -> None:
    drawing = draw("outcomes", whole)
    training = ends(whole, "accuracy", "train")
    hollow = {name for name, value in training.items() if value < 0.99}
    assert {name for name, (*_, filled) in points(drawing).items() if not filled} == hollow
    wanted = f"Hollow: {len(hollow)} runs with a training accuracy below 0.99"
    assert any(text.startswith(wanted) for text in drawing.remarks)


def test_sharp_networks_that_generalise_are_counted_by_the_rule_of_the_claim(whole: Study) -> None:
    drawing = draw("outcomes", whole)
    kappa, accuracy = ends(whole, KAPPA, "train"), ends(whole, "accuracy", "validation")
    training = ends(whole, "accuracy", "train")
    base = [f"baseline/{seed}" for seed in SEEDS]
    sharp = 3 * statistics.median(kappa[each] for each in base)
    good = statistics.median(accuracy[each] for each in base)
    fitting = [x for x in kappa if training[x] >= 0.99]
    passed = [x for x in fitting if kappa[x] >= sharp and accuracy[x] > good - 0.03]
    assert 0 < len(passed) < len([x for x in kappa if kappa[x] >= sharp])
    assert f"Of {len(kappa) - 3} other runs, {len(passed)} are at least 3 times" in drawing.caption
    (table,) = drawing.tables
    for arm in PHASES:
        if arm != "baseline":
            mine = [each for each in passed if each.startswith(f"{arm}/")]
            assert row(table, arm)["Fit, sharp and as accurate"] == str(len(mine))
            fit = [each for each in fitting if each.startswith(f"{arm}/")]
            assert row(table, arm)["Fit"] == str(len(fit))
    assert f"the median of baseline, {number(sharp / 3)}." in table.note
    assert f"its median held-out accuracy, {share(good)}." in table.note
    (axes,) = drawing.figure.axes
    (line,) = [each for each in axes.lines if each.get_label() == "reference"]
    assert list(np.asarray(line.get_ydata())) == pytest.approx([good, good])
    (region,) = axes.collections
    corner = region.get_paths()[0].get_extents().min
    assert corner == pytest.approx([sharp, good - 0.03])


def test_without_kappa_at_matched_loss_kappa_itself_is_shown_and_named(whole: Study) -> None:
    plain = arms_study(change=lambda frame: frame[frame.measure != KAPPA])
    drawing = draw("outcomes", plain)
    expected = ends(whole, "relative_flatness", "train")
    assert {name: each[0] for name, each in points(drawing).items()} == pytest.approx(expected)
    assert drawing.remarks[0].startswith("Exact κ at matched loss was not measured: shown is exact")
    assert drawing.figure.axes[0].get_xlabel().startswith("exact κ, nats")


def test_what_has_no_point_is_named() -> None:
    def change(frame: pd.DataFrame) -> pd.DataFrame:
        kappa = (frame.measure == KAPPA) & (frame.step > 40)
        frame.loc[kappa & (frame.arm == "cap 20") & (frame.seed == 1), "value"] = 0.0
        return frame[~(kappa & (frame.arm == "cap alone"))]

    drawing = draw("outcomes", arms_study(change=change))
    (told,) = [text for text in drawing.remarks if text.startswith("Not drawn")]
    assert "cap 20, seed 1 (κ is 0)" in told
    assert "cap alone, seeds 1, 42 and 15213 (no looks in the last fifth" in told
    assert len(points(drawing)) == len(PHASES) * len(SEEDS) - 5


def test_without_a_baseline_the_first_arm_is_the_reference() -> None:
    drawing = draw("outcomes", arms_study(("cap alone", "cap 20")))
    wanted = "Of three other runs, 3 are at least 3 times as sharp as cap alone"
    assert wanted in drawing.caption


def test_a_baseline_that_has_not_ended_compares_nothing() -> None:
    part = arms_study(change=lambda f: f[(f.arm != "baseline") | (f.epoch <= 30)])
    drawing = draw("outcomes", part)
    assert "Nothing is compared, for no run of baseline can be drawn." in drawing.caption
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
    name: str, lost: tuple[str, ...]
) -> None:
    with pytest.raises(MissingMeasureError, match=r"not measured|none of its measures"):
        draw(name, arms_study(change=lambda frame: frame[~frame.measure.str.startswith(lost)]))
    with pytest.raises(MissingMeasureError, match="nothing has been measured"):
        draw(name, arms_study(change=lambda frame: frame.iloc[:0]))


def test_why_no_run_has_a_level_is_said() -> None:
    with pytest.raises(MissingMeasureError, match=r"no run has a level .* \(is at step 480"):
        draw("outcomes", arms_study(change=lambda frame: frame[frame.step <= 24 * STEPS]))
    few = arms_study(("baseline", "cap 20"), change=lambda frame: frame[frame.step % 600 == 0])
    with pytest.raises(MissingMeasureError, match=r"\(1 look in the last fifth"):
        draw("outcomes", few)


def test_another_arm_without_a_point_is_not_said_not_to_exist() -> None:
    both = ("baseline", "cap 20")
    drawing = draw(
        "outcomes", arms_study(both, change=lambda f: f[(f.arm != "cap 20") | (f.step < 99)])
    )
    assert "Nothing is compared, for no run of another arm can be drawn." in drawing.caption
    assert "Not drawn: cap 20, seeds 1, 42 and 15213 (is at step 80)." in drawing.remarks
    alone = draw("outcomes", arms_study(("baseline",)))
    assert alone.caption.endswith("There is no other arm to compare baseline with.")


def test_a_single_other_run_is_spoken_of_in_the_singular() -> None:
    for arm, start in (
        ("cap 20", "The other run is at least"),
        ("cap alone", "No other run is at"),
    ):
        caption = draw("outcomes", arms_study(("baseline", arm), (1,))).caption
        assert start in caption
        assert caption.endswith(", and fits its training data.")


def test_a_smoke_test_compares_nothing_in_the_caption() -> None:
    drawing = draw("outcomes", arms_study(("baseline", "cap 20"), smoke_test=True))
    assert drawing.caption == "Every point is a run."


def test_a_measure_that_some_arms_lack_is_named_and_the_rest_is_drawn() -> None:
    def change(frame: pd.DataFrame) -> pd.DataFrame:
        frame = frame[(frame.measure != "angle_deviation")]
        return frame[(frame.measure != "ncc") | (frame.split == "train") | (frame.arm != "cap 20")]

    drawing = draw("collapse_by_arm", arms_study(change=change))
    assert len(drawing.figure.axes) == 2
    assert "Not measured: NCC (held out) in cap 20." in drawing.remarks
    assert "Not measured: deviation from the simplex angle (training)." in drawing.remarks


def test_a_users_measure_is_drawn_with_the_arms_as_lines() -> None:
    def added(frame: pd.DataFrame) -> pd.DataFrame:
        more = frame[frame.measure == "ncc"].assign(measure="my_sparsity")
        return pd.concat([frame, more])

    drawing = draw("measures", arms_study(change=added))
    titles = [axes.get_label() for axes in drawing.figure.axes]
    assert titles == ["My sparsity, training", "My sparsity, held out"]
    labels = {str(line.get_label()) for line in drawing.figure.axes[0].lines}
    assert {f"{arm}/train/my_sparsity/median" for arm in PHASES} <= labels
    assert drawing.tables[0].headings == ("Arm", "My sparsity (training)", "My sparsity (held out)")


def overlapping(figure: Figure) -> list[tuple[str, str]]:
    """Pairs of texts that lie on each other; fails for one that is cut off."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    ticks = [label for axes in figure.axes for label in tick_labels(axes)]
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in texts(figure)]
    labels = [(label.get_text(), label.get_window_extent(renderer)) for label in ticks]
    for name, box in (*boxes, *labels):
        assert figure.bbox.x0 - 1 <= box.x0 < box.x1 <= figure.bbox.x1 + 1, name
        assert figure.bbox.y0 - 1 <= box.y0 < box.y1 <= figure.bbox.y1 + 1, name
    found = []
    for (one, a), (other, b) in (*combinations(boxes, 2), *combinations(labels, 2)):
        wide, tall = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
        if wide > 1 and tall > 2:
            found.append((one, other))
    return found


@pytest.mark.parametrize("narrow", [False, True], ids=["wide", "narrow"])
@pytest.mark.parametrize("arms", [("baseline",), tuple(PHASES), MANY], ids=len)
@pytest.mark.parametrize("name", NAMES)
def test_no_text_is_cut_or_lies_on_another(name: str, arms: tuple[str, ...], narrow: bool) -> None:
    figure = draw(name, arms_study(arms, (1,)), narrow).figure
    assert (figure.get_figwidth() < 5) == narrow
    assert not overlapping(figure)


@pytest.mark.parametrize("narrow", [False, True], ids=["wide", "narrow"])
@pytest.mark.parametrize("beside_it", [False, True], ids=["alone", "beside another"])
@pytest.mark.parametrize("name", BY_STEPS)
def test_no_text_of_figures_over_steps_is_cut_or_lies_on_another(
    name: str, beside_it: bool, narrow: bool
) -> None:
    other = beside(made_metrics((1, 42))) if beside_it else None
    assert not overlapping(draw(name, study(counterpart=other), narrow).figure)


def test_the_label_of_the_shaded_region_keeps_clear_of_the_scale() -> None:
    figure = draw("outcomes", arms_study(("baseline", "cap 20")), narrow=True).figure
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    (axes,) = figure.axes
    (label,) = [text for text in texts(figure) if text.get_text().startswith("shaded")]
    left = label.get_window_extent(renderer).x0
    assert all(tick.get_window_extent(renderer).x1 < left - 2 for tick in axes.get_yticklabels())


def test_more_arms_make_more_rows_and_none_is_left_out() -> None:
    many = arms_study(MANY, (1,))
    groups = [[arm.name for arm in group] for group in blocks(many.arms)]
    assert [len(group) for group in groups] == [6, 6, 6]
    assert all(group[0] == "baseline" for group in groups)
    assert sorted(name for group in groups for name in group[1:]) == sorted(set(MANY[1:]))
    figure = draw("accuracies", many).figure
    medians = [
        {str(line.get_label()) for line in axes.lines if str(line.get_label()).endswith("/median")}
        for axes in figure.axes
    ]
    assert [len(each) for each in medians] == [6] * 6
    for place in (0, 1):
        assert len({axes.get_ylim() for axes in figure.axes[place::2]}) == 1
    assert "figures of arms have 3 groups of panels" in " ".join(reading_guide(many, [figure]))


@pytest.mark.parametrize("name", NAMES)
def test_very_many_arms_share_a_panel_and_none_is_left_out(name: str) -> None:
    arms = ("baseline", *(f"lr {place}" for place in range(40)))
    many = arms_study(arms, (1,))
    figure = draw(name, many).figure
    assert len(figure.axes) <= 4
    (axes, *_) = figure.axes
    if name == "outcomes":
        assert len(points(draw(name, many))) == len(arms)
    else:
        (lines,) = [each for each in axes.collections if each.get_label() == "dense"]
        assert len(lines.get_segments()) == 40
        assert len({tuple(colour) for colour in lines.get_colors()}) == 40
        assert [str(each.get_label()).split("/")[0] for each in axes.lines] == ["baseline"]
    assert "41 arms are more than lines can be told apart" in " ".join(
        reading_guide(many, [figure])
    )
    assert not overlapping(figure)


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    names = ("flatness_by_arm", "outcomes")
    hostile = arms_study(("baseline", HOSTILE), (1,), figures=names)
    figure = draw("accuracies", hostile).figure
    assert HOSTILE in [text.get_text() for text in figure.texts]
    assert all(not text.get_parse_math() for text in figure.texts)
    page = write_report(hostile, tmp_path).read_text(encoding="utf-8")
    assert escape(HOSTILE, quote=False).split('"')[0] in page
    assert "<b>" not in page
    assert {each.stem for each in (tmp_path / "figures").iterdir()} == set(names)


def test_a_name_is_shortened_only_as_far_as_it_must_be() -> None:
    assert shortened("baseline", 2) == "baseline"
    short = shortened(HOSTILE, 2)
    assert short.endswith("…")
    assert HOSTILE.startswith(short[:-1])
    assert 1.8 < text_width(short) <= 2


@pytest.mark.parametrize("name", NAMES)
def test_the_same_study_gives_the_same_bytes(name: str) -> None:
    def written() -> bytes:
        drawing = draw(name, arms_study())
        buffer = io.BytesIO()
        with rc_context(RC):
            drawing.figure.savefig(buffer, format="svg", metadata={"Date": None})
        return buffer.getvalue() + repr((drawing.caption, drawing.tables)).encode()

    assert written() == written()


def test_the_order_of_rows_and_a_categorical_arm_change_nothing(whole: Study) -> None:
    def shuffled(frame: pd.DataFrame) -> pd.DataFrame:
        frame = frame.sample(frac=1, random_state=1)
        return frame.assign(arm=pd.Categorical(frame["arm"]))

    other = arms_study(change=shuffled)
    for name in ("flatness_by_arm", "outcomes"):
        one, again = draw(name, whole), draw(name, other)
        assert (one.caption, one.tables, one.remarks) == (
            again.caption,
            again.tables,
            again.remarks,
        )
